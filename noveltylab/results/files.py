"""The one door for files: whole when written, and read with bounds, whoever wrote them.

Only regular files of a bounded size and text of a bounded depth are read. A pipe or a device is
never waited for, an endless file never read to its end, and what a file says it holds is what is
read of it. Everything here raises OSError for a file that is not opened, and ValueError for a
content that is not taken.
"""

import errno
import hashlib
import io
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from noveltylab.results.locks import remove_unless_taken, replace, sync_folder, take

#: Bytes of a text that describes a run: result.json, config.yaml, a lock.
MAX_TEXT_BYTES = 8 << 20
#: Bytes of a table, such as scores.csv.
MAX_TABLE_BYTES = 1 << 30
#: Bytes of weights, or of any other file whose checksum is taken.
MAX_FILE_BYTES = 8 << 30
#: Levels of mappings and lists inside one another in a JSON or YAML text.
MAX_NESTING = 50
_BLOCK = 1 << 20
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(
    path: str | Path, limit: int | None = None, within: Path | None = None
) -> io.BufferedReader:
    """Opens a regular file for reading.

    Args:
        path: The file.
        limit: Bytes that it may hold; None: MAX_FILE_BYTES.
        within: A folder that the file must lie in, wherever links lead.

    Raises:
        OSError: It is missing, a folder, a pipe, a device, or larger than that, or it lies
        elsewhere.
    """
    path = Path(path)
    if limit is None:
        limit = MAX_FILE_BYTES
    _check_place(path, within)
    # before it is opened: to open a pipe or a device may wait, or do something
    _check_kind(os.stat(path), path, limit)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        _check_kind(status, path, limit)
        # /proc/kmsg calls itself an empty regular file, and would be waited for
        if status.st_size == 0:
            os.close(descriptor)
            return io.BufferedReader(io.BytesIO())
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_place(path: Path, within: Path | None) -> None:
    if within is None:
        return
    try:
        is_inside = path.resolve(strict=True).is_relative_to(within.resolve())
    except (RuntimeError, ValueError) as error:  # a loop of links; a name with a null byte
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    if not is_inside:
        raise OSError(errno.EXDEV, "is a link that leads out of its folder", str(path))


def _check_kind(status: os.stat_result, path: Path, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"is {kind}, not a regular file", str(path))
    if status.st_size > limit:
        words = f"has {status.st_size:,} bytes, more than the {limit:,} that such a file may have"
        raise OSError(errno.EFBIG, words, str(path))


def read_bytes(path: str | Path, limit: int = MAX_TEXT_BYTES, within: Path | None = None) -> bytes:
    """The file's bytes, as many as it held when it was opened. OSError as `open_regular`."""
    with open_regular(path, limit, within) as file:
        return file.read(limit)


def read_tail(path: str | Path, count: int, within: Path | None = None) -> bytes:
    """At most the last `count` bytes of a file of any size up to MAX_FILE_BYTES.

    OSError as `open_regular`.
    """
    with open_regular(path, within=within) as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - count))
        return file.read(count)


def read_text(path: str | Path, limit: int = MAX_TEXT_BYTES, within: Path | None = None) -> str:
    """The file as UTF-8. OSError as `open_regular`; ValueError: it is no UTF-8."""
    return read_bytes(path, limit, within).decode("utf-8")


def read_json(path: str | Path, limit: int = MAX_TEXT_BYTES, within: Path | None = None) -> Any:
    """The file's JSON value.

    Raises:
        OSError: As `open_regular`.
        ValueError: It is no JSON, nested too deeply, or holds a number that is not finite or beyond
        64 bits.
    """
    return parse_json(read_text(path, limit, within))


