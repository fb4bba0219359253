r"""Writes LaTeX: one file a table, for \input, and a small main file that compiles.

Mean and deviation over seeds, best in bold, short names, a caption and a label of its own, and
under each table what its numbers must not be read without. What does not fit a page goes on in a
second table; what is wider than the text is shrunk.
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from noveltylab.report.expected import Expected, expect
from noveltylab.report.grouping import notes
from noveltylab.report.published import Column, PaperTable
from noveltylab.report.rows import (
    FLOORS,
    MARK,
    Row,
    floor_cells,
    floor_is_shortened,
    seen_floor_cells,
)
from noveltylab.report.stats import Cells, Statistics, summarise
from noveltylab.report.text import escape_latex

#: Rows of a table that a page of article holds with a caption and notes.
ROWS = 30
#: Characters of notes under a table; what is more stands in the other formats.
NOTES = 1500
#: Columns from which on deviations stand beside the mean alone.
WIDE = 6
DAGGER = r"$^{\dagger}$"
MAIN = r"""\documentclass{article}
\usepackage[utf8]{inputenc}
\usepackage{textcomp,booktabs,graphicx}
\begin{document}
%s
\end{document}
"""


@dataclass(frozen=True)
class Number:
    """A cell: its text, and its value if it may be the best of its column."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Line:
    """A row of a table; `ours` ones are compared for the best."""

    name: str
    cells: tuple[Number, ...]
    group: str


def paper_table(table: PaperTable, rows: Sequence[Row]) -> dict[str, str]:
    """File name -> text: a paper's printed rows, the floors and our rows."""
    expected = expect(rows, table)
    lines = [
        Line(escape_latex(f"{line.row} (others)" if line.by else line.row), printed, kind)
        for kind, group in (("printed", table.rows), ("others", table.others))
        for line in group
        if (printed := tuple(Number(escape_latex(text)) for text in line.values))
    ]
    mark = DAGGER if floor_is_shortened(rows) else ""
    for floor in FLOORS if table.about_auroc else ():
        if cells := floor_cells(rows, floor):
            numbers = _numbers(table.columns, {"auroc": cells}, expected, False)
            lines.append(Line(f"floor: {floor}{mark}", numbers, "floor"))
    for floor, cells in seen_floor_cells(rows).items() if table.about_auroc else ():
        numbers = _numbers(table.columns, {"auroc": cells}, expected, False)
        lines.append(Line(escape_latex(f"floor: {floor}"), numbers, "floor"))
    names = short_names(rows)
    for row in rows:
        metrics = dict.fromkeys(column.metric for column in table.columns)
        cells_by_metric = {metric: _inside(row.cells(None, metric), table) for metric in metrics}
        numbers = _numbers(table.columns, cells_by_metric, expected, not row.shortened)
        lines.append(Line(names[row.name], numbers, "ours"))
    caption = f"{table.title}. {table.paper}. {table.metric}; printed numbers above, ours below."
    headers = [column.name for column in table.columns]
    lower = {
        index for index, column in enumerate(table.columns) if column.metric in ("eer", "fpr95")
    }
    note = _notes(rows, names)
    if table.others:
        note += f" Others: {escape_latex('; '.join(f'{line.row}, {line.by}' for line in table.others))}."
    return _files(table.ident, caption, ["method", *headers], lines, note.strip(), lower)


def own_table(
    protocol: str, data: str, rows: Sequence[Row], table: PaperTable | None
) -> dict[str, str]:
    """File name -> text: every score of our rows, mean over classes with its deviation over seeds."""
    expected = expect(rows, table)
    names = short_names(rows)
    lines = []
    for row in rows:
        for score in (None, *row.scores):
            metrics = (
                row.cells(score),
                row.cells(score, "average_precision"),
                row.cells(score, "eer"),
            )
            numbers = tuple(
                _mean(summarise(cells), expected, not row.shortened, 3) for cells in metrics
            )
            count = Number(f"{len(metrics[0])} of {expected.cells}")
            lines.append(
                Line(
                    names[row.name],
                    (Number(escape_latex(score or row.primary)), *numbers, count),
                    "ours",
                )
            )
    mark = DAGGER if floor_is_shortened(rows) else ""
    for floor in FLOORS:
        if cells := floor_cells(rows, floor):
            mean = _mean(summarise(cells), expected, False, 3)
            count = Number(f"{len(cells)} of {expected.cells}")
            lines.append(
                Line(
                    f"floor: {floor}{mark}",
                    (Number(""), mean, Number("-"), Number("-"), count),
                    "floor",
                )
            )
    caption = (
        f"Our runs on {data} under {protocol}: means over classes, with the deviation over seeds."
    )
    headers = ["method", "score", "AUROC", "average precision", "EER", "cells"]
    return _files(f"{protocol}_{data}", caption, headers, lines, _notes(rows, names), {3})


