"""The forest's arrays against scikit-learn's scores; c(n) against the sum it approximates."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest
from torch import Tensor

from noveltylab.methods.base import Method
from noveltylab.methods.iforest import expected_path

Make = Callable[..., Method]


def noise(count: int, seed: int, pixels: int = 30) -> Tensor:
    return torch.randn(count, 1, 1, pixels, generator=torch.Generator().manual_seed(seed))


def fitted(make: Make, train: Tensor, **options: object) -> Method:
    method = make("iforest", shape=tuple(train.shape[1:]), **options)
    method.prepare(train)
    return method


@pytest.mark.parametrize(("count", "samples"), [(300, 256), (300, 50), (40, 256), (3, 2)])
def test_equals_scikit_learn(make: Make, count: int, samples: int) -> None:
    train, x = noise(count, 0), torch.cat([noise(50, 1), 4 * noise(10, 2)])
    method = fitted(make, train, trees=25, samples=samples)
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
    one, same = (fitted(make, train).novelty_score(x)["isolation"] for _ in range(2))
    assert torch.equal(one, same)
    torch.manual_seed(1)
    forest = type(fitted(make, train))(tuple(train.shape[1:]))
    forest.prepare(train)
    assert not torch.equal(one, forest.novelty_score(x)["isolation"])
