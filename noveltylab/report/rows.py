"""Rows of our own: the runs of one method under one (protocol, data), as cells, and their floors.

A row also says what its runs have and what they lack.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from noveltylab.report.collect import Run
from noveltylab.report.published import Counterpart
from noveltylab.report.stats import Cells, Value, mean_value
from noveltylab.results.phases import THIS_CLASS
from noveltylab.results.record import SEEN
from noveltylab.results.schema import Metrics, Result
from noveltylab.scoring.auroc import standard_error

#: Floors of what every method has seen: its rows are compared with them.
FLOORS = ("pca", "knn")
#: Floors that tables show, where a run has them.
SHOWN_FLOORS = (*FLOORS, "features")
#: What a floor was trained on that has seen more than this class.
FLOOR_TRAINED_ON = {"features": "ImageNet"}
#: What a number may have been made with although its options are the same.
FACTS = ("commit", "torch", "machine", "threads", "data")
#: Stands behind the name of a row of shortened runs.
MARK = "†"


@dataclass(frozen=True)
class Row:
    """The runs of one method from one output folder with the same options: one number of a table.

    Attributes:
        method: Its name, which is another one for each row of an ablation.
        source: The output folder below the report's, "" for that folder itself; ablations differ in
            it.
        runs: At least one; no two have the same (inlier, seed).
        detail: What tells it from other rows of the same method and source, "" for the only one.
    """

    method: str
    source: str
    runs: tuple[Run, ...]
    detail: str = ""

    @property
    def family(self) -> str:
        """As in method=..."""
        return self.runs[0].family

    @property
    def name(self) -> str:
        inside = "; ".join(part for part in (self.source, self.detail) if part)
        name = f"{self.method} ({inside})" if inside else self.method
        return f"{name} {MARK}" if self.shortened else name

    @cached_property
    def shortened(self) -> tuple[str, ...]:
        """Why its runs are no whole ones, one reason each; empty for whole runs."""
        return tuple(dict.fromkeys(reason for run in self.runs for reason in run.shortened))

    @property
    def trained_on(self) -> str:
        """What its methods' weights learned from."""
        return joined(run.result.trained_on for run in self.runs)

    @property
    def kind(self) -> str:
        """What `GridRow.kind` says of its numbers."""
        return "trial" if self.shortened else "ours"

    @cached_property
    def tested_on(self) -> dict[tuple[int, int], Hashable]:
        """Cell -> which split of which images it was trained and tested on.

        None where that is unknown.
        """
        splits: dict[tuple[int, int], Hashable] = {}
        for run in self.runs:
            digest = run.result.split_sha256
            splits[run.cell] = digest and (digest, run.images)
        return splits

    @cached_property
    def primary(self) -> str:
        """The name of the score that the row is about; several, joined, where its runs disagree."""
        return "/".join(dict.fromkeys(run.result.primary for run in self.runs))

    @cached_property
    def scores(self) -> list[str]:
        """The other scores' names."""
        names: dict[str, None] = {}
        for run in self.runs:
            names |= dict.fromkeys(run.result.scores)
        names.pop(self.primary, None)
        return list(names)

    def cells(self, score: str | None = None, metric: str = "auroc") -> Cells:
        """The row's cells for a score (None: the primary one) and a metric.

        The metric may also be `extra.<name>` or `hter.<source>_to_<target>`.
        """
        if metric.startswith("hter."):
            return self.half_total_error_rates(metric.removeprefix("hter."), score)
        if metric.startswith("extra."):
            return self._extras(metric.removeprefix("extra."))
        return cells_of(
            self.runs, lambda result: result.scores.get(score or result.primary), metric
        )

    def _extras(self, name: str) -> Cells:
        """A number of the method's own."""
        cells: Cells = {}
        for run in self.runs:
            value = run.result.extra.get(name)
            if isinstance(value, int | float):
                cells[run.cell] = float(value), None
        return cells

    def half_total_error_rates(self, sets: str, score: str | None) -> Cells:
        """The half total error rate of its runs from one set to another, `<source>_to_<target>`."""
        cells: Cells = {}
        for run in self.runs:
            cross = run.result.cross
            if cross is None or f"{cross.source}_to_{cross.target}".lower() != sets:
                continue
            rates = cross.scores.get(score or run.result.primary)
            if rates is not None:
                cells[run.cell] = rates.hter, None
        return cells

    def floor(self, name: str) -> Cells:
        """The floor's AUROC on the very splits of this row."""
        return cells_of(self.runs, lambda result: result.floor.get(name))

    @cached_property
    def seen_floors(self) -> list[str]:
        """The names of the floors of the images as the method sees them.

        Empty where these are raw pixels.
        """
        names = dict.fromkeys(name for run in self.runs for name in run.result.floor)
        return [name for name in names if name.endswith(SEEN)]

    @cached_property
    def highest_seen(self) -> str | None:
        """The one of `seen_floors` with the highest mean over the row's cells.

        None where there is none.
        """
        means = {name: mean_value(self.floor(name).values()) for name in self.seen_floors}
        return max(means, key=lambda name: means[name], default=None)

    def labelled(self, rule: str, score: str | None = None) -> Cells:
        """AUROC at the epochs that labels of outliers chose; only where runs have them."""

        def metrics_of(result: Result) -> Metrics | None:
            by_score = result.labelled.get(rule, {})
            return by_score.get(score or result.primary)

        return cells_of(self.runs, metrics_of)

    @cached_property
    def kinds_apart(self) -> list[str]:
        """What its runs measured apart from their number, such as patches, clips or files."""
        return list(dict.fromkeys(kind for run in self.runs for kind in run.result.apart))

    def apart(self, kind: str) -> Cells:
        """The primary score's AUROC over these."""
        return cells_of(self.runs, lambda result: result.apart.get(kind, {}).get(result.primary))

    def diagnosis(self, order: str) -> Cells:
        """The primary score's AUROC with batch norm in training mode at test, in this order.

        No number of the row.
        """

        def metrics_of(result: Result) -> Metrics | None:
            by_order = result.diagnosis.get("batch_statistics", {})
            return by_order.get(order, {}).get(result.primary)

        return cells_of(self.runs, metrics_of)

    def transductive(self, score: str) -> bool:
        return any(score in run.result.transductive for run in self.runs)

    def matches(self, counterpart: Counterpart) -> bool:
        """Whether all its runs are of that method with those options, on the table's data."""
        if self.family != counterpart.method or counterpart.data is not None:
            return False
        for key, value in counterpart.options.items():
            if any(run.options.get(f"method.{key}") != str(value) for run in self.runs):
                return False
        return True

    @cached_property
    def varying(self) -> dict[str, dict[str, int]]:
        """In what its runs differ although their options are the same.

        Fact -> value -> how many runs.
        """
        varying = {}
        for fact in FACTS:
            counts = Counter(run.made_with[fact] for run in self.runs)
            if len(counts) > 1:
                varying[fact] = dict(counts)
        return varying

    @property
    def schedule(self) -> str:
        """For how many epochs, on how many images, its runs trained."""
        if not any(run.result.selected.epoch for run in self.runs):
            return "fitted once"
        epochs = joined(run.options.get("trainer.max_epochs") for run in self.runs)
        limits = joined(run.options.get("data.limit_train") for run in self.runs)
        counts = [run.result.epochs.trained for run in self.runs if run.result.epochs]
        patient = any(run.options.get("trainer.patience", "0") != "0" for run in self.runs)
        words = f"{epochs} epochs"
        if patient and counts:
            words += f" at most, {min(counts)} to {max(counts)} trained"
        if limits not in ("None", ""):
            words += f", limit_train {limits}"
        return words

    @property
    def weights(self) -> str:
        """The rules that chose the epochs, and the epochs."""
        rules = joined(run.result.selected.rule for run in self.runs)
        epochs = [run.result.selected.epoch for run in self.runs]
        words = f"{rules}, epoch {min(epochs)}"
        if max(epochs) > min(epochs):
            words += f" to {max(epochs)}"
        if self.lacks:
            words += f"; {self.lacks}"
        return words

    @cached_property
    def lacks(self) -> str:
        """In how many runs the scored weights have not seen the whole method.

        Such as `without mining in 7 of 10 runs`.
        """
        counts = Counter(run.lacks for run in self.runs if run.lacks)
        total = f"of {len(self.runs)} run{'s' * (len(self.runs) != 1)}"
        return ", ".join(f"{lack} in {count} {total}" for lack, count in counts.items())


