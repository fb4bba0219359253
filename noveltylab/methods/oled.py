"""OLED: One-Class Learned Encoder-Decoder Network with Adversarial Context Masking.

Jewell et al., WACV 2022.

A reconstructor inpaints what a mask module hides, and the mask module hides what the reconstructor
inpaints worst. Trained on inliers alone, it fills an outlier's hidden parts with inlier structure:
the reconstruction error of the masked image tells them apart. Masks learned this way are meant to
be comparable between images, unlike a context auto-encoder's.

Where the paper and the authors' code disagree (or are silent), and what stands here:
- layers are the authors' tables; they have batch norm in the encoder and in one block of the mask
  generator, the paper in every block (section 3.3; `norm=all`, `mask_norm=all`); the last
  activation is a clip in the paper and a LeakyReLU in the code, here a clip for scores and nothing
  in the losses, where a clip has no gradient (`out_act`);
- Eq. 2 as the code has it, with eps = 1e-12 on both sides; its gradient eps / (r + eps)^2 reaches
  the mask generator from near-ties alone, and a mask generator whose ReLU died multiplies the image
  by 0.5 instead of masking it. `mask_soft_share`, `mask_count` and `mask_gradient` show it;
  `mask=half` is the same without a mask module;
- the code's quotient r / (r + eps) rounds that gradient to exactly 0 in float32 for r above 1.7e-5;
here it is not rounded;
- `mask_grad=ste` always masks: Eq. 1's mask, with the gradient of a sigmoid. It moves the mask
  towards the digit, which Eq. 2 hardly does, and hides more of it; that does not make s_mask better
  (experiments/learn/oled_mask.yaml);
- Eq. 6 is an L1 mean over ALL pixels (code), weight 12.5 / 30 / 50 on MNIST / CIFAR-10 / UCSD where
the paper says 50;
- the mask module moves in every third or fourth epoch and on CIFAR-10 against L_mask alone (code;
  `recipe=paper`). An epoch of the code's MNIST has 5 iterations, so that it moves in 5 of every 15:
  `mm_turn=5`. The paper says nothing of turns;
- selection: lowest L_rec + L_mask on held-out inliers, or L_rec alone (`validation=rec`); the
  paper's labelled outliers are `select=outlier_val`, reported apart.

Choices that neither the paper nor the code names: training images are shuffled (the code takes them
in order), AUROC is exact (the code's has 10 to 2,000 thresholds), padding is 2 on each side (Keras
has 1 before and 2 after where the stride is 2), batch norm has torch's momentum and eps (Keras' are
0.99 and 1e-3), the crop of `random10` follows from the image when it is scored, the activation map
is compared with digits in [-1, 1] (the code feeds it 0 to 255), and both networks run in train mode
in every iteration: the batch-norm statistics of a frozen or resting mask generator follow the
images all the same.

Published AUROC, order s_rec / s_mask / s_cont / s_avg: MNIST 0.9772 / 0.9851 / 0.9650 / 0.9845,
context auto-encoder 0.9209 / 0.8936 / 0.6869 / 0.8768, CIFAR-10 0.6622 / 0.6711 / 0.6673 / 0.6683.
But the code trains MNIST on test images: with its draws replayed, 62 percent of the test inliers of
digits 1 to 9 are among that digit's training images, of 0 none. On digit 2 that was worth about
+0.012 of s_mask after 320 iterations (measured once, with the release's draws).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from noveltylab.methods.base import RECONSTRUCTION, Batch, Method, Row, detached
from noveltylab.nets.losses import squared_error
from noveltylab.nets.optimizers import adam

#: (channels, stride) of shrinking blocks, (channels, upsampling after the block) of growing ones.
Layers = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Architecture:
    """The authors' layers for one dataset.

    `base` are the channels of the map that the decoder starts from.
    """

    encoder: Layers
    base: int
    decoder: Layers
    mask_encoder: Layers
    mask_decoder: Layers

    @property
    def shrink(self) -> int:
        """How many times smaller than the image the bottleneck's map is."""
        return math.prod(stride for _, stride in self.encoder)


