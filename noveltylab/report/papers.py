"""A paper's table, then ours against its printed rows.

The table has the paper's rows, what others got, the floors and ours.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from noveltylab.report.blocks import Block, Bullets, Cell, Grid, GridRow, Heading, Text, number
from noveltylab.report.expected import Expected, expect
from noveltylab.report.published import Counterpart, Line, PaperTable
from noveltylab.report.rows import (
    FLOORS,
    MARK,
    Row,
    floor_cells,
    floor_is_shortened,
    seen_floor_cells,
)
from noveltylab.report.stats import Cells, Statistics, summarise, tie_reasons

#: The output folder of a sweep over a hyperparameter, experiment=<paper>/sweep_<name>.
SWEEP = re.compile(r"(?:^|/)\w+/sweep_\w+$")


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
    return any(
        row.matches(counterpart)
        for counterpart in table.counterparts.values()
        if counterpart.options != whole
    )


def paper_blocks(table: PaperTable, rows: Sequence[Row]) -> Iterator[Block]:
    """Everything about one table; `rows` are those that `rows_of` gives."""
    expected = expect(rows, table)
    yield Heading(f"{table.ident}: {table.title}")
    yield Text(f"{table.paper}. Metric: {table.metric}.")
    lines = [_printed_line(line, "published") for line in table.rows]
    lines += [_printed_line(line, "others") for line in table.others]
    lines += _floor_lines(table, rows, expected)
    for row in rows:
        lines += [_our_line(table, row, score, expected) for score in _scores(table, row)]
    yield Grid(
        "Printed numbers, others' and ours",
        ("row", *(column.name for column in table.columns), "cells"),
        tuple(lines),
    )
    against = [line for row in rows for line in _against(table, row, expected)]
    if against:
        headers = "ours|printed row|printed|ours, same classes|difference|what it says"
        yield Grid("Ours against the printed rows", tuple(headers.split("|")), tuple(against))
    if not rows:
        yield Text("Not run: no result of ours for this table.")
    if table.notes:
        yield Bullets("Notes and doubts", table.notes)


def _scores(table: PaperTable, row: Row) -> list[str | None]:
    """The scores to show: the primary one (None), and those with a printed row."""
    printed = dict.fromkeys(
        counterpart.score for counterpart in table.counterparts.values() if row.matches(counterpart)
    )
    return [None, *(score for score in printed if score in row.scores)]


def _printed_line(line: Line, kind: str) -> GridRow:
    name = f"{line.row}: {line.by}" if line.by else line.row
    values = (Cell(text, None if text == "-" else float(text)) for text in line.values)
    return GridRow((Cell(name), *values, Cell("")), kind)


def _floor_lines(table: PaperTable, rows: Sequence[Row], expected: Expected) -> list[GridRow]:
    if not table.about_auroc:
        return []
    mark = f" {MARK}" if floor_is_shortened(rows) else ""
    floors = {f"{name}{mark}": floor_cells(rows, name) for name in FLOORS}
    floors |= seen_floor_cells(rows)
    lines = []
    for name, cells in floors.items():
        if cells:
            lines.append(_line(f"floor: {name}", table, {"auroc": cells}, expected, "floor"))
    return lines


def _our_line(table: PaperTable, row: Row, score: str | None, expected: Expected) -> GridRow:
    metrics = dict.fromkeys(column.metric for column in table.columns)
    cells = {metric: _inside(row.cells(score, metric), table) for metric in metrics}
    return _line(f"ours: {_named(row, score)}", table, cells, expected, row.kind)


def _named(row: Row, score: str | None) -> str:
    score_name = score or row.primary
    mark = " (transductive)" if row.transductive(score_name) else ""
    return f"{row.name}, {score_name}{mark}"


def _inside(cells: Cells, table: PaperTable) -> Cells:
    """The cells that the table is about, where it names its inliers."""
    if not isinstance(table.expected, tuple):
        return cells
    return {cell: value for cell, value in cells.items() if cell[0] in table.expected}


def _line(
    name: str, table: PaperTable, cells: Mapping[str, Cells], expected: Expected, kind: str
) -> GridRow:
    summaries = {metric: summarise(values) for metric, values in cells.items()}
    numbers = []
    for column in table.columns:
        summary = summaries.get(column.metric)
        if summary is None:
            numbers.append(Cell("-"))
        elif column.inlier is not None:
            numbers.append(number(summary.classes.get(column.inlier), 3))
        else:
            numbers.append(number(summary.mean, 4, note=expected.note(summary.classes)))
    count = max((len(values) for values in cells.values()), default=0)
    return GridRow((Cell(name), *numbers, Cell(f"{count} of {expected.cells}", count)), kind)


def _against(table: PaperTable, row: Row, expected: Expected) -> Iterator[GridRow]:
    """One line for each printed row that is this row's counterpart."""
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
    summary = summarise(_inside(row.cells(counterpart.score, column.metric), table))
    printed_row = line.row
    if len(table.columns) > 1 and not table.by_class:
        printed_row = f"{line.row}, {column.name}"
    names = Cell(_named(row, counterpart.score)), Cell(printed_row)
    text = Cell(line.values[index], line.number(index))
    if summary is None:
        return GridRow((*names, text, Cell("-"), Cell("-"), Cell("not measured")))
    printed, basis = _printed_mean(table, line, index, summary, expected)
    if printed is None:
        verdict = f"not compared: {basis}"
        return GridRow((*names, text, number(summary.mean), Cell("-"), Cell(verdict)))
    gap = summary.mean - printed
    reasons = tie_reasons(gap, table.data, summary.error, summary.seed_std)
    if row.lacks:
        verdict = f"not the whole method, so no verdict: scored weights {row.lacks}"
    elif reasons:
        verdict = f"= tie: {'; '.join(reasons)}"
    else:
        verdict = f"{'above' if gap > 0 else 'below'} the printed row"
    cells = (
        number(printed) if basis else text,
        number(summary.mean),
        number(gap, signed=True),
        Cell(verdict + basis),
    )
    return GridRow((*names, *cells))


def _printed_mean(
    table: PaperTable, line: Line, index: int, summary: Statistics, expected: Expected
) -> tuple[float | None, str]:
    """The printed number over the classes that we have, and a remark on it.

    The remark says what the number is if not the printed mean, or why there is none.
    """
    whole, printed = expected.covers(summary.classes), line.number(index)
    if whole and printed is not None:
        return printed, ""
    # the mean over the classes that we have, if each of them is printed
    values = {column.inlier: line.number(i) for i, column in enumerate(table.columns)}
    numbers = []
    for label in summary.classes:
        value = values.get(label)
        if value is not None:
            numbers.append(value)
    if len(numbers) == len(summary.classes):
        return fmean(numbers), f" (means over the {len(numbers)} classes that were run)"
    if whole:
        return None, "not printed"
    return None, f"{len(summary.classes)} of {expected.count} classes were run"