def cells_of(
    runs: Iterable[Run], choose: Callable[[Result], Metrics | None], metric: str = "auroc"
) -> Cells:
    """The value of a metric in each run's cell, of the metrics that `choose` takes."""
    cells: Cells = {}
    for run in runs:
        metrics = choose(run.result)
        if metrics is None:
            continue
        error = None
        if metric == "auroc":
            error = standard_error(metrics.auroc, run.interval(metrics))
        cells[run.cell] = getattr(metrics, metric), error
    return cells


def joined(values: Iterable[str | None]) -> str:
    return " or ".join(dict.fromkeys(value for value in values if value is not None))


def paired_cells(first: Row, second: Row) -> tuple[Cells, Cells]:
    """The primary scores of both rows over the cells that they share.

    A cell is shared if both have it on the very same split of the same images.
    """
    first_cells = first.cells()
    second_cells = second.cells()
    cells: Cells = {}
    other_cells: Cells = {}
    for cell, split in first.tested_on.items():
        if split is not None and split == second.tested_on.get(cell):
            cells[cell] = first_cells[cell]
            other_cells[cell] = second_cells[cell]
    return cells, other_cells


# Floors.


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
    return {cell: _floor_of_cell(runs, name) for cell, runs in by_cell.items()}


def _floor_of_cell(runs: Sequence[Run], name: str) -> Value:
    # the recipe's own input before others, whole runs before shortened ones
    order = [(run.recipe.other_input, bool(run.shortened)) for run in runs]
    best = min(order)
    # each split and size of images once
    floors: dict[Hashable, Value] = {}
    for run, place in zip(runs, order, strict=True):
        if place == best:
            split = (run.result.split_sha256, run.images, str(run.result.input.get("shape")))
            cells = cells_of([run], lambda result: result.floor.get(name))
            floors.setdefault(split, cells[run.cell])
    errors = [error or 0.0 for _, error in floors.values()]
    return mean_value(floors.values()), max(errors)


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


