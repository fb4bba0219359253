"""The table "What reproduces" of docs/results.md: printed rows, the kept runs beside them, and a verdict by one rule.

python -m experiments.verdicts           # prints it
python -m experiments.verdicts --write   # and writes it between the markers of the page

The rule: a row **reproduces** if its mean is within 0.005 of the printed one, or within the standard error of ours if that
is more, and each class is within 0.02 if classes are printed. Otherwise it is below or above the printed row, by so much.
There is no verdict if another protocol was run, if the printed mean is over other classes, if the scored weights of a run
lack a part of the method, or if experiments/verdicts.yaml gives a reason.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from experiments.claims import FLOORS
from experiments.keep import archive
from experiments.pages import header, row, write_if_asked
from noveltylab.report.collect import Run, collect
from noveltylab.report.published import Line, PaperTable, read_tables
from noveltylab.scoring.auroc import standard_error

ROWS = Path(__file__).with_name("verdicts.yaml")
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
#: Differences up to which a mean, and a class, are those printed.
MEAN_TOLERANCE, CLASS_TOLERANCE = 0.005, 0.02
#: How a share of the paper's width is said.
SHARES = {0.5: "half the", 0.25: "a quarter of the"}
#: How many classes a printed mean is over.
CLASSES = {"mnist": 10, "fmnist": 10, "cifar10": 10}
#: What a table's column of a number of the method's own begins with.
EXTRA = "extra."
#: Classes that stand one by one in the table; more are a mean.
FEW = 3


class Entry(BaseModel):
    """A row of verdicts.yaml; its head says what each key means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    printed: tuple[str, str]
    runs: tuple[str, str]
    score: str | None = None
    classes: tuple[int, ...] | None = None
    epochs: int | None = None
    width: dict[str, float] = {}
    not_compared: str | None = None
    remark: str | None = None
    apart: str | None = None


class Compared(BaseModel):
    """What an entry comes to: a printed row beside kept runs.

    classes: those that were run. printed, ours: by class where classes are printed, else one mean
    each. error: the standard error of our mean from the sampling of test images alone. floors: of
    raw pixels, means over the classes, none for runs without floors.
    """

    classes: tuple[str, ...]
    printed: tuple[float, ...]
    ours: tuple[float, ...]
    error: float
    floors: tuple[float, ...]
    schedule: str
    full: bool
    obstacle: str | None


def read_entries() -> list[Entry]:
    """The rows of verdicts.yaml, in its order."""
    content: dict[str, Any] = yaml.safe_load(ROWS.read_text())
    return [Entry.model_validate(entry) for entry in content["rows"]]


def runs_of(entry: Entry) -> list[Run]:
    """The kept runs of an entry: of its counterpart's data and, where it was run, protocol."""
    name, method = entry.runs
    if not archive(name).is_file():
        return []
    data, protocol = place_of(entry)
    runs: list[Run] = []
    for run in collect(archive(name)).runs:
        is_class = entry.classes is None or run.result.inlier in entry.classes
        if run.result.method == method and run.result.data == data and is_class:
            runs.append(run)
    of_protocol = [run for run in runs if run.result.protocol == protocol]
    return of_protocol or runs


def place_of(entry: Entry) -> tuple[str, str]:
    """The data and protocol that the printed row's counterpart is run with, else its table's."""
    table = read_tables()[entry.printed[0]]
    counterpart = table.counterparts.get(entry.printed[1])
    if counterpart is None or counterpart.data is None or counterpart.protocol is None:
        return table.data, table.protocol
    return counterpart.data, counterpart.protocol


