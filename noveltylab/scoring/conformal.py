"""From novelty scores to decisions with a guarantee.

Split-conformal p-values, thresholds, Benjamini-Hochberg.

n held-out inliers, scored like any new image, make a new score s a p-value: p = (1 + #{held-out
scores >= s}) / (n + 1). If the new image is an inlier too, exchangeable with the held-out ones, P(p
<= a) <= a for every a: without any assumption on the scores, and for any n (Vovk, Gammerman and
Shafer, Algorithmic Learning in a Random World, 2005; Bates, Candès, Lei, Romano and Sesia, Testing
for Outliers with Conformal p-values, Annals of Statistics 2023). That is an average over draws of
the held-out inliers; for one such draw the realised rate follows a beta law (Vovk, 2012; Bates et
al., section 2.3): where what lies above the k-th largest held-out score is called novel, the rate
is Beta(k, n + 1 - k). A `confidence` asks for the largest k at which that law stays under the rate
so often (a tolerance limit: Wilks, 1941). For scores without ties that is an equation, with ties
the rate is lower still.

The smallest p-value is 1 / (n + 1): with few held-out inliers no score could be novel at a small
rate. Then nothing is decided at all (`decide`), since "inlier" would be the answer to every image.

Ties are broken against "novel": a held-out score counts as high as s where it lies below s by
rounding alone (TOLERANCE).
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noveltylab.errors import UserError

Array = NDArray[np.float64]

#: how sure `Calibration.upper` is
CONFIDENCE = 0.95
#: How far two computations of one score may lie apart, as shares of its size: float32 sums in
#: another order, that is in another batch, with batch norms folded in, on another processor or by
#: ONNX. 16 roundings cover nearly every score of every method, and 5e-5 all of them; as much is
#: granted only where the scores themselves lie 100 times as far apart.
ROUNDING, TOLERANCE, SPREAD = 16 * float(np.finfo(np.float32).eps), 1e-4, 0.01
#: false-positive rates whose thresholds a run keeps
RATES = (0.01, 0.05, 0.1)
#: why folds go with no confidence
NO_LAW = (
    "confidence= needs inliers that nothing was fitted on, and this run held each out in folds, for "
    "which no such law is known; train with protocol.val_fraction instead of protocol.folds"
)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of held-out inliers, of which new scores get p-values.

    Attributes:
        scores: float64 (n,), rising, finite, n at least 1.
        folds: 0 for inliers that nothing was fitted on; else in how many folds each was held out
            once (scoring/folds.py).
        levels: (n,), rising, each score raised by what rounding may add: a score up to there counts
            as equal.

    Raises:
        UserError: No scores, or some that are not finite.
    """

    scores: Array
    folds: int = 0
    levels: Array = field(init=False)

    def __post_init__(self) -> None:
        values = np.sort(np.asarray(self.scores, np.float64).ravel())
        if not len(values):
            raise UserError(
                "a threshold needs scores of held-out inliers, and there are none; raise protocol.val_fraction"
            )
        if not np.isfinite(values).all():
            raise UserError(
                "the scores of the held-out inliers are not finite: training diverged, run it again"
            )
        size = np.maximum(np.abs(values), np.median(np.abs(values)))
        spread = np.quantile(values, 0.75) - np.quantile(values, 0.25)
        margin = np.clip(SPREAD * spread, ROUNDING * size, TOLERANCE * size)
        object.__setattr__(self, "scores", values)
        object.__setattr__(self, "levels", values + margin)

    def __len__(self) -> int:
        return len(self.scores)

    def ranks(self, scores: ArrayLike) -> NDArray[np.int64]:
        """1 + #{levels >= s} of scores (N,): whole numbers in 1 .. n + 1, int64 (N,).

        Small is novel.

        Raises:
            ValueError: A score is NaN.
        """
        values = np.asarray(scores, np.float64)
        if np.isnan(values).any():
            raise ValueError("a score is NaN")
        below = np.searchsorted(self.levels, values, side="left").astype(np.int64)
        return 1 + len(self) - below

    def p_values(self, scores: ArrayLike) -> Array:
        """Conformal p-values of scores (N,), in [1 / (n + 1), 1], (N,); small is novel.

        ValueError for NaN.
        """
        return self.ranks(scores) / (len(self) + 1)

    def allowed(self, fpr: float, confidence: float | None = None) -> int:
        """The largest rank that is called novel; 0 where none can be.

        Args:
            fpr: Ranks whose p-value is at most so large.
            confidence: Unless None, of these the ranks for which the realised rate is at most `fpr`
                with that confidence over the draw of the held-out inliers.

        Raises:
            UserError: A value does not lie strictly between 0 and 1; `confidence` for folds, where
                no such law is known.
        """
        check_rate("fpr", fpr)
        # 1e-9: 0.29 * 100 is just below 29
        rank = min(math.floor(fpr * (len(self) + 1) + 1e-9), len(self))
        if confidence is None:
            return rank
        check_rate("confidence", confidence)
        if self.folds:
            raise UserError(NO_LAW)
        return min(rank, _confident_rank(len(self), fpr, confidence))

    def threshold(self, fpr: float, confidence: float | None = None) -> float | None:
        """The score above which the rule of `allowed` calls novel, None where no score can be."""
        k = self.allowed(fpr, confidence)
        if not k:
            return None
        return float(self.levels[len(self) - k])

    def expected(self, fpr: float) -> float:
        """The false-positive rate averaged over draws of the held-out inliers.

        For scores without ties: k / (n + 1) <= fpr.
        """
        return self.allowed(fpr) / (len(self) + 1)

    def bound(self, fpr: float) -> float:
        """What the averaged false-positive rate is proven not to exceed, whatever the method.

        The average is over draws of the held-out inliers. It is `expected`, but with fewer folds
        than images, where it is the worst case of an erratic method.
        """
        rate = self.expected(fpr)
        if not self.folds:
            return rate
        n = len(self)
        m = n // self.folds
        # theorems 3 and 4, see scoring/folds.py
        first = rate + (1 - rate) * (m - 1) / (n + m)
        second = 2 * rate + 2 * (1 - 1 / self.folds) / (m + 1)
        return min(1.0, first, second)

    def upper(self, fpr: float, confidence: float = CONFIDENCE) -> float | None:
        """What the realised rate stays below, with that confidence over the draw of the inliers.

        The quantile of Beta(k, n + 1 - k), k = allowed(fpr); with ties between scores the true rate
        is lower still. None for folds, where no such law is known.
        """
        if self.folds:
            return None
        from scipy.stats import beta

        k = self.allowed(fpr)
        if not k:
            return 0.0
        return float(beta.ppf(confidence, k, len(self) + 1 - k))


