r"""Writes LaTeX: one file a table, for \input, and a small main file that compiles.

Mean and deviation over seeds, best in bold, short names, a caption and a label of its own, and
under each table what its numbers must not be read without. What does not fit a page goes on in a
second table; what is wider than the text is shrunk.
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from noveltylab.report import published as printed
from noveltylab.report.expected import Expected, expect
from noveltylab.report.grouping import notes
from noveltylab.report.published import Column, PaperTable
from noveltylab.report.rows import (
    MARK,
    SHOWN_FLOORS,
    Row,
    floor_cells,
    floor_is_shortened,
    floor_trained_on,
    floors_by_name,
)
from noveltylab.report.stats import Cells, Statistics, Value, by_class, summarise
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
    lines = [_printed_line(line, "printed") for line in table.rows]
    lines += [_printed_line(line, "others") for line in table.others]
    if table.about_auroc:
        for name, cells in floors_by_name(rows, MARK).items():
            numbers = _numbers(table.columns, {"auroc": cells}, expected, False)
            numbers = (Number(floor_trained_on(name)), *numbers)
            lines.append(Line(escape_latex(name), numbers, "floor"))
    names = short_names(rows)
    for row in rows:
        by_metric = {metric: table.inside(row.cells(None, metric)) for metric in table.metrics}
        numbers = _numbers(table.columns, by_metric, expected, not row.shortened)
        numbers = (Number(escape_latex(row.trained_on)), *numbers)
        lines.append(Line(names[row.name], numbers, "ours"))
    caption = f"{table.title}. {table.paper}. {table.metric}; printed numbers above, ours below."
    headers = ["method", "trained on", *(column.name for column in table.columns)]
    lower = set()
    for index, column in enumerate(table.columns):
        if column.metric in ("eer", "fpr95"):
            lower.add(index + 1)
    note = _notes(rows, names)
    if table.others:
        sources = "; ".join(f"{line.row}, {line.by}" for line in table.others)
        note += f" Others: {escape_latex(sources)}."
    return _files(table.ident, caption, headers, lines, note.strip(), lower)


def _printed_line(line: printed.Line, group: str) -> Line:
    name = f"{line.row} (others)" if line.by else line.row
    numbers = tuple(Number(escape_latex(text)) for text in line.values)
    return Line(escape_latex(name), (Number(line.trained_on), *numbers), group)


def own_table(
    protocol: str, data: str, rows: Sequence[Row], table: PaperTable | None
) -> dict[str, str]:
    """File name -> text: every score of our rows, mean over classes with its deviation over seeds."""
    expected = expect(rows, table)
    names = short_names(rows)
    lines = []
    for row in rows:
        for score in (None, *row.scores):
            name = Number(escape_latex(score or row.primary))
            numbers = []
            for metric in ("auroc", "average_precision", "eer"):
                statistics = summarise(row.cells(score, metric))
                numbers.append(_mean(statistics, expected, not row.shortened))
            count = Number(f"{len(row.cells(score))} of {expected.cells}")
            lines.append(Line(names[row.name], (name, *numbers, count), "ours"))
    mark = DAGGER if floor_is_shortened(rows) else ""
    for floor in SHOWN_FLOORS:
        cells = floor_cells(rows, floor)
        if cells:
            mean = _mean(summarise(cells), expected, False)
            count = Number(f"{len(cells)} of {expected.cells}")
            numbers = [Number(""), mean, Number("-"), Number("-"), count]
            lines.append(Line(f"floor: {floor}{mark}", tuple(numbers), "floor"))
    caption = (
        f"Our runs on {data} under {protocol}: means over classes, with the deviation over seeds."
    )
    headers = ["method", "score", "AUROC", "average precision", "EER", "cells"]
    return _files(f"{protocol}_{data}", caption, headers, lines, _notes(rows, names), {3})


def main_file(names: Iterable[str]) -> str:
    r"""A document that takes in every table: `\input` of each, by its path from here."""
    return MAIN % "\n".join(f"\\input{{tex/{name}}}" for name in names)


# Names.


def short_names(rows: Sequence[Row]) -> dict[str, str]:
    """Row name -> the shortest name that no other row has.

    This is the method, else the method with what tells the row apart.
    """
    shorter: dict[str, str] = {}
    for row in rows:
        mark = MARK if row.shortened else ""
        name = ""
        for name in _candidates(row, rows):
            if name + mark not in shorter.values():
                break
        shorter[row.name] = name + mark
    return {name: escape_latex(text) for name, text in shorter.items()}


def _candidates(row: Row, rows: Sequence[Row]) -> Iterator[str]:
    """Names of a row, short ones first."""
    siblings = [
        sibling
        for sibling in rows
        if sibling.method == row.method and bool(sibling.shortened) == bool(row.shortened)
    ]
    if len(siblings) == 1:
        yield row.method
    folder = row.source.rpartition("/")[2]
    for parts in ((row.detail,), (folder,), (folder, row.detail), (row.source, row.detail)):
        inside = "; ".join(part for part in parts if part)
        if inside:
            yield f"{row.method} ({inside})"


# Numbers.


def _numbers(
    columns: Sequence[Column], by_metric: dict[str, Cells], expected: Expected, comparable: bool
) -> tuple[Number, ...]:
    statistics = {metric: summarise(cells) for metric, cells in by_metric.items()}
    wide = len(columns) > WIDE
    numbers = []
    for column in columns:
        if column.inlier is None:
            numbers.append(_mean(statistics.get(column.metric), expected, comparable))
        else:
            classes = by_class(by_metric.get(column.metric, {}))
            numbers.append(_class_mean(classes.get(column.inlier, []), comparable, wide))
    return tuple(numbers)


def _class_mean(seeds: Sequence[Value], comparable: bool, wide: bool) -> Number:
    if not seeds:
        return Number("-")
    values = [value for value, _ in seeds]
    mean = sum(values) / len(values)
    text = f"{mean:.3f}"
    if len(values) > 1 and not wide:
        variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        text += f" $\\pm$ {variance**0.5:.3f}"
    return Number(text, mean if comparable else None)


def _mean(statistics: Statistics | None, expected: Expected, comparable: bool) -> Number:
    """The mean over classes with its deviation over seeds.

    A mean of some classes is never the best.
    """
    if statistics is None:
        return Number("-")
    text = f"{statistics.mean:.3f}"
    if statistics.seed_std is not None:
        text += f" $\\pm$ {statistics.seed_std:.3f}"
    if not expected.covers(statistics.classes):
        return Number(f"{text} {expected.note(statistics.classes)}")
    return Number(text, statistics.mean if comparable else None)


# Notes.


def _notes(rows: Sequence[Row], names: dict[str, str]) -> str:
    """What has to be known of the numbers above: shortened runs, and what else differs."""
    remarks = notes(rows)
    by_remark: dict[str, list[str]] = {}
    shortened = []
    for row in rows:
        for remark in remarks[row.name]:
            by_remark.setdefault(remark, []).append(names[row.name])
    common = []
    differing = []
    for remark, rows_with_it in by_remark.items():
        listed = ", ".join(rows_with_it)
        text = escape_latex(remark.removeprefix("shortened: "))
        if remark.startswith("shortened: "):
            shortened.append(f"{listed}: {text}")
        elif len(rows_with_it) == len(rows):
            common.append(remark)
        else:
            differing.append(f"{text} ({listed})")
    sentences = []
    if shortened:
        listed = "; ".join(shortened)
        sentences.append(f"{DAGGER}Shortened runs, not compared with whole ones ({listed}).")
    if common:
        sentences.append(f"All rows: {escape_latex(', '.join(common))}.")
    if differing:
        sentences.append(f"Rows differ: {'; '.join(differing)}.")
    return _shorten(" ".join(sentences))


def _shorten(text: str) -> str:
    """Ends at a clause where it is too long for a page."""
    if len(text) <= NOTES:
        return text
    return f"{text[:NOTES].rpartition('; ')[0]}; more in the report's other formats."


# Files.


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
    if best:
        caption += " Bold: the best of our whole runs."
    stem = _stem(ident)
    starts = range(0, max(len(lines), 1), ROWS)
    files = {}
    for part, start in enumerate(starts, 1):
        name = stem
        title = caption
        if len(starts) > 1:
            name = f"{stem}_{part}"
        if part > 1:
            title += f" Continued ({part} of {len(starts)})."
        page = lines[start : start + ROWS]
        files[name] = "\n".join(_environment(name, title, headers, page, note, best)) + "\n"
    return files


def _stem(ident: str) -> str:
    """A file's name and a label from a table's; one's own may have letters that neither can hold."""
    stem = ident.replace("/", "_")
    if re.fullmatch(r"[A-Za-z0-9_]+", stem):
        return stem
    letters = re.sub("[^A-Za-z0-9]+", "_", stem).strip("_")
    return f"{letters}_{zlib.crc32(ident.encode('utf-8', 'replace')):08x}"


