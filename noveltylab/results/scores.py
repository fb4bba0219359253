"""scores.csv: every test sample with its id, label and raw novelty scores.

Each number of a run is made from it.
"""

import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noveltylab.errors import UserError
from noveltylab.results.files import MAX_TABLE_BYTES, read_bytes, write_atomic
from noveltylab.results.spreadsheet import quote, unquote

FIXED = ("id", "label", "is_outlier")
#: a fourth column where classes have names: of one's own images
CLASS = "class"


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
        values = {
            "ids": [str(name) for name in self.ids],
            "labels": np.asarray(self.labels, np.int64),
            "is_outlier": np.asarray(self.is_outlier, np.bool_),
            "columns": {
                name: np.asarray(column, np.float64) for name, column in self.columns.items()
            },
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)
        shapes = {"labels": self.labels.shape, "is_outlier": self.is_outlier.shape}
        shapes |= {name: column.shape for name, column in self.columns.items()}
        if self.classes is not None:
            shapes[CLASS] = (len(self.classes),)
        if wrong := {name: shape for name, shape in shapes.items() if shape != (len(self.ids),)}:
            raise ValueError(f"{len(self.ids)} ids, but shapes {wrong}")
        if taken := {*FIXED, CLASS} & set(self.columns):
            raise ValueError(f"a score may not be named {sorted(taken)}")
        if broken := next((name for name in self.ids if "\n" in name or "\r" in name), None):
            raise UserError(
                f"{broken!r} holds a line break, which scores.csv cannot keep. Rename that sample."
            )

    def __len__(self) -> int:
        return len(self.ids)


def write_scores(path: str | Path, scores: Scores) -> None:
    """Writes one line for each sample, atomically.

    Each float has as many digits as give it back bit by bit.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    class_column = {} if scores.classes is None else {CLASS: map(quote, scores.classes)}
    writer.writerow([*FIXED, *class_column, *scores.columns])
    flags = scores.is_outlier.astype(np.int64).tolist()
    columns = (column.tolist() for column in scores.columns.values())
    writer.writerows(
        zip(
            map(quote, scores.ids),
            scores.labels.tolist(),
            flags,
            *class_column.values(),
            *columns,
            strict=True,
        )
    )
    # ids may be file names that are no UTF-8
    write_atomic(path, text.getvalue().encode("utf-8", "surrogateescape"))


def read_scores(path: str | Path, sha256: str | None = None) -> Scores:
    """Read what ``write_scores`` wrote.

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
    if wrong := next((line for line, row in enumerate(rows, 2) if len(row) != len(header)), None):
        raise _damaged(
            path, f"line {wrong} has {len(rows[wrong - 2])} values instead of {len(header)}"
        )
    ids, labels, flags, *columns = zip(*rows, strict=True)
    classes = list(map(unquote, columns.pop(0))) if header[3:4] == [CLASS] else None
    named_columns = zip(header[4 if classes else 3 :], columns, strict=True)
    if strange := set(flags) - {"0", "1"}:
        raise _damaged(path, f"is_outlier holds {min(strange)!r} instead of 0 or 1")
    try:
        return Scores(
            ids=list(map(unquote, ids)),
            labels=np.array(list(map(int, labels)), np.int64),
            is_outlier=np.array(flags) == "1",
            columns={name: np.array(list(map(float, column))) for name, column in named_columns},
            classes=classes,
        )
    except (ValueError, OverflowError) as error:
        raise _damaged(path, f"holds a value that is no number ({error})") from None


def _damaged(path: str | Path, fault: str) -> UserError:
    return UserError(f"{path}: {fault}. Run again with force=true to write it anew.")
