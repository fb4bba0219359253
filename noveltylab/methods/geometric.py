"""Geometric: a classifier of 72 geometric transformations (Golan and El-Yaniv, NeurIPS 2018).

Deep Anomaly Detection Using Geometric Transformations. A network learns which of 72 transformations
an inlier was given: mirrored or not, shifted along each axis or not, turned by a quarter or not. Of
an outlier's transformations its softmax is unlike that of the training inliers. RotNet (rotnet.py)
is the special case of the four turns alone.

PAPER (arXiv 1805.10917)
- Every combination of 2 mirrorings, 3 x 3 shifts by a quarter of the side and 4 turns.
- A wide residual network of depth 10 and width 4, Adam, cross-entropy of the transformation.
- For each transformation a Dirichlet distribution is fitted to the softmax of the training inliers
  by maximum likelihood (after Minka), and the normality score of an image is the sum over
  the transformations of (alpha - 1) log p: the log-density without its constant.
- The simple score is the probability of the right transformation, averaged.

CODE (the authors', izikgo/AnomalyDetectionTransformations)
- A mirroring, then the shift, then the turn; what a shift uncovers is the image reflected, its edge
  repeated.
- Batches of 128 transformed images, ceil(200 / 72) = 3 epochs of all 72 of each image.
- Squared weights, biases and batch norm's values are added to the loss, which is a weight decay of
  5e-4 as Adam's L2 term.
- The normality score is divided by 72. The simple score is commented out.
- Fits on all training images by Minka's fixed point, 1000 iterations at most.

CHOICE
- `copies` transformations of each image in a step, all different, drawn anew in each; 54 epochs of
  4 are the authors' 3 epochs of 72 (216 of each image), but not each one as often as any other.
- The shortcut's weights and all others have He's normal deviation by the outputs (rotnet.py), the
  code's by the inputs. The last layer's bias begins as torch's, the code's at 0. Adam's epsilon is
  torch's 1e-8, Keras's 1e-7.
- 3x3 convolutions of stride 2 are padded on all sides, TensorFlow's below and to the right alone.
- Minka's Newton iterations after a few to the fixed point, which alone is still 1.5 % off after 1000
  where alpha is 400. `fit_images` bounds the images of the fit, spread evenly.
- Probabilities are kept as logarithms: the code takes the logarithm of a softmax, which can be 0.
- `nll`, the mean of -log p of the right transformation, is RotNet's score and the held-out loss.

Published mean AUROC on CIFAR-10 P2: 0.860 by the authors, 0.823 in NDA's table 3.
"""

from itertools import product
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from noveltylab.methods.base import Batch, Method
from noveltylab.nets.losses import wide
from noveltylab.nets.wide_resnet import initialise, wide_residual_network

#: Mirrorings, shifts along each axis in quarters of the side, and turns by 90 degrees.
MIRRORS, SHIFTS, TURNS = (False, True), (0, -1, 1), (0, 1, 2, 3)
COUNT = 2 * 3 * 3 * 4
#: Transformations that pass through the network at once, and images of the fit.
GROUP, FIT_BATCH = 4, 128
#: Of the fit: iterations to a fixed point, Newton's after them at most, and the relative change that
#: ends these.
FIXED, ITERATIONS, TOLERANCE = 20, 200, 1e-9
#: Spread of a class's logarithms below which samples count as so far spread: of samples that are all
#: alike no distribution is likeliest.
LEAST_SPREAD = 1e-6
#: Newton's steps to the inverse of digamma.
INVERSE_STEPS = 5
EULER = 0.5772156649015329


# The transformations.


def shifted(positions: Tensor, rows: int, columns: int) -> Tensor:
    """An image (H, H) that takes its values from so many rows below and columns to the right.

    Beyond the border it is reflected, its edge repeated.
    """
    side = len(positions)
    places = torch.arange(side)
    for axis, shift in ((0, rows), (1, columns)):
        source = (places + shift) % (2 * side)
        source = torch.where(source < side, source, 2 * side - 1 - source)
        positions = positions.index_select(axis, source)
    return positions


def transformations(side: int) -> Tensor:
    """For each transformation the positions (COUNT, H H) that its values come from."""
    image = torch.arange(side * side).view(side, side)
    quarter = side // 4
    rows = []
    for mirror, down, across, turn in product(MIRRORS, SHIFTS, SHIFTS, TURNS):
        positions = image
        if mirror:
            positions = positions.flip(1)
        positions = shifted(positions, down * quarter, across * quarter)
        rows.append(torch.rot90(positions, turn).flatten())
    return torch.stack(rows)


# The Dirichlet distribution.


def inverse_digamma(y: Tensor) -> Tensor:
    """x > 0 with digamma(x) = y, float64, by Newton's method from Minka's start."""
    x = torch.where(y >= -2.22, y.exp() + 0.5, -1 / (y + EULER))
    for _ in range(INVERSE_STEPS):
        x = x - (torch.digamma(x) - y) / torch.polygamma(1, x)
    return x


