"""The classical methods against scikit-learn, SciPy and NumPy: the local outlier factor, the
isolation forest, the Gaussian mixture, the kernel density and the one-class support vector machine.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.svm import OneClassSVM
from torch import Tensor

from noveltylab.methods import kde, lof, ocsvm
from noveltylab.methods.base import Method
from noveltylab.methods.gmm import likeliest_components
from noveltylab.methods.iforest import expected_path
from tests.methods.conftest import blobs

Make = Callable[..., Method]
Array = NDArray[np.float64]


def noise(count: int, seed: int, pixels: int = 30) -> Tensor:
    return torch.randn(count, 1, 1, pixels, generator=torch.Generator().manual_seed(seed))


def flat(x: Tensor) -> Array:
    return x.flatten(1).double().numpy()


def fitted(make: Make, name: str, train: Tensor, **options: object) -> Method:
    method = make(name, shape=tuple(train.shape[1:]), **options)
    method.prepare(train)
    return method


# The local outlier factor, also where images come twice or are few.


def our_factors(make: Make, train: Tensor, x: Tensor, k: int) -> Array:
    return fitted(make, "lof", train, k=k).novelty_score(x)["lof"].numpy()


def their_factors(train: Tensor, x: Tensor, k: int) -> Array:
    detector = LocalOutlierFactor(n_neighbors=k, novelty=True).fit(flat(train))
    return -detector.score_samples(flat(x))


@pytest.mark.parametrize("k", [1, 5, 20])
def test_factors_equal_scikit_learns(make: Make, monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    train, x = noise(200, 0), torch.cat([noise(30, 1), 3 * noise(10, 2)])
    expected = their_factors(train, x, k)
    np.testing.assert_allclose(our_factors(make, train, x, k), expected, rtol=1e-9)
    monkeypatch.setattr(lof, "BLOCK", 13)
    np.testing.assert_allclose(our_factors(make, train, x, k), expected, rtol=1e-9)


def test_training_images_score_like_new_ones_and_copies_count(make: Make) -> None:
    train = noise(100, 0)
    train = torch.cat([train, train[:40]])
    expected = their_factors(train, train, 5)
    np.testing.assert_allclose(our_factors(make, train, train, 5), expected, rtol=1e-7)


def test_more_copies_than_neighbours_stay_finite(make: Make) -> None:
    train = torch.cat([noise(1, 0).repeat(8, 1, 1, 1), noise(20, 1)])
    x = torch.cat([train, noise(5, 2)])
    factors = our_factors(make, train, x, 5)
    assert np.isfinite(factors).all()
    np.testing.assert_allclose(factors, their_factors(train, x, 5), rtol=1e-6)


def test_of_few_images_all_others_are_neighbours(make: Make) -> None:
    train, x = noise(6, 0), noise(4, 1)
    expected = their_factors(train, x, 5)
    np.testing.assert_allclose(our_factors(make, train, x, 20), expected, rtol=1e-9)


def test_one_image_has_no_neighbours(make: Make) -> None:
    with pytest.raises(ValueError, match="lof needs two training images"):
        our_factors(make, noise(1, 0), noise(2, 1), 5)


# The isolation forest: the kept arrays, and c(n) against the sum that it approximates.


@pytest.mark.parametrize(("count", "samples"), [(300, 256), (300, 50), (40, 256), (3, 2)])
def test_isolation_equals_scikit_learns(make: Make, count: int, samples: int) -> None:
    train, x = noise(count, 0), torch.cat([noise(50, 1), 4 * noise(10, 2)])
    method = fitted(make, "iforest", train, trees=25, samples=samples)
    forest = IsolationForest(
        n_estimators=25, max_samples=min(samples, count), random_state=method.seed
    )
    expected = -forest.fit(train.flatten(1).numpy()).score_samples(x.flatten(1).numpy())
    np.testing.assert_allclose(method.novelty_score(x)["isolation"].numpy(), expected, rtol=1e-12)


def test_expected_path_is_the_harmonic_sum() -> None:
    counts = np.array([1, 2, 10, 256, 5000])
    harmonic = np.array([np.sum(1 / np.arange(1, n)) for n in counts])
    exact = np.where(counts > 1, 2 * harmonic - 2 * (counts - 1) / counts, 0)
    np.testing.assert_allclose(expected_path(counts)[2:], exact[2:], rtol=0.04)
    assert expected_path(counts)[:2].tolist() == [0.0, 1.0]
    assert expected_path(counts)[3] == pytest.approx(10.24, abs=0.01)  # of the default 256 samples


def test_the_seed_of_the_run_grows_the_trees(make: Make) -> None:
    train, x = noise(100, 0), noise(20, 1)
    one, same = (fitted(make, "iforest", train).novelty_score(x)["isolation"] for _ in range(2))
    assert torch.equal(one, same)
    torch.manual_seed(1)
    forest = type(fitted(make, "iforest", train))(tuple(train.shape[1:]))
    forest.prepare(train)
    assert not torch.equal(one, forest.novelty_score(x)["isolation"])


# The Gaussian mixture: its density, and the number of Gaussians by held-out inliers.


def clusters(count: int, seed: int, groups: int = 4, pixels: int = 20) -> Tensor:
    centres = 4 * torch.randn(groups, pixels, generator=torch.Generator().manual_seed(99))
    rng = torch.Generator().manual_seed(seed)
    member = torch.randint(groups, (count,), generator=rng)
    return (centres[member] + torch.randn(count, pixels, generator=rng))[:, None, None]


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_log_density_equals_scikit_learns(make: Make, covariance: str) -> None:
    train, x = clusters(300, 0), clusters(40, 1)
    method = fitted(make, "gmm", train, dimensions=6, components=3, covariance=covariance)
    values = flat(train)
    pca = PCA(6).fit(values)
    scale = np.sqrt(pca.explained_variance_[0])
    # signs of eigenvectors are free, and the start of the mixture hangs on them: take ours
    codes = (values - method.mean.numpy()) @ method.basis.numpy()
    np.testing.assert_allclose(np.abs(codes), np.abs(pca.transform(values) / scale), atol=1e-8)
    mixture = GaussianMixture(
        3, covariance_type=covariance, max_iter=300, random_state=method.seed
    ).fit(codes)
    expected = mixture.score_samples((flat(x) - method.mean.numpy()) @ method.basis.numpy())
    np.testing.assert_allclose(-method.novelty_score(x)["nll"].numpy(), expected, rtol=1e-9)


def test_density_is_that_of_the_kept_gaussians(make: Make) -> None:
    method = fitted(make, "gmm", clusters(300, 0), dimensions=5, components=4)
    x = clusters(30, 1)
    codes = (flat(x) - method.mean.numpy()) @ method.basis.numpy()
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
    method = fitted(make, "gmm", clusters(300, 0), dimensions=5)
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
    method = fitted(make, "gmm", train, dimensions=4)
    assert len(method.weights) == groups
    codes = (flat(train) - method.mean.numpy()) @ method.basis.numpy()
    held_out = np.arange(400) % 5 == 4
    likelihood = {
        count: GaussianMixture(count, random_state=method.seed, max_iter=300)
        .fit(codes[~held_out])
        .score(codes[held_out])
        for count in (1, 2, 4, 8)
    }
    assert max(likelihood, key=likelihood.__getitem__) == groups


def test_few_images_get_one_gaussian() -> None:
    codes = flat(clusters(40, 0))
    assert likeliest_components(codes, "full", 0) == 1


def test_too_few_images_and_too_many_gaussians(make: Make) -> None:
    with pytest.raises(ValueError, match="gmm needs 10 training images at least, here are 9"):
        fitted(make, "gmm", clusters(9, 0))
    with pytest.raises(
        ValueError, match=r"method\.components=11: more than the 10 training images"
    ):
        fitted(make, "gmm", clusters(10, 0), components=11)


# The kernel density: exact in float64, unlike scikit-learn's, with a bandwidth from inliers alone.


def numpy_log_density(x: Array, train: Array, bandwidth: float) -> Array:
    """Differences image by image; logaddexp one kernel after the other."""
    normaliser = np.log(len(train)) + train.shape[1] / 2 * np.log(2 * np.pi * bandwidth**2)
    log_sums = [
        np.logaddexp.reduce(-((train - image) ** 2).sum(1) / (2 * bandwidth**2)) for image in x
    ]
    return np.array(log_sums) - normaliser


def leave_one_out(train: Array, bandwidth: float, rows: list[int] | None = None) -> float:
    rows = list(range(len(train))) if rows is None else rows
    densities = []
    for row in rows:
        remainder = np.delete(train, row, axis=0)
        densities.append(numpy_log_density(train[[row]], remainder, bandwidth))
    return float(np.mean(densities))


def uniform(count: int, pixels: int, seed: int) -> Array:
    return np.random.default_rng(seed).random((count, pixels)).astype(np.float32).astype(float)


def images(values: Array) -> Tensor:
    return torch.from_numpy(values).float()[:, None, None]


def nll(method: Method, x: Array) -> Array:
    return method.novelty_score(images(x))["nll"].numpy()


@pytest.mark.parametrize("bandwidth", [0.2, 1.0, 20.0])
@pytest.mark.parametrize("pixels", [2, 784])
def test_kernel_density_equals_numpys(
    make: Make, monkeypatch: pytest.MonkeyPatch, bandwidth: float, pixels: int
) -> None:
    train, x = uniform(300, pixels, 0), uniform(20, pixels, 1)
    expected = numpy_log_density(x, train, bandwidth)
    method = fitted(make, "kde", images(train), bandwidth=bandwidth)
    np.testing.assert_allclose(-nll(method, x), expected, rtol=1e-10, atol=1e-8)
    monkeypatch.setattr(kde, "BLOCK", 7)
    np.testing.assert_allclose(-nll(method, x), expected, rtol=1e-10, atol=1e-8)


def test_scikit_learn_is_wrong_in_784_dimensions_and_right_in_two(make: Make) -> None:
    """Why the density is computed here.

    If this fails, scikit-learn has been mended and the docstring is out of date.
    """
    for pixels, lowest, highest in ((2, 0.0, 1e-8), (784, 10.0, 100.0)):
        train, x = uniform(500, pixels, 0), uniform(50, pixels, 1)
        theirs = KernelDensity(bandwidth=1.0).fit(train).score_samples(x)
        exact = numpy_log_density(x, train, 1.0)
        assert lowest <= np.abs(theirs - exact).max() <= highest
        method = fitted(make, "kde", images(train), bandwidth=1.0)
        assert np.abs(-nll(method, x) - exact).max() < 1e-8


def test_bandwidth_is_the_likeliest_for_inliers_left_out(make: Make) -> None:
    train = np.random.default_rng(0).normal(size=(150, 6)).astype(np.float32).astype(float)
    best = minimize_scalar(
        lambda h: -leave_one_out(train, np.exp(h)), bounds=(-3, 2), method="bounded"
    )
    method = fitted(make, "kde", images(train))
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
    method = fitted(make, "kde", images(train))
    assert float(method.bandwidth) == pytest.approx(np.exp(best.x), rel=1e-3)


def test_bandwidth_uses_inliers_only(make: Make) -> None:
    """It stands after `prepare`, and no scored image moves it.

    `prepare` sees nothing but training inliers.
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
    method = fitted(make, "kde", images(np.concatenate([image, image])))
    assert float(method.bandwidth) > 1e-4
    assert np.isfinite(nll(method, image)).all()