def parse_json(text: str | bytes) -> Any:
    """A JSON text's value, made of plain values alone; ValueError as `read_json`."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    check_plain(value)
    return value


def read_yaml(path: str | Path, limit: int = MAX_TEXT_BYTES, within: Path | None = None) -> Any:
    """The file's YAML value, made of plain values alone.

    Raises:
        OSError: As `open_regular`.
        ValueError: It is no YAML, nested too deeply, or holds an alias, a tag, or a number as
        `read_json` refuses.
    """
    import yaml

    text = read_text(path, limit, within)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        # first its events alone: aliases would multiply what is built, and nesting overflow it
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MAX_NESTING:
                raise ValueError("nested too deeply")
            if getattr(event, "anchor", None) or getattr(event, "tag", None):
                line = event.start_mark.line + 1
                raise ValueError(f"line {line} holds an alias or a tag, which a run never writes")
        value = yaml.load(text, Loader=loader)
    except (yaml.YAMLError, TypeError) as error:  # a list as a key is a TypeError
        raise ValueError(" ".join(str(error).split())[:200]) from None
    check_plain(value)
    return value


def check_plain(value: Any) -> None:
    """Raises ValueError unless a value is plain.

    Plain is what is made of mappings by text, lists, text that is Unicode, finite numbers, bool and
    None, no deeper than MAX_NESTING. The message begins with the place: `scores.mse.auroc: `.
    """
    pending: list[tuple[Any, _Place]] = [(value, ())]
    while pending:
        item, place = pending.pop()
        if isinstance(item, dict | list) and _depth(place) >= MAX_NESTING:
            raise ValueError("nested too deeply")
        if isinstance(item, dict):
            for key, part in item.items():
                if not isinstance(key, str) or _is_broken(key):
                    raise ValueError(f"{_words(place)}has a key that is no text")
                pending.append((part, (key, place)))
        elif isinstance(item, list):
            for index, part in enumerate(item):
                pending.append((part, (str(index), place)))
        else:
            fault = _fault(item)
            if fault:
                raise ValueError(f"{_words(place)}{fault}")


#: A key and the place of what holds it, () at the top.
_Place = tuple[()] | tuple[str, Any]


def _depth(place: _Place) -> int:
    depth = 0
    while place:
        depth += 1
        place = place[1]
    return depth


def _words(place: _Place) -> str:
    keys = []
    while place:
        keys.append(place[0])
        place = place[1]
    if not keys:
        return ""
    path = ".".join(reversed(keys))
    return f"{path[:200]}: "


def _fault(item: Any) -> str:
    """Why a value is none that a run writes, "" if it is one."""
    if isinstance(item, float) and not math.isfinite(item):
        return f"{item}, which is no number"
    if isinstance(item, int) and not -(2**63) <= item < 2**63:
        return "a whole number beyond 64 bits"
    if isinstance(item, str) and _is_broken(item):
        return "text that is no Unicode"
    if item is None or isinstance(item, str | int | float):
        return ""
    return f"a {type(item).__name__}"


def _is_broken(text: str) -> bool:
    """Whether a text holds half a pair of surrogates, which no file can keep."""
    return not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text)


def sha256_file(path: str | Path, limit: int = MAX_FILE_BYTES, within: Path | None = None) -> str:
    """The file's SHA-256 as 64 hex digits. OSError as `open_regular`."""
    digest = hashlib.sha256()
    with open_regular(path, limit, within) as file:
        remaining = limit
        while remaining:
            block = file.read(min(_BLOCK, remaining))
            if not block:
                break
            digest.update(block)
            remaining -= len(block)
    return digest.hexdigest()


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Writes a whole file or nothing.

    After any failure the old file stands and no temporary file is left.

    Args:
        path: The file; its folder is made if missing.
        data: The contents; text is written as UTF-8.
    """
    content = data.encode() if isinstance(data, str) else data
    with open_atomic(path) as file:
        file.write(content)


@contextmanager
def open_atomic(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write piece by piece, which appears whole under `path` or not at all.

    It appears when the block ends.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            _mark_as_written(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _mark_as_written(file: BinaryIO) -> None:
    """Holds a lock on a temporary file for as long as somebody writes it (see `remove_leftovers`)."""
    with suppress(OSError):  # a file system without locks
        take(file)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of `open_atomic` in a folder that a killed process has left."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError), open_regular(path) as file:
            remove_unless_taken(path, file)
