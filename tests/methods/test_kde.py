"""The exact density against float64 NumPy, scikit-learn's failure, and the bandwidth from inliers
alone.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.neighbors import KernelDensity

from noveltylab.methods import kde
from noveltylab.methods.base import Method
from tests.methods.conftest import blobs

Make = Callable[..., Method]
Array = NDArray[np.float64]


def numpy_log_density(x: Array, train: Array, bandwidth: float) -> Array:
    """Differences image by image; logaddexp one kernel after the other."""
    normaliser = np.log(len(train)) + train.shape[1] / 2 * np.log(2 * np.pi * bandwidth**2)
    log_sums = [
        np.logaddexp.reduce(-((train - image) ** 2).sum(1) / (2 * bandwidth**2)) for image in x
    ]
    return np.array(log_sums) - normaliser


def leave_one_out(train: Array, bandwidth: float, rows: list[int] | None = None) -> float:
    rows = list(range(len(train))) if rows is None else rows
    remainders = [np.delete(train, row, axis=0) for row in rows]
    return float(
        np.mean(
            [
                numpy_log_density(train[[row]], remainder, bandwidth)
                for row, remainder in zip(rows, remainders, strict=True)
            ]
        )
    )


def uniform(count: int, pixels: int, seed: int) -> Array:
    return np.random.default_rng(seed).random((count, pixels)).astype(np.float32).astype(float)


def fitted(make: Make, train: Array, **options: object) -> Method:
    method = make("kde", shape=(1, 1, train.shape[1]), **options)
    method.prepare(torch.from_numpy(train).float()[:, None, None])
    return method


def nll(method: Method, x: Array) -> Array:
    return method.novelty_score(torch.from_numpy(x).float()[:, None, None])["nll"].numpy()


@pytest.mark.parametrize("bandwidth", [0.2, 1.0, 20.0])
@pytest.mark.parametrize("pixels", [2, 784])
def test_equals_numpy(
    make: Make, monkeypatch: pytest.MonkeyPatch, bandwidth: float, pixels: int
) -> None:
    train, x = uniform(300, pixels, 0), uniform(20, pixels, 1)
    expected = numpy_log_density(x, train, bandwidth)
    method = fitted(make, train, bandwidth=bandwidth)
    np.testing.assert_allclose(-nll(method, x), expected, rtol=1e-10, atol=1e-8)
    monkeypatch.setattr(kde, "BLOCK", 7)
    np.testing.assert_allclose(-nll(method, x), expected, rtol=1e-10, atol=1e-8)


def test_scikit_learn_is_wrong_in_784_dimensions_and_right_in_two(make: Make) -> None:
    """Why the density is computed here; if this fails, scikit-learn has been mended and the
    docstring is out of date.
    """
    for pixels, lowest, highest in ((2, 0.0, 1e-8), (784, 10.0, 100.0)):
        train, x = uniform(500, pixels, 0), uniform(50, pixels, 1)
        theirs = KernelDensity(bandwidth=1.0).fit(train).score_samples(x)
        exact = numpy_log_density(x, train, 1.0)
        assert lowest <= np.abs(theirs - exact).max() <= highest
        assert np.abs(-nll(fitted(make, train, bandwidth=1.0), x) - exact).max() < 1e-8


def test_bandwidth_is_the_likeliest_for_inliers_left_out(make: Make) -> None:
    train = np.random.default_rng(0).normal(size=(150, 6)).astype(np.float32).astype(float)
    best = minimize_scalar(
        lambda h: -leave_one_out(train, np.exp(h)), bounds=(-3, 2), method="bounded"
    )
    method = fitted(make, train)
    assert float(method.bandwidth) == pytest.approx(np.exp(best.x), rel=1e-3)


def test_of_many_images_an_even_choice_votes_against_all(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kde, "VOTERS", 4)
    monkeypatch.setattr(kde, "BLOCK", 11)
    train = np.random.default_rng(1).normal(size=(61, 6)).astype(np.float32).astype(float)
    rows = [0, 20, 40, 60]
    best = minimize_scalar(
        lambda h: -leave_one_out(train, np.exp(h), rows), bounds=(-3, 2), method="bounded"
    )
    assert float(fitted(make, train).bandwidth) == pytest.approx(np.exp(best.x), rel=1e-3)


def test_bandwidth_uses_inliers_only(make: Make) -> None:
    """It stands after `prepare`, which sees nothing but training inliers, and no scored image moves
    it.
    """
    method = make("kde")
    method.prepare(blobs(40))
    bandwidth = method.bandwidth.clone()
    assert bandwidth == kde.likeliest_bandwidth(blobs(40).flatten(1))
    for seed in range(3):
        method.novelty_score(blobs(30, seed=seed, bars=True))
        method.validation_loss(blobs(30, seed=seed))
    assert torch.equal(method.bandwidth, bandwidth)


def test_copies_of_an_image_do_not_shrink_the_bandwidth_to_nothing(make: Make) -> None:
    image = np.random.default_rng(0).random((30, 8))
    method = fitted(make, np.concatenate([image, image]))
    assert float(method.bandwidth) > 1e-4
    assert np.isfinite(nll(method, image)).all()


@pytest.mark.parametrize(
    ("count", "message"),
    [(1, "needs two training images"), (5, "all training images are the same")],
)
def test_bandwidth_cannot_be_chosen(make: Make, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted(make, np.full((count, 3), 0.5))
    assert np.isfinite(
        nll(fitted(make, np.full((count, 3), 0.5), bandwidth=2.0), np.zeros((1, 3)))
    ).all()