def check_rate(name: str, value: float) -> None:
    """UserError unless value lies strictly between 0 and 1."""
    if not 0 < value < 1:
        raise UserError(f"{name}={value}: a share strictly between 0 and 1, e.g. {name}=0.05")


def _confident_rank(count: int, fpr: float, confidence: float) -> int:
    """The largest k with P(Beta(k, count + 1 - k) <= fpr) >= confidence; 0 for none.

    That probability is P(Binomial(count, fpr) >= k), which is computed here.
    """
    from scipy.stats import binom

    # for shares such as 1 - 0.9, which is just below 0.1
    remainder = (1 - confidence) * (1 + 1e-12)
    rank = int(binom.ppf(1 - confidence, count, fpr))
    while binom.cdf(rank, count, fpr) <= remainder:
        rank += 1
    return rank


def checked_rate(fpr: float, fdr: float | None, confidence: float | None = None) -> float:
    """The rate of the rule that decides, `fdr` unless it is None; UserError for a bad one."""
    if fdr is None:
        check_rate("fpr", fpr)
        if confidence is not None:
            check_rate("confidence", confidence)
        return fpr
    if confidence is not None:
        raise UserError("confidence= goes with fpr=, not with fdr=, which is about the whole batch")
    check_rate("fdr", fdr)
    return fdr


def fdr_rank(counts: ArrayLike, fdr: float) -> int:
    """Benjamini and Hochberg's rule (1995) over a batch of p-values, from their histogram alone.

    Args:
        counts: (n + 1,), how many of the batch have rank 1, 2, ..., n + 1 (`Calibration.ranks`).
        fdr: Bound on the expected share of inliers among what is called novel, strictly between 0
            and 1.

    Returns:
        The largest rank that is called novel, 0 for none. Conformal p-values of one calibration set
        depend on one another in the way under which the rule still holds (Bates et al. 2023,
        theorem 2).
    """
    check_rate("fdr", fdr)
    numbers = np.asarray(counts, np.int64)
    cumulative = np.cumsum(numbers)
    p_values = np.arange(1, len(numbers) + 1) / len(numbers)
    # p <= fdr * (how many are as small) / (all)
    novel = p_values * numbers.sum() <= fdr * cumulative * (1 + 1e-12)
    positions = np.flatnonzero(novel & (cumulative > 0))
    return int(positions.max(initial=-1)) + 1


def needed(fpr: float, confidence: float | None = None) -> int:
    """How many held-out inliers a rule takes: the smallest n at which `Calibration.allowed` is > 0.

    1 / (n + 1) <= fpr, and for a confidence 1 - (1 - fpr)^n >= confidence.
    """
    count = max(1, math.ceil((1 - 1e-9) / fpr) - 1)
    if confidence is None:
        return count
    confident = math.log(1 - confidence) / math.log1p(-fpr)
    return max(count, math.ceil(confident * (1 - 1e-12)))


