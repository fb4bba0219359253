"""The local outlier factor against scikit-learn's, also where images come twice or are few."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.neighbors import LocalOutlierFactor
from torch import Tensor

from noveltylab.methods import lof
from noveltylab.methods.base import Method

Make = Callable[..., Method]


def noise(count: int, seed: int, pixels: int = 30) -> Tensor:
    return torch.randn(count, 1, 1, pixels, generator=torch.Generator().manual_seed(seed))


def ours(make: Make, train: Tensor, x: Tensor, k: int) -> np.ndarray:
    method = make("lof", shape=tuple(train.shape[1:]), k=k)
    method.prepare(train)
    return method.novelty_score(x)["lof"].numpy()


def theirs(train: Tensor, x: Tensor, k: int) -> np.ndarray:
    fitted = LocalOutlierFactor(n_neighbors=k, novelty=True).fit(train.flatten(1).double().numpy())
    return -fitted.score_samples(x.flatten(1).double().numpy())


@pytest.mark.parametrize("k", [1, 5, 20])
def test_equals_scikit_learn(make: Make, monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    train, x = noise(200, 0), torch.cat([noise(30, 1), 3 * noise(10, 2)])
    np.testing.assert_allclose(ours(make, train, x, k), theirs(train, x, k), rtol=1e-9)
    monkeypatch.setattr(lof, "BLOCK", 13)
    np.testing.assert_allclose(ours(make, train, x, k), theirs(train, x, k), rtol=1e-9)


def test_training_images_score_like_new_ones_and_copies_count(make: Make) -> None:
    train = noise(100, 0)
    train = torch.cat([train, train[:40]])
    np.testing.assert_allclose(ours(make, train, train, 5), theirs(train, train, 5), rtol=1e-7)


def test_more_copies_than_neighbours_stay_finite(make: Make) -> None:
    train = torch.cat([noise(1, 0).repeat(8, 1, 1, 1), noise(20, 1)])
    scores = ours(make, train, torch.cat([train, noise(5, 2)]), 5)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores, theirs(train, torch.cat([train, noise(5, 2)]), 5), rtol=1e-6)


def test_of_few_images_all_others_are_neighbours(make: Make) -> None:
    train, x = noise(6, 0), noise(4, 1)
    np.testing.assert_allclose(ours(make, train, x, 20), theirs(train, x, 5), rtol=1e-9)


def test_one_image_has_no_neighbours(make: Make) -> None:
    with pytest.raises(ValueError, match="lof needs two training images"):
        ours(make, noise(1, 0), noise(2, 1), 5)
