"""What a run's folder tells any process that sees it: complete, begun with other options, held by
somebody, failed.

There is no other ledger: a sweep is the folders of its cells, whoever runs them and on whichever
machine.
"""

import json
import logging
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # not on Windows, where runs are not locked
    fcntl = None  # type: ignore[assignment]

from noveltylab.command.screen import plain, say
from noveltylab.errors import RunFailed, UserError
from noveltylab.options import Options
from noveltylab.results.files import open_regular, read_json, sha256_file, write_atomic
from noveltylab.results.provenance import code_state
from noveltylab.results.record import flat_options, kind_of_option, read_config, read_result

log = logging.getLogger("noveltylab")

#: Tries, this many seconds apart, before a lock counts as held: `holder` takes it for an instant to
#: look at it.
TRIES, PAUSE = 10, 0.05
#: Bytes that the lock's file may have.
MAX_OWNER_BYTES = 4096


class Busy(UserError):
    """Another process is running this very run."""


def previous(folder: Path, config: dict[str, Any], force: bool) -> dict[str, Any] | None:
    """The result of a complete run with the same options, or None where there is something to do.

    A result that is damaged, or whose files are not those it records, counts as none (see
    `set_damaged_aside`).

    Raises:
        UserError: the folder holds a run with other options; shows the difference.
    """
    if force or not os.path.lexists(folder / "config.yaml"):
        return None
    result = None if damage(folder) else read_result(folder)
    there = result["config"] if result else read_config(folder)
    old, new = flat_options(there), flat_options(config)
    own_images = config["data"].get("classes") == "folders"
    differences = [
        f"{key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} here"
        for key in sorted({*old, *new})
        if kind_of_option(key, own_images) != "free"
        and old.get(key, "absent") != new.get(key, "absent")
    ]
    if differences:
        raise UserError(
            f"{folder} holds a run with other options ({'; '.join(differences)}). "
            "Choose another output=..., or force=true to run again (the old run is kept beside it)"
        )
    return result


def damage(folder: Path) -> str:
    """Why the folder's result does not count: "" if it does, "no result" without one, else the
    files that are damaged.
    """
    if not os.path.lexists(folder / "result.json"):
        return "no result"
    try:
        files = read_result(folder)["files"]
    except UserError:
        return "result.json"
    return ", ".join(
        name for name, digest in files.items() if not _is_file_with(folder / name, digest)
    )


def _is_file_with(path: Path, digest: str) -> bool:
    try:
        return sha256_file(path, within=path.parent) == digest
    except OSError:
        return False


def set_damaged_aside(folder: Path) -> None:
    """Moves a damaged result out of the way, so that the run goes on from its checkpoints; says so.
    Needs the lock.
    """
    if (found := damage(folder)) and found != "no result":
        kept = folder / "result.damaged.json"
        try:
            (folder / "result.json").rename(kept)
        except OSError as error:
            raise UserError(
                f"{folder / 'result.json'}: damaged, and cannot be moved to {kept.name} ({error.strerror}); move it away"
            ) from None
        say(
            f"{folder}: {found} damaged or changed since; {kept.name} is kept, the run is finished anew"
        )


def set_unknown_aside(folder: Path) -> None:
    """Moves a checkpoint out of the way that was trained on nobody knows what: its split is gone or
    damaged.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists():
        damaged = last.rename(last.with_suffix(".damaged"))
        log.warning(
            f"no record of the images of {last}; kept as {damaged.name}, training starts again"
        )


def record_code(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Notes in code.json which code trains the run; returns this code, and what trained it before.

    Where nothing was trained yet, nothing came before. The states are as `code_state` has them.
    """
    path, now = folder / "code.json", code_state()
    states: list[dict[str, Any]] = []
    if (folder / "checkpoints" / "last.ckpt").exists():
        try:
            states = [dict(state) for state in read_json(path)]
        except (OSError, ValueError, TypeError):
            states = [{"commit": None, "sources": None, "versions": {}}]
    if now not in states[-1:]:
        states.append(now)
        write_atomic(path, json.dumps(states, indent=1) + "\n")
    return now, [state for state in states if state != now]


