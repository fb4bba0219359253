"""How far an AUROC can be trusted.

Its interval over the test images, and the paired comparison of two on the same images.

The interval is the widest of up to three, as no single one holds from 0.5 to 1, from 6 images to
10,000, for outliers that spread less or more than inliers, and with ties:

- DeLong's (1988) variance on the logit scale, from the scores: right in the interior, nothing where
all are in order;
- method 5 of Newcombe (2006), from the AUROC and the numbers of images alone: right at the edge, of
positive width at 1;
- Wilson's (1927) for a share of the smaller group, the largest variance that an AUROC can have,
  where a group is so small that its spread cannot be estimated (`FEW_IMAGES`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]

#: The method of `interval`, as results name it.
METHOD = "widest of DeLong (logit), Newcombe 5, Wilson"
#: Half the width of a 95 percent interval, in standard errors: the normal distribution's 97.5
#: percent point.
SIGMAS = 1.959963984540054
#: A group with fewer images says nothing of its own spread.
FEW_IMAGES = 4
_BISECTIONS = 60


@dataclass(frozen=True, eq=False)
class Placements:
    """What each image contributes to an AUROC.

    Attributes:
        inliers: float64 (n_in,), the share of outliers that score higher; a tie counts one half.
        outliers: float64 (n_out,), the share of inliers that score lower.
    """

    inliers: Array
    outliers: Array

    @property
    def auroc(self) -> float:
        return float(self.outliers.mean())

    @property
    def variances(self) -> tuple[float, float]:
        """DeLong's parts of the AUROC's variance, of the inliers and of the outliers.

        Each needs two images.
        """
        inliers = float(self.inliers.var(ddof=1))
        outliers = float(self.outliers.var(ddof=1))
        return inliers / len(self.inliers), outliers / len(self.outliers)

    def minus(self, other: "Placements") -> "Placements":
        """Those of the difference of two AUROCs over the same images."""
        return Placements(self.inliers - other.inliers, self.outliers - other.outliers)


def place(scores: Array, is_outlier: NDArray[np.bool_]) -> Placements:
    """The placements of N scores, of which both kinds are present."""
    inliers = scores[~is_outlier]
    outliers = scores[is_outlier]
    return Placements(
        inliers=1 - _share_below(np.sort(outliers), inliers),
        outliers=_share_below(np.sort(inliers), outliers),
    )


def _share_below(ordered: Array, values: Array) -> Array:
    below = np.searchsorted(ordered, values, "left")
    not_above = np.searchsorted(ordered, values, "right")
    share = (below + not_above) / (2 * len(ordered))
    return np.asarray(share, np.float64)


def interval(auroc: float, placements: Placements) -> Interval:
    """95 percent interval of an AUROC by `METHOD`, over test images; never of zero width."""
    inliers = len(placements.inliers)
    outliers = len(placements.outliers)
    by_counts = interval_of_counts(auroc, inliers, outliers)
    if min(inliers, outliers) < 2 or not 0 < auroc < 1:
        return by_counts
    variance = sum(placements.variances)
    if variance <= 0:
        return by_counts
    # DeLong's on the logit scale
    centre = log(auroc / (1 - auroc))
    half = SIGMAS * sqrt(variance) / (auroc * (1 - auroc))
    delong = (_logistic(centre - half), _logistic(centre + half))
    return widest(delong, by_counts)


def interval_of_counts(auroc: float, inliers: int, outliers: int) -> Interval:
    """As `interval`, where the scores are not at hand.

    Too narrow if outliers spread much less or more than inliers.

    Args:
        auroc: In [0, 1].
        inliers: How many were tested, at least 1.
        outliers: Likewise.
    """
    # Newcombe takes the mean of both groups for each
    images = (inliers + outliers) / 2 - 1
    smaller = min(inliers, outliers)

    def newcombe(value: float) -> float:
        lower = (1 - value) / (2 - value)
        upper = value / (1 + value)
        shape = 1 + images * (lower + upper)
        return value * (1 - value) * shape / (inliers * outliers)

    def wilson(value: float) -> float:
        return value * (1 - value) / smaller

    bounds = _score_interval(auroc, newcombe)
    if smaller >= FEW_IMAGES:
        return bounds
    return widest(bounds, _score_interval(auroc, wilson))


def widest(*intervals: Interval) -> Interval:
    """The interval that covers all of these."""
    lows, highs = zip(*intervals, strict=True)
    return min(lows), max(highs)


def standard_error(auroc: float, bounds: Interval) -> float:
    """By the longer arm of a 95 percent interval, which at 1 is the only one."""
    low, high = bounds
    return max(auroc - low, high - auroc) / SIGMAS


def _score_interval(auroc: float, variance: Callable[[float], float]) -> Interval:
    """The true values within `SIGMAS` of their own standard errors from an AUROC.

    `variance` is the same for 1 - value.
    """
    low = _lower(auroc, variance)
    high = 1 - _lower(1 - auroc, variance)
    return low, high


def _lower(auroc: float, variance: Callable[[float], float]) -> float:
    """The smallest such value, by bisection."""
    low, high = 0.0, auroc
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if auroc - middle > SIGMAS * sqrt(variance(middle)):
            low = middle
        else:
            high = middle
    return low


def _logistic(value: float) -> float:
    if value > 0:
        return 1 / (1 + exp(-value))
    return exp(value) / (1 + exp(value))
