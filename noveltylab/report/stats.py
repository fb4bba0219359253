"""Means, spreads and ranks over cells.

A cell is one (inlier, seed) of a method on one data and protocol.

The independent units are the classes: the seeds of a class share its images, so they are averaged
first and each class counts once (Demsar 2006). Classes count as drawn from such classes: what is
said of several holds for others like them. What is said of a single class holds for it alone, over
its test images and the seeds.

Simulated with the spreads of kept results, Student's interval over ten class means covers 95
percent, and equal methods are told apart in at most 5 percent of tables. Where one class lies far
from all others (OCSVM on COIL-20) it covers 80 percent.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from noveltylab.report.blocks import RankPlot
from noveltylab.scoring.auroc import widest

#: A value and the standard error that the sampling of its test images gives it (None where
#: unknown).
Value = tuple[float, float | None]
#: (inlier label, seed) -> value.
Cells = dict[tuple[int, int], Value]
#: Inlier label -> the values of its seeds.
ByClass = dict[int, list[Value]]

#: How often a conclusion about equal methods may be wrong, over all comparisons of a table
#: together.
LEVEL = 0.05
#: With fewer classes even the clearest outcome has a two-sided signed-rank p above LEVEL: 2 / 2**5
#: = 0.0625.
ENOUGH_CLASSES = 6
#: Closer values are equal: a mean of the same numbers made in another way differs in its last bits.
ROUNDING = 1e-9
#: On CIFAR-10 means of ten classes closer than this are a tie (Hanley-McNeil gives about 0.010 a
#: class at 0.65).
CIFAR_TIE = 0.005


@dataclass(frozen=True)
class Spread:
    """The variance of a mean or of a difference.

    With the degrees of freedom that it was estimated with.
    """

    variance: float
    degrees: float

    def interval(self, centre: float) -> tuple[float, float]:
        """95 percent, by Student's distribution."""
        from scipy.special import stdtrit

        half = float(stdtrit(self.degrees, 1 - LEVEL / 2)) * self.variance**0.5
        return centre - half, centre + half

    def p(self, difference: float) -> float:
        """Two-sided, of no difference."""
        from scipy.special import stdtr

        if self.variance == 0:
            return 1.0
        return float(2 * stdtr(self.degrees, -abs(difference) / self.variance**0.5))


def add(parts: Iterable[Spread]) -> Spread:
    """The variance of a sum of independent parts, with Satterthwaite's degrees of freedom."""
    parts = [part for part in parts if part.variance > 0]
    variance = sum(part.variance for part in parts)
    squares = sum(part.variance**2 / part.degrees for part in parts)
    if not squares:
        return Spread(variance, np.inf)
    return Spread(variance, variance**2 / squares)


def of_mean(values: Sequence[float]) -> Spread:
    """Of the mean of at least 2 independent values."""
    return Spread(float(np.var(values, ddof=1)) / len(values), len(values) - 1)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of the cells of one row.

    Attributes:
        classes: Inlier label -> mean over seeds.
        mean: Mean of the classes, each with the same weight.
        seed_std: Standard deviation (n - 1) of the class mean over seeds that have every class;
            None under 2 such seeds.
        seeds: How many such seeds there are.
        error: Standard error of the mean from the sampling of test images alone; None where
            unknown. Seeds count once: they share their test images under Protocol 2.
        interval: 95 percent, of a mean in [0, 1]; None for a single cell. Over several classes
            Student's, with one value a class, and no narrower than the test images alone make it.
            Of a single class Student's over its seeds, with the error from the test images added.
        cells: How many there are.
    """

    classes: dict[int, float]
    mean: float
    seed_std: float | None
    seeds: int
    error: float | None
    interval: tuple[float, float] | None
    cells: int


def summarise(cells: Cells) -> Statistics | None:
    """The statistics of a row's cells, None if there are none."""
    if not cells:
        return None
    # each class counts once: the mean over its seeds
    seeds_by_class = by_class(cells)
    classes = {label: mean_value(seeds) for label, seeds in seeds_by_class.items()}
    # the mean of classes seed by seed, of seeds that have every class
    means = []
    for seed in sorted({seed for _, seed in cells}):
        values = [cells[label, seed] for label in classes if (label, seed) in cells]
        if len(values) == len(classes):
            means.append(mean_value(values))
    seed_std = None
    if len(means) > 1:
        seed_std = float(np.std(means, ddof=1))
    return Statistics(
        classes=classes,
        mean=fmean(classes.values()),
        seed_std=seed_std,
        seeds=len(means),
        error=error_of_mean(seeds_by_class),
        interval=_interval(seeds_by_class),
        cells=len(cells),
    )


def mean_value(values: Iterable[Value]) -> float:
    """The mean of values without their errors."""
    return fmean(value for value, _ in values)


