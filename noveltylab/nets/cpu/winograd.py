"""Strided convolutions of kernels 4 and 5 by Winograd's algorithm.

Lavin and Gray, CVPR 2016; in float32, for training on CPUs.

A convolution of stride 2 is a sum of four of stride 1, one for each phase (even or odd rows and
columns) of its input, with 2 x 2 or 3 x 3 taps. A tile of 4 x 4 outputs then takes 4 n n products
for a pair of channels (n = 5 or 6: 100 or 144), where the definition takes 256 or 400. Those of one
of the n n positions, in all tiles and channels, are one matrix product. The gradients at input and
weight are the adjoints of the same three transforms, as is the transposed convolution. Rounding
differs from the definition's by less than 1e-5 of the largest value
(tests/nets/cpu/test_winograd.py). noveltylab/nets/cpu/layers.py says when it is used.
"""

import math
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from noveltylab.nets.cpu.conv import empty_maps

#: Outputs in a row of a tile.
TILE = 4
#: Even and odd rows and columns.
PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
#: Taps in a row of a phase -> A^T, G and B^T of F(4, taps), for the points 0, 1, -1, 2, (-2,) and
#: infinity
MATRICES = {
    2: (
        ((1, 1, 1, 1, 0), (0, 1, -1, 2, 0), (0, 1, 1, 4, 0), (0, 1, -1, 8, 1)),
        ((1 / 2, 0), (-1 / 2, -1 / 2), (-1 / 6, 1 / 6), (1 / 6, 1 / 3), (0, 1)),
        (
            (2, -1, -2, 1, 0),
            (0, -2, -1, 1, 0),
            (0, 2, -3, 1, 0),
            (0, -1, 0, 1, 0),
            (0, 2, -1, -2, 1),
        ),
    ),
    3: (
        ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
        (
            (1 / 4, 0, 0),
            (-1 / 6, -1 / 6, -1 / 6),
            (-1 / 6, 1 / 6, -1 / 6),
            (1 / 24, 1 / 12, 1 / 6),
            (1 / 24, -1 / 12, 1 / 6),
            (0, 0, 1),
        ),
        (
            (4, 0, -5, 0, 1, 0),
            (0, -4, -4, 1, 1, 0),
            (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0),
            (0, 2, -1, -2, 1, 0),
            (0, 4, 0, -5, 0, 1),
        ),
    ),
}


def halves(kernel: int, padding: int, size: Sequence[int]) -> bool:
    """Whether a convolution of stride 2 halves maps of that size."""
    for side in size:
        outputs = (side + 2 * padding - kernel) // 2 + 1
        if side % 2 or outputs != side // 2:
            return False
    return True


def fits(kernel: int, padding: int, size: Sequence[int]) -> bool:
    """Whether it does so into whole tiles, by a kernel worth it (3 x 3 is not)."""
    whole_tiles = all(side % (2 * TILE) == 0 for side in size)
    return kernel in (4, 5) and whole_tiles and halves(kernel, padding, size)


def tiles(batch: int, size: Sequence[int]) -> int:
    """How many there are in a batch of maps of that size."""
    down = size[0] // 2 // TILE
    across = size[1] // 2 // TILE
    return batch * down * across