def _best(lines: Sequence[Line], columns: int, lower: set[int]) -> dict[int, str]:
    """Column -> the text of its best number, as printed: equal ones are all the best."""
    best = {}
    for index in range(columns):
        texts = {}
        for line in lines:
            number = line.cells[index]
            if line.group == "ours" and number.value is not None:
                texts[number.value] = number.text
        if texts:
            value = min(texts) if index in lower else max(texts)
            best[index] = texts[value].partition(" ")[0]
    return best


def _environment(
    name: str,
    caption: str,
    headers: Sequence[str],
    lines: Sequence[Line],
    note: str,
    best: dict[int, str],
) -> Iterator[str]:
    alignment = "l"
    for index in range(len(headers) - 1):
        numeric = any(_is_number(line.cells[index].text) for line in lines)
        alignment += "r" if numeric else "l"
    wide = len(headers) > WIDE + 1
    yield "\\begin{table}"
    yield "\\centering"
    yield "\\scriptsize" if wide else "\\footnotesize"
    yield f"\\setlength{{\\tabcolsep}}{{{3 if wide else 4}pt}}"
    yield f"\\caption{{{escape_latex(caption)}}}"
    yield f"\\label{{tab:{name}}}"
    yield "\\vspace{4pt}"
    yield "\\sbox0{%"
    yield f"\\begin{{tabular}}{{@{{}}{alignment}@{{}}}}"
    yield "\\toprule"
    yield f"{' & '.join(map(escape_latex, headers))} \\\\"
    group = None
    for line in lines:
        if line.group != group:
            yield "\\midrule"
            group = line.group
        cells = [_cell(cell, best.get(index)) for index, cell in enumerate(line.cells)]
        yield f"{' & '.join([line.name, *cells])} \\\\"
    yield "\\bottomrule"
    yield "\\end{tabular}}%"
    yield "\\ifdim\\wd0>\\textwidth\\resizebox{\\textwidth}{!}{\\usebox0}\\else\\usebox0\\fi"
    if note:
        yield ""
        yield "\\vspace{2pt}"
        yield f"\\parbox{{\\textwidth}}{{\\scriptsize\\raggedright {note}}}"
    yield "\\end{table}"


def _cell(cell: Number, best: str | None) -> str:
    mean, space, remainder = cell.text.partition(" ")
    if cell.value is None or mean != best:
        return cell.text
    return f"\\textbf{{{mean}}}{space}{remainder}"


def _is_number(text: str) -> bool:
    return bool(re.match(r"-?\d|-$", text))
