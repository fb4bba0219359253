"""AnoGAN: Unsupervised Anomaly Detection with Generative Adversarial Networks.

"... to Guide Marker Discovery", Schlegl et al., IPMI 2017.

A DCGAN learns to generate inliers. To score an image, gradient descent looks for the latent point
whose image is most like it, in pixels and in the discriminator's features: what is left over is its
novelty. So every score costs hundreds of passes through both networks.

Paper: latent points uniform in a cube, search from a random one by 500 steps, lambda = 0.1, errors
as sums of absolute differences, Adam for training. Left open (no code by the authors is known), and
what stands here:
- search: Adam, its rate, and points kept in the cube are ours;
- the start is the same for all images, a fixed draw, so that a score depends on the image alone.
  `start_candidates` above 1 starts from the nearest of so many fixed draws (ours): worth many
  steps, at the price of one pass for all images;
- f is the last map of the discriminator before its logit; the paper says "an intermediate layer";
- D before G, non-saturating loss of G; networks of three layers, as many as 32 px need; latent size
100 (DCGAN);
- selection: the pixel error of held-out inliers, after `validation_steps` steps.
A score taken in another batch may differ in its last digits: rounding grows along the search.
Measured on one busy CPU core at 32 px: 2.7 ms for each image and step (`channels=32`: 1 ms), so 1.4
s an image at 500 steps and four hours for the 10,000 test images of MNIST. Published mean AUROC (a
reimplementation, in Deep SVDD's tables): MNIST P2 0.9127, CIFAR-10 P2 0.6179.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from noveltylab.methods.base import Batch, Method, frozen
from noveltylab.nets.dcgan import initialise
from noveltylab.nets.losses import bce, discriminator_loss
from noveltylab.nets.optimizers import adam

#: Steps of a search whose time is measured.
TIMED_STEPS = 8

# Networks (section 2.1: DCGAN).


def generator(channels: int, base: int, latent: int, side: tuple[int, int]) -> nn.Sequential:
    """Latent points (B, D) -> images (B, C, 8 h, 8 w) in (-1, 1), for side = (h, w)."""
    height, width = side
    return nn.Sequential(
        nn.Linear(latent, 4 * base * height * width, bias=False),
        nn.Unflatten(1, (4 * base, height, width)),
        nn.BatchNorm2d(4 * base),
        nn.ReLU(),
        nn.ConvTranspose2d(4 * base, 2 * base, 4, 2, 1, bias=False),
        nn.BatchNorm2d(2 * base),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * base, base, 4, 2, 1, bias=False),
        nn.BatchNorm2d(base),
        nn.ReLU(),
        nn.ConvTranspose2d(base, channels, 4, 2, 1),
        nn.Tanh(),
    )


class Discriminator(nn.Module):
    """Images (B, C, 8 h, 8 w) -> logits (B,), large for real.

    `features` gives f (B, 4 base h w), `logit` what it makes of f.
    """

    def __init__(self, channels: int, base: int, side: tuple[int, int]) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, base, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(base, 2 * base, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * base),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * base, 4 * base, 4, 2, 1, bias=False),
            nn.BatchNorm2d(4 * base),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        height, width = side
        self.logit = nn.Sequential(
            nn.Linear(4 * base * height * width, 1),
            nn.Flatten(0),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.logit(self.features(x))
        return logits


# Losses: of training, and of the mapping to the latent space (section 2.2).


def absolute_error(x: Tensor, y: Tensor) -> Tensor:
    """Sum of absolute differences of (B, ...) -> (B,).

    Eq. 2 for images (residual), eq. 4 for features (discrimination).
    """
    return (x - y).abs().flatten(1).sum(1)


class AnoGAN(Method):
    """Generator and discriminator; the search is part of the score."""

    not_exportable: ClassVar[str] = (
        "each score is the end of a search by gradient descent, which no graph of tensors holds"
    )

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        lr: PositiveFloat = 2e-4,
        beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        latent_size: PositiveInt = 100,
        channels: PositiveInt = 64,
        lam: Annotated[float, Field(ge=0, le=1)] = 0.1,
        search_steps: NonNegativeInt = 500,
        search_lr: PositiveFloat = 0.05,
        start_candidates: PositiveInt = 1,
        validation_steps: NonNegativeInt = 25,
    ) -> None:
        super().__init__(image_shape)
        image_channels, height, width = image_shape
        if height % 8 or width % 8:
            raise ValueError(
                f"data.size={height}: AnoGAN halves the image three times, take a multiple of 8"
            )
        self.lr = lr
        self.beta1 = beta1
        self.latent_size = latent_size
        self.lam = lam
        self.search_steps = search_steps
        self.search_lr = search_lr
        self.validation_steps = validation_steps
        side = (height // 8, width // 8)
        self.generator = generator(image_channels, channels, latent_size, side)
        self.discriminator = Discriminator(image_channels, channels, side)
        self.apply(initialise)
        draws = torch.Generator().manual_seed(0)
        starts = 2 * torch.rand(start_candidates, latent_size, generator=draws) - 1
        self.register_buffer("starts", starts, persistent=False)
        self.starts: Tensor

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {
            "generator": adam(self.generator, lr=self.lr, beta1=self.beta1),
            "discriminator": adam(self.discriminator, lr=self.lr, beta1=self.beta1),
        }

    # Training (eq. 1).

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One iteration: D step, G step; losses `discriminator` and `generator`."""
        z = 2 * torch.rand(len(batch.x), self.latent_size, device=batch.x.device) - 1
        # G does not change before its own step: one forward pass serves both
        fake = self.generator(z)
        losses = self._update_discriminator(batch.x, fake.detach())
        losses |= self._update_generator(fake)
        return losses

    def _update_discriminator(self, x: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """D learns images (1) from generated ones (0); G stays as it is."""
        real_logits = self.discriminator(x)
        fake_logits = self.discriminator(fake)
        loss = discriminator_loss(real_logits, fake_logits)
        self.minimise(loss, "discriminator")
        return {"discriminator": loss.detach()}

    def _update_generator(self, fake: Tensor) -> dict[str, Tensor]:
        """G fools D; D stays as it is."""
        with frozen(self.discriminator):
            loss = bce(self.discriminator(fake), 1).mean()
            self.minimise(loss, "generator")
        return {"generator": loss.detach()}

    # Mapping new images to the latent space (section 2.2).

    def search(self, x: Tensor, steps: int) -> Tensor:
        """Latent points (B, D) whose images are most like x (B, C, H, W), each found by itself.

        In evaluation mode.

        Works where gradients and even their recording are switched off, as under
        `torch.inference_mode`.
        """
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone()  # a tensor made under inference mode cannot take part in a graph
            with torch.no_grad():
                f = self.discriminator.features(x)
                z = self._nearest_start(x, f).requires_grad_()
            optimizer = torch.optim.Adam([z], self.search_lr)
            for _ in range(steps):
                # Summed, not averaged: each point follows the gradient of its own loss. The
                # networks get none.
                loss = self.mapping_loss(x, f, z).sum()
                (z.grad,) = torch.autograd.grad(loss, z)
                optimizer.step()
                with torch.no_grad():
                    z.clamp_(-1, 1)
        return z.detach()

    def mapping_loss(self, x: Tensor, f: Tensor, z: Tensor) -> Tensor:
        """Eq. 5: (1 - lam) residual + lam discrimination -> (B,).

        Of x (B, C, H, W), its features f and points z (B, D).
        """
        x_hat = self.generator(z)
        discrimination = absolute_error(f, self.discriminator.features(x_hat))
        residual = absolute_error(x, x_hat)
        return (1 - self.lam) * residual + self.lam * discrimination

    def _nearest_start(self, x: Tensor, f: Tensor) -> Tensor:
        """The fixed draw with the lowest eq. 5 for each image -> (B, D).

        Images x (B, C, H, W) with features f.
        """
        images = self.generator(self.starts)
        residual = torch.cdist(x.flatten(1), images.flatten(1), p=1)  # (B, candidates)
        discrimination = torch.cdist(f, self.discriminator.features(images), p=1)
        loss = (1 - self.lam) * residual + self.lam * discrimination
        return self.starts[loss.argmin(1)]

    @contextmanager
    def shortened(self) -> Iterator[tuple[float, float]]:
        """Searches of a few steps from the first start.

        The time of a search is that of its steps.
        """
        search_steps = self.search_steps
        validation_steps = self.validation_steps
        starts = self.starts
        self.search_steps = min(search_steps, TIMED_STEPS)
        self.validation_steps = min(validation_steps, TIMED_STEPS)
        self.starts = starts[:1]
        # what is done besides takes about as long as a step
        search_share = (self.search_steps + 1) / (search_steps + 1)
        validation_share = (self.validation_steps + 1) / (validation_steps + 1)
        try:
            yield search_share, validation_share
        finally:
            self.search_steps = search_steps
            self.validation_steps = validation_steps
            self.starts = starts

    # The score (section 2.3).

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("novelty", "residual", "discrimination", "discriminator")

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`novelty`: A(x), eq. 6; its terms `residual` R and `discrimination` D.

        Minus D's logit of x itself; (B,) each.
        """
        x_hat = self.reconstruct(x)
        f = self.discriminator.features(x)
        f_hat = self.discriminator.features(x_hat)
        residual = absolute_error(x, x_hat)
        discrimination = absolute_error(f, f_hat)
        return {
            "novelty": (1 - self.lam) * residual + self.lam * discrimination,
            "residual": residual,
            "discrimination": discrimination,
            "discriminator": -self.discriminator.logit(f),
        }

    def validation_loss(self, x: Tensor) -> Tensor:
        """Pixel error left by a search of `validation_steps` steps, (B,).

        That of features has no fixed scale.
        """
        z = self.search(x, self.validation_steps)
        return absolute_error(x, self.generator(z))

    def pass_for_batch_norm(self, x: Tensor) -> None:
        """Runs G on latents of the prior, and D on x (B, C, H, W) and on G's images.

        A search has no batch of its own.
        """
        z = 2 * torch.rand(len(x), self.latent_size, dtype=x.dtype, device=x.device) - 1
        fake = self.generator(z)
        self.discriminator.features(x)
        self.discriminator.features(fake)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The generated image most like x, (B, C, H, W)."""
        z = self.search(x, self.search_steps)
        x_hat: Tensor = self.generator(z)
        return x_hat
