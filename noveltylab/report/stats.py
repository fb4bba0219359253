"""Means, spreads and comparisons over cells.

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
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from noveltylab.scoring.auroc import widest

#: A cell's value and the standard error that the sampling of its test images gives it (None where
#: unknown).
Cells = dict[tuple[int, int], tuple[float, float | None]]
#: Inlier label -> the values and errors of its seeds.
ByClass = dict[int, list[tuple[float, float | None]]]

#: How often a conclusion about equal methods may be wrong, over all comparisons of a table
#: together.
LEVEL = 0.05
#: With fewer classes even the clearest outcome has a two-sided signed-rank p above LEVEL: 2 / 2**5
#: = 0.0625.
ENOUGH_CLASSES = 6
#: On CIFAR-10 means of ten classes closer than this are a tie (Hanley-McNeil gives about 0.010 a
#: class at 0.65).
CIFAR_TIE = 0.005
#: Closer values are equal: a mean of the same numbers made in another way differs in its last bits.
ROUNDING = 1e-9


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
    return Spread(variance, variance**2 / squares if squares else np.inf)


def of_mean(values: Sequence[float]) -> Spread:
    """Of the mean of at least 2 independent values."""
    return Spread(float(np.var(values, ddof=1)) / len(values), len(values) - 1)


@dataclass(frozen=True, eq=False)
class Summary:
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


def summarise(cells: Cells) -> Summary | None:
    """None if there are no cells."""
    if not cells:
        return None
    by_class = _by_class(cells)
    classes = {label: fmean(value for value, _ in seeds) for label, seeds in by_class.items()}
    by_seed = [
        fmean(cells[label, seed][0] for label in classes)
        for seed in sorted({seed for _, seed in cells})
        if all((label, seed) in cells for label in classes)
    ]
    return Summary(
        classes=classes,
        mean=fmean(classes.values()),
        seed_std=float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
        seeds=len(by_seed),
        error=_error(by_class),
        interval=_interval(by_class),
        cells=len(cells),
    )


def _by_class(cells: Cells) -> ByClass:
    by_class: ByClass = {label: [] for label in sorted({label for label, _ in cells})}
    for label, seed in sorted(cells):
        by_class[label].append(cells[label, seed])
    return by_class


def _error(by_class: ByClass) -> float | None:
    errors = [_class_error(seeds) for seeds in by_class.values()]
    numbers = [error for error in errors if error is not None]
    return float(np.linalg.norm(numbers)) / len(numbers) if len(numbers) == len(errors) else None


def _class_error(seeds: Sequence[tuple[float, float | None]]) -> float | None:
    """The mean of the seeds' errors, as if they had the same test images.

    None where one is unknown.
    """
    numbers = [error for _, error in seeds if error is not None]
    return fmean(numbers) if len(numbers) == len(seeds) else None


def _interval(by_class: ByClass) -> tuple[float, float] | None:
    values = [[value for value, _ in seeds] for seeds in by_class.values()]
    means = [fmean(seeds) for seeds in values]
    error = _error(by_class)
    images = Spread((error or 0.0) ** 2, np.inf)
    if len(means) > 1:
        spreads = [of_mean(means), images]
    elif len(values[0]) > 1 and error is not None:
        spreads = [add([of_mean(values[0]), images])]
    else:
        return None
    low, high = widest(*(spread.interval(fmean(means)) for spread in spreads))
    return max(0.0, low), min(1.0, high)


@dataclass(frozen=True)
class Paired:
    """First minus second over the cells that both have, as one difference a class.

    Seeds are averaged first.

    Attributes:
        classes: How many classes.
        pairs: How many cells.
        mean: Mean of the classes' differences.
        interval: 95 percent, Student's over the classes; of a single class the one that goes with
            `p`. None where nothing is known of the spread.
        p: Two-sided: Wilcoxon's signed rank over the classes; of a single class DeLong's over its
            test images, with the spread over seeds added. None under `ENOUGH_CLASSES` classes, and
            of a single class without its scores. wins, ties, losses: Classes in which the first is
            higher; a tie is a difference under the larger standard error that the test images give
            the two.
        tests: How many comparisons of the table have a p.
        holm: The p after Holm's correction for these.
    """

    classes: int
    pairs: int
    mean: float
    interval: tuple[float, float] | None
    p: float | None
    wins: int
    ties: int
    losses: int
    tests: int = 0
    holm: float | None = None

    @property
    def verdict(self) -> str:
        """What may be concluded, at `LEVEL` for all comparisons of the table together."""
        if self.holm is None and self.classes == 1:
            return "no test of one class without the scores of both"
        if self.holm is None:
            return f"no test: {self.classes} classes, at least {ENOUGH_CLASSES} are needed"
        if (
            self.holm < LEVEL
            and self.interval is not None
            and not self.interval[0] <= 0 <= self.interval[1]
        ):
            return f"{'first' if self.mean > 0 else 'second'} is higher{self._scope}"
        if self.classes > 1 and self.tests * 2 / 2**self.classes >= LEVEL:
            return f"no test: {self.tests} comparisons are too many for {self.classes} classes"
        return "no clear difference"

    @property
    def _scope(self) -> str:
        if self.classes > 1:
            return ""
        return (
            " on this class"
            if self.pairs > 1
            else " on these images; one seed says nothing of others"
        )


def compare(
    first: Cells, second: Cells, images: Mapping[tuple[int, int], Spread] | None = None
) -> Paired | None:
    """None if no cell is in both.

    Args:
        first: Of one row.
        second: Of another row.
        images: Of a single class: the spread that the sampling of the test images gives each shared
            cell's difference.
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    ours, theirs = (_by_class({cell: cells[cell] for cell in shared}) for cells in (first, second))
    gaps = {
        label: [
            ours_value - theirs_value
            for (ours_value, _), (theirs_value, _) in zip(ours[label], theirs[label], strict=True)
        ]
        for label in ours
    }
    means = np.array([fmean(seeds) for seeds in gaps.values()])
    errors = [
        max(_class_error(ours[label]) or 0.0, _class_error(theirs[label]) or 0.0) for label in ours
    ]
    tied = (np.abs(means) < errors) | (np.abs(means) < ROUNDING)
    spread: Spread | None
    if len(means) > 1:
        spread, p = of_mean(means.tolist()), _signed_rank(means)
    else:
        spread = _of_one_class(gaps[shared[0][0]], [(images or {}).get(cell) for cell in shared])
        p = spread.p(float(means[0])) if spread else None
    if spread and spread.variance < ROUNDING**2:
        spread = _unpaired(ours, theirs)
    mean = float(means.mean())
    return Paired(
        classes=len(means),
        pairs=len(shared),
        mean=mean,
        interval=spread.interval(mean) if spread else None,
        p=p,
        wins=int(((means > 0) & ~tied).sum()),
        ties=int(tied.sum()),
        losses=int(((means < 0) & ~tied).sum()),
    )


