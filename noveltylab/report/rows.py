"""Rows of our own: the runs of one method under one (protocol, data), as cells, with what they have and what they lack."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from noveltylab.report.collect import Metrics, Result, Run
from noveltylab.report.published import Counterpart, PaperTable
from noveltylab.report.stats import Cells

FLOORS = ("pca", "knn")
#: A number of ours is a mean over at least these seeds.
SEEDS = (0, 1, 2)
#: Half the width of a 95 percent interval, in standard errors.
SIGMAS = 1.96


@dataclass(frozen=True)
class Row:
    """The runs of one method from one output folder: one number of a table.

    Attributes:
        method: Its name, which is another one for each row of an ablation.
        source: The output folder below the report's, "" for that folder itself; ablations differ in it.
        runs: At least one; no two have the same (inlier, seed).
    """

    method: str
    source: str
    runs: tuple[Run, ...]

    @property
    def family(self) -> str:
        """As in method=..."""
        return self.runs[0].family

    @property
    def name(self) -> str:
        return f"{self.method} ({self.source})" if self.source else self.method

    @cached_property
    def primary(self) -> str:
        """The name of the score that the row is about; several, joined, where its runs disagree."""
        return "/".join(dict.fromkeys(run.result.primary for run in self.runs))

    @cached_property
    def scores(self) -> list[str]:
        """The other scores' names."""
        return [
            name for name in dict.fromkeys(n for run in self.runs for n in run.result.scores) if name != self.primary
        ]

    def cells(self, score: str | None = None, metric: str = "auroc") -> Cells:
        """The row's cells for a score (None: the primary one) and a metric, or `extra.<name>`."""
        return _cells(self.runs, lambda result: result.scores.get(score or result.primary), metric)

    def floor(self, name: str) -> Cells:
        """The floor's AUROC on the very splits of this row."""
        return _cells(self.runs, lambda result: result.floor.get(name), "auroc")

    def labelled(self, rule: str, score: str | None = None) -> Cells:
        """AUROC at the epochs that labels of outliers chose; only where runs have them."""
        return _cells(self.runs, lambda result: result.labelled.get(rule, {}).get(score or result.primary), "auroc")

    @cached_property
    def kinds_apart(self) -> list[str]:
        """What its runs measured apart from their number, such as patches, clips or files."""
        return list(dict.fromkeys(kind for run in self.runs for kind in run.result.apart))

    def apart(self, kind: str) -> Cells:
        """The primary score's AUROC over these."""
        return _cells(self.runs, lambda result: result.apart.get(kind, {}).get(result.primary), "auroc")

    def transductive(self, score: str) -> bool:
        return any(score in run.result.transductive for run in self.runs)

    def matches(self, counterpart: Counterpart) -> bool:
        """Whether all its runs are of that method with those options."""
        wanted = {f"method.{key}": str(value) for key, value in counterpart.options.items()}
        return self.family == counterpart.method and all(
            run.options.get(key) == value for run in self.runs for key, value in wanted.items()
        )

    @cached_property
    def varying(self) -> dict[str, dict[str, int]]:
        """Options in which its runs differ: key -> value -> how many runs."""
        counts = {key: Counter(run.options.get(key, "absent") for run in self.runs) for key in _keys(self.runs)}
        return {key: dict(found) for key, found in counts.items() if len(found) > 1}

    @property
    def schedule(self) -> str:
        if not any(run.result.selected.epoch for run in self.runs):
            return "fitted once"
        epochs = _said(run.options.get("trainer.max_epochs") for run in self.runs)
        limits = _said(run.options.get("data.limit_train") for run in self.runs)
        return f"{epochs} epochs" + ("" if limits in ("None", "") else f", limit_train {limits}")

    @property
    def weights(self) -> str:
        """The rules that chose the epochs, and the epochs."""
        rules = " or ".join(dict.fromkeys(run.result.selected.rule for run in self.runs))
        epochs = [run.result.selected.epoch for run in self.runs]
        return f"{rules}, epoch {min(epochs)}" + (f" to {max(epochs)}" if max(epochs) > min(epochs) else "")


def _cells(runs: Iterable[Run], choose: Callable[[Result], Metrics | None], metric: str) -> Cells:
    cells: Cells = {}
    for run in runs:
        if metric.startswith("extra."):
            value = run.result.extra.get(metric.removeprefix("extra."))
            if isinstance(value, int | float):
                cells[run.cell] = float(value), None
        elif (metrics := choose(run.result)) is not None:
            low, high = metrics.auroc_ci
            error = (high - low) / (2 * SIGMAS) if metric == "auroc" else None
            cells[run.cell] = getattr(metrics, metric), error
    return cells


