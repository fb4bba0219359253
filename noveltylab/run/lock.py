"""The lock of a run's folder: two processes never run the same run at the same time.

The lock is a file beside the folder that the kernel keeps for one process, on whichever machine.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import IO, Any

from noveltylab.command.screen import plain, say
from noveltylab.errors import RunFailed, UserError
from noveltylab.results.files import open_regular, parse_json
from noveltylab.results.locks import OWN_BYTES, is_taken, open_own, remove_taken, take

#: How often a taken lock is tried again before it counts as held; `holder` takes it for an instant.
TRIES = 10
#: Seconds between two tries.
PAUSE = 0.05
#: Bytes that the lock's file may have.
MAX_OWNER_BYTES = 4096


class Busy(UserError):
    """Another process is running this very run."""


def lock_path(folder: Path) -> Path:
    """The file of a run folder's lock, beside the folder.

    It lies outside, since force=true moves the folder aside and a refused run leaves no folder.
    """
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps every other process from running this run while the block lasts.

    The kernel releases the lock when this process ends, however it ends.

    Raises:
        Busy: another process holds it; says which, where and since when.
        UserError: the folder cannot be made.
    """
    path = lock_path(folder)
    new_parents = [parent for parent in path.parents if not parent.exists()]
    try:
        file = _acquire(path, folder)
        try:
            yield
        finally:
            remove_taken(file, path)
    finally:
        _remove_empty(new_parents)


def _remove_empty(folders: list[Path]) -> None:
    """Removes the folders from the innermost on, up to the first that is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _acquire(path: Path, folder: Path) -> IO[bytes]:
    for _ in range(TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open_own(path)
        except FileNotFoundError:
            continue  # whoever made the folder for a refused run has just removed it
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"cannot create {folder}: {reason}; choose another output=..."
            ) from None
        if _take(file) and _is_at(file, path):
            _sign(file, path)
            return file
        file.close()
        time.sleep(PAUSE)
    raise Busy(
        f"{folder} is being run by {_words(_owner(path))}; "
        "wait for it or end it, then repeat the command"
    )


def _sign(file: IO[bytes], path: Path) -> None:
    """Writes the owner into the lock's file; RunFailed, and no lock, if the disk is full."""
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": moment}
    try:
        file.truncate(0)
        file.write(b" " * OWN_BYTES + json.dumps(owner).encode())
    except OSError as error:
        remove_taken(file, path)
        reason = error.strerror or error
        raise RunFailed(
            f"cannot write {path}: {reason}; the same command goes on when that is mended"
        ) from None


def _take(file: IO[bytes]) -> bool:
    """Whether the lock is this process's now; always so on a file system without locks."""
    try:
        return take(file)
    except OSError as error:
        _say_once(
            f"the output's file system has no locks ({error.strerror}): "
            "do not start a run twice there"
        )
    return True


@cache
def _say_once(message: str) -> None:
    say(message, sys.__stderr__)  # a sweep keeps the output of its cells off the screen


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether the open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def holder(folder: Path) -> dict[str, Any] | None:
    """The process that runs this run now: "pid", "host", "since"; None for nobody.

    The answer is {} where the file of the lock cannot be read.
    """
    path = lock_path(folder)
    if not path.exists():
        return None
    try:
        with open_regular(path) as file:
            held = is_taken(file)
    except OSError:
        return None
    return _owner(path) if held else None


def _owner(path: Path) -> dict[str, Any]:
    """What the lock's file says; {} if it is gone, just being written, or says something else."""
    try:
        with open_regular(path, MAX_OWNER_BYTES) as file:
            file.seek(OWN_BYTES)
            owner = parse_json(file.read(MAX_OWNER_BYTES))
    except (OSError, ValueError):
        return {}
    if isinstance(owner, dict) and {"pid", "host", "since"} <= owner.keys():
        return owner
    return {}


def _words(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    return plain(f"process {owner['pid']} on {owner['host']} since {owner['since']}")
