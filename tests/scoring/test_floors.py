"""The floors of raw pixels and of what the method sees, against NumPy.

On real data they are compared with the published measurements.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from noveltylab.data.datamodule import NoveltyData
from noveltylab.data.load import load
from noveltylab.data.preprocess import Preprocess
from noveltylab.data.protocols import split
from noveltylab.data.samples import Samples
from noveltylab.methods.features import Features
from noveltylab.methods.knn import KNN
from noveltylab.methods.pca import PCA
from noveltylab.run.measure import floor_warnings
from noveltylab.scoring.apply import novelty_scores
from noveltylab.scoring.floors import floor_scores, pretrained
from noveltylab.scoring.metrics import evaluate
from tests.formats import write_mnist

RAW = {"pca", "knn", "norm"}
SEEN = {"pca_seen", "knn_seen", "norm_seen"}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    root = tmp_path_factory.mktemp("data")
    write_mnist(root, n_train=600, n_test=120)
    return load("mnist", root, False, False)


def data_of(
    samples: Samples, contrast: str = "none", subtract_mean: bool = False, size: int = 16
) -> NoveltyData:
    parts = split("p2", samples.labels, samples.official_test, 3, seed=0, val_fraction=0.1)
    return NoveltyData(
        samples,
        parts,
        3,
        size=size,
        contrast=contrast,
        subtract_mean=subtract_mean,
        batch_size=8,
        seed=0,
        chunk=1,
    )


def floors_of(*arguments: Any) -> dict[str, NDArray[np.float64]]:
    return {floor.name: floor.scores for floor in floor_scores(data_of(*arguments), 64)}


def by_numpy(
    train: NDArray[np.float64], test: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Residual of 32 components, mean distance to 5 neighbours and mean square, in float64."""
    train, test = (images.reshape(len(images), -1) for images in (train, test))
    mean = train.mean(0)
    _, _, directions = np.linalg.svd(train - mean, full_matrices=False)
    basis = directions[: min(32, len(train) - 1)]
    residual = (test - mean) - (test - mean) @ basis.T @ basis
    distances = np.sqrt(((test[:, None] - train[None]) ** 2).sum(2))
    return {
        "pca": (residual**2).mean(1),
        "knn": np.sort(distances, 1)[:, :5].mean(1),
        "norm": (test**2).mean(1),
    }


def test_a_method_that_sees_raw_pixels_has_their_floors_alone(samples: Samples) -> None:
    assert set(floors_of(samples)) == RAW


@pytest.mark.parametrize(
    ("contrast", "subtract_mean"), [("gcn", True), ("gcn_image", False), ("none", True)]
)
def test_floors_of_what_the_method_sees_equal_numpy(
    samples: Samples, contrast: str, subtract_mean: bool
) -> None:
    floors = floors_of(samples, contrast, subtract_mean)
    assert set(floors) == RAW | SEEN
    data = data_of(samples, contrast, subtract_mean)
    raw = by_numpy(*(part.double().numpy() / 127.5 - 1 for part in (data.train, data.test)))
    seen = by_numpy(*(data.preprocess(part).double().numpy() for part in (data.train, data.test)))
    for name, column in floors.items():
        expected = seen[name.removesuffix("_seen")] if name in SEEN else raw[name]
        np.testing.assert_allclose(column, expected, rtol=1e-3, atol=1e-5, err_msg=name)
    assert not np.allclose(floors["knn"], floors["knn_seen"])