def _keys(runs: Iterable[Run]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run.options))


def _said(values: Iterable[str | None]) -> str:
    return " or ".join(dict.fromkeys(value for value in values if value is not None))


def group(runs: Iterable[Run]) -> dict[tuple[str, str], list[Row]]:
    """(protocol, data) -> rows, in the order of their names."""
    found: defaultdict[tuple[str, str], defaultdict[tuple[str, str], list[Run]]]
    found = defaultdict(lambda: defaultdict(list))
    for run in runs:
        result = run.result
        found[result.protocol, result.data][result.method, run.source].append(run)
    return {key: [_row(*named, these) for named, these in sorted(rows.items())] for key, rows in sorted(found.items())}


def _row(method: str, source: str, runs: Iterable[Run]) -> Row:
    return Row(method, source, tuple(sorted(runs, key=lambda run: run.cell)))


def floor_cells(rows: Sequence[Row], name: str) -> Cells:
    """A floor over all rows: the mean of a cell where methods see the images at different sizes."""
    values: defaultdict[tuple[int, int], list[tuple[float, float | None]]] = defaultdict(list)
    for row in rows:
        for cell, value in row.floor(name).items():
            values[cell].append(value)
    return {
        cell: (fmean(value for value, _ in found), max(error or 0.0 for _, error in found))
        for cell, found in values.items()
    }


def differing(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Row name -> `key=value` of the options in which rows of the same method differ."""
    said: dict[str, list[str]] = {}
    for row in rows:
        siblings = [other for other in rows if other.family == row.family]
        runs = [run for other in siblings for run in other.runs]
        for key in _keys(runs) if len(siblings) > 1 else ():
            if len({run.options.get(key) for run in runs}) > 1:
                said.setdefault(row.name, []).append(
                    f"{key}={_said(run.options.get(key, 'absent') for run in row.runs)}"
                )
    return said


@dataclass(frozen=True)
class Expected:
    """The cells that a full table needs.

    Attributes:
        labels: The inlier labels that are known to belong to it.
        count: How many inliers it needs, which may be more.
        seeds: Which seeds.
    """

    labels: tuple[int, ...]
    count: int
    seeds: tuple[int, ...]

    @property
    def cells(self) -> int:
        return self.count * len(self.seeds)

    def covers(self, labels: Iterable[int]) -> bool:
        """Whether these inliers are all that are needed."""
        found = set(labels)
        return len(found) >= self.count and found >= set(self.labels)

    def missing(self, cells: Cells) -> str:
        """The missing cells in words, "" if none: `inlier 1, 3-9: seeds 0-2; inlier 0: seed 2`."""
        lacking: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for label in self.labels:
            if seeds := tuple(seed for seed in self.seeds if (label, seed) not in cells):
                lacking[seeds].append(label)
        said = [
            f"inlier {_ranges(labels)}: seed{'s' * (len(seeds) > 1)} {_ranges(seeds)}"
            for seeds, labels in lacking.items()
        ]
        if unknown := self.count - len(self.labels):
            said.append(f"{unknown} more inlier classes: every seed")
        return "; ".join(said)


def _ranges(numbers: Sequence[int]) -> str:
    """`0-2, 5` for [0, 1, 2, 5]."""
    runs: list[list[int]] = []
    for value in numbers:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def expect(rows: Sequence[Row], table: PaperTable | None) -> Expected:
    """From the table's own count, else from the classes that the data lists, else from the inliers that were run."""
    results = [run.result for row in rows for run in row.runs]
    seen = sorted({result.inlier for result in results})
    seeds = tuple(sorted({*SEEDS, *(result.seed for result in results)}))
    given = table.expected if table else None
    if isinstance(given, tuple):
        return Expected(given, len(given), seeds)
    if isinstance(given, int):
        return Expected(tuple(seen), max(given, len(seen)), seeds)
    listed = [classes for result in results if isinstance(classes := _classes(result), list)]
    labels = tuple(range(max(map(len, listed)))) if listed else tuple(seen)
    if table and table.by_class:
        labels = tuple(column.inlier for column in table.columns if column.inlier is not None)
    return Expected(labels, len(labels), seeds)


def _classes(result: Result) -> object:
    data = result.config.get("data")
    return data.get("classes") if isinstance(data, dict) else None
