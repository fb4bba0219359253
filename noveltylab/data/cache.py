"""Arrays that take long to make, kept on disk under a key of everything that they depend on."""

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noveltylab.results import open_atomic

log = logging.getLogger("noveltylab")
Arrays = dict[str, NDArray[Any]]


def cache_folder() -> Path:
    """$NOVELTYLAB_CACHE, else ``noveltylab`` in the user's cache folder. Everything in it can be deleted."""
    if folder := os.environ.get("NOVELTYLAB_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "noveltylab"


def cached(name: str, key: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """The arrays of `make`, from the cache if it was called before with an equal key (plain JSON values).

    A damaged entry is made again; where nothing can be written, a log line says so and nothing is kept.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = cache_folder() / f"{name}-{digest[:24]}.npz"
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {array: stored[array] for array in stored.files}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        log.warning(f"{path} is damaged ({error}); it is made again")
    arrays = make()
    try:
        with open_atomic(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        log.warning(f"{path} cannot be written ({error.strerror}); NOVELTYLAB_CACHE names another folder")
    return arrays


def fingerprint(files: list[Path], below: Path) -> str:
    """Changes when a file is added, removed, renamed, resized or written: sha256 over names, sizes and times."""
    lines = (f"{file.relative_to(below)} {(stat := file.stat()).st_size} {stat.st_mtime_ns}" for file in files)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
