"""What of a folder of runs is complete, running, failed and left, and how long it will take.

    python -m noveltylab status
    python -m noveltylab status outputs/ocgan
    python -m noveltylab status <run folder>
    python -m noveltylab status outputs --json

The folder is an output folder (default: outputs), one above several, or a single run's. Nothing is changed, and no run is
disturbed. Left are runs that were interrupted, and those that a sweep has planned and nobody has begun. The time is what the
running ones say of themselves, and for each run that is left the mean of the complete ones of its method and data, else what
its sweep estimated before it began.
Exit codes: 0 said, 2 bad input.
"""

import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.text import Text

from noveltylab.command.durations import clock
from noveltylab.command.screen import console, say, show, terminal
from noveltylab.command.signals import end_command, interruptible
from noveltylab.errors import UserError
from noveltylab.report.collect import MOVED_ASIDE, is_run_folder, why_unfinished
from noveltylab.results.files import read_tail
from noveltylab.results.record import read_result
from noveltylab.run.folder import failure_in, read_failure
from noveltylab.run.lock import holder
from noveltylab.sweep.cells import NAMED
from noveltylab.sweep.plan import Plan, read_plans
from noveltylab.sweep.view import LOG_TAIL, newest_epoch

#: Runs of each state that are listed.
MOST_LISTED = 20
STATES = ("complete", "running", "failed", "left")
LOCK = re.compile(r"\.(seed\d+)\.lock$")
#: How a line of a run's log says the time that remains.
REMAINING = re.compile(r", (\d+) s left: ")


@dataclass
class Standing:
    """How one run stands.

    Attributes:
        folder: Of the run.
        state: One of STATES.
        words: Its number, how far it is, or why it failed.
        seconds: What it took if it is complete, else what it is to take yet; None: unknown.
    """

    folder: Path
    state: str
    words: str
    seconds: float | None = None


def stand(folder: Path) -> Standing:
    """How the run of a folder stands, which need not exist."""
    owner = holder(folder)
    if owner is not None:
        return _running(folder, owner)
    if (folder / "result.json").exists():
        return _complete(folder)
    failure = failure_in(folder.parents[len(NAMED) - 1], folder)
    if failure.exists():
        return Standing(folder, "failed", read_failure(failure))
    if not folder.exists():
        return Standing(folder, "left", "not begun")
    words = why_unfinished(folder)
    if words.startswith("failed: "):
        return Standing(folder, "failed", words.removeprefix("failed: "))
    return Standing(folder, "left", f"interrupted, {newest_epoch(folder)}")


def _complete(folder: Path) -> Standing:
    try:
        result = read_result(folder)
    except UserError as error:
        return Standing(folder, "failed", str(error))
    metrics = result["scores"][result["primary"]]
    words = f"AUROC {metrics['auroc']:.4f}" if metrics else "no labelled outliers"
    if result["config"].get("debug"):
        words += ", a trial"
    return Standing(folder, "complete", words, float(result["seconds"]["total"]))


def _running(folder: Path, owner: dict[str, Any]) -> Standing:
    words = newest_epoch(folder)
    if owner:
        words += f" (process {owner['pid']} on {owner['host']} since {owner['since']})"
    return Standing(folder, "running", words, _seconds_left(folder))


def _seconds_left(folder: Path) -> float | None:
    """What the newest line of a run's log says, less the time since then; None if it says nothing."""
    path = folder / "run.log"
    try:
        lines = read_tail(path, LOG_TAIL).decode(errors="replace").rpartition(" run folder ")[2]
        age = time.time() - path.stat().st_mtime
    except OSError:
        return None
    said = REMAINING.findall(lines)
    return max(0.0, float(said[-1]) - age) if said else None


def find(top: Path) -> tuple[list[Path], list[Plan]]:
    """Every run folder at and below a folder, also planned ones, and the plans of its sweeps.

    Raises:
        UserError: There is no such folder, or neither a run nor a plan in it.
    """
    if not top.is_dir():
        raise UserError(
            f"{top}: no such folder; name an output folder, as in output=..., or a run's"
        )
    folders: dict[Path, None] = {}
    plans: list[Plan] = []
    for output, runs in _walk(top):
        plans += read_plans(output)
        folders |= dict.fromkeys(runs)
    for plan in plans:
        folders |= dict.fromkeys(plan.folders)
    if not folders:
        raise UserError(f"{top}: holds no runs, and no sweep has planned any there")
    return sorted(folders), plans


