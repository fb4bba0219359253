"""OCGAN: One-class Novelty Detection Using GANs with Constrained Latent Representations.

Perera et al., CVPR 2019.

A denoising auto-encoder whose latent space is a cube that represents the inlier class and nothing
else: a latent discriminator spreads the codes evenly over the cube, an image discriminator makes
every point of it decode to an inlier, and informative-negative mining looks for the points that do
not yet. An outlier then cannot be reconstructed.

Where the paper and the authors' code disagree (or are silent), and what stands here:
- one logit for the latent discriminator; the code squashes it twice, by a layer and by the loss, so
  that its weight of 10 is at most about 1.9 of one logit (`double_sigmoid=true` with the code's
  weights);
- labels: real 1, fake 0 everywhere (Algorithm 1), so mining moves a latent to where the classifier
  says out-of-class. Algorithm 1's label 1 has to be ascended for that (`mining_loss=unsaturated`);
  the code descends label 0 (`saturated`), whose slope vanishes once the classifier is sure;
- the paper mines in 5 small steps without naming their size; the code takes one step of 2.0 and
  applies tanh, which shrinks the cube; here mined latents are clamped to it;
- mining begins after 0.75 of the epochs, the code's default; the authors' CIFAR-10 run began after
  0.6 of its 251 epochs and selected among those after the first 100 (`method.mining_start=0.6
  trainer.select_from=0.4`);
- noise: Algorithm 1 says N(0, I) (`noise_std=1`), the text says variance 0.2 (`noise_std=0.447`);
  the code's option has standard deviation 0.2, as here, and is drawn once per image, here at every
  step;
- the score is taken on the clean image (`score_noise` gives the code's noisy one);
- weights: 250 times the mean square, 1 for both discriminators; the paper's sum (`recipe=paper`),
  the authors' README and their release (`recipe=readme`, `recipe=release`) differ by a factor of
  50. Published means are MNIST P1 0.977, fMNIST P1 0.924, MNIST P2 0.975, CIFAR-10 P2 0.657.

Architecture beyond the paper, which has three convolutions with batch norm and leaky ReLU behind
each, and tanh behind the encoder's last:
- a fourth convolution makes the latent vector of the map of three (so has the code, at 61 pixels;
  `latent_layout=map` is the paper read strictly);
- batch norm before the encoder's tanh (the code's development version; its release has neither);
- ReLU in the decoder (the code) and in the latent discriminator;
- no batch norm behind each network's first convolution and the decoder's last one (the code);
- dropout in the decoder (the code), `dropout=0` without;
- a layer to one logit in each discriminator;
- held-out inliers stay clean where the weights are selected: the paper does not say.
"""

import math
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from noveltylab.methods.base import Batch, Method, Phase, Row, detached, frozen
from noveltylab.nets.cpu.layers import Conv2d, ConvTranspose2d, Dropout
from noveltylab.nets.dcgan import initialise
from noveltylab.nets.losses import bce, discriminator_loss, squared_error
from noveltylab.nets.optimizers import adam

#: Images on a path between two inliers, and rows and images of the picture of random latents.
PATH_STEPS, RANDOM_ROWS, RANDOM_IMAGES = 9, 4, 11
#: The authors' geometry: 61 -> 29 -> 13 -> 5 -> 1 without padding.
OFFICIAL_SIZE = 61


# Networks (section 3.2, "Network Architecture").


def trunk(channels: int, base: int, padding: int) -> nn.Sequential:
    """Three 5x5 convolutions of stride 2: (B, C, H, W) -> (B, 4 base, h, w).

    Ends before the last batch norm's activation.
    """
    return nn.Sequential(
        Conv2d(channels, base, 5, 2, padding),
        nn.LeakyReLU(0.2, inplace=True),
        Conv2d(base, 2 * base, 5, 2, padding, bias=False),
        nn.BatchNorm2d(2 * base),
        nn.LeakyReLU(0.2, inplace=True),
        Conv2d(2 * base, 4 * base, 5, 2, padding, bias=False),
        nn.BatchNorm2d(4 * base),
    )


def encoder(channels: int, base: int, latent: int | None, side: int, padding: int) -> nn.Sequential:
    """Images (B, C, H, W) -> codes in (-1, 1), (B, latent, 1, 1).

    The trunk's map (B, 4 base, side, side) if latent is None.
    """
    if latent is None:
        return nn.Sequential(*trunk(channels, base, padding), nn.Tanh())
    return nn.Sequential(
        *trunk(channels, base, padding),
        nn.LeakyReLU(0.2, inplace=True),
        Conv2d(4 * base, latent, side, bias=False),
        nn.BatchNorm2d(latent),
        nn.Tanh(),
    )


