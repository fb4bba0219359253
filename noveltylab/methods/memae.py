"""MemAE: Memorizing Normality to Detect Anomaly: Memory-augmented Deep Autoencoder.

Gong et al., ICCV 2019.

The decoder never sees the code of an image, only a sparse mixture of memory items that resemble it.
The items are learned from inliers, so an outlier is rebuilt out of inlier parts, and badly.

Paper: cosine addressing by softmax, hard shrinkage, weights normalised to sum 1, entropy weight
0.0002, Adam at 1e-4, 100 items for MNIST and 500 for CIFAR-10, the layers of ARCHITECTURES. For
video 2000 items, stacks of 16 grey frames of 256 x 256 and the layers of VIDEO. What it leaves
open, and where the authors' code (video only: no code or split for images is released) differs:
- similarity: the code takes the inner product (`similarity=dot`), for which the paper's cosine is
the bounded form;
- threshold: 1/N to 3/N in the paper, 5/N in the code. Cosines of new items are near 0, so all
  weights start near 1/N and above that threshold the memory can close for ever: 1/N here. With the
  code's inner product and 5/N most places of a new network have no item at all;
- the reconstruction loss is the mean over the pixels (code); under the paper's sum the entropy
would weigh nothing;
- query: one for the whole code, or one for each place of its map; the paper allows both, says which
  for video alone (places) and shows whole digits decoded from single items: whole codes here;
- padding (half the kernel) and initial weights (the video code's) are not in the paper; the last
layer is not bounded;
- the score of a stack: the squared error is the paper's, the code takes the absolute one (`mae`).
Published AUROC: MNIST 0.9751, the mean under protocol=two_thirds; Ped2 0.941, each clip's frames
scaled by themselves.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from noveltylab.methods.base import Batch, Method
from noveltylab.nets.dcgan import initialise
from noveltylab.nets.losses import context_error, squared_error
from noveltylab.nets.optimizers import adam

#: (kernel, channels) of the encoder's convolutions, all of stride 2, at width 1 (section 4.1).
ARCHITECTURES = {
    "mnist": ((1, 16), (3, 32), (3, 64)),
    "cifar10": ((3, 64), (3, 128), (3, 128), (3, 256)),
}
#: (stride in time, channels) of the encoder's convolutions for video, of kernel 3 and stride 2 in
#: space, at width 1 (section 4.2).
VIDEO = ((1, 96), (2, 128), (2, 256), (2, 256))
#: The architecture that `auto` takes by the channels of an image; any other number are frames.
BY_CHANNELS = {1: "mnist", 3: "cifar10"}


# The memory (sections 3.3 and 3.4).


def address(z: Tensor, items: Tensor, similarity: str) -> Tensor:
    """Eqs. 4 and 5: softmax over the similarities of queries and items.

    Queries z (Q, D), items (N, D) -> weights (Q, N).
    """
    if similarity == "cosine":
        z = F.normalize(z, dim=1)
        items = F.normalize(items, dim=1)
    similarities: Tensor = z @ items.T
    return similarities.softmax(1)


def shrink(weights: Tensor, threshold: float) -> Tensor:
    """Eq. 7: weights (Q, N) up to the threshold become 0, the others stay.

    Then each row is divided by its sum.

    Written as the paper does, max(w - t, 0) w / (|w - t| + eps). A row that is 0 throughout stays
    so.
    """
    margin = weights - threshold
    shrunk = F.relu(margin) * weights / (margin.abs() + 1e-12)
    return F.normalize(shrunk, p=1, dim=1)


def entropy(weights: Tensor) -> Tensor:
    """Eq. 9: entropy of weights (Q, N) that sum to 1 -> (Q,) in [0, log N]."""
    # torch.special.entr has an infinite gradient at 0
    log_weights = (weights + 1e-12).log()
    return -(weights * log_weights).sum(1)


class Memory(nn.Module):
    """N items (N, D): queries (Q, D) -> mixtures of items (Q, D), eq. 3, and their weights (Q, N)."""

    def __init__(self, slots: int, width: int, shrinkage: float, similarity: str) -> None:
        super().__init__()
        bound = width**-0.5
        items = torch.empty(slots, width).uniform_(-bound, bound)
        self.items = nn.Parameter(items)
        self.threshold = shrinkage / slots
        self.similarity = similarity

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        # bfloat16 cannot tell weights near the threshold apart
        with torch.autocast(z.device.type, enabled=False):
            queries = z.to(self.items.dtype)
            weights = address(queries, self.items, self.similarity)
            if self.threshold:
                weights = shrink(weights, self.threshold)
            return weights @ self.items, weights


# Networks for images (section 4.1).


def encoder(channels: int, table: Sequence[tuple[int, int]]) -> nn.Sequential:
    """Images (B, C, H, W) -> codes (B, S, h, w), each layer halving the sides, rounded up."""
    layers: list[nn.Module] = []
    for kernel, width in table:
        layers += [
            nn.Conv2d(channels, width, kernel, 2, kernel // 2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers)


def decoder(channels: int, widths: Sequence[int], size: int) -> nn.Sequential:
    """Codes (B, S, h, w) -> images (B, C, H, H), unbounded.

    The widths are the encoder's, S the last of them.

    The sides are the encoder's in reverse; the channels S, ..., widths[1], C.
    """
    layers: list[nn.Module] = []
    before = widths[-1]
    for position, after in reversed(list(enumerate([channels, *widths[1:]]))):
        if layers:
            layers.append(nn.BatchNorm2d(before))
            layers.append(nn.ReLU())
        side = -(-size // 2**position)
        added = 1 - side % 2
        layers.append(nn.ConvTranspose2d(before, after, 3, 2, 1, output_padding=added))
        before = after
    return nn.Sequential(*layers)


# Networks for video (section 4.2).


def video_encoder(frames: int, table: Sequence[tuple[int, int]]) -> nn.Sequential:
    """Stacks of frames (B, T, H, W) -> codes (B, S, t, h, w), h = H / 16, and t = T / 8."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, frames))]
    before = 1
    for stride, width in table:
        layers += [
            nn.Conv3d(before, width, 3, (stride, 2, 2), 1),
            nn.BatchNorm3d(width),
            nn.LeakyReLU(0.2),
        ]
        before = width
    return nn.Sequential(*layers)


