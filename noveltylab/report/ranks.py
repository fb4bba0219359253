"""Ranks: Wilcoxon's signed rank of paired differences, and average ranks of rows over classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

#: How often a conclusion about equal methods may be wrong, over all comparisons of a table
#: together.
LEVEL = 0.05
#: With fewer classes even the clearest outcome has a two-sided signed-rank p above LEVEL: 2 / 2**5
#: = 0.0625.
ENOUGH_CLASSES = 6
#: Closer values are equal: a mean of the same numbers made in another way differs in its last bits.
ROUNDING = 1e-9


def signed_rank(gaps: NDArray[np.float64]) -> float | None:
    """Wilcoxon's two-sided p of no difference, None under `ENOUGH_CLASSES` differences.

    Exact also with ties, where scipy's takes seconds; zeros are left out, as Wilcoxon did."""
    if len(gaps) < ENOUGH_CLASSES:
        return None
    gaps = gaps[np.abs(gaps) >= ROUNDING]
    ranks = (2 * _ranks(np.abs(gaps))).astype(np.int64)  # doubled: shared ranks are halves
    # the share of all signs, by the sum of the positive ranks
    share = np.zeros(ranks.sum() + 1)
    share[0] = 1.0
    for step in ranks:
        share[step:] = (share[step:] + share[:-step]) / 2
        share[:step] /= 2
    # both tails from the sum that was seen
    positive = ranks[gaps > 0].sum()
    tail = float(min(share[: positive + 1].sum(), share[positive:].sum()))
    return min(1.0, 2 * tail)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 1, the smallest; values that are equal within ROUNDING share theirs."""
    order = np.argsort(values, kind="stable")
    level = np.cumsum(np.diff(values[order], prepend=-np.inf) > ROUNDING) - 1
    count = np.bincount(level)
    ranks = np.empty(len(values))
    ranks[order] = (np.cumsum(count) - (count - 1) / 2)[level]
    return ranks


@dataclass(frozen=True)
class Ranks:
    """Average ranks over classes, 1 for the highest mean.

    Means that are equal within ROUNDING share their ranks.

    Attributes:
        mean: Row -> average rank, best first.
        classes: How many classes all rows have.
        critical: Nemenyi's critical difference at 5 percent: q sqrt(k (k + 1) / (6 N)), Demsar
            2006; None under `ENOUGH_CLASSES`, where it is exceeded too often by chance.
    """

    mean: dict[str, float]
    classes: int
    critical: float | None


def rank(rows: Mapping[str, Mapping[int, float]]) -> Ranks | None:
    """None with fewer than 2 rows or 2 classes that all rows have.

    Args:
        rows: Row -> inlier label -> mean over seeds.
    """
    if len(rows) < 2:
        return None
    shared = sorted(set.intersection(*(set(classes) for classes in rows.values())))
    if len(shared) < 2:
        return None
    # ranks class by class, the highest mean first, then their means
    by_class = [np.array([-classes[label] for classes in rows.values()]) for label in shared]
    means = np.mean([_ranks(values) for values in by_class], axis=0)
    critical = None
    if len(shared) >= ENOUGH_CLASSES:
        critical = _critical_difference(len(rows), len(shared))
    ordered = sorted(zip(rows, means.tolist(), strict=True), key=lambda pair: pair[1])
    return Ranks(dict(ordered), len(shared), critical)


def _critical_difference(rows: int, classes: int) -> float:
    from scipy.stats import studentized_range  # takes a second: only where there are ranks

    quantile = float(studentized_range.ppf(1 - LEVEL, rows, np.inf)) / 2**0.5
    return quantile * sqrt(rows * (rows + 1) / (6 * classes))