def _of_one_class(gaps: Sequence[float], images: Sequence[Spread | None]) -> Spread | None:
    """The spread over test images, as if all seeds had the same ones, and that over seeds."""
    spreads = [part for part in images if part is not None]
    if len(spreads) < len(gaps):
        return None
    sampling = Spread(
        fmean(part.variance**0.5 for part in spreads) ** 2, min(part.degrees for part in spreads)
    )
    return add([sampling, of_mean(gaps)]) if len(gaps) > 1 else sampling


def _unpaired(first: ByClass, second: ByClass) -> Spread | None:
    """The spread of a difference whose classes show none.

    From the errors of the test images as if the two had different ones.
    """
    errors = [_error(by_class) for by_class in (first, second)]
    numbers = [error for error in errors if error]
    return (
        Spread(sum(error**2 for error in numbers), np.inf) if len(numbers) == len(errors) else None
    )


def correct(comparisons: Sequence[Paired]) -> list[Paired]:
    """The comparisons of one table, with Holm's correction for as many as have a p."""
    order = sorted((pair.p, index) for index, pair in enumerate(comparisons) if pair.p is not None)
    corrected: dict[int, float] = {}
    largest = 0.0
    for place, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p))
        corrected[index] = largest
    return [
        replace(pair, tests=len(order), holm=corrected.get(index))
        for index, pair in enumerate(comparisons)
    ]


def _signed_rank(gaps: NDArray[np.float64]) -> float | None:
    """Exact also with ties, where scipy's takes seconds; zeros are left out, as Wilcoxon did."""
    if len(gaps) < ENOUGH_CLASSES:
        return None
    gaps = gaps[np.abs(gaps) >= ROUNDING]
    ranks = (2 * _ranks(np.abs(gaps))).astype(np.int64)  # doubled: shared ranks are halves
    share = np.zeros(ranks.sum() + 1)  # of all signs, by the sum of the positive ranks
    share[0] = 1.0
    for step in ranks:
        share[step:] = (share[step:] + share[:-step]) / 2
        share[:step] /= 2
    positive = ranks[gaps > 0].sum()
    return min(1.0, 2 * float(min(share[: positive + 1].sum(), share[positive:].sum())))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 1, the smallest; values that are equal within ROUNDING share theirs."""
    order = np.argsort(values, kind="stable")
    level = np.cumsum(np.diff(values[order], prepend=-np.inf) > ROUNDING) - 1
    count = np.bincount(level)
    ranks = np.empty(len(values))
    ranks[order] = (np.cumsum(count) - (count - 1) / 2)[level]
    return ranks


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
    shared = sorted(set.intersection(*(set(classes) for classes in rows.values()))) if rows else []
    if len(rows) < 2 or len(shared) < 2:
        return None
    by_class = [np.array([-classes[label] for classes in rows.values()]) for label in shared]
    means = np.mean([_ranks(values) for values in by_class], axis=0)
    critical = (
        _critical_difference(len(rows), len(shared)) if len(shared) >= ENOUGH_CLASSES else None
    )
    ordered = sorted(zip(rows, means.tolist(), strict=True), key=lambda pair: pair[1])
    return Ranks(dict(ordered), len(shared), critical)


def _critical_difference(rows: int, classes: int) -> float:
    from scipy.stats import studentized_range  # takes a second: only where there are ranks

    quantile = float(studentized_range.ppf(1 - LEVEL, rows, np.inf)) / 2**0.5
    return quantile * sqrt(rows * (rows + 1) / (6 * classes))
