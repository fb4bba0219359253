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
        sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))
    return sides


def encoder(widths: Iterable[int], code: int, side: Side) -> nn.Sequential:
    """Images (B, C, H, W) -> (B, code).

    `widths` are C and the channels of each map, `side` that of the last.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [
            nn.Conv2d(before, after, 5, 2, 2, bias=False),
            nn.BatchNorm2d(after),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(after * math.prod(side), code))


def decoder(widths: Iterable[int], latent: int, sides: Iterable[Side]) -> nn.Sequential:
    """Codes (B, latent) -> images (B, C, H, W), unbounded.

    `widths` and `sides` from the smallest map to the image.
    """
    widths, sides = list(widths), list(sides)
    spread = nn.Linear(latent, widths[0] * math.prod(sides[0]), bias=False)
    layers: list[nn.Module] = [spread, nn.Unflatten(1, (widths[0], *sides[0]))]
    for (before, after), (small, large) in zip(pairwise(widths), pairwise(sides), strict=True):
        odd = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
        last = large == sides[-1]
        layers += [
            nn.BatchNorm2d(before),
            nn.ReLU(),
            nn.ConvTranspose2d(before, after, 5, 2, 2, odd, bias=last),
        ]
    return nn.Sequential(*layers)