def compare(entry: Entry) -> Compared | None:
    """The printed row beside the kept runs; None where nothing was run."""
    runs = runs_of(entry)
    if not runs:
        return None
    table = read_tables()[entry.printed[0]]
    line = next(line for line in table.rows if line.row == entry.printed[1])
    score = entry.score or table.counterparts[line.row].score or runs[0].result.primary

    # ours by class, the seeds of each averaged
    by_class: dict[int, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.cell):
        by_class.setdefault(run.result.inlier, []).append(run)
    ours = {inlier: mean_auroc(cells, score, entry.apart) for inlier, cells in by_class.items()}

    # the printed numbers of the same classes
    printed_classes = numbers_by_class(table, line)
    obstacle = entry.not_compared
    if ours.keys() <= printed_classes.keys():
        printed = [printed_classes[inlier] for inlier in ours]
        values = list(ours.values())
    elif is_of_extras(table):
        printed = [printed_number(line, index) for index in range(len(table.columns))]
        values = [mean_extra(runs, column.metric) for column in table.columns]
    else:
        printed = [printed_number(line, table.main)]
        values = [fmean(ours.values())]
        if obstacle is None and len(ours) < CLASSES.get(table.data, len(ours)):
            obstacle = f"{len(ours)} classes were run, the printed mean is over all"
    protocol = runs[0].result.protocol
    _, printed_protocol = place_of(entry)
    if obstacle is None and protocol != printed_protocol:
        obstacle = f"{protocol.upper()} here, {printed_protocol.upper()} there"
    lacks = [run.lacks for run in runs if run.lacks]
    if obstacle is None and lacks:
        obstacle = f"the scored weights of {len(lacks)} of {len(runs)} runs {lacks[0]}"
    schedule, full = schedule_of(entry, runs)
    return Compared(
        classes=tuple(class_name(cells[0]) for cells in by_class.values()),
        printed=tuple(printed),
        ours=tuple(values),
        error=error_of_mean(by_class, score, entry.apart),
        floors=() if is_of_extras(table) or entry.apart else floors_of(by_class),
        schedule=schedule,
        full=full,
        obstacle=obstacle,
    )


def numbers_by_class(table: PaperTable, line: Line) -> dict[int, float]:
    """Inlier class -> the printed number, for the columns of a table that are classes."""
    numbers: dict[int, float] = {}
    for index, column in enumerate(table.columns):
        value = line.number(index)
        if column.inlier is not None and value is not None:
            numbers[column.inlier] = value
    return numbers


def class_name(run: Run) -> str:
    """The inlier class as the table names it, a digit as one."""
    name = run.result.inlier_name
    return f"digit {name}" if run.result.data == "mnist" else name


def printed_number(line: Line, index: int) -> float:
    """The printed number of a column; ValueError where none is printed."""
    value = line.number(index)
    if value is None:
        raise ValueError(f"{line.row}: nothing is printed in column {index}")
    return value


def is_of_extras(table: PaperTable) -> bool:
    """Whether a table's columns are numbers of the method's own, not AUROCs."""
    return all(column.metric.startswith(EXTRA) for column in table.columns)


def mean_extra(runs: Sequence[Run], metric: str) -> float:
    """The mean over runs of a number of the method's own."""
    return fmean(float(run.result.extra[metric.removeprefix(EXTRA)]) for run in runs)


def mean_auroc(runs: Sequence[Run], score: str, apart: str | None = None) -> float:
    """The mean AUROC of a score over seeds."""
    return fmean(metrics_of(run, score, apart).auroc for run in runs)


def metrics_of(run: Run, score: str, apart: str | None = None) -> Any:
    """The metrics of a score: the run's own, or of a kind that is measured apart."""
    scores = run.result.scores if apart is None else run.result.apart[apart]
    metrics = scores[score]
    assert metrics is not None, f"{run.folder}: {score} was not measured"
    return metrics


def error_of_mean(by_class: dict[int, list[Run]], score: str, apart: str | None = None) -> float:
    """The standard error of the mean over classes, of other test images of the same classes."""
    variances: list[float] = []
    for runs in by_class.values():
        metrics = metrics_of(runs[0], score, apart)
        variances.append(standard_error(metrics.auroc, runs[0].interval(metrics)) ** 2)
    return math.sqrt(sum(variances)) / len(variances)