ARCHITECTURES = {
    "mnist": Architecture(
        encoder=((64, 2), (96, 2), (128, 1)),
        base=128,
        decoder=((128, 2), (96, 2), (64, 1)),
        mask_encoder=((32, 2), (48, 2)),
        mask_decoder=((48, 2), (32, 2)),
    ),
    "cifar10": Architecture(
        encoder=((128, 2), (256, 2), (512, 2), (768, 1)),
        base=128,
        decoder=((768, 2), (512, 2), (256, 2), (128, 1)),
        mask_encoder=((32, 2), (48, 2), (64, 2)),
        mask_decoder=((64, 2), (48, 2), (32, 2)),
    ),
    "ucsd": Architecture(
        encoder=((32, 2), (64, 1), (128, 1)),
        base=32,
        decoder=((256, 1), (128, 2), (64, 1)),
        mask_encoder=((32, 2), (48, 1)),
        mask_decoder=((48, 1), (32, 2)),
    ),
}
#: Segmentation AUROC from which on a mask is said to look for the digit; untrained ones have 0.45
#: to 0.70.
NEAR_CHANCE = 0.6
#: Side of the context auto-encoder's crop: 100 pixels where the threshold unit takes 99 of 784.
CROP = 10


def choose_architecture(image_shape: tuple[int, int, int]) -> str:
    """Colour whose sides are multiples of 8: cifar10; else multiples of 4: mnist (28, and grey 32).

    Even sides: ucsd.
    """
    channels, height, width = image_shape
    common = math.gcd(height, width)
    if channels > 1 and common % 8 == 0:
        return "cifar10"
    if common % 4 == 0:
        return "mnist"
    return "ucsd"


# Networks (sections 3.3 and 3.4.1). All convolutions are 5x5 and keep the size, up to their stride.


class UpsampledConv(nn.Conv2d):
    """Nearest 2x upsampling, then this 5x5 convolution, in about a third of the work.

    (B, C, H, W) -> (B, C', 2H, 2W).

    An output pixel sees 3x3 distinct input pixels only, so the taps that fall on one of them are
    added beforehand.
    """

    def forward(self, x: Tensor) -> Tensor:
        # (4 C', C, 3, 3), the four phases of each channel
        rows = fold(self.weight, 2, 1)
        weight = fold(rows, 4, 2).flatten(0, 2)
        bias = self.bias
        if bias is not None:
            bias = bias.repeat_interleave(4, dim=0)
        phases = F.conv2d(x, weight, bias, padding=1)
        return F.pixel_shuffle(phases, 2)


def fold(weight: Tensor, taps: int, phase: int) -> Tensor:
    """Adds up the five taps along the dimension `taps` to three.

    For even and for odd output pixels (`phase`).
    """
    w0, w1, w2, w3, w4 = weight.unbind(taps)
    even = (w0 + w1, w2 + w3, w4)
    odd = (w0, w1 + w2, w3 + w4)
    return torch.stack([torch.stack(even, taps), torch.stack(odd, taps)], phase)


def conv(width_in: int, width: int, stride: int = 1, up: int = 1) -> nn.Conv2d:
    """5x5 convolution of the image enlarged `up` times (1 or 2)."""
    layer = UpsampledConv if up == 2 else nn.Conv2d
    return layer(width_in, width, 5, stride, 2)


def blocks(
    width_in: int, layers: Layers, slope: float, norm: str, grows: bool = False
) -> list[nn.Module]:
    """Convolution, batch norm (in `all` blocks, the `second` or `no` block) and LeakyReLU.

    Upsampling is the next one's.
    """
    stack: list[nn.Module] = []
    up = 1
    for position, (width, step) in enumerate(layers):
        block = nn.Sequential()
        if grows:
            block.append(conv(width_in, width, up=up))
        else:
            block.append(conv(width_in, width, stride=step))
        if norm == "all" or (norm == "second" and position == 1):
            block.append(nn.BatchNorm2d(width))
        block.append(nn.LeakyReLU(slope))
        stack.append(block)
        width_in = width
        up = step
    return stack


def scaled(layers: Layers, width: float) -> Layers:
    """The layers with `width` times the channels, at least one."""
    return tuple((max(1, round(channels * width)), step) for channels, step in layers)


