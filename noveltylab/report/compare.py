"""Which rows and floors of one (protocol, data) are compared and ranked, and what follows.

A comparison is paired: over the cells that both have, as one difference a class.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

import numpy as np

from noveltylab.errors import UserError
from noveltylab.report.collect import Run
from noveltylab.report.rows import FLOORS, Row, floor_cells, paired_cells, seen_floor_cells
from noveltylab.report.stats import (
    ENOUGH_CLASSES,
    LEVEL,
    ROUNDING,
    ByClass,
    Cells,
    Spread,
    Value,
    add,
    by_class,
    class_error,
    error_of_mean,
    of_mean,
    signed_rank,
    summarise,
)
from noveltylab.results.record import SEEN
from noveltylab.results.scores import Scores, read_scores
from noveltylab.scoring.auroc import FEW_IMAGES, Placements, place


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
            of a single class without its scores.
        wins, ties, losses: Classes in which the first is higher; a tie is a difference under the
            larger standard error that the test images give the two.
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


#: (first row, second row or floor, the comparison of their primary scores)
Comparisons = Sequence[tuple[str, str, Paired]]
#: Cell -> the scores that a number was made from, as the only column; None where they are not at
#: hand.
Columns = Callable[[tuple[int, int]], Scores | None]


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
    ours = by_class({cell: first[cell] for cell in shared})
    theirs = by_class({cell: second[cell] for cell in shared})
    # the differences of each class, seed by seed, and their means
    gaps = {label: _gaps(ours[label], theirs[label]) for label in ours}
    means = np.array([fmean(seeds) for seeds in gaps.values()])
    # a class is tied under the larger standard error of the two
    errors = [_larger_error(ours[label], theirs[label]) for label in ours]
    tied = (np.abs(means) < errors) | (np.abs(means) < ROUNDING)
    # the test: over the classes, or over the images of the only one
    spread: Spread | None
    p = None
    if len(means) > 1:
        spread = of_mean(means.tolist())
        p = signed_rank(means)
    else:
        spreads = images or {}
        (class_gaps,) = gaps.values()
        spread = _of_one_class(class_gaps, [spreads.get(cell) for cell in shared])
        if spread is not None:
            p = spread.p(float(means[0]))
    # differences without any spread
    if spread is not None and spread.variance < ROUNDING**2:
        spread = _unpaired(ours, theirs)
    mean = float(means.mean())
    interval = None
    if spread is not None:
        interval = spread.interval(mean)
    return Paired(
        classes=len(means),
        pairs=len(shared),
        mean=mean,
        interval=interval,
        p=p,
        wins=int(((means > 0) & ~tied).sum()),
        ties=int(tied.sum()),
        losses=int(((means < 0) & ~tied).sum()),
    )


def _gaps(first: Sequence[Value], second: Sequence[Value]) -> list[float]:
    """First minus second, seed by seed."""
    return [ours - theirs for (ours, _), (theirs, _) in zip(first, second, strict=True)]


def _larger_error(first: Sequence[Value], second: Sequence[Value]) -> float:
    """The larger standard error of a class in two rows; 0 for one that is unknown."""
    return max(class_error(first) or 0.0, class_error(second) or 0.0)


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
    first_error = error_of_mean(first)
    second_error = error_of_mean(second)
    if not first_error or not second_error:
        return None
    return Spread(first_error**2 + second_error**2, np.inf)


def correct(comparisons: Sequence[Paired]) -> list[Paired]:
    """The comparisons of one table, with Holm's correction for as many as have a p."""
    order = []
    for index, paired in enumerate(comparisons):
        if paired.p is not None:
            order.append((paired.p, index))
    order.sort()
    holm: dict[int, float] = {}
    largest = 0.0
    for position, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - position) * p))
        holm[index] = largest
    corrected = []
    for index, paired in enumerate(comparisons):
        corrected.append(replace(paired, tests=len(order), holm=holm.get(index)))
    return corrected


def compare_all(rows: Sequence[Row]) -> list[tuple[str, str, Paired]]:
    """Every pair of rows that share cells on the same splits, then each row against its own floors.

    A floor that is the row's own method is left out, and one that a row of that method stands for.
    The p of all these are corrected together.
    """
    pairs = [*_between_rows(rows), *_against_floors(rows)]
    corrected = correct([paired for _, _, paired in pairs])
    comparisons = []
    for (first, second, _), paired in zip(pairs, corrected, strict=True):
        comparisons.append((first, second, paired))
    return comparisons


