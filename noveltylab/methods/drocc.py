"""DROCC: Deep Robust One-Class Classification (Goyal et al., ICML 2020).

A binary classifier is taught that the inliers have label 1, and that the worst points near them have
label 0. Worst points are searched by gradient ascent among those whose distance from an inlier is
between r and gamma r: if inliers lie well sampled on a manifold of few dimensions, what is farther
than r from all of them is no inlier. Without these points one label for everything would do.

PAPER (arXiv 2002.12718, algorithm 1)
- Loss: that of the inliers with label 1, plus mu times that of the found points with label 0.
- The search begins at an inlier plus h of a standard normal distribution, and goes a number of steps
  of fixed length along the gradient of the loss with label 0. After it h is projected: what is
  shorter than r becomes r long, what is longer than gamma r, gamma r.
- The first epochs have the loss of the inliers alone (`warm_up`).
- The score is the classifier's output.

CODE (the authors', microsoft/EdgeML: DROCCTrainer, main_cifar.py and the README's commands)
- The LeNet of Deep SVDD for CIFAR-10 with two more layers of 64 and 1 outputs, no biases, batch norm
  without scale and shift.
- 50 steps of 0.001, projected after every tenth. CIFAR-10: Adam at 1e-3, batches of 256, 40 epochs,
  mu 1, radius 8 and gamma 1 on pixels of mean 0 and deviation 1; no warm-up epochs. The rate is
  divided by 10 after 40 % of the epochs, and again after 80 %; the recipes have trainer.lr_decay_from.
- An earlier release (SachinG007/DROCC_icml2020) has a script that tries radii of 8 to 44 on four
  classes of CIFAR-10.
- With these numbers h, about 55 long at first, is cut to 8, and 50 steps move it by 0.05 at most:
  what is found hardly differs from noise of that length.
- The printed number is that of the epoch with the highest AUROC on the test set; the code then
  copies an empty variable where it means to keep that epoch's weights.

CHOICE
- Pixels are in [-1, 1] here, about half as spread: the default radius is 4 for 3 x 32 x 32, and the
  start has a deviation of `start`, 0.5.
- On grey sets the recipe's radius is the distance of nearest neighbours: its median over the inliers
  of a class, a mean over the classes. Farther from an inlier than that a point lies beside a class
  that is as well sampled as the method assumes. gamma is 2, the default of the code's script, and 5
  steps lead from the inner sphere to the outer one. No outlier chose any of this.
- Projected after every step, as in the algorithm, so that gradients are taken in the shell from the
  second step on; the code takes the first ten where the search begins, far outside it.
- The search runs in evaluation mode, so that the worst point near an inlier does not depend on the
  others of its batch; inliers and found points then pass together. In the code they pass apart, each
  normalised by its own statistics, and every step of the search adds to the running ones, by which
  the inliers of the test set are normalised.
- The loss is averaged over the batch where algorithm 1 adds up. `weight_decay`, the paper's lambda,
  is 0 as in the code's CIFAR-10.
- One network for all data sets, of another `width` by recipe.
- Selection: the last epoch is recommended. The held-out loss, -log of the inlier's probability, is
  lowest for a classifier that calls everything an inlier.
Published mean AUROC: CIFAR-10 P2 0.742.
"""

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from noveltylab.methods.base import Batch, Method, Phase
from noveltylab.nets.losses import bce, wide

#: Channels of the blocks, each of which halves the image, and outputs of the layers after them.
BLOCKS, LAYERS = (32, 64, 128), (128, 64)


# Network.