def by_class(cells: Cells) -> ByClass:
    """The cells class by class, in the order of labels and seeds."""
    classes: ByClass = {}
    for label, seed in sorted(cells):
        classes.setdefault(label, []).append(cells[label, seed])
    return classes


def error_of_mean(classes: ByClass) -> float | None:
    """The standard error of the mean of classes, None where one is unknown."""
    errors = []
    for seeds in classes.values():
        error = class_error(seeds)
        if error is None:
            return None
        errors.append(error)
    return float(np.linalg.norm(errors)) / len(errors)


def class_error(seeds: Sequence[Value]) -> float | None:
    """The mean of the seeds' errors, as if they had the same test images.

    None where one is unknown.
    """
    errors = [error for _, error in seeds if error is not None]
    if len(errors) < len(seeds):
        return None
    return fmean(errors)


def _interval(classes: ByClass) -> tuple[float, float] | None:
    """The interval of `Statistics`."""
    means = [mean_value(seeds) for seeds in classes.values()]
    error = error_of_mean(classes)
    images = Spread((error or 0.0) ** 2, np.inf)
    if len(means) > 1:
        # over classes, and no narrower than the test images make it
        spreads = [of_mean(means), images]
    else:
        # over the seeds of the only class
        (seeds,) = classes.values()
        if len(seeds) < 2 or error is None:
            return None
        spreads = [add([of_mean([value for value, _ in seeds]), images])]
    centre = fmean(means)
    low, high = widest(*(spread.interval(centre) for spread in spreads))
    return max(0.0, low), min(1.0, high)


def tie_reasons(gap: float, data: str, error: float | None, seed_std: float | None) -> list[str]:
    """Why a difference of two means says nothing; empty if it is none of the known ties."""
    reasons = []
    if error is not None and abs(gap) < error:
        reasons.append(f"under the standard error {error:.4f}")
    if data == "cifar10" and abs(gap) < CIFAR_TIE:
        reasons.append(f"under {CIFAR_TIE}")
    if seed_std is not None and abs(gap) < seed_std:
        reasons.append(f"within one seed std {seed_std:.4f}")
    return reasons


def signed_rank(gaps: NDArray[np.float64]) -> float | None:
    """Wilcoxon's two-sided p of no difference, None under `ENOUGH_CLASSES` differences.

    Exact also with ties, where scipy's takes seconds; zeros are left out, as Wilcoxon did.
    """
    if len(gaps) < ENOUGH_CLASSES:
        return None
    gaps = gaps[np.abs(gaps) >= ROUNDING]
    # doubled: shared ranks are halves
    ranks = (2 * _shared_ranks(np.abs(gaps))).astype(np.int64)
    # the share of all signs, by the sum of the positive ranks
    share = np.zeros(ranks.sum() + 1)
    share[0] = 1.0
    for step in ranks:
        share[step:] = (share[step:] + share[:-step]) / 2
        share[:step] /= 2
    # both tails from the sum that was seen
    positive = ranks[gaps > 0].sum()
    lower = share[: positive + 1].sum()
    upper = share[positive:].sum()
    return min(1.0, 2 * float(min(lower, upper)))


def _shared_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 1, the smallest; values that are equal within ROUNDING share theirs."""
    order = np.argsort(values, kind="stable")
    level = np.cumsum(np.diff(values[order], prepend=-np.inf) > ROUNDING) - 1
    count = np.bincount(level)
    ranks = np.empty(len(values))
    ranks[order] = (np.cumsum(count) - (count - 1) / 2)[level]
    return ranks


def rank(rows: Mapping[str, Mapping[int, float]]) -> RankPlot | None:
    """Average ranks over classes; None with fewer than 2 rows or 2 classes that all rows have.

    Means that are equal within ROUNDING share their ranks.

    Args:
        rows: Row -> inlier label -> mean over seeds.
    """
    if len(rows) < 2:
        return None
    shared = set.intersection(*map(set, rows.values()))
    if len(shared) < 2:
        return None
    # ranks class by class, the highest mean first, then their means
    ranks = []
    for label in sorted(shared):
        values = [-classes[label] for classes in rows.values()]
        ranks.append(_shared_ranks(np.array(values)))
    means = np.mean(ranks, axis=0).tolist()
    critical = None
    if len(shared) >= ENOUGH_CLASSES:
        critical = _critical_difference(len(rows), len(shared))
    ordered = sorted(zip(rows, means, strict=True), key=lambda pair: pair[1])
    return RankPlot(dict(ordered), len(shared), critical)


def _critical_difference(rows: int, classes: int) -> float:
    """Nemenyi's at 5 percent: q sqrt(k (k + 1) / (6 N)), Demsar 2006."""
    from scipy.stats import studentized_range  # takes a second: only where there are ranks

    quantile = float(studentized_range.ppf(1 - LEVEL, rows, np.inf)) / 2**0.5
    return quantile * sqrt(rows * (rows + 1) / (6 * classes))
