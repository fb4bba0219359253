"""Archives: the kept results of many runs in one file of JSON lines, a line for each run.

A line is {"folder": ..., "result": ..., "files": ...}: where the run lay below its output folder,
the content of its result.json, and the texts of other small files of it by name. A row is named as
if the archive were the output folder: learn/mnist.jsonl/p2/ocgan/mnist/inlier8/seed0.
"""

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from noveltylab.errors import UserError
from noveltylab.results.files import (
    MAX_TABLE_BYTES,
    MAX_TEXT_BYTES,
    open_regular,
    parse_json,
    read_bytes,
    write_atomic,
)
from noveltylab.results.locks import locked_folder

SUFFIX = ".jsonl"
#: How the first line of an archive begins; a file of JSON lines that begins otherwise is none.
BEGINNING = b'{"folder":'
#: Folders of a run below its output folder: protocol, method, data, class and seed.
LEVELS = 5
#: Threads that write one archive do so one after the other.
_WRITING = threading.Lock()


@dataclass(frozen=True)
class Row:
    """One kept run.

    Attributes:
        folder: Below its output folder, as <protocol>/<method>/<data>/inlier<k>/seed<s>.
        result: The content of its result.json.
        files: Texts of its other kept files, by name.
    """

    folder: str
    result: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Index:
    """The lines of an archive.

    Attributes:
        lines: The line of each run, by the run's folder, in the order of the file.
        faults: What is wrong with lines that hold no row, one sentence each.
    """

    lines: dict[str, bytes]
    faults: tuple[str, ...]


def is_archive(path: Path) -> bool:
    """Whether a path is a file that begins as an archive does; OSError if it cannot be read."""
    if path.suffix != SUFFIX or not path.is_file():
        return False
    with open_regular(path) as file:
        return file.read(len(BEGINNING)) == BEGINNING


def archive_of(folder: Path) -> Path | None:
    """The archive that a path is or lies in; None for a folder of the disk."""
    for path in (folder, *folder.parents):
        if path.suffix == SUFFIX and path.is_file():
            return path
    return None


def without_suffix(path: Path) -> Path:
    """A path into an archive as that of the folder that the archive stands for."""
    return Path(*(part.removesuffix(SUFFIX) for part in path.parts))


def read_archive(path: Path) -> Index:
    """The lines of an archive.

    Raises:
        OSError: The file cannot be read.
    """
    status = path.stat()
    return _read(path, (status.st_ino, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=64)
def _read(path: Path, state: tuple[int, int, int]) -> Index:
    """Reads an archive once for each state of its file."""
    lines: dict[str, bytes] = {}
    faults = []
    for number, line in enumerate(read_bytes(path, MAX_TABLE_BYTES).splitlines(), 1):
        try:
            folder = _parse(line).folder
        except ValueError as error:
            faults.append(f"line {number}: damaged ({' '.join(str(error).split())[:400]})")
            continue
        if folder in lines:
            faults.append(f"line {number}: {folder} stands in an earlier line as well")
        else:
            lines[folder] = line
    return Index(lines, tuple(faults))


def find_row(folder: Path) -> Row | None:
    """The row that a path into an archive names; None where it names none.

    Raises:
        OSError: The archive cannot be read.
    """
    path = archive_of(folder)
    if path is None:
        return None
    line = read_archive(path).lines.get(folder.relative_to(path).as_posix())
    return None if line is None else _parse(line)


def _parse(line: bytes) -> Row:
    """One line of an archive; ValueError says what is wrong with it."""
    if len(line) > MAX_TEXT_BYTES:
        raise ValueError(f"has {len(line):,} bytes, more than the {MAX_TEXT_BYTES:,} of a row")
    content = parse_json(line)
    if not isinstance(content, dict) or not isinstance(content.get("result"), dict):
        raise ValueError("holds no result")
    folder = content.get("folder")
    files = content.get("files", {})
    if not isinstance(folder, str) or not _is_run_folder(folder):
        raise ValueError("names no run folder")
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise ValueError("files holds something else than texts")
    return Row(folder, content["result"], files)


def _is_run_folder(folder: str) -> bool:
    """Whether a text is the path of a run below its output folder, and of nothing outside it."""
    parts = PurePosixPath(folder).parts
    plain = "/".join(parts) == folder and folder.isprintable() and "\\" not in folder
    return plain and len(parts) == LEVELS and parts[0] != "/" and ".." not in parts


def read_kept_file(folder: Path, name: str, limit: int = MAX_TEXT_BYTES) -> bytes:
    """A small file of a run, from the run's folder or from the row of an archive.

    Raises:
        OSError: There is none, or it cannot be read.
    """
    if archive_of(folder) is None:
        return read_bytes(folder / name, limit, within=folder)
    row = find_row(folder)
    if row is None or name not in row.files:
        raise FileNotFoundError(f"{folder}: {name} is not kept")
    return row.files[name].encode()


def line_of(row: Row) -> bytes:
    """A row as the line of an archive, without its end; ValueError where it cannot be read back."""
    content: dict[str, Any] = {"folder": row.folder, "result": row.result}
    if row.files:
        content["files"] = row.files
    line = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    _parse(line)
    return line


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows into an archive, whole or not at all; a row of the same folder is replaced.

    The rows stand in the order of their folders, so that a new one changes one line.

    Raises:
        UserError: The archive has a damaged line; nothing is written.
        ValueError: A value is NaN or infinite; nothing is written.
    """
    lines = {row.folder: line_of(row) for row in rows}
    with _one_writer(path.parent):
        if path.exists():
            index = read_archive(path)
            if index.faults:
                raise UserError(f"{path}: {index.faults[0]}; restore it first")
            lines = index.lines | lines
        folders = sorted(lines, key=lambda folder: folder.split("/"))
        ordered_lines = [lines[folder] + b"\n" for folder in folders]
        write_atomic(path, b"".join(ordered_lines))


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Waits until no other thread or process writes an archive in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with _WRITING, locked_folder(folder):
        yield
