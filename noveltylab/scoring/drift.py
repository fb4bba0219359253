"""Whether new images still look like the held-out inliers: conformal test martingales.

Each new score gets a p-value among all scores before it, those of the n held-out inliers and of the
earlier new images: p = (#{above} + u (#{equal} + 1)) / (n + t), with u drawn uniformly. If the new
images are exchangeable with the held-out ones, these p-values are independent and uniform (Vovk,
Gammerman and Shafer, Algorithmic Learning in a Random World, 2005, theorem 8.2). Both matter: ranks
among the n held-out scores alone would share the luck of their draw, and the p-values that decide
(conformal.py) are counted against "novel" and not uniform.

The p-values are bet against. `SimpleJumper` is a nonnegative martingale that starts at 1; by
Ville's inequality it ever reaches 1 / a with a probability of at most a, however long it is watched
(Vovk, Petej, Nouretdinov, Ahlberg, Carlsson and Gammerman, Retrain or not retrain: conformal test
martingales for change-point detection, 2021, algorithm 1).

Novel images move it as well. So two things are tested, each at half of the false-alarm probability:

- `good`: the images that score below the threshold, against the held-out ones below it. Given that
  the k-th highest held-out score is x, the held-out scores below x are drawn like any scores of
  inliers below x. So it takes no notice of what scores above, be it ever so much, and moves when
  what is not called novel changes.
- `all`: every image. It moves when there are more novel ones than among inliers as well, and where
  a change is so large that everything is called novel and nothing is left to test for `good`.
"""

import math
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from noveltylab.scoring.conformal import Calibration, check_rate

#: Share of the wealth that moves between the bets at each step.
JUMP = 0.01
#: Slopes of the bets 1 + slope (p - 1/2): on small p-values, on none, on large ones.
SLOPES = np.array([-1.0, 0.0, 1.0])
#: Digits by which scores are compared: more depend on the batch and the processor.
DIGITS = 6
#: The false-alarm probability of a watch.
ALARM = 0.01
#: What is written for more wealth.
MOST = 1e300


def rounded(score: float) -> float:
    """A score with the digits that do not depend on its batch or processor."""
    return float(f"{score:.{DIGITS}g}")


class OnlineRank:
    """p-values of scores, each among all before it.

    Args:
        first: Scores (n,) that come before.
        rng: Breaks ties.
    """

    def __init__(self, first: ArrayLike, rng: np.random.Generator) -> None:
        self.rising = sorted(rounded(score) for score in np.asarray(first, float).tolist())
        self.rng = rng

    def p_value(self, score: float) -> float:
        """The p-value of the next score, in (0, 1]; small is novel. The score counts from then on."""
        value = rounded(score)
        above = len(self.rising) - bisect_right(self.rising, value)
        equal = len(self.rising) - above - bisect_left(self.rising, value)
        # 1 - [0, 1) is never 0
        share = 1 - self.rng.random()
        p_value = (above + share * (equal + 1)) / (len(self.rising) + 1)
        insort(self.rising, value)
        return float(p_value)


class SimpleJumper:
    """A martingale of p-values: what 1 has become by betting that they are not uniform."""

    def __init__(self) -> None:
        self.shares = np.full(len(SLOPES), 1 / len(SLOPES))
        self.log_wealth = 0.0

    def add(self, p_value: float) -> None:
        """Bets on the next p-value in [0, 1]."""
        shares = (1 - JUMP) * self.shares + JUMP / len(SLOPES)
        shares *= 1 + SLOPES * (p_value - 0.5)
        total = shares.sum()
        self.shares = shares / total
        self.log_wealth += math.log(total)

    @property
    def wealth(self) -> float:
        """What 1 has become; no more than MOST."""
        if self.log_wealth >= math.log(MOST):
            return MOST
        return math.exp(self.log_wealth)


@dataclass
class Stream:
    """A stream of scores, its martingale, and whether that ever was as high as `limit`."""

    ranks: OnlineRank
    limit: float
    martingale: SimpleJumper
    has_changed: bool = False

    def add(self, score: float) -> None:
        self.martingale.add(self.ranks.p_value(score))
        self.has_changed |= self.martingale.wealth >= self.limit


class Drift:
    """Both tests of new scores, one after the other.

    Args:
        calibration: Of the held-out inliers.
        rank: How many of the highest held-out scores, at least 1, are at or above the threshold:
            `Calibration.allowed`.
        alarm: Probability, in (0, 1), that either test ever speaks of a change where there is none.
        seed: Of the breaking of ties.

    Raises:
        UserError: `alarm` does not lie strictly between 0 and 1.
    """

    def __init__(
        self, calibration: Calibration, rank: int, alarm: float = ALARM, seed: int = 0
    ) -> None:
        check_rate("alarm", alarm)
        limit = 2 / alarm
        scores = [rounded(score) for score in calibration.scores.tolist()]
        self.threshold = scores[len(scores) - rank]
        below = [score for score in scores if score < self.threshold]
        first, second = np.random.default_rng(seed).spawn(2)
        self.good = Stream(OnlineRank(below, first), limit, SimpleJumper())
        self.all = Stream(OnlineRank(scores, second), limit, SimpleJumper())

    def add(self, score: float) -> None:
        """Takes the next score."""
        self.all.add(score)
        if rounded(score) < self.threshold:
            self.good.add(score)

    @property
    def changed(self) -> list[str]:
        """Which tests have spoken: "good", "all"."""
        tests = {"good": self.good, "all": self.all}
        return [name for name, test in tests.items() if test.has_changed]
