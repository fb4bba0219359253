"""k nearest neighbours on raw pixels.

The score is the mean Euclidean distance to the k closest training inliers.

A floor that every run carries: on MNIST, Fashion-MNIST and CIFAR-10 it is level with most deep rows
of the papers' tables.
"""

from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from noveltylab.methods.base import Method


class KNN(Method):
    """Keeps the training set; exact distances."""

    iterative: ClassVar[bool] = False
    least_images: ClassVar[int] = 1

    def __init__(self, image_shape: tuple[int, int, int], *, k: PositiveInt = 5) -> None:
        super().__init__(image_shape)
        self.k = k
        self.register_buffer("train_set", torch.zeros(0, 0))
        self.train_set: Tensor

    def prepare(self, train: Tensor) -> None:
        """Keeps train (N, C, H, W) as (N, F)."""
        self.train_set = train.flatten(1).contiguous()

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("distance",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`distance`: mean Euclidean distance to the k nearest training images, (B,).

        To all of them if there are fewer.
        """
        distances = torch.cdist(x.flatten(1), self.train_set)
        k = min(self.k, len(self.train_set))
        nearest = distances.topk(k, dim=1, largest=False).values
        return {"distance": nearest.mean(1)}

    def validation_loss(self, x: Tensor) -> Tensor:
        return self.novelty_score(x)["distance"]