@cache
def matrices(taps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices A^T (4, n), G (n, taps) and B^T (n, n), for n = taps + 3.

    Outputs are A^T((G weight) * (B^T inputs)), row by row.
    """
    outputs, weights, inputs = MATRICES[taps]
    return _matrix(outputs, dtype), _matrix(weights, dtype), _matrix(inputs, dtype)


def _matrix(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).to(dtype)


class _Scratch(threading.local):
    """Memory of this thread that every layer writes over.

    Fresh pages would cost as much as the transforms.
    """

    def __init__(self) -> None:
        self.flat: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, slot: str, like: Tensor, *shape: int) -> Tensor:
        """Uninitialised, contiguous, of that shape."""
        size = math.prod(shape)
        flat = self.flat.get((slot, like.dtype))
        if flat is None or flat.numel() < size:
            flat = self.flat[slot, like.dtype] = torch.empty(size, dtype=like.dtype)
        return flat[:size].view(shape)


_scratch = _Scratch()


def transform(matrix: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """matrix (a, b) along both leading axes of x (b, b, N) -> out (a, a, N)."""
    a, b = matrix.shape
    # rows, then columns
    half = _scratch.take("half", x, b, a, x.shape[2])
    torch.bmm(matrix.expand(b, a, b), x.transpose(0, 1), out=half)
    return torch.bmm(matrix.expand(a, a, b), half.transpose(0, 1), out=out)


def product(first: Tensor, second: Tensor) -> Tensor:
    """first @ second, in memory that the next product writes over."""
    shape = (len(first), first.shape[1], second.shape[2])
    memory = _scratch.take("product", first, *shape)
    return torch.bmm(first, second, out=memory)


class Geometry:
    """Sizes and transforms of a convolution that halves the sides of maps.

    Maps are (batch, channels, height, width), channels last in memory, all sides of tiles whole.
    What is returned has memory of its own.
    """

    def __init__(self, shape: torch.Size, kernel: int, padding: int) -> None:
        self.batch, self.channels, self.height, self.width = shape
        self.kernel = kernel
        self.padding = padding
        self.taps = (kernel + 1) // 2
        self.side = TILE + self.taps - 1
        self.down = self.height // 2 // TILE
        self.across = self.width // 2 // TILE
        self.tiles = tiles(self.batch, shape[2:])

    # Each of these and the one named `..._adjoint` are transposes of each other, as matrices.

    def inputs(self, x: Tensor) -> Tensor:
        """Maps x (B, C, H, W) -> B^T of every tile's phases (n n, tiles, 4 C)."""
        n = self.side
        batch = self.batch
        channels = self.channels
        overlap = self.taps - 1
        rows = 2 * (TILE * self.down + overlap)
        columns = 2 * (TILE * self.across + overlap)
        # maps with a border of zeros
        edge = self.padding
        bottom = edge + self.height
        right = edge + self.width
        padded = _scratch.take("padded", x, batch, rows, columns, channels)
        for border in (
            padded[:, :edge],
            padded[:, bottom:],
            padded[:, :, :edge],
            padded[:, :, right:],
        ):
            border.zero_()
        padded[:, edge:bottom, edge:right] = x.permute(0, 2, 3, 1)
        # overlapping tiles of each phase as a view, then one copy
        b, h, w, _ = padded.stride()
        strides = (2 * h, 2 * w, b, 2 * TILE * h, 2 * TILE * w, h, 1)
        shape = (n, n, batch, self.down, self.across, 2, 2 * channels)
        windows = _scratch.take("windows", x, *shape)
        windows.copy_(padded.as_strided(shape, strides, padded.storage_offset()))
        # the transform, a matrix product along both sides of a tile
        transformed = x.new_empty(n, n, windows[0, 0].numel())
        _, _, to_inputs = matrices(self.taps, x.dtype)
        transform(to_inputs, windows.view(n, n, -1), transformed)
        return transformed.view(n * n, self.tiles, 4 * channels)

    def inputs_adjoint(self, transformed: Tensor) -> Tensor:
        """(n n, tiles, 4 C) -> maps (B, C, H, W)."""
        n = self.side
        batch = self.batch
        channels = self.channels
        down = self.down
        across = self.across
        shape = (n, n, batch, down, across, 2, 2 * channels)
        windows = _scratch.take("windows", transformed, *shape)
        _, _, to_inputs = matrices(self.taps, transformed.dtype)
        transform(to_inputs.T, transformed.view(n, n, -1), windows.view(n, n, -1))
        # Tiles overlap by n - 4 rows and columns: those are added to the next tile's first ones.
        shape = (batch, down + 1, TILE, 2, across + 1, TILE, 2 * channels)
        padded = _scratch.take("padded", transformed, *shape)
        padded[:, down].zero_()
        padded[:, :, :, :, across].zero_()
        parts = windows.permute(2, 3, 0, 5, 4, 1, 6)
        overlap = n - TILE
        padded[:, :down, :, :, :across] = parts[:, :, :TILE, :, :, :TILE]
        padded[:, 1:, :overlap, :, :across] += parts[:, :, TILE:, :, :, :TILE]
        padded[:, :down, :, :, 1:, :overlap] += parts[:, :, :TILE, :, :, TILE:]
        padded[:, 1:, :overlap, :, 1:, :overlap] += parts[:, :, TILE:, :, :, TILE:]
        # without the border
        maps = padded.view(batch, 2 * TILE * (down + 1), 2 * TILE * (across + 1), channels)
        edge = self.padding
        inner = maps[:, edge : edge + self.height, edge : edge + self.width]
        return inner.permute(0, 3, 1, 2).clone(memory_format=torch.channels_last)

    def weights(self, weight: Tensor) -> Tensor:
        """(O, C, k, k) -> G of its phases (n n, O, 4 C)."""
        n = self.side
        taps = self.taps
        phases = _scratch.take("windows", weight, taps, taps, len(weight), 2, 2, self.channels)
        # an odd kernel's second phase has a tap less
        phases.zero_()
        for row, column in PHASES:
            part = weight[:, :, row::2, column::2].permute(2, 3, 0, 1)
            phases[: len(part), : part.shape[1], :, row, column] = part
        transformed = weight.new_empty(n, n, phases[0, 0].numel())
        _, to_weights, _ = matrices(taps, weight.dtype)
        transform(to_weights, phases.view(taps, taps, -1), transformed)
        return transformed.view(n * n, len(weight), 4 * self.channels)

    def weights_adjoint(self, transformed: Tensor) -> Tensor:
        """(n n, O, 4 C) -> (O, C, k, k)."""
        n = self.side
        taps = self.taps
        outputs = transformed.shape[1]
        phases = _scratch.take("windows", transformed, taps, taps, outputs, 2, 2, self.channels)
        _, to_weights, _ = matrices(taps, transformed.dtype)
        transform(to_weights.T, transformed.view(n, n, -1), phases.view(taps, taps, -1))
        weight = empty_maps(transformed, outputs, self.channels, (self.kernel, self.kernel))
        for row, column in PHASES:
            part = weight[:, :, row::2, column::2].permute(2, 3, 0, 1)
            part.copy_(phases[: len(part), : part.shape[1], :, row, column])
        return weight

    def outputs(self, transformed: Tensor) -> Tensor:
        """(n n, tiles, O) -> A^T of it, put together to maps (B, O, H/2, W/2)."""
        n = self.side
        outputs = transformed.shape[2]
        parts = _scratch.take("windows", transformed, TILE, TILE, self.tiles * outputs)
        to_outputs, _, _ = matrices(self.taps, transformed.dtype)
        transform(to_outputs, transformed.view(n, n, -1), parts)
        parts = parts.view(TILE, TILE, self.batch, self.down, self.across, outputs)
        # tiles beside and below each other
        maps = empty_maps(transformed, self.batch, outputs, (self.height // 2, self.width // 2))
        shape = (self.batch, self.down, TILE, self.across, TILE, outputs)
        maps.permute(0, 2, 3, 1).view(shape).copy_(parts.permute(2, 3, 0, 4, 1, 5))
        return maps

    def outputs_adjoint(self, maps: Tensor) -> Tensor:
        """(B, O, H/2, W/2) -> (n n, tiles, O)."""
        n = self.side
        outputs = maps.shape[1]
        shape = (self.batch, self.down, TILE, self.across, TILE, outputs)
        by_tiles = maps.permute(0, 2, 3, 1).reshape(shape).permute(2, 4, 0, 1, 3, 5)
        parts = _scratch.take("windows", maps, *by_tiles.shape)
        parts.copy_(by_tiles)
        transformed = maps.new_empty(n, n, self.tiles * outputs)
        to_outputs, _, _ = matrices(self.taps, maps.dtype)
        transform(to_outputs.T, parts.view(TILE, TILE, -1), transformed)
        return transformed.view(n * n, self.tiles, outputs)

    # The layer and its two gradients, between what is transformed already.

    def convolve(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """-> (B, O, H/2, W/2); also the transposed layer's gradient at its input."""
        return self.outputs(product(inputs, weights.transpose(1, 2)))

    def transpose(self, outputs: Tensor, weights: Tensor) -> Tensor:
        """-> (B, C, H, W); also the layer's gradient at its input."""
        return self.inputs_adjoint(product(outputs, weights))

    def weight_gradient(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """-> (O, C, k, k), of the one as of the other."""
        return self.weights_adjoint(product(outputs.transpose(1, 2), inputs))


def keep(ctx: Any, geometry: Geometry, for_weight: Tensor, for_x: Tensor) -> None:
    """What the gradients at the weight and at x are made from, where they are wanted."""
    ctx.geometry = geometry
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(for_weight if needs_weight else None, for_x if needs_x else None)


class Convolution(torch.autograd.Function):
    """The convolution of stride 2, by a padding that halves the sides.

    x (B, C, H, W), weight (O, C, k, k) -> (B, O, H/2, W/2).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        geometry = Geometry(x.shape, weight.shape[2], padding)
        inputs = geometry.inputs(x)
        weights = geometry.weights(weight)
        keep(ctx, geometry, inputs, weights)
        return geometry.convolve(inputs, weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        inputs, weights = ctx.saved_tensors
        geometry = ctx.geometry
        outputs = geometry.outputs_adjoint(gradient)
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = geometry.transpose(outputs, weights)
        if ctx.needs_input_grad[1]:
            for_weight = geometry.weight_gradient(outputs, inputs)
        return for_x, for_weight, None


class Transposed(torch.autograd.Function):
    """The transposed convolution of stride 2, by a padding that doubles the sides.

    x (B, I, h, w), weight (I, O, k, k) -> (B, O, 2h, 2w).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        batch, _, height, width = x.shape
        shape = torch.Size((batch, weight.shape[1], 2 * height, 2 * width))
        geometry = Geometry(shape, weight.shape[2], padding)
        outputs = geometry.outputs_adjoint(x)
        weights = geometry.weights(weight)
        keep(ctx, geometry, outputs, weights)
        return geometry.transpose(outputs, weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        outputs, weights = ctx.saved_tensors
        geometry = ctx.geometry
        inputs = geometry.inputs(gradient)
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = geometry.convolve(inputs, weights)
        if ctx.needs_input_grad[1]:
            for_weight = geometry.weight_gradient(outputs, inputs)
        return for_x, for_weight, None
