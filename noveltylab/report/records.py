"""The CSV file: one number a line."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from noveltylab.report.collect import Run
from noveltylab.report.compare import Comparisons, Paired
from noveltylab.report.grouping import notes
from noveltylab.report.ours import RULES, class_names
from noveltylab.report.published import PaperTable
from noveltylab.report.rows import (
    SHOWN_FLOORS,
    Row,
    floor_cells,
    floor_is_shortened,
    seen_floor_cells,
)
from noveltylab.report.stats import Cells, summarise
from noveltylab.results.scores import quote

Record = dict[str, str | float | None]
FIELDS = (
    "table", "protocol", "data", "kind", "row", "score", "column", "seed",
    "value", "std", "low", "high", "cells", "classes", "p", "holm_p", "says",
    "shortened", "note", "split", "commit", "torch", "machine", "threads", "verified",
)  # fmt: skip


def printed_records(table: PaperTable) -> Iterator[Record]:
    """The numbers that a table prints, and those that others got."""
    for kind, lines in (("published", table.rows), ("others", table.others)):
        for line in lines:
            row = f"{line.row}: {line.by}" if line.by else line.row
            for index, column in enumerate(table.columns):
                if (value := line.number(index)) is not None:
                    where: Record = {
                        "table": table.ident,
                        "protocol": table.protocol,
                        "data": table.data,
                    }
                    yield where | {"kind": kind, "row": row, "column": column.name, "value": value}


def our_records(
    rows: Sequence[Row], comparisons: Comparisons, protocol: str, data: str
) -> Iterator[Record]:
    """Class means and means of each score, the floors, the runs and the comparisons."""
    where: Record = {"protocol": protocol, "data": data}
    names, remarks = class_names(rows), notes(rows)
    for row in rows:
        about: Record = {
            "row": row.name,
            "shortened": "; ".join(row.shortened),
            "note": "; ".join(remarks[row.name]),
        }
        for score in (None, *row.scores):
            fields = where | about | {"score": score or row.primary}
            yield from _summary_records(fields | {"kind": "ours"}, row.cells(score), names)
            for rule in RULES:
                yield from _summary_records(
                    fields | {"kind": rule}, row.labelled(rule, score), names
                )
        for run in row.runs:
            value = run.result.scores[run.result.primary].auroc
            cell: Record = {
                "kind": "run",
                "row": row.name,
                "score": run.result.primary,
                "seed": run.result.seed,
            }
            yield where | cell | {"column": run.result.inlier_name, "value": value} | _made(run)
    trial = "only shortened runs" if floor_is_shortened(rows) else ""
    for floor in SHOWN_FLOORS:
        fields = where | {"kind": "floor", "row": floor, "shortened": trial}
        yield from _summary_records(fields, floor_cells(rows, floor), names)
    for floor, cells in seen_floor_cells(rows).items():
        yield from _summary_records(where | {"kind": "floor", "row": floor}, cells, names)
    for first, second, paired in comparisons:
        yield (
            where
            | {"kind": "difference", "row": f"{first} minus {second}", "column": "mean"}
            | _compared(paired)
        )


def _compared(paired: Paired) -> Record:
    low, high = paired.interval or (None, None)
    sizes: Record = {"cells": paired.pairs, "classes": paired.classes}
    tests: Record = {"p": paired.p, "holm_p": paired.holm, "says": paired.verdict}
    return {"value": paired.mean, "low": low, "high": high} | sizes | tests


def _made(run: Run) -> Record:
    facts = run.made_with
    return {
        "shortened": "; ".join(run.shortened),
        "split": run.result.split_sha256,
        "verified": str(run.result.data_verified).lower(),
        **{fact: facts[fact] for fact in ("commit", "torch", "machine", "threads")},
    }


def _summary_records(where: Record, cells: Cells, names: Mapping[int, str]) -> Iterator[Record]:
    summary = summarise(cells)
    if summary is None:
        return
    for label, value in summary.classes.items():
        count = sum(inlier == label for inlier, _ in cells)
        yield where | {"column": names[label], "value": value, "cells": count}
    low, high = summary.interval or (None, None)
    mean: Record = {
        "column": "mean",
        "value": summary.mean,
        "std": summary.seed_std,
        "low": low,
        "high": high,
    }
    yield where | mean | {"cells": summary.cells}


def to_csv(records: Sequence[Record]) -> str:
    """The file's text; a name that a spreadsheet would take for a formula gets a quote in front."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({field: _cell(value) for field, value in record.items()} for record in records)
    return text.getvalue()


def _cell(value: str | float | None) -> str | float | None:
    return quote(value) if isinstance(value, str) else value
