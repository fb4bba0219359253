"""Features of a network trained elsewhere, and a density of the training inliers among them.

Nothing is trained here. Each image becomes the means of some stages' feature maps; its score is how
far it lies from those of the training inliers. Neighbours of ImageNet features are DN2 (Bergman,
Cohen and Hoshen, arXiv 2002.10445); Mahalanobis distances of several stages with a shrunk
covariance (Ledoit and Wolf, 2004) are of Rippel, Mertens and Merhof (ICPR 2020).

Such a network has seen many kinds of things, perhaps the outliers' own: its numbers stand in a
column of their own, which says what it was trained on.
"""

from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from noveltylab.methods.base import Method
from noveltylab.methods.kde import KDE
from noveltylab.methods.knn import KNN
from noveltylab.methods.pca import PCA
from noveltylab.nets.backbone import BUNDLED, Backbone, take_weights


class Features(Method):
    """A frozen backbone, and one density on its pooled features.

    `backbone`: as timm has it; `weights`: its file, else the extra's or timm's own; `trained_on`:
    what these learned from; `stages`: positions of the stages whose maps are pooled; `input_size`:
    pixels a side that the backbone sees, None for its own and half of it for small images.

    `score`: mahalanobis | knn | pca | kde; `metric`: of features as they are, or of unit length;
    `k`: neighbours of knn; `components` of pca, or a share of the variance; `bandwidth` of kde.
    """

    iterative: ClassVar[bool] = False
    gives_features: ClassVar[bool] = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        backbone: str = BUNDLED,
        weights: str | None = None,
        trained_on: Literal["ImageNet", "more than ImageNet", "image and text"] = "ImageNet",
        stages: list[int] = [1, 2, 3, 4],  # noqa: B006  # read, never changed
        input_size: PositiveInt | None = None,
        score: Literal["mahalanobis", "knn", "pca", "kde"] = "mahalanobis",
        metric: Literal["euclidean", "cosine"] = "euclidean",
        k: PositiveInt = 5,
        components: PositiveInt | PositiveFloat = 0.99,
        bandwidth: Literal["auto"] | PositiveFloat = "auto",
    ) -> None:
        super().__init__(image_shape)
        self.trained_on = trained_on  # type: ignore[misc]  # that of its class
        self.weights_file = weights
        self.score = score
        self.metric = metric
        side = max(image_shape[1:])
        self.backbone = Backbone(backbone, tuple(stages), input_size, side, frozen=True)
        shape = (sum(self.backbone.channels), 1, 1)
        self.density: Method
        if score == "mahalanobis":
            self.density = Mahalanobis(shape)
        elif score == "knn":
            self.density = KNN(shape, k=k)
        elif score == "pca":
            self.density = PCA(shape, components=components)
        else:
            self.density = KDE(shape, bandwidth=bandwidth)

    def take_pretrained(self) -> None:
        self.pretrained = take_weights(self.backbone, self.weights_file)

    def share(self, first: Method) -> None:
        assert isinstance(first, Features)
        self.backbone = first.backbone
        self.pretrained = first.pretrained

    @property
    def features_key(self) -> str:
        sha256 = self.pretrained.get("sha256", "random")
        return f"{self.backbone.name} {self.backbone.stages} {self.backbone.size} {sha256}"

    def features(self, x: Tensor) -> Tensor:
        """The means of the stages' maps of x (B, C, H, W) in [-1, 1], (B, D)."""
        return self.backbone.pooled(x)

    def prepare(self, train: Tensor) -> None:
        """Fits the density on train (N, C, H, W)."""
        with torch.no_grad():
            parts = [self.features(part) for part in torch.split(train, 32)]
        self.prepare_features(torch.cat(parts))

    def prepare_features(self, features: Tensor) -> None:
        """Fits the density on the features (N, D) of the training inliers."""
        self.density.prepare(self._scaled(features))

    def fitted_bytes(self, images: int) -> int:
        size = sum(self.backbone.channels)
        return 4 * size * max(images, size)

    @property
    def score_names(self) -> tuple[str, ...]:
        return (self.score,)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`mahalanobis`, `knn`, `pca` or `kde` of x (B, C, H, W), (B,)."""
        return self.score_features(self.features(x))

    def score_features(self, features: Tensor) -> dict[str, Tensor]:
        """The score of features (B, D)."""
        (column,) = self.density.novelty_score(self._scaled(features)).values()
        return {self.score: column}

    def _scaled(self, features: Tensor) -> Tensor:
        """Features (B, D) as images (B, D, 1, 1), of unit length where the metric is cosine.

        For unit vectors |x - y|^2 = 2 - 2 cos(x, y).
        """
        if self.metric == "cosine":
            features = torch.nn.functional.normalize(features, dim=1)
        return features[:, :, None, None]

    def validation_loss(self, x: Tensor) -> Tensor:
        return self.novelty_score(x)[self.score]

    def embed(self, x: Tensor) -> Tensor:
        return self.features(x)


class Mahalanobis(Method):
    """The Mahalanobis distance to the training set, by a covariance after Ledoit and Wolf (2004)."""

    iterative: ClassVar[bool] = False

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape)
        channels, height, width = image_shape
        size = channels * height * width
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("whitening", torch.zeros(size, size))
        self.mean: Tensor
        self.whitening: Tensor

    def prepare(self, train: Tensor) -> None:
        """Takes mean and covariance of train (N, C, H, W)."""
        from sklearn.covariance import LedoitWolf

        points = train.flatten(1).double().cpu()
        estimate = LedoitWolf(store_precision=False).fit(points.numpy())
        covariance = torch.from_numpy(estimate.covariance_)
        if not float(covariance.diagonal().sum()) > 0:
            raise ValueError("method.score=mahalanobis: all training images have the same features")
        # L of covariance = L L^T: |L^-1 (x - mean)| is the distance
        lower = torch.linalg.cholesky(covariance)
        identity = torch.eye(len(lower), dtype=lower.dtype)
        inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
        self.mean = points.mean(0).float().to(train.device)
        self.whitening = inverse.T.contiguous().float().to(train.device)

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("distance",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`distance`: sqrt((x - mean)^T covariance^-1 (x - mean)) of x (B, C, H, W), (B,)."""
        whitened = (x.flatten(1) - self.mean) @ self.whitening
        return {"distance": whitened.norm(dim=1)}

    def validation_loss(self, x: Tensor) -> Tensor:
        return self.novelty_score(x)["distance"]
