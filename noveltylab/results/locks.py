"""Locks that the kernel keeps on open files, on every system.

filelock has what all systems share: the exclusive lock of an open file, which is flock on POSIX and
LockFileEx on Windows, and which ends with its process however that ends. What it lacks, and what
Windows has otherwise, stands here and nowhere else:

- A lock is asked for without taking it (`is_taken`). On POSIX any number of processes may ask at
  once; on Windows the one that asks takes the lock for an instant.
- A file is removed while its lock is held (`remove_taken`). Windows removes no open file, and
  nobody can remove the file of somebody else's lock there.
- A folder is locked (`locked_folder`), by a file in it on Windows.
- A file takes the place of another (`replace`), which Windows refuses while the other is open.
- On Windows nobody else can read the first byte of a locked file: what others are to read begins at
  OWN_BYTES.
"""

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]  # asked below whether it is there

#: Whether open files cannot be removed, nor folders opened.
WINDOWS = os.name == "nt"
#: Bytes at the start of a locked file that only its holder can read.
OWN_BYTES = 1
#: The file that stands for a locked folder on Windows.
FOLDER_LOCK = ".writing.lock"

#: How often, and after how many seconds, a file that somebody reads is tried to be replaced.
REPLACE_TRIES, REPLACE_PAUSE = 40, 0.05


def take(file: IO[bytes], wait: bool = False) -> bool:
    """Takes the exclusive lock of an open file; it is kept until the file is closed.

    Args:
        file: The file.
        wait: Whether to wait for whoever holds it.

    Returns:
        Whether this process holds it now.

    Raises:
        OSError: The file system has no locks.
    """
    return take_descriptor(file.fileno(), wait)


def take_descriptor(descriptor: int, wait: bool = False) -> bool:
    """As `take`, of an open descriptor."""
    # here, as it takes a while and most commands lock nothing
    from filelock import lock_descriptor

    return bool(lock_descriptor(descriptor, blocking=wait))


def is_taken(file: IO[bytes]) -> bool:
    """Whether another process holds the lock of an open file.

    Raises:
        OSError: The file system has no locks.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(file, fcntl.LOCK_UN)
        return False
    from filelock import unlock_descriptor

    if not take(file):
        return True
    unlock_descriptor(file.fileno())
    return False


def open_own(path: Path) -> IO[bytes]:
    """Opens a lock's file for reading and writing, new or old.

    Raises:
        OSError: It is a link, or anything but a regular file.
    """
    flags = os.O_RDWR | os.O_CREAT
    # a pipe is not waited for, a link not followed; on Windows bytes are left as they are
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_NOINHERIT"):
        flags |= getattr(os, name, 0)
    if WINDOWS and path.is_symlink():
        raise OSError(f"{path} is no regular file")
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    return os.fdopen(descriptor, "r+b", buffering=0)


def remove_taken(file: IO[bytes], path: Path) -> None:
    """Removes the file of a lock that this process holds, and lets the lock go."""
    if WINDOWS:
        file.close()
        # somebody else has opened it since: it is theirs to remove
        with suppress(PermissionError):
            path.unlink(missing_ok=True)
        return
    # removed while held: who waits for it sees that its file is gone, and makes a new one
    path.unlink(missing_ok=True)
    file.close()


def remove_unless_taken(path: Path, file: IO[bytes]) -> None:
    """Removes an open file unless another process holds its lock; closes it.

    Raises:
        OSError: It cannot be removed, or the file system has no locks.
    """
    if WINDOWS:
        file.close()
        # which fails while anybody has it open
        path.unlink()
        return
    with file:
        if take(file):
            path.unlink()


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Waits until no other process has this folder locked, and locks it inside the block.

    Raises:
        OSError: The file system has no locks, or the folder cannot be opened.
    """
    if WINDOWS:
        file = open_own(folder / FOLDER_LOCK)
        try:
            take(file, wait=True)
            yield
        finally:
            remove_taken(file, folder / FOLDER_LOCK)
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        take_descriptor(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def replace(temporary: Path, path: Path) -> None:
    """Puts a file in the place of another.

    Windows refuses while somebody reads the old one, which is tried again for a while.

    Raises:
        OSError: It cannot be replaced.
    """
    for _ in range(REPLACE_TRIES if WINDOWS else 0):
        try:
            os.replace(temporary, path)
            return
        except PermissionError:
            time.sleep(REPLACE_PAUSE)
    os.replace(temporary, path)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk; Windows opens no folder for that."""
    if WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
