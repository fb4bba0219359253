"""Local outlier factor for new images, on raw pixels.

Breunig et al., 2000; scikit-learn's LocalOutlierFactor(novelty=True).

How much sparser the training inliers lie around an image than around its neighbours; 1 inside a
cluster of any density.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from noveltylab.methods.base import Method

#: images whose distances to the training set are held at once
BLOCK = 256
#: what scikit-learn adds to a mean distance, so that copies of one image have a finite density
EPSILON = 1e-10


def neighbours(x: Tensor, train: Tensor, k: int, first: int | None = None) -> tuple[Tensor, Tensor]:
    """Distances and positions (B, k) of the k nearest of train (N, F) to x (B, F), float64.

    `first`: x are the training images from this position on, and none is its own neighbour.
    """
    distances = torch.cdist(x, train)
    if first is not None:
        rows = torch.arange(len(x), device=x.device)
        distances[rows, first + rows] = torch.inf
    index = distances.topk(k, dim=1, largest=False).indices
    # again and exactly: the product behind cdist leaves 1e-5 between copies of an image
    if torch.compiler.is_exporting():  # a graph holds no loop over images
        return (train[index] - x[:, None]).norm(dim=2), index
    exact: list[Tensor] = []
    for image, near in zip(x, index, strict=True):
        difference = train[near] - image
        exact.append(difference.norm(dim=1))
    return torch.stack(exact), index


class LOF(Method):
    """Keeps the training set (N, F) with each image's density and distance to its k-th neighbour."""

    iterative: ClassVar[bool] = False

    def __init__(self, image_shape: tuple[int, int, int], *, k: PositiveInt = 20) -> None:
        super().__init__(image_shape)
        self.k = k
        self.register_buffer("train_set", torch.zeros(0, 0))
        self.register_buffer("reach", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("density", torch.zeros(0, dtype=torch.float64))
        self.train_set: Tensor
        self.reach: Tensor
        self.density: Tensor

    def prepare(self, train: Tensor) -> None:
        """Neighbours among train (N, C, H, W) itself; k is N - 1 at most."""
        if len(train) < 2:
            raise ValueError("lof needs two training images at least")
        self.train_set = train.flatten(1).contiguous()
        x = self.train_set.double()
        distances: list[Tensor] = []
        indices: list[Tensor] = []
        for position, block in enumerate(torch.split(x, BLOCK)):
            distance, index = neighbours(block, x, self._neighbours, first=BLOCK * position)
            distances.append(distance)
            indices.append(index)
        self.reach = torch.cat(distances).amax(1)
        self.density = self._densities(torch.cat(distances), torch.cat(indices))

    @property
    def _neighbours(self) -> int:
        return min(self.k, len(self.train_set) - 1)

    def _densities(self, distances: Tensor, index: Tensor) -> Tensor:
        """Local reachability densities (B,) from the neighbours' distances and positions (B, k).

        Definition 6.
        """
        reachability = torch.maximum(distances, self.reach[index])
        return 1 / (reachability.mean(1) + EPSILON)

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("lof",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`lof`: mean density of the k neighbours over the own density, (B,), positive.

        Definition 7.
        """
        train = self.train_set.double()
        flat = x.flatten(1).double()
        blocks: Sequence[Tensor] = [flat]
        if not torch.compiler.is_exporting():
            blocks = torch.split(flat, BLOCK)
        factors: list[Tensor] = []
        for block in blocks:
            distances, index = neighbours(block, train, self._neighbours)
            density = self._densities(distances, index)
            ratios = self.density[index] / density[:, None]
            factors.append(ratios.mean(1))
        return {"lof": torch.cat(factors)}

    def validation_loss(self, x: Tensor) -> Tensor:
        return self.novelty_score(x)["lof"]
