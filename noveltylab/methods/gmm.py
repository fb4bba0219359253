"""Mixture of Gaussians on the leading principal components of the inliers' pixels.

scikit-learn fits (PCA, then expectation maximisation from k-means); what it finds is kept as
tensors and scored here. What lies outside the principal subspace does not count: that part is the
`pca` method's score.
"""

import logging
import math
import warnings
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from noveltylab.methods.base import Method

log = logging.getLogger("noveltylab")

#: every so many-th training image is held out while the number of Gaussians is chosen
HELD_OUT = 5


def fit_mixture(codes: NDArray[np.float64], components: int, covariance: str, seed: int) -> Any:
    """scikit-learn's mixture of codes (N, d); says so in the log if it has not converged."""
    mixture = GaussianMixture(
        components, covariance_type=covariance, max_iter=300, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(codes)
    if not mixture.converged_:
        log.info(f"gmm: {components} Gaussians have not converged after {mixture.max_iter} steps")
    return mixture


def likeliest_components(codes: NDArray[np.float64], covariance: str, seed: int) -> int:
    """How many Gaussians, 1, 2, 4, ..., give held-out codes the highest likelihood.

    Codes (N, d) of inliers.

    Stops at the first number that is worse than its half, or that leaves fewer than 2 d images for
    each Gaussian.
    """
    is_held_out = np.arange(len(codes)) % HELD_OUT == HELD_OUT - 1
    best = -math.inf
    count = 1
    images = (~is_held_out).sum()
    while count == 1 or count * 2 * codes.shape[1] <= images:
        mixture = fit_mixture(codes[~is_held_out], count, covariance, seed)
        likelihood = mixture.score(codes[is_held_out])
        if likelihood <= best:
            break
        best = likelihood
        count = 2 * count
    return max(count // 2, 1)


class GMM(Method):
    """`dimensions` of the PCA, `components` Gaussians, `covariance` of each.

    "auto" chooses their number by held-out likelihood.
    """

    iterative: ClassVar[bool] = False
    least_images: ClassVar[int] = 2 * HELD_OUT

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        dimensions: PositiveInt = 32,
        components: Literal["auto"] | PositiveInt = "auto",
        covariance: Literal["full", "diag"] = "full",
    ) -> None:
        super().__init__(image_shape)
        self.dimensions = dimensions
        self.components = components
        self.covariance = covariance
        self.seed = int(torch.randint(2**31, ()))  # of the run, as initial weights are
        self.register_buffer("mean", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("basis", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("weights", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("means", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("whiteners", torch.zeros(0, 0, 0, dtype=torch.float64))
        self.mean: Tensor
        self.basis: Tensor
        self.weights: Tensor
        self.means: Tensor
        self.whiteners: Tensor

    def prepare(self, train: Tensor) -> None:
        """Fits the PCA and the mixture to train (N, C, H, W).

        Keeps mean (F,), basis (F, d), and of K Gaussians weights, means (K, d), whiteners
        (K, d, d). Codes are in units of the largest standard deviation, so that scikit-learn's regularisation
        is relative to it.
        """
        if len(train) < 2 * HELD_OUT:
            raise ValueError(
                f"gmm needs {2 * HELD_OUT} training images at least, here are {len(train)}"
            )
        x = train.flatten(1).double().cpu().numpy()
        # codes
        dimensions = min(self.dimensions, len(x) - 1, x.shape[1])
        pca: Any = PCA(dimensions, svd_solver="covariance_eigh")
        pca.fit(x)
        variance = max(pca.explained_variance_[0], np.finfo(float).tiny)
        basis = pca.components_.T / np.sqrt(variance)
        codes = (x - pca.mean_) @ basis
        # Gaussians
        count = self.components
        if count == "auto":
            count = likeliest_components(codes, self.covariance, self.seed)
        if count > len(x):
            raise ValueError(f"method.components={count}: more than the {len(x)} training images")
        mixture = fit_mixture(codes, count, self.covariance, self.seed)
        whiteners = mixture.precisions_cholesky_
        if self.covariance == "diag":
            whiteners = np.stack([np.diag(row) for row in whiteners])

        def keep(array: NDArray[np.float64]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(train.device)

        self.mean = keep(pca.mean_)
        self.basis = keep(basis)
        self.weights = keep(mixture.weights_)
        self.means = keep(mixture.means_)
        self.whiteners = keep(whiteners)

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("nll",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`nll`: minus the log density of the code in nats, any sign, (B,)."""
        codes = (x.flatten(1).double() - self.mean) @ self.basis
        white = torch.einsum("bkd,kde->bke", codes[:, None] - self.means, self.whiteners)
        log_det = self.whiteners.diagonal(dim1=1, dim2=2).log().sum(1)
        normaliser = codes.shape[1] * math.log(2 * math.pi)
        log_normal = log_det - 0.5 * (white.square().sum(2) + normaliser)
        log_density = torch.logsumexp(log_normal + self.weights.log(), 1)
        return {"nll": -log_density}

    def validation_loss(self, x: Tensor) -> Tensor:
        return self.novelty_score(x)["nll"]
