"""The table at the end of a sweep: every cell, mean AUROCs, failures, and what to type next."""

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from noveltylab.command import screen
from noveltylab.command.screen import plain, show
from noveltylab.run.summary import offline_runs
from noveltylab.sweep.cells import NAMED, Cell, number_text
from noveltylab.sweep.view import clock

#: Columns of the tables where they go to a file, with options that were swept.
WIDEST = 200


def print_cells(cells: list[Cell], seconds: float) -> None:
    """The table of all cells, on standard output, at most 80 columns wide."""
    # the columns: a protocol that all share is left out
    styles = {"failed": "bold red", "elsewhere": "yellow", "complete": "dim"}
    names = list(cells[0].names)
    if "protocol" in names and len({cell.names["protocol"] for cell in cells}) == 1:
        names.remove("protocol")
    table = _table(names)
    for name in ("AUROC", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    # a row per cell
    for cell in cells:
        values = [cell.names[name] for name in names]
        if cell.result:
            values.append(number_text(cell.result, "auroc", 4))
            values.append(number_text(cell.result, "seconds", 1))
        else:
            values += ["", ""]
        table.add_row(*values, cell.state, style=styles.get(cell.state))
    # the cells, then their means
    console = screen.console()
    if not console.is_terminal:
        console = screen.console(width=WIDEST)
    width = min(80, console.width) if len(names) <= len(NAMED) else console.width
    console.print(table, width=width)
    means = mean_rows(cells)
    if means:
        rows = [name for name in names if name not in ("inlier", "seed")]
        console.print(_mean_table(means, rows), width=width)
    # how many cells are in which state
    count = Counter(cell.state for cell in cells)
    order = ("done", "complete", "elsewhere", "failed")
    states = [f"{count[state]} {state}" for state in order if count[state]]
    console.print(f"{len(cells)} cells: {', '.join(states)}; {clock(seconds)}", soft_wrap=True)
    if count["elsewhere"]:
        console.print(
            "elsewhere: another process is running it; the same command shows the result",
            soft_wrap=True,
        )
    # what to type next
    for line in next_commands(cells):
        console.print(line, soft_wrap=True)


def _table(names: Sequence[str]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold")
    return table


@dataclass
class Mean:
    """The mean AUROC of the cells that differ in class and seed alone.

    The seeds of each class are averaged first, then the classes.
    """

    names: dict[str, str]
    auroc: float
    classes: int
    seeds: int
    measured: int
    cells: int


def mean_rows(cells: list[Cell]) -> list[Mean]:
    """One mean per method, data set and whatever else was swept.

    [] if each would be of one cell.
    """
    # cells that differ in class and seed alone
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        key = tuple(value for name, value in cell.names.items() if name not in ("inlier", "seed"))
        groups.setdefault(key, []).append(cell)
    # the mean of each group
    means = []
    for group in groups.values():
        by_class: dict[str, list[float]] = {}
        for cell in group:
            if "auroc" in cell.result:
                by_class.setdefault(cell.names["inlier"], []).append(cell.result["auroc"])
        if by_class:
            auroc = fmean(fmean(seeds) for seeds in by_class.values())
            seeds = max(map(len, by_class.values()))
            measured = sum(map(len, by_class.values()))
            means.append(Mean(group[0].names, auroc, len(by_class), seeds, measured, len(group)))
    return means if any(mean.cells > 1 for mean in means) else []


def _mean_table(means: list[Mean], names: Sequence[str]) -> Any:
    table = _table(names)
    for name in ("mean AUROC", "classes", "seeds", "cells"):
        table.add_column(name, justify="right", no_wrap=True)
    for mean in means:
        share = str(mean.cells)
        if mean.measured != mean.cells:
            share = f"{mean.measured} of {mean.cells}"
        numbers = (f"{mean.auroc:.4f}", str(mean.classes), str(mean.seeds), share)
        table.add_row(*(mean.names[name] for name in names), *numbers, style="bold")
    return table


def next_commands(cells: list[Cell]) -> list[str]:
    """What to type after a sweep: the report on it, and what sends runs that W&B kept on disk."""
    folders = [cell.folder for cell in cells if cell.folder and cell.result]
    if not folders:
        return []
    outputs = list(dict.fromkeys(str(cell.output) for cell in cells if cell.output and cell.result))
    # one report if the outputs lie in one folder
    shared = ""
    if len(outputs) > 1 and len({os.path.isabs(path) for path in outputs}) == 1:
        shared = os.path.commonpath(outputs)
    reports = [shared] if shared.strip("/") else outputs
    command = "tables and comparisons: python -m noveltylab report"
    lines = [f"{command} {shlex.quote(path)}" for path in reports]
    # runs that wait for W&B
    unsent = [path for folder in folders for path in offline_runs([folder])[:1]]
    if unsent:
        patterns = [f"{shlex.quote(path)}/*/*/*/*/seed*/wandb/offline-run-*" for path in outputs]
        quoted = " ".join(patterns)
        lines.append(
            f"{len(unsent)} runs are kept on disk for W&B; to send them: wandb sync {quoted}"
        )
    return lines


def print_failures(cells: list[Cell]) -> None:
    """Which cells failed and why, one line each, on standard error."""
    failed = [(str(cell), cell.reason) for cell in cells if cell.state == "failed"]
    width = max(len(name) for name, _ in failed)
    show(f"\n{len(failed)} of {len(cells)} cells failed; the same command tries them again:")
    last_reason = ""
    for name, reason in failed:
        text = "the same" if reason == last_reason else plain(reason)
        show(f"  {name:<{width}}  {text}")
        last_reason = reason
