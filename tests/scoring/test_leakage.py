"""Class leakage against scikit-learn's neighbours, and against the paper's printed number."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from noveltylab.data.load import load
from noveltylab.scoring import leakage
from noveltylab.scoring.leakage import class_leakage, measure_leakage
from tests.scoring.test_floors import data_of, samples

__all__ = ["samples"]  # a fixture


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, 6, 5)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("block", [7, 512])
def test_equals_scikit_learn(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "BLOCK", block)
    images = pictures(60)
    labels = np.arange(60) % 3
    points = images.flatten(1).numpy().astype(np.float64)
    nearest = NearestNeighbors(n_neighbors=5).fit(points).kneighbors(return_distance=False)
    expected = (labels[nearest] != labels[:, None]).mean(1)
    np.testing.assert_allclose(class_leakage(images, labels, 5), expected)


def test_is_0_for_classes_apart_and_1_for_pairs_of_two_classes() -> None:
    apart = torch.cat([pictures(10) // 4, pictures(10) // 4 + 190])
    assert not class_leakage(apart, np.repeat([0, 1], 10), 9).any()
    pairs = pictures(10).repeat(2, 1, 1, 1)
    assert class_leakage(pairs, np.repeat([0, 1], 10), 1).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.integers(1, 40), st.integers(0, 99))
def test_is_a_share_and_follows_the_order_of_the_images(
    count: int, neighbours: int, seed: int
) -> None:
    images = pictures(count, seed)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    shares = class_leakage(images, labels, neighbours)
    assert shares.shape == (count,) and (shares >= 0).all() and (shares <= 1).all()
    order = rng.permutation(count)
    np.testing.assert_array_equal(
        class_leakage(images[order], labels[order], neighbours), shares[order]
    )


def test_of_a_run_is_the_mean_over_its_test_inliers_and_over_all(samples: object) -> None:
    data = data_of(samples)  # type: ignore[arg-type]
    shares = class_leakage(data.test, data.test_labels, 10)
    measured = measure_leakage(data)
    assert measured == {
        "neighbours": 10,
        "inliers": pytest.approx(shares[data.test_labels == 3].mean()),
        "all": pytest.approx(shares.mean()),
    }
    # again, from the cache
    assert measure_leakage(data) == measured


@pytest.mark.slow
@pytest.mark.skipif("NOVELTYLAB_DATA" not in os.environ, reason="needs Fashion-MNIST")
def test_of_fashion_mnist_is_as_printed() -> None:
    samples = load("fmnist", Path(os.environ["NOVELTYLAB_DATA"]), False, True)
    is_test = samples.official_test
    assert is_test is not None
    images = samples.images[torch.from_numpy(np.flatnonzero(is_test))]
    shares = class_leakage(images, samples.labels[is_test], 10)
    assert round(float(shares.mean()), 4) == 0.2428
