"""What a prediction was asked for, as the command line says it, and what it found."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from noveltylab.errors import UserError, nearest
from noveltylab.results.files import open_regular

if TYPE_CHECKING:
    from torch import Tensor

KEYS = (
    "run",
    "input",
    "output",
    "fpr",
    "fdr",
    "confidence",
    "groups",
    "group",
    "watch",
    "every",
    "idle",
    "alarm",
    "accelerator",
)
#: options that need --watch, and those that cannot stand beside it
WATCHING, NOT_WATCHING = ("every", "idle", "alarm"), ("input", "fdr", "groups", "group")
HEADER = ("file", "score", "p_value", "decision")
#: further columns: the group of each file where there are groups, and what is to be said of the
#: decisions, such as why there are none
GROUP, NOTE = "group", "note"
#: how the page begins, by which one of before is known
PAGE_START = b'<!doctype html>\n<html lang="en">\n<head>\n<meta name="generator" content="noveltylab predict">'
EXAMPLES = {
    "run": "outputs/folders/ca_entropy/images/inlier0/seed0",
    "input": "new/",
    "output": "scores.csv",
    "fpr": "0.01",
    "fdr": "0.1",
    "confidence": "0.95",
    "groups": "cameras.csv",
    "group": "camera",
    "watch": "new/",
    "every": "1",
    "idle": "60",
    "alarm": "0.01",
    "accelerator": "cpu",
}


@dataclass(frozen=True)
class Request:
    """A checked command line."""

    run: Path
    input: str
    output: Path
    fpr: float
    fdr: float | None
    accelerator: str
    html: bool
    confidence: float | None = None
    groups: Path | None = None
    group: str | None = None
    watch: "Watch | None" = None

    @property
    def page(self) -> Path:
        return self.output.with_suffix(".html")

    @property
    def files(self) -> list[Path]:
        """The files that are written."""
        if self.html:
            return [self.output, self.page]
        return [self.output]

    @property
    def rule(self) -> str:
        if self.fdr is not None:
            return f"Benjamini-Hochberg at {self.fdr:g}"
        if self.confidence is not None:
            return f"fpr={self.fpr:g} with {100 * self.confidence:.6g} % confidence"
        return f"p <= {self.fpr:g}"

    @property
    def header(self) -> tuple[str, ...]:
        """The columns of the CSV file, without the note."""
        if self.groups is None:
            return HEADER
        return (*HEADER, GROUP)


@dataclass(frozen=True)
class Watch:
    """How a folder is watched.

    Attributes:
        every: Seconds between two looks.
        idle: Seconds without a new file after which it ends; None: never.
        alarm: Probability that a change is ever spoken of where there is none.
    """

    every: float = 1.0
    idle: float | None = None
    alarm: float = 0.01


@dataclass
class Prediction:
    """What was found in the files.

    Attributes:
        files: Number of files scored (frames of a video count).
        novel: How many of them are called novel; None where the rule cannot decide.
        reason: Why it cannot.
        promise: What the rule promises, in a sentence; "" where it cannot decide.
        unreadable: (file, why), the first LISTED of `failed`.
        failed: How many files could not be read.
        seconds: Time that it took.
        top: The most novel ones, first the highest score.
        replaced: Files of an earlier prediction that this one took the place of.
    """

    files: int = 0
    novel: int | None = None
    reason: str = ""
    promise: str = ""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0.0
    top: list["Case"] = field(default_factory=list)
    replaced: list[Path] = field(default_factory=list)


@dataclass(order=True)
class Case:
    """One scored file.

    `order` keeps equal scores in the order of the files, `images` is what the method saw.
    """

    score: float
    order: int
    name: str = field(compare=False)
    path: Path = field(compare=False)
    images: "Tensor" = field(compare=False)


def parse(arguments: list[str]) -> Request:
    """Reads the command line. UserError for an unknown or missing option, or a bad value."""
    # key=value, and --html
    values: dict[str, str] = {}
    html = False
    for argument in _joined(arguments):
        key, equals, value = argument.partition("=")
        if argument == "--html":
            html = True
        elif not equals or key not in KEYS:
            options = [*(f"{name}=" for name in KEYS), "--html", "--watch"]
            raise UserError(f"{argument}: no such option; {nearest(key, options)}")
        elif not value:
            raise UserError(f"{key}: has no value; e.g. {key}={EXAMPLES[key]}")
        else:
            values[key] = value
    # what is missing or does not go together
    watch = _watch(values, html)
    for key in ("run", "input"):
        if key not in values:
            raise UserError(f"{key}= is missing; e.g. {key}={EXAMPLES[key]}")
    if "fpr" in values and "fdr" in values:
        raise UserError("fpr= and fdr= are two rules for the decision; choose one")
    for key in ("confidence", "groups"):
        if key in values and "fdr" in values:
            raise UserError(f"{key}= goes with fpr=, not with fdr=, which is about the whole batch")
    if "group" in values and "groups" not in values:
        raise UserError("group= names a column of groups=; e.g. groups=cameras.csv group=camera")
    run = Path(values["run"]).expanduser()
    default = "scores.csv" if watch is None else "watch.csv"
    output = Path(values.get("output", default)).expanduser()
    _check_output(output, run)
    fpr = 0.05
    if "fpr" in values:
        fpr = _rate("fpr", values["fpr"])
    fdr = None
    if "fdr" in values:
        fdr = _rate("fdr", values["fdr"])
    confidence = None
    if "confidence" in values:
        confidence = _rate("confidence", values["confidence"])
    groups = None
    if "groups" in values:
        groups = Path(values["groups"]).expanduser()
    request = Request(
        run=run,
        input=values["input"],
        output=output,
        fpr=fpr,
        fdr=fdr,
        accelerator=values.get("accelerator", "auto"),
        html=html,
        confidence=confidence,
        groups=groups,
        group=values.get("group"),
        watch=watch,
    )
    if watch is not None:
        return request  # its file is gone on with (see watch.py)
    check_replaceable(output, _beginnings())
    if html:
        check_replaceable(request.page, [PAGE_START])
    return request


def _joined(arguments: list[str]) -> list[str]:
    """The arguments with `--watch new/` and `--watch=new/` as `watch=new/`."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--watch":
            joined[-1] = f"watch={argument}"
        else:
            joined.append(argument.removeprefix("--") if "--watch=" in argument else argument)
    if joined and joined[-1] == "--watch":
        joined[-1] = "watch="
    return joined


