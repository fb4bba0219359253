"""Kernel density estimate on raw pixels, computed exactly.

The mean of Gaussians around the training inliers (Parzen, 1962).

scikit-learn's KernelDensity is not used: its trees lose the far kernels, by 29 nats on uniform
noise in 784 dimensions with bandwidth 1 and by 1,400 with bandwidth 0.2
(`tests/methods/test_classical.py`). Here all distances enter one logsumexp.

Bandwidths are in units of the preprocessed pixels: those in [-1, 1] need twice the bandwidth of
those in [0, 1]. The measurement with bandwidth 1 on [0, 1] pixels of 784 (MNIST P2 0.9544) is
`method.bandwidth=2 data.size=28` here. Deep SVDD (Ruff et al., 2018) took it from 2^0.5 ... 2^5 by
cross-validated likelihood, behind a PCA of 95 % of the variance.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from noveltylab.methods.base import Method

#: training images whose distances are held at once
BLOCK = 8192
#: training images that vote on the bandwidth, each against all the others
VOTERS = 2000


def squared_distances(x: Tensor, train: Tensor) -> Tensor:
    """Squared Euclidean distances of x (B, F) and train (N, F) in float64, (B, N)."""
    return torch.cdist(x.double(), train.double()).square()


def log_density(x: Tensor, train: Tensor, bandwidth: Tensor) -> Tensor:
    """log p(x) = log 1/N sum_i Normal(x; train_i, bandwidth^2 I), in nats.

    x (B, F), train (N, F) -> float64 (B,).
    """
    sums: list[Tensor] = []
    for block in torch.split(train, BLOCK):
        exponents = -squared_distances(x, block) / (2 * bandwidth**2)
        sums.append(torch.logsumexp(exponents, 1))
    scale = bandwidth * math.sqrt(2 * math.pi)
    normaliser = math.log(len(train)) + x.shape[1] * torch.log(scale)
    return torch.logsumexp(torch.stack(sums), 0) - normaliser


def likeliest_bandwidth(train: Tensor) -> Tensor:
    """The bandwidth under which each image of train (N, F) is likeliest given the others.

    Leave-one-out; Duin, 1976. A fixed point of expectation maximisation, started wide: the weights say how far each other
    image explains the one left out, the bandwidth becomes the weighted mean distance per pixel, and
    the likelihood rises with every step.
    """
    if len(train) < 2:
        raise ValueError(
            "method.bandwidth=auto needs two training images; give the bandwidth as a number"
        )
    # distances from the voters to all others
    images, pixels = train.shape
    voters = min(VOTERS, images)
    rows = torch.linspace(0, images - 1, voters, device=train.device).round().long()
    blocks = torch.split(train, BLOCK)
    squared = torch.cat([squared_distances(train[rows], block) for block in blocks], 1)
    squared[torch.arange(voters), rows] = torch.inf
    distances = squared.masked_fill(squared.isinf(), 0)
    # the fixed point
    variance = distances.sum() / (voters * (images - 1) * pixels)
    smallest = 1e-6 * variance  # copies of one image make the likelihood grow without bound
    for _ in range(200):
        weights = torch.softmax(-squared / (2 * variance), 1)
        last = variance
        variance = (weights * distances).sum(1).mean() / pixels
        variance = variance.clamp_min(smallest)
        if (variance / last - 1).abs() < 1e-6:
            break
    if not variance > 0:
        raise ValueError(
            "method.bandwidth=auto: all training images are the same; give the bandwidth as a number"
        )
    return variance.sqrt()


class KDE(Method):
    """Keeps the training set.

    `bandwidth` "auto" is chosen in `prepare`, on the training inliers alone.
    """

    iterative: ClassVar[bool] = False
    least_images: ClassVar[int] = 1

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        bandwidth: Literal["auto"] | PositiveFloat = "auto",
    ) -> None:
        super().__init__(image_shape)
        self.given = bandwidth
        self.register_buffer("train_set", torch.zeros(0, 0))
        self.register_buffer("bandwidth", torch.ones((), dtype=torch.float64))
        self.train_set: Tensor
        self.bandwidth: Tensor

    def prepare(self, train: Tensor) -> None:
        """Keeps train (N, C, H, W) as (N, F), F = C H W."""
        self.train_set = train.flatten(1).contiguous()
        if self.given == "auto":
            self.bandwidth = likeliest_bandwidth(self.train_set)
        else:
            self.bandwidth = torch.tensor(self.given, dtype=torch.float64, device=train.device)

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("nll",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`nll`: minus the log density in nats, any sign, (B,)."""
        density = log_density(x.flatten(1), self.train_set, self.bandwidth)
        return {"nll": -density}

    def validation_loss(self, x: Tensor) -> Tensor:
        return self.novelty_score(x)["nll"]
