"""Groups of images, such as those of one camera: p-values that hold within each.

A rate of false alarms on average over two cameras may be 1 % on one and 9 % on the other. So a new
image is compared with the held-out inliers of its own group alone: among inliers of each group at
most a share a gets p <= a (Mondrian conformal prediction: Vovk, Gammerman and Shafer, Algorithmic
Learning in a Random World, 2005, section 4.5). What it costs is held-out inliers: each group takes
as many as one would alone.

A CSV file says which file is of which group, held-out inliers and new ones alike.
"""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noveltylab.data.layout import shown
from noveltylab.errors import UserError
from noveltylab.results.files import MAX_TABLE_BYTES, read_text
from noveltylab.results.scores import unquote
from noveltylab.scoring.conformal import Calibration, needed, percent

#: files that an error names
NAMED = 3
FILE = "file"


@dataclass
class Groups:
    """Which group each file is of.

    Attributes:
        source: What said it, for messages.
        column: Name of the groups' column, such as "camera".
        by_text: File as it was written -> group.
        by_path: Full path -> group.
    """

    source: str
    column: str
    by_text: dict[str, str] = field(default_factory=dict)
    by_path: dict[str, str] = field(default_factory=dict)

    def add(self, file: str, group: str, folders: Iterable[Path]) -> None:
        """Keeps the group of a file, whose path may start in any of the folders.

        Raises:
            ValueError: The file has another group already.
        """
        if self.by_text.setdefault(_slashes(file), group) != group:
            raise ValueError(f"{file} is of {self.by_text[_slashes(file)]} and of {group}")
        for folder in folders:
            self.by_path.setdefault(_full(folder / file), group)

    def of_file(self, path: Path) -> str | None:
        """The group of a new file; None if nothing says it."""
        return self.by_path.get(_full(path)) or self.by_text.get(_slashes(shown(path)))

    def of_held_out(self, name: str, root: Path | None) -> str | None:
        """The group of a held-out inlier by its id, or by its path below the images' folder."""
        group = self.by_text.get(_slashes(name))
        if group is None and root is not None:
            group = self.by_path.get(_full(root / name))
        return group


def _slashes(file: str) -> str:
    return os.path.normpath(file).replace(os.sep, "/")


def _full(path: Path) -> str:
    return os.path.normcase(os.path.abspath(path.expanduser()))


def as_groups(source: "str | Path | Mapping[str, str]", column: str | None = None) -> Groups:
    """Groups from a CSV file (see `read_groups`), or from a mapping of files to groups."""
    if isinstance(source, str | Path):
        return read_groups(Path(source), column)
    groups = Groups("groups", column or "group")
    for file, group in source.items():
        groups.add(str(file), str(group), [Path()])
    return groups


def read_groups(path: Path, column: str | None = None) -> Groups:
    """Groups from a CSV file with a column `file` and one of groups.

    Args:
        path: The file. Each of its files is written as `predict` writes it (from the working
            folder, or in full), from the CSV file's own folder, or as the id of a held-out inlier
            in a run's calibration.csv.
        column: Which column says the group; the only other one if None.

    Raises:
        UserError: The file cannot be read, lacks a column, or has a row without a group, or two
            groups for one file.
    """
    try:
        text = read_text(path, MAX_TABLE_BYTES).removeprefix("\ufeff")
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except OSError as error:
        raise UserError(f"groups={shown(path)}: cannot be read ({error.strerror})") from None
    except (csv.Error, ValueError) as error:
        raise UserError(f"groups={shown(path)}: is no CSV file ({error})") from None
    group_column = _column(path, header, column)
    groups = Groups(f"groups={shown(path)}", group_column)
    file_place, group_place = header.index(FILE), header.index(group_column)
    for line, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) != len(header) or not row[file_place] or not row[group_place]:
            raise UserError(f"groups={shown(path)}: line {line} lacks a file or its {group_column}")
        try:
            groups.add(unquote(row[file_place]), unquote(row[group_place]), [Path(), path.parent])
        except ValueError as error:
            raise UserError(f"groups={shown(path)}: line {line}: {error}") from None
    return groups


def _column(path: Path, header: list[str], column: str | None) -> str:
    """The column that says the group; UserError if it is not there or not clear."""
    columns = [name for name in header if name != FILE]
    listing = ", ".join(header)[:200]
    if FILE not in header:
        raise UserError(f"groups={shown(path)}: has no column `file`, only {listing}")
    if column is None and len(columns) == 1:
        return columns[0]
    if column is None:
        raise UserError(
            f"groups={shown(path)}: has the columns {listing}; say which one has the groups, e.g. "
            f"group={columns[0] if columns else 'camera'}"
        )
    if column not in columns:
        raise UserError(f"group={column}: {shown(path)} has no such column, only {listing}")
    return column


def calibrations(
    groups: Groups, names: list[str], scores: NDArray[np.float64], root: Path | None
) -> dict[str, Calibration]:
    """One calibration for each group of held-out inliers.

    Args:
        groups: Which group each is of.
        names: Their ids (n,).
        scores: Their scores (n,).
        root: The folder of the run's images; None for a published data set.

    Raises:
        UserError: One of them has no group.
    """
    group_names = [groups.of_held_out(name, root) for name in names]
    missing = [name for name, group in zip(names, group_names, strict=True) if group is None]
    if missing:
        raise UserError(
            f"{groups.source}: {len(missing)} of {len(names)} held-out inliers have no "
            f"{groups.column} ({_listing(missing)}); name them as calibration.csv of the run does"
        )
    of_image = np.array(group_names)
    return {str(group): Calibration(scores[of_image == group]) for group in np.unique(of_image)}


def check_files(
    groups: Groups,
    paths: Iterable[Path],
    known: Mapping[str, Calibration],
    fpr: float,
    confidence: float | None,
) -> None:
    """Checks that every new file has a group with enough held-out inliers.

    Raises:
        UserError: A file has no group, or its group has too few for the rule: says how many are
            needed.
    """
    missing = []
    present: set[str] = set()
    for path in paths:
        group = groups.of_file(path)
        if group is None:
            missing.append(shown(path))
        else:
            present.add(group)
    if missing:
        raise UserError(
            f"{groups.source}: {len(missing)} files have no {groups.column} ({_listing(missing)}); "
            "each file that is scored needs a row"
        )
    number = needed(fpr, confidence)
    small = []
    for group in sorted(present):
        count = len(known[group]) if group in known else 0
        if count < number:
            small.append(f"{group} has {count}")
    if small:
        rule = f"fpr={fpr:g}"
        if confidence is not None:
            rule += f" with {percent(confidence)} confidence"
        raise UserError(
            f"{groups.source}: {rule} needs {number} held-out inliers in each {groups.column}, "
            f"and {_listing(small)}; train with more images or a larger protocol.val_fraction, or "
            "join small groups"
        )


def _listing(names: list[str]) -> str:
    more = len(names) - NAMED
    listing = ", ".join(names[:NAMED])
    return f"{listing} and {more} more" if more > 0 else listing
