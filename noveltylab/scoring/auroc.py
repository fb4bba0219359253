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

    inliers: NDArray[np.float64]
    outliers: NDArray[np.float64]

    @property
    def auroc(self) -> float:
        return float(self.outliers.mean())

    @property
    def variances(self) -> tuple[float, float]:
        """DeLong's parts of the AUROC's variance, of the inliers and of the outliers.

        Each needs two images.
        """
        groups = (self.inliers, self.outliers)
        inliers, outliers = (float(group.var(ddof=1)) / len(group) for group in groups)
        return inliers, outliers

    def minus(self, other: "Placements") -> "Placements":
        """Those of the difference of two AUROCs over the same images."""
        return Placements(self.inliers - other.inliers, self.outliers - other.outliers)


def place(scores: NDArray[np.float64], is_outlier: NDArray[np.bool_]) -> Placements:
    """The placements of N scores, of which both kinds are present."""
    inliers, outliers = np.sort(scores[~is_outlier]), np.sort(scores[is_outlier])
    return Placements(
        inliers=1 - _share_below(outliers, scores[~is_outlier]),
        outliers=_share_below(inliers, scores[is_outlier]),
    )


def _share_below(ordered: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return np.asarray(below / (2 * len(ordered)), np.float64)


def interval(auroc: float, placements: Placements) -> tuple[float, float]:
    """95 percent interval of an AUROC by `METHOD`, over test images; never of zero width."""
    counts = len(placements.inliers), len(placements.outliers)
    wide = interval_of_counts(auroc, *counts)
    if min(counts) < 2 or not 0 < auroc < 1 or (variance := sum(placements.variances)) <= 0:
        return wide
    centre, half = log(auroc / (1 - auroc)), SIGMAS * sqrt(variance) / (auroc * (1 - auroc))
    return widest((_logistic(centre - half), _logistic(centre + half)), wide)


def interval_of_counts(auroc: float, inliers: int, outliers: int) -> tuple[float, float]:
    """As `interval`, where the scores are not at hand.

    Too narrow if outliers spread much less or more than inliers.

    Args:
        auroc: In [0, 1].
        inliers: How many were tested, at least 1.
        outliers: Likewise.
    """
    images = (inliers + outliers) / 2 - 1  # Newcombe takes the mean of both groups for each

    def newcombe(value: float) -> float:
        shape = 1 + images * ((1 - value) / (2 - value) + value / (1 + value))
        return value * (1 - value) * shape / (inliers * outliers)

    newcombes = _score_interval(auroc, newcombe)
    smaller = min(inliers, outliers)
    if smaller >= FEW_IMAGES:
        return newcombes
    return widest(newcombes, _score_interval(auroc, lambda value: value * (1 - value) / smaller))


def widest(*intervals: tuple[float, float]) -> tuple[float, float]:
    """The interval that covers all of these."""
    return min(low for low, _ in intervals), max(high for _, high in intervals)


def standard_error(auroc: float, bounds: tuple[float, float]) -> float:
    """By the longer arm of a 95 percent interval, which at 1 is the only one."""
    return max(auroc - bounds[0], bounds[1] - auroc) / SIGMAS


def _score_interval(auroc: float, variance: Callable[[float], float]) -> tuple[float, float]:
    """The true values within `SIGMAS` of their own standard errors from an AUROC.

    `variance` is the same for 1 - value.
    """
    return _lower(auroc, variance), 1 - _lower(1 - auroc, variance)


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
    return 1 / (1 + exp(-value)) if value > 0 else exp(value) / (1 + exp(value))
