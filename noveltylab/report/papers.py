"""A paper's table, then ours against its printed rows.

The table has the paper's rows, what others got, the floors and ours.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from noveltylab.report.blocks import Block, Bullets, Cell, Grid, GridRow, Heading, Text, number
from noveltylab.report.expected import Expected, expect
from noveltylab.report.published import Counterpart, FieldRow, Line, PaperTable
from noveltylab.report.rows import MARK, Row, floor_trained_on, floors_by_name
from noveltylab.report.stats import Cells, Statistics, summarise, tie_reasons

#: The output folder of a sweep over a hyperparameter, experiment=<paper>/sweep_<name>.
SWEEP = re.compile(r"(?:^|/)\w+/sweep_\w+$")

#: The caption of the grid that `field_grid` makes.
FIELD_CAPTION = "The field since: AUROC as printed elsewhere, not compared with ours"


def rows_of(table: PaperTable, rows: Sequence[Row], related: Sequence[PaperTable]) -> list[Row]:
    """The rows that belong to a table.

    An ablation shows its method alone; other tables leave out the rows that belong to an ablation
    only.

    Rows of a sweep over a hyperparameter belong to no table.

    Args:
        table: Of a paper.
        rows: All of its (protocol, data).
        related: All tables of its (protocol, data).
    """
    rows = [row for row in rows if not SWEEP.search(row.source)]
    if table.ablation:
        methods = {counterpart.method for counterpart in table.counterparts.values()}
        return [row for row in rows if row.family in methods]
    ablations = [table for table in related if table.ablation]
    return [row for row in rows if not any(_ablated(row, ablation) for ablation in ablations)]


def _ablated(row: Row, table: PaperTable) -> bool:
    if f"/{row.source}".endswith(f"/{table.ident}"):
        return True
    whole = table.counterparts[table.full or ""].options
    counterparts = table.counterparts.values()
    ablations = [counterpart for counterpart in counterparts if counterpart.options != whole]
    return any(row.matches(counterpart) for counterpart in ablations)


def paper_blocks(table: PaperTable, rows: Sequence[Row]) -> Iterator[Block]:
    """Everything about one table; `rows` are those that `rows_of` gives."""
    expected = expect(rows, table)
    yield Heading(f"{table.ident}: {table.title}")
    yield Text(f"{table.paper}. Metric: {table.metric}.")
    yield _numbers(table, rows, expected)
    gaps = tuple(_gap_lines(table, rows, expected))
    if gaps:
        headers = "ours|printed row|printed|ours, same classes|difference|what it says"
        yield Grid("Ours against the printed rows", tuple(headers.split("|")), gaps)
    if not rows:
        yield Text("Not run: no result of ours for this table.")
    if table.notes:
        yield Bullets("Notes and doubts", table.notes)


def field_grid(rows: Sequence[FieldRow]) -> Grid:
    """What later methods print on the same data and protocol: no part of any comparison.

    Cells have no value, so that nothing is ranked or coloured by them.
    """
    lines = []
    for row in rows:
        texts = row.row, row.mean, row.trained_on, row.source
        lines.append(GridRow(tuple(Cell(text) for text in texts), "field"))
    headers = ("method", "mean over classes, %", "trained on", "printed in")
    return Grid(FIELD_CAPTION, headers, tuple(lines))


# The numbers.


def _numbers(table: PaperTable, rows: Sequence[Row], expected: Expected) -> Grid:
    lines = [_printed_line(line, "published") for line in table.rows]
    lines += [_printed_line(line, "others") for line in table.others]
    if table.about_auroc:
        for name, cells in floors_by_name(rows, f" {MARK}").items():
            trained_on = floor_trained_on(name)
            lines.append(_line(name, trained_on, table, {"auroc": cells}, expected, "floor"))
    for row in rows:
        for score in _scores(table, row):
            by_metric = {metric: table.inside(row.cells(score, metric)) for metric in table.metrics}
            name = f"ours: {_score_name(row, score)}"
            lines.append(_line(name, row.trained_on, table, by_metric, expected, row.kind))
    columns = [column.name for column in table.columns]
    headers = ("row", "trained on", *columns, "cells")
    return Grid("Printed numbers, others' and ours", headers, tuple(lines))


def _scores(table: PaperTable, row: Row) -> list[str | None]:
    """The scores to show: the primary one (None), and those with a printed row."""
    scores: list[str | None] = [None]
    for counterpart in table.counterparts.values():
        score = counterpart.score
        if row.matches(counterpart) and score in row.scores and score not in scores:
            scores.append(score)
    return scores


def _printed_line(line: Line, kind: str) -> GridRow:
    name = f"{line.row}: {line.by}" if line.by else line.row
    values = [Cell(text, line.number(index)) for index, text in enumerate(line.values)]
    return GridRow((Cell(name), Cell(line.trained_on), *values, Cell("")), kind)


def _score_name(row: Row, score: str | None) -> str:
    name = score or row.primary
    mark = " (transductive)" if row.transductive(name) else ""
    return f"{row.name}, {name}{mark}"


def _line(
    name: str,
    trained_on: str,
    table: PaperTable,
    by_metric: Mapping[str, Cells],
    expected: Expected,
    kind: str,
) -> GridRow:
    statistics = {metric: summarise(cells) for metric, cells in by_metric.items()}
    numbers = []
    for column in table.columns:
        values = statistics.get(column.metric)
        if values is None:
            numbers.append(Cell("-"))
        elif column.inlier is not None:
            numbers.append(number(values.classes.get(column.inlier), 3))
        else:
            numbers.append(number(values.mean, 4, note=expected.note(values.classes)))
    count = max(len(cells) for cells in by_metric.values())
    cells = Cell(f"{count} of {expected.cells}", count)
    return GridRow((Cell(name), Cell(trained_on), *numbers, cells), kind)


# Ours against the printed rows.


def _gap_lines(table: PaperTable, rows: Sequence[Row], expected: Expected) -> Iterator[GridRow]:
    """One line for each printed row that is a counterpart of one of ours."""
    for row in rows:
        for line in table.rows:
            counterpart = table.counterparts.get(line.row)
            if counterpart is None or not row.matches(counterpart):
                continue
            for index in [table.main] if table.by_class else range(len(table.columns)):
                yield _gap_line(table, line, index, row, counterpart, expected)


def _gap_line(
    table: PaperTable,
    line: Line,
    index: int,
    row: Row,
    counterpart: Counterpart,
    expected: Expected,
) -> GridRow:
    column = table.columns[index]
    ours = summarise(table.inside(row.cells(counterpart.score, column.metric)))
    printed_row = line.row
    if len(table.columns) > 1 and not table.by_class:
        printed_row = f"{line.row}, {column.name}"
    names = Cell(_score_name(row, counterpart.score)), Cell(printed_row)
    text = Cell(line.values[index], line.number(index))
    if ours is None:
        return GridRow((*names, text, Cell("-"), Cell("-"), Cell("not measured")))
    mean = number(ours.mean)
    printed, basis = _printed_mean(table, line, index, ours, expected)
    if printed is None:
        verdict = Cell(f"not compared: {basis}")
        return GridRow((*names, text, mean, Cell("-"), verdict))
    if basis:
        text = number(printed)
    gap = ours.mean - printed
    verdict = Cell(_verdict(table, row, ours, gap) + basis)
    return GridRow((*names, text, mean, number(gap, signed=True), verdict))


def _verdict(table: PaperTable, row: Row, ours: Statistics, gap: float) -> str:
    """What may be said of ours, which is that much above the printed number."""
    if row.lacks:
        return f"not the whole method, so no verdict: scored weights {row.lacks}"
    reasons = tie_reasons(gap, table.data, ours.error, ours.seed_std)
    if reasons:
        return f"= tie: {'; '.join(reasons)}"
    return f"{'above' if gap > 0 else 'below'} the printed row"


def _printed_mean(
    table: PaperTable, line: Line, index: int, ours: Statistics, expected: Expected
) -> tuple[float | None, str]:
    """The printed number over the classes that we have, and a remark on it.

    The remark says what the number is if not the printed mean, or why there is none.
    """
    whole = expected.covers(ours.classes)
    printed = line.number(index)
    if whole and printed is not None:
        return printed, ""
    # the mean over the classes that we have, if each of them is printed
    values = {column.inlier: line.number(i) for i, column in enumerate(table.columns)}
    numbers = []
    for label in ours.classes:
        value = values.get(label)
        if value is not None:
            numbers.append(value)
    if len(numbers) == len(ours.classes):
        return fmean(numbers), f" (means over the {len(numbers)} classes that were run)"
    if whole:
        return None, "not printed"
    return None, f"{len(ours.classes)} of {expected.count} classes were run"
