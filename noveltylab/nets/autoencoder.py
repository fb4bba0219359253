"""A plain convolutional encoder and decoder.

5x5 convolutions of stride 2 with batch norm, a linear code.
"""

import math
from collections.abc import Iterable
from itertools import pairwise

from torch import nn

Side = tuple[int, int]


def halvings(height: int, width: int, steps: int = 3) -> list[Side]:
    """Sides of the image and of the maps after each convolution of stride 2.

    Each rounds up: [(H, W), (H/2, W/2), ...].
    """
    sides = [(height, width)]
    for _ in range(steps):
        height = (height + 1) // 2
        width = (width + 1) // 2
        sides.append((height, width))
    return sides


def halving(before: int, after: int) -> list[nn.Module]:
    """Maps (B, before, H, W) -> (B, after, H/2, W/2), the sides rounded up."""
    return [
        nn.Conv2d(before, after, 5, 2, 2, bias=False),
        nn.BatchNorm2d(after),
        nn.LeakyReLU(0.2),
    ]


def doubling(
    before: int, after: int, small: Side, large: Side, bias: bool = False
) -> nn.ConvTranspose2d:
    """Maps (B, before, *small) -> (B, after, *large), the other way round."""
    added = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
    return nn.ConvTranspose2d(before, after, 5, 2, 2, output_padding=added, bias=bias)


def encoder(widths: Iterable[int], code: int, side: Side) -> nn.Sequential:
    """Images (B, C, H, W) -> (B, code).

    `widths` are C and the channels of each map, `side` that of the last.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += halving(before, after)
    values = after * math.prod(side)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(values, code))


def decoder(widths: Iterable[int], latent: int, sides: Iterable[Side]) -> nn.Sequential:
    """Codes (B, latent) -> images (B, C, H, W), unbounded.

    `widths` and `sides` from the smallest map to the image.
    """
    widths = list(widths)
    sides = list(sides)
    first_map = (widths[0], *sides[0])
    layers: list[nn.Module] = [
        nn.Linear(latent, math.prod(first_map), bias=False),
        nn.Unflatten(1, first_map),
    ]
    for (before, after), (small, large) in zip(pairwise(widths), pairwise(sides), strict=True):
        is_last = large == sides[-1]
        layers += [
            nn.BatchNorm2d(before),
            nn.ReLU(),
            doubling(before, after, small, large, bias=is_last),
        ]
    return nn.Sequential(*layers)