def said(state: dict[str, Any]) -> str:
    """A state of the code in a few words."""
    if not state.get("sources"):
        return "a version that did not record its code"
    versions = ", ".join(
        f"{name} {version}" for name, version in dict(state.get("versions", {})).items()
    )
    return plain(
        f"commit {state.get('commit') or 'unknown'}, sources {str(state['sources'])[:12]}, {versions}"
    )


# Who runs it.


def lock_path(folder: Path) -> Path:
    """The lock's file, beside the run's folder: force=true moves the folder aside, and a refused
    run leaves none.
    """
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps every other process from running this run; the kernel lets go when this one ends,
    however it ends.

    Raises:
        Busy: another process holds it; says which, where and since when.
        UserError: the folder cannot be made.
    """
    path = lock_path(folder)
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        file = _acquire(path, folder)
        try:
            yield
        finally:
            path.unlink(
                missing_ok=True
            )  # while held: who waits for it sees that its file is gone, and makes a new one
            file.close()
    finally:
        for parent in made:
            try:
                parent.rmdir()
            except OSError:
                break  # not empty: the run has begun


def _acquire(path: Path, folder: Path) -> IO[bytes]:
    for _ in range(TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _open_lock(path)
        except FileNotFoundError:
            continue  # whoever made the folder for a refused run has just removed it
        except OSError as error:
            raise UserError(
                f"cannot create {folder}: {error.strerror or error}; choose another output=..."
            ) from None
        if _take(file) and _is(file, path):
            _sign(file, path)
            return file
        file.close()
        time.sleep(PAUSE)
    raise Busy(
        f"{folder} is being run by {_words(_owner(path))}; wait for it or end it, then repeat the command"
    )


def _open_lock(path: Path) -> IO[bytes]:
    """The lock's file, new or there already. OSError for a link or anything but a regular file."""
    nothing_else = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | nothing_else, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    return os.fdopen(descriptor, "r+b", buffering=0)


def _sign(file: IO[bytes], path: Path) -> None:
    """Writes who has the lock into its file. RunFailed, and no lock, where the disk is full."""
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
    try:
        file.truncate(0)
        file.write(json.dumps(owner).encode())
    except OSError as error:
        path.unlink(missing_ok=True)
        file.close()
        raise RunFailed(
            f"cannot write {path}: {error.strerror or error}; the same command goes on when that is mended"
        ) from None


def _take(file: IO[bytes]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _say_once(
            f"the output's file system has no locks ({error.strerror}): do not start a run twice there"
        )
    return True


@cache
def _say_once(message: str) -> None:
    say(message, sys.__stderr__)  # a sweep keeps the output of its cells off the screen


def _is(file: IO[bytes], path: Path) -> bool:
    """Whether the open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def holder(folder: Path) -> dict[str, Any] | None:
    """Who runs this run now ("pid", "host", "since"; {} where that cannot be read), None for
    nobody.
    """
    path = lock_path(folder)
    if fcntl is None or not path.exists():
        return None
    try:
        with open_regular(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner(path)
    except OSError:
        return None
    return None


def _owner(path: Path) -> dict[str, Any]:
    """What the lock's file says, {} where it is gone, just being written, or says something else."""
    try:
        owner = read_json(path, MAX_OWNER_BYTES)
    except (OSError, ValueError):
        return {}
    known = isinstance(owner, dict) and {"pid", "host", "since"} <= owner.keys()
    return owner if known else {}


def _words(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    return plain(f"process {owner['pid']} on {owner['host']} since {owner['since']}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# How it failed.


def failure_path(options: Options) -> Path:
    """Where a failed cell of a sweep leaves its reason:
    `<output>/.sweep/failed/<protocol>-<method>-...-seed<s>.json`.
    """
    root = Path(options.output).expanduser()
    return root / ".sweep" / "failed" / f"{'-'.join(options.folder.relative_to(root).parts)}.json"


def write_failure(options: Options, overrides: list[str], reason: str, trace: str) -> None:
    """Keeps why a cell failed, for whoever started the sweep and for the report; the next success
    removes it.
    """
    found = {
        "reason": reason,
        "folder": str(options.folder),
        "overrides": overrides,
        "host": socket.gethostname(),
        "time": _now(),
        "traceback": trace,
    }
    write_atomic(failure_path(options), json.dumps(found, indent=1) + "\n")


def read_failure(path: Path) -> str:
    """The one-line reason that `write_failure` left."""
    try:
        return str(read_json(path)["reason"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path} cannot be read: {error}"