def _walk(top: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder that is no run's, and the run folders in it; also those that begin just now."""
    if is_run_folder(top, os.listdir(top)):
        yield top, [top]
        return
    for name, children, files in os.walk(top, onerror=_tell):
        path = Path(name)
        children[:] = sorted(child for child in children if not MOVED_ASIDE.match(child))
        names = [child for child in children if is_run_folder(path / child, _names(path / child))]
        names += [match[1] for file in files if (match := LOCK.match(file))]
        children[:] = [child for child in children if not (child in names or child[:1] == ".")]
        runs = [path / child for child in names]
        yield path, runs


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _tell(error: OSError) -> None:
    say(f"{error.filename}: cannot be looked into ({error.strerror})")


def fill_times(runs: Sequence[Standing], plans: Sequence[Plan] = ()) -> None:
    """Gives each run that is left the mean time of the complete ones most like it.

    Where there is none it is the time that its plan has, if it has one.
    """
    planned: dict[Path, float] = {}
    for plan in plans:
        planned |= plan.seconds
    spent: dict[tuple[str, ...], list[float]] = {}
    for run in runs:
        if run.state == "complete" and run.seconds is not None:
            for key in _likeness(run.folder):
                spent.setdefault(key, []).append(run.seconds)
    for run in runs:
        if run.seconds is None and run.state in ("left", "running"):
            times = [spent[key] for key in _likeness(run.folder) if key in spent]
            run.seconds = fmean(times[0]) if times else planned.get(run.folder)


def _likeness(folder: Path) -> list[tuple[str, ...]]:
    """What runs have in common, the most telling first: method and data, then the method."""
    if len(folder.parts) < len(NAMED):
        return []
    _, method, data, _, _ = folder.parts[-len(NAMED) :]
    return [(method, data), (method,)]


def seconds_to_go(runs: Sequence[Standing]) -> float | None:
    """What all that is running and left takes, as many at once as run now; None if unknown."""
    open_runs = [run for run in runs if run.state in ("running", "left")]
    times = [run.seconds for run in open_runs]
    if not times or None in times:
        return None
    at_once = max(1, sum(run.state == "running" for run in runs))
    total = sum(seconds for seconds in times if seconds is not None)
    longest = max((run.seconds or 0.0 for run in runs if run.state == "running"), default=0.0)
    return max(total / at_once, longest)


def print_status(top: Path, runs: Sequence[Standing], plans: Sequence[Plan]) -> None:
    """Says how many runs stand how, the time to go, and of those that are not complete which."""
    count = Counter(run.state for run in runs)
    line = ", ".join(f"{count[state]} {state}" for state in STATES)
    screen = console(soft_wrap=True)
    screen.print(Text.assemble((str(top), "bold"), f": {line}{_time_words(runs)}"))
    styles = {"running": "green", "failed": "bold red", "left": "dim"}
    for state in STATES:
        of_state = [run for run in runs if run.state == state]
        if state == "complete" and len(runs) > 1:
            continue  # the report shows them
        for run in of_state[:MOST_LISTED]:
            place = run.folder if run.folder == top else run.folder.relative_to(top)
            screen.print(
                Text.assemble((f"{state:<8} ", styles.get(state, "")), f"{place}  {run.words}")
            )
        if len(of_state) > MOST_LISTED:
            screen.print(f"{'':<8} and {len(of_state) - MOST_LISTED} more {state}")
    open_folders = {run.folder for run in runs if run.state in ("failed", "left")}
    for plan in plans:
        if missing := len(open_folders & set(plan.folders)):
            screen.print(f"{missing} of these by: noveltylab {plan.command}")


def _time_words(runs: Sequence[Standing]) -> str:
    if not any(run.state in ("running", "left") for run in runs):
        return ""
    seconds = seconds_to_go(runs)
    if seconds is None:
        return "; time to go unknown until one like them is complete"
    at_once = max(1, sum(run.state == "running" for run in runs))
    return f"; about {clock(seconds)} to go, {at_once} at once"


def as_json(top: Path, runs: Sequence[Standing]) -> str:
    """The same for a program, by the names that the screen uses."""
    count = Counter(run.state for run in runs)
    content = {
        "folder": str(top),
        **{state: count[state] for state in STATES},
        "seconds_to_go": seconds_to_go(runs),
        "runs": [
            {"folder": str(run.folder), "state": run.state, "says": run.words, "seconds": run.seconds}
            for run in runs
        ],
    }  # fmt: skip
    return json.dumps(content, indent=1, ensure_ascii=False)


def parse(arguments: Sequence[str]) -> tuple[Path, bool]:
    """The folder, and whether JSON is asked for. UserError for anything else."""
    folders = [argument for argument in arguments if argument != "--json"]
    if len(folders) > 1 or any(argument.startswith("-") for argument in folders):
        raise UserError(
            f"cannot read '{' '.join(folders)}'; it is: python -m noveltylab status [folder] [--json]"
        )
    return Path(folders[0] if folders else "outputs").expanduser(), "--json" in arguments


def main(arguments: list[str]) -> int:
    """Exit codes: 0 said, 2 bad input, 130, 143 or 129 for signals."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        with terminal(), interruptible():
            top, wants_json = parse(arguments)
            folders, plans = find(top)
            runs = [stand(folder) for folder in folders]
            fill_times(runs, plans)
            if wants_json:
                show(as_json(top, runs), sys.stdout)
            else:
                print_status(top, runs, plans)
            return 0
    except (UserError, KeyboardInterrupt) as error:
        return end_command(error, "interrupted")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
