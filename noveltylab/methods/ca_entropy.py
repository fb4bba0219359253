"""CA-Entropy: auto-encoder with channel attention and entropy minimisation.

"Improving Auto-Encoder Novelty Detection Using Channel Attention and Entropy Minimization", Tian et
al., ACM Multimedia Asia 2020; published 2021.

A denoising auto-encoder, trained against a DCGAN discriminator, should rebuild inliers well and
nothing else: channel attention after every block weighs the feature maps that describe inliers, and
the entropy of the latent code (made a distribution by softmax) is minimised, so that few codes are
expressed. The score adds pixel and feature differences.

No code by the authors is known; the paper builds on Skip-GANomaly and the channel half of CBAM
("code" below: theirs). What the paper leaves open, and what stands here:
- loss weights: adversarial 1, context 50, feature 1 (code), entropy 1; lambda of the score 0.9
(code);
- latent and feature length 100, kernels of 4, width 64, weights N(0, 0.02), Adam's betas (code); R
= 16 (CBAM);
- no skip connections: the paper calls its generator a plain symmetric auto-encoder, and skips would
pass the entropy by;
- layers. Encoder: three convolutions of stride 2 and a fourth over the whole map, which makes the
  code; leaky ReLU of 0.2; batch norm in the first block too, as the paper lists it, where DCGAN has
  none; neither norm nor attention on the code.
  Decoder: the same backwards, with ReLU, and tanh at the end; no norm and no attention on the
  image. Discriminator: DCGAN's, no norm after its first convolution; its features are the fourth
  convolution's output, without norm or activation;
- attention's MLP has biases and at least four hidden units;
- softmax makes the distribution of eq. 4 only: the decoder gets the code itself;
- L_fea: eq. 3 writes an L2 norm, the code has the mean of the squares, and so has this
(`feature_norm`);
- the generator's adversarial loss is the non-saturating one (code), not the minimax form of eq. 1;
- noise: Gaussian of deviation 0.2, fresh at every step; its amount is not stated;
- chosen epoch: lowest L_con on held-out inliers, without noise; "until convergence" in the paper,
best test AUROC in the code. The code updates G before D and lets the feature loss into D's loss,
which makes D shrink the gap that it should widen: not copied (`d_feature_loss`). It also squares
the score's L_con (`score_norm`; on three MNIST digits, same training, 0.927 on average where eq.
2's absolute error has 0.908: experiments/learn/RESULTS.md) and scores with batch statistics (not
offered). Eq. 8 scales scores by the test set's extremes, which changes no AUROC: scores stay raw
here.

Known weaknesses. With the paper's rate and an unbounded code of 100 values, the softmax becomes
one-hot within an epoch and the score decays; `p_max` near 1 in the log tells. A bound on the code,
a small latent and a lower rate keep it steady, and `recipe=default` sets them; `recipe=paper` reads
the paper literally. `latent_bound=batch_norm`, without a learned scale, which alone could lower the
entropy, lets it fall. Under `latent_bound=tanh` (batch norm and tanh) the entropy of 16 values lies
between 2.299 and 2.773 whatever is learned, and L_inf is nearly inert. Log and result have entropy
and p_max. L_fea has no fixed scale, can outweigh L_con many times over, and is large on inliers
while D tells x from G(x): `context`, `feature` and `novelty_val` are scores of their own. `context`
alone is above the paper's score in six of ten classes of Fashion-MNIST (python -m
experiments.claims), under tanh in nine. Published mean AUROC: MNIST P2 0.9665, CIFAR-10 P2 0.6555
(0.619 without entropy and attention, 0.642 without attention).
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from noveltylab.methods.base import Batch, Method, detached, frozen
from noveltylab.nets.cpu.layers import Conv2d, ConvTranspose2d
from noveltylab.nets.dcgan import Discriminator, initialise, whole_map
from noveltylab.nets.losses import bce, context_error, discriminator_loss, feature_error, wide
from noveltylab.nets.optimizers import adam

# Networks (section 3 and figure 2).


class ChannelAttention(nn.Module):
    """Eq. 5: maps (B, C, H, W), each times its own weight in (0, 1); one MLP serves both poolings."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        hidden = max(channels // ratio, 4)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.ReLU(),
            nn.Linear(hidden, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        largest = F.adaptive_max_pool2d(x, 1).flatten(1)  # amax is as fast, but its gradient is not
        mean = x.mean((2, 3))
        weight = torch.sigmoid(self.mlp(mean) + self.mlp(largest))  # (B, C)
        return x * weight[:, :, None, None]


def block(
    convolution: nn.Module, channels: int, activation: nn.Module, ratio: int | None
) -> nn.Sequential:
    """Convolution, batch norm, activation and attention: (B, ?, ...) -> (B, channels, ...).

    No attention if its ratio is None.
    """
    layers = nn.Sequential(convolution, nn.BatchNorm2d(channels), activation)
    if ratio is not None:
        layers.append(ChannelAttention(channels, ratio))
    return layers


class Encoder(nn.Module):
    """Images (B, C, H, W) -> code h (B, D) and the maps of the three blocks.

    The maps go from (B, base, H/2, W/2) down.
    """

    def __init__(
        self,
        channels: int,
        base: int,
        latent: int,
        side: tuple[int, int],
        ratio: int | None,
        bound: str,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for before, width in pairwise((channels, base, 2 * base, 4 * base)):
            convolution = Conv2d(before, width, 4, 2, 1, bias=False)
            activation = nn.LeakyReLU(0.2, inplace=True)
            self.blocks.append(block(convolution, width, activation, ratio))
        # Without a learned scale: the decoder would undo it, and the entropy could fall by scale
        # alone.
        fixed_scale = nn.BatchNorm1d(latent, affine=False)
        bounds: dict[str, list[nn.Module]] = {
            "none": [],
            "batch_norm": [fixed_scale],
            "tanh": [nn.BatchNorm1d(latent), nn.Tanh()],
        }
        self.code = nn.Sequential(*whole_map(4 * base, latent, side), *bounds[bound])

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = []
        for layers in self.blocks:
            x = layers(x)
            maps.append(x)
        return self.code(x), maps


class Decoder(nn.Module):
    """Codes (B, D) -> images (B, C, H, W) in (-1, 1).

    With `skip`, each block's maps are joined by the encoder's.
    """

    def __init__(
        self,
        channels: int,
        base: int,
        latent: int,
        side: tuple[int, int],
        ratio: int | None,
        skip: bool,
    ) -> None:
        super().__init__()
        joined = 2 if skip else 1
        # A transposed convolution of a 1x1 map is a matrix product, and so far faster.
        height, width = side
        first = nn.Sequential(
            nn.Linear(latent, 4 * base * height * width, bias=False),
            nn.Unflatten(1, (4 * base, height, width)),
        )
        second = ConvTranspose2d(joined * 4 * base, 2 * base, 4, 2, 1, bias=False)
        third = ConvTranspose2d(joined * 2 * base, base, 4, 2, 1, bias=False)
        self.blocks = nn.ModuleList()
        for layer, width in ((first, 4 * base), (second, 2 * base), (third, base)):
            self.blocks.append(block(layer, width, nn.ReLU(inplace=True), ratio))
        self.image = nn.Sequential(
            ConvTranspose2d(joined * base, channels, 4, 2, 1, bias=False),
            nn.Tanh(),
        )
        self.skip = skip

    def forward(self, code: Tensor, maps: Sequence[Tensor]) -> Tensor:
        x = code
        for layers, encoded in zip(self.blocks, reversed(maps), strict=True):
            x = layers(x)
            if self.skip:
                x = torch.cat([x, encoded], 1)
        image: Tensor = self.image(x)
        return image


# Losses (eqs. 1-4), per sample, in float32 at least: minus eq. 1 is `discriminator_loss` of D(x)
# and D(G(x + n)), L_con (eq. 2) `context_error`, L_fea (eq. 3) `feature_error`.


def latent_entropy(h: Tensor, temperature: float = 1.0) -> Tensor:
    """L_inf, eq. 4: entropy of softmax(h / temperature), codes (B, D) -> (B,) in [0, log D]."""
    logits = wide(h) / temperature
    log_p = F.log_softmax(logits, 1)
    return -(log_p.exp() * log_p).sum(1)


def largest_probability(h: Tensor, temperature: float = 1.0) -> Tensor:
    """p_max: largest of the D values of softmax(h / temperature).

    Codes (B, D) -> (B,) in [1 / D, 1].
    """
    logits = wide(h) / temperature
    return F.softmax(logits, 1).amax(1)


class CAEntropy(Method):
    """Encoder and decoder with attention, discriminator; one D step and one G step an iteration."""

    capturable: ClassVar[bool] = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        lr: PositiveFloat = 1e-3,
        beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        latent_size: Annotated[int, Field(ge=2)] = 100,
        latent_bound: Literal["none", "batch_norm", "tanh"] = "none",
        temperature: PositiveFloat = 1.0,
        latent_to_decoder: Literal["raw", "softmax"] = "raw",
        channels: PositiveInt = 64,
        feature_size: PositiveInt = 100,
        skip: bool = False,
        R: PositiveInt = 16,
        noise_std: NonNegativeFloat = 0.2,
        entropy: bool = True,
        channel_attention: bool = True,
        adversarial: bool = True,
        feature_loss: bool = True,
        d_feature_loss: bool = False,
        w_adv: NonNegativeFloat = 1.0,
        w_con: NonNegativeFloat = 50.0,
        w_fea: NonNegativeFloat = 1.0,
        w_inf: NonNegativeFloat = 1.0,
        feature_norm: Literal["mean_square", "l2"] = "mean_square",
        lam: Annotated[float, Field(ge=0, le=1)] = 0.9,
        score_norm: Literal["l1", "l2"] = "l1",
    ) -> None:
        super().__init__(image_shape)
        image_channels, height, width = image_shape
        if height % 8 or width % 8:
            raise ValueError(
                f"data.size={height}: CA-Entropy halves the image three times, take a multiple of 8"
            )
        has_discriminator = adversarial or feature_loss
        if d_feature_loss and not has_discriminator:
            raise ValueError(
                "method.d_feature_loss=true needs method.adversarial or method.feature_loss: no D without"
            )
        if lam == 0 and not has_discriminator:
            raise ValueError(
                "method.lam=0 needs method.adversarial or method.feature_loss: L_fea is the whole score"
            )
        self.lr = lr
        self.beta1 = beta1
        self.noise_std = noise_std
        self.entropy = entropy
        self.adversarial = adversarial
        self.feature_loss = feature_loss
        self.d_feature_loss = d_feature_loss
        self.w_adv = w_adv
        self.w_con = w_con
        self.w_fea = w_fea
        self.w_inf = w_inf
        self.latent_to_decoder = latent_to_decoder
        self.temperature = temperature
        self.feature_norm = feature_norm
        self.lam = lam
        self.score_norm = score_norm

        side = (height // 8, width // 8)
        ratio = R if channel_attention else None
        self.encoder = Encoder(image_channels, channels, latent_size, side, ratio, latent_bound)
        self.decoder = Decoder(image_channels, channels, latent_size, side, ratio, skip)
        self.discriminator: Discriminator | None = None
        if has_discriminator:
            self.discriminator = Discriminator(image_channels, channels, feature_size, side)
        self.apply(initialise)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizer = partial(adam, lr=self.lr, beta1=self.beta1)
        optimizers = {"generator": optimizer(self.encoder, self.decoder)}
        if self.discriminator is not None:
            optimizers["discriminator"] = optimizer(self.discriminator)
        return optimizers

    # Training (section 3, eq. 6).

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One iteration: D step, G step.

        Losses `context`, `entropy`, ... and `p_max`, the mean of softmax(h)'s largest.
        """
        x = batch.x
        # G does not change before its own step: one forward pass serves both.
        noisy = x + self.noise_std * torch.randn_like(x)
        x_hat, h = self.generate(noisy)
        losses: dict[str, Tensor] = {}
        if self.discriminator is not None:
            losses |= self._update_discriminator(self.discriminator, x, x_hat.detach())
        losses |= self._update_generator(x, x_hat, h)
        p_max = largest_probability(h.detach(), self.temperature)
        losses["p_max"] = p_max.mean()
        return losses

    def generate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> reconstructions (B, C, H, W) and codes h (B, D).

        The images are noisy in training.
        """
        h, maps = self.encoder(x)
        code = h
        if self.latent_to_decoder == "softmax":
            code = F.softmax(h / self.temperature, 1)
        x_hat: Tensor = self.decoder(code, maps)
        return x_hat, h

    def _update_discriminator(
        self, discriminator: Discriminator, x: Tensor, x_hat: Tensor
    ) -> dict[str, Tensor]:
        """D learns images (1) from reconstructions (0); G stays as it is."""
        real, f = discriminator(x)
        fake, f_hat = discriminator(x_hat)
        adversarial = loss = discriminator_loss(real, fake)
        if self.d_feature_loss:
            feature = feature_error(f, f_hat, self.feature_norm).mean()
            loss = loss + self.w_fea * feature
        self.minimise(loss, "discriminator")
        return {"discriminator": adversarial.detach()}

    def _update_generator(self, x: Tensor, x_hat: Tensor, h: Tensor) -> dict[str, Tensor]:
        """Eq. 6: G rebuilds x in pixels and in D's features, fools D and expresses few codes.

        D stays as it is.
        """
        losses = {
            "context": context_error(x, x_hat).mean(),
            "entropy": latent_entropy(h, self.temperature).mean(),
        }
        loss = self.w_con * losses["context"]
        if self.entropy:
            loss = loss + self.w_inf * losses["entropy"]
        with frozen(self.discriminator):
            if self.discriminator is not None:
                logits, f_hat = self.discriminator(x_hat)
                if self.adversarial:
                    losses["generator"] = bce(logits, 1).mean()
                    loss = loss + self.w_adv * losses["generator"]
                if self.feature_loss:
                    # D has just changed, so f(x) of its own step is out of date
                    with torch.no_grad():
                        f = self.discriminator.features(x)
                    losses["feature"] = feature_error(f, f_hat, self.feature_norm).mean()
                    loss = loss + self.w_fea * losses["feature"]
            self.minimise(loss, "generator")
        return detached(losses)

    # The score (section 4.1, eq. 7).

    @property
    def score_names(self) -> tuple[str, ...]:
        if self.discriminator is None:
            return ("novelty", "context")
        return ("novelty", "context", "feature", "novelty_val")

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`novelty` = lam L_con + (1 - lam) L_fea (eq. 7), and its terms `context` and `feature`.

        (B,) each.

        Without a discriminator there is no L_fea: `novelty` is then lam L_con.
        """
        x_hat = self.reconstruct(x)
        context = context_error(x, x_hat, self.score_norm)
        if self.discriminator is None:
            return {"novelty": self.lam * context, "context": context}
        f = self.discriminator.features(x)
        f_hat = self.discriminator.features(x_hat)
        feature = feature_error(f, f_hat, self.feature_norm)
        return {
            "novelty": self.lam * context + (1 - self.lam) * feature,
            "context": context,
            "feature": feature,
        }

    def combine_scores(self, test: dict[str, Tensor], val: dict[str, Tensor]) -> dict[str, Tensor]:
        """`novelty_val`: eq. 7 with both terms divided by their mean over held-out inliers.

        So lam weighs like scales.

        Ours. Without a discriminator or held-out inliers there is none.
        """
        if "feature" not in val or not len(val["feature"]):
            return {}
        context = test["context"] / val["context"].mean()
        feature = test["feature"] / val["feature"].mean()
        return {"novelty_val": self.lam * context + (1 - self.lam) * feature}

    def validation_loss(self, x: Tensor) -> Tensor:
        """L_con of clean inliers (B,)."""
        return context_error(x, self.reconstruct(x))

    def reconstruct(self, x: Tensor) -> Tensor:
        """G(x), (B, C, H, W)."""
        return self.generate(x)[0]

    def embed(self, x: Tensor) -> Tensor:
        """The code h, (B, D)."""
        h: Tensor = self.encoder(x)[0]
        return h

    @torch.no_grad()
    def extra_metrics(self, inliers: Tensor, outliers: Tensor) -> dict[str, float]:
        """Whether the entropy has an effect: its mean, and p_max's, over clean test images.

        In evaluation mode.

        `context_share_inliers`: the part of the score on inliers that is lam L_con.
        """
        numbers: dict[str, float] = {}
        for name, images in (("inliers", inliers), ("outliers", outliers)):
            h = torch.cat([self.embed(part) for part in torch.split(images, 512)])
            entropy = latent_entropy(h, self.temperature).mean()
            p_max = largest_probability(h, self.temperature).mean()
            numbers[f"entropy_{name}"] = entropy.item()
            numbers[f"p_max_{name}"] = p_max.item()
        if self.discriminator is not None:
            scores = [self.novelty_score(part) for part in torch.split(inliers, 512)]
            context = torch.cat([part["context"] for part in scores])
            novelty = torch.cat([part["novelty"] for part in scores])
            share = self.lam * context.mean() / novelty.mean()
            numbers["context_share_inliers"] = share.item()
        return numbers
