"""Which images a method's own pictures are made of, and where they go."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from noveltylab import figures
from noveltylab.data.preprocess import Preprocess
from noveltylab.draw import SHOWN, draw_rows, evenly
from noveltylab.methods.base import Row
from noveltylab.methods.pca import PCA


@pytest.mark.parametrize(
    ("positions", "count", "chosen"),
    [([3, 5, 9], 5, [3, 5, 9]), ([3, 5, 9, 11], 2, [3, 11]), ([2, 4, 6, 8, 10], 3, [2, 6, 10]), ([], 4, [])],
)
def test_few_positions_lie_evenly_over_all(positions: list[int], count: int, chosen: list[int]) -> None:
    assert evenly(np.array(positions, np.int64), count).tolist() == chosen


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
    data = SimpleNamespace(train=train, test=test, test_is_outlier=is_outlier, preprocess=preprocess)
    drawn: dict[str, dict[str, np.ndarray]] = {}
    monkeypatch.setattr(figures, "plot_rows", lambda path, rows: drawn.update({path.name: dict(rows)}))
    draw_rows(Pictured((1, 8, 8)), data, tmp_path)  # type: ignore[arg-type]  # what it reads of the data
    assert set(drawn) == {"given.png", "outliers.png"}

    def pixels(stack: np.ndarray) -> list[int]:
        return (255 * stack[:, 0, 0, 0]).round().astype(int).tolist()

    assert pixels(drawn["given.png"]["train"]) == list(range(SHOWN))
    assert pixels(drawn["given.png"]["inliers"]) == [100, 102, 104, 106, 108, 111, 113, 115, 117, 119]
    outliers = pixels(drawn["outliers.png"]["outliers"])
    assert outliers[0] == 120 and outliers[-1] == 159 and len(outliers) == SHOWN
    torch.manual_seed(0)
    np.testing.assert_allclose(drawn["given.png"]["noise"], torch.rand(2, 1, 8, 8))