def floors_of(by_class: dict[int, list[Run]]) -> tuple[float, ...]:
    """The mean AUROC of each floor over the classes."""
    means: list[float] = []
    for floor in FLOORS:
        values: list[float] = []
        for runs in by_class.values():
            if floor not in runs[0].result.floor:
                return ()
            values.append(runs[0].result.floor[floor].auroc)
        means.append(fmean(values))
    return tuple(means)


def schedule_of(entry: Entry, runs: Sequence[Run]) -> tuple[str, bool]:
    """How long the runs trained, as text, and whether that is the paper's whole length."""
    config = runs[0].result.config
    epochs = config["trainer"]["max_epochs"]
    reasons = list(runs[0].shortened)
    if entry.epochs is not None and epochs < entry.epochs:
        reasons.append(f"{epochs} of {entry.epochs} epochs")
    full = not reasons
    text = f"shortened: {', '.join(reasons)}"
    if full:
        text = "full: one fit" if runs[0].fitted_once else f"full: {epochs} epochs"
    for option, whole in entry.width.items():
        share = config["method"][option] / whole
        if share < 1:
            words = SHARES.get(share, f"{share:g} of the")
            text += f", {words} {option}"
    return text, full


def verdict(compared: Compared) -> str:
    """The rule, in words."""
    if compared.obstacle is not None:
        return f"cannot be compared: {compared.obstacle}"
    gap = fmean(compared.ours) - fmean(compared.printed)
    if reproduces(compared.printed, compared.ours, compared.error):
        return "**reproduces**"
    if is_mean_near(compared.printed, compared.ours, compared.error):
        return "the mean is that printed, not each class"
    return f"{'above' if gap > 0 else 'below'} by {abs(gap):.3f}"


def reproduces(printed: Sequence[float], ours: Sequence[float], error: float = 0.0) -> bool:
    """Whether ours are the printed numbers: the mean within 0.005 or `error`, each class within 0.02."""
    gaps = [abs(first - second) for first, second in zip(printed, ours, strict=True)]
    are_classes_near = len(gaps) == 1 or round(max(gaps), 6) <= CLASS_TOLERANCE
    return is_mean_near(printed, ours, error) and are_classes_near


def is_mean_near(printed: Sequence[float], ours: Sequence[float], error: float) -> bool:
    """Whether our mean is within 0.005 or `error` of the printed one, whatever its last bits."""
    gap = abs(fmean(ours) - fmean(printed))
    return round(gap, 6) <= max(MEAN_TOLERANCE, error)


def verdict_table() -> Iterator[str]:
    """A line for each entry that has runs."""
    yield from header("printed row", "printed", "ours", "floors: pca, knn", "schedule", "verdict")
    for entry in read_entries():
        compared = compare(entry)
        if compared is not None:
            name = entry.name
            if classes := classes_text(compared.classes):
                name += f": {classes}"
            yield row(
                name,
                numbers_text(compared.printed),
                numbers_text(compared.ours),
                ", ".join(f"{value:.3f}" for value in compared.floors),
                compared.schedule,
                "; ".join(filter(None, (verdict(compared), entry.remark))),
            )


def absent_lines() -> Iterator[str]:
    """The entries that nothing was run for, in a sentence."""
    names = [entry.name for entry in read_entries() if compare(entry) is None]
    if names:
        yield f"Not run yet: {'; '.join(names)}."


def classes_text(classes: Sequence[str]) -> str:
    """The classes as a reader names them; nothing for frames, which are all of one class."""
    if len(classes) > FEW:
        return f"mean of {len(classes)}"
    return "" if classes == ("normal",) else ", ".join(classes)


def numbers_text(numbers: Sequence[float]) -> str:
    """A few numbers one by one, more as their mean."""
    if len(numbers) > FEW:
        return f"{fmean(numbers):.4f}"
    return ", ".join(f"{number:.3f}" for number in numbers)


#: Marker of the page -> the lines between it and its end.
TABLES = {"verdicts": verdict_table, "verdicts not run": absent_lines}


def main() -> None:
    write_if_asked("experiments.verdicts", PAGE, TABLES)
    print("\n".join(verdict_table()))


if __name__ == "__main__":
    main()
