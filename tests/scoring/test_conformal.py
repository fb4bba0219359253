"""p-values and thresholds against their definitions, the promised false-positive rate realised."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, betabinom, binom, false_discovery_control

from noveltylab.errors import UserError
from noveltylab.results.scores import read_scores
from noveltylab.scoring.conformal import (
    TOLERANCE,
    Calibration,
    decide,
    fdr_rank,
    needed,
    smallest_rate,
    thresholds,
)
from tests.formats import write_images, write_mnist
from tests.methods.conftest import SMALL

SCORES = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=40)
RATES = st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.29, 0.5, 0.9])


@given(SCORES, SCORES)
def test_p_values_are_their_definition_with_ties(
    held_out: list[float], scores: list[float]
) -> None:
    p_values = Calibration(np.array(held_out)).p_values(scores)
    expected = [
        (1 + sum(value >= score for value in held_out)) / (len(held_out) + 1) for score in scores
    ]
    assert p_values.tolist() == expected


@given(SCORES, SCORES, RATES)
def test_the_threshold_says_what_the_p_value_says(
    held_out: list[float], scores: list[float], fpr: float
) -> None:
    calibration = Calibration(np.array(held_out))
    threshold = calibration.threshold(fpr)
    novel = calibration.p_values(scores) <= fpr + 1e-12
    above = np.zeros(len(scores), bool) if threshold is None else np.array(scores) > threshold
    assert novel.tolist() == above.tolist()
    assert calibration.expected(fpr) <= fpr + 1e-12


@given(SCORES, SCORES, RATES)
def test_benjamini_hochberg_is_that_of_scipy(
    held_out: list[float], scores: list[float], fdr: float
) -> None:
    calibration = Calibration(np.array(held_out))
    ranks = calibration.ranks(scores)
    largest = fdr_rank(np.bincount(ranks - 1, minlength=len(held_out) + 1), fdr)
    adjusted = false_discovery_control(calibration.p_values(scores))
    assert (ranks <= largest).tolist() == (adjusted <= fdr * (1 + 1e-9)).tolist()


def test_the_law_of_the_realised_rate() -> None:
    """Over draws of held-out inliers: the mean rate is k / (n + 1), and `upper` is exceeded by 5
    percent of the draws.
    """
    rng = np.random.default_rng(0)
    n, fpr, draws = 59, 0.1, 4000
    held_out = np.sort(rng.uniform(size=(draws, n)), 1)
    calibration = Calibration(held_out[0])
    limits = held_out[:, n - calibration.allowed(fpr)]
    rates = 1 - limits  # of fresh uniform scores, exactly
    assert abs(rates.mean() - calibration.expected(fpr)) < 4 * rates.std() / np.sqrt(draws)
    assert abs((rates > calibration.upper(fpr)).mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / draws)


#: Held-out inliers, rate, confidence.
CONFIDENT = [(59, 0.05, 0.95), (93, 0.05, 0.95), (300, 0.05, 0.9), (300, 0.1, 0.99)]
#: Fresh and held-out scores: continuous, of eleven levels, of two, and of one.
LEVELS = {"continuous": None, "eleven levels": 10, "two levels": 1, "one level": 0}


@pytest.mark.parametrize(("n", "fpr", "confidence"), CONFIDENT)
@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_the_realised_rate_stays_under_fpr_with_the_confidence(
    n: int, fpr: float, confidence: float, levels: int | None
) -> None:
    """Over draws of held-out inliers, within binomial bounds: with ties it does so more often."""
    rng = np.random.default_rng(n)
    draws = 2000
    within = 0
    for _ in range(draws):
        uniform = rng.uniform(1, 2, n)
        held_out = uniform if levels is None else np.ceil(uniform * levels)
        threshold = Calibration(held_out).threshold(fpr, confidence)
        assert threshold is not None
        within += true_rate(threshold, levels) <= fpr
    rank = Calibration(np.arange(1.0, n + 1)).allowed(fpr, confidence)
    law = beta.cdf(fpr, rank, n + 1 - rank)
    assert law >= confidence
    # one rank more would promise too much
    assert beta.cdf(fpr, rank + 1, n - rank) < confidence
    assert within >= binom.ppf(1e-4, draws, law)
    if levels is None:
        assert within <= binom.ppf(1 - 1e-4, draws, law)


def true_rate(threshold: float, levels: int | None) -> float:
    """P(score > threshold) of fresh inliers: uniform in [1, 2], or its multiple rounded up."""
    if levels is None:
        return min(max(2 - threshold, 0.0), 1.0)
    if not levels:
        return float(threshold < 0)
    # a score is `level` if the uniform one lies in ((level - 1) / levels, level / levels]
    return min(max(2 - math.floor(threshold) / levels, 0.0), 1.0)


def test_fifty_nine_held_out_inliers_suffice() -> None:
    assert needed(0.05, 0.95) == 59
    assert Calibration(np.arange(59.0)).threshold(0.05, 0.95) == pytest.approx(
        58, rel=2 * TOLERANCE
    )
    assert Calibration(np.arange(58.0)).threshold(0.05, 0.95) is None
    reason = decide(Calibration(np.arange(58.0)), [], 0.05, None, 0.95).reason
    assert "58 held-out inliers cannot give a rate under 0.05 with 95 % confidence" in reason
    assert "59 are needed; fpr=0.051 can be decided" in reason
    assert "59 are needed for a rate under 0.05" in decide(None, [], 0.05, None, 0.95).reason


@given(
    st.integers(1, 2000),
    st.floats(1e-3, 0.999),
    st.floats(0.001, 0.999) | st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_how_many_held_out_inliers_a_confidence_needs(
    n: int, fpr: float, confidence: float
) -> None:
    """By the definition; and the rate that is offered instead can be decided."""
    calibration = Calibration(np.zeros(n))
    assert (calibration.allowed(fpr, confidence) > 0) == (n >= needed(fpr, confidence))
    assert calibration.allowed(fpr, confidence) <= calibration.allowed(fpr)
    rate = float(smallest_rate(n, confidence))
    assert decide(calibration, [], rate, None, confidence).rank_threshold


def test_folds_and_batches_have_no_confidence() -> None:
    with pytest.raises(UserError, match="protocol.val_fraction instead of protocol.folds"):
        Calibration(np.arange(100.0), folds=100).allowed(0.05, 0.95)
    with pytest.raises(UserError, match="goes with fpr="):
        decide(Calibration(np.arange(100.0)), [], 0.05, 0.1, 0.95)
    for confidence in (0, 1, -1, np.nan):
        with pytest.raises(UserError, match="strictly between 0 and 1"):
            Calibration(np.arange(100.0)).threshold(0.05, confidence)


def test_few_held_out_inliers_promise_no_small_rate() -> None:
    calibration = Calibration(np.arange(18.0))
    assert calibration.threshold(0.05) is None
    assert Calibration(np.arange(19.0)).threshold(0.05) == pytest.approx(18.0, rel=TOLERANCE)
    section = thresholds(np.arange(18.0), "mse", exact=True)
    assert [row["threshold"] for row in section["at"]] == [None, None, pytest.approx(17, TOLERANCE)]  # type: ignore[attr-defined]
    assert [row["needed"] for row in section["at"]] == [99, 19, 9]  # type: ignore[attr-defined]


@given(st.integers(1, 3000), st.floats(1e-4, 0.999))
def test_how_many_held_out_inliers_a_rate_needs(n: int, fpr: float) -> None:
    """By the definition: the rule decides from so many on; and the rate that is offered instead can
    be decided.
    """
    assert (Calibration(np.zeros(n)).allowed(fpr) > 0) == (n >= needed(fpr))
    assert 1 / (n + 1) <= float(smallest_rate(n)) < 1.2 / (n + 1)
    assert decide(Calibration(np.zeros(n)), [], float(smallest_rate(n))).rank_threshold


@given(SCORES, SCORES, RATES, st.booleans())
def test_nothing_is_decided_where_no_file_could_be_novel(
    held_out: list[float], scores: list[float], rate: float, batch: bool
) -> None:
    """Decided or not: by SciPy's rule for the batch, in which one file lies above all that is held
    out.
    """
    calibration = Calibration(np.array(held_out))
    counts = np.bincount(calibration.ranks(scores) - 1, minlength=len(held_out) + 1)
    decision = (
        decide(calibration, counts, 0.5, rate) if batch else decide(calibration, counts, rate)
    )
    if max(scores) <= max(held_out):
        scores = [100.0, *sorted(scores)[1:]]
    p_values = calibration.p_values(scores)
    smallest = false_discovery_control(p_values).min() if batch else p_values.min()
    assert (decision.rank_threshold is not None) == (smallest <= rate * (1 + 1e-9))
    assert (decision.rank_threshold is None) == bool(decision.reason)


def test_scores_apart_by_rounding_are_ties() -> None:
    """Against "novel": what another processor or batch adds to a held-out image's score leaves its
    p-value.
    """
    held_out = np.array([-40.0, -3.0, 1e-7, 0.5, 20.0, 90.0])
    size = np.maximum(np.abs(held_out), np.median(np.abs(held_out)))
    for moved in (held_out, held_out - 9e-5 * size, held_out + 9e-5 * size):
        assert Calibration(held_out).ranks(moved).tolist() == [7, 6, 5, 4, 3, 2]
    assert Calibration(held_out).ranks(held_out + 2e-4 * size).tolist() == [6, 5, 4, 3, 2, 1]
    # apart by a tenth of TOLERANCE, and told apart all the same
    close = 1000 + 0.01 * np.arange(40)
    assert Calibration(close).ranks(close + 0.005).tolist() == list(range(40, 0, -1))


@pytest.mark.parametrize("bad", [[], [np.nan], [np.inf, 1.0]])
def test_bad_held_out_scores_are_refused(bad: list[float]) -> None:
    with pytest.raises(UserError):
        Calibration(np.array(bad))


@pytest.mark.parametrize("fpr", [0, 1, -1, np.nan])
def test_bad_rates_are_refused(fpr: float) -> None:
    with pytest.raises(UserError, match="strictly between 0 and 1"):
        Calibration(np.ones(3)).threshold(fpr)


#: data -> (writes it, its inlier, options): all with a few hundred inliers, so that the rate can be
#: seen
SETS: dict[str, tuple[Callable[[Path], object], str]] = {
    "digits": (lambda root: None, "3"),
    "mnist": (lambda root: write_mnist(root, n_train=3000, n_test=100), "3"),
    "images": (lambda root: write_images(root / "own", {"": 400}), "good"),
}
METHODS = ("pca", "knn", "gmm", "iforest", "ca_entropy")


@pytest.mark.parametrize("data", SETS)
@pytest.mark.parametrize("method", METHODS)
def test_the_realised_rate_on_fresh_inliers_is_the_chosen_one(
    run_here: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    data: str,
) -> None:
    """Test inliers that no stage has seen: their false positives follow the beta-binomial law of
    fresh and held-out ones.
    """
    # the pictures take longer than all the rest
    monkeypatch.setattr("noveltylab.run.pipeline.draw", lambda *_: None)
    SETS[data][0](tmp_path)
    small = [f"method.{key}={str(value).lower()}" for key, value in SMALL.get(method, {}).items()]
    root = tmp_path / "own" if data == "images" else tmp_path
    protocol = "folders" if data == "images" else "p1"
    run_here(
        f"method={method}", f"data={data}", f"data.root={root}", f"inlier={SETS[data][1]}", f"protocol={protocol}",
        "data.verify=false", "protocol.val_fraction=0.5", "protocol.train_share=0.6", "trainer.max_epochs=2",
        "trainer.accelerator=cpu", "data.batch_size=16", *small,
    )  # fmt: skip
    (folder,) = (path.parent for path in (tmp_path / "outputs").rglob("result.json"))
    held_out, test = read_scores(folder / "calibration.csv"), read_scores(folder / "scores.csv")
    primary = next(iter(held_out.columns)) if method != "ca_entropy" else "novelty"
    calibration = Calibration(held_out.columns[primary])
    fresh = test.columns[primary][~test.is_outlier]
    assert min(len(calibration), len(fresh)) > 40
    for fpr in (0.05, 0.1, 0.3):
        k, n = calibration.allowed(fpr), len(calibration)
        wrong = int((calibration.p_values(fresh) <= fpr).sum())
        low, high = betabinom.ppf([0.0005, 0.9995], len(fresh), k, n + 1 - k)
        assert low <= wrong <= high, (fpr, wrong, len(fresh))