def fit_dirichlet(mean_p: Tensor, mean_log_p: Tensor) -> Tensor:
    """The parameters alpha of the likeliest Dirichlet distributions, float64 (T, K).

    Args:
        mean_p: Mean of the probabilities of each distribution's samples, float64 (T, K), above 0.
        mean_log_p: Mean of their logarithms, all that the likelihood depends on.
    """
    classes = mean_p.shape[1]
    mean_log_p = torch.minimum(mean_log_p, mean_p.log() - LEAST_SPREAD)
    # the start: the means, and a sum of alpha by Stirling's approximation
    spread = (mean_p * (mean_p.log() - mean_log_p)).sum(1, keepdim=True)
    alpha = mean_p * (classes - 1) * EULER / spread
    for _ in range(FIXED):
        alpha = inverse_digamma(torch.digamma(alpha.sum(1, keepdim=True)) + mean_log_p)
    for _ in range(ITERATIONS):
        before = alpha
        total = before.sum(1, keepdim=True)
        gradient = torch.digamma(total) - torch.digamma(before) + mean_log_p
        # the second derivatives are a diagonal and one constant, so that the inverse is at hand
        diagonal = -torch.polygamma(1, before)
        constant = torch.polygamma(1, total)
        share = (gradient / diagonal).sum(1, keepdim=True)
        share = share / (1 / constant + (1 / diagonal).sum(1, keepdim=True))
        # a step never goes further than halfway to 0
        alpha = torch.maximum(before - (gradient - share) / diagonal, before / 2)
        if ((alpha - before).abs() <= TOLERANCE * before).all():
            break
    return alpha


class Geometric(Method):
    """One classifier of transformations, and a Dirichlet distribution for each of them.

    `copies`: transformations of each image in a step; `fit_images`: training images that the
    distributions are fitted to, None for all.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        lr: PositiveFloat = 1e-3,
        weight_decay: NonNegativeFloat = 5e-4,
        depth: Annotated[int, Field(ge=10)] = 10,
        width: PositiveFloat = 4.0,
        copies: Annotated[int, Field(ge=1, le=COUNT)] = 4,
        fit_images: PositiveInt | None = None,
    ) -> None:
        super().__init__(image_shape)
        channels, height, breadth = image_shape
        if height != breadth:
            raise ValueError(
                f"data.size={height}: Geometric takes square images, not {height} x {breadth}"
            )
        if height < 4:
            raise ValueError(f"data.size={height}: has no quarter to shift by; 4 at least")
        self.lr = lr
        self.weight_decay = weight_decay
        self.copies = copies
        self.fit_images = fit_images
        network = wide_residual_network(channels, depth, width, COUNT)
        self.network = network.apply(initialise)
        self.register_buffer("positions", transformations(height), persistent=False)
        # before a fit: such that the score is the mean log-probability of the right ones
        self.register_buffer("alpha", torch.ones(COUNT, COUNT) + torch.eye(COUNT))
        self.positions: Tensor
        self.alpha: Tensor

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizer = torch.optim.Adam(
            self.parameters(), self.lr, weight_decay=self.weight_decay, fused=True
        )
        return {"network": optimizer}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step on `copies` transformations of each image.

        Losses `cross_entropy`, and `accuracy`, the share of transformations told rightly.
        """
        count = len(batch.x)
        order = torch.rand(count, COUNT, device=batch.x.device).argsort(1)
        drawn = order[:, : self.copies]
        flat = batch.x.flatten(2)
        channels = flat.shape[1]
        images = []
        for transform in drawn.T:
            source = self.positions[transform][:, None].expand(-1, channels, -1)
            images.append(flat.gather(2, source).view_as(batch.x))
        logits = wide(self.network(torch.cat(images)))
        labels = drawn.T.flatten()
        loss = F.cross_entropy(logits, labels)
        self.minimise(loss, "network")
        is_right = logits.argmax(1) == labels
        return {"cross_entropy": loss.detach(), "accuracy": is_right.float().mean()}

    def log_probabilities(self, x: Tensor) -> Tensor:
        """log p (B, T, K) of class K for transformation T of images x (B, C, H, H); T = K = COUNT."""
        flat = x.flatten(2)
        parts = []
        for positions in torch.split(self.positions, GROUP):
            moved = flat[:, :, positions].transpose(1, 2)
            logits = self.network(moved.reshape(-1, *x.shape[1:]))
            parts.append(wide(logits).view(-1, len(positions), COUNT))
        return F.log_softmax(torch.cat(parts, 1), 2)

    def prepare_score(self, train: Tensor) -> None:
        """Fits a Dirichlet distribution to the softmax of each transformation of train."""
        if self.fit_images is not None:
            train = train[:: max(1, len(train) // self.fit_images)][: self.fit_images]
        total_p = torch.zeros(COUNT, COUNT, dtype=torch.float64, device=train.device)
        total_log_p = torch.zeros_like(total_p)
        for part in torch.split(train, FIT_BATCH):
            log_p = self.log_probabilities(part).double()
            total_p += log_p.exp().sum(0)
            total_log_p += log_p.sum(0)
        alpha = fit_dirichlet(total_p / len(train), total_log_p / len(train))
        self.alpha = alpha.to(self.alpha)

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("dirichlet", "nll", "probability")

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`dirichlet`: minus the mean over the transformations of sum (alpha - 1) log p.

        `nll`: mean of -log p of the right transformation; `probability`: minus the mean of that p,
        the simple score; (B,) each.
        """
        log_p = self.log_probabilities(x)
        density = ((self.alpha - 1) * log_p).sum(2)
        right = log_p.diagonal(dim1=1, dim2=2)
        return {
            "dirichlet": -density.mean(1),
            "nll": -right.mean(1),
            "probability": -right.exp().mean(1),
        }

    def validation_loss(self, x: Tensor) -> Tensor:
        """The cross-entropy over all transformations, (B,)."""
        return self.novelty_score(x)["nll"]

    def embed(self, x: Tensor) -> Tensor:
        """Features of the image as it is, (B, 64 width)."""
        features: Tensor = self.network[:-1](x)
        return features