def video_decoder(table: Sequence[tuple[int, int]]) -> nn.Sequential:
    """Codes (B, S, t, h, w) -> stacks of frames (B, T, H, W), unbounded; the encoder's table."""
    layers: list[nn.Module] = []
    widths = [1, *[width for _, width in table]]
    for position in reversed(range(len(table))):
        stride, before = table[position]
        after = widths[position]
        added = (stride - 1, 1, 1)
        layers.append(nn.ConvTranspose3d(before, after, 3, (stride, 2, 2), 1, added))
        if position:
            layers += [nn.BatchNorm3d(after), nn.LeakyReLU(0.2)]
    layers.append(nn.Flatten(1, 2))
    return nn.Sequential(*layers)


class MemAE(Method):
    """Encoder, memory and decoder, trained together."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        lr: PositiveFloat = 1e-4,
        architecture: Literal["auto", "mnist", "cifar10", "video"] = "auto",
        width: PositiveFloat = 1.0,
        slots: PositiveInt = 100,
        query: Literal["image", "place"] = "image",
        similarity: Literal["cosine", "dot"] = "cosine",
        shrinkage: NonNegativeFloat = 1.0,
        w_entropy: NonNegativeFloat = 2e-4,
    ) -> None:
        super().__init__(image_shape)
        channels, size, breadth = image_shape
        name: str = architecture
        if architecture == "auto":
            name = BY_CHANNELS.get(channels, "video")
        if size != breadth or size < 8:
            raise ValueError(f"data.size={size}: MemAE takes square images of at least 8 pixels")
        if name == "video" and (channels % 8 or size % 16):
            raise ValueError(
                f"data.frames={channels} data.size={size}: MemAE for video takes stacks of a "
                "multiple of 8 frames, of sides of a multiple of 16 pixels"
            )
        full_table = VIDEO if name == "video" else ARCHITECTURES[name]
        table = [(number, max(1, round(width * out))) for number, out in full_table]
        if shrinkage >= slots:
            raise ValueError(
                f"method.shrinkage={shrinkage:g}: at {slots} items it must be below, or no weight is left"
            )
        self.lr = lr
        self.query = query
        self.w_entropy = w_entropy
        self.architecture = name
        widths = [out for _, out in table]
        query_size = widths[-1]
        if query == "image":
            side = -(-size // 2 ** len(table))
            query_size *= side**2
        if name == "video":
            self.encoder = video_encoder(channels, table)
            self.decoder = video_decoder(table)
            if query == "image":
                query_size *= channels // 8
        else:
            self.encoder = encoder(channels, table)
            self.decoder = decoder(channels, widths, size)
        self.memory = Memory(slots, query_size, shrinkage, similarity)
        self.apply(initialise)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"networks": adam(self, lr=self.lr)}

    # Training (section 3.5).

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of eq. 10.

        Losses `mse` and `entropy`; `used`, the mean number of items with a weight above 0.
        """
        x_hat, weights = self.remember(batch.x)
        # eq. 8, averaged over the pixels
        mse = squared_error(batch.x, x_hat).mean()
        spread = entropy(weights).mean()
        self.minimise(mse + self.w_entropy * spread, "networks")
        used = (weights > 0).sum(1).float().mean()
        return {"mse": mse.detach(), "entropy": spread.detach(), "used": used}

    def remember(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> reconstructions (B, C, H, W) and weights.

        Weights (B, N), or (B h w, N) of places, (B t h w, N) of those of video.
        """
        z = self.encoder(x)
        if self.query == "image":
            mixed, weights = self.memory(z.flatten(1))
            z_hat = mixed.view(z.shape)
        else:
            places = z.movedim(1, -1)
            mixed, weights = self.memory(places.flatten(0, -2))
            z_hat = mixed.view(places.shape).movedim(-1, 1)
        x_hat = self.decoder(z_hat).to(x.dtype)
        return x_hat, weights

    # The score (section 3.1): the reconstruction error.

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("mse", "mae") if self.architecture == "video" else ("mse",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """Errors between x (B, C, H, W) and what the memory gives, averaged over the pixels, (B,).

        `mse`, squared; of video also `mae`, absolute.
        """
        x_hat = self.reconstruct(x)
        scores = {"mse": squared_error(x, x_hat)}
        if self.architecture == "video":
            scores["mae"] = context_error(x, x_hat)
        return scores

    def validation_loss(self, x: Tensor) -> Tensor:
        return squared_error(x, self.reconstruct(x))

    def reconstruct(self, x: Tensor) -> Tensor:
        """(B, C, H, W), as decoded: the last layer is not bounded."""
        x_hat, _ = self.remember(x)
        return x_hat

    def embed(self, x: Tensor) -> Tensor:
        """The query z before the memory, (B, D), of places side by side."""
        z: Tensor = self.encoder(x)
        return z.flatten(1)
