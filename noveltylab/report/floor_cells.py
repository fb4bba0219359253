"""The floors of a table: over all its rows, and of what each row's method sees."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import fmean

from noveltylab.report.collect import Run
from noveltylab.report.rows import Row, cells_of
from noveltylab.report.stats import Cells


def floor_cells(rows: Sequence[Row], name: str) -> Cells:
    """A floor over all rows: the mean over the splits and image sizes of a cell, each counted once.

    Shortened runs do not count where there are whole ones, so that no trial changes the floor of
    others; nor does a size or a split of one's own choice where the recipe's was run, nor the
    recipe's where the data set's own was.
    """
    runs = [run for row in rows for run in row.runs if name in run.result.floor]
    whole = [run for run in runs if not run.recipe.fewer_images]
    by_cell: defaultdict[tuple[int, int], list[Run]] = defaultdict(list)
    for run in whole or runs:
        by_cell[run.cell].append(run)
    return {cell: _floor_of(same_cell, name) for cell, same_cell in by_cell.items()}


def _floor_of(runs: Sequence[Run], name: str) -> tuple[float, float | None]:
    """The floor of one cell."""
    # the recipe's own input before others, whole runs before shortened ones
    order = [(run.recipe.other_input, bool(run.shortened)) for run in runs]
    best = min(order)
    # each split and size of images once
    by_split: dict[Hashable, tuple[float, float | None]] = {}
    for run, place in zip(runs, order, strict=True):
        if place != best:
            continue
        split = (run.result.split_sha256, run.images, str(run.result.input.get("shape")))
        cells = cells_of([run], lambda result: result.floor.get(name), "auroc")
        by_split.setdefault(split, cells[run.cell])
    values = list(by_split.values())
    return fmean(value for value, _ in values), max(error or 0.0 for _, error in values)


def seen_floor_cells(rows: Sequence[Row]) -> dict[str, Cells]:
    """The highest floor of what each row's method sees, by a name that says so.

    Only where that is not raw pixels.
    """
    cells = {}
    for row in rows:
        name = row.highest_seen
        if name is not None:
            cells[f"{name} of {row.name}"] = row.floor(name)
    return cells


def floor_is_shortened(rows: Sequence[Row]) -> bool:
    """Whether only shortened runs are there to take floors from."""
    return all(run.recipe.fewer_images for row in rows for run in row.runs)
