"""NDA: Novelty Detection via Contrastive Learning with Negative Data Augmentation.

Chen et al., IJCAI 2021.

A generator learns to turn the PCA code of each training image back into that image; an encoder
learns to find the code, and by contrast to tell an image from its own negative, a strongly
augmented copy of it. What the pair cannot reconstruct, G(C(x)) far from x, is novel. Nothing is
adversarial by default.

No code of the authors is known; related code: Deep InfoMax (DIM), a port of it, minimal_glo (GLO).
Left open, chosen here:
- the latent size, 16 (64 for CIFAR-10), and Adam: seen first on MNIST's digit 8, which tables
  report, then on digit 2 (experiments/learn/nda.yaml). Codes are whitened, since Eq. 2 ties z to
  the code and Eq. 6 to N(0, I); GLO divides by max(norm, 1), which puts all raw codes on the unit
  sphere. Codes stay fixed; `train_z` trains them as GLO does;
- the encoder: section 2.3 says DCGAN (`encoder=dcgan`), the estimators and weights are DIM's, and
so is ours (`dim`);
- Eq. 1 is a sum, here its mean: w_recon = pixels x channels (1024 for 1 x 32 x 32) gives the sum,
  which collapses under the paper's SGD: digit 2, ten epochs, measured once, AUROC 0.367 where the
  mean has 0.856 and Adam 0.924 (method.optimizer=sgd method.lr=0.002 method.weight_decay=0.005
  method.w_recon=1024 trainer.max_epochs=10). Levels are x - up(down(x)), which can be undone
  exactly; minimal_glo subtracts the blurred image, with a kernel that adds two Gaussians;
- Eq. 2 is a sum over the D values, here their mean (`lat_reduction=sum`: the paper's), or it would
outweigh the rest;
- the prior term: the paper writes a KL yet describes a discriminator. `kl_moment` is the KL of the
  batch's diagonal Gaussian, `adv` DIM's min-max, `coop` minimises the discriminator's loss for the
  encoder too (the port's slip, maybe the paper's);
- the strengths of M (`crop_min` ... `grey`). By default negatives are easy: the estimators tell
  them from images within epochs. Negatives do not enter the running statistics of batch norm, which
  scoring uses on images as they are;
- the pair [A of M(x), z of x] is the only negative: with fixed codes G and C share no gradient and
meet in the codes alone;
- the score's metric, `mse`, of weights of the last epoch or the lowest error on held-out inliers,
in evaluation mode.

Published means: CIFAR-10 P2 0.843 (its ten values average 0.838), MNIST P1 0.986, fMNIST P1 0.999,
COIL-100 1.0, DCASE 0.899.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
)
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from noveltylab.methods.base import Batch, Method, Row, detached, frozen
from noveltylab.nets.cpu.layers import Conv2d, ConvTranspose2d
from noveltylab.nets.losses import squared_error

#: Differences of the Laplacian pyramid, before the residual.
LEVELS = 3
#: Mean absolute difference on the [-1, 1] scale under which M(x) counts as x itself.
ALIKE = 0.05


# Networks (section 2.3; DCGAN and DIM geometries).


def generator(channels: int, base: int, latent: int, side: int) -> nn.Sequential:
    """G: codes (B, D) -> images (B, C, 8 side, 8 side) in (-1, 1)."""
    return nn.Sequential(
        nn.Unflatten(1, (latent, 1, 1)),
        ConvTranspose2d(latent, 4 * base, side, bias=False),
        nn.BatchNorm2d(4 * base),
        nn.ReLU(),
        ConvTranspose2d(4 * base, 2 * base, 4, 2, 1, bias=False),
        nn.BatchNorm2d(2 * base),
        nn.ReLU(),
        ConvTranspose2d(2 * base, base, 4, 2, 1, bias=False),
        nn.BatchNorm2d(base),
        nn.ReLU(),
        ConvTranspose2d(base, channels, 4, 2, 1),
        nn.Tanh(),
    )


class Encoder(nn.Module):
    """C: `local` gives the map A (B, 2 base, 2 side, 2 side), `head` the code z (B, D) of a map.

    kind "dcgan", section 2.3: DCGAN's discriminator with D outputs; leaky ReLU, no batch norm on
    the first layer, the last convolution as large as its map. "dim", Deep InfoMax's: ReLU, batch
    norm on every layer but the last, a linear layer of 16 base units before the code.
    """

    def __init__(self, channels: int, base: int, latent: int, side: int, kind: str) -> None:
        super().__init__()
        if kind == "dcgan":
            self.local = nn.Sequential(
                Conv2d(channels, base, 4, 2, 1, bias=False),
                self.leaky(),
                *self.halve(base, 2 * base, self.leaky()),
            )
            self.head = nn.Sequential(
                *self.halve(2 * base, 4 * base, self.leaky()),
                Conv2d(4 * base, latent, side, bias=False),
                nn.Flatten(),
            )
            return
        self.local = nn.Sequential(
            *self.halve(channels, base),
            *self.halve(base, 2 * base),
        )
        self.head = nn.Sequential(
            *self.halve(2 * base, 4 * base),
            nn.Flatten(),
            nn.Linear(4 * base * side * side, 16 * base, bias=False),
            nn.BatchNorm1d(16 * base),
            nn.ReLU(),
            nn.Linear(16 * base, latent),
        )

    @staticmethod
    def leaky() -> nn.Module:
        return nn.LeakyReLU(0.2)

    @staticmethod
    def halve(width_in: int, width: int, activation: nn.Module | None = None) -> list[nn.Module]:
        return [
            Conv2d(width_in, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            activation or nn.ReLU(),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        maps = self.local(x)
        z: Tensor = self.head(maps)
        return z


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them -> logits (...)."""
    layers: list[nn.Module] = []
    for width_in, width in pairwise(widths):
        layers.append(nn.Linear(width_in, width))
        layers.append(nn.ReLU())
    layers.append(nn.Linear(widths[-1], 1))
    layers.append(nn.Flatten(-2))
    return nn.Sequential(*layers)


