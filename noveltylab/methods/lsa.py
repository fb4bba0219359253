"""LSA (Abati et al., Latent Space Autoregression for Novelty Detection, CVPR 2019).

An auto-encoder and a density of its code are trained together: each value of the code is predicted
from those before it. Rebuilding an image keeps what tells images apart, and the density keeps codes
where they are expected. An outlier is rebuilt badly, or has an unexpected code. It is the row AND of
the papers' tables.

PAPER (arXiv 1807.01653)
- L = |x - x_hat|^2 - lambda log q(z); the code z lies in [0, 1]^d by a sigmoid.
- q(z) = prod_i q(z_i | z_1 ... z_(i-1)), each factor a softmax over B bins of [0, 1], from masked
  fully connected layers; the first hides a value from itself.
- The score is the sum of both terms, each scaled by its least and largest value on held-out inliers:
  equations 9 and 10, as the comments of the authors' code number them.

CODE (the authors', aimagelab/novelty-detection)
- Layers of its models for MNIST and CIFAR-10: residual blocks of three convolutions with batch norm,
  codes of 64 values; four masked layers of 32 features a value, leaky ReLU; 100 bins.
- The bin is taken of the code without a gradient; the estimator's own input has one, so that the
  density reaches the encoder.
- Squared errors are summed over pixels on [0, 1], and the decoder's last layer is not bounded.
- A tenth of the training set is held out for the extremes. Probabilities are kept above 2.2e-16.
- Weights of the masks are set to zero at each pass; here they are multiplied by the mask.

CHOICE
- The extremes are those of the training inliers, not of held-out ones: what a score takes from the
  training set stays with its weights, and held-out inliers are left for thresholds.
- The network sees [-1, 1], the code's [0, 1]. Squared errors are counted on [0, 1], so that lambda
  weighs as in the code.
- Log-probabilities are those of the softmax itself, without a floor.
- Sides that are no multiple of 4 (MNIST) or 8 (CIFAR-10) are rounded up on the way, where the code
  takes others than its own no more. The first convolution of CIFAR-10's is padded by one pixel.
- `width` and `features` make networks narrower. Initial weights are torch's own.
- Adam at 1e-3. The released code has no training, so rate, batch and lambda there are not known;
  its loss has lambda = 1.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from noveltylab.methods.base import Batch, Method, detached
from noveltylab.nets.autoencoder import Side, halvings
from noveltylab.nets.losses import squared_error, wide
from noveltylab.nets.optimizers import adam

#: Images whose scores are computed at once for the extremes.
BATCH = 64
#: Channels of the maps at width 1, and of the dense layer: of grey images, and of colour.
ARCHITECTURES = {"mnist": ((32, 64), 64), "cifar10": ((32, 64, 128, 256), 256)}


# Residual blocks (code).


class Block(nn.Module):
    """Two convolutions beside a shorter way, each with batch norm; leaky ReLU after the sum."""

    def __init__(self, path: Sequence[nn.Module], shortcut: nn.Module) -> None:
        super().__init__()
        self.path = nn.Sequential(*path)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.path(x) + self.shortcut(x))


def second_half(width: int) -> list[nn.Module]:
    """What follows a block's first convolution."""
    return [
        nn.BatchNorm2d(width),
        nn.LeakyReLU(),
        nn.Conv2d(width, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
    ]


def same(width: int) -> Block:
    """Maps (B, width, H, W) -> the same shape."""
    first = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    return Block([first, *second_half(width)], nn.Identity())


def down(before: int, after: int) -> Block:
    """Maps (B, before, H, W) -> (B, after, H/2, W/2), the sides rounded up."""
    first = nn.Conv2d(before, after, 3, 2, 1, bias=False)
    beside = nn.Conv2d(before, after, 1, 2, bias=False)
    return Block([first, *second_half(after)], nn.Sequential(beside, nn.BatchNorm2d(after)))


def up(before: int, after: int, small: Side, large: Side) -> Block:
    """Maps (B, before, *small) -> (B, after, *large)."""
    added = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
    first = nn.ConvTranspose2d(before, after, 5, 2, 2, output_padding=added, bias=False)
    beside = nn.ConvTranspose2d(before, after, 1, 2, 0, output_padding=added, bias=False)
    return Block([first, *second_half(after)], nn.Sequential(beside, nn.BatchNorm2d(after)))


# The density of the code.


class MaskedLinear(nn.Linear):
    """Fully connected between features of values, each value from those before it.

    Features (B, d, before) -> (B, d, after). `own`: whether a value sees its own features (mask B)
    or only those of values before it (mask A).
    """

    def __init__(self, values: int, before: int, after: int, own: bool) -> None:
        super().__init__(values * before, values * after)
        self.shape = (values, after)
        order = torch.ones(values, values).tril(0 if own else -1)
        mask = order.repeat_interleave(after, 0).repeat_interleave(before, 1)
        self.register_buffer("mask", mask, persistent=False)
        self.mask: Tensor

    def forward(self, h: Tensor) -> Tensor:
        values, after = self.shape
        flat = F.linear(h.flatten(1), self.weight * self.mask, self.bias)
        return flat.view(-1, values, after)


def estimator(values: int, features: int, layers: int, bins: int) -> nn.Sequential:
    """Codes (B, d, 1) -> logits of the bins of each value, (B, d, bins)."""
    modules: list[nn.Module] = []
    before = 1
    for _ in range(layers):
        modules += [MaskedLinear(values, before, features, own=before != 1), nn.LeakyReLU()]
        before = features
    return nn.Sequential(*modules, MaskedLinear(values, before, bins, own=True))


def code_nll(z: Tensor, logits: Tensor) -> Tensor:
    """-log q(z) in nats, (B,): of codes z (B, d) in [0, 1] by logits (B, d, bins) of their bins."""
    bins = logits.shape[2]
    index = (z.detach() * bins).long().clamp(0, bins - 1)
    log_q = wide(logits).log_softmax(2)
    log_likelihoods = log_q.gather(2, index.unsqueeze(2)).squeeze(2)
    return -log_likelihoods.sum(1)


class LSA(Method):
    """Encoder, decoder and the autoregressive estimator of the code, trained together.

    `architecture`: layers; `width`: factor on their channels; `latent_size`: d; `features`: those
    of a value in a masked layer; `layers`: masked layers before the last; `bins`: B; `lam`: lambda.
    """

    not_exportable: ClassVar[str] = "its score jumps where rounding moves a code to another bin"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        lr: PositiveFloat = 1e-3,
        architecture: Literal["auto", "mnist", "cifar10"] = "auto",
        width: PositiveFloat = 1.0,
        latent_size: PositiveInt = 64,
        features: PositiveInt = 32,
        layers: PositiveInt = 4,
        bins: PositiveInt = 100,
        lam: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(image_shape)
        channels, height, breadth = image_shape
        name: str = architecture
        if architecture == "auto":
            name = "mnist" if channels == 1 else "cifar10"
        if features < 2:
            raise ValueError(f"method.features={features}: take two or more")
        self.lr = lr
        self.lam = lam
        table, dense = ARCHITECTURES[name]
        widths = [max(1, round(width * out)) for out in table]
        dense = max(1, round(width * dense))
        # grey: a map for each halving; colour: one before the first
        halved = [channels, *widths] if name == "mnist" else widths
        sides = halvings(height, breadth, len(halved) - 1)
        last_map = (widths[-1], *sides[-1])
        size = last_map[0] * last_map[1] * last_map[2]
        # encoder
        layers_down: list[nn.Module] = []
        if name == "cifar10":
            first = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
            layers_down += [first, nn.LeakyReLU(), same(widths[0])]
        layers_down += [down(before, after) for before, after in pairwise(halved)]
        self.encoder = nn.Sequential(
            *layers_down,
            nn.Flatten(),
            nn.Linear(size, dense),
            nn.BatchNorm1d(dense),
            nn.LeakyReLU(),
            nn.Linear(dense, latent_size),
            nn.Sigmoid(),
        )
        # decoder
        backwards = halved[::-1]
        if name == "mnist":
            backwards[-1] = max(1, widths[0] // 2)
        layers_up: list[nn.Module] = []
        steps = zip(pairwise(backwards), pairwise(sides[::-1]), strict=True)
        for (before, after), (small, large) in steps:
            layers_up.append(up(before, after, small, large))
        if name == "cifar10":
            layers_up.append(same(backwards[-1]))
        self.decoder = nn.Sequential(
            nn.Linear(latent_size, dense),
            nn.BatchNorm1d(dense),
            nn.LeakyReLU(),
            nn.Linear(dense, size),
            nn.BatchNorm1d(size),
            nn.LeakyReLU(),
            nn.Unflatten(1, last_map),
            *layers_up,
            nn.Conv2d(backwards[-1], channels, 1, bias=False),
        )
        self.estimator = estimator(latent_size, features, layers, bins)
        # least and largest reconstruction error and nll of training inliers
        self.register_buffer("extremes", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        self.extremes: Tensor

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"networks": adam(self, lr=self.lr)}

    # Training.

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The squared error of x (B, C, H, W), summed on the [0, 1] scale, and -log q(z); (B,) each."""
        z = self.encoder(x)
        x_hat = self.decoder(z)
        error = squared_error(wide(x), wide(x_hat), "sum") / 4
        return error, code_nll(z, self.estimator(z.unsqueeze(2)))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One Adam step on the sum. Losses `recon` and `nll`, as the scores."""
        recon, nll = (term.mean() for term in self.terms(batch.x))
        self.minimise(recon + self.lam * nll, "networks")
        return detached({"recon": recon, "nll": nll})

    def validation_loss(self, x: Tensor) -> Tensor:
        """The loss of held-out inliers, (B,)."""
        recon, nll = self.terms(x)
        return recon + self.lam * nll

    # The score (eqs. 9 and 10).

    def prepare_score(self, train: Tensor) -> None:
        """The extremes of both terms among the training inliers, under the weights of now."""
        parts = [torch.stack(self.terms(part)) for part in torch.split(train, BATCH)]
        columns = torch.cat(parts, 1)
        self.extremes = torch.stack([columns.amin(1), columns.amax(1)], 1)

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("novelty", "recon", "nll")

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`novelty`: eq. 10, the sum of both terms scaled by eq. 9; `recon` and `nll`; (B,) each."""
        recon, nll = self.terms(x)
        scaled = [
            (term - low) / (high - low).clamp_min(1e-12)
            for term, (low, high) in zip((recon, nll), self.extremes.unbind(), strict=True)
        ]
        return {"novelty": scaled[0] + scaled[1], "recon": recon, "nll": nll}

    def reconstruct(self, x: Tensor) -> Tensor:
        """(B, C, H, W), unbounded."""
        x_hat: Tensor = self.decoder(self.encoder(x))
        return x_hat

    def embed(self, x: Tensor) -> Tensor:
        """The code z, (B, d) in [0, 1]."""
        z: Tensor = self.encoder(x)
        return z