def main_file(names: Iterable[str]) -> str:
    r"""A document that takes in every table: `\input` of each, by its path from here."""
    return MAIN % "\n".join(f"\\input{{tex/{name}}}" for name in names)


def short_names(rows: Sequence[Row]) -> dict[str, str]:
    """Row name -> the shortest name that no other row has.

    This is the method, else the method with what tells the row apart.
    """
    shorter: dict[str, str] = {}
    for row in rows:
        tail = row.source.rpartition("/")[2]
        for parts in ((), (row.detail,), (tail,), (tail, row.detail), (row.source, row.detail)):
            inside = "; ".join(part for part in parts if part)
            candidate = f"{row.method} ({inside})" if inside else row.method
            siblings = [
                sibling for sibling in rows if sibling is not row and sibling.method == row.method
            ]
            if not inside and any(
                bool(sibling.shortened) == bool(row.shortened) for sibling in siblings
            ):
                continue
            if candidate + MARK * bool(row.shortened) not in shorter.values():
                break
        shorter[row.name] = candidate + MARK * bool(row.shortened)
    return {
        name: escape_latex(text.removesuffix(MARK)) + (DAGGER if text.endswith(MARK) else "")
        for name, text in shorter.items()
    }


def _inside(cells: Cells, table: PaperTable) -> Cells:
    if not isinstance(table.expected, tuple):
        return cells
    return {cell: value for cell, value in cells.items() if cell[0] in table.expected}


def _numbers(
    columns: Sequence[Column], cells: dict[str, Cells], expected: Expected, comparable: bool
) -> tuple[Number, ...]:
    summaries = {metric: summarise(metric_cells) for metric, metric_cells in cells.items()}
    wide = len(columns) > WIDE
    numbers = []
    for column in columns:
        summary = summaries.get(column.metric)
        if summary is None:
            numbers.append(Number("-"))
        elif column.inlier is None:
            numbers.append(_mean(summary, expected, comparable, 3))
        else:
            values = [
                value
                for (inlier, _), (value, _) in cells[column.metric].items()
                if inlier == column.inlier
            ]
            numbers.append(_class_mean(values, comparable, wide))
    return tuple(numbers)