def mask_generator(channels: int, table: Architecture, width: float, norm: str) -> nn.Sequential:
    """MG: images (B, C, H, W) -> activation maps A (B, 1, H, W), at least 0."""
    shrinking = scaled(table.mask_encoder, width)
    growing = scaled(table.mask_decoder, width)
    smallest, _ = shrinking[-1]
    largest, up = growing[-1]
    decoder_norm = "all" if norm == "all" else "no"
    return nn.Sequential(
        *blocks(channels, shrinking, 0.3, norm),
        *blocks(smallest, growing, 0.3, decoder_norm, grows=True),
        conv(largest, 1, up=up),
        nn.ReLU(),
    )


def initialise(module: nn.Module, normal: bool) -> None:
    """Glorot weights, normal or uniform (UCSD), and biases 0 (authors' code)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        if normal:
            nn.init.xavier_normal_(module.weight)
        else:
            nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# Threshold unit (section 3.4.2) and the context auto-encoder's crops (section 4.6).


def threshold(activation: Tensor, t: float, eps: float, mask_grad: str, tau: float) -> Tensor:
    """Masks m (B, 1, H, W) of activation maps of that shape.

    0 at the top (100 - t) percent of each map, else about 1.

    `eps`: Eq. 2, r / (r + eps) with r = max(s - A, 0). `ste`: Eq. 1, with the gradient of
    sigmoid((s - A) / tau).
    """
    pixels = activation[0].numel()
    # the percentile's position in rising order, rounded down
    position = math.floor(t / 100 * (pixels - 1))
    highest = activation.flatten(1).topk(pixels - position).values
    s = highest[:, -1].view(-1, 1, 1, 1) + eps
    margin = s - activation
    if mask_grad == "ste":
        soft = torch.sigmoid(margin / tau)
        return (margin > 0).to(soft) + (soft - soft.detach())
    r = F.relu(margin)
    # Eq. 2 written as 1 - eps / (r + eps): the gradient of the quotient r / (r + eps) is the
    # difference of two nearly equal numbers, which float32 rounds to 0 or to noise for r above
    # 1e-5.
    return 1 - torch.full_like(r, eps) / (r + eps)


def crop_mask(place: Tensor, height: int, width: int) -> Tensor:
    """Masks (B, 1, H, W) with zeros in one square of CROP pixels.

    At place (B,) in 0 .. (H - CROP + 1) (W - CROP + 1) - 1.
    """
    places = width - CROP + 1
    top = (place // places).view(-1, 1, 1, 1)
    left = (place % places).view(-1, 1, 1, 1)
    rows = torch.arange(height, device=place.device).view(-1, 1)
    columns = torch.arange(width, device=place.device)
    inside_rows = (rows >= top) & (rows < top + CROP)
    inside_columns = (columns >= left) & (columns < left + CROP)
    return (~(inside_rows & inside_columns)).float()


# Losses (section 3.5; L_mask and L_rec, eqs. 5 and 7, are `squared_error`) and the segmentation
# measure (section 4.5).


def context_error(x: Tensor, x_hat_m: Tensor, masked: Tensor) -> Tensor:
    """L_cont, Eq. 6: mean over all pixels of |M x - M R(x_m)|.

    Images (B, C, H, W), masked M (B, 1, H, W) 0/1 -> (B,).
    """
    return (masked * (x - x_hat_m)).abs().flatten(1).mean(1)


def rank_auroc(values: Tensor, positive: Tensor) -> float:
    """AUROC of values (N,) for positive (N,) bool, exact with ties; NaN if there is one kind only."""
    _, level, count = torch.unique(values, return_inverse=True, return_counts=True)
    rank = (count.cumsum(0).double() - (count - 1) / 2)[level]  # a tie counts one half
    positives = float(positive.sum())
    pairs = positives * (len(values) - positives)
    if not pairs:
        return math.nan
    lowest = positives * (positives + 1) / 2
    return (float(rank[positive].sum()) - lowest) / pairs


class OLED(Method):
    """The reconstructor R and the mask module MM.

    R is `encoder` and `decoder`, MM `mask_generator` and then `threshold`.
    """

    capturable: ClassVar[bool] = True
    transductive: ClassVar[frozenset[str]] = frozenset({"s_avg"})

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        lr: PositiveFloat = 5e-4,
        beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        beta2: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        adam_eps: PositiveFloat = 1e-7,
        architecture: Literal["auto", "mnist", "cifar10", "ucsd"] = "auto",
        width: PositiveFloat = 1.0,
        latent_size: PositiveInt = 64,
        out_act: Literal["linear_clip", "leaky", "tanh"] = "linear_clip",
        norm: Literal["encoder", "all"] = "encoder",
        mask: Literal["learned", "frozen", "random10", "half", "none"] = "learned",
        t: Annotated[float, Field(gt=0, lt=100)] = 87.5,
        mask_grad: Literal["eps", "ste"] = "eps",
        mask_eps: PositiveFloat = 1e-12,
        mask_tau: PositiveFloat = 0.1,
        gamma: NonNegativeFloat = 12.5,
        lam: NonNegativeFloat = 1.0,
        mm_every: PositiveInt = 3,
        mm_turn: PositiveInt | None = None,
        mask_objective: Literal["mask", "mask_cont"] = "mask_cont",
        mask_norm: Literal["second", "all"] = "second",
        validation: Literal["rec_mask", "rec"] = "rec_mask",
        average: Literal["minmax", "zscore"] = "minmax",
    ) -> None:
        super().__init__(image_shape)
        channels, height, breadth = image_shape
        name: str = architecture
        if architecture == "auto":
            name = choose_architecture(image_shape)
        table = ARCHITECTURES[name]
        if height % table.shrink or breadth % table.shrink:
            raise ValueError(
                f"data.size={height}: method.architecture={name} takes a multiple of {table.shrink}"
            )
        shorter = min(height, breadth)
        if mask == "random10" and shorter < CROP:
            raise ValueError(
                f"method.mask=random10 needs data.size of at least {CROP}, not {shorter}"
            )
        self.gamma = gamma
        self.lam = lam
        self.mm_every = mm_every
        self.mask_objective = mask_objective
        self.mm_turn = mm_turn
        self.validation = validation
        self.lr = lr
        self.betas = (beta1, beta2)
        self.adam_eps = adam_eps
        self.architecture = name
        self.out_act = out_act
        self.mask = mask
        self.average = average
        self.t = t
        self.mask_grad = mask_grad
        self.mask_eps = mask_eps
        self.mask_tau = mask_tau

        # sizes
        side = (height // table.shrink, breadth // table.shrink)
        base = max(1, round(table.base * width))
        shrinking = scaled(table.encoder, width)
        growing = scaled(table.decoder, width)
        deepest, _ = shrinking[-1]
        last, up = growing[-1]
        # networks
        self.encoder = nn.Sequential(
            *blocks(channels, shrinking, 0.2, "all"),
            nn.Flatten(),
            nn.Linear(deepest * math.prod(side), latent_size),
        )
        decoder_norm = "all" if norm == "all" else "no"
        activations = {
            "linear_clip": nn.Identity(),
            "leaky": nn.LeakyReLU(0.2),
            "tanh": nn.Tanh(),
        }
        self.decoder = nn.Sequential(
            nn.Linear(latent_size, base * math.prod(side)),
            nn.Unflatten(1, (base, *side)),
            *blocks(base, growing, 0.2, decoder_norm, grows=True),
            conv(last, channels, up=up),
            activations[out_act],
        )
        self.mask_generator: nn.Sequential | None = None
        if mask in ("learned", "frozen"):
            self.mask_generator = mask_generator(channels, table, width, mask_norm)
        self.apply(partial(initialise, normal=name != "ucsd"))
        # Weighs the pixels of an image to a number that picks its crop, see `masks`.
        generator = torch.Generator().manual_seed(0)
        hashing = torch.randint(1, 2**31, (math.prod(image_shape),), generator=generator)
        self.register_buffer("hashing", hashing, persistent=False)
        self.hashing: Tensor

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        beta1, beta2 = self.betas
        optimizer = partial(adam, lr=self.lr, beta1=beta1, beta2=beta2, eps=self.adam_eps)
        optimizers = {"reconstructor": optimizer(self.encoder, self.decoder)}
        if self.mask_generator is not None and self.mask == "learned":
            optimizers["mask_module"] = optimizer(self.mask_generator)
        return optimizers

    # Adversarial training (section 3.5, Eq. 8).

    @property
    def phase(self) -> bool:
        """Whether the mask module moves.

        In every `mm_every`-th epoch, or turn of `mm_turn` iterations.
        """
        turn = self.current_epoch if self.mm_turn is None else self.iteration // self.mm_turn
        return self.mask == "learned" and turn % self.mm_every == 0

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One iteration: one forward of R(x), m, R(x_m).

        MM climbs and R descends, each with the other as it was.
        """
        x = batch.x
        adversarial = self.phase
        with torch.set_grad_enabled(adversarial):
            m = self.masks(x)
        # R takes m as given; MM gets its gradient at x_m
        x_m = (x * m).detach().requires_grad_(adversarial)
        x_hat = self.decoder(self.encoder(x))
        x_hat_m = x_hat
        if self.mask != "none":
            x_hat_m = self.decoder(self.encoder(x_m))
        # losses and measures
        masked = (m == 0).to(x)
        losses = {
            "rec": squared_error(x, x_hat).mean(),
            "mask": squared_error(x, x_hat_m).mean(),
            "cont": context_error(x, x_hat_m, masked).mean(),
        }
        measures: dict[str, Tensor] = {}
        if self.mask_generator is not None:
            is_soft = (m > 0.01) & (m < 0.99)
            measures["mask_soft_share"] = is_soft.float().mean()
            measures["mask_count"] = masked.flatten(1).sum(1).mean()
        # the steps
        if adversarial:
            measures["mask_gradient"] = self._update_mask_module(x, m, x_m, losses)
        loss = losses["mask"] + self.gamma * losses["cont"] + self.lam * losses["rec"]
        self.minimise(loss, "reconstructor")
        return detached(losses | measures)

    def masks(self, x: Tensor) -> Tensor:
        """Masks (B, 1, H, W) of x (B, C, H, W), 0 where a pixel is hidden.

        float32 under mixed precision.

        The crops of `random10` are random in training. In evaluation mode an image's own grey
        values pick its crop, as a hash does: scattered over the images, the same for an image
        whatever its batch.
        """
        if self.mask_generator is not None:
            with torch.autocast(x.device.type, enabled=False):  # 1e-12 is 0 in half precision
                activation = self.mask_generator(x)
                return threshold(activation, self.t, self.mask_eps, self.mask_grad, self.mask_tau)
        height, width = x.shape[2:]
        if self.mask != "random10":
            value = 0.5 if self.mask == "half" else 1.0
            return x.new_full((len(x), 1, height, width), value)
        places = (height - CROP + 1) * (width - CROP + 1)
        if self.training:
            place = torch.randint(places, (len(x),), device=x.device)
        else:
            grey = ((x + 1) * 127.5).round().long()
            place = (grey.flatten(1) * self.hashing).sum(1) % places
        return crop_mask(place, height, width)

    def _update_mask_module(
        self, x: Tensor, m: Tensor, x_m: Tensor, losses: dict[str, Tensor]
    ) -> Tensor:
        """MM maximises L_mask + gamma L_cont, or L_mask alone; R stays as it is.

        Returns the gradient's norm.
        """
        assert self.mask_generator is not None
        objective = losses["mask"]
        if self.mask_objective == "mask_cont":
            objective = objective + self.gamma * losses["cont"]
        # The gradient at x_m alone, R's weights get none. Of the sum over the values: means
        # underflow in half precision.
        (gradient,) = torch.autograd.grad(x.numel() * objective, x_m, retain_graph=True)
        loss = -(x * m * gradient).sum() / x.numel()
        self.minimise(loss, "mask_module")
        parameters = self.mask_generator.parameters()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    # Scores (section 3.6).

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("s_rec", "s_mask", "s_cont", "s_avg", "s_avg_val")

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """L_rec, L_mask and L_cont as sums over the values of an image, (B,) each."""
        m = self.masks(x)
        masked = (m == 0).to(x)
        x_hat = self.reconstruct(x)
        x_hat_m = self.reconstruct(x * m)
        values = x[0].numel()
        return {
            "s_rec": values * squared_error(x, x_hat),
            "s_mask": values * squared_error(x, x_hat_m),
            "s_cont": values * context_error(x, x_hat_m, masked),
        }

    def combine_scores(self, test: dict[str, Tensor], val: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean of the three scores on one scale.

        `s_avg` scaled over the test, `s_avg_val` over held-out inliers.

        Without held-out inliers there is no `s_avg_val`.
        """
        references = {"s_avg": test}
        if val and len(val["s_rec"]):
            references["s_avg_val"] = val
        return {name: self._average(test, reference) for name, reference in references.items()}

    def _average(self, scores: dict[str, Tensor], reference: dict[str, Tensor]) -> Tensor:
        """Mean of scores (N,) each, shifted and divided.

        So that the reference (M,) spans 0 to 1, or has deviation 1.
        """
        columns = []
        for name in ("s_rec", "s_mask", "s_cont"):
            column = reference[name]
            if self.average == "minmax":
                shift = column.min()
                scale = column.max() - shift
            else:
                shift = column.mean()
                scale = column.std(correction=0)
            divisor = torch.where(scale > 0, scale, 1)
            columns.append((scores[name] - shift) / divisor)
        return torch.stack(columns).mean(0)

    def validation_loss(self, x: Tensor) -> Tensor:
        """L_rec + L_mask of held-out inliers (B,) as scored, or L_rec alone (`validation=rec`)."""
        l_rec = squared_error(x, self.reconstruct(x))
        if self.validation == "rec":
            return l_rec
        x_m = x * self.masks(x)
        l_mask = squared_error(x, self.reconstruct(x_m))
        return l_rec + l_mask

    def reconstruct(self, x: Tensor) -> Tensor:
        """R(x), (B, C, H, W), clipped to [-1, 1] where `out_act` says so."""
        x_hat: Tensor = self.decoder(self.encoder(x))
        if self.out_act == "linear_clip":
            return x_hat.clamp(-1, 1)
        return x_hat

    def explain(self, x: Tensor) -> list[Row]:
        """The paper's figure 2 below x.

        The masked image, R of it (which s_mask compares with x), the activation map.
        """
        x_m = x * self.masks(x)
        rows = [
            Row("masked image", x_m),
            Row(RECONSTRUCTION, self.reconstruct(x_m)),
        ]
        if self.mask_generator is not None:
            activation = self.mask_generator(x)
            lowest = activation.amin((1, 2, 3), keepdim=True)
            highest = activation.amax((1, 2, 3), keepdim=True)
            scaled = (activation - lowest) / (highest - lowest).clamp_min(1e-12)
            rows.append(Row("activation map", scaled, unit=True))
        return rows

    def embed(self, x: Tensor) -> Tensor:
        """Latent codes (B, D)."""
        z: Tensor = self.encoder(x)
        return z

    @torch.no_grad()
    def extra_metrics(self, inliers: Tensor, outliers: Tensor) -> dict[str, float]:
        """Section 4.5: how well the activation map A tells digit pixels from background.

        Over all pixels of all images.

        Beside it the share of the digits' pixels that the masks hide; masks that know nothing hide
        (100 - t) percent. For grey images only; the background is the darkest value of all. In
        evaluation mode.
        """
        if self.mask_generator is None or self.image_shape[0] != 1:
            return {}
        background = torch.minimum(inliers.min(), outliers.min())
        metrics = {}
        for name, images in (("inliers", inliers), ("outliers", outliers)):
            parts = torch.split(images, 512)
            activation = torch.cat([self.mask_generator(part) for part in parts])
            digit = images > background
            auroc = rank_auroc(activation.flatten(), digit.flatten())
            if math.isnan(auroc):
                continue
            hidden = torch.cat([self.masks(part) for part in parts]) == 0
            metrics[f"segmentation_auroc_{name}"] = auroc
            metrics[f"hidden_share_{name}"] = float(hidden[digit].float().mean())
        return metrics

    def doubts(self, metrics: dict[str, float]) -> list[str]:
        """A warning where the activation map does not find the digits of the inliers."""
        segmentation = metrics.get("segmentation_auroc_inliers", 1.0)
        if segmentation >= NEAR_CHANCE:
            return []
        return [
            f"segmentation of inliers: AUROC {segmentation:.3f} is near chance or below "
            "(0.5, table 5 has 0.850): the mask does not look for the digit; "
            "s_mask may owe nothing to what it hides"
        ]