def smallest_rate(held_out: int, confidence: float | None = None) -> str:
    """The smallest false-positive rate that so many held-out inliers decide.

    Rounded up to be typed: 12 -> "0.077".
    """
    rate = 1 / (held_out + 1)
    if confidence is not None:
        rate = max(rate, -math.expm1(math.log(1 - confidence) / held_out))
    digits = 1 - math.floor(math.log10(min(rate, 1 - rate)))
    rounded = math.ceil(rate * 10**digits - 1e-9) / 10**digits
    return f"{rounded:.{digits}f}".rstrip("0")


def percent(share: float) -> str:
    """A share as it is said: 0.95 -> "95 %"."""
    return f"{100 * share:.6g} %"


@dataclass(frozen=True)
class Decision:
    """What a rule decides.

    Attributes:
        rank_threshold: Ranks up to this one are novel, the others inliers; None if nothing is
            decided.
        reason: A sentence that says why; "" with a decision.
    """

    rank_threshold: int | None
    reason: str = ""


def decide(
    calibration: Calibration | None,
    counts: ArrayLike,
    fpr: float,
    fdr: float | None = None,
    confidence: float | None = None,
) -> Decision:
    """Applies a rule to a batch of p-values.

    Args:
        calibration: None without held-out inliers.
        counts: (n + 1,), how many of the batch have rank 1, 2, ..., n + 1; any without
            `calibration`.
        fpr: Novel is what has p <= fpr.
        fdr: Instead, unless None: Benjamini and Hochberg's rule.
        confidence: With `fpr`, as `Calibration.allowed` takes it.

    Returns:
        A decision without a threshold where even a file above all held-out inliers would not be
        called novel.
    """
    rate = checked_rate(fpr, fdr, confidence)
    goal = f"p <= {rate:g}"
    if confidence is not None:
        goal = f"a rate under {rate:g} with {percent(confidence)} confidence"
    if calibration is None:
        return Decision(
            None,
            "no held-out inliers, so there are no p-values and nothing can be called novel or inlier: "
            f"{_many(needed(rate, confidence))} are needed for {goal} (protocol.val_fraction holds some out)",
        )
    size = len(calibration)
    usable = f"fpr={smallest_rate(size, confidence)} can be decided"
    if fdr is None:
        rank = calibration.allowed(fpr, confidence)
        if rank:
            return Decision(rank)
        return Decision(
            None,
            f"{size} held-out inliers cannot give {goal}, so nothing can be called novel or inlier: "
            f"{_many(needed(fpr, confidence))} are needed; {usable}",
        )
    numbers = np.array(counts, np.int64)
    rank = fdr_rank(numbers, fdr)
    total = int(numbers.sum())
    # one file is imagined above all held-out inliers
    if not numbers[0] and total:
        last = int(np.flatnonzero(numbers)[-1])
        numbers[last] -= 1
        numbers[0] = 1
    if rank or not total or fdr_rank(numbers, fdr):
        return Decision(rank)
    share = fdr * int(numbers[0]) / total
    return Decision(
        None,
        f"{size} held-out inliers cannot decide {total} files by fdr={fdr:g}: the most novel ones need p <= {share:.2g}, the "
        f"smallest p is {1 / (size + 1):.2g}, so nothing can be called novel or inlier; {_many(needed(share))} are needed; "
        f"{usable}",
    )


def _many(count: int) -> str:
    return f"{count:,}" if count < 1e9 else f"{count:.2g}"


def thresholds(
    held_out: ArrayLike, name: str, exact: bool, rates: tuple[float, ...] = RATES, folds: int = 0
) -> dict[str, object]:
    """The part of a run's result that holds the thresholds of its score.

    Args:
        held_out: (n,), scores of held-out inliers.
        name: Of the score.
        exact: Whether nothing of the method was chosen by these inliers; where they chose the
            epoch, the guarantee is approximate.
        rates: False-positive rates, each strictly between 0 and 1.
        folds: As Calibration has it.

    Returns:
        ``score``, ``held_out`` (n), ``exact``, ``folds``, ``smallest_fpr`` (that has a threshold)
        and ``at``, for each rate: ``fpr``, ``threshold`` (novel is what lies above; None where n is
        too small), ``needed`` (the n that it takes), ``expected``, ``bound`` and ``upper`` (see
        Calibration).
    """
    calibration = Calibration(np.asarray(held_out, np.float64), folds)
    rows = []
    for rate in rates:
        row = {
            "fpr": rate,
            "threshold": calibration.threshold(rate),
            "needed": needed(rate),
            "expected": calibration.expected(rate),
            "bound": calibration.bound(rate),
            "upper": calibration.upper(rate),
        }
        rows.append(row)
    return {
        "score": name,
        "held_out": len(calibration),
        "exact": exact,
        "folds": folds,
        "smallest_fpr": float(smallest_rate(len(calibration))),
        "at": rows,
    }
