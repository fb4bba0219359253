"""From novelty scores to decisions with a guarantee: split-conformal p-values, thresholds, Benjamini-Hochberg.

n held-out inliers, scored like any new image, make a new score s a p-value: p = (1 + #{held-out scores >= s}) / (n + 1).
If the new image is an inlier too, exchangeable with the held-out ones, P(p <= a) <= a for every a: without any assumption
on the scores, and for any n (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; Bates, Candès, Lei,
Romano and Sesia, Testing for Outliers with Conformal p-values, Annals of Statistics 2023). That is an average over draws of
the held-out inliers; for one such draw the realised rate follows a beta law (Vovk, 2012; Bates et al., section 2.3).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noveltylab.errors import UserError

Array = NDArray[np.float64]

#: how sure `Calibration.upper` is
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of held-out inliers: float64 (n,), rising, finite, n at least 1. UserError for others."""

    scores: Array

    def __post_init__(self) -> None:
        values = np.sort(np.asarray(self.scores, np.float64).ravel())
        if not len(values):
            raise UserError(
                "a threshold needs scores of held-out inliers, and there are none; raise protocol.val_fraction"
            )
        if not np.isfinite(values).all():
            raise UserError("the scores of the held-out inliers are not finite: training diverged, run it again")
        object.__setattr__(self, "scores", values)

    def __len__(self) -> int:
        return len(self.scores)

    def ranks(self, scores: ArrayLike) -> NDArray[np.int64]:
        """1 + #{held-out >= s} of scores (N,): whole numbers in 1 .. n + 1, int64 (N,); small is novel.

        Raises:
            ValueError: A score is NaN.
        """
        values = np.asarray(scores, np.float64)
        if np.isnan(values).any():
            raise ValueError("a score is NaN")
        return 1 + len(self) - np.searchsorted(self.scores, values, side="left").astype(np.int64)

    def p_values(self, scores: ArrayLike) -> Array:
        """Conformal p-values of scores (N,), in [1 / (n + 1), 1], (N,); small is novel. ValueError for NaN."""
        return self.ranks(scores) / (len(self) + 1)

    def allowed(self, fpr: float) -> int:
        """The largest rank whose p-value is at most `fpr`; 0 where even the smallest, 1 / (n + 1), is larger.

        Raises:
            UserError: `fpr` does not lie strictly between 0 and 1.
        """
        check_rate("fpr", fpr)
        return min(math.floor(fpr * (len(self) + 1) + 1e-9), len(self))  # 1e-9: 0.29 * 100 is just below 29

    def threshold(self, fpr: float) -> float | None:
        """The score above which p <= fpr, None where no score can be: then n is below 1 / fpr - 1."""
        k = self.allowed(fpr)
        return float(self.scores[len(self) - k]) if k else None

    def expected(self, fpr: float) -> float:
        """The false-positive rate averaged over draws of the held-out inliers, for scores without ties: k / (n + 1) <= fpr."""
        return self.allowed(fpr) / (len(self) + 1)

    def upper(self, fpr: float, confidence: float = CONFIDENCE) -> float:
        """What the realised rate of these very held-out inliers stays below, with that confidence over their draw.

        The quantile of Beta(k, n + 1 - k), k = allowed(fpr); with ties between scores the true rate is lower still.
        """
        from scipy.stats import beta

        k = self.allowed(fpr)
        return float(beta.ppf(confidence, k, len(self) + 1 - k)) if k else 0.0


def check_rate(name: str, value: float) -> None:
    """UserError unless value lies strictly between 0 and 1."""
    if not 0 < value < 1:
        raise UserError(f"{name}={value}: a share strictly between 0 and 1, e.g. {name}=0.05")


def fdr_rank(counts: ArrayLike, fdr: float) -> int:
    """Benjamini and Hochberg's rule (1995) over a whole batch of conformal p-values, from their histogram alone.

    Args:
        counts: (n + 1,), how many of the batch have rank 1, 2, ..., n + 1 (`Calibration.ranks`).
        fdr: Bound on the expected share of inliers among what is called novel, strictly between 0 and 1.

    Returns:
        The largest rank that is called novel, 0 for none. Conformal p-values of one calibration set depend on one another in
        the way under which the rule still holds (Bates et al. 2023, theorem 2).
    """
    check_rate("fdr", fdr)
    numbers = np.asarray(counts, np.int64)
    total, found = numbers.sum(), np.cumsum(numbers)
    passed = np.arange(1, len(numbers) + 1) / len(numbers) * total <= fdr * found * (1 + 1e-12)
    return int(np.flatnonzero(passed & (found > 0)).max(initial=-1)) + 1


def thresholds(
    held_out: ArrayLike, name: str, exact: bool, rates: tuple[float, ...] = (0.01, 0.05, 0.1)
) -> dict[str, object]:
    """The part of a run's result that says where to cut its score.

    Args:
        held_out: (n,), scores of held-out inliers.
        name: Of the score.
        exact: Whether nothing of the method was chosen by these inliers; where they chose the epoch, the guarantee is
            approximate.
        rates: False-positive rates, each strictly between 0 and 1.

    Returns:
        ``score``, ``held_out`` (n), ``exact``, ``at``: for each rate ``fpr``, ``threshold`` (novel is what lies above; None
        where n is too small), ``expected`` and ``upper`` (see Calibration).
    """
    calibration = Calibration(np.asarray(held_out, np.float64))
    cuts = [
        {
            "fpr": rate,
            "threshold": calibration.threshold(rate),
            "expected": calibration.expected(rate),
            "upper": calibration.upper(rate),
        }
        for rate in rates
    ]
    return {"score": name, "held_out": len(calibration), "exact": exact, "at": cuts}