def _class_mean(values: Sequence[float], comparable: bool, wide: bool) -> Number:
    if not values:
        return Number("-")
    mean = sum(values) / len(values)
    deviation = "" if wide or len(values) < 2 else f" $\\pm$ {_deviation(values):.3f}"
    return Number(f"{mean:.3f}{deviation}", mean if comparable else None)


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return float((sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5)


def _mean(summary: Statistics | None, expected: Expected, comparable: bool, digits: int) -> Number:
    """The mean over classes with its deviation over seeds.

    A mean of some classes is never the best.
    """
    if summary is None:
        return Number("-")
    text = f"{summary.mean:.{digits}f}"
    if summary.seed_std is not None:
        text += f" $\\pm$ {summary.seed_std:.{digits}f}"
    if expected.covers(summary.classes):
        return Number(text, summary.mean if comparable else None)
    return Number(f"{text} ({len(summary.classes)} of {expected.count})")


def _notes(rows: Sequence[Row], names: dict[str, str]) -> str:
    """What has to be known of the numbers above: shortened runs, and what else differs."""
    remarks = notes(rows)
    by_note: dict[str, list[str]] = {}
    shortened: dict[str, list[str]] = {}
    for row in rows:
        for note in remarks[row.name]:
            group = shortened if note.startswith("shortened: ") else by_note
            group.setdefault(note.removeprefix("shortened: "), []).append(names[row.name])
    sentences = []
    if shortened:
        listed = "; ".join(
            f"{', '.join(who)}: {escape_latex(remark)}" for remark, who in shortened.items()
        )
        sentences.append(f"{DAGGER}Shortened runs, not compared with whole ones ({listed}).")
    every = [remark for remark, who in by_note.items() if len(who) == len(rows)]
    partial = {remark: who for remark, who in by_note.items() if remark not in every}
    if every:
        sentences.append(f"All rows: {escape_latex(', '.join(every))}.")
    if partial:
        listed = "; ".join(
            f"{escape_latex(remark)} ({', '.join(who)})" for remark, who in partial.items()
        )
        sentences.append(f"Rows differ: {listed}.")
    return _cut(" ".join(sentences))


def _cut(text: str) -> str:
    """At the end of a clause where it is too long for a page."""
    if len(text) <= NOTES:
        return text
    return f"{text[:NOTES].rpartition('; ')[0]}; more in the report's other formats."


def _files(
    ident: str,
    caption: str,
    headers: Sequence[str],
    lines: Sequence[Line],
    note: str,
    lower: set[int],
) -> dict[str, str]:
    """One file, or several where there are more rows than a page holds.

    The best is that of all of them.
    """
    best = _best(lines, len(headers) - 1, lower)
    stem = ident.replace("/", "_")
    # a name of one's own: its letters may be no file name or label
    if not re.fullmatch(r"[A-Za-z0-9_]+", stem):
        stem = f"{re.sub('[^A-Za-z0-9]+', '_', stem).strip('_')}_{zlib.crc32(ident.encode('utf-8', 'replace')):08x}"
    parts = [lines[start : start + ROWS] for start in range(0, len(lines), ROWS)] or [lines]
    files = {}
    for number, part in enumerate(parts, 1):
        name = stem if len(parts) == 1 else f"{stem}_{number}"
        continued = "" if number == 1 else f" Continued ({number} of {len(parts)})."
        title = f"{caption}{' Bold: the best of our whole runs.' if best else ''}{continued}"
        files[name] = "\n".join(_environment(name, title, headers, part, note, best)) + "\n"
    return files


def _best(lines: Sequence[Line], columns: int, lower: set[int]) -> dict[int, str]:
    """Column -> the text of its best number, as printed: equal ones are all the best."""
    best = {}
    for index in range(columns):
        values = {
            line.cells[index].value: line.cells[index].text
            for line in lines
            if line.group == "ours"
        }
        numbers = [value for value in values if value is not None]
        if numbers:
            best[index] = values[min(numbers) if index in lower else max(numbers)].partition(" ")[0]
    return best


def _environment(
    name: str,
    caption: str,
    headers: Sequence[str],
    lines: Sequence[Line],
    note: str,
    best: dict[int, str],
) -> Iterator[str]:
    words = {
        0,
        *(
            i
            for i in range(1, len(headers))
            if all(not _is_number(line.cells[i - 1].text) for line in lines)
        ),
    }
    layout = "".join("l" if index in words else "r" for index in range(len(headers)))
    wide = len(headers) > WIDE + 1
    yield from ("\\begin{table}", "\\centering", f"\\{'scriptsize' if wide else 'footnotesize'}")
    yield from (
        f"\\setlength{{\\tabcolsep}}{{{3 if wide else 4}pt}}",
        f"\\caption{{{escape_latex(caption)}}}",
    )
    yield from (
        f"\\label{{tab:{name}}}",
        "\\vspace{4pt}",
        "\\sbox0{%",
        f"\\begin{{tabular}}{{@{{}}{layout}@{{}}}}",
        "\\toprule",
    )
    yield f"{' & '.join(map(escape_latex, headers))} \\\\"
    group = None
    for line in lines:
        if line.group != group:
            yield "\\midrule"
            group = line.group
        cells = (_cell(cell, best.get(index)) for index, cell in enumerate(line.cells))
        yield f"{' & '.join((line.name, *cells))} \\\\"
    yield from ("\\bottomrule", "\\end{tabular}}%")
    yield "\\ifdim\\wd0>\\textwidth\\resizebox{\\textwidth}{!}{\\usebox0}\\else\\usebox0\\fi"
    if note:
        yield from (
            "",
            "\\vspace{2pt}",
            f"\\parbox{{\\textwidth}}{{\\scriptsize\\raggedright {note}}}",
        )
    yield from ("\\end{table}",)


def _cell(cell: Number, best: str | None) -> str:
    mean, space, remainder = cell.text.partition(" ")
    if cell.value is None or mean != best:
        return cell.text
    return f"\\textbf{{{mean}}}{space}{remainder}"


def _is_number(text: str) -> bool:
    return bool(re.match(r"-?\d|-$", text))
