"""Which images a method's own pictures are made of, and where they go."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from noveltylab.data.preprocess import Preprocess
from noveltylab.methods.base import Row
from noveltylab.methods.knn import KNN
from noveltylab.methods.pca import PCA
from noveltylab.report.side_by_side import read_reconstructions
from noveltylab.run import plots, plots_of_images
from noveltylab.run.pictures import (
    EMBEDDED,
    SHOWN,
    draw_balanced,
    draw_embedding,
    draw_rows,
    evenly,
    keep_reconstructions,
)


@pytest.mark.parametrize(
    ("positions", "count", "expected"),
    [
        ([3, 5, 9], 5, [3, 5, 9]),
        ([3, 5, 9, 11], 2, [3, 11]),
        ([2, 4, 6, 8, 10], 3, [2, 6, 10]),
        ([], 4, []),
    ],
)
def test_few_positions_lie_evenly_over_all(
    positions: list[int], count: int, expected: list[int]
) -> None:
    assert evenly(np.array(positions, np.int64), count).tolist() == expected


class Pictured(PCA):
    """Shows what it is given."""

    def image_rows(self, train: Tensor, inliers: Tensor, outliers: Tensor) -> dict[str, list[Row]]:
        noise = torch.rand(2, 1, 8, 8)
        rows = [Row("train", train), Row("inliers", inliers), Row("noise", noise, unit=True)]
        return {"given": rows, "outliers": [Row("outliers", outliers)]}


def test_pictures_are_of_the_first_training_images_and_of_test_images_of_each_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = torch.arange(30, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    test = 100 + torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    is_outlier = np.arange(60) >= 20
    preprocess = Preprocess().fit(train)
    data = SimpleNamespace(
        train=train, test=test, test_is_outlier=is_outlier, preprocess=preprocess
    )
    drawn: dict[str, dict[str, np.ndarray]] = {}
    monkeypatch.setattr(
        plots_of_images, "plot_rows", lambda path, rows: drawn.update({path.name: dict(rows)})
    )
    draw_rows(Pictured((1, 8, 8)), data, tmp_path)  # type: ignore[arg-type]  # what it reads of the data
    assert set(drawn) == {"given.png", "outliers.png"}

    def pixels(stack: np.ndarray) -> list[int]:
        return (255 * stack[:, 0, 0, 0]).round().astype(int).tolist()

    assert pixels(drawn["given.png"]["train"]) == list(range(SHOWN))
    assert pixels(drawn["given.png"]["inliers"]) == [
        100,
        102,
        104,
        106,
        108,
        111,
        113,
        115,
        117,
        119,
    ]
    outliers = pixels(drawn["outliers.png"]["outliers"])
    assert outliers[0] == 120 and outliers[-1] == 159 and len(outliers) == SHOWN
    torch.manual_seed(0)
    np.testing.assert_allclose(drawn["given.png"]["noise"], torch.rand(2, 1, 8, 8))


def test_as_many_outliers_as_inliers_are_embedded_and_always_the_same() -> None:
    """NDA's figure 4: 500 of the class and 500 others."""
    is_outlier = np.random.default_rng(1).random(4000) < 0.75
    positions = draw_balanced(is_outlier, EMBEDDED)
    assert len(positions) == len(set(positions.tolist())) == 1000
    assert is_outlier[positions].tolist() == [False] * 500 + [True] * 500
    np.testing.assert_array_equal(positions, draw_balanced(is_outlier, EMBEDDED))
    assert np.diff(positions[:500]).min() < 0  # drawn at random
    few = np.arange(30) >= 9
    assert (
        sorted(draw_balanced(few, 20)[:9].tolist()) == list(range(9))
        and len(draw_balanced(few, 20)) == 9 + 20
    )


class Embedded(PCA):
    """Embeds an image by its first pixel."""

    def embed(self, x: Tensor) -> Tensor:
        return x[:, 0, 0, :2]

    def reconstruct(self, x: Tensor) -> Tensor:
        return -x


def test_the_embedding_is_drawn_of_the_images_that_were_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    is_outlier = np.arange(60) % 3 > 0
    data = SimpleNamespace(test=test, test_is_outlier=is_outlier, preprocess=Preprocess().fit(test))
    drawn = []
    monkeypatch.setattr(
        plots,
        "plot_embedding",
        lambda path, points, flags: drawn.append((path.name, points, flags)),
    )
    draw_embedding(Embedded((1, 8, 8)), data, tmp_path)  # type: ignore[arg-type]  # what it reads of the data
    ((name, points, flags),) = drawn
    assert (name, len(points)) == ("embedding.png", 60)
    pixels = ((points[:, 0] + 1) * 127.5).round().astype(int)
    assert (flags == (pixels % 3 > 0)).all() and set(pixels.tolist()) == set(range(60))
    draw_embedding(PCA((1, 8, 8)), data, tmp_path)  # type: ignore[arg-type]  # what it reads of the data
    assert len(drawn) == 1


def test_a_few_test_images_are_kept_with_their_reconstructions(tmp_path: Path) -> None:
    test = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    ids = np.array([f"test/{number}" for number in range(60)])
    data = SimpleNamespace(
        test=test,
        test_is_outlier=np.arange(60) >= 20,
        test_ids=ids,
        preprocess=Preprocess().fit(test),
    )
    keep_reconstructions(Embedded((1, 8, 8)), data, tmp_path / "figures")  # type: ignore[arg-type]  # as above
    pictures = read_reconstructions(tmp_path)
    assert pictures is not None
    pixels = pictures.images[:, 0, 0, 0].tolist()
    assert pictures.ids == [f"test/{pixel}" for pixel in pixels]
    assert len(pixels) == 2 * SHOWN and pictures.is_outlier.tolist() == [
        pixel >= 20 for pixel in pixels
    ]
    assert pictures.made[:, 0, 0, 0].tolist() == [255 - pixel for pixel in pixels]


@pytest.mark.parametrize("kind", ["sound", "method"])
def test_nothing_is_kept_of_sounds_or_without_reconstructions(tmp_path: Path, kind: str) -> None:
    test = torch.zeros(6, 1, 8, 8, dtype=torch.int16 if kind == "sound" else torch.uint8)
    data = SimpleNamespace(
        test=test, test_is_outlier=np.arange(6) > 2, test_ids=np.arange(6).astype(str)
    )
    data.preprocess = Preprocess().fit(torch.zeros(6, 1, 8, 8, dtype=torch.uint8))
    keep_reconstructions(KNN((1, 8, 8)), data, tmp_path / "figures")  # type: ignore[arg-type]  # as above
    assert not (tmp_path / "figures").exists()
