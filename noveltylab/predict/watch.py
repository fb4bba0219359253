"""Scores files as they come into a folder, and says when they no longer look like before.

The CSV file is the only memory: a row is added for each file, and whoever watches again goes on
from its rows. A file counts as the same while its name, size and time of writing are. What is still
being written is waited for: a file is read when two looks in a row find it unchanged, and one that
cannot be read is tried again for PATIENCE seconds before it counts as unreadable.

What is said of changes, and when, stands in noveltylab/scoring/drift.py.
"""

import csv
import io
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from noveltylab.command.screen import console
from noveltylab.data.layout import shown
from noveltylab.errors import RunFailed, UserError
from noveltylab.predict.paths import VIDEOS, walk
from noveltylab.predict.request import HEADER, Request, check_replaceable
from noveltylab.results.locks import open_own, sync_folder
from noveltylab.results.record import read_result
from noveltylab.results.scores import quote, unquote
from noveltylab.run.lock import Busy, locked
from noveltylab.scoring.conformal import Calibration, decide, percent
from noveltylab.scoring.drift import Drift

if TYPE_CHECKING:
    from noveltylab.predict.detector import Detector, Scored

COLUMNS = (
    *HEADER,
    "time",
    "bytes",
    "modified",
    "wealth_good",
    "wealth_all",
    "changed",
    "settings",
)
#: seconds for which a file that cannot be read may still be on its way
PATIENCE = 10.0
#: files that are scored before their rows are on the disk
BATCH = 256
CHANGES = {
    "good": (
        "images that are not called novel no longer look like the held-out inliers: "
        "the good ones have changed, such as under another light"
    ),
    "all": (
        "the new images as a whole no longer look like the held-out inliers: "
        "novel ones are among them, or so much has changed that good ones are called novel"
    ),
}
Stamp = tuple[int, int]


@dataclass
class Watched:
    """What was seen, of earlier watches of the same CSV file as well."""

    files: int = 0
    novel: int = 0
    unreadable: int = 0
    before: int = 0
    changed: dict[str, str] = field(default_factory=dict)


@dataclass
class Waiting:
    """A file that is not scored yet: how it was found last, and since when it has been so."""

    stamp: Stamp
    since: float


@dataclass
class Watcher:
    """One watch of a folder.

    Attributes:
        request: The command line.
        detector: What scores.
        calibration: Of its held-out inliers.
        rank: Ranks up to this one are novel.
        settings: What rows of one CSV file have in common.
        drift: The tests.
        seen: File -> how it was when it was scored.
        waiting: Files that are not scored yet.
        result: What was seen.
    """

    request: Request
    detector: "Detector"
    calibration: Calibration
    rank: int
    settings: str
    drift: Drift
    seen: dict[str, Stamp] = field(default_factory=dict)
    waiting: dict[Path, Waiting] = field(default_factory=dict)
    result: Watched = field(default_factory=Watched)

    @property
    def folder(self) -> Path:
        return Path(self.request.input).expanduser()

    def name_of(self, path: Path) -> str:
        """A file as its row has it: its path below the folder."""
        return shown(path.relative_to(self.folder).as_posix())

    def due(self) -> list[Path]:
        """Looks into the folder: the files that are new and whole, the oldest first."""
        now = time.monotonic()
        waiting: dict[Path, Waiting] = {}
        due: list[tuple[int, str, Path]] = []
        for path in walk(self.folder, self.detector.reader):
            stamp = stamp_of(path)
            if stamp is None or path.suffix.lower() in VIDEOS:
                continue
            if self.seen.get(self.name_of(path)) == stamp:
                continue
            earlier = self.waiting.get(path)
            if earlier is not None and earlier.stamp == stamp:
                waiting[path] = earlier
                due.append((stamp[1], str(path), path))
            else:
                waiting[path] = Waiting(stamp, now)
        self.waiting = waiting
        return [path for _, _, path in sorted(due)]

    def take(self, row: "Scored") -> list[str] | None:
        """The row of a file that was scored; None if it has changed or may not be whole yet."""
        waiting = self.waiting[row.path]
        if stamp_of(row.path) != waiting.stamp:
            return None
        if row.error is not None and time.monotonic() - waiting.since < PATIENCE:
            return None
        del self.waiting[row.path]
        name = self.name_of(row.path)
        score = p_value = ""
        word = f"unreadable: {row.error}"
        if row.error is None:
            score = repr(row.score)
            p_value = repr(float(self.calibration.p_values([row.score])[0]))
            word = self.word(row.score)
        self.count(name, waiting.stamp, word, row.score)
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        size, modified = map(str, waiting.stamp)
        wealth = [f"{test.martingale.wealth:.6g}" for test in (self.drift.good, self.drift.all)]
        changed = " ".join(self.drift.changed)
        cells = [quote(name), score, p_value, word, moment, size, modified]
        return [*cells, *wealth, changed, self.settings]

    def word(self, score: float) -> str:
        """The decision on a score."""
        is_novel = int(self.calibration.ranks([score])[0]) <= self.rank
        return "novel" if is_novel else "inlier"

    def count(self, name: str, stamp: Stamp, word: str, score: float) -> None:
        """Takes a file into the memory: scored just now, or in an earlier watch."""
        self.seen[name] = stamp
        if word.startswith("unreadable"):
            self.result.unreadable += 1
            return
        self.result.files += 1
        self.result.novel += word == "novel"
        self.drift.add(score)
        for test in self.drift.changed:
            self.result.changed.setdefault(test, name)