class GlobalEstimator(nn.Module):
    """GE: a map (N, S, h, w), scaled down to A_z (N, D), and z (N, D) -> logits (N,).

    `use_z` false: of A_z alone.
    """

    def __init__(self, base: int, latent: int, side: int, width: int, use_z: bool) -> None:
        super().__init__()
        small_side = 2 * side - 4
        self.down = nn.Sequential(
            Conv2d(2 * base, base, 3),
            nn.ReLU(),
            Conv2d(base, base // 2, 3),
            nn.Flatten(),
            nn.Linear(base // 2 * small_side**2, latent),
        )
        self.use_z = use_z
        inputs = 2 * latent if use_z else latent
        self.score = perceptron(inputs, width, width)

    def forward(self, maps: Tensor, z: Tensor) -> Tensor:
        inputs = self.down(maps)
        if self.use_z:
            inputs = torch.cat([inputs, z.to(inputs.dtype)], 1)
        logits: Tensor = self.score(inputs)
        return logits


class LocalEstimator(nn.Module):
    """LE: each place of a map (N, S, h, w) with z (N, D) -> logits (N, h w).

    `use_z` false: of the places alone.

    The 1 x 1 convolutions as linear layers over places; the first one's part for z is computed
    once, not at each place.
    """

    def __init__(self, base: int, latent: int, width: int, use_z: bool) -> None:
        super().__init__()
        self.from_map = nn.Linear(2 * base, width)
        self.from_z = nn.Linear(latent, width, bias=False) if use_z else None
        self.score = nn.Sequential(nn.ReLU(), *perceptron(width, width))

    def forward(self, maps: Tensor, z: Tensor) -> Tensor:
        places = maps.flatten(2).transpose(1, 2)
        hidden = self.from_map(places)  # (N, h w, width)
        if self.from_z is not None:
            hidden = hidden + self.from_z(z)[:, None]
        logits: Tensor = self.score(hidden)
        return logits


class LaplacianPyramid(nn.Module):
    """Laplacian pyramid of images (B, C, H, H).

    Differences x_j - up(x_j+1) of sides H, H/2, H/4, and the residual of side H/8.

    Down: 5 x 5 binomial blur with replicated borders, then 2 x 2 means. Up: bilinear, then the same
    blur. Both are linear and separable, hence one matrix for rows and columns: two small products
    instead of padding, blurring and pooling.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        for level in range(LEVELS):
            down, up = self.operators(size >> level)
            self.register_buffer(f"down{level}", down, persistent=False)
            self.register_buffer(f"up{level}", up, persistent=False)

    @staticmethod
    def operators(size: int) -> tuple[Tensor, Tensor]:
        """Down (size / 2, size) and up (size, size / 2), from what they do to each unit vector."""

        kernel = torch.tensor([[[1.0, 4.0, 6.0, 4.0, 1.0]]]) / 16

        def blur(rows: Tensor) -> Tensor:
            padded = F.pad(rows, (2, 2), mode="replicate")
            return F.conv1d(padded, kernel)

        fine = torch.eye(size)[:, None]
        down = F.avg_pool1d(blur(fine), 2)
        coarse = torch.eye(size // 2)[:, None]
        up = blur(F.interpolate(coarse, scale_factor=2, mode="linear"))
        return down[:, 0].T.contiguous(), up[:, 0].T.contiguous()

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = []
        with torch.autocast(x.device.type, enabled=False):
            for level in range(LEVELS):
                down = getattr(self, f"down{level}")
                up = getattr(self, f"up{level}")
                coarse = down @ x @ down.T
                levels.append(x - up @ coarse @ up.T)
                x = coarse
        return [*levels, x]


def initialise(module: nn.Module) -> None:
    """DCGAN's: convolutions N(0, 0.02), batch-norm scales N(1, 0.02)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


# Latents (section 2.1, "Generative network").


def onto_ball(codes: Tensor) -> Tensor:
    """Codes (N, D) divided by max(norm, 1), as GLO does."""
    norms: Tensor = torch.linalg.vector_norm(codes, dim=1, keepdim=True)
    return codes / norms.clamp_min(1)


def eigenvectors(product: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (N,), rising, and eigenvectors (N, N) in columns, of a symmetric matrix."""
    try:
        values, vectors = torch.linalg.eigh(product)
    except RuntimeError:  # pixels that no image uses: slower in double precision, and it converges
        values, vectors = torch.linalg.eigh(product.double())
    return values.to(product), vectors.to(product)


def pca_codes(images: Tensor, size: int, norm: str) -> Tensor:
    """Projections of images (N, C, H, W) on their leading principal components.

    -> (N, size), normalised.

    `whiten`: unit variance each (a component with under 1e-6 of the first one's variance stays
    smaller); `unit_ball`; `raw`.
    """
    x = images.flatten(1)
    x = x - x.mean(0)
    if len(x) > x.shape[1]:
        _, components = eigenvectors(x.T @ x)
        codes: Tensor = x @ components[:, -size:]
    else:
        # Fewer images than values: their projections are the eigenvectors of the small Gram
        # matrix, scaled.
        values, vectors = eigenvectors(x @ x.T)
        lengths = values[-size:].clamp_min(0).sqrt()
        codes = vectors[:, -size:] * lengths
    codes = codes.flip(1).contiguous()
    if norm == "unit_ball":
        return onto_ball(codes)
    if norm == "whiten":
        deviation: Tensor = codes.square().mean(0).sqrt()
        codes = codes / deviation.clamp_min(1e-3 * deviation[0])
    return codes


# Negative augmentation M (sections 2.1 and 2.3): one draw per image from torch's generator, nothing
# asked of the device.


@dataclass(frozen=True)
class Strength:
    """How far negatives are from their images.

    Attributes:
        crop_min, crop_max: Range of the share of the area that the window has.
        mirror: Share of the images that are mirrored.
        turn: Share of the images that are turned by 90, 180 or 270 degrees.
        jitter: Largest change of brightness, contrast and saturation, a quarter of it of the hue;
            of a spectrogram the largest offset.
        grey: Share of the colour images that become grey.
    """

    crop_min: float = 0.08
    crop_max: float = 1.0
    mirror: float = 0.5
    turn: float = 0.5
    jitter: float = 0.4
    grey: float = 0.2


@torch.no_grad()
def negative(x: Tensor, kind: str, strength: Strength) -> Tensor:
    """M(x): images (B, C, H, W) in [-1, 1] -> as many in [-1, 1], each with its own draw.

    `kind` image or spec.
    """
    with torch.autocast(x.device.type, enabled=False):
        # places
        affine = random_affine(x, kind, strength)
        grid = F.affine_grid(affine, list(x.shape), align_corners=False)
        warped = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        # values, in [0, 1]
        unit = (0.5 * warped + 0.5).clamp(0, 1)
        changed = random_gain(unit, strength) if kind == "spec" else random_colour(unit, strength)
        return 2 * changed - 1


def random_affine(x: Tensor, kind: str, strength: Strength) -> Tensor:
    """Maps from output to input places in [-1, 1] for images x (B, ...): (B, 2, 3).

    image: window of `crop_min` to `crop_max` of the area and aspect 3/4 to 4/3, mirrored and turned
    as `strength` says. spec: each side of the window apart (the root of such a share), neither
    mirrored nor turned.
    """
    draws = torch.rand(7, len(x), device=x.device, dtype=x.dtype)
    area, shape, left, top, mirror, turn, quarter = draws
    span = strength.crop_max - strength.crop_min
    area = strength.crop_min + span * area
    if kind == "spec":
        width = area.sqrt()
        height = (strength.crop_min + span * shape).sqrt()
        flip = torch.ones_like(area)
        angle = torch.zeros_like(area)
    else:
        aspect = ((2 * shape - 1) * math.log(4 / 3)).exp()
        width = (area * aspect).sqrt().clamp_max(1)
        height = (area / aspect).sqrt().clamp_max(1)
        is_mirrored = (mirror < strength.mirror).to(x.dtype)
        flip = 1 - 2 * is_mirrored
        quarters = 1 + (3 * quarter).floor()
        angle = (turn < strength.turn) * quarters * (math.pi / 2)
    # rows of the matrix
    cosine = angle.cos().round()
    sine = angle.sin().round()
    x_shift = (1 - width) * (2 * left - 1)
    y_shift = (1 - height) * (2 * top - 1)
    x_row = torch.stack([width * flip * cosine, -width * flip * sine, x_shift], 1)
    y_row = torch.stack([height * sine, height * cosine, y_shift], 1)
    return torch.stack([x_row, y_row], 1)


def random_colour(y: Tensor, strength: Strength) -> Tensor:
    """Colour jitter with probability 0.8, then grey; y (B, C, H, W) in [0, 1].

    In this order: brightness, contrast, saturation, hue; the last two and grey for colour images
    alone.
    """
    draws = torch.rand(6, len(y), 1, 1, 1, device=y.device, dtype=y.dtype)
    is_colour = y.shape[1] == 3
    jitter = strength.jitter
    brightness, contrast, saturation = (1 - jitter) + 2 * jitter * draws[:3]
    jittered = adjust_brightness_accumulative(y, brightness)
    jittered = adjust_contrast_with_mean_subtraction(jittered, contrast)
    if is_colour:
        jittered = adjust_saturation_with_gray_subtraction(jittered, saturation)
        turns = 0.5 * jitter * draws[3] - 0.25 * jitter
        jittered = adjust_hue(jittered, turns * (2 * math.pi))
    y = torch.where(draws[4] < 0.8, jittered, y)
    if not is_colour:
        return y
    return torch.where(draws[5] < strength.grey, rgb_to_grayscale(y), y)


def random_gain(y: Tensor, strength: Strength) -> Tensor:
    """A louder or softer spectrogram: an offset on its logarithmic scale, with probability 0.8.

    y in [0, 1].
    """
    offset, chance = torch.rand(2, len(y), 1, 1, 1, device=y.device, dtype=y.dtype)
    louder = y + 2 * strength.jitter * offset - strength.jitter
    return torch.where(chance < 0.8, louder.clamp(0, 1), y)


def alike(x: Tensor, negatives: Tensor) -> Tensor:
    """Share of negatives (B, C, H, W) that are x or its mirror image, or nearly so.

    These are false negatives; scalar.
    """
    gap = (x - negatives).abs().flatten(1).mean(1)
    mirrored_gap = (x.flip(-1) - negatives).abs().flatten(1).mean(1)
    is_alike = torch.minimum(gap, mirrored_gap) < ALIKE
    return is_alike.to(x.dtype).mean()


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Inside, batch norms use the batch's statistics, but their running ones stay as they are."""
    modules = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in modules:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in modules:
            module.track_running_stats = True


# Losses (sections 2.1 and 2.2).


def pyramid_error(x: Tensor, x_hat: Tensor, pyramid: LaplacianPyramid) -> Tensor:
    """Eq. 1 / pixels: sum over levels of the MEAN absolute difference.

    Per sample of (B, C, H, W) -> (B,).

    Level j has 4^-j of the pixels, which cancels the weight 4^j of its sum. One pyramid: that of
    the difference.
    """
    levels = [level.abs().flatten(1).mean(1) for level in pyramid(x - x_hat)]
    return torch.stack(levels).sum(0)


def latent_loss(codes: Tensor, z: Tensor, reduction: str) -> Tensor:
    """Eq. 2: squared distance of codes and z, (B, D) each -> scalar.

    Summed or averaged over D, averaged over B.
    """
    error = (codes - z).square()
    if reduction == "mean":
        return error.mean()
    return error.sum(1).mean()


def jsd_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Eq. 3 of logits of any shape -> scalar.

    -(E log sigmoid(positive) + E log(1 - sigmoid(negative))).
    """
    positive_loss = F.softplus(-positive).mean()
    negative_loss = F.softplus(negative).mean()
    return positive_loss + negative_loss


def kl_moment(z: Tensor) -> Tensor:
    """Eq. 6: KL(N(mean, variance) || N(0, I)) -> scalar.

    The diagonal Gaussian has the moments of the batch z (B, D).
    """
    variance, mean = torch.var_mean(z, 0, correction=0)
    log_variance = variance.clamp_min(1e-8).log()
    return 0.5 * (mean.square() + variance - log_variance - 1).sum()


class NDA(Method):
    """Generator, encoder and the three estimators; one step of Eq. 8 on everything."""

    capturable: ClassVar[bool] = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        optimizer: Literal["sgd", "adam"] = "adam",
        lr: PositiveFloat = 1e-3,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        weight_decay: NonNegativeFloat = 0.0,
        latent_size: PositiveInt = 16,
        latent_init: Literal["pca", "normal", "contrastive"] = "pca",
        contrastive_from: str | None = None,
        pca_norm: Literal["whiten", "unit_ball", "raw"] = "whiten",
        train_z: bool = False,
        latent_lr: PositiveFloat = 100.0,
        encoder: Literal["dcgan", "dim"] = "dim",
        channels: Annotated[int, Field(ge=2)] = 64,
        estimator_channels: PositiveInt = 512,
        recon: Literal["lap", "mse", "none"] = "lap",
        recon_through_C: bool = False,
        lat_reduction: Literal["mean", "sum"] = "mean",
        use_global: bool = True,
        use_local: bool = True,
        use_prior: bool = True,
        use_z: bool = True,
        use_zA: bool = True,
        prior: Literal["kl_moment", "adv", "coop"] = "kl_moment",
        augmentation: Literal["image", "spec"] = "image",
        crop_min: Annotated[float, Field(gt=0, le=1)] = 0.08,
        crop_max: Annotated[float, Field(gt=0, le=1)] = 1.0,
        mirror: Annotated[float, Field(ge=0, le=1)] = 0.5,
        turn: Annotated[float, Field(ge=0, le=1)] = 0.5,
        jitter: Annotated[float, Field(ge=0, lt=1)] = 0.4,
        grey: Annotated[float, Field(ge=0, le=1)] = 0.2,
        w_recon: NonNegativeFloat = 1.0,
        w_lat: NonNegativeFloat = 1.0,
        w_mie: NonNegativeFloat = 1.0,
        beta: NonNegativeFloat = 0.5,
        gamma: NonNegativeFloat = 0.1,
    ) -> None:
        super().__init__(image_shape)
        image_channels, size, width = image_shape
        if size != width or size % 8 or size < 24:
            raise ValueError(
                f"data.size={size}: NDA takes square images, a multiple of 8 pixels, at least 24"
            )
        if recon_through_C and recon == "none":
            raise ValueError(
                "method.recon_through_C=true needs method.recon=lap or mse: it is that loss of G(C(x))"
            )
        if (latent_init == "contrastive") != (contrastive_from is not None):
            raise ValueError(
                "method.latent_init=contrastive and method.contrastive_from=<weights of a finished nda run> go together; "
                f"here method.latent_init={latent_init}, method.contrastive_from={contrastive_from}"
            )
        if crop_min > crop_max:
            raise ValueError(
                f"method.crop_min={crop_min} is above method.crop_max={crop_max}: a range goes up"
            )
        self.optimizer = optimizer
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.latent_lr = latent_lr
        self.latent_size = latent_size
        self.latent_init = latent_init
        self.contrastive_from = contrastive_from
        self.pca_norm = pca_norm
        self.train_z = train_z
        self.recon = recon
        self.recon_through_C = recon_through_C
        self.lat_reduction = lat_reduction
        self.prior = prior
        self.augmentation = augmentation
        self.use_prior = use_prior
        self.strength = Strength(crop_min, crop_max, mirror, turn, jitter, grey)
        self.w_recon = w_recon
        self.w_lat = w_lat
        self.w_mie = w_mie
        self.beta = beta
        self.gamma = gamma

        side = size // 8
        self.generator = generator(image_channels, channels, latent_size, side)
        self.generator.apply(initialise)
        self.encoder = Encoder(image_channels, channels, latent_size, side, encoder)
        self.encoder.apply(initialise)
        self.global_estimator: GlobalEstimator | None = None
        if use_global:
            self.global_estimator = GlobalEstimator(
                channels, latent_size, side, estimator_channels, use_z
            )
        self.local_estimator: LocalEstimator | None = None
        if use_local:
            self.local_estimator = LocalEstimator(channels, latent_size, estimator_channels, use_zA)
        self.prior_estimator: nn.Sequential | None = None
        if use_prior and prior != "kl_moment":
            self.prior_estimator = perceptron(latent_size, 1000, 200)
        self.pyramid = LaplacianPyramid(size)
        # z' of each training image, see `prepare`
        self.register_buffer("latents", torch.zeros(0, latent_size))
        self.latents: Tensor

    def prepare(self, train: Tensor) -> None:
        """z' (N, D) of the training images (N, C, H, W), by `latent_init`."""
        if self.latent_init == "normal":
            shape = (len(train), self.latent_size)
            self.latents = torch.randn(shape, dtype=train.dtype, device=train.device)
        elif self.latent_init == "contrastive":
            self.latents = self._contrastive_codes(train)
        else:
            values = train[0].numel()
            most = min(len(train) - 1, values)
            if self.latent_size > most:
                raise ValueError(
                    f"method.latent_size={self.latent_size}: {len(train)} training images of "
                    f"{values} values have {most} principal components; "
                    f"take method.latent_size={most} or fewer, or {self.latent_size + 1} images"
                )
            self.latents = pca_codes(train, self.latent_size, self.pca_norm)

    @torch.no_grad()
    def _contrastive_codes(self, train: Tensor) -> Tensor:
        """C(x) of a finished run's encoder, (N, D)."""
        trained = copy.deepcopy(self.encoder).eval()
        path = str(self.contrastive_from)
        try:
            checkpoint = torch.load(path, map_location=train.device, weights_only=True)
            weights: dict[str, Tensor] = {}
            for name, value in checkpoint["method"].items():
                if name.startswith("encoder."):
                    weights[name.removeprefix("encoder.")] = value
            trained.load_state_dict(weights)
        # whatever torch makes of a file that is absent, cut off or something else
        except Exception as error:
            raise ValueError(
                f"method.contrastive_from={path}: not such weights ({error})"
            ) from None
        return torch.cat([trained(part) for part in torch.split(train, 512)])

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        networks: list[nn.Module | None] = [
            self.generator,
            self.encoder,
            self.global_estimator,
            self.local_estimator,
        ]
        optimizers: dict[str, torch.optim.Optimizer] = {}
        if self.prior == "adv" and self.prior_estimator is not None:
            optimizers["networks"] = self._build_optimizer(*networks)
            optimizers["prior_estimator"] = self._build_optimizer(self.prior_estimator)
        else:
            optimizers["networks"] = self._build_optimizer(*networks, self.prior_estimator)
        if self.train_z:
            optimizers["latents"] = torch.optim.SGD([self.latents], self.latent_lr)
        return optimizers

    def _build_optimizer(self, *networks: nn.Module | None) -> torch.optim.Optimizer:
        """Adam or SGD over the parameters of all these networks."""
        parameters: list[nn.Parameter] = []
        for network in networks:
            if network is not None:
                parameters += network.parameters()
        options: dict[str, Any] = {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "fused": True,
        }
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, betas=(self.momentum, 0.999), **options)
        return torch.optim.SGD(parameters, momentum=self.momentum, **options)

    # Section 2.2.

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of Eq. 8.

        Losses `recon`, `lat`, `global`, `local`, `prior` ..., weighted by beta and gamma only.
        """
        x = batch.x
        losses: dict[str, Tensor] = {}
        notes: dict[str, Tensor] = {}
        # z' of the images and z = C(x)
        if self.train_z:  # not before: as a plain buffer it can be loaded, moved and converted
            self.latents.requires_grad_()
        codes = self.latents.index_select(0, batch.index)
        maps = self.encoder.local(x)
        z = self.encoder.head(maps).to(codes.dtype)
        # the generator's loss and the distance of the codes
        if self.recon != "none":
            losses["recon"] = self._reconstruction_loss(x, codes)
            if self.recon_through_C:
                losses["recon_through_C"] = self._reconstruction_loss(x, z)
        losses["lat"] = latent_loss(codes, z, self.lat_reduction)
        # mutual information
        if self.global_estimator is not None or self.local_estimator is not None:
            negatives = negative(x, self.augmentation, self.strength)
            notes["alike"] = alike(x, negatives)
            losses |= self._contrast(maps, negatives, z)
        if self.use_prior:
            losses["prior"] = self._prior_loss(z, notes)
        # Eq. 8
        weights = {"recon": self.w_recon, "recon_through_C": self.w_recon, "lat": self.w_lat}
        terms = [weights.get(name, self.w_mie) * loss for name, loss in losses.items()]
        total = torch.stack(terms).sum()
        self.minimise(total, "networks")
        if self.train_z:
            notes["code_step"] = self._step_latents(batch.index)
        return detached(losses | notes)

    def _reconstruction_loss(self, x: Tensor, codes: Tensor) -> Tensor:
        """Eq. 1 (or the squared error) between x (B, C, H, W) and G(codes)."""
        x_hat = self.generator(codes).to(x.dtype)
        if self.recon == "lap":
            return pyramid_error(x, x_hat, self.pyramid).mean()
        return squared_error(x, x_hat).mean()

    def _contrast(self, maps: Tensor, negatives: Tensor, z: Tensor) -> dict[str, Tensor]:
        """Eqs. 4 and 5: the maps of x (B, S, h, w) against those of its negatives.

        Both with the z of x (B, D).
        """
        with statistics_kept(self.encoder.local):
            negative_maps = self.encoder.local(negatives)
        both = torch.cat([maps, negative_maps])
        paired = z.repeat(2, 1)
        losses = {}
        for name, estimator in (("global", self.global_estimator), ("local", self.local_estimator)):
            if estimator is not None:
                logits = estimator(both, paired).to(z.dtype)
                own_logits, negative_logits = logits.chunk(2)
                losses[name] = self.beta * jsd_loss(own_logits, negative_logits)
        return losses

    def _prior_loss(self, z: Tensor, notes: dict[str, Tensor]) -> Tensor:
        """Eq. 6 for the codes z (B, D).

        With `adv` the estimator first takes a step of its own (noted).
        """
        if self.prior_estimator is None:
            return self.gamma * kl_moment(z)
        noise = torch.randn_like(z)
        noise_logits = self._prior_logits(noise)
        if self.prior == "coop":
            return self.gamma * jsd_loss(noise_logits, self._prior_logits(z))
        loss = jsd_loss(noise_logits, self._prior_logits(z.detach()))
        self.minimise(loss, "prior_estimator")
        notes["prior_estimator"] = loss
        with frozen(self.prior_estimator):
            return self.gamma * F.softplus(-self._prior_logits(z)).mean()

    def _prior_logits(self, z: Tensor) -> Tensor:
        """Logits (B,) of PE for codes (B, D), large for the prior's; in the codes' precision."""
        assert self.prior_estimator is not None
        logits: Tensor = self.prior_estimator(z)
        return logits.to(z.dtype)

    def _step_latents(self, index: Tensor) -> Tensor:
        """GLO's step on the codes of the batch, by the gradients that `minimise` left in them.

        Returns the mean length of a code's step, as a share of the code's own length; scalar.
        """
        optimizer = self._optimizers_by_name["latents"]
        gradient = self.latents.grad
        assert gradient is not None
        steps = self.latent_lr * torch.linalg.vector_norm(gradient[index], dim=1)
        lengths = torch.linalg.vector_norm(self.latents.detach()[index], dim=1)
        share: Tensor = (steps / lengths.clamp_min(1e-6)).mean()
        optimizer.step()
        optimizer.zero_grad()
        if self.latent_init == "pca" and self.pca_norm == "unit_ball":
            with torch.no_grad():
                self.latents.copy_(onto_ball(self.latents))
        return share

    # Section 2.3, last paragraph: the score is the reconstruction error, its metric not named.

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("mse", "lap")

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """Squared error and pyramid error between x (B, C, H, W) and G(C(x)); (B,) each."""
        x_hat = self.reconstruct(x)
        return {
            "mse": squared_error(x, x_hat),
            "lap": pyramid_error(x, x_hat, self.pyramid),
        }

    def validation_loss(self, x: Tensor) -> Tensor:
        """Squared error of G(C(x)), (B,)."""
        return squared_error(x, self.reconstruct(x))

    def reconstruct(self, x: Tensor) -> Tensor:
        """G(C(x)), (B, C, H, W)."""
        x_hat: Tensor = self.generator(self.encoder(x))
        return x_hat.to(x.dtype)

    def embed(self, x: Tensor) -> Tensor:
        """z = C(x), (B, D)."""
        z: Tensor = self.encoder(x)
        return z

    def image_rows(self, train: Tensor, inliers: Tensor, outliers: Tensor) -> dict[str, list[Row]]:
        """Training images above three negatives of each, and above what G makes of their codes z'."""
        images = Row("training images", train)
        rows = [images]
        for _ in range(3):
            negatives = negative(train, self.augmentation, self.strength)
            rows.append(Row("negatives", negatives))
        codes = self.latents[: len(train)]
        generated = Row("G(z')", self.generator(codes))
        return {"negatives": rows, "generated": [images, generated]}
