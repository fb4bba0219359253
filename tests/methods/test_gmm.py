"""The mixture's density against scikit-learn and SciPy; the number of Gaussians by held-out
inliers.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor

from noveltylab.methods.base import Method
from noveltylab.methods.gmm import likeliest_components

Make = Callable[..., Method]


def clusters(count: int, seed: int, groups: int = 4, pixels: int = 20) -> Tensor:
    centres = 4 * torch.randn(groups, pixels, generator=torch.Generator().manual_seed(99))
    rng = torch.Generator().manual_seed(seed)
    member = torch.randint(groups, (count,), generator=rng)
    return (centres[member] + torch.randn(count, pixels, generator=rng))[:, None, None]


def fitted(make: Make, train: Tensor, **options: object) -> Method:
    method = make("gmm", shape=tuple(train.shape[1:]), **options)
    method.prepare(train)
    return method


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_equals_scikit_learn(make: Make, covariance: str) -> None:
    train, x = clusters(300, 0), clusters(40, 1)
    method = fitted(make, train, dimensions=6, components=3, covariance=covariance)
    flat = train.flatten(1).double().numpy()
    pca = PCA(6).fit(flat)
    scale = np.sqrt(pca.explained_variance_[0])
    # signs of eigenvectors are free, and the start of the mixture hangs on them: take ours
    codes = (flat - method.mean.numpy()) @ method.basis.numpy()
    np.testing.assert_allclose(np.abs(codes), np.abs(pca.transform(flat) / scale), atol=1e-8)
    mixture = GaussianMixture(
        3, covariance_type=covariance, max_iter=300, random_state=method.seed
    ).fit(codes)
    expected = mixture.score_samples(
        (x.flatten(1).double().numpy() - method.mean.numpy()) @ method.basis.numpy()
    )
    np.testing.assert_allclose(-method.novelty_score(x)["nll"].numpy(), expected, rtol=1e-9)


def test_density_is_that_of_the_kept_gaussians(make: Make) -> None:
    method = fitted(make, clusters(300, 0), dimensions=5, components=4)
    x = clusters(30, 1)
    codes = (x.flatten(1).double().numpy() - method.mean.numpy()) @ method.basis.numpy()
    parts = []
    for weight, mean, whitener in zip(method.weights, method.means, method.whiteners, strict=True):
        covariance = np.linalg.inv((whitener @ whitener.T).numpy())
        parts.append(
            float(weight.log()) + multivariate_normal(mean.numpy(), covariance).logpdf(codes)
        )
    np.testing.assert_allclose(
        -method.novelty_score(x)["nll"].numpy(), logsumexp(parts, axis=0), rtol=1e-8
    )


def test_what_lies_outside_the_principal_subspace_does_not_count(make: Make) -> None:
    method = fitted(make, clusters(300, 0), dimensions=5)
    x = clusters(5, 1)
    away = torch.randn(20, dtype=torch.float64)
    away -= method.basis @ torch.linalg.lstsq(method.basis, away[:, None]).solution[:, 0]
    moved = x.double() + 50 * away
    torch.testing.assert_close(
        method.novelty_score(moved)["nll"], method.novelty_score(x)["nll"], rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize("groups", [1, 4])
def test_as_many_gaussians_as_held_out_inliers_are_likeliest_under(make: Make, groups: int) -> None:
    train = clusters(400, 0, groups)
    method = fitted(make, train, dimensions=4)
    assert len(method.weights) == groups
    codes = (train.flatten(1).double().numpy() - method.mean.numpy()) @ method.basis.numpy()
    held_out = np.arange(400) % 5 == 4
    likelihood = {
        count: GaussianMixture(count, random_state=method.seed, max_iter=300)
        .fit(codes[~held_out])
        .score(codes[held_out])
        for count in (1, 2, 4, 8)
    }
    assert max(likelihood, key=likelihood.__getitem__) == groups


def test_few_images_get_one_gaussian() -> None:
    codes = clusters(40, 0).flatten(1).double().numpy()
    assert likeliest_components(codes, "full", 0) == 1


def test_too_few_images_and_too_many_gaussians(make: Make) -> None:
    with pytest.raises(ValueError, match="gmm needs 10 training images at least, here are 9"):
        fitted(make, clusters(9, 0))
    with pytest.raises(
        ValueError, match=r"method\.components=11: more than the 10 training images"
    ):
        fitted(make, clusters(10, 0), components=11)
