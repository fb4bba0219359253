"""Arrays that take long to make, kept on disk under a key of everything that they depend on."""

import hashlib
import importlib.util
import json
import logging
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noveltylab.results.files import open_atomic, open_regular, remove_leftovers
from noveltylab.results.provenance import package_version

log = logging.getLogger("noveltylab")
Arrays = dict[str, NDArray[Any]]

#: What reading a damaged entry raises.
DAMAGED = (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile)
#: The array of an entry that holds its key and the hash of the other arrays.
SEAL = "__seal__"


def cache_folder() -> Path:
    """$NOVELTYLAB_CACHE, else `noveltylab` in the user's cache folder; all in it can be deleted."""
    folder = os.environ.get("NOVELTYLAB_CACHE")
    if folder:
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "noveltylab"


def cached(name: str, key: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """The arrays of `make`, from the cache if it was called before with an equal key.

    The key holds plain JSON values. It has to hold all that the arrays depend on, also what
    computes them (`code_key`). An entry that is damaged, or is not what was written, is made again;
    where nothing can be written, a log line says so and nothing is kept.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = cache_folder() / f"{name}-{digest[:24]}.npz"
    remove_leftovers(path.parent)
    try:
        return read_entry(path, digest)
    except FileNotFoundError:
        pass
    except DAMAGED as error:
        log.warning(f"{path} is damaged ({error}); it is made again")
    arrays = make()
    write_entry(path, digest, arrays)
    return arrays


def write_entry(path: Path, key: str, arrays: Arrays) -> None:
    """Writes the arrays of an entry under a key; where that cannot be, a log line says so."""
    try:
        with open_atomic(path) as file:
            sealed = {**arrays, SEAL: np.array(_seal(key, arrays))}
            np.savez(file, **sealed)  # type: ignore[arg-type]  # NumPy 1 has a keyword here
    except OSError as error:
        reason = error.strerror or error
        log.warning(f"{path} cannot be written ({reason}); NOVELTYLAB_CACHE names another folder")


def read_entry(path: Path, key: str) -> Arrays:
    """The arrays of an entry; ValueError if they are not those written under this key."""
    with open_regular(path) as stream, np.load(stream, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files if name != SEAL}
        if str(stored[SEAL]) != _seal(key, arrays):
            raise ValueError("its contents are not what was written")
    return arrays


def _seal(key: str, arrays: Arrays) -> str:
    digest = hashlib.blake2b(key.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {np.shape(arrays[name])}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def code_key(modules: tuple[str, ...], packages: tuple[str, ...]) -> dict[str, str]:
    """What computes an entry, for its key.

    A hash of each module's source, and each package's version.
    """
    key = {}
    for module in modules:
        specification = importlib.util.find_spec(f"noveltylab.{module}")
        assert specification is not None and specification.origin is not None
        key[module] = hashlib.sha256(Path(specification.origin).read_bytes()).hexdigest()
    for package in packages:
        key[package] = package_version(package) or "none"
    return key


def fingerprint(files: list[Path], below: Path) -> str:
    """Changes when a file is added, removed, renamed, resized, written or replaced.

    A SHA-256 over names, sizes and both times: a copy may keep the time of writing, never that of
    its own change.
    """
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        line = f"{file.relative_to(below)} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