def decoder(
    channels: int, base: int, latent: int | None, side: int, padding: int, dropout: float
) -> nn.Sequential:
    """Codes as `encoder` gives them -> images (B, C, H, W) in (-1, 1).

    The mirror image of the encoder.
    """
    grow: dict[str, Any] = {"padding": padding, "output_padding": 1 if padding else 0}
    first: list[nn.Module] = []
    if latent is not None:
        first = [
            ConvTranspose2d(latent, 4 * base, side, bias=False),
            nn.BatchNorm2d(4 * base),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(
        *first,
        ConvTranspose2d(4 * base, 2 * base, 5, 2, bias=False, **grow),
        nn.BatchNorm2d(2 * base),
        nn.ReLU(inplace=True),
        ConvTranspose2d(2 * base, base, 5, 2, bias=False, **grow),
        nn.BatchNorm2d(base),
        Dropout(dropout),
        nn.ReLU(inplace=True),
        ConvTranspose2d(base, channels, 5, 2, **grow),
        nn.Tanh(),
    )


def image_discriminator(channels: int, base: int, side: int, padding: int) -> nn.Sequential:
    """Image discriminator and mining classifier: (B, C, H, W) -> logits (B,), large for real."""
    return nn.Sequential(
        *trunk(channels, base, padding),
        nn.LeakyReLU(0.2, inplace=True),
        Conv2d(4 * base, 1, side),
        nn.Flatten(0),
    )


def latent_discriminator(latent: int, double_sigmoid: bool) -> nn.Sequential:
    """Latent discriminator: codes -> logits (B,), large for uniform samples.

    Each code has `latent` values.

    double_sigmoid: the logit is squashed into (0, 1) before a loss that squashes it again, as in
    the authors' code. The gradient of the loss with label 1 is then 5 times smaller at a logit of
    0, and 43 times at -3.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width in pairwise((latent, 128, 64, 32, 16)):
        layers += [
            nn.Linear(width_in, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        ]
    layers.append(nn.Linear(16, 1))
    if double_sigmoid:
        layers.append(nn.Sigmoid())
    return nn.Sequential(*layers, nn.Flatten(0))


# Losses (section 3.2 and Algorithm 1; the labels are Algorithm 1's). `discriminator_loss` is
# l_classifier of De(l1) and De(l2), l_latent of s ~ U(-1, 1) and En(x + n), and l_visual of x and
# De(s); `squared_error` is l_MSE, a sum in the paper.


def informative_negative_loss(logits: Tensor, form: str) -> Tensor:
    """What mining descends, per latent, from C's logits a (B,) -> (B,).

    Both push a down, towards out-of-class.

    "saturated": BCE(a, 0) = -log(1 - sigmoid(a)), the descent on label 0. Its slope sigmoid(a)
    vanishes once C calls the image out-of-class. "unsaturated": -BCE(a, 1) = log sigmoid(a), the
    ascent on label 1 (Algorithm 1's label). Its slope 1 - sigmoid(a) grows to 1 there.
    """
    if form == "saturated":
        return bce(logits, 0)
    return -bce(logits, 1)


def accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Share of logits (B,) each on the right side: real ones above 0, fakes below.

    -> scalar; chance is 0.5.
    """
    real_share = (real > 0).float().mean()
    fake_share = (fake < 0).float().mean()
    return 0.5 * (real_share + fake_share)


def distance_from_uniform(codes: Tensor) -> Tensor:
    """Kolmogorov and Smirnov's distance of each column of codes from U(-1, 1).

    Codes (N, D) in [-1, 1] -> (D,), 0 is even.
    """
    count = len(codes)
    expected = (codes.sort(0).values + 1) / 2
    rank = torch.arange(count, device=codes.device).view(-1, 1)
    above = (rank + 1) / count - expected
    below = expected - rank / count
    return torch.maximum(above, below).amax(0)


class OCGAN(Method):
    """The four networks and the mining classifier; `update` is Algorithm 1."""

    capturable: ClassVar[bool] = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        lr: PositiveFloat = 2e-4,
        beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        latent_layout: Literal["vector", "map"] = "vector",
        latent_size: PositiveInt = 16,
        channels: PositiveInt = 64,
        image_discriminator_channels: PositiveInt = 12,
        classifier_channels: PositiveInt = 64,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        w_lat: NonNegativeFloat = 1.0,
        w_vis: NonNegativeFloat = 1.0,
        w_mse: NonNegativeFloat = 250.0,
        mse_reduction: Literal["mean", "sum"] = "mean",
        noise_std: NonNegativeFloat = 0.2,
        double_sigmoid: bool = False,
        use_latent_discriminator: bool = True,
        use_image_discriminator: bool = True,
        use_mining: bool = True,
        mining_loss: Literal["saturated", "unsaturated"] = "saturated",
        mining_steps: PositiveInt = 5,
        mining_step_size: NonNegativeFloat = 2.0,
        mining_start: Annotated[float, Field(ge=0, le=1)] = 0.75,
        score_noise: bool = False,
    ) -> None:
        super().__init__(image_shape)
        image_channels, size, _ = image_shape
        if size != OFFICIAL_SIZE and size % 8:
            raise ValueError(
                f"data.size={size}: OCGAN takes a multiple of 8, or {OFFICIAL_SIZE} (the authors' geometry)"
            )
        if use_mining and not use_image_discriminator:
            raise ValueError(
                "method.use_mining=true needs method.use_image_discriminator=true: mined latents train it alone"
            )
        self.w_lat = w_lat
        self.w_vis = w_vis
        self.w_mse = w_mse
        self.mse_reduction = mse_reduction
        self.noise_std = noise_std
        self.lr = lr
        self.beta1 = beta1
        self.use_latent_discriminator = use_latent_discriminator
        self.use_image_discriminator = use_image_discriminator
        self.use_mining = use_mining
        self.mining_loss = mining_loss
        self.mining_steps = mining_steps
        self.mining_step_size = mining_step_size
        self.mining_start = mining_start
        self.score_noise = score_noise

        # sizes
        padding = 2
        side = size // 8
        if size == OFFICIAL_SIZE:
            padding = 0
            side = 5
        latent: int | None = None
        self.latent_shape = (4 * channels, side, side)
        if latent_layout == "vector":
            latent = latent_size
            self.latent_shape = (latent_size, 1, 1)
        # networks
        self.encoder = encoder(image_channels, channels, latent, side, padding)
        self.decoder = decoder(image_channels, channels, latent, side, padding, dropout)
        self.latent_discriminator: nn.Sequential | None = None
        if use_latent_discriminator:
            latent_values = math.prod(self.latent_shape)
            self.latent_discriminator = latent_discriminator(latent_values, double_sigmoid)
        self.image_discriminator: nn.Sequential | None = None
        if use_image_discriminator:
            self.image_discriminator = image_discriminator(
                image_channels, image_discriminator_channels, side, padding
            )
        self.classifier: nn.Sequential | None = None
        if use_mining:
            self.classifier = image_discriminator(
                image_channels, classifier_channels, side, padding
            )
        self.apply(initialise)
        # One noise image for all, so that a sample's noisy score depends on nothing but the sample.
        noise = torch.randn(image_shape, generator=torch.Generator().manual_seed(0))
        self.register_buffer("score_noise_image", self.noise_std * noise)
        self.score_noise_image: Tensor

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizer = partial(adam, lr=self.lr, beta1=self.beta1)
        optimizers = {"generator": optimizer(self.encoder, self.decoder)}
        if self.use_latent_discriminator or self.use_image_discriminator:
            discriminators = (self.latent_discriminator, self.image_discriminator)
            optimizers["discriminators"] = optimizer(*discriminators)
        if self.use_mining:
            optimizers["classifier"] = optimizer(self.classifier)
        return optimizers

    # Algorithm 1.

    @property
    def phases(self) -> list[Phase]:
        """Mining, from `mining_start` on, makes the method of the paper's table 2.

        Before, it is table 4's third row.
        """
        if not self.use_mining:
            return []
        return [Phase("without mining", 0.0), Phase("with mining", self.mining_start)]

    @property
    def phase(self) -> bool:
        """Whether mining has begun."""
        return self.use_mining and self.progress >= self.mining_start

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One iteration: classifier, discriminators, mining, generator.

        Losses `classifier`, `latent`, ..., `mse`.
        """
        x = batch.x
        is_mining = self.phase
        losses: dict[str, Tensor] = {}
        # En and De do not change before the generator step: one forward pass serves all four.
        noisy = x + self.noise_std * torch.randn_like(x)
        l1 = self.encoder(noisy)
        l2 = self.sample_latents(len(x))
        x_hat = self.decoder(l1)
        # Images of random latents; those of mined ones replace them in the generator step.
        fake: Tensor | None = None
        fixed_fake: Tensor | None = None
        if self.use_image_discriminator:
            with torch.set_grad_enabled(not is_mining):
                fake = self.decoder(l2)
            fixed_fake = fake.detach()
        # Step 1
        if self.classifier is not None and fixed_fake is not None:
            losses |= self._update_classifier(x_hat.detach(), fixed_fake)
        # Step 2
        if self.use_latent_discriminator or self.use_image_discriminator:
            losses |= self._update_discriminators(x, l1.detach(), l2, fixed_fake)
        # Step 3
        if is_mining and fixed_fake is not None:
            mined = self._mine_latents(l2)
            fake = self.decoder(mined)
            losses |= self._measure_mining(l2, mined, fixed_fake, fake.detach())
        # Step 4
        losses |= self._update_generator(x, l1, x_hat, fake)
        return losses

    def sample_latents(self, count: int) -> Tensor:
        """Points of the latent cube, U(-1, 1): (count, d, 1, 1), or the map's shape."""
        return 2 * torch.rand(count, *self.latent_shape, device=self.device) - 1

    def _update_classifier(self, x_hat: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Step 1: C learns reconstructions (1) from images of random latents (0).

        Nothing else changes.
        """
        assert self.classifier is not None
        real_logits = self.classifier(x_hat)
        fake_logits = self.classifier(fake)
        loss = discriminator_loss(real_logits, fake_logits)
        self.minimise(loss, "classifier")
        return {
            "classifier": loss.detach(),
            "accuracy_classifier": accuracy(real_logits, fake_logits),
        }

    def _update_discriminators(
        self, x: Tensor, l1: Tensor, l2: Tensor, fake: Tensor | None
    ) -> dict[str, Tensor]:
        """Step 2: D_l learns uniform latents (1) from codes (0), D_v images (1) from fakes (0).

        Never mined ones.
        """
        losses: dict[str, Tensor] = {}
        accuracies: dict[str, Tensor] = {}
        if self.latent_discriminator is not None:
            real_logits = self.latent_discriminator(l2)
            fake_logits = self.latent_discriminator(l1)
            losses["latent_discriminator"] = discriminator_loss(real_logits, fake_logits)
            accuracies["accuracy_latent_discriminator"] = accuracy(real_logits, fake_logits)
        if self.image_discriminator is not None and fake is not None:
            real_logits = self.image_discriminator(x)
            fake_logits = self.image_discriminator(fake)
            losses["image_discriminator"] = discriminator_loss(real_logits, fake_logits)
            accuracies["accuracy_image_discriminator"] = accuracy(real_logits, fake_logits)
        total = torch.stack(list(losses.values())).sum()
        self.minimise(total, "discriminators")
        return detached(losses) | accuracies

    def _mine_latents(self, latents: Tensor) -> Tensor:
        """Step 3: moves latents (B, d, 1, 1) towards what C calls out-of-class.

        All networks stay as they are.
        """
        assert self.classifier is not None
        with frozen(self.decoder, self.classifier), torch.enable_grad():
            for _ in range(self.mining_steps):
                latents = latents.detach().requires_grad_()
                logits = self.classifier(self.decoder(latents))
                # Summed, not averaged: each latent follows the gradient of its own loss.
                loss = informative_negative_loss(logits, self.mining_loss).sum()
                (gradient,) = torch.autograd.grad(loss, latents)
                latents = (latents - self.mining_step_size * gradient).clamp(-1, 1)
        return latents.detach()

    def _measure_mining(
        self, latents: Tensor, mined: Tensor, unmined: Tensor, fake: Tensor
    ) -> dict[str, Tensor]:
        """How far mining moves a latent (L2), and C's mean probability before and after.

        The probability is that of in-class; for the log.
        """
        assert self.classifier is not None
        with frozen(self.classifier), torch.no_grad():
            before = self.classifier(unmined).sigmoid().mean()
            after = self.classifier(fake).sigmoid().mean()
        distance = (mined - latents).flatten(1).norm(dim=1).mean()
        return {
            "mining_distance": distance,
            "classifier_before_mining": before,
            "classifier_after_mining": after,
        }

    def _update_generator(
        self, x: Tensor, l1: Tensor, x_hat: Tensor, fake: Tensor | None
    ) -> dict[str, Tensor]:
        """Step 4: En and De fool both discriminators and reconstruct.

        D_l, D_v and C stay as they are.
        """
        losses = {"mse": squared_error(x, x_hat, self.mse_reduction).mean()}
        loss = self.w_mse * losses["mse"]
        with frozen(self.latent_discriminator, self.image_discriminator):
            if self.latent_discriminator is not None:
                losses["generator_latent"] = bce(self.latent_discriminator(l1), 1).mean()
                loss = loss + self.w_lat * losses["generator_latent"]
            if self.image_discriminator is not None and fake is not None:
                losses["generator_image"] = bce(self.image_discriminator(fake), 1).mean()
                loss = loss + self.w_vis * losses["generator_image"]
            self.minimise(loss, "generator")
        return detached(losses)

    # Section 4: the score is the reconstruction error; the authors' code prints the image
    # discriminator's beside it.

    @property
    def score_names(self) -> tuple[str, ...]:
        if not self.use_image_discriminator:
            return ("mse",)
        return ("mse", "dv_x", "dv_recon", "dv_recon_noisy")

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`mse` (Eq. of section 4.1) and minus the logit of D_v on three images; (B,) each.

        These are x, De(En(x)) and De(En(x + n)).
        """
        if self.image_discriminator is None:
            return {"mse": self.single_score(x, "mse")}
        clean = self.reconstruct(x)
        noisy = self.reconstruct(x + self.score_noise_image)
        x_hat = noisy if self.score_noise else clean
        return {
            "mse": squared_error(x, x_hat),
            "dv_x": -self.image_discriminator(x),
            "dv_recon": -self.image_discriminator(clean),
            "dv_recon_noisy": -self.image_discriminator(noisy),
        }

    def single_score(self, x: Tensor, name: str) -> Tensor:
        """One of these alone: `mse` takes one reconstruction and no discriminator."""
        if name != "mse":
            return super().single_score(x, name)
        seen = x + self.score_noise_image if self.score_noise else x
        return squared_error(x, self.reconstruct(seen))

    def validation_loss(self, x: Tensor) -> Tensor:
        """Squared error of clean inliers (B,): the paper selects its model by it."""
        return squared_error(x, self.reconstruct(x))

    def reconstruct(self, x: Tensor) -> Tensor:
        """De(En(x)), (B, C, H, W)."""
        x_hat: Tensor = self.decoder(self.encoder(x))
        return x_hat

    # The paper's figures 2 to 4, and how evenly inliers fill the cube.

    def image_rows(self, train: Tensor, inliers: Tensor, outliers: Tensor) -> dict[str, list[Row]]:
        """The paper's figures 2 to 4.

        Paths between inliers (2), images of random latents (3), and of latents before and after
        mining (4).
        """
        latents = self.sample_latents(RANDOM_ROWS * RANDOM_IMAGES)
        parts = torch.split(latents, RANDOM_IMAGES)
        rows = [Row("random latents", self.decoder(part)) for part in parts]
        pictures = {"random_latents": rows}
        paths = list(self._latent_paths(inliers))
        if paths:
            pictures["latent_paths"] = paths
        if self.classifier is not None:
            few = latents[:RANDOM_IMAGES]
            mined = self._mine_latents(few)
            pictures["mined_latents"] = [
                Row("random latents", self.decoder(few)),
                Row("after mining", self.decoder(mined)),
            ]
        return pictures

    def _latent_paths(self, inliers: Tensor) -> Iterator[Row]:
        """Each pair of images and, between them, images along a straight line.

        De of the line from one's code to the other's.
        """
        codes = self.encoder(inliers)
        steps = torch.linspace(0, 1, PATH_STEPS, dtype=codes.dtype, device=codes.device)
        for first in range(0, len(inliers) - 1, 2):
            second = first + 1
            line = torch.lerp(codes[first], codes[second], steps.view(-1, 1, 1, 1))
            start = inliers[first : first + 1]
            end = inliers[second : second + 1]
            images = torch.cat([start, self.decoder(line), end])
            yield Row(f"inliers {first + 1} to {second + 1}", images)

    def extra_metrics(self, inliers: Tensor, outliers: Tensor) -> dict[str, float]:
        """How much of test inliers is rebuilt, and how unevenly their codes fill the cube.

        `variance_rebuilt`: of the variance about their mean image, by De(En(x)); below 0 where the
        mean image alone would be nearer. `latent_ks_mean`, `latent_ks_max`: distance of the codes'
        coordinates from uniform; n uniform draws have about 0.87 / sqrt(n).
        """
        with torch.inference_mode():
            mean = inliers.mean(0, keepdim=True)
            variance = squared_error(inliers, mean).mean()
            smallest = torch.finfo(variance.dtype).tiny
            error = squared_error(inliers, self.reconstruct(inliers)).mean()
            codes = self.encoder(inliers).flatten(1)
            distance = distance_from_uniform(codes)
            return {
                "variance_rebuilt": float(1 - error / variance.clamp_min(smallest)),
                "latent_ks_mean": float(distance.mean()),
                "latent_ks_max": float(distance.max()),
            }
