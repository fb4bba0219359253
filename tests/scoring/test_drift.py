"""Martingales: false alarms at the promised rate, changes found, outliers told from changes."""

import numpy as np
import pytest
from scipy.stats import binom, kstest

from noveltylab.errors import UserError
from noveltylab.scoring.conformal import Calibration
from noveltylab.scoring.drift import Drift, OnlineRank, SimpleJumper, rounded

#: Scores of inliers: continuous, of a few levels, and of a heavy tail.
SCORES = {
    "normal": lambda rng, n: rng.normal(5, 1, n),
    "few levels": lambda rng, n: rng.integers(0, 6, n).astype(float),
    "heavy tail": lambda rng, n: rng.pareto(1.5, n),
}
HELD_OUT, NEW, ALARM = 60, 250, 0.2


def watched(
    rng: np.random.Generator, held_out: np.ndarray, new: np.ndarray, seed: int
) -> list[str]:
    calibration = Calibration(held_out)
    drift = Drift(calibration, calibration.allowed(0.05), ALARM, seed)
    for score in new.tolist():
        drift.add(score)
    return drift.changed


@pytest.mark.parametrize("kind", SCORES)
def test_false_alarms_are_as_rare_as_promised(kind: str) -> None:
    """Over draws of held-out and new inliers, within binomial bounds: each test at half of `alarm`."""
    rng = np.random.default_rng(0)
    draws = 150
    alarms = {"good": 0, "all": 0}
    either = 0
    for seed in range(draws):
        changed = watched(rng, SCORES[kind](rng, HELD_OUT), SCORES[kind](rng, NEW), seed)
        either += bool(changed)
        for name in changed:
            alarms[name] += 1
    assert max(alarms.values()) <= binom.ppf(0.999, draws, ALARM / 2)
    assert either <= binom.ppf(0.999, draws, ALARM)


def test_outliers_move_the_test_of_all_and_not_that_of_the_good_ones() -> None:
    """Two fifths of all images are odd: `good` keeps its false-alarm rate, `all` speaks."""
    rng = np.random.default_rng(1)
    draws = 100
    alarms = {"good": 0, "all": 0}
    for seed in range(draws):
        new = rng.normal(5, 1, NEW)
        new[rng.random(NEW) < 0.4] += 50
        for name in watched(rng, rng.normal(5, 1, HELD_OUT), new, seed):
            alarms[name] += 1
    assert alarms["good"] <= binom.ppf(0.999, draws, ALARM / 2)
    assert alarms["all"] >= 95


@pytest.mark.parametrize(
    ("shift", "scale", "good"),
    # brighter by a little, steadier, and so far that nothing is left that is not novel
    [(1.0, 1.0, True), (-1.0, 1.0, True), (0.0, 0.3, None), (50.0, 1.0, False)],
)
def test_a_change_is_found(shift: float, scale: float, good: bool | None) -> None:
    rng = np.random.default_rng(2)
    draws = 30
    alarms = {"good": 0, "all": 0}
    for seed in range(draws):
        fine = rng.normal(5, 1, 100)
        changed = rng.normal(5 + shift, scale, 150)
        for name in watched(rng, rng.normal(5, 1, HELD_OUT), np.append(fine, changed), seed):
            alarms[name] += 1
    if good is not None:
        assert alarms["all"] >= 0.9 * draws
        assert (alarms["good"] >= 0.6 * draws) == good


def test_p_values_are_independent_and_uniform_with_ties() -> None:
    """Over all new images: their law, and no correlation of neighbours."""
    rng = np.random.default_rng(3)
    rows = []
    for seed in range(300):
        ranks = OnlineRank(rng.integers(0, 4, 10), np.random.default_rng(seed))
        rows.append([ranks.p_value(float(score)) for score in rng.integers(0, 4, 20)])
    p_values = np.array(rows)
    assert kstest(p_values.ravel(), "uniform").pvalue > 0.001
    correlation = np.corrcoef(p_values[:, :-1].ravel(), p_values[:, 1:].ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(p_values[:, 1:].size)


def test_ranks_among_the_held_out_alone_would_raise_false_alarms() -> None:
    """Why each score counts from then on: the luck of one draw of held-out inliers is no change."""
    rng = np.random.default_rng(4)
    draws, alarms = 60, 0
    for _ in range(draws):
        held_out = np.sort(rng.normal(size=20))
        martingale, highest = SimpleJumper(), 0.0
        for score in rng.normal(size=1500):
            above = 20 - np.searchsorted(held_out, score)
            martingale.add((above + rng.random()) / 21)
            highest = max(highest, martingale.wealth)
        alarms += highest >= 1 / 0.05
    assert alarms > 12


def test_the_wealth_is_that_of_the_definition_and_stays_finite() -> None:
    rng = np.random.default_rng(5)
    p_values = rng.beta(1, 2, 200)
    martingale = SimpleJumper()
    accounts = np.full(3, 1 / 3)
    for p_value in p_values.tolist():
        martingale.add(p_value)
        accounts = 0.99 * accounts + 0.01 * accounts.sum() / 3
        accounts = accounts * (1 + np.array([-1, 0, 1]) * (p_value - 0.5))
        assert martingale.wealth == pytest.approx(accounts.sum(), rel=1e-9)
    for _ in range(5000):
        martingale.add(1e-9)
    assert martingale.wealth == 1e300


def test_p_values_and_wealth_are_those_of_crepes() -> None:
    base = pytest.importorskip("crepes.base")
    martingales = pytest.importorskip("crepes.martingales")
    rng = np.random.default_rng(6)
    held_out, new = rng.normal(size=30), rng.normal(0.5, 1, 100)
    np.random.seed(7)  # noqa: NPY002  # that of crepes is the old one
    shares = np.random.rand(100)  # noqa: NPY002

    class Given:
        """The same tie-breaks as theirs."""

        def random(self) -> float:
            return 1 - float(next(given))

    given = iter(shares)
    ranks = OnlineRank(held_out, Given())  # type: ignore[arg-type]  # only drawn from
    ours = [ranks.p_value(score) for score in new.tolist()]
    theirs = base.p_values_online_regression(new, alphas_cal=held_out, seed=7)
    assert np.allclose(ours, theirs, atol=1e-12)
    martingale = SimpleJumper()
    wealth = []
    for p_value in ours:
        martingale.add(p_value)
        wealth.append(martingale.wealth)
    jumper = martingales.SimpleJumper(J=0.01, bf=martingales.EpsilonBettingFunction(E=[-1, 0, 1]))
    assert np.allclose(wealth, jumper.apply(theirs), rtol=1e-9)


def test_rounding_of_another_batch_changes_no_rank() -> None:
    scores = np.random.default_rng(8).normal(5, 1, 50).astype(np.float32)
    other = scores * (1 + 2e-8)
    assert [rounded(score) for score in scores.tolist()] == [
        rounded(score) for score in other.tolist()
    ]
    for alarm in (0, 1, np.nan):
        with pytest.raises(UserError, match="alarm=.*strictly between 0 and 1"):
            Drift(Calibration(scores), 1, alarm)
