"""Metrics equal scikit-learn's at any scale, and refuse what has no answer.

The interval of an AUROC covers the true one about as often as it says, at the edge too.
"""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from noveltylab.errors import UserError
from noveltylab.results.record import standing
from noveltylab.scoring.auroc import (
    SIGMAS,
    interval,
    interval_of_counts,
    place,
    standard_error,
    widest,
)
from noveltylab.scoring.metrics import (
    collapse_warnings,
    equal_error_threshold,
    evaluate,
    evaluate_kinds,
    half_total_error_rate,
    roc,
)

Case = tuple[NDArray[np.float64], NDArray[np.bool_]]
Interval = tuple[float, float]
TIE = 1.5


def case(n: int = 500, shift: float = 1.0, outliers: float = 0.3, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    is_outlier = rng.random(n) < outliers
    is_outlier[:2] = False, True
    return rng.normal(size=n) + shift * is_outlier, is_outlier


@st.composite
def tied_cases(draw: st.DrawFn) -> Case:
    flags = draw(
        st.lists(st.booleans(), min_size=2, max_size=40).filter(lambda flags: len(set(flags)) == 2)
    )
    levels = st.integers(0, draw(st.integers(0, 12)))
    return np.array([draw(levels) for _ in flags], np.float64), np.array(flags)


def reference(scores: NDArray[np.float64], is_outlier: NDArray[np.bool_]) -> dict[str, float]:
    """By scikit-learn, and EER by bisection on its interpolated curve."""
    fpr, tpr, _ = roc_curve(is_outlier, scores)
    # FPR and TPR may both jump: go along the curve, not along one axis
    along = np.arange(len(fpr), dtype=float)
    low, high = 0.0, along[-1]
    for _ in range(100):
        middle = (low + high) / 2
        above = np.interp(middle, along, fpr) + np.interp(middle, along, tpr) >= 1
        low, high = (low, middle) if above else (middle, high)
    full_fpr, full_tpr, _ = roc_curve(is_outlier, scores, drop_intermediate=False)
    return {
        "auroc": roc_auc_score(is_outlier, scores),
        "average_precision": average_precision_score(is_outlier, scores),
        "eer": float(np.interp(high, along, fpr)),
        "fpr95": min(f for f, t in zip(full_fpr, full_tpr, strict=True) if t >= 0.95),
    }


def assert_equals_reference(scores: NDArray[np.float64], is_outlier: NDArray[np.bool_]) -> None:
    metrics = evaluate(scores, is_outlier)
    for name, value in reference(scores, is_outlier).items():
        assert metrics[name] == pytest.approx(value, abs=1e-12), (
            name
        )  # float32 would be off by 1e-8
        assert type(metrics[name]) is float


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 60.0, 1e12])
@pytest.mark.parametrize("digits", [0, 1, 9], ids=["heavy ties", "ties", "no ties"])
@pytest.mark.parametrize("sign", [1, -1])
def test_equals_scikit_learn_at_any_scale(scale: float, digits: int, sign: int) -> None:
    scores, is_outlier = case()
    assert_equals_reference(scale * (sign * np.round(scores, digits) + 5), is_outlier)


@settings(deadline=None, max_examples=60)
@given(tied_cases())
def test_equals_scikit_learn_with_ties_and_few_samples(drawn: Case) -> None:
    assert_equals_reference(*drawn)


def test_is_exact_for_many_samples_and_restores_the_default_dtype() -> None:
    before = torch.get_default_dtype()
    assert_equals_reference(*case(200_000))
    assert torch.get_default_dtype() == before


def test_known_values() -> None:
    perfect = evaluate([1, 2, 3, 4], [0, 0, 1, 1])
    low, high = perfect.pop("auroc_ci")
    assert perfect == {"auroc": 1.0, "average_precision": 1.0, "eer": 0.0, "fpr95": 0.0}
    assert high == 1.0 and 0.3 < low < 0.5  # two images of a kind say little
    tied = evaluate([5.0] * 4, [0, 0, 1, 1])
    low, high = tied.pop("auroc_ci")
    assert tied == {"auroc": 0.5, "average_precision": 0.5, "eer": 0.5, "fpr95": 1.0}
    assert low < 0.2 and high > 0.8
    assert evaluate([2, 1, 1], [0, 0, 1])["eer"] == pytest.approx(2 / 3)


