"""The one door through which files that somebody else may have written are read.

A run's folder may come from anybody. A pipe in the place of a file waits for ever, a link to a
device never ends, a YAML file of aliases unfolds to billions of values: none of these is read.
"""

import hashlib
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

#: Bytes that a result, a configuration or another text of a run may have.
MAX_TEXT_BYTES = 64 * 2**20
#: Levels of lists and mappings inside each other in a file of values.
MAX_NESTING = 50


def open_regular(path: str | Path, limit: int | None = None) -> io.BufferedReader:
    """Opens a regular file for reading, and nothing else.

    Args:
        path: The file; a link to a regular file is one.
        limit: The most bytes that it may have; None for any size.

    Raises:
        OSError: It is missing, cannot be read, is a folder, a pipe, a socket or a device, or is
            larger than the limit. `strerror` says which.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)  # O_NONBLOCK: a pipe without a writer does not wait
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, f"is {_kind(status.st_mode)}, not a regular file", str(path))
        if limit is not None and status.st_size > limit:
            message = f"has {status.st_size:,} bytes, more than the {limit:,} that such a file may have"
            raise OSError(0, message, str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def read_bytes(path: str | Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The contents of a regular file of at most `limit` bytes. OSError as `open_regular`."""
    with open_regular(path, limit) as file:
        contents = file.read(limit + 1)
    if len(contents) > limit:  # it grew, or its size was not what the file system said
        raise OSError(0, f"has more than the {limit:,} bytes that such a file may have", str(path))
    return contents


def read_text(path: str | Path, limit: int = MAX_TEXT_BYTES) -> str:
    """The text of a regular file in UTF-8.

    Raises:
        OSError: as `open_regular`.
        ValueError: It is no UTF-8.
    """
    return read_bytes(path, limit).decode("utf-8")


def read_json(path: str | Path, limit: int = MAX_TEXT_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: as `open_regular`.
        ValueError: It is no JSON in UTF-8, or is nested too deeply.
    """
    try:
        value = json.loads(read_text(path, limit))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check_nesting(value)
    return value


def read_yaml(path: str | Path, limit: int = MAX_TEXT_BYTES) -> Any:
    """The value in a YAML file of plain values: no tags that make objects, no aliases.

    Raises:
        OSError: as `open_regular`.
        ValueError: It is no such YAML in UTF-8, or is nested too deeply.
    """
    text = read_text(path, limit)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("holds an alias (*name), which a recorded file never does")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_NESTING:
                raise ValueError("nested too deeply")
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError, TypeError) as error:  # a list as a key is a TypeError
        raise ValueError(" ".join(str(error).split())) from None


def _check_nesting(value: Any) -> None:
    level = [value]
    for _ in range(MAX_NESTING):
        children: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                children.extend(item.values())
            elif isinstance(item, list):
                children.extend(item)
        if not children:
            return
        level = children
    raise ValueError("nested too deeply")


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a regular file of any size, as 64 hex digits. OSError as `open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