def _watch(values: dict[str, str], html: bool) -> Watch | None:
    """How to watch, None where nothing is watched; then `input` is the folder."""
    if "watch" not in values:
        for key in WATCHING:
            if key in values:
                raise UserError(f"{key}= goes with --watch; e.g. --watch {EXAMPLES['watch']}")
        return None
    for key in NOT_WATCHING:
        if key in values:
            raise UserError(f"{key}= cannot stand beside --watch, which scores files as they come")
    if html:
        raise UserError("--html cannot stand beside --watch; make the page afterwards, with input=")
    values["input"] = values["watch"]
    idle = None
    if "idle" in values:
        idle = _seconds("idle", values["idle"])
    alarm = _rate("alarm", values.get("alarm", EXAMPLES["alarm"]))
    return Watch(_seconds("every", values.get("every", EXAMPLES["every"])), idle, alarm)


def _seconds(key: str, text: str) -> float:
    """A number of seconds, at least 0; UserError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"{key}={text}: not a number of seconds, e.g. {key}={EXAMPLES[key]}")
    return value


def _beginnings() -> list[bytes]:
    """How a CSV file of predict may begin."""
    headers = [HEADER, (*HEADER, NOTE), (*HEADER, GROUP), (*HEADER, GROUP, NOTE)]
    return [f"{','.join(header)}\n".encode() for header in headers]


def _check_output(output: Path, run: Path) -> None:
    """UserError if the scores cannot be written there."""
    if output.suffix.lower() != ".csv":
        raise UserError(f"output={output}: the scores are a CSV file, e.g. output=scores.csv")
    if output.resolve().is_relative_to(run.resolve()):
        raise UserError(
            f"output={output}: lies in the run's own folder, which is not changed; choose another place"
        )
    if output.is_dir():
        raise UserError(
            f"output={output}: is a folder; name a file, e.g. output={output / 'scores.csv'}"
        )


def check_replaceable(path: Path, starts: Iterable[bytes]) -> None:
    """UserError for a file that begins with none of `starts`: it is somebody's own."""
    if not os.path.lexists(path):
        return
    try:
        with open_regular(path) as file:
            if file.read(len(PAGE_START)).startswith(tuple(starts)):
                return
        reason = "was not written by predict"
    except OSError as error:
        reason = str(error.strerror)
    raise UserError(
        f"{path}: is there already ({reason}) and is not overwritten; choose another place, e.g. "
        f"output={path.stem}-new.csv, or move it away"
    )


def _rate(key: str, text: str) -> float:
    """A rate strictly between 0 and 1; UserError for anything else."""
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{key}={text}: not a number, e.g. {key}={EXAMPLES[key]}") from None
    if not 0 < value < 1:
        raise UserError(
            f"{key}={text}: a share strictly between 0 and 1, e.g. {key}={EXAMPLES[key]}"
        )
    return value
