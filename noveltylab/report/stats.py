"""Means, spreads and comparisons over cells; a cell is one (inlier, seed) of a method on one data and protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

#: A cell's value and the standard error that the sampling of its test images gives it (None where unknown).
Cells = dict[tuple[int, int], tuple[float, float | None]]

RESAMPLES = 2000
#: With fewer pairs even the clearest outcome has a two-sided signed-rank p above 0.05: 2 / 2**5 = 0.0625.
ENOUGH_PAIRS = 6
#: On CIFAR-10 means of ten classes closer than this are a tie (Hanley-McNeil gives about 0.010 a class at 0.65).
CIFAR_TIE = 0.005


@dataclass(frozen=True, eq=False)
class Summary:
    """Of the cells of one row.

    Attributes:
        classes: Inlier label -> mean over seeds.
        mean: Mean of the classes, each with the same weight.
        seed_std: Standard deviation (n - 1) of the class mean over seeds that have every class; None under 2 such seeds.
        seeds: How many such seeds there are.
        error: Standard error of the mean from the sampling of test images alone; None where unknown. Seeds count once:
            they share their test images under Protocol 2.
        values: float64 (N,), of the N cells.
        weights: float64 (N,), which keep classes with more seeds from counting more.
    """

    classes: dict[int, float]
    mean: float
    seed_std: float | None
    seeds: int
    error: float | None
    values: NDArray[np.float64]
    weights: NDArray[np.float64]

    @property
    def cells(self) -> int:
        return len(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 percent bootstrap interval of the mean over cells, drawn with replacement; None under 2 cells."""
        return _interval(self.values, self.weights)


def summarise(cells: Cells) -> Summary | None:
    """None if there are no cells."""
    if not cells:
        return None
    labels = sorted({inlier for inlier, _ in cells})
    by_class = {label: [value for (inlier, _), value in cells.items() if inlier == label] for label in labels}
    classes = {label: fmean(value for value, _ in found) for label, found in by_class.items()}
    by_seed = [
        fmean(cells[label, seed][0] for label in labels)
        for seed in sorted({seed for _, seed in cells})
        if all((label, seed) in cells for label in labels)
    ]
    return Summary(
        classes=classes,
        mean=fmean(classes.values()),
        seed_std=float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
        seeds=len(by_seed),
        error=_error(by_class),
        values=np.array([value for value, _ in cells.values()]),
        weights=np.array([1 / len(by_class[inlier]) for inlier, _ in cells]),
    )


def _error(by_class: dict[int, list[tuple[float, float | None]]]) -> float | None:
    errors = [[error for _, error in found] for found in by_class.values()]
    known = [[error for error in found if error is not None] for found in errors]
    if any(len(some) < len(every) for some, every in zip(known, errors, strict=True)):
        return None
    return float(np.sqrt(sum(fmean(found) ** 2 for found in known)) / len(known))


def _interval(values: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float] | None:
    """Percentile bootstrap of the weighted mean."""
    if len(values) < 2:
        return None
    drawn = _resamples(len(values))
    means = (values * weights)[drawn].sum(1) / weights[drawn].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


@cache
def _resamples(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))


@dataclass(frozen=True)
class Paired:
    """First minus second over the cells that both have.

    Attributes:
        pairs: How many cells.
        mean: Of the differences.
        interval: 95 percent bootstrap interval of it over cells; None under 2 pairs.
        p: Two-sided Wilcoxon signed-rank; None under `ENOUGH_PAIRS`.
        wins, ties, losses: Of the first; a tie is a difference under the larger standard error of the two cells.
    """

    pairs: int
    mean: float
    interval: tuple[float, float] | None
    p: float | None
    wins: int
    ties: int
    losses: int


def compare(first: Cells, second: Cells) -> Paired | None:
    """None if no cell is in both."""
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    gaps = np.array([first[cell][0] - second[cell][0] for cell in shared])
    errors = np.array([max(first[cell][1] or 0.0, second[cell][1] or 0.0) for cell in shared])
    tied = (np.abs(gaps) < errors) | (gaps == 0)
    return Paired(
        pairs=len(gaps),
        mean=float(gaps.mean()),
        interval=_interval(gaps, np.ones(len(gaps))),
        p=_signed_rank(gaps),
        wins=int(((gaps > 0) & ~tied).sum()),
        ties=int(tied.sum()),
        losses=int(((gaps < 0) & ~tied).sum()),
    )


def _signed_rank(gaps: NDArray[np.float64]) -> float | None:
    """Exact also with ties, where scipy's takes seconds; zeros are left out, as Wilcoxon did."""
    if len(gaps) < ENOUGH_PAIRS:
        return None
    from scipy.stats import rankdata  # takes a second: only where there is a test

    gaps = gaps[gaps != 0]
    ranks = (2 * rankdata(np.abs(gaps))).astype(np.int64)  # doubled: shared ranks are halves
    share = np.zeros(ranks.sum() + 1)  # of all signs, by the sum of the positive ranks
    share[0] = 1.0
    for step in ranks:
        share[step:] = (share[step:] + share[:-step]) / 2
        share[:step] /= 2
    positive = ranks[gaps > 0].sum()
    return min(1.0, 2 * float(min(share[: positive + 1].sum(), share[positive:].sum())))


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
    """Average ranks over classes (1 is the highest mean, equal means share their ranks).

    Attributes:
        mean: Row -> average rank, best first.
        classes: How many classes all rows have.
        critical: Nemenyi's critical difference at 5 percent: q sqrt(k (k + 1) / (6 N)), Demsar 2006.
    """

    mean: dict[str, float]
    classes: int
    critical: float


def rank(rows: Mapping[str, Mapping[int, float]]) -> Ranks | None:
    """None with fewer than 2 rows or 2 classes that all rows have.

    Args:
        rows: Row -> inlier label -> mean over seeds.
    """
    shared = sorted(set.intersection(*(set(classes) for classes in rows.values()))) if rows else []
    if len(rows) < 2 or len(shared) < 2:
        return None
    from scipy.stats import rankdata, studentized_range

    values = np.array([[classes[label] for label in shared] for classes in rows.values()])
    means = rankdata(-values, axis=0).mean(1)
    k, n = values.shape
    quantile = float(studentized_range.ppf(0.95, k, np.inf)) / 2**0.5
    ordered = sorted(zip(rows, means.tolist(), strict=True), key=lambda pair: pair[1])
    return Ranks(dict(ordered), n, quantile * (k * (k + 1) / (6 * n)) ** 0.5)