def test_kept_floors_are_those_of_the_same_preprocessing(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another preprocessing left in the cache is never taken.

    The floors of raw pixels are shared.
    """
    alone = {}
    settings = [
        ("none", False),
        ("gcn", False),
        ("gcn", True),
        ("gcn_image", False),
        ("gcn_image", True),
    ]
    for setting in settings:
        monkeypatch.setenv("NOVELTYLAB_CACHE", str(tmp_path / f"{setting}"))
        alone[setting] = floors_of(samples, *setting)
    monkeypatch.setenv("NOVELTYLAB_CACHE", str(tmp_path / "shared"))
    for setting in settings * 2:
        together = floors_of(samples, *setting)
        assert all(
            np.array_equal(together[name], column) for name, column in alone[setting].items()
        )
    assert len(list((tmp_path / "shared").glob("floors-*.npz"))) == len(settings)
    assert floors_of(samples, "none", False, 8).keys() == RAW
    # another size
    assert len(list((tmp_path / "shared").glob("floors-*.npz"))) == len(settings) + 1


def test_norm_is_large_where_the_image_leaves_the_mean(samples: Samples) -> None:
    data = data_of(samples, "none", True)
    data.test[0] = data.preprocess.to_unit(torch.zeros_like(data.preprocess.mean)).mul(255).round()
    data.test[1] = 255 - data.test[0]
    norm = {floor.name: floor.scores for floor in floor_scores(data, 7)}["norm_seen"]
    assert norm[0] < 1e-4
    assert norm[1] > 100 * norm[0]


@pytest.mark.parametrize(
    ("auroc", "floors", "warned"),
    [
        (0.80, {"pca": 0.6, "knn": 0.7, "norm": 0.3}, ""),
        (0.65, {"pca": 0.6, "knn": 0.7, "norm": 0.3}, ""),
        (0.55, {"pca": 0.6, "knn": 0.7, "norm": 0.3}, "below both floors"),
        (0.80, {"pca": 0.6, "knn": 0.7, "norm": 0.3, "pca_seen": 0.5, "norm_seen": 0.79}, ""),
        (
            0.80,
            {"pca": 0.6, "knn": 0.7, "norm": 0.3, "pca_seen": 0.5, "norm_seen": 0.81},
            r"not above norm_seen (0.8100)",
        ),
        (0.80, {"pca": 0.6, "knn": 0.9, "norm": 0.3, "pca_seen": 0.5, "norm_seen": 0.81}, ""),
        (0.80, {"pca": 0.6, "knn": 0.7, "norm": 0.8}, "not above that of |x|^2 alone (0.8000)"),
    ],
)
def test_a_score_that_the_preprocessing_alone_reaches_is_warned_of(
    auroc: float, floors: dict[str, float], warned: str
) -> None:
    warnings = floor_warnings("mse", auroc, floors)
    assert len(warnings) == bool(warned)
    assert all(warned in warning for warning in warnings)


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("NOVELTYLAB_DATA"), reason="needs the real data sets: set NOVELTYLAB_DATA"
)
@pytest.mark.parametrize(
    ("name", "expected"),
    [("mnist", {PCA: 0.9553, KNN: 0.9542}), ("fmnist", {PCA: 0.9051, KNN: 0.9231})],
)
def test_mean_auroc_over_ten_classes(name: str, expected: dict[type[PCA | KNN], float]) -> None:
    samples = load(name, None, True, False)
    auroc: dict[type[PCA | KNN], list[float]] = {floor: [] for floor in expected}
    for inlier in range(10):
        parts = split("p2", samples.labels, samples.official_test, inlier, seed=0, val_fraction=0.1)
        data = NoveltyData(
            samples,
            parts,
            inlier,
            size=None,
            contrast="none",
            subtract_mean=False,
            batch_size=64,
            seed=0,
            chunk=1,
        )
        for floor in expected:
            method = floor(data.image_shape)
            method.prepare(data.preprocess(data.train))
            (column,) = novelty_scores(method, Preprocess(), data.test, 512).values()
            auroc[floor].append(evaluate(column, data.test_is_outlier)["auroc"])
    for floor, value in expected.items():
        assert np.mean(auroc[floor]) == pytest.approx(value, abs=0.003), floor.__name__


def test_the_floor_of_features_is_that_of_the_method(
    samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(samples)
    columns = {floor.name: floor.scores for floor in floor_scores(data, 64, with_features=True)}
    method = Features(data.image_shape).eval()
    method.take_pretrained()
    preprocess = Preprocess()
    method.prepare(preprocess(data.train))
    expected = novelty_scores(method, preprocess, data.test, 64)["mahalanobis"]
    np.testing.assert_allclose(columns["features"], expected, rtol=1e-4)
    # the runs of a sweep share the network, and other images are fitted between
    network = pretrained(data.image_shape, data.device)
    width = sum(network.backbone.channels)
    network.prepare_features(torch.randn(30, width, generator=torch.Generator().manual_seed(0)))
    again = {floor.name: floor.scores for floor in floor_scores(data, 64, with_features=True)}
    np.testing.assert_array_equal(again["features"], columns["features"])
    assert pretrained(data.image_shape, data.device) is network
    # without the extra nothing changes
    monkeypatch.setattr("noveltylab.scoring.floors.is_bundled", lambda: False)
    assert {floor.name for floor in floor_scores(data, 64, with_features=True)} == RAW


def test_of_very_many_images_there_is_no_floor_of_features(
    samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noveltylab.scoring.floors.MOST_FEATURES", 100)
    assert {floor.name for floor in floor_scores(data_of(samples), 64, True)} == RAW


def test_floors_of_large_images_see_every_second_pixel(
    samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(samples)
    whole = floors_of(samples)
    monkeypatch.setattr("noveltylab.scoring.floors.MOST_VALUES", data.train.numel())
    assert floors_of(samples)["pca"].tolist() == whole["pca"].tolist()
    monkeypatch.setattr("noveltylab.scoring.floors.MOST_VALUES", data.train.numel() - 1)
    thin = floors_of(samples)
    # as the methods themselves have them on such images
    preprocess = Preprocess()
    floors = {"pca": PCA((1, 8, 8)), "knn": KNN((1, 8, 8))}
    for name, floor in floors.items():
        floor.prepare(preprocess(data.train[:, :, ::2, ::2]))
        expected = novelty_scores(floor, preprocess, data.test[:, :, ::2, ::2], 64)
        np.testing.assert_allclose(thin[name], *expected.values(), rtol=1e-5)
    np.testing.assert_array_equal(thin["norm"], whole["norm"])
