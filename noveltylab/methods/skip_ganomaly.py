"""Skip-GANomaly: Skip Connected and Adversarially Trained Encoder-Decoder Anomaly Detection.

Akcay et al., IJCNN 2019.

A U-Net rebuilds its input and is compared by a DCGAN discriminator, whose features compare image and
reconstruction a second time. CA-Entropy descends from it: there without skips, with attention and
the entropy term.

"Code" below is the authors'. What stands here:
- losses: adversarial 1, contextual (L1) 50, latent (squared difference of features) 1, and 0.9 of
  the contextual error in the score, as in the code;
- the score's contextual error is squared in the code and L1 in the paper's text (`score_norm`); the
  code then scales scores by the test set's extremes, which changes no AUROC;
- D before G, each with the other as it is. The code moves G first and lets the latent loss into D's
  loss, so that D shrinks the gap it should widen (`d_latent_loss`); it also restarts D when its
  loss vanishes, and scores with batch statistics: neither is copied;
- as many halvings as the size allows (32 px: 5, to one pixel); the code's rate 2e-4 and no noise;
- chosen epoch: lowest contextual error on held-out inliers; best test AUROC in the code.
The paper's tables have one class as the OUTLIER and nine as inliers: its numbers are no reference
for one-class runs. Known weakness: skips let any image through, outliers as well. The contextual
error is then said to tell little and the latent one more; in the kept runs it is the other way round
(docs/methods/skip_ganomaly.md).
"""

import math
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from noveltylab.methods.base import Batch, Method, detached, frozen
from noveltylab.nets.dcgan import Discriminator, initialise
from noveltylab.nets.losses import bce, context_error, discriminator_loss, feature_error
from noveltylab.nets.optimizers import adam

# Networks (section 3, figure 2; the code's `unet` and `dcgan`).


class SkipBlock(nn.Module):
    """Down, what is inside, up, beside the input itself: (B, S, H, W) -> (B, 2 S, H, W)."""

    def __init__(self, outer: int, inner: int, inside: nn.Module | None) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.LeakyReLU(0.2),
            nn.Conv2d(outer, inner, 4, 2, 1, bias=False),
        ]
        width = inner
        if inside is not None:  # no batch norm at the bottom, as in the code
            layers.append(nn.BatchNorm2d(inner))
            layers.append(inside)
            width = 2 * inner
        layers += [
            nn.ReLU(),
            nn.ConvTranspose2d(width, outer, 4, 2, 1, bias=False),
            nn.BatchNorm2d(outer),
        ]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def unet(channels: int, base: int, halvings: int) -> nn.Sequential:
    """Images (B, C, H, W) -> images (B, C, H, W) in (-1, 1).

    Widths base, 2 base, 4 base, 8 base, 8 base, ...
    """
    widths = [base * min(2**level, 8) for level in range(halvings)]
    inside: nn.Module | None = None
    for outer, inner in reversed(list(pairwise(widths))):
        inside = SkipBlock(outer, inner, inside)
    assert inside is not None
    return nn.Sequential(
        nn.Conv2d(channels, base, 4, 2, 1, bias=False),
        inside,
        nn.ReLU(),
        nn.ConvTranspose2d(2 * base, channels, 4, 2, 1),
        nn.Tanh(),
    )


# Losses (section 3.2): L_adv is `bce` and, for D, `discriminator_loss`, L_con `context_error`,
# L_lat `feature_error`.


class SkipGANomaly(Method):
    """The U-Net and the discriminator; one D step and one G step an iteration."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        lr: PositiveFloat = 2e-4,
        beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        channels: PositiveInt = 64,
        feature_size: PositiveInt = 100,
        d_latent_loss: bool = False,
        w_adv: NonNegativeFloat = 1.0,
        w_con: NonNegativeFloat = 50.0,
        w_lat: NonNegativeFloat = 1.0,
        lam: Annotated[float, Field(ge=0, le=1)] = 0.9,
        score_norm: Literal["l1", "l2"] = "l2",
    ) -> None:
        super().__init__(image_shape)
        image_channels, height, breadth = image_shape
        if height % 8 or breadth % 8:
            raise ValueError(
                f"data.size={height}: Skip-GANomaly halves the image three times or more, take a multiple of 8"
            )
        self.lr = lr
        self.beta1 = beta1
        self.d_latent_loss = d_latent_loss
        self.w_adv = w_adv
        self.w_con = w_con
        self.w_lat = w_lat
        self.lam = lam
        self.score_norm = score_norm
        common = math.gcd(height, breadth)
        halvings = (common & -common).bit_length() - 1  # how often 2 divides both sides
        self.generator = unet(image_channels, channels, halvings)
        side = (height // 8, breadth // 8)
        self.discriminator = Discriminator(image_channels, channels, feature_size, side)
        self.apply(initialise)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {
            "generator": adam(self.generator, lr=self.lr, beta1=self.beta1),
            "discriminator": adam(self.discriminator, lr=self.lr, beta1=self.beta1),
        }

    # Training (section 3.2).

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One iteration: D step, G step.

        Losses `discriminator`, `generator`, `context` and `latent`.
        """
        # G does not change before its own step: one forward pass serves both.
        x_hat = self.generator(batch.x)
        losses = self._update_discriminator(batch.x, x_hat.detach())
        losses |= self._update_generator(batch.x, x_hat)
        return losses

    def _update_discriminator(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """D learns images (1) from reconstructions (0); G stays as it is."""
        real, f = self.discriminator(x)
        fake, f_hat = self.discriminator(x_hat)
        adversarial = loss = discriminator_loss(real, fake)
        if self.d_latent_loss:
            latent = feature_error(f, f_hat).mean()
            loss = loss + self.w_lat * latent
        self.minimise(loss, "discriminator")
        return {"discriminator": adversarial.detach()}

    def _update_generator(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """G rebuilds x in pixels and in D's features and fools D; D stays as it is."""
        with frozen(self.discriminator):
            with torch.no_grad():
                f = self.discriminator.features(x)
            logits, f_hat = self.discriminator(x_hat)
            adversarial = bce(logits, 1).mean()
            context = context_error(x, x_hat).mean()
            latent = feature_error(f, f_hat).mean()
            total = self.w_adv * adversarial + self.w_con * context + self.w_lat * latent
            self.minimise(total, "generator")
        return detached({"generator": adversarial, "context": context, "latent": latent})

    # The score (section 3.3).

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("novelty", "context", "latent")

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`novelty` = lam R + (1 - lam) L, and its terms `context` (R) and `latent` (L); (B,) each."""
        x_hat = self.reconstruct(x)
        context = context_error(x, x_hat, self.score_norm)
        f = self.discriminator.features(x)
        f_hat = self.discriminator.features(x_hat)
        latent = feature_error(f, f_hat)
        return {
            "novelty": self.lam * context + (1 - self.lam) * latent,
            "context": context,
            "latent": latent,
        }

    def validation_loss(self, x: Tensor) -> Tensor:
        """L_con of inliers, (B,)."""
        return context_error(x, self.reconstruct(x))

    def reconstruct(self, x: Tensor) -> Tensor:
        """G(x), (B, C, H, W)."""
        x_hat: Tensor = self.generator(x)
        return x_hat

    def embed(self, x: Tensor) -> Tensor:
        """D's features of x, (B, D)."""
        f: Tensor = self.discriminator.features(x)
        return f