def leakage_by_class(rows: Sequence[Row]) -> dict[int, float]:
    """Inlier label -> class leakage of its test inliers, mean over the splits that were run."""
    by_split: dict[tuple[int, Hashable], float] = {}
    for row in rows:
        for run in row.runs:
            leakage = run.result.leakage
            if leakage is not None:
                by_split[run.result.inlier, row.tested_on[run.cell]] = leakage.inliers
    by_class = defaultdict(list)
    for (label, _), value in by_split.items():
        by_class[label].append(value)
    return {label: fmean(values) for label, values in by_class.items()}


def floors_by_name(rows: Sequence[Row], mark: str) -> dict[str, Cells]:
    """The floors of a table that have cells, of raw pixels first.

    `mark` stands behind the name of one that only shortened runs give.
    """
    if not floor_is_shortened(rows):
        mark = ""
    floors = {f"floor: {name}{mark}": floor_cells(rows, name) for name in SHOWN_FLOORS}
    for name, cells in seen_floor_cells(rows).items():
        floors[f"floor: {name}"] = cells
    return {name: cells for name, cells in floors.items() if cells}


def floor_trained_on(name: str) -> str:
    """What the floor of a table's row, such as `floor: pca †`, was trained on."""
    floor = name.removeprefix("floor: ").removesuffix(MARK).strip()
    return FLOOR_TRAINED_ON.get(floor, THIS_CLASS)


def has_floor(rows: Sequence[Row], name: str) -> bool:
    """Whether any run of the rows has the floor."""
    return any(name in run.result.floor for row in rows for run in row.runs)


def floor_is_shortened(rows: Sequence[Row]) -> bool:
    """Whether only shortened runs are there to take floors from."""
    return all(run.recipe.fewer_images for row in rows for run in row.runs)