def test_fpr95_needs_95_percent_and_no_more() -> None:
    # the last of 20 outliers is under all inliers
    inliers, outliers = (np.arange(10) + 0.5, np.r_[np.full(19, 9.0), 0.0])
    is_outlier = np.r_[np.zeros(10), np.ones(20)]
    assert evaluate(np.r_[inliers, outliers], is_outlier)["fpr95"] == 0.1
    outliers[0] = 0.0
    assert evaluate(np.r_[inliers, outliers], is_outlier)["fpr95"] == 1.0


@settings(deadline=None, max_examples=40)
@given(
    tied_cases(),
    st.sampled_from([np.exp, np.cbrt, lambda s: 1e12 * s - 7, lambda s: 1e-12 * s, np.arctan]),
)
def test_strictly_monotone_maps_change_nothing(drawn: Case, mapped: Any) -> None:
    scores, is_outlier = drawn
    assert evaluate(mapped(scores), is_outlier) == evaluate(scores, is_outlier)


@settings(deadline=None, max_examples=40)
@given(tied_cases())
def test_turned_scores_turn_auroc_and_keep_its_interval_around_it(drawn: Case) -> None:
    scores, is_outlier = drawn
    turned, metrics = evaluate(-scores, is_outlier), evaluate(scores, is_outlier)
    assert turned["auroc"] == pytest.approx(1 - metrics["auroc"], abs=1e-12)
    low, high = metrics["auroc_ci"]
    assert turned["auroc_ci"] == pytest.approx([1 - high, 1 - low], abs=1e-9)
    assert 0 <= low <= metrics["auroc"] <= high <= 1 and high - low > 0.01


def test_roc_is_scikit_learns_without_importing_torch() -> None:
    scores, is_outlier = case(300)
    scores = np.round(scores, 1)
    fpr, tpr, _ = roc_curve(is_outlier, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc(scores, is_outlier), (fpr, tpr), atol=1e-15)
    code = "import sys; from noveltylab.scoring.metrics import roc; roc([1, 2], [0, 1]); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def rates(
    scores: NDArray[np.float64], is_outlier: NDArray[np.bool_], threshold: float
) -> tuple[float, float]:
    """FAR and FRR by counting, sample by sample."""
    accepted = sum(
        score <= threshold for score, flag in zip(scores, is_outlier, strict=True) if flag
    )
    rejected = sum(
        score > threshold for score, flag in zip(scores, is_outlier, strict=True) if not flag
    )
    return accepted / is_outlier.sum(), rejected / (~is_outlier).sum()


@settings(deadline=None, max_examples=60)
@given(tied_cases(), st.floats(-1, 13))
def test_half_total_error_rate_counts_both_errors(drawn: Case, threshold: float) -> None:
    scores, is_outlier = drawn
    assert half_total_error_rate(scores, is_outlier, threshold) == pytest.approx(
        sum(rates(*drawn, threshold)) / 2
    )


@settings(deadline=None, max_examples=60)
@given(tied_cases())
def test_equal_error_threshold_is_the_best_of_all(drawn: Case) -> None:
    """No other threshold leaves the two rates closer together.

    Thresholds between the scores count too. One that leaves them as far apart has a larger sum.
    """
    best_errors = rates(*drawn, equal_error_threshold(*drawn))
    for threshold in np.arange(-0.5, 13.5, 0.5):
        errors = rates(*drawn, threshold)
        gaps = abs(np.diff(best_errors)[0]), abs(np.diff(errors)[0])
        assert gaps[0] < gaps[1] - 1e-9 or (
            gaps[0] < gaps[1] + 1e-9 and sum(best_errors) < sum(errors) + 1e-9
        )


def test_half_total_error_rate_across_two_sets_by_hand() -> None:
    threshold = equal_error_threshold([1, 2, 3, 4, 3.5, 5, 6, 7], [0, 0, 0, 0, 1, 1, 1, 1])
    # one of four live faces is above it (4), one of four attacks is not (3.5)
    assert threshold == 3.5
    assert half_total_error_rate([3, 4, 3, 4, 9], [0, 0, 1, 1, 1], threshold) == pytest.approx(
        (1 / 2 + 1 / 3) / 2
    )
    faces = case(20_000, outliers=0.5)
    at_eer = half_total_error_rate(*faces, equal_error_threshold(*faces))
    assert at_eer == pytest.approx(reference(*faces)["eer"], abs=1e-3)  # on the source set itself


