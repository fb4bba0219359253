"""The view of a sweep while it runs: a live screen on a terminal, else a line per change."""

import re
import textwrap
import threading
import time
from collections import Counter
from typing import Any

from noveltylab.results.files import read_tail
from noveltylab.sweep.cells import Cell, number_text, update_state

#: Seconds between two looks at the folders of the cells that are not finished.
LOOK_SECONDS = 1.0
#: Bytes at the end of a run's log in which its newest epoch is looked for.
LOG_TAIL = 8000


class Watch:
    """Follows the cells by their folders, from a thread of its own.

    On a terminal this is a live view, else a line per change.
    """

    def __init__(self, cells: list[Cell], console: Any) -> None:
        self.cells = cells
        self.console = console
        self.waiting = [cell for cell in cells if cell.state == "waiting"]
        self.printed: set[int] = set()
        self.started = time.monotonic()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        from rich.live import Live

        self.live = Live(
            console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        if self.console.is_terminal:
            self.live.start()
        else:
            self.console.print(f"sweep: {self.counts()}", soft_wrap=True)
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self.look()
        if self.console.is_terminal:
            self.live.update(self.counts(), refresh=True)
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
        return f"{cell.state:<7} {cell}: {outcome} ({self.counts()})"

    def counts(self) -> str:
        """`12 of 60 done, 2 running, 1 failed, 5 complete already, about 0:40:10 left`."""
        count = Counter(cell.state for cell in self.cells)
        text = f"{count['done']} of {len(self.cells)} done, {count['running']} running, {count['failed']} failed"
        if count["complete"]:
            text += f", {count['complete']} complete already"
        ended = sum(cell.state in ("done", "failed") for cell in self.waiting)
        if 0 < ended < len(self.waiting):
            seconds_per_cell = (time.monotonic() - self.started) / ended
            remaining = seconds_per_cell * (len(self.waiting) - ended)
            text += f", about {clock(remaining)} left"
        return text

    def _screen(self) -> Any:
        from rich.console import Group
        from rich.padding import Padding
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        running = [cell for cell in self.waiting if cell.state == "running"]
        ended = sum(cell.state not in ("waiting", "running") for cell in self.cells)
        rows = [
            Text(f"{cell}  {newest_epoch(cell)}", overflow="ellipsis", no_wrap=True, style="dim")
            for cell in running
        ]
        spent = f"{clock(time.monotonic() - self.started)}: {self.counts()}"
        max_rows = max(3, self.console.height - 4)
        # the padding ends the line, which the bar by itself does not
        bar = Padding(ProgressBar(len(self.cells), ended), 0)
        return Group(Text(spent, no_wrap=True), bar, *rows[:max_rows])


def newest_epoch(cell: Cell) -> str:
    """The newest line on an epoch in the run's own log, since the run was last started."""
    assert cell.folder is not None
    # the last lines of the log
    try:
        lines = read_tail(cell.folder / "run.log", LOG_TAIL).decode(errors="replace").splitlines()
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


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: `0:40:10`."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
