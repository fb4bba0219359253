"""The one door to the fast CPU layers: torch's layers with the same parameters, computed faster.

Networks take `Conv2d`, `ConvTranspose2d` and `Dropout` from here and read like plain torch. Which
algorithm computes a layer is decided here alone, from its size, its number type and whether it
trains; inside `torchs_own()` all of them are torch's own, with the same values up to rounding.
On other devices, and where a graph is exported, they are torch's own at all times.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from noveltylab.nets.cpu import conv, winograd

#: Weights in a layer from which matrix products win; below, laying out the windows costs more than
#: it saves.
WORTHWHILE = {torch.float32: 256 * 128 * 5 * 5, torch.bfloat16: 128 * 64 * 4 * 4}
#: Weights in a layer from which Winograd's algorithm wins.
WINOGRAD_WORTHWHILE = {torch.float32: 128 * 64 * 4 * 4}
#: Tiles of a batch from which its transforms of the weights pay.
WINOGRAD_TILES = 64
#: Channels up to which a map counts as an image.
MAX_IMAGE_CHANNELS = 4
#: `Dropout` compares 16 random bits an element with its probability.
DROPOUT_STEPS = 65536

_is_open = True


@contextmanager
def torchs_own() -> Iterator[None]:
    """Shuts the door: inside, every layer of this module computes as torch's own layer does."""
    global _is_open
    before = _is_open
    _is_open = False
    try:
        yield
    finally:
        _is_open = before


def use_winograd(network: nn.Module, enabled: bool) -> None:
    """Lets all strided layers in a network train by Winograd's algorithm, or none."""
    for layer in network.modules():
        if isinstance(layer, (Conv2d, ConvTranspose2d)):
            layer.winograd = enabled


class Conv2d(nn.Conv2d):
    """torch's, square and undilated: maps (B, C, H, W) -> (B, C', H', W')."""

    winograd = False

    def forward(self, x: Tensor) -> Tensor:
        stride = self.stride[0]
        padding = int(self.padding[0])
        if not _is_fast(x) or stride != 2:
            return super().forward(x)
        image, weight = _cast(x, self.weight)
        # wide layers in training
        if _trains_by_winograd(self, image, weight, x.shape[2:], padding):
            maps = winograd.Convolution.apply(image, weight, padding)
            return _add_bias(self.bias, maps)
        # wide layers elsewhere
        if _pays_as_products(image, weight):
            maps = conv.Convolution.apply(image, weight, stride, padding)
            return _add_bias(self.bias, maps)
        # the first layer, where the gradient at the image is asked for
        halves = winograd.halves(weight.shape[2], padding, x.shape[2:])
        is_image = image.shape[1] <= MAX_IMAGE_CHANNELS
        if image.requires_grad and is_image and halves and padding <= 2:
            maps = conv.FromImage.apply(image, weight, padding)
            return _add_bias(self.bias, maps)
        return super().forward(x)


class ConvTranspose2d(nn.ConvTranspose2d):
    """torch's, square and undilated: maps (B, C, h, w) -> (B, C', H, W)."""

    winograd = False

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        stride = self.stride[0]
        padding = int(self.padding[0])
        if not _is_fast(x) or stride != 2:
            return super().forward(x, output_size)
        maps, weight = _cast(x, self.weight)
        added = weight.shape[2] - 2 * padding + self.output_padding[0]
        size = tuple((side - 1) * stride + added for side in x.shape[2:])
        doubles = size == (2 * x.shape[2], 2 * x.shape[3])
        # wide layers in training
        if doubles and _trains_by_winograd(self, maps, weight, size, padding):
            larger = winograd.Transposed.apply(maps, weight, padding)
            return _add_bias(self.bias, larger)
        # wide layers elsewhere
        if _pays_as_products(maps, weight):
            larger = conv.Transposed.apply(maps, weight, stride, padding, size)
            return _add_bias(self.bias, larger)
        # the last layer, which makes an image
        if weight.shape[1] <= MAX_IMAGE_CHANNELS and doubles and padding <= 2:
            bias = self.bias
            if bias is not None:
                bias = bias.to(maps.dtype)
            return conv.as_image(maps, weight, padding, bias)
        return super().forward(x, output_size)


class Dropout(nn.Dropout):
    """torch's, its probability in steps of 1/65536: 16 random bits an element, not a double each."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p or x.device.type != "cpu" or not _is_open:
            return super().forward(x)
        # one random 64-bit number for four elements
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        threshold = round(self.p * DROPOUT_STEPS) - DROPOUT_STEPS // 2
        stays = bits.view(torch.int16)[: x.numel()] >= threshold
        scale = torch.where(stays, x.new_full((), 1 / (1 - self.p)), x.new_zeros(()))
        if x.dim() != 4:
            return x * scale.view(x.shape)
        batch, channels, height, width = x.shape  # in the order of memory
        return x * scale.view(batch, height, width, channels).permute(0, 3, 1, 2)


# Which algorithm computes a layer.


def _is_fast(x: Tensor) -> bool:
    """Whether the door is open for x; not where a graph is made, for other machines."""
    return _is_open and x.device.type == "cpu" and not torch.compiler.is_compiling()


def _pays_as_products(x: Tensor, weight: Tensor) -> bool:
    """Whether a layer of those weights is faster as matrix products."""
    return weight.numel() >= WORTHWHILE.get(x.dtype, math.inf)


def _trains_by_winograd(
    layer: Conv2d | ConvTranspose2d, x: Tensor, weight: Tensor, size: Sequence[int], padding: int
) -> bool:
    """Whether a layer trains by Winograd's algorithm; scores never come from it.

    Args:
        layer: Of stride 2.
        x: Its maps, of which only type and number count.
        weight: Its weights, as computed with.
        size: Sides of the layer's larger maps.
        padding: Of the layer.
    """
    if not (layer.training and torch.is_grad_enabled() and layer.winograd):
        return False
    if weight.numel() < WINOGRAD_WORTHWHILE.get(x.dtype, math.inf):
        return False
    if not winograd.fits(weight.shape[2], padding, size):
        return False
    return winograd.tiles(len(x), size) >= WINOGRAD_TILES


def _cast(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """As autocast does for torch's own convolutions."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        return x.to(dtype), weight.to(dtype)
    return x, weight


def _add_bias(bias: Tensor | None, maps: Tensor) -> Tensor:
    if bias is None:
        return maps
    return maps + bias.to(maps.dtype)[:, None, None]
