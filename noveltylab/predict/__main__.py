"""Scores new files with a finished run, as a CSV file and on request a page.

Each file gets a novelty score, a p-value and a decision.

    python -m noveltylab predict run=outputs/folders/ca_entropy/images/inlier0/seed0 input=new/
    python -m noveltylab predict run=<run folder> input='new/**/*.png' output=new.csv fpr=0.01 --html
    python -m noveltylab predict run=<run folder> input=belt.mp4 fdr=0.1
    python -m noveltylab predict run=<run folder> --watch new/

run          the folder of a finished run: its method, weights, preprocessing and held-out inliers are used
input        an image, a folder with its subfolders, a pattern, a video (each frame is scored); for a run on sound, wav files
output       the CSV file: file, score, p_value, decision (novel, inlier, unreadable); default scores.csv; one of before is
             replaced, any other file is not
fpr          novel is what has p <= fpr: on average at most this share of inliers; default 0.05
fdr          instead of fpr: Benjamini and Hochberg over all files, at most this expected share of inliers among the novel
confidence   with fpr: at most that share for the inliers that were held out, with this confidence over their draw (59 of
             them decide fpr=0.05 confidence=0.95)
groups       a CSV file with a column `file` and one of groups, such as the camera: each image is compared with the held-out
             inliers of its own group; it names held-out inliers (as calibration.csv of the run does) and new files
group        which column of it says the group, where there are several
accelerator  auto (a GPU if there is one), cpu or gpu
--watch      a folder: instead of input=, scores images and wav files as they come, until Ctrl-C; output=watch.csv is added to
             and gone on with, and a change of the good images is said
every        with --watch: seconds between two looks; default 1
idle         with --watch: ends after so many seconds without a new file; default never
alarm        with --watch: how probable it is that a change is ever said where there is none; default 0.01
--html       also a page beside the CSV file, the most novel first, beside each what the method compares it with, and error maps

Where the run held out too few inliers for the rule, no file is called novel or inlier: the decision stays empty, and a
further column, note, says how many it takes; of a group with too few nothing is scored. Any number of files in bounded memory.
Exit codes: 0 done, 1 files that cannot be read (listed at the end), 2 bad input.
"""

import csv
import heapq
import io
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from noveltylab.command.screen import console, terminal
from noveltylab.command.signals import end_command, exit_code, interruptible
from noveltylab.errors import RunFailed, UserError
from noveltylab.predict.paths import Takes, expand, kind_of_files
from noveltylab.predict.request import NOTE, Case, Prediction, Request, parse
from noveltylab.results.record import read_result, require_run
from noveltylab.results.scores import quote

if TYPE_CHECKING:
    from noveltylab.predict.decisions import Tally
    from noveltylab.predict.detector import Detector, Scored

#: files that the screen names, and that the page shows
SHOWN, PICTURED = 5, 100
#: unreadable files that are listed; the CSV file has them all
LISTED = 1000


def predict(request: Request) -> Prediction:
    """Scores the files and writes the CSV file, and the page if asked for.

    Raises:
        UserError: Nothing is found, or the run cannot be used; nothing is written then.
    """
    check_paths(request)
    # these import torch: only once the command line is known to be good
    from noveltylab.predict.load import load_detector
    from noveltylab.results.files import open_atomic

    detector = load_detector(request.run, request.accelerator)
    paths = expand(request.input, detector.reader)
    tally = _tally(request, detector)
    prediction = Prediction(replaced=[path for path in request.files if path.exists()])
    top_size = PICTURED if request.html else SHOWN
    started = time.monotonic()
    try:
        # two passes, as Benjamini-Hochberg decides only when all p-values are known; the first
        # leaves ranks
        with open_atomic(request.output) as output, _scratch(request.output) as scratch:
            pending = csv.writer(scratch, lineterminator="\n")
            for row in _with_progress(detector.stream(paths), request.input, detector):
                group = tally.group_of(row.path)
                if row.error is not None or row.images is None:
                    prediction.failed += 1
                    if len(prediction.unreadable) < LISTED:
                        prediction.unreadable.append((row.name, str(row.error)))
                    pending.writerow([row.name, "", "", row.error, group])
                    continue
                rank = tally.add(row.score, group)
                pending.writerow([row.name, repr(row.score), rank, "", group])
                case = Case(row.score, -prediction.files, row.name, row.path, row.images)
                _keep(prediction.top, case, top_size)
                prediction.files += 1
            # the decision, now that all ranks are known
            tally.decide(request)
            prediction.reason = tally.reason
            scratch.seek(0)
            note = tally.reason
            if request.confidence is not None and not note:
                note = tally.promise(request, detector.exact)
            header = (*request.header, NOTE) if note else request.header
            with _text(output) as text:
                writer = csv.writer(text, lineterminator="\n")
                writer.writerow(header)
                writer.writerows(_decided(csv.reader(scratch), tally, note))
        # what was found, and the page
        prediction.novel = tally.novel
        if prediction.novel is not None:
            prediction.promise = tally.promise(request, detector.exact)
        prediction.top.sort(reverse=True)
        prediction.seconds = time.monotonic() - started
        if request.html:
            from noveltylab.predict.page import write_page

            write_page(request, detector, prediction, tally)
    except OSError as error:
        where = error.filename2 or error.filename or request.output
        raise RunFailed(f"cannot write {where}: {error.strerror or error}") from None
    return prediction


def check_paths(request: Request) -> None:
    """UserError where the run or the input is not there; found by names, without torch."""
    require_run(request.run)
    try:
        kind = read_result(request.run).get("input", {}).get("kind")
    except RecursionError:
        return  # `load_detector` says what is wrong with the file
    expand(request.input, Takes(kind_of_files(kind)))


