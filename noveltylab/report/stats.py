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
from statistics import fmean

import numpy as np

from noveltylab.report.ranks import ENOUGH_CLASSES, LEVEL, ROUNDING, signed_rank
from noveltylab.scoring.auroc import widest

#: A cell's value and the standard error that the sampling of its test images gives it (None where
#: unknown).
Cells = dict[tuple[int, int], tuple[float, float | None]]
#: Inlier label -> the values and errors of its seeds.
ByClass = dict[int, list[tuple[float, float | None]]]


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
    """The summary of a row's cells, None if there are none."""
    if not cells:
        return None
    # each class counts once: the mean over its seeds
    by_class = _by_class(cells)
    classes = {label: _mean_value(seeds) for label, seeds in by_class.items()}
    # the mean of classes seed by seed, of seeds that have every class
    all_seeds = sorted({seed for _, seed in cells})
    full_seeds = [seed for seed in all_seeds if all((label, seed) in cells for label in classes)]
    by_seed = [fmean(cells[label, seed][0] for label in classes) for seed in full_seeds]
    seed_std = None
    if len(by_seed) > 1:
        seed_std = float(np.std(by_seed, ddof=1))
    return Summary(
        classes=classes,
        mean=fmean(classes.values()),
        seed_std=seed_std,
        seeds=len(by_seed),
        error=_error(by_class),
        interval=_interval(by_class),
        cells=len(cells),
    )


def _mean_value(seeds: Sequence[tuple[float, float | None]]) -> float:
    return fmean(value for value, _ in seeds)


def _by_class(cells: Cells) -> ByClass:
    by_class: ByClass = {label: [] for label in sorted({label for label, _ in cells})}
    for label, seed in sorted(cells):
        by_class[label].append(cells[label, seed])
    return by_class


def _error(by_class: ByClass) -> float | None:
    """The standard error of the mean of classes, None where one is unknown."""
    errors = []
    for seeds in by_class.values():
        error = _class_error(seeds)
        if error is None:
            return None
        errors.append(error)
    return float(np.linalg.norm(errors)) / len(errors)


def _class_error(seeds: Sequence[tuple[float, float | None]]) -> float | None:
    """The mean of the seeds' errors, as if they had the same test images.

    None where one is unknown.
    """
    errors = [error for _, error in seeds if error is not None]
    if len(errors) < len(seeds):
        return None
    return fmean(errors)


def _interval(by_class: ByClass) -> tuple[float, float] | None:
    """The interval of `Summary`."""
    values = [[value for value, _ in seeds] for seeds in by_class.values()]
    means = [fmean(seeds) for seeds in values]
    error = _error(by_class)
    images = Spread((error or 0.0) ** 2, np.inf)
    if len(means) > 1:  # over classes, and no narrower than the test images make it
        spreads = [of_mean(means), images]
    elif len(values[0]) > 1 and error is not None:  # over the seeds of the only class
        spreads = [add([of_mean(values[0]), images])]
    else:
        return None
    centre = fmean(means)
    low, high = widest(*(spread.interval(centre) for spread in spreads))
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
        if self.holm < LEVEL and self._leaves_out_zero:
            higher = "first" if self.mean > 0 else "second"
            return f"{higher} is higher{self._scope}"
        if self.classes > 1 and self.tests * 2 / 2**self.classes >= LEVEL:
            return f"no test: {self.tests} comparisons are too many for {self.classes} classes"
        return "no clear difference"

    @property
    def _leaves_out_zero(self) -> bool:
        if self.interval is None:
            return False
        low, high = self.interval
        return not low <= 0 <= high

    @property
    def _scope(self) -> str:
        if self.classes > 1:
            return ""
        if self.pairs > 1:
            return " on this class"
        return " on these images; one seed says nothing of others"


def compare(
    first: Cells, second: Cells, images: Mapping[tuple[int, int], Spread] | None = None
) -> Paired | None:
    """The comparison of two rows, None if no cell is in both.

    Args:
        first: Of one row.
        second: Of another row.
        images: Of a single class: the spread that the sampling of the test images gives each shared
            cell's difference.
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    ours = _by_class({cell: first[cell] for cell in shared})
    theirs = _by_class({cell: second[cell] for cell in shared})
    # the differences of each class, seed by seed, and their means
    gaps = {label: _gaps(ours[label], theirs[label]) for label in ours}
    means = np.array([fmean(seeds) for seeds in gaps.values()])
    # a class is tied under the larger standard error of the two
    errors = [_larger_error(ours[label], theirs[label]) for label in ours]
    tied = (np.abs(means) < errors) | (np.abs(means) < ROUNDING)
    # the test: over the classes, or over the images of the only one
    spread: Spread | None
    if len(means) > 1:
        spread, p = of_mean(means.tolist()), signed_rank(means)
    else:
        spreads = images or {}
        spread = _of_one_class(gaps[shared[0][0]], [spreads.get(cell) for cell in shared])
        p = spread.p(float(means[0])) if spread else None
    if spread and spread.variance < ROUNDING**2:  # differences without any spread
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


def _gaps(
    first: Sequence[tuple[float, float | None]], second: Sequence[tuple[float, float | None]]
) -> list[float]:
    """First minus second, seed by seed."""
    pairs = zip(first, second, strict=True)
    return [ours - theirs for (ours, _), (theirs, _) in pairs]


def _larger_error(
    first: Sequence[tuple[float, float | None]], second: Sequence[tuple[float, float | None]]
) -> float:
    """The larger standard error of a class in two rows; 0 for one that is unknown."""
    return max(_class_error(first) or 0.0, _class_error(second) or 0.0)


def _of_one_class(gaps: Sequence[float], images: Sequence[Spread | None]) -> Spread | None:
    """The spread over test images, as if all seeds had the same ones, and that over seeds."""
    spreads = [part for part in images if part is not None]
    if len(spreads) < len(gaps):
        return None
    error = fmean(part.variance**0.5 for part in spreads)
    sampling = Spread(error**2, min(part.degrees for part in spreads))
    if len(gaps) == 1:
        return sampling
    return add([sampling, of_mean(gaps)])


def _unpaired(first: ByClass, second: ByClass) -> Spread | None:
    """The spread of a difference whose classes show none.

    From the errors of the test images as if the two had different ones.
    """
    first_error, second_error = _error(first), _error(second)
    if not first_error or not second_error:
        return None
    return Spread(0 + first_error**2 + second_error**2, np.inf)


def correct(comparisons: Sequence[Paired]) -> list[Paired]:
    """The comparisons of one table, with Holm's correction for as many as have a p."""
    order = []
    for index, pair in enumerate(comparisons):
        if pair.p is not None:
            order.append((pair.p, index))
    order.sort()
    corrected: dict[int, float] = {}
    largest = 0.0
    for place, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p))
        corrected[index] = largest
    return [
        replace(pair, tests=len(order), holm=corrected.get(index))
        for index, pair in enumerate(comparisons)
    ]


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
