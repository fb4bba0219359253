"""The two floors on real data, against the published measurements of the protocol: all ten classes, nothing subsampled."""

import os

import numpy as np
import pytest

from noveltylab.data.base import NoveltyData, load
from noveltylab.data.preprocess import Preprocess
from noveltylab.data.protocols import split
from noveltylab.evaluate import novelty_scores
from noveltylab.methods.knn import KNN
from noveltylab.methods.pca import PCA
from noveltylab.metrics import evaluate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("NOVELTYLAB_DATA"), reason="needs the real data sets: set NOVELTYLAB_DATA"),
]


@pytest.mark.parametrize(
    ("name", "expected"), [("mnist", {PCA: 0.9553, KNN: 0.9542}), ("fmnist", {PCA: 0.9051, KNN: 0.9231})]
)
def test_mean_auroc_over_ten_classes(name: str, expected: dict[type[PCA | KNN], float]) -> None:
    samples = load(name, None, True, False)
    found: dict[type[PCA | KNN], list[float]] = {floor: [] for floor in expected}
    for inlier in range(10):
        parts = split("p2", samples.labels, samples.official_test, inlier, seed=0, val_fraction=0.1)
        data = NoveltyData(
            samples, parts, inlier, size=None, contrast="none", subtract_mean=False, batch_size=64, seed=0, chunk=1
        )
        for floor in expected:
            method = floor(data.image_shape)
            method.prepare(data.preprocess(data.train))
            (column,) = novelty_scores(method, Preprocess(), data.test, 512).values()
            found[floor].append(evaluate(column, data.test_is_outlier)["auroc"])
    for floor, value in expected.items():
        assert np.mean(found[floor]) == pytest.approx(value, abs=0.003), floor.__name__
