"""Pixel AUROC against scikit-learn, AUPRO against a search over all thresholds by NumPy and SciPy."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import label
from sklearn.metrics import roc_auc_score

from noveltylab.errors import UserError
from noveltylab.scoring import pixels
from noveltylab.scoring.pixels import measure_pixels

Maps = NDArray[np.float32]
Masks = NDArray[np.bool_]


def drawn(seed: int, levels: int, count: int = 3, side: int = 9) -> tuple[Maps, Masks]:
    """Maps that are higher on the masks, of so many levels; the last image is good."""
    rng = np.random.default_rng(seed)
    masks = rng.random((count, side, side)) < 0.15
    masks[0, 2:4, 2:5] = True
    masks[-1] = False
    maps = rng.random((count, side, side)) + 0.5 * masks
    return np.floor(maps * levels).astype(np.float32) / levels, masks


def measured(maps: Maps, masks: Masks) -> dict[str, float]:
    return measure_pixels(lambda: zip(maps, masks, strict=True), maps.size, maps)


def aupro_by_force(maps: Maps, masks: Masks, limit: float = 0.3) -> float:
    """Every score is a threshold in its turn, every defect is looked at by itself."""
    defects = []
    for number, mask in enumerate(masks):
        regions, count = label(mask, np.ones((3, 3)))
        defects += [(number, regions == region) for region in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        found = maps >= threshold
        fpr = float(found[~masks].mean())
        overlap = float(np.mean([found[number][region].mean() for number, region in defects]))
        points.append((fpr, overlap))
    total = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        total += (x1 - x0) * (y0 + y1) / 2
    return total / limit


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([2, 5, 20, 100_000]))
def test_both_are_those_of_independent_code(seed: int, levels: int) -> None:
    maps, masks = drawn(seed, levels)
    section = measured(maps, masks)
    assert section["auroc"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-9)
    assert section["aupro"] == pytest.approx(aupro_by_force(maps, masks), abs=1e-9)
    assert section["error"] == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), bins=st.sampled_from([4, 16, 64]))
def test_bins_are_off_by_no_more_than_they_say(seed: int, bins: int) -> None:
    maps, masks = drawn(seed, 100_000)
    exact = measured(maps, masks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "EXACT", 0)
        patch.setattr(pixels, "BINS", bins)
        section = measured(maps, masks)
    assert 0 < section["error"] < 1.5
    for name in ("auroc", "aupro"):
        assert abs(section[name] - exact[name]) <= section["error"] + 1e-9


def test_many_bins_are_nearly_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, masks = drawn(0, 10**6, count=10, side=60)
    exact = measured(maps, masks)
    monkeypatch.setattr(pixels, "EXACT", 0)
    monkeypatch.setattr(pixels, "BINS", 4096)
    section = measured(maps, masks)
    assert section["error"] < 1e-3
    assert section["aupro"] == pytest.approx(exact["aupro"], abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 50), shift=st.floats(-5, 5))
def test_only_the_order_of_the_scores_counts(seed: int, scale: float, shift: float) -> None:
    maps, masks = drawn(seed, 20)
    moved = (np.arctan(maps) * scale + shift).astype(np.float32)
    assert measured(moved, masks) == pytest.approx(measured(maps, masks))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_perfect_map_has_1_and_a_constant_one_has_chance(seed: int) -> None:
    maps, masks = drawn(seed, 20)
    perfect = measured(masks.astype(np.float32), masks)
    assert (perfect["auroc"], perfect["aupro"]) == pytest.approx((1, 1))
    flat = measured(np.zeros_like(maps), masks)
    assert (flat["auroc"], flat["aupro"]) == pytest.approx((0.5, 0.15))


def test_a_small_defect_counts_as_much_as_a_large_one() -> None:
    """The large one is found before any good pixel, the small one, touching at a corner, is one
    defect that is never found.
    """
    masks = np.zeros((1, 20, 20), np.bool_)
    masks[0, :10, :10] = True
    masks[0, 15, 15] = masks[0, 16, 16] = True
    maps = np.ones((1, 20, 20), np.float32)
    maps[0, :10, :10] = 2
    maps[0, 15, 15] = maps[0, 16, 16] = 0
    section = measured(maps, masks)
    assert section["defects"] == 2
    assert section["aupro"] == pytest.approx(0.5)
    assert section["auroc"] == pytest.approx(100 / 102)


@pytest.mark.parametrize("defect", [True, False])
def test_pixels_of_one_kind_cannot_be_measured(defect: bool) -> None:
    with pytest.raises(UserError, match="pixels cannot be measured"):
        measured(np.ones((1, 4, 4), np.float32), np.full((1, 4, 4), defect))


def test_a_map_that_is_not_finite_is_refused() -> None:
    maps, masks = drawn(0, 20)
    maps[0, 0, 0] = np.nan
    with pytest.raises(UserError, match="not finite"):
        measured(maps, masks)