def _tally(request: Request, detector: "Detector") -> "Tally":
    """What counts ranks, by the groups of the command line if there are any.

    Raises:
        UserError: A file has no group, its group has too few held-out inliers, or the run's folds
            go with neither groups nor a confidence.
    """
    from noveltylab.predict.decisions import ALL, Tally
    from noveltylab.predict.groups import check_files, read_groups
    from noveltylab.scoring.conformal import NO_LAW

    if request.confidence is not None and detector.folds:
        raise UserError(NO_LAW)
    if request.groups is None:
        return Tally({ALL: detector.calibration})
    groups = read_groups(request.groups, request.group)
    calibrations = detector.calibrations(groups)
    paths = expand(request.input, detector.reader)
    check_files(groups, paths, calibrations, request.fpr, request.confidence)
    return Tally(calibrations, groups)


def _scratch(output: Path) -> IO[str]:
    """A nameless file beside the output, for as many rows as there are files."""
    import tempfile

    output.parent.mkdir(parents=True, exist_ok=True)
    # closed by its caller
    return tempfile.TemporaryFile("w+", newline="", encoding="utf-8", dir=output.parent)


class _text(io.TextIOWrapper):
    """Text on a binary file that stays open afterwards."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8", newline="")

    def __exit__(self, *_: object) -> None:
        self.flush()
        self.detach()


def _decided(rows: Iterable[list[str]], tally: "Tally", note: str) -> Iterator[list[Any]]:
    """The rows of the CSV file, from those of the first pass."""
    for name, score, rank, error, group in rows:
        p_value = ""
        word = f"unreadable: {error}"
        if not error:
            value = tally.p_value(int(rank), group)
            p_value = "" if value is None else repr(value)
            word = tally.word(int(rank), group)
        row = [_harmless(name), score, p_value, word]
        if tally.groups is not None:
            row.append(quote(group))
        if note:
            row.append(note)
        yield row


def _harmless(name: str) -> str:
    """A name that a spreadsheet would take for a formula becomes a path."""
    if name.startswith(("=", "+", "-", "@")):
        return f"./{name}"
    return name


def _keep(top: list[Case], case: Case, count: int) -> None:
    """Adds a case to the heap of the `count` most novel ones."""
    if len(top) < count:
        heapq.heappush(top, case)
    else:
        heapq.heappushpop(top, case)


def _with_progress(
    rows: "Iterable[Scored]", inputs: str, detector: "Detector"
) -> "Iterator[Scored]":
    """The rows under a progress bar, on a terminal; counting files for it reads names only."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    screen = console(stderr=True)
    if not screen.is_terminal:
        yield from rows
        return
    columns = (
        TextColumn("scoring"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen) as bar:
        total = sum(1 for _ in expand(inputs, detector.reader))
        task = bar.add_task("", total=total)
        last_path: Path | None = None
        for row in rows:
            yield row
            # a video is one file of many rows
            if row.path != last_path:
                last_path = row.path
                bar.advance(task)


def print_summary(request: Request, prediction: Prediction) -> None:
    """What was found, on standard output; files that cannot be read at its end."""
    from rich.text import Text

    screen = console(soft_wrap=True)
    rate = prediction.files / max(prediction.seconds, 1e-9)
    line = f"{prediction.files} files scored in {prediction.seconds:.1f} s ({rate:,.0f} a second)"
    screen.print(Text(line, "bold"))
    if prediction.novel is None:
        screen.print(Text(f"not decided: {prediction.reason}", "bold yellow"))
    else:
        screen.print(f"{prediction.novel} novel by {request.rule}")
        if request.confidence is not None or request.groups is not None:
            screen.print(prediction.promise)
    for case in prediction.top[:SHOWN]:
        screen.print(f"  {case.score:<12.6g} {case.name}")
    files = " and ".join(map(str, request.files))
    screen.print(f"written to {files}")
    if prediction.replaced:
        replaced = " and ".join(map(str, prediction.replaced))
        screen.print(f"in place of an earlier prediction: {replaced}")
    if prediction.failed:
        screen.print(Text(f"{prediction.failed} files cannot be read:", "bold red"))
        for name, reason in prediction.unreadable:
            screen.print(Text(f"  {name}: {reason}", "red"))
        unlisted = prediction.failed - len(prediction.unreadable)
        if unlisted > 0:
            screen.print(f"  and {unlisted} more, all in {request.output}")


def _watch(request: Request) -> int:
    """Watches a folder until Ctrl-C, which is how it is meant to end: exit code 0, or 1.

    SIGTERM and SIGHUP end it with 128 + the signal, as other commands.
    """
    from noveltylab.predict.watch import Watched, print_watched, watch

    result = Watched()
    code = 0
    try:
        with interruptible():
            watch(request, result)
    except KeyboardInterrupt as error:
        if exit_code(error) != 128 + signal.SIGINT:
            code = exit_code(error)
    print_watched(request, result)
    return code or int(result.unreadable > 0)


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code.

    0: done; 1: files that cannot be read, or a full disk; 2: bad input; 130 or 143: signals.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    try:
        request = parse(arguments)
        if request.watch is not None:
            return _watch(request)
        with interruptible():
            prediction = predict(request)
    except (UserError, RunFailed, KeyboardInterrupt) as error:
        return end_command(error, "interrupted; nothing was written")
    print_summary(request, prediction)
    return 1 if prediction.failed else 0


if __name__ == "__main__":
    with terminal():
        sys.exit(main(sys.argv[1:]))
