"""ALOCC: Adversarially Learned One-Class Classifier for Novelty Detection.

Sabokrou et al., CVPR 2018.

A denoising reconstructor R is trained against a discriminator D: R learns to refine inliers until D
takes them for real, and D learns what inliers look like. R refines inliers and distorts outliers,
so D(R(x)) is to separate them better than D(x).

"Code" below is the authors' TensorFlow code. Where it and the paper disagree, or the paper is
silent, and what stands here:
- layers are the code's: 5x5 convolutions of stride 2, no code shorter than the last map, which is
  larger than the image at the default width; weights N(0, 0.02);
- reconstruction: squared error between R(x + n) and the CLEAN image, averaged over the pixels; the
  code compares with the noisy one, by a cross entropy that takes R's tanh output for a logit;
- its weight lambda: 0.4 in the paper (section 4.1); the code has 0.2;
- noise: fresh at every step, deviation 0.155 on the image's own scale (code, which draws it once an
image);
- R climbs -log D rather than descending log(1 - D) (code); one R step for each D step (paper),
`r_steps=2` in the code;
- RMSprop (code) with rate 2e-4; at the code's 0.002 D was at chance on MNIST's digit 3 from the
first epoch on;
- D scores with running statistics of its batch norm, so that no image's score depends on the others
  of its batch; the code leaves batch norm in training mode;
- stopping: the paper stops once the reconstruction error is below a bound that it does not give;
  here the epoch with the lowest reconstruction error on held-out inliers is scored;
- scores are minus D's logits, so that larger is more novel; the paper thresholds the probability
from below.

Known weakness: once R rebuilds inliers well D cannot tell them from real ones any more, and its
opinion of outliers is left to chance: D(R(x)) is best early and swings from epoch to epoch, while
the reconstruction error goes on falling. The bound of the stopping rule decides the result, and
nothing says where it should be. Published mean AUROC: COIL-100 P1 0.809 for D(R(x)), 0.686 for
D(x); the 0.88 and 0.82 printed for MNIST P1 may be F1.
"""

from functools import partial

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from noveltylab.methods.base import Batch, Method, frozen
from noveltylab.nets.autoencoder import doubling, halving, halvings
from noveltylab.nets.dcgan import initialise
from noveltylab.nets.losses import bce, discriminator_loss, squared_error


def reconstructor(channels: int, base: int, height: int, width: int) -> nn.Sequential:
    """R: images (B, C, H, W) -> images of that shape in (-1, 1)."""
    whole, half, quarter, eighth = halvings(height, width, 3)
    return nn.Sequential(
        *halving(channels, 2 * base),
        *halving(2 * base, 4 * base),
        *halving(4 * base, 8 * base),
        doubling(8 * base, 2 * base, eighth, quarter),
        nn.BatchNorm2d(2 * base),
        nn.ReLU(),
        doubling(2 * base, base, quarter, half),
        nn.BatchNorm2d(base),
        nn.ReLU(),
        doubling(base, channels, half, whole, bias=True),
        nn.Tanh(),
    )


def discriminator(channels: int, base: int, height: int, width: int) -> nn.Sequential:
    """D: images (B, C, H, W) -> logits (B,), large for inliers."""
    rows, columns = halvings(height, width, 4)[-1]
    return nn.Sequential(
        nn.Conv2d(channels, base, 5, 2, 2),
        nn.LeakyReLU(0.2),
        *halving(base, 2 * base),
        *halving(2 * base, 4 * base),
        *halving(4 * base, 8 * base),
        nn.Flatten(),
        nn.Linear(8 * base * rows * columns, 1),
        nn.Flatten(0),
    )


# Losses: L_R is `squared_error`, minus L_R+D as D sees it `discriminator_loss` of D(x) and
# D(R(x + n)).


class ALOCC(Method):
    """R and D; one D step and `r_steps` R steps an iteration."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        lr: PositiveFloat = 2e-4,
        channels: PositiveInt = 16,
        noise_std: NonNegativeFloat = 0.155,
        w_rec: NonNegativeFloat = 0.4,
        r_steps: PositiveInt = 1,
    ) -> None:
        super().__init__(image_shape)
        self.lr = lr
        self.noise_std = noise_std
        self.w_rec = w_rec
        self.r_steps = r_steps
        image_channels, height, width = image_shape
        self.reconstructor = reconstructor(image_channels, channels, height, width)
        self.discriminator = discriminator(image_channels, channels, height, width)
        self.apply(initialise)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizer = partial(torch.optim.RMSprop, lr=self.lr, alpha=0.9)
        return {
            "reconstructor": optimizer(self.reconstructor.parameters()),
            "discriminator": optimizer(self.discriminator.parameters()),
        }

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One iteration: D step, then R steps on the same noisy images.

        Losses `mse`, `discriminator`, `reconstructor`.
        """
        x = batch.x
        noisy = x + self.noise_std * torch.randn_like(x)
        x_hat = self.reconstruct(noisy)
        losses = self._update_discriminator(x, x_hat.detach())
        # R does not change before its own first step: one forward pass serves both.
        losses |= self._update_reconstructor(x, x_hat)
        for _ in range(1, self.r_steps):
            x_hat = self.reconstruct(noisy)
            losses |= self._update_reconstructor(x, x_hat)
        return losses

    def _update_discriminator(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """D learns images (1) from reconstructions (0); R stays as it is."""
        real = self.discriminator(x)
        fake = self.discriminator(x_hat)
        loss = discriminator_loss(real, fake)
        self.minimise(loss, "discriminator")
        return {"discriminator": loss.detach()}

    def _update_reconstructor(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """L = L_R+D + lambda L_R: R fools D and rebuilds the clean image; D stays as it is."""
        with frozen(self.discriminator):
            mse = squared_error(x, x_hat).mean()
            adversarial = bce(self.discriminator(x_hat), 1).mean()
            self.minimise(adversarial + self.w_rec * mse, "reconstructor")
        return {"mse": mse.detach(), "reconstructor": adversarial.detach()}

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("d_recon", "d_x", "mse")

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """Minus the logit of D on R(x) and on x, and the reconstruction error of the clean image.

        (B,) each.
        """
        x_hat = self.reconstruct(x)
        return {
            "d_recon": -self.discriminator(x_hat),
            "d_x": -self.discriminator(x),
            "mse": squared_error(x, x_hat),
        }

    def single_score(self, x: Tensor, name: str) -> Tensor:
        """One of these alone: `d_recon` and `mse` need not D of the image, `d_x` no reconstruction."""
        if name == "d_x":
            logit: Tensor = self.discriminator(x)
            return -logit
        x_hat = self.reconstruct(x)
        if name == "mse":
            return squared_error(x, x_hat)
        logit = self.discriminator(x_hat)
        return -logit

    def validation_loss(self, x: Tensor) -> Tensor:
        """Squared error of clean inliers (B,), which the paper's stopping rule watches."""
        return squared_error(x, self.reconstruct(x))

    def reconstruct(self, x: Tensor) -> Tensor:
        """R(x), (B, C, H, W)."""
        x_hat: Tensor = self.reconstructor(x)
        return x_hat
