"""Strided convolutions for CPUs as matrix products; noveltylab/nets/cpu/layers.py says when.

oneDNN's kernels for a strided convolution of a small map reach a fraction of what the matrix
product of the same machine does, most of all in its gradients and in bfloat16 (docs/notes/benchmarks.md
has the measurements). Between many channels the windows of the map are therefore laid out as rows
of a matrix. The transposed convolution, which is also the gradient at the input, is one product for
each of the stride x stride phases of its output, so that nothing has to be added up afterwards.
Towards an image of few channels the phases are channels of one convolution of stride 1.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def windows(
    x: Tensor, top: int, left: int, kernel: tuple[int, int], stride: int, size: tuple[int, int]
) -> Tensor:
    """Lays the windows of maps out as rows of a matrix; zeros outside the maps.

    Args:
        x: (B, H, W, C).
        top, left: Of the first window, negative outside.
        kernel: Sides of a window.
        stride: From one window to the next.
        size: Windows below and beside each other.

    Returns:
        (B size[0] size[1], kernel[0] kernel[1] C)
    """
    batch, height, width, channels = x.shape
    bottom = top + (size[0] - 1) * stride + kernel[0] - height
    right = left + (size[1] - 1) * stride + kernel[1] - width
    # negative amounts cut off what no window sees
    x = F.pad(x, (0, 0, -left, right, -top, bottom)).contiguous()
    # overlapping windows as a view, then one copy
    b, h, w, c = x.stride()
    shape = (batch, *size, *kernel, channels)
    strides = (b, h * stride, w * stride, h, w, c)
    view = x.as_strided(shape, strides, x.storage_offset())
    return view.reshape(batch * size[0] * size[1], -1)


def as_rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B H W, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_matrix(weight: Tensor) -> Tensor:
    """Weights (O, C, k, k) -> (O, k k C), in the order of a window."""
    return as_rows(weight).view(len(weight), -1)


def as_maps(rows: Tensor, batch: int, size: tuple[int, int]) -> Tensor:
    """(B H W, C) -> (B, C, H, W), channels last in memory."""
    return rows.view(batch, *size, -1).permute(0, 3, 1, 2)


def empty_maps(like: Tensor, batch: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, H, W) to write into, channels last in memory.

    What a `Function` returns must not be a view, or no activation could change it in place.
    """
    shape = (batch, channels, *size)
    layout = torch.channels_last
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def weight_gradient(small: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """Gradient of weights (O, C, k, k): small maps (B, O, h, w) times windows of the larger ones."""
    product = as_rows(small).T @ rows
    return product.view(len(weight), *weight.shape[2:], -1).permute(0, 3, 1, 2)


def spread(x: Tensor, weight: Tensor, stride: int, padding: int, size: tuple[int, int]) -> Tensor:
    """Transposed convolution of maps x (B, I, h, w) by weights (I, O, k, k) -> (B, O, *size).

    The result is channels last in memory.
    """
    inputs, outputs, side, _ = weight.shape
    height, width = size
    maps = empty_maps(x, len(x), outputs, size)
    out = maps.permute(0, 2, 3, 1)
    taps = weight.permute(2, 3, 0, 1).contiguous()
    # out[stride i + phase] adds weight[tap] x[i + (phase + padding - tap) / stride] over the taps
    # that divide: x from i + low to i + high
    low = -((side - 1 - padding) // stride)
    high = (stride - 1 + padding) // stride
    reach = high - low + 1
    rows = -(-height // stride)
    columns = -(-width // stride)
    # Windows along a row only, whole rows in front: then those of a tap further down are a slice,
    # not another copy.
    x = x.permute(2, 0, 3, 1)
    beside = (-low, columns + high - x.shape[2])
    below = (-low, rows + high - x.shape[0])
    x = F.pad(x, (0, 0, *beside, 0, 0, *below)).contiguous()
    a, b, w, c = x.stride()
    shape = (len(x), x.shape[1], columns, reach, inputs)
    laid_out = x.as_strided(shape, (a, b, w, w, c), x.storage_offset())
    laid_out = laid_out.reshape(len(x), -1, reach * inputs)
    # each phase of the output is the sum of one product for each tap down
    for row in range(stride):
        for column in range(stride):
            across = range((column + padding) % stride, side, stride)
            first = (column + padding - across[-1]) // stride - low
            window = laid_out[..., first * inputs : (first + len(across)) * inputs]
            total = None
            for tap in range((row + padding) % stride, side, stride):
                down = (row + padding - tap) // stride - low
                matrix = taps[tap, across.start :: stride].flip(0).view(-1, outputs)
                lines = window[down : down + rows].flatten(0, 1)
                if total is None:
                    total = lines @ matrix
                else:
                    total.addmm_(lines, matrix)
            assert total is not None
            phase = out[:, row::stride, column::stride]
            values = total.view(rows, -1, columns, outputs).transpose(0, 1)
            phase.copy_(values[:, : phase.shape[1], : phase.shape[2]])
    return maps


def as_image(x: Tensor, weight: Tensor, padding: int, bias: Tensor | None = None) -> Tensor:
    """Transposed convolution of stride 2 that doubles the sides, for few output channels.

    Maps x (B, I, h, w), weights (I, O, k, k) -> (B, O, 2h, 2w).
    """
    inputs, outputs, side, _ = weight.shape
    # out[2i + phase] adds weight[phase + padding - 2d] x[i + d] over d = -1, 0, 1
    ends = (2 - padding, padding + 4 - side)
    taps = F.pad(weight, (*ends, *ends)).view(inputs, outputs, 3, 2, 3, 2).flip(2, 4)
    taps = taps.permute(1, 3, 5, 0, 2, 4).reshape(4 * outputs, inputs, 3, 3)
    # the four phases are channels of one convolution
    if bias is not None:
        bias = bias.repeat_interleave(4, dim=0)
    phases = F.conv2d(x, taps, bias, padding=1)
    return F.pixel_shuffle(phases, 2)


class FromImage(torch.autograd.Function):
    """A convolution of an image of even sides, stride 2, whose gradient at the image is `as_image`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, None, 2, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        padding = ctx.padding
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = as_image(gradient, weight, padding)
        if ctx.needs_input_grad[1]:
            # torch's own gradient, of the weight alone
            layout = (None, [2, 2], [padding] * 2, [1, 1], False, [0, 0], 1)
            asked_for = [False, True, False]
            gradients = torch.ops.aten.convolution_backward(gradient, x, weight, *layout, asked_for)
            for_weight = gradients[1]
        return for_x, for_weight, None


class Convolution(torch.autograd.Function):
    """Maps x (B, C, H, W), weights (O, C, k, k) -> (B, O, h, w), as one matrix product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        kernel = weight.shape[2]
        height = (x.shape[2] + 2 * padding - kernel) // stride + 1
        width = (x.shape[3] + 2 * padding - kernel) // stride + 1
        size = (height, width)
        rows = windows(x.permute(0, 2, 3, 1), -padding, -padding, (kernel, kernel), stride, size)
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, weight)
        ctx.geometry = (stride, padding, x.shape[2:])
        maps = empty_maps(x, len(x), len(weight), size)
        torch.mm(rows, as_matrix(weight).T, out=maps.permute(0, 2, 3, 1).view(len(rows), -1))
        return maps

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        rows, weight = ctx.saved_tensors
        stride, padding, size = ctx.geometry
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = spread(gradient, weight, stride, padding, size)
        if ctx.needs_input_grad[1]:
            for_weight = weight_gradient(gradient, rows, weight)
        return for_x, for_weight, None, None


class Transposed(torch.autograd.Function):
    """Maps x (B, I, h, w), weights (I, O, k, k) -> (B, O, *size), a product for each phase."""

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
        x, weight = ctx.saved_tensors
        stride, padding, size = ctx.geometry
        maps = gradient.permute(0, 2, 3, 1)
        rows = windows(maps, -padding, -padding, weight.shape[2:], stride, size)
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = as_maps(rows @ as_matrix(weight).T, len(gradient), size)
        if ctx.needs_input_grad[1]:
            for_weight = weight_gradient(x, rows, weight)
        return for_x, for_weight, None, None, None
