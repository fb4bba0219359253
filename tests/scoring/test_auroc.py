"""The interval of an AUROC covers the true one about as often as it says, at the edge too."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from noveltylab.scoring.auroc import (
    SIGMAS,
    interval,
    interval_of_counts,
    place,
    standard_error,
    widest,
)

Interval = tuple[float, float]
TIE = 1.5


def binormal(
    rng: np.random.Generator, auroc: float, spread: float, inliers: int, outliers: int
) -> NDArray[np.float64]:
    """Scores of inliers N(0, 1) and outliers with that standard deviation and that AUROC."""
    shift = norm.ppf(auroc) * np.hypot(1, spread)
    return np.r_[rng.normal(size=inliers), shift + spread * rng.normal(size=outliers)]


def true_auroc(auroc: float, spread: float) -> float:
    """After scores are rounded down to multiples of TIE."""
    shift = norm.ppf(auroc) * np.hypot(1, spread)
    edges = TIE * np.arange(-60, 200)
    inliers, outliers = np.diff(norm.cdf(edges)), np.diff(norm.cdf((edges - shift) / spread))
    return float((outliers * (np.cumsum(inliers) - inliers / 2)).sum())


def coverage(
    auroc: float,
    inliers: int,
    outliers: int,
    spread: float = 1.0,
    tied: bool = False,
    repeats: int = 300,
) -> tuple[float, float]:
    """The share of intervals that cover the true AUROC, and their mean width."""
    rng = np.random.default_rng(0)
    is_outlier = np.arange(inliers + outliers) >= inliers
    true = true_auroc(auroc, spread) if tied else auroc
    intervals = []
    for _ in range(repeats):
        scores = binormal(rng, auroc, spread, inliers, outliers)
        placements = place(np.floor(scores / TIE) if tied else scores, is_outlier)
        intervals.append(interval(placements.auroc, placements))
    lows, highs = np.array(intervals).T
    return float(((lows <= true) & (true <= highs)).mean()), float((highs - lows).mean())


# Of 300 intervals that cover with probability 0.95 fewer than 0.91 do once in 500 times.
@pytest.mark.parametrize("auroc", [0.5, 0.9, 0.98, 0.9995])
@pytest.mark.parametrize(
    ("inliers", "outliers"), [(35, 35), (20, 1), (1, 20), (6, 6), (30, 3), (20, 200)]
)
def test_the_interval_covers_at_the_edge_too(auroc: float, inliers: int, outliers: int) -> None:
    covered, width = coverage(auroc, inliers, outliers)
    assert covered >= 0.91
    assert width < 2.2 / np.sqrt(min(inliers, outliers))


@pytest.mark.parametrize("spread", [0.3, 3.0])
@pytest.mark.parametrize("auroc", [0.7, 0.97, 0.998])
@pytest.mark.parametrize(("inliers", "outliers"), [(35, 35), (6, 6), (20, 1)])
def test_it_covers_where_outliers_spread_less_or_more(
    auroc: float, spread: float, inliers: int, outliers: int
) -> None:
    assert coverage(auroc, inliers, outliers, spread)[0] >= 0.91


@pytest.mark.parametrize("auroc", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(("inliers", "outliers"), [(35, 35), (6, 6), (20, 1)])
def test_it_covers_with_heavy_ties(auroc: float, inliers: int, outliers: int) -> None:
    assert coverage(auroc, inliers, outliers, tied=True)[0] >= 0.91


@pytest.mark.parametrize(
    ("auroc", "spread", "width"), [(0.9, 0.3, 0.035), (0.998, 1.0, 0.004), (0.9995, 3.0, 0.002)]
)
def test_it_covers_and_is_narrow_with_ten_thousand_images(
    auroc: float, spread: float, width: float
) -> None:
    covered, mean_width = coverage(auroc, 1000, 9000, spread, repeats=60)
    assert covered >= 0.88  # of 60
    assert mean_width < width


@pytest.mark.parametrize(
    ("inliers", "outliers"), [(1, 1), (20, 1), (35, 35), (1000, 9000), (10**6, 10**6)]
)
@pytest.mark.parametrize("auroc", [0.0, 1.0])
def test_where_all_are_in_order_it_still_has_a_width(
    auroc: float, inliers: int, outliers: int
) -> None:
    low, high = interval_of_counts(auroc, inliers, outliers)
    assert low <= auroc <= high
    assert 1e-7 < high - low < 0.9
    assert standard_error(auroc, (low, high)) == pytest.approx((high - low) / SIGMAS)


def test_newcombes_interval_solves_its_equation() -> None:
    auroc, inliers, outliers = 0.9, 35, 50
    for bound in interval_of_counts(auroc, inliers, outliers):
        images = (inliers + outliers) / 2 - 1
        variance = (
            bound * (1 - bound) * (1 + images * ((1 - bound) / (2 - bound) + bound / (1 + bound)))
        )
        assert abs(auroc - bound) == pytest.approx(
            SIGMAS * np.sqrt(variance / (inliers * outliers))
        )


def test_placements_and_delongs_variance_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, is_outlier = rng.integers(6, size=60).astype(float), np.arange(60) >= 25
    inliers, outliers = scores[~is_outlier], scores[is_outlier]
    wins = (outliers > inliers[:, None]) + 0.5 * (outliers == inliers[:, None])
    placements = place(scores, is_outlier)
    np.testing.assert_allclose(placements.inliers, wins.mean(1))
    np.testing.assert_allclose(placements.outliers, wins.mean(0))
    expected = wins.mean(1).var(ddof=1) / 25, wins.mean(0).var(ddof=1) / 35
    assert placements.variances == pytest.approx(expected)
    low, high = interval(placements.auroc, placements)
    assert low < placements.auroc < high
    odds = np.log(
        np.array([low, placements.auroc, high]) / (1 - np.array([low, placements.auroc, high]))
    )
    assert (
        np.diff(odds).min()
        >= SIGMAS * np.sqrt(sum(expected)) / (placements.auroc * (1 - placements.auroc)) - 1e-9
    )


def test_the_widest_covers_all() -> None:
    assert widest((0.2, 0.4), (0.3, 0.5)) == (0.2, 0.5)
