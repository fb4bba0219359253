"""Files of a data set where they lie: in a folder, or in its archive as it was downloaded.

The data folder, and what is said when files are not in it, come first.
A zip archive is read in place, nothing of it is written anywhere. A tar archive, which has no
index, is read once from its beginning to its end. Of both only regular files with plain names are
taken, each of a bounded size.
"""

import gzip
import hashlib
import os
import secrets
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from noveltylab.data.cache import cache_folder
from noveltylab.errors import UserError
from noveltylab.results.files import open_regular

#: Bytes of an archive: the largest official one has 10 GB.
MAX_ARCHIVE = 64 << 30
#: Entries of an archive.
MAX_ENTRIES = 200_000
#: Bytes that the reader of a tar archive takes at once, however much a header asks for.
_MAX_READ = 64 << 20
#: Seconds after which a folder that was being unpacked is thought to be abandoned.
_ABANDONED = 6 * 3600
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError),
    *(ValueError, RuntimeError, NotImplementedError, KeyError),
)


# The data folder.


def resolve_root(root: str | Path | None) -> Path:
    """The data folder: data.root, else NOVELTYLAB_DATA, else `data` in the working directory."""
    path = Path(root or os.environ.get("NOVELTYLAB_DATA") or "data")
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"data.root={path}: there is no such home folder") from None


def missing(files: str, folder: Path, remedy: str) -> UserError:
    """The one error for absent files: what was looked for, all places looked at, what to do."""
    environment = os.environ.get("NOVELTYLAB_DATA") or "not set"
    place = str(folder) if folder.is_dir() else f"{folder} (no such folder)"
    return UserError(
        f"{files} not found in {place}. The data folder is the option data.root, else the "
        f"environment variable NOVELTYLAB_DATA ({environment}), else {Path('data').absolute()}. "
        f"{remedy}"
    )


def not_fetched(absent: list[str], folder: Path, by_hand: str, *, acceptable: bool) -> UserError:
    """The error for absent files of a set that could be fetched.

    Args:
        absent: Their names.
        folder: Where they were looked for.
        by_hand: How to get them by hand.
        acceptable: The set can be read without them.
    """
    remedy = f"{by_hand} Or let it be fetched: data.download=true."
    if acceptable:
        remedy += " Or accept what is there with data.verify=false."
    return missing(" and ".join(absent), folder, remedy)


def fetch(download: Callable[[], object], title: str, remedy: str, folder: Path) -> None:
    """Run a library's downloader.

    Args:
        download: The downloader.
        title: The data set, for the error.
        remedy: What to do by hand, for the error.
        folder: Where the files go. It and its parents are removed again if they were made for
            nothing.

    Raises:
        UserError: whatever goes wrong.
    """
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        download()
    except Exception as error:  # downloaders fail in many ways, and each means the same
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"Downloading {title} failed ({reason}). {remedy}") from error
    finally:
        for path in new_folders:
            with suppress(OSError):  # it holds something, or is gone
                path.rmdir()


# Files in it.


@dataclass(frozen=True)
class Stored:
    """One file of a data set: `path` on disk, or `member` of the zip archive `path`."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name if self.member else self.path.name

    def read(self, limit: int) -> bytes:
        """Its bytes; UserError if it cannot be read, or is larger than `limit`."""
        try:
            with self._open(limit) as file:
                content = file.read(limit + 1)
        except _DAMAGE as error:
            raise UserError(f"Cannot read {self}: {_reason(error)}.") from None
        if len(content) > limit:
            raise UserError(f"{self} is too large: expected at most {limit:,} bytes.")
        return content

    def _open(self, limit: int) -> IO[bytes]:
        if not self.member:
            return open_regular(self.path, limit)
        archive = _opened(self.path, *_state(self.path))
        return archive.open(self.member)


def names_in(folder: Path) -> list[str]:
    """Sorted names of what lies in a folder; none without the folder; UserError if unreadable."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"Cannot look into {folder}: {error.strerror}.") from error


def find_archive(root: Path, *names: str) -> Path | None:
    """The first of these archives that lies in `root`, or `root` itself where it is one of them."""
    if root.name in names and root.is_file():
        return root
    for name in names:
        if (root / name).is_file():
            return root / name
    return None


def check_archive(path: Path, kind: str, digest: str, size: int | None = None) -> None:
    """UserError unless an archive has the official checksum and size.

    Args:
        path: The archive.
        kind: Kind of hash.
        digest: The official checksum.
        size: The official size in bytes, None where it is not known.
    """
    try:
        with open_regular(path, MAX_ARCHIVE) as file:
            length = os.fstat(file.fileno()).st_size
            is_wrong_size = size is not None and length != size
            actual = f"{length:,} bytes"
            if not is_wrong_size:
                actual = hashlib.file_digest(file, kind).hexdigest()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    if actual != digest:
        expected = f"{kind} {digest}"
        if size:
            expected = f"{size:,} bytes with the {expected}"
        raise UserError(
            f"{path} is not the official archive: expected {expected}, found {actual}. "
            "Replace it, or accept it with data.verify=false, which labels the result unverified."
        )