@pytest.mark.parametrize(
    ("count", "message"),
    [(1, "needs two training images"), (5, "all training images are the same")],
)
def test_bandwidth_cannot_be_chosen(make: Make, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted(make, "kde", images(np.full((count, 3), 0.5)))
    assert np.isfinite(
        nll(fitted(make, "kde", images(np.full((count, 3), 0.5)), bandwidth=2.0), np.zeros((1, 3)))
    ).all()


# The one-class SVM: its kept support vectors, and gamma by consistency against the rule itself.


@pytest.mark.parametrize("gamma", ["scale", 0.01, 0.5])
@pytest.mark.parametrize("nu", [0.01, 0.1, 0.5])
def test_decisions_equal_scikit_learns(make: Make, nu: float, gamma: float | str) -> None:
    train, x = noise(200, 0, pixels=12), noise(50, 1, pixels=12)
    machine = OneClassSVM(nu=nu, gamma=gamma).fit(flat(train))
    method = fitted(make, "ocsvm", train, nu=nu, gamma=gamma)
    outside = method.novelty_score(x)["outside"].numpy()
    decision = machine.decision_function(flat(x))
    rho = machine.offset_[0]
    # decision = sum - rho and outside = log(rho / sum)
    np.testing.assert_allclose(rho * np.expm1(-outside), decision, rtol=1e-7, atol=1e-9 * rho)
    assert np.array_equal(np.argsort(outside), np.argsort(-decision))
    assert np.array_equal(outside > 0, decision < 0)


def test_scale_is_the_same_for_pixels_from_0_and_from_minus_1(make: Make) -> None:
    x = (blobs(40), blobs(10, seed=1, bars=True))
    centred, positive = (
        fitted(make, "ocsvm", scale(x[0])).novelty_score(scale(x[1]))["outside"]
        for scale in (lambda v: v, lambda v: (v + 1) / 2)
    )
    torch.testing.assert_close(centred, positive, rtol=1e-5, atol=1e-6)


def test_far_samples_are_told_apart_where_the_decision_function_is_flat(make: Make) -> None:
    train = noise(100, 0, pixels=12)
    far = torch.ones(1, 1, 1, 12) * torch.tensor([20.0, 30.0, 40.0])[:, None, None, None]
    method = fitted(make, "ocsvm", train, gamma=1.0)
    decision = OneClassSVM(nu=0.1, gamma=1.0).fit(flat(train)).decision_function(flat(far))
    assert len(set(decision)) == 1
    outside = method.novelty_score(far)["outside"]
    assert outside.isfinite().all()
    assert (outside.diff() > 0).all()


def rejected(train: np.ndarray, gamma: float, nu: float) -> float:
    """Share of held-out inliers outside, by scikit-learn's own kernel."""
    fold = np.arange(len(train)) % ocsvm.FOLDS
    outside = []
    for number in range(ocsvm.FOLDS):
        machine = OneClassSVM(nu=nu, gamma=gamma).fit(train[fold != number])
        outside.append(machine.decision_function(train[fold == number]) < 0)
    return float(np.mean(np.concatenate(outside)))


@pytest.mark.parametrize("nu", [0.05, 0.2])
def test_consistent_gamma_is_the_largest_that_inliers_bear(make: Make, nu: float) -> None:
    train = noise(300, 0, pixels=4)
    bound = nu + 2 * np.sqrt(nu * (1 - nu) / 300)
    scale = 1 / (4 * flat(train).var())
    multiples = [2.0**power for power in range(-6, 9)]
    borne = [rejected(flat(train), multiple * scale, nu) <= bound for multiple in multiples]
    assert any(borne)
    assert not all(borne)
    largest = max(
        multiple for multiple, consistent in zip(multiples, borne, strict=True) if consistent
    )
    method = fitted(make, "ocsvm", train, nu=nu, gamma="consistent")
    assert float(method.gamma) == pytest.approx(largest * scale, rel=1e-6)


def test_gamma_uses_inliers_only(make: Make) -> None:
    method = fitted(make, "ocsvm", blobs(60), gamma="consistent")
    gamma = method.gamma.clone()
    assert float(gamma) == ocsvm.consistent_gamma(blobs(60).flatten(1), 0.1)
    for seed in range(3):
        method.novelty_score(blobs(30, seed=seed, bars=True))
    assert torch.equal(method.gamma, gamma)


def test_where_nothing_is_consistent_the_smallest_gamma_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ocsvm, "rejected_share", lambda *_: 1.0)
    train = noise(20, 0, pixels=12).flatten(1)
    assert ocsvm.consistent_gamma(train, 0.1) == 2.0**-6 * ocsvm.scale_gamma(train)


def test_images_that_are_all_the_same(make: Make) -> None:
    method = fitted(make, "ocsvm", torch.full((20, 1, 2, 2), 0.3))
    scores = method.novelty_score(torch.tensor([0.3, 0.5]).view(2, 1, 1, 1).expand(2, 1, 2, 2))[
        "outside"
    ]
    assert scores[0] < scores[1]