def _between_rows(rows: Sequence[Row]) -> Iterator[tuple[str, str, Paired]]:
    for first, second in combinations(rows, 2):
        cells, other_cells = paired_cells(first, second)
        spreads = _image_spreads(_own_scores(first), _own_scores(second), cells)
        paired = compare(cells, other_cells, spreads)
        if paired is not None:
            yield first.name, second.name, paired


def _against_floors(rows: Sequence[Row]) -> Iterator[tuple[str, str, Paired]]:
    for row in rows:
        for floor in (*FLOORS, *row.seen_floors):
            cells = row.floor(floor)
            if _has_a_row(floor, row, cells, rows):
                continue
            spreads = _image_spreads(_own_scores(row), _floor_scores(row, floor), cells)
            paired = compare(row.cells(), cells, spreads)
            if paired is not None:
                yield row.name, f"floor: {floor}", paired


def _has_a_row(floor: str, row: Row, cells: Cells, rows: Sequence[Row]) -> bool:
    """Whether the floor is the row's own method, or a row of its method has all its cells."""
    for candidate in rows:
        if candidate.family != floor.removesuffix(SEEN):
            continue
        if candidate is row:
            return True
        if floor in FLOORS and paired_cells(row, candidate)[1].keys() >= cells.keys():
            return True
    return False


def _image_spreads(
    first: Columns, second: Columns, cells: Cells
) -> Mapping[tuple[int, int], Spread]:
    """The variance that sampling test images gives each cell's difference, by DeLong.

    Only for the cells of a single class.

    Empty for several classes. A cell is left out where scores are not at hand, or where a kind has
    too few images.
    """
    if len({label for label, _ in cells}) != 1:
        return {}
    spreads = {}
    for cell in cells:
        spread = _image_spread(first(cell), second(cell))
        if spread is not None:
            spreads[cell] = spread
    return spreads


def _image_spread(first: Scores | None, second: Scores | None) -> Spread | None:
    """Of the difference of the only columns of both."""
    if first is None or second is None:
        return None
    if first.ids != second.ids or not np.array_equal(first.is_outlier, second.is_outlier):
        return None
    counts = np.bincount(first.is_outlier, minlength=2)
    if counts.min() < FEW_IMAGES:
        return None
    difference = _placements(first).minus(_placements(second))
    parts = zip(difference.variances, counts, strict=True)
    return add(Spread(variance, int(count) - 1) for variance, count in parts)


def _placements(scores: Scores) -> Placements:
    (column,) = scores.columns.values()
    return place(column, scores.is_outlier)


def _own_scores(row: Row) -> Columns:
    runs = {run.cell: run for run in row.runs}
    return lambda cell: _column(runs[cell], "scores.csv", runs[cell].result.primary)


def _floor_scores(row: Row, floor: str) -> Columns:
    runs = {run.cell: run for run in row.runs}
    return lambda cell: _column(runs[cell], "floors.csv", floor)


def _column(run: Run, file: str, name: str) -> Scores | None:
    """One column of a scores file as the run's result records it.

    None where that file is not kept, or is another one.
    """
    digest = run.result.files.get(file)
    if digest is None or not (run.folder / file).is_file():
        return None
    try:
        scores = read_scores(run.folder / file, digest)
    except UserError:
        return None
    column = scores.columns.get(name)
    if column is None or not np.isfinite(column).all():
        return None
    return replace(scores, columns={name: column})


def class_means(
    rows: Sequence[Row], floors: Sequence[str] = FLOORS, seen: bool = True
) -> dict[str, dict[int, float]]:
    """Row or floor -> inlier label -> mean over seeds.

    `seen`: also the highest floor of what each row's method sees.
    """
    cells_by_name = {row.name: row.cells() for row in rows}
    for name in floors:
        cells_by_name[f"floor: {name}"] = floor_cells(rows, name)
    if seen:
        for name, cells in seen_floor_cells(rows).items():
            cells_by_name[f"floor: {name}"] = cells
    means = {}
    for name, cells in cells_by_name.items():
        statistics = summarise(cells)
        if statistics is not None:
            means[name] = statistics.classes
    return means


def ranked(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """The class means that are ranked.

    Of whole runs where there are any, without a floor that is one of their methods.
    """
    whole = [row for row in rows if not row.shortened] or list(rows)
    families = {row.family for row in whole}
    floors = [floor for floor in FLOORS if floor not in families]
    return class_means(whole, floors, seen=False)
