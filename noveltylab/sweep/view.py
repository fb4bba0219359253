"""What is seen of a sweep, while it runs and at its end.

While it runs: a live screen on a terminal, else a line per change. At the end: a table of every
cell, mean AUROCs, failures, and what to type next.
"""

import os
import re
import shlex
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from noveltylab.command import screen
from noveltylab.command.durations import clock
from noveltylab.command.screen import plain, show
from noveltylab.results.files import read_tail
from noveltylab.results.search import FILE, Search, ranked, sentences
from noveltylab.run.summary import offline_runs
from noveltylab.sweep.cells import NAMED, Cell, number_text, update_state
from noveltylab.sweep.estimate import Estimates, rest

#: Columns of the tables where they go to a file, with options that were swept.
WIDEST = 200
#: Seconds between two looks at the folders of the cells that are not finished.
LOOK_SECONDS = 1.0
#: Bytes at the end of a run's log in which its newest epoch is looked for.
LOG_TAIL = 8000
#: Trials in the table at the end of a search.
MOST_SHOWN = 30


class Watch:
    """Follows the cells by their folders, from a thread of its own.

    On a terminal this is a live view, else a line per change.

    Args:
        cells: All of the sweep.
        console: Where they are shown.
        estimates: What each is to take.
        forecast: What is said before the first one begins.
    """

    def __init__(
        self,
        cells: list[Cell],
        console: Any,
        estimates: Estimates | None = None,
        forecast: str = "",
    ) -> None:
        self.cells = cells
        self.console = console
        self.estimates = estimates or Estimates(cells)
        self.forecast = forecast
        self.waiting = [cell for cell in cells if cell.state == "waiting"]
        self.printed: set[int] = set()
        #: cells whose time the estimates know
        self.learned: set[int] = set()
        self.started = time.monotonic()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        from rich.live import Live

        self.live = Live(
            console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        if self.forecast or not self.console.is_terminal:
            self.console.print(f"sweep: {self.forecast or self.progress()}", soft_wrap=True)
        if self.console.is_terminal:
            self.live.start()
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self.look()
        if self.console.is_terminal:
            self.live.update(self.progress(), refresh=True)
            self.live.stop()
        self.conclude()

    def conclude(self) -> None:
        """Settles the cells that are neither done nor failed: another process runs them, or none."""
        from noveltylab.run.lock import holder

        for cell in self.waiting:
            if update_state(cell) or cell.folder is None:
                continue
            if holder(cell.folder) is not None:
                cell.state = "elsewhere"
            else:
                cell.fail(cell.reason or "its process ended without a result (killed?)")

    def _follow(self) -> None:
        while not self.stop.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Brings the states up to date and shows what changed."""
        from noveltylab.run.lock import holder

        for cell in self.waiting:
            if update_state(cell):
                if cell.record and id(cell) not in self.learned:
                    self.learned.add(id(cell))
                    self.estimates.add(cell)
                continue
            running = cell.folder is not None and holder(cell.folder) is not None
            cell.state = "running" if running else "waiting"
        if self.console.is_terminal:
            self.live.update(self._screen(), refresh=True)
            return
        for cell in self.waiting:
            if cell.state in ("done", "failed") and id(cell) not in self.printed:
                self.printed.add(id(cell))
                self.console.print(self._line(cell), soft_wrap=True)

    def _line(self, cell: Cell) -> str:
        outcome = textwrap.shorten(cell.reason, 120)
        if cell.result:
            auroc = number_text(cell.result, "auroc", 4)
            outcome = f"AUROC {auroc}, {cell.result['seconds']:.0f} s"
        return f"{cell.state:<7} {cell}: {outcome} ({self.progress()})"

    def progress(self) -> str:
        """`12 of 60 done, 2 running, 1 failed, 5 complete already, about 0:40:10 left`."""
        count = Counter(cell.state for cell in self.cells)
        text = f"{count['done']} of {len(self.cells)} done, "
        text += f"{count['running']} running, {count['failed']} failed"
        if count["complete"]:
            text += f", {count['complete']} complete already"
        ended = []
        left = []
        for cell in self.waiting:
            if cell.record:
                ended.append(cell.result["seconds"])
            elif cell.state != "failed":
                left.append(self.estimates.seconds(cell))
        remaining = rest(ended, left, time.monotonic() - self.started)
        return f"{text}, {remaining}" if remaining else text

    def _screen(self) -> Any:
        from rich.console import Group
        from rich.padding import Padding
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        count = Counter(cell.state for cell in self.cells)
        ended = len(self.cells) - count["waiting"] - count["running"]
        rows = []
        for cell in self.waiting:
            if cell.state == "running":
                line = f"{cell}  {newest_epoch(cell.folder)}"
                rows.append(Text(line, overflow="ellipsis", no_wrap=True, style="dim"))
        spent = f"{clock(time.monotonic() - self.started)}: {self.progress()}"
        max_rows = max(3, self.console.height - 4)
        # the padding ends the line, which the bar by itself does not
        bar = Padding(ProgressBar(len(self.cells), ended), 0)
        return Group(Text(spent, no_wrap=True), bar, *rows[:max_rows])


def newest_epoch(folder: Path | None) -> str:
    """The newest line on an epoch in the run's own log, since the run was last started."""
    assert folder is not None
    # the last lines of the log
    try:
        lines = read_tail(folder / "run.log", LOG_TAIL).decode(errors="replace").splitlines()
    except OSError:
        return "starting"
    # the newest of them that tells of an epoch, not before the start of the run
    for line in reversed(lines):
        words = re.sub(r"^\d\d:\d\d:\d\d ", "", line)
        if words.startswith("epoch "):
            return words
        if words.startswith("run folder "):
            break
    return "no epoch yet"


def print_cells(cells: list[Cell], seconds: float) -> None:
    """The table of all cells, on standard output, at most 80 columns wide."""
    # the columns: a protocol that all share is left out
    styles = {"failed": "bold red", "elsewhere": "yellow", "complete": "dim"}
    names = list(cells[0].names)
    if "protocol" in names:
        protocols = {cell.names["protocol"] for cell in cells}
        if len(protocols) == 1:
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
    width = console.width
    if len(names) <= len(NAMED):
        width = min(80, width)
    console.print(table, width=width)
    means = mean_rows(cells)
    if means:
        row_names = [name for name in names if name not in ("inlier", "seed")]
        console.print(_mean_table(means, row_names), width=width)
    # how many cells are in which state
    count = Counter(cell.state for cell in cells)
    order = ("done", "complete", "elsewhere", "failed")
    states = [f"{count[state]} {state}" for state in order if count[state]]
    counts = ", ".join(states)
    console.print(f"{len(cells)} cells: {counts}; {clock(seconds)}", soft_wrap=True)
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
        shared = cell.names.copy()
        shared.pop("inlier", None)
        shared.pop("seed", None)
        groups.setdefault(tuple(shared.values()), []).append(cell)
    # the mean of each group
    means = []
    for group in groups.values():
        by_class: dict[str, list[float]] = {}
        for cell in group:
            if "auroc" in cell.result:
                by_class.setdefault(cell.names["inlier"], []).append(cell.result["auroc"])
        if by_class:
            mean = Mean(
                names=group[0].names,
                auroc=fmean(map(fmean, by_class.values())),
                classes=len(by_class),
                seeds=max(map(len, by_class.values())),
                measured=sum(map(len, by_class.values())),
                cells=len(group),
            )
            means.append(mean)
    if all(mean.cells == 1 for mean in means):
        return []
    return means


def _mean_table(means: list[Mean], names: Sequence[str]) -> Any:
    table = _table(names)
    for name in ("mean AUROC", "classes", "seeds", "cells"):
        table.add_column(name, justify="right", no_wrap=True)
    for mean in means:
        share = str(mean.cells)
        if mean.measured != mean.cells:
            share = f"{mean.measured} of {mean.cells}"
        values = [mean.names[name] for name in names]
        values += [f"{mean.auroc:.4f}", str(mean.classes), str(mean.seeds), share]
        table.add_row(*values, style="bold")
    return table


def next_commands(cells: list[Cell]) -> list[str]:
    """What to type after a sweep: the report on it, and what sends runs that W&B kept on disk."""
    outputs: dict[str, None] = {}  # in their order
    unsent = 0
    for cell in cells:
        if cell.folder and cell.result:
            outputs[str(cell.output)] = None
            unsent += bool(offline_runs([cell.folder]))
    # a report on each output
    command = "tables and comparisons: python -m noveltylab report"
    lines = [f"{command} {shlex.quote(path)}" for path in _common_folder(list(outputs))]
    # runs that wait for W&B
    if unsent:
        patterns = [f"{shlex.quote(path)}/*/*/*/*/seed*/wandb/offline-run-*" for path in outputs]
        quoted = " ".join(patterns)
        lines.append(f"{unsent} runs are kept on disk for W&B; to send them: wandb sync {quoted}")
    return lines


def _common_folder(paths: list[str]) -> list[str]:
    """The one folder that all paths lie in; the paths themselves where that is the root or none."""
    kinds = set(map(os.path.isabs, paths))
    if len(paths) > 1 and len(kinds) == 1:
        folder = os.path.commonpath(paths)
        if folder.strip("/"):
            return [folder]
    return paths


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


def print_search(search: Search, folder: Path, seconds: float) -> None:
    """The trials, the best first, and what was chosen, on standard output."""
    console = screen.console()
    table = _table(["trial", *search.space])
    table.add_column("held out", justify="right", no_wrap=True)
    table.add_column("AUROC, chooses nothing", justify="right")
    for trial in ranked(search.trials)[:MOST_SHOWN]:
        value = "failed" if trial.value is None else f"{trial.value:.6g}"
        auroc = "none" if trial.auroc is None else f"{trial.auroc:.4f}"
        options = [trial.options[option] for option in search.space]
        style = "bold" if trial == search.chosen else None
        table.add_row(str(trial.number), *options, value, auroc, style=style)
    console.print(table)
    for line in sentences(search):
        console.print(line, soft_wrap=True)
    console.print(f"{clock(seconds)}; {folder / FILE}", soft_wrap=True)
    console.print(
        f"tables and comparisons: python -m noveltylab report {shlex.quote(str(folder))}",
        soft_wrap=True,
    )
