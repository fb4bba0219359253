"""Which rows and floors of one (protocol, data) are compared and ranked with which.

`stats` says what follows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from noveltylab.errors import UserError
from noveltylab.report.collect import Run
from noveltylab.report.floor_cells import floor_cells, seen_floor_cells
from noveltylab.report.rows import FLOORS, Row, paired_cells
from noveltylab.report.stats import Cells, Paired, Spread, add, compare, correct, summarise
from noveltylab.results.record import SEEN
from noveltylab.results.scores import Scores, read_scores
from noveltylab.scoring.auroc import FEW_IMAGES, Placements, place

#: (first row, second row or floor, the comparison of their primary scores)
Comparisons = Sequence[tuple[str, str, Paired]]
#: Cell -> the scores that a number was made from, as the only column; None where they are not at
#: hand.
Columns = Callable[[tuple[int, int]], Scores | None]


def compare_all(rows: Sequence[Row]) -> list[tuple[str, str, Paired]]:
    """Every pair of rows that share cells on the same splits, then each row against its own floors.

    A floor that is the row's own method is left out, and one that a row of that method stands for.
    The p of all these are corrected together.
    """
    pairs = [*_between_rows(rows), *_against_floors(rows)]
    corrected = correct([paired for _, _, paired in pairs])
    names = [(first, second) for first, second, _ in pairs]
    return [(*pair, paired) for pair, paired in zip(names, corrected, strict=True)]


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
        summary = summarise(cells)
        if summary is not None:
            means[name] = summary.classes
    return means


def ranked(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """The class means that are ranked.

    Of whole runs where there are any, without a floor that is one of their methods.
    """
    whole = [row for row in rows if not row.shortened] or list(rows)
    families = {row.family for row in whole}
    return class_means(whole, [floor for floor in FLOORS if floor not in families], seen=False)
