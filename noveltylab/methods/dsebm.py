"""DSEBM (Zhai et al., Deep Structured Energy Based Models for Anomaly Detection, ICML 2016).

A network gives each image an energy, minus the log of a density up to a constant. It is trained by
score matching, which needs no constant and no sampling: an image with noise, moved down the energy
by its gradient, is to be the image without noise. So the gradient of the energy is an auto-encoder,
whose decoder has the encoder's weights. An outlier has a high energy, or a steep one.

PAPER (arXiv 1605.07717)
- The energy of convolutional layers is E(x) = |x - b'|^2 / 2 - sum_k h_L,k(x), each layer
  h_l = g(W_l h_(l-1) + b_l) with g(a) = log(1 + exp(a)); b' is learned.
- Score matching in its denoising form: f(x) = x - dE/dx, and |x - f(x + noise)|^2 is least.
- Two criteria: the energy, and the reconstruction error |x - f(x)|^2 = |dE/dx|^2.

CODE (none of the authors' is known; two of others, for their own papers' tables)
- Golan and El-Yaniv's has noise of deviation 0.5 on images in [-1, 1], as here; Adam at 1e-3, batches
  of 128, 200 epochs; the score is the energy. Its layers are not the paper's: three 3x3 convolutions
  of stride 2 with batch norm and ReLU, and a dense layer of 256 with ReLU. b' begins at 0.
- Zenati et al.'s (ALAD) has noise of deviation 1, Adam at 3e-3 on images, batches of 32, and a b' of
  its own for each place in a batch. What it sums is no last layer but an auto-encoder's output: a
  convolution, maxima, a dense layer, and their transposes with the same weights, all softplus.

CHOICE
- Layers: three 5x5 convolutions of stride 2 and one dense layer, where the paper pools. What its
  image networks hold is not copied.
- b' begins as the mean training inlier.
- The gradient is written out, layer by layer, rather than taken by autograd: it is exact, a score
  costs two passes, and it can be exported.
- The loss is a mean over the pixels. That of held-out inliers has one noise image for all, so that
  epochs can be compared.
- The run's number is the energy's: it is the criterion that the density itself gives.
"""

from itertools import pairwise

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from noveltylab.methods.base import Batch, Method
from noveltylab.nets.autoencoder import halvings
from noveltylab.nets.losses import squared_error, wide
from noveltylab.nets.optimizers import adam

KERNEL, STRIDE, PADDING = 5, 2, 2


class Energy(nn.Module):
    """E(x) = |x - b'|^2 / 2 - sum_k h_L,k(x), and its gradient.

    `widths`: channels of the image and of each convolution; `sides`: those of the image and of each
    map; `features`: K, the values of the last layer.
    """

    def __init__(self, widths: list[int], sides: list[tuple[int, int]], features: int) -> None:
        super().__init__()
        self.sides = sides
        convolutions = [
            nn.Conv2d(before, after, KERNEL, STRIDE, PADDING) for before, after in pairwise(widths)
        ]
        self.convolutions = nn.ModuleList(convolutions)
        height, width = sides[-1]
        self.last_map = (widths[-1], height, width)
        self.dense = nn.Linear(widths[-1] * height * width, features)
        self.prior = nn.Parameter(torch.zeros(widths[0], *sides[0]))

    def pre_activations(self, x: Tensor) -> list[Tensor]:
        """W_l h_(l-1) + b_l of every layer, the dense one (B, K) last."""
        values: list[Tensor] = []
        h = x
        for convolution in self.convolutions:
            values.append(convolution(h))
            h = F.softplus(values[-1])
        values.append(self.dense(h.flatten(1)))
        return values

    def forward(self, x: Tensor) -> Tensor:
        """The energy of x (B, C, H, W), (B,)."""
        last = wide(self.pre_activations(x)[-1])
        distance = wide(x - self.prior).square().flatten(1).sum(1)
        energy: Tensor = distance / 2 - F.softplus(last).sum(1)
        return energy

    def gradient(self, x: Tensor) -> Tensor:
        """dE/dx of x (B, C, H, W), the same shape.

        The chain rule from the last layer to the first: the derivative of log(1 + exp(a)) is the
        sigmoid of a, and a convolution's transpose carries it back.
        """
        values = self.pre_activations(x)
        slope = values.pop().sigmoid() @ self.dense.weight
        slope = slope.view(-1, *self.last_map)
        layers = zip(self.convolutions, values, pairwise(self.sides), strict=True)
        for convolution, value, (large, small) in reversed(list(layers)):
            assert isinstance(convolution, nn.Conv2d)
            # a side that rounds up when it is halved loses a pixel on the way back
            rows = large[0] - (STRIDE * (small[0] - 1) - 2 * PADDING + KERNEL)
            columns = large[1] - (STRIDE * (small[1] - 1) - 2 * PADDING + KERNEL)
            slope = F.conv_transpose2d(
                slope * value.sigmoid(),
                convolution.weight,
                None,
                STRIDE,
                PADDING,
                (rows, columns),
            )
        return x - self.prior - slope


class DSEBM(Method):
    """The energy, trained by denoising score matching."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        lr: PositiveFloat = 1e-3,
        channels: PositiveInt = 32,
        features: PositiveInt = 128,
        noise_std: PositiveFloat = 0.5,
    ) -> None:
        super().__init__(image_shape)
        image_channels, height, width = image_shape
        self.lr = lr
        self.noise_std = noise_std
        widths = [image_channels, channels, 2 * channels, 4 * channels]
        self.energy = Energy(widths, halvings(height, width), features)
        # of held-out inliers, the same for all
        generator = torch.Generator().manual_seed(0)
        noise = noise_std * torch.randn(image_shape, generator=generator)
        self.register_buffer("noise", noise, persistent=False)
        self.noise: Tensor

    def prepare(self, train: Tensor) -> None:
        """b' begins as the mean of train (N, C, H, W)."""
        with torch.no_grad():
            self.energy.prior.copy_(train.mean(0))

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"energy": adam(self.energy, lr=self.lr)}

    # Training.

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One Adam step on the denoising error. Loss `denoising`."""
        noise = self.noise_std * torch.randn_like(batch.x)
        loss = squared_error(batch.x, self.reconstruct(batch.x + noise)).mean()
        self.minimise(loss, "energy")
        return {"denoising": loss.detach()}

    def validation_loss(self, x: Tensor) -> Tensor:
        """The denoising error of held-out inliers under one fixed noise, (B,)."""
        return squared_error(x, self.reconstruct(x + self.noise))

    def reconstruct(self, x: Tensor) -> Tensor:
        """f(x) = x - dE/dx, (B, C, H, W), unbounded."""
        return x - self.energy.gradient(x)

    # The scores.

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("energy", "recon")

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`energy`: E(x), of any sign; `recon`: |x - f(x)|^2 = |dE/dx|^2; (B,) each."""
        error = squared_error(wide(x), wide(self.reconstruct(x)), "sum")
        return {"energy": self.energy(x), "recon": error}

    def embed(self, x: Tensor) -> Tensor:
        """The last layer h_L, (B, K)."""
        return F.softplus(self.energy.pre_activations(x)[-1])