def classifier(image_shape: tuple[int, int, int], width: float) -> nn.Sequential:
    """Images (B, C, H, W) -> logits of being an inlier (B, 1)."""
    before, height, breadth = image_shape
    layers: list[nn.Module] = []
    for channels in BLOCKS:
        after = max(1, round(channels * width))
        layers += [
            nn.Conv2d(before, after, 5, padding=2, bias=False),
            nn.BatchNorm2d(after, eps=1e-4, affine=False),
            nn.LeakyReLU(),
            nn.MaxPool2d(2),
        ]
        before = after
    shrink = 2 ** len(BLOCKS)
    layers.append(nn.Flatten())
    before *= (height // shrink) * (breadth // shrink)
    for size in LAYERS:
        after = max(1, round(size * width))
        layers += [nn.Linear(before, after, bias=False), nn.LeakyReLU()]
        before = after
    layers.append(nn.Linear(before, 1, bias=False))
    return nn.Sequential(*layers)


# The search (algorithm 1).


def lengths(h: Tensor) -> Tensor:
    """Euclidean norms of h (B, C, H, W), (B, 1, 1, 1), never quite 0."""
    norms: Tensor = torch.linalg.vector_norm(h.flatten(1), dim=1)
    return norms.clamp_min(1e-12).view(-1, 1, 1, 1)


def project(h: Tensor, radius: float, gamma: float) -> Tensor:
    """h (B, C, H, W), each made no shorter than the radius and no longer than gamma times it."""
    norms = lengths(h)
    return h * (norms.clamp(radius, gamma * radius) / norms)


class DROCC(Method):
    """A classifier of inliers against the worst points near them.

    `radius`, `gamma`: a found point is at least `radius` and at most gamma times as far from its
    inlier; `steps`, `step_size`: of the search; `start`: deviation of the normal distribution in
    which it begins; `mu`: weight of the found points; `warm_up`: share of the epochs without them.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        radius: PositiveFloat = 4.0,
        gamma: Annotated[float, Field(ge=1)] = 1.0,
        mu: NonNegativeFloat = 1.0,
        steps: PositiveInt = 50,
        step_size: PositiveFloat = 5e-4,
        start: PositiveFloat = 0.5,
        warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        lr: PositiveFloat = 1e-3,
        weight_decay: NonNegativeFloat = 0.0,
        width: PositiveFloat = 1.0,
    ) -> None:
        super().__init__(image_shape)
        shrink = 2 ** len(BLOCKS)
        if image_shape[1] % shrink or image_shape[2] % shrink:
            raise ValueError(f"data.size={image_shape[1]}: DROCC takes a multiple of {shrink}")
        self.radius = radius
        self.gamma = gamma
        self.mu = mu
        self.steps = steps
        self.step_size = step_size
        self.start = start
        self.warm_up = warm_up
        self.lr = lr
        self.weight_decay = weight_decay
        self.network = classifier(image_shape, width)

    @property
    def phases(self) -> list[Phase]:
        if not self.warm_up:
            return []
        return [Phase("without found points", 0.0), Phase("with found points", self.warm_up)]

    @property
    def phase(self) -> bool:
        """Whether points are searched now."""
        return self.progress >= self.warm_up

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizer = torch.optim.Adam(
            self.parameters(), self.lr, weight_decay=self.weight_decay, fused=True
        )
        return {"network": optimizer}

    def search(self, x: Tensor) -> Tensor:
        """Points near the inliers x (B, C, H, W) that pass most for inliers, one for each."""
        was_training = self.network.training
        self.network.eval().requires_grad_(False)
        h = self.start * torch.randn_like(x)
        for _ in range(self.steps):
            h.requires_grad_()
            loss = bce(self.network(x + h).flatten(), 0).sum()
            (gradient,) = torch.autograd.grad(loss, h)
            h = h.detach() + self.step_size * gradient / lengths(gradient)
            h = project(h, self.radius, self.gamma)
        self.network.train(was_training).requires_grad_(True)
        return x + h

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step.

        Losses `inliers`, and after the warm-up `found`, of the found points, both in nats.
        """
        if not self.phase:
            loss = bce(self.network(batch.x).flatten(), 1).mean()
            self.minimise(loss, "network")
            return {"inliers": loss.detach()}
        points = self.search(batch.x)
        logits = self.network(torch.cat([batch.x, points])).flatten()
        of_inliers, of_points = logits.chunk(2)
        inliers = bce(of_inliers, 1).mean()
        hard = bce(of_points, 0).mean()
        self.minimise(inliers + self.mu * hard, "network")
        return {"inliers": inliers.detach(), "found": hard.detach()}

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("logit",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`logit`: minus the classifier's logit of being an inlier, (B,)."""
        return {"logit": -wide(self.network(x)).flatten()}

    def validation_loss(self, x: Tensor) -> Tensor:
        """-log of the inlier's probability, (B,)."""
        return bce(self.network(x).flatten(), 1)

    def embed(self, x: Tensor) -> Tensor:
        """The layer before the logit, (B, 64 width)."""
        features: Tensor = self.network[:-1](x)
        return features