def stamp_of(path: Path) -> Stamp | None:
    """Size and time of writing (ns) of a file; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def watch(request: Request, result: Watched) -> None:
    """Scores the files of a folder until it is interrupted, or for so long as new ones come.

    Args:
        request: The command line.
        result: Is kept up to date.

    Raises:
        UserError: There is no such folder, the run cannot be used, its held-out inliers are too
            few, or the CSV file is another's; nothing is written then.
        RunFailed: The disk is full.
    """
    assert request.watch is not None
    # it imports torch: only once the command line is known to be good
    from noveltylab.predict.load import load_detector

    if not Path(request.input).expanduser().is_dir():
        raise UserError(f"--watch {shown(request.input)}: no such folder")
    detector = load_detector(request.run, request.accelerator)
    watcher = _watcher(request, detector, result)
    try:
        with _opened(request.output) as file:
            _recall(watcher, file)
            _greet(watcher)
            _watch(watcher, file, request.watch.every, request.watch.idle)
    except OSError as error:
        raise RunFailed(
            f"cannot write {request.output}: {error.strerror or error}; the same command goes on"
        ) from None


def _watcher(request: Request, detector: "Detector", result: Watched) -> Watcher:
    """What watches; UserError where nothing could be decided."""
    assert request.watch is not None
    if detector.folds:
        raise UserError(
            "--watch needs inliers that nothing was fitted on, and this run held each out in "
            "folds; train with protocol.val_fraction instead of protocol.folds"
        )
    calibration = detector.calibration
    decision = decide(calibration, (), request.fpr, None, request.confidence)
    if calibration is None or decision.rank_threshold is None:
        raise UserError(f"--watch: {decision.reason}")
    digest = read_result(request.run)["weights"]["sha256"][:12]
    settings = f"run {digest} fpr={request.fpr:g}"
    if request.confidence is not None:
        settings += f" confidence={request.confidence:g}"
    settings += f" alarm={request.watch.alarm:g}"
    # the same tie-breaks whenever the rows are read again
    drift = Drift(calibration, decision.rank_threshold, request.watch.alarm, int(digest, 16))
    rank = decision.rank_threshold
    return Watcher(request, detector, calibration, rank, settings, drift, result=result)


@contextmanager
def _opened(output: Path) -> Iterator[IO[bytes]]:
    """The CSV file, for reading and adding rows; nobody else adds any meanwhile.

    Raises:
        UserError: It is somebody else's file, or another process watches with it.
    """
    beginning = ",".join(COLUMNS).encode() + b"\n"
    is_new = not os.path.lexists(output) or _is_empty(output)
    if not is_new:
        check_replaceable(output, [beginning])
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(output))
        except Busy:
            raise UserError(
                f"{output}: another process watches with it; end that one, or choose another output="
            ) from None
        file = stack.enter_context(open_own(output))
        if is_new:
            file.write(beginning)
            sync_folder(output.parent)
        yield file


def _is_empty(output: Path) -> bool:
    return output.is_file() and not output.is_symlink() and output.stat().st_size == 0


def _recall(watcher: Watcher, file: IO[bytes]) -> None:
    """Takes the rows of earlier watches into the memory, without a last one that was cut short.

    Raises:
        UserError: They are of another run or rule, or damaged.
    """
    output = watcher.request.output
    file.seek(0)
    content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    file.truncate(len(whole))
    file.seek(len(whole))
    text = io.StringIO(whole.decode("utf-8", "backslashreplace"), newline="")
    _, *rows = csv.reader(text)
    for line, row in enumerate(rows, 2):
        try:
            name, score, _, word, _, size, modified, _, _, _, settings = row
            stamp = (int(size), int(modified))
            value = float(score) if score else float("nan")
            is_damaged = not score and not word.startswith("unreadable")
        except ValueError:
            is_damaged = True
        if is_damaged:
            raise UserError(f"{output}: line {line} is damaged; move the file away")
        if settings != watcher.settings:
            raise UserError(
                f"{output}: line {line} is of {settings}, not of {watcher.settings}; "
                "choose another output="
            )
        watcher.count(unquote(name), stamp, word, value)
    watcher.result.before = len(rows)


def _watch(watcher: Watcher, file: IO[bytes], every: float, idle: float | None) -> None:
    last = time.monotonic()
    while True:
        # what came; a list of bounded length, so that rows reach the disk soon
        for paths in _batches(watcher.due()):
            for row in watcher.detector.stream(paths):
                before = dict(watcher.result.changed)
                cells = watcher.take(row)
                if cells is not None:
                    _append(file, cells)
                    _show(watcher, cells, before)
                    last = time.monotonic()
            os.fsync(file.fileno())
        if idle is not None and not watcher.waiting and time.monotonic() - last >= idle:
            return
        time.sleep(every)


def _batches(paths: list[Path]) -> Iterator[list[Path]]:
    for start in range(0, len(paths), BATCH):
        yield paths[start : start + BATCH]


def _append(file: IO[bytes], cells: list[str]) -> None:
    """Adds a row at once: a killed process has written it or not."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    content = text.getvalue().encode("utf-8", "backslashreplace")
    while content:
        content = content[file.write(content) :]


