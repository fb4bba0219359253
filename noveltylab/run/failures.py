"""Why a run failed: in words that say what to do, and kept in a file for whoever began a sweep."""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from noveltylab.errors import RunFailed
from noveltylab.options import Options
from noveltylab.results.files import read_json, write_atomic

#: How torch and CUDA say that there is no memory left.
NO_MEMORY = re.compile(r"out of memory|can't allocate")


class OutOfMemory(RunFailed):
    """The machine has too little memory for the options."""


@contextmanager
def explained(folder: Path, options: Options) -> Iterator[None]:
    """Turns a full disk or a full memory into a RunFailed that says what to do."""
    try:
        yield
    except OSError as error:
        path = error.filename2 or error.filename or folder
        raise RunFailed(
            f"cannot read or write {path}: {error.strerror or error}; what was finished before is "
            "intact, and the same command goes on when that is mended"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        reason = " ".join(str(error).split())[:120]
        batch_size, score_batch_size = options.data.batch_size, options.trainer.score_batch_size
        raise OutOfMemory(
            f"out of memory ({reason}); lower data.batch_size={batch_size} if this was training, "
            f"trainer.score_batch_size={score_batch_size} if it was scoring"
        ) from error


def failure_path(options: Options) -> Path:
    """The file that keeps why a cell of a sweep failed.

    It is `<output>/.sweep/failed/<protocol>-<method>-...-seed<s>.json`.
    """
    root = Path(options.output).expanduser()
    name = "-".join(options.folder.relative_to(root).parts)
    return root / ".sweep" / "failed" / f"{name}.json"


def write_failure(options: Options, overrides: list[str], reason: str, trace: str) -> None:
    """Keeps why a cell failed, for the sweep and the report; the next success removes it."""
    failure = {
        "reason": reason,
        "folder": str(options.folder),
        "overrides": overrides,
        "host": socket.gethostname(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "traceback": trace,
    }
    write_atomic(failure_path(options), json.dumps(failure, indent=1) + "\n")


def read_failure(path: Path) -> str:
    """The one-line reason that `write_failure` kept."""
    try:
        return str(read_json(path)["reason"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path} cannot be read: {error}"
