"""Rows of our own: the runs of one method under one (protocol, data), as cells.

A row also says what its runs have and what they lack.

What has the same options that make numbers is one row; a shortened run never shares one with whole
runs.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from statistics import fmean

from noveltylab.report.collect import UNVERIFIED, Run
from noveltylab.report.published import Counterpart
from noveltylab.report.stats import Cells
from noveltylab.results.record import SEEN
from noveltylab.results.schema import Metrics, Result
from noveltylab.scoring.auroc import standard_error

FLOORS = ("pca", "knn")
#: What a number may have been made with although its options are the same.
FACTS = ("commit", "torch", "machine", "threads", "data")
SHA256 = re.compile(r"[0-9a-f]{64}")
#: Stands behind the name of a row of shortened runs.
MARK = "†"
#: An option that stands in recorded options only where it changes something.
OPTIONAL = "trainer.select_whole"
#: Differences that a row's name shows; the remarks have all of them.
DETAILS = 3


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
    def kind(self) -> str:
        """What `GridRow.kind` says of its numbers."""
        return "trial" if self.shortened else "ours"

    @cached_property
    def tested_on(self) -> dict[tuple[int, int], Hashable]:
        """Cell -> which split of which images it was trained and tested on.

        None where that is unknown.
        """
        return {
            run.cell: run.result.split_sha256 and (run.result.split_sha256, run.images)
            for run in self.runs
        }

    @cached_property
    def primary(self) -> str:
        """The name of the score that the row is about; several, joined, where its runs disagree."""
        return "/".join(dict.fromkeys(run.result.primary for run in self.runs))

    @cached_property
    def scores(self) -> list[str]:
        """The other scores' names."""
        names = dict.fromkeys(name for run in self.runs for name in run.result.scores)
        return [name for name in names if name != self.primary]

    def cells(self, score: str | None = None, metric: str = "auroc") -> Cells:
        """The row's cells for a score (None: the primary one) and a metric.

        The metric may also be `extra.<name>` or `hter.<source>_to_<target>`.
        """
        if metric.startswith("hter."):
            return self.half_total_error_rates(metric.removeprefix("hter."), score)
        return cells_of(
            self.runs, lambda result: result.scores.get(score or result.primary), metric
        )

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
        return cells_of(self.runs, lambda result: result.floor.get(name), "auroc")

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
        means = {}
        for name in self.seen_floors:
            means[name] = fmean(value for value, _ in self.floor(name).values())
        return max(means, key=lambda name: means[name], default=None)

    def labelled(self, rule: str, score: str | None = None) -> Cells:
        """AUROC at the epochs that labels of outliers chose; only where runs have them."""
        return cells_of(
            self.runs,
            lambda result: result.labelled.get(rule, {}).get(score or result.primary),
            "auroc",
        )

    @cached_property
    def kinds_apart(self) -> list[str]:
        """What its runs measured apart from their number, such as patches, clips or files."""
        return list(dict.fromkeys(kind for run in self.runs for kind in run.result.apart))

    def apart(self, kind: str) -> Cells:
        """The primary score's AUROC over these."""
        return cells_of(
            self.runs, lambda result: result.apart.get(kind, {}).get(result.primary), "auroc"
        )

    def diagnosis(self, order: str) -> Cells:
        """The primary score's AUROC with batch norm in training mode at test, in this order.

        No number of the row.
        """

        def metrics_of(result: Result) -> Metrics | None:
            by_order = result.diagnosis.get("batch_statistics", {})
            return by_order.get(order, {}).get(result.primary)

        return cells_of(self.runs, metrics_of, "auroc")

    def transductive(self, score: str) -> bool:
        return any(score in run.result.transductive for run in self.runs)

    def matches(self, counterpart: Counterpart) -> bool:
        """Whether all its runs are of that method with those options."""
        if self.family != counterpart.method:
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
        counts = {fact: Counter(run.made_with[fact] for run in self.runs) for fact in FACTS}
        return {fact: dict(values) for fact, values in counts.items() if len(values) > 1}

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
        rules = " or ".join(dict.fromkeys(run.result.selected.rule for run in self.runs))
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


