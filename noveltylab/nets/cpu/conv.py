"""Strided convolutions and dropout for CPUs: torch's layers with the same parameters and values, in
less time.

oneDNN's kernels for a strided convolution of a small map reach a fraction of what the matrix
product of the same machine does, most of all in its gradients and in bfloat16 (benchmarks/README.md
has the measurements). Between many channels the windows of the map are therefore laid out as rows
of a matrix. The transposed convolution, which is also the gradient at the input, is one product for
each of the stride x stride phases of its output, so that nothing has to be added up afterwards.
Towards an image of few channels the phases are channels of one convolution of stride 1. In training
and in float32, where there are enough windows to pay for it, layers of many channels go through
Winograd's algorithm (nets/winograd.py). On other devices these layers are torch's own.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noveltylab.nets.cpu import winograd

#: Weights in a layer from which matrix products win; below, laying out the windows costs more than
#: it saves.
WORTHWHILE = {torch.float32: 256 * 128 * 5 * 5, torch.bfloat16: 128 * 64 * 4 * 4}
#: The same for Winograd's algorithm, and the tiles of a batch from which its transforms of the
#: weights pay.
WINOGRAD_WORTHWHILE, WINOGRAD_TILES = {torch.float32: 128 * 64 * 4 * 4}, 64
#: Channels up to which a map counts as an image.
IMAGE = 4


def windows(
    x: Tensor, top: int, left: int, kernel: tuple[int, int], stride: int, size: tuple[int, int]
) -> Tensor:
    """Rows of size[0] x size[1] windows of maps x (B, H, W, C), the first at (top, left), zeros
    outside.

    -> (B size[0] size[1], kernel[0] kernel[1] C)
    """
    batch, height, width, channels = x.shape
    bottom = top + (size[0] - 1) * stride + kernel[0] - height
    right = left + (size[1] - 1) * stride + kernel[1] - width
    # negative amounts cut off what no window sees
    x = F.pad(x, (0, 0, -left, right, -top, bottom)).contiguous()
    b, h, w, c = x.stride()
    laid = x.as_strided(
        (batch, *size, *kernel, channels), (b, h * stride, w * stride, h, w, c), x.storage_offset()
    )
    return laid.reshape(batch * size[0] * size[1], -1)


def as_rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B H W, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_maps(rows: Tensor, batch: int, size: tuple[int, int]) -> Tensor:
    """(B H W, C) -> (B, C, H, W), channels last in memory."""
    return rows.view(batch, *size, -1).permute(0, 3, 1, 2)


def spread(x: Tensor, weight: Tensor, stride: int, padding: int, size: tuple[int, int]) -> Tensor:
    """Transposed convolution: maps x (B, I, h, w), weight (I, O, k, k) -> (B, O, *size), channels
    last in memory.
    """
    (inputs, outputs, side, _), (height, width) = weight.shape, size
    out = x.new_empty(len(x), height, width, outputs)
    taps = weight.permute(2, 3, 0, 1).contiguous()
    # out[stride i + phase] adds weight[tap] x[i + (phase + padding - tap) / stride] over the taps
    # that divide. Windows along a row only, whole rows in front: then those of a tap further down
    # are a slice, not another copy.
    low, high = -((side - 1 - padding) // stride), (stride - 1 + padding) // stride
    rows, columns = -(-height // stride), -(-width // stride)
    x = F.pad(
        x.permute(2, 0, 3, 1),
        (0, 0, -low, columns + high - x.shape[3], 0, 0, -low, rows + high - x.shape[2]),
    )
    x = x.contiguous()
    a, b, w, c = x.stride()
    laid = x.as_strided(
        (len(x), x.shape[1], columns, high - low + 1, inputs), (a, b, w, w, c), x.storage_offset()
    )
    laid = laid.reshape(len(x), -1, (high - low + 1) * inputs)
    for row in range(stride):
        for column in range(stride):
            across = range((column + padding) % stride, side, stride)
            first = (column + padding - across[-1]) // stride - low
            part = laid[..., first * inputs : (first + len(across)) * inputs]
            found = None
            for tap in range((row + padding) % stride, side, stride):
                down = (row + padding - tap) // stride - low
                matrix = taps[tap, across.start :: stride].flip(0).view(-1, outputs)
                seen = part[down : down + rows].flatten(0, 1)
                found = seen @ matrix if found is None else found.addmm_(seen, matrix)
            phase = out[:, row::stride, column::stride]
            assert found is not None
            phase.copy_(
                found.view(rows, -1, columns, outputs).transpose(0, 1)[
                    :, : phase.shape[1], : phase.shape[2]
                ]
            )
    return out.permute(0, 3, 1, 2)


def as_image(x: Tensor, weight: Tensor, padding: int, bias: Tensor | None = None) -> Tensor:
    """Transposed convolution of stride 2 that doubles the sides: x (B, I, h, w), weight (I, O, k,
    k) -> (B, O, 2h, 2w).
    """
    inputs, outputs, side, _ = weight.shape
    # out[2i + phase] adds weight[phase + padding - 2d] x[i + d] over d = -1, 0, 1
    ends = (2 - padding, padding + 4 - side)
    taps = F.pad(weight, (*ends, *ends)).view(inputs, outputs, 3, 2, 3, 2).flip(2, 4)
    taps = taps.permute(1, 3, 5, 0, 2, 4).reshape(4 * outputs, inputs, 3, 3)
    return F.pixel_shuffle(
        F.conv2d(x, taps, None if bias is None else bias.repeat_interleave(4), padding=1), 2
    )


class _FromImage(torch.autograd.Function):
    """A convolution of an image of even sides, stride 2, whose gradient at the image is `as_image`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, None, 2, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, weight), padding = ctx.saved_tensors, ctx.padding
        for_x = as_image(gradient, weight, padding) if ctx.needs_input_grad[0] else None
        for_weight = None
        if ctx.needs_input_grad[1]:
            for_weight = torch.ops.aten.convolution_backward(
                gradient,
                x,
                weight,
                None,
                [2, 2],
                [padding] * 2,
                [1, 1],
                False,
                [0, 0],
                1,
                [False, True, False],
            )[1]
        return for_x, for_weight, None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        kernel, height, width = (
            weight.shape[2],
            *((side + 2 * padding - weight.shape[2]) // stride + 1 for side in x.shape[2:]),
        )
        size = (height, width)
        rows = windows(x.permute(0, 2, 3, 1), -padding, -padding, (kernel, kernel), stride, size)
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, weight)
        ctx.geometry = (stride, padding, x.shape[2:])
        return as_maps(rows @ as_rows(weight).view(len(weight), -1).T, len(x), size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (rows, weight), (stride, padding, size) = ctx.saved_tensors, ctx.geometry
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = spread(gradient, weight, stride, padding, size)
        if ctx.needs_input_grad[1]:
            product = as_rows(gradient).T @ rows
            for_weight = product.view(len(weight), *weight.shape[2:], -1).permute(0, 3, 1, 2)
        return for_x, for_weight, None, None


class _Transposed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, size: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.geometry = (stride, padding, x.shape[2:])
        return spread(x, weight, stride, padding, size)

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (x, weight), (stride, padding, size) = ctx.saved_tensors, ctx.geometry
        rows = windows(
            gradient.permute(0, 2, 3, 1), -padding, -padding, weight.shape[2:], stride, size
        )
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = as_maps(rows @ as_rows(weight).view(len(weight), -1).T, len(gradient), size)
        if ctx.needs_input_grad[1]:
            product = as_rows(x).T @ rows
            for_weight = product.view(len(weight), *weight.shape[2:], -1).permute(0, 3, 1, 2)
        return for_x, for_weight, None, None, None


def _cast(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """As autocast does for torch's own convolutions."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        return x.to(dtype), weight.to(dtype)
    return x, weight


def _ours(x: Tensor) -> bool:
    """Not where a graph is made, for other machines: torch's own layers go into that."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _as_products(x: Tensor, weight: Tensor) -> bool:
    return weight.numel() >= WORTHWHILE.get(x.dtype, math.inf)


def _as_winograd(
    layer: "Conv2d | ConvTranspose2d", x: Tensor, weight: Tensor, size: Sequence[int], padding: int
) -> bool:
    """Whether a layer whose larger maps have that size trains by Winograd's algorithm; scores never
    come from it.
    """
    if not (layer.training and torch.is_grad_enabled() and layer.winograd):
        return False
    if weight.numel() < WINOGRAD_WORTHWHILE.get(x.dtype, math.inf) or not winograd.fits(
        weight.shape[2], padding, size
    ):
        return False
    return winograd.tiles(len(x), size) >= WINOGRAD_TILES


def use_winograd(network: nn.Module, wanted: bool) -> None:
    """Lets all strided layers in a network train by Winograd's algorithm, or none."""
    for layer in network.modules():
        if isinstance(layer, (Conv2d, ConvTranspose2d)):
            layer.winograd = wanted


def _with(bias: Tensor | None, x: Tensor) -> Tensor:
    return x if bias is None else x + bias.to(x.dtype)[:, None, None]


class Conv2d(nn.Conv2d):
    """torch's, square and undilated: maps (B, C, H, W) -> (B, C', H', W')."""

    winograd = False

    def forward(self, x: Tensor) -> Tensor:
        (stride, _), (padding, _) = self.stride, map(int, self.padding)
        if _ours(x) and stride == 2:
            image, weight = _cast(x, self.weight)
            if _as_winograd(self, image, weight, x.shape[2:], padding):
                return _with(self.bias, winograd.Convolution.apply(image, weight, padding))
            if _as_products(image, weight):
                return _with(self.bias, _Convolution.apply(image, weight, stride, padding))
            even = winograd.halves(weight.shape[2], padding, x.shape[2:])
            if image.requires_grad and image.shape[1] <= IMAGE and even and padding <= 2:
                return _with(self.bias, _FromImage.apply(image, weight, padding))
        return super().forward(x)


class ConvTranspose2d(nn.ConvTranspose2d):
    """torch's, square and undilated: maps (B, C, h, w) -> (B, C', H, W)."""

    winograd = False

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        (stride, _), (padding, _), (more, _) = (
            self.stride,
            map(int, self.padding),
            self.output_padding,
        )
        if _ours(x) and stride == 2:
            maps, weight = _cast(x, self.weight)
            size = tuple(
                (side - 1) * stride - 2 * padding + weight.shape[2] + more for side in x.shape[2:]
            )
            doubles = size == (2 * x.shape[2], 2 * x.shape[3])
            if doubles and _as_winograd(self, maps, weight, size, padding):
                return _with(self.bias, winograd.Transposed.apply(maps, weight, padding))
            if _as_products(maps, weight):
                return _with(self.bias, _Transposed.apply(maps, weight, stride, padding, size))
            if weight.shape[1] <= IMAGE and doubles and padding <= 2:
                return as_image(
                    maps, weight, padding, None if self.bias is None else self.bias.to(maps.dtype)
                )
        return super().forward(x, output_size)


class Dropout(nn.Dropout):
    """torch's, its probability in steps of 1/65536: 16 random bits an element, where torch draws a
    double for each.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p or x.device.type != "cpu":
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = bits.view(torch.int16)[: x.numel()] >= round(self.p * 65536) - 32768
        scale = torch.where(kept, x.new_full((), 1 / (1 - self.p)), x.new_zeros(()))
        if x.dim() != 4:
            return x * scale.view(x.shape)
        batch, channels, height, width = x.shape  # in the order of memory
        return x * scale.view(batch, height, width, channels).permute(0, 3, 1, 2)