# What is printed.


def _greet(watcher: Watcher) -> None:
    request = watcher.request
    assert request.watch is not None
    line = f"watching {request.input} every {request.watch.every:g} s; Ctrl-C ends"
    if watcher.result.before:
        line += f"; {watcher.result.before} rows of before in {request.output}"
    screen = console(soft_wrap=True)
    screen.print(line)
    if not watcher.detector.exact:
        screen.print(
            "the held-out inliers chose the epoch or the contrast too, so that rates hold about; "
            "select=last has exact ones"
        )


def _show(watcher: Watcher, cells: list[str], before: dict[str, str]) -> None:
    """A line for a file that is not called inlier, and for a change."""
    from rich.text import Text

    screen = console(soft_wrap=True)
    name, score, p_value, word, *_ = cells
    if word == "novel":
        screen.print(f"novel  {float(score):<12.6g} p = {float(p_value):<8.4g} {name}")
    elif word != "inlier":
        screen.print(Text(f"{name}: {word}", "red"))
    for test in watcher.result.changed.keys() - before.keys():
        screen.print(Text(f"CHANGED ({test}) at {name}: {CHANGES[test]}", "bold red"))


def print_watched(request: Request, result: Watched) -> None:
    """What was seen in all, on standard output."""
    from rich.text import Text

    assert request.watch is not None
    screen = console(soft_wrap=True)
    line = f"{result.files} files scored, {result.novel} novel by {request.rule}"
    if result.unreadable:
        line += f", {result.unreadable} cannot be read"
    screen.print(Text(line, "bold"))
    for test, name in result.changed.items():
        screen.print(Text(f"CHANGED ({test}) since {name}: {CHANGES[test]}", "bold red"))
    if not result.changed:
        share = percent(request.watch.alarm)
        screen.print(
            f"no change seen; where there is none, at most {share} of watches ever speak of one"
        )
    if request.output.exists():
        screen.print(f"written to {request.output}")
