"""The measurements behind the table on CIFAR-10's contrast, against NumPy on small images."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import contrast
from experiments.contrast import CLASSES, SETTINGS, Seen, measure, printed, table

PAGE = Path(contrast.__file__).parents[1] / "docs" / "notes" / "questions.md"


def test_a_class_is_measured_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    low = (
        rng.normal(size=(60, 12)) @ rng.normal(size=(12, 3 * 4 * 4))
        + 0.1 * rng.normal(size=(60, 48))
        + 0.3
    )
    images = rng.normal(size=(40, 48))
    images[:15] = low[:15] + 0.1 * rng.normal(size=(15, 48))
    is_outlier = np.arange(40) >= 15
    train, test = (
        torch.tensor(part.reshape(-1, 3, 4, 4), dtype=torch.float32) for part in (low, images)
    )
    seen = measure(train, test, torch.from_numpy(is_outlier))
    centred = low - low.mean(0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    assert seen.variance == pytest.approx((centred**2).mean(), rel=1e-4)
    assert seen.share == pytest.approx((values[:16] ** 2).sum() / (values**2).sum(), abs=1e-3)
    away = images - low.mean(0)
    left = ((away - away @ directions[:16].T @ directions[:16]) ** 2).mean(1)
    higher = (left[is_outlier][:, None] > left[~is_outlier]).mean()
    assert seen.residual == pytest.approx(higher, abs=0.02)
    squares = (images**2).mean(1)
    assert seen.norm == pytest.approx((squares[is_outlier][:, None] > squares[~is_outlier]).mean())


def test_the_table_has_means_and_correlations_with_and_without_the_reported_classes() -> None:
    paper = printed()
    assert len(paper) == CLASSES and paper[:2] == [0.757, 0.531]
    follows = [Seen(0.1, 0.5, value, 1 - value) for value in paper]
    line = table({"gcn": follows}, paper)[-1]
    few = np.mean([value for label, value in enumerate(paper) if label not in (0, 1, 8)])
    mean = np.mean(paper)
    assert line == (
        f"| gcn | 0.1000 to 0.1000 | 0.50 to 0.50 | {mean:.3f} | 1.00 | {1 - mean:.3f} | -1.00 | {few:.3f} | 1.00 |"
    )
    assert set(SETTINGS) == {"none", "gcn minus mean", "gcn_image", "gcn_image minus mean"}


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("NOVELTYLAB_DATA"), reason="needs the real data sets: set NOVELTYLAB_DATA"
)
def test_the_page_has_what_the_command_prints() -> None:
    page = PAGE.read_text()
    for line in table(contrast.measure_all(), printed()):
        assert line in page


def test_the_page_has_every_setting() -> None:
    page = PAGE.read_text()
    assert all(f"| {name} |" in page for name in SETTINGS)