# Zip archives.


def zip_members(path: Path) -> dict[str, Stored]:
    """The regular files in a zip archive by name, without hidden ones; UserError if damaged."""
    try:
        infos = _opened(path, *_state(path)).infolist()
    except _DAMAGE as error:
        raise UserError(f"{path} is no whole zip archive ({_reason(error)}). Replace it.") from None
    members = {}
    for info in infos:
        is_link = stat.S_ISLNK(info.external_attr >> 16)
        if not info.is_dir() and not is_link and is_plain(info.filename):
            members[info.filename] = Stored(path, info.filename)
    return members


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _opened(path: Path, size: int, changed: int) -> zipfile.ZipFile:
    """The archive; its index is read once while the file stays as it is; threads may share it."""
    open_regular(path, MAX_ARCHIVE).close()  # refuses a pipe, or a device
    return zipfile.ZipFile(path)


def is_plain(name: str) -> bool:
    """Whether a name in an archive stays below the folder of the archive, and is not hidden."""
    parts = name.split("/")
    if parts[0] == "__MACOSX":
        return False
    for part in parts:
        if not part or part.startswith("."):
            return False
    return "\\" not in name and ":" not in name and name.isprintable()


# Tar archives.


def tar_files(
    path: Path, select: Callable[[str], bool], each: int, total: int
) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each selected regular file of a .tar.gz, in order.

    Args:
        path: The archive.
        select: Says by a plain name whether the file is read.
        each: Bytes that a selected file may have.
        total: Bytes that all files of the archive may have.

    Raises:
        UserError: The archive is damaged or too large, or a selected file is a link, stored twice,
            or too large.
    """
    seen: set[str] = set()
    free = total
    with _tar_errors(path), open_regular(path, MAX_ARCHIVE) as raw, gzip.open(raw) as stream:
        bounded: Any = _Bounded(stream)
        with tarfile.open(fileobj=bounded, mode="r:") as archive:
            for count, entry in enumerate(archive):
                free -= entry.size
                if free < 0 or count >= MAX_ENTRIES:
                    raise UserError(
                        f"{path} holds more than the {total:,} bytes that the official archive "
                        "may have."
                    )
                name = entry.name.removeprefix("./")
                if entry.isdir() or not is_plain(name) or not select(name):
                    continue
                if not entry.isreg() or entry.issparse() or entry.size > each or name in seen:
                    raise UserError(
                        f"{path}: {name} is a link, stored twice or too large. Replace the archive."
                    )
                seen.add(name)
                file = archive.extractfile(entry)
                assert file is not None  # a regular file
                yield name, file.read()


@contextmanager
def _tar_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise UserError(f"{path} is truncated or corrupt ({_reason(error)}). Replace it.") from None


class _Bounded:
    """A stream that gives no more at once than a real archive asks for.

    A header may name any length.
    """

    def __init__(self, stream: gzip.GzipFile) -> None:
        self.stream = stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise ValueError("a header asks for more than any real one")
        return self.stream.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        return self.stream.seek(position, whence)

    def tell(self) -> int:
        return self.stream.tell()


def unpack(path: Path, select: Callable[[str], bool], each: int, total: int) -> Path:
    """The folder in the cache with the selected files of a .tar.gz, unpacked if not there yet.

    It appears whole, or not at all. Arguments as `tar_files`.

    Raises:
        UserError: as `tar_files`; also if the cache cannot be written.
    """
    size, changed = _state(path)
    state = f"{path.resolve()} {size} {changed}"
    key = hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()
    target = cache_folder() / "unpacked" / f"{path.name}-{key[:16]}"
    if target.is_dir():
        return target
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with _cache_errors(path, target):
            temporary.mkdir(parents=True)
            _remove_abandoned(target)
        for name, content in tar_files(path, select, each, total):
            with _cache_errors(path, target):
                place = temporary / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
        with _cache_errors(path, target):
            _appear(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


@contextmanager
def _cache_errors(path: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} is unpacked into {target.parent}, which cannot be written ({error.strerror}). "
            "Let the environment variable NOVELTYLAB_CACHE name another folder, or unpack it "
            f"yourself: tar xzf {path.name}"
        ) from None


def _appear(temporary: Path, target: Path) -> None:
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():  # else another run was faster
            raise


def _remove_abandoned(target: Path) -> None:
    """Remove what killed processes did not finish unpacking."""
    for path in target.parent.glob(f".{target.name}.*.tmp"):
        if time.time() - path.stat().st_mtime > _ABANDONED:
            shutil.rmtree(path, ignore_errors=True)


def _reason(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return " ".join(text.split())[:160] or type(error).__name__
