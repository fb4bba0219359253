"""PCA residual: the mean squared error left by the principal components of the inliers.

A floor that every run carries: a reconstruction method below it has learned less than a linear map.
Measured with 32 components on MNIST P2 at 28 px: mean AUROC 0.955.
"""

from typing import ClassVar

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from noveltylab.methods.base import Method
from noveltylab.nets.losses import squared_error


class PCA(Method):
    """`components` >= 1: that many.

    Below 1: as many as explain that share of the training variance.
    """

    iterative: ClassVar[bool] = False
    least_images: ClassVar[int] = 1

    def __init__(
        self, image_shape: tuple[int, int, int], *, components: PositiveFloat = 32
    ) -> None:
        super().__init__(image_shape)
        if components >= 1 and components != int(components):
            raise ValueError(
                f"method.components={components}: a whole number, or a share of variance below 1"
            )
        self.components = components
        self.register_buffer("mean", torch.zeros(0))
        self.register_buffer("basis", torch.zeros(0, 0))
        self.mean: Tensor
        self.basis: Tensor

    def prepare(self, train: Tensor) -> None:
        """Mean (F,) and leading eigenvectors (F, k) of the covariance of train (N, C, H, W).

        F = C H W.
        """
        x = train.flatten(1)
        images, pixels = x.shape
        self.mean = x.mean(0)
        centred = x - self.mean
        # of both products, which have the same eigenvalues, the smaller one
        is_wide = images < pixels
        product = centred @ centred.T if is_wide else centred.T @ centred
        try:
            variances, vectors = torch.linalg.eigh(product)
        except RuntimeError:  # many equal images: slower, and it converges
            variances, vectors = torch.linalg.eigh(product.double())
        variances = variances.to(x).flip(0).clamp_min(0)
        vectors = vectors.to(x).flip(1)
        if is_wide:
            vectors = nn.functional.normalize(centred.T @ vectors, dim=0)
            # directions in which no image differs
            vectors[:, variances <= 1e-6 * variances[0]] = 0
        # how many
        count = int(self.components)
        if self.components < 1:
            smallest = torch.finfo(x.dtype).tiny
            share = variances.cumsum(0) / variances.sum().clamp_min(smallest)
            count = int((share < self.components).sum()) + 1
        count = min(count, images - 1, pixels)
        self.basis = vectors[:, :count].contiguous()

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("residual",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`residual`: mean squared difference between x and its projection, (B,)."""
        return {"residual": squared_error(x, self.reconstruct(x))}

    def validation_loss(self, x: Tensor) -> Tensor:
        return self.novelty_score(x)["residual"]

    def reconstruct(self, x: Tensor) -> Tensor:
        """Projection on the principal subspace, (B, C, H, W)."""
        centred = x.flatten(1) - self.mean
        codes = centred @ self.basis
        projection = self.mean + codes @ self.basis.T
        return projection.view_as(x)