def cells_of(runs: Iterable[Run], choose: Callable[[Result], Metrics | None], metric: str) -> Cells:
    """The value of a metric in each run's cell, of the metrics that `choose` takes."""
    cells: Cells = {}
    for run in runs:
        if metric.startswith("extra."):
            value = run.result.extra.get(metric.removeprefix("extra."))
            if isinstance(value, int | float):
                cells[run.cell] = float(value), None
            continue
        metrics = choose(run.result)
        if metrics is None:
            continue
        error = None
        if metric == "auroc":
            error = standard_error(metrics.auroc, run.interval(metrics))
        cells[run.cell] = getattr(metrics, metric), error
    return cells


def keys_of(runs: Iterable[Run]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run.options))


def joined(values: Iterable[str | None]) -> str:
    return " or ".join(dict.fromkeys(value for value in values if value is not None))


def group(runs: Iterable[Run]) -> dict[tuple[str, str], list[Row]]:
    """(protocol, data) -> rows, in the order of their names."""
    groups: defaultdict[tuple[str, str], defaultdict[tuple[str, str], list[Run]]]
    groups = defaultdict(lambda: defaultdict(list))
    for run in runs:
        result = run.result
        groups[result.protocol, result.data][result.method, run.source].append(run)
    return {
        key: [
            row
            for name_and_source, runs in sorted(methods.items())
            for row in _rows(*name_and_source, runs)
        ]
        for key, methods in sorted(groups.items())
    }


def _rows(method: str, source: str, runs: Iterable[Run]) -> list[Row]:
    """One row for each set of options that make numbers, whole runs first."""
    by_key: defaultdict[tuple[Hashable, ...], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.cell):
        identity = _identity(run)
        by_key[bool(run.shortened), *sorted(identity.items())].append(run)
    identities = {key: _identity(same[0]) for key, same in by_key.items()}
    whole = [identity for key, identity in identities.items() if not key[0]]
    rows: dict[str, Row] = {}
    for key, same in sorted(by_key.items(), key=lambda item: (item[0][0], item[1][0].cell)):
        # the mark tells a shortened run from a whole one already
        detail = _detail(identities[key], list(identities.values()) if key[0] else whole)
        row = Row(method, source, tuple(same), detail)
        while row.name in rows:
            row = replace(row, detail=f"{detail} no. {len(rows) + 1}".strip())
        rows[row.name] = row
    return list(rows.values())


def _identity(run: Run) -> dict[str, str]:
    """Everything that has to be the same for two cells of a row."""
    return run.options | {
        "primary": run.result.primary,
        "images": str(run.images),
        "data": str(bool(run.result.data_verified)),
    }


def _detail(identity: Mapping[str, str], identities: Sequence[Mapping[str, str]]) -> str:
    """In what it differs from the others, in few words."""
    keys = dict.fromkeys(key for options in identities for key in options)
    differing = [key for key in keys if len(values_of(key, identities)) > 1]
    if "method.primary" in differing and "primary" in differing:
        differing.remove("method.primary")
    if OPTIONAL not in identity:
        differing = [key for key in differing if key != OPTIONAL]
    words = [_words(key, identity.get(key, "absent")) for key in differing]
    text = ", ".join(words[:DETAILS])
    if len(words) > DETAILS:
        text += f", {len(words) - DETAILS} more"
    return text


def values_of(key: str, options: Iterable[Mapping[str, str]]) -> set[str | None]:
    """The values of an option in several rows, None among them where some have none."""
    values = {option.get(key) for option in options}
    if key == OPTIONAL:
        return values - {None}
    return values


def _words(key: str, value: str) -> str:
    if key == "images":
        return f"images {value[:8] if SHA256.fullmatch(value) else PurePath(value).name}"
    if key == "data":
        return "data verified" if value == "True" else f"data {UNVERIFIED}"
    return f"{key.rpartition('.')[2]} {value}"


def paired_cells(first: Row, second: Row) -> tuple[Cells, Cells]:
    """The primary scores of both rows over the cells that they share.

    A cell is shared if both have it on the very same split of the same images.
    """
    shared = set()
    for cell, split in first.tested_on.items():
        if split is not None and split == second.tested_on.get(cell):
            shared.add(cell)
    return _part(first.cells(), shared), _part(second.cells(), shared)


def _part(cells: Cells, shared: set[tuple[int, int]]) -> Cells:
    return {cell: value for cell, value in cells.items() if cell in shared}
