"""Distance from the mean image of the inliers."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from noveltylab import Method


class MeanImage(Method):
    """The mean distance of an image's pixels from those of the mean inlier."""

    iterative: ClassVar[bool] = False
    least_images: ClassVar[int] = 1

    def __init__(
        self, image_shape: tuple[int, int, int], *, distance: Literal["l1", "l2"] = "l2"
    ) -> None:
        super().__init__(image_shape)
        self.distance = distance
        self.register_buffer("mean", torch.zeros(image_shape))

    def prepare(self, train: Tensor) -> None:
        self.mean = train.mean(0)

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("distance",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        difference = (x - self.mean).flatten(1)
        if self.distance == "l1":
            return {"distance": difference.abs().mean(1)}
        return {"distance": difference.square().mean(1)}

    def validation_loss(self, x: Tensor) -> Tensor:
        return self.novelty_score(x)["distance"]