def test_half_total_error_rate_needs_a_threshold() -> None:
    with pytest.raises(UserError, match="equal_error_threshold of a source set"):
        half_total_error_rate([1.0, 2.0], [0, 1], float("nan"))


@pytest.mark.parametrize(
    ("scores", "is_outlier", "message"),
    [
        ([], [], "there are none"),
        ([1.0, float("nan")], [0, 1], "1 of 2 scores are NaN or infinite"),
        ([float("inf"), -float("inf")], [0, 1], "2 of 2 scores are NaN or infinite"),
        ([1.0, 2.0], [0], r"\(2,\) and \(1,\)"),
        ([[1.0], [2.0]], [[0], [1]], "one score and one is_outlier"),
        ([1.0, 2.0], [0, 0], "all 2 test samples are inliers"),
        ([1.0, 2.0], [1, 1], "all 2 test samples are outliers"),
        ([1.0, 2.0], [1, 2], "0 or 1, but holds 2"),
    ],
)
def test_what_has_no_answer_is_refused(scores: Any, is_outlier: Any, message: str) -> None:
    for measure in (
        evaluate,
        roc,
        equal_error_threshold,
        lambda *case: half_total_error_rate(*case, 0.0),
    ):
        with pytest.raises(UserError, match=message):
            measure(scores, is_outlier)


@pytest.mark.parametrize(
    ("scores", "auroc", "parts"),
    [
        (np.arange(1000.0), 0.9, []),
        (np.arange(1000.0) * 1e-300, 0.9, []),
        (np.arange(1000.0) * 1e300, 0.9, []),
        (np.arange(4.0), 0.9, []),  # few samples are no collapse
        (np.arange(1000.0), 0.4996, []),  # its interval reaches 0.5
        (np.arange(1000.0), 0.485, ["inverted"]),
        (np.arange(1000.0) % 49, 0.5, ["only 49 distinct scores among 1000"]),
        (np.arange(1000.0) % 50, 0.5, []),
        (np.arange(100.0) % 9, 0.5, ["only 9 distinct scores among 100"]),
        (1e12 + np.arange(1000.0), 0.9, ["hardly vary"]),
        (np.full(100, 1e300), 0.5, ["only 1 distinct scores", "hardly vary"]),
        (np.zeros(100), 0.5, ["only 1 distinct scores", "hardly vary"]),
    ],
)
def test_collapse_is_said_in_one_sentence_each(
    scores: NDArray[np.float64], auroc: float, parts: list[str]
) -> None:
    warnings = collapse_warnings(
        "mse", scores, {"auroc": auroc, "auroc_ci": [auroc - 0.01, auroc + 0.01]}
    )
    assert len(warnings) == len(parts)
    for sentence, part in zip(warnings, parts, strict=True):
        assert sentence.startswith("mse: ") and part in sentence and sentence.endswith(".")


@pytest.mark.parametrize(("high", "inverted"), [(0.4999, True), (0.5, False), (0.62, False)])
def test_inverted_is_said_where_the_interval_lies_below_a_half(high: float, inverted: bool) -> None:
    """Also of an older result, which has the warning for any AUROC below 0.5; other warnings stay."""
    metrics = {"auroc": 0.45, "auroc_ci": [0.38, high]}
    assert bool(collapse_warnings("mse", np.arange(1000.0), metrics)) is inverted
    old = [
        "mse: inverted, an AUROC of 0.450 means that inliers get higher scores than outliers.",
        "another",
    ]
    assert standing(old, "mse", metrics["auroc_ci"]) == (old if inverted else ["another"])


def test_each_kind_of_outlier_is_measured_against_all_inliers() -> None:
    rng = np.random.default_rng(0)
    classes = ["good"] * 30 + ["scratch"] * 10 + ["hole"] * 20
    is_outlier = np.array([name != "good" for name in classes])
    scores = rng.normal(size=60) + np.array(
        [{"good": 0, "scratch": 0.5, "hole": 5}[name] for name in classes]
    )
    kinds = evaluate_kinds(scores, is_outlier, classes)
    assert list(kinds) == ["hole", "scratch"]
    for kind, metrics in kinds.items():
        outlier_scores = scores[[name == kind for name in classes]]
        assert metrics["outliers"] == len(outlier_scores)
        assert metrics["auroc"] == pytest.approx((outlier_scores[:, None] > scores[:30]).mean())
    assert kinds["hole"]["auroc"] == 1 > kinds["scratch"]["auroc"]


# The interval of an AUROC.


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
