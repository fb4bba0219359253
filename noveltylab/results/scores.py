"""scores.csv: every test sample with its id, label and raw novelty scores.

Each number of a run is made from it.
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noveltylab.errors import UserError
from noveltylab.results.files import MAX_TABLE_BYTES, read_bytes, write_atomic

FIXED = ("id", "label", "is_outlier")
#: a fourth column where classes have names: of one's own images
CLASS = "class"
#: what a spreadsheet would take for a formula and run: =, +, -, @, a tab or a line end in front
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_QUOTED = re.compile(r"'+[=+\-@\t\r\n]")


def quote(text: str) -> str:
    """The text as a cell of a CSV file that is never a formula; every ordinary text stays.

    An apostrophe stands in front, which spreadsheets hide and `unquote` takes away.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def unquote(cell: str) -> str:
    """The text of a cell that `quote` made."""
    return cell[1:] if _QUOTED.match(cell) else cell


@dataclass(frozen=True, eq=False)
class Scores:
    """The N test samples of one run.

    Values of other types are converted, which is exact for float32.

    Attributes:
        ids: N names, one for each sample, without line breaks.
        labels: int64 (N,), the category of each sample.
        is_outlier: bool (N,).
        columns: Score name -> float64 (N,), raw, larger is more novel.
        classes: N names of the labels, where they have any.

    Raises:
        ValueError: The lengths differ, or a score is named like a fixed column.
        UserError: An id holds a line break.
    """

    ids: list[str]
    labels: NDArray[np.int64]
    is_outlier: NDArray[np.bool_]
    columns: dict[str, NDArray[np.float64]]
    classes: list[str] | None = None

    def __post_init__(self) -> None:
        columns = {name: np.asarray(column, np.float64) for name, column in self.columns.items()}
        object.__setattr__(self, "ids", [str(name) for name in self.ids])
        object.__setattr__(self, "labels", np.asarray(self.labels, np.int64))
        object.__setattr__(self, "is_outlier", np.asarray(self.is_outlier, np.bool_))
        object.__setattr__(self, "columns", columns)
        self._check_lengths()
        reserved = {*FIXED, CLASS} & set(self.columns)
        if reserved:
            raise ValueError(f"a score may not be named {sorted(reserved)}")
        for name in self.ids:
            if "\n" in name or "\r" in name:
                raise UserError(
                    f"{name!r} holds a line break, which scores.csv cannot keep. "
                    "Rename that sample."
                )

    def _check_lengths(self) -> None:
        shapes: dict[str, tuple[int, ...]] = {
            "labels": self.labels.shape,
            "is_outlier": self.is_outlier.shape,
        }
        for name, column in self.columns.items():
            shapes[name] = column.shape
        if self.classes is not None:
            shapes[CLASS] = (len(self.classes),)
        count = len(self.ids)
        misfits = {name: shape for name, shape in shapes.items() if shape != (count,)}
        if misfits:
            raise ValueError(f"{count} ids, but shapes {misfits}")

    def __len__(self) -> int:
        return len(self.ids)


def write_scores(path: str | Path, scores: Scores) -> None:
    """Writes one line for each sample, atomically.

    Each float has as many digits as give it back bit by bit.
    """
    header = [*FIXED]
    columns: list[Iterable[object]] = [
        map(quote, scores.ids),
        scores.labels.tolist(),
        scores.is_outlier.astype(np.int64).tolist(),
    ]
    if scores.classes is not None:
        header.append(CLASS)
        columns.append(map(quote, scores.classes))
    for name, column in scores.columns.items():
        header.append(name)
        columns.append(column.tolist())
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(zip(*columns, strict=True))
    # ids may be file names that are no UTF-8
    write_atomic(path, text.getvalue().encode("utf-8", "surrogateescape"))


def read_scores(path: str | Path, sha256: str | None = None) -> Scores:
    """Reads what `write_scores` wrote.

    Args:
        path: The file.
        sha256: The digest kept in result.json, if known: it also shows a file cut between two
            lines, or edited.

    Raises:
        UserError: The file is missing, cut short, damaged or not the one recorded.
    """
    try:
        data = read_bytes(path, MAX_TABLE_BYTES, within=Path(path).parent)
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from None
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise _damaged(path, "is not the file recorded in result.json (its SHA-256 differs)")
    if not data.endswith(b"\n"):
        raise _damaged(path, "is cut short (its last line has no end)")
    text = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")
    try:
        header, *rows = csv.reader(text, strict=True)
    except (csv.Error, ValueError) as error:
        raise _damaged(path, f"is no CSV file ({error})") from None
    if tuple(header[:3]) != FIXED or len(set(header)) < len(header):
        raise _damaged(
            path,
            f"starts with {','.join(header)[:60]!r} instead of {','.join(FIXED)},<score names>",
        )
    if not rows:
        raise _damaged(path, "holds no samples")
    for line, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise _damaged(path, f"line {line} has {len(row)} values instead of {len(header)}")
    ids, labels, flags, *columns = zip(*rows, strict=True)
    names = header[3:]
    classes = None
    if names[:1] == [CLASS]:
        names.pop(0)
        classes = list(map(unquote, columns.pop(0)))
    foreign_flags = set(flags) - {"0", "1"}
    if foreign_flags:
        raise _damaged(path, f"is_outlier holds {min(foreign_flags)!r} instead of 0 or 1")
    try:
        label_numbers = np.array(list(map(int, labels)), np.int64)
        numbers = [np.array(list(map(float, column))) for column in columns]
        return Scores(
            ids=list(map(unquote, ids)),
            labels=label_numbers,
            is_outlier=np.array(flags) == "1",
            columns=dict(zip(names, numbers, strict=True)),
            classes=classes,
        )
    except (ValueError, OverflowError) as error:
        raise _damaged(path, f"holds a value that is no number ({error})") from None


def _damaged(path: str | Path, fault: str) -> UserError:
    return UserError(f"{path}: {fault}. Run again with force=true to write it anew.")
