"""Locks on every system: here for real, and as Windows has them, with a stand-in for its kernel."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import pytest

from noveltylab.results import locks
from noveltylab.results.archive import Row, read_archive, write_rows
from noveltylab.results.files import open_atomic, remove_leftovers, write_atomic
from noveltylab.results.schema import folder_name
from noveltylab.run.lock import Busy, holder, lock_path, locked


class Windows:
    """What Windows does otherwise: locks by handle, and no open file is removed or replaced."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        #: file -> the descriptor that holds its lock
        self.holders: dict[tuple[int, int], int] = {}
        self.refused = 0
        unlink, replace, open_file = Path.unlink, os.replace, os.open

        def refuse_open(path: Path) -> None:
            if self.is_open(path):
                self.refused += 1
                raise PermissionError(13, "is being used by another process", str(path))

        def windows_unlink(path: Path, missing_ok: bool = False) -> None:
            refuse_open(path)
            unlink(path, missing_ok)

        def windows_replace(old: Path, new: Path) -> None:
            refuse_open(Path(old))
            refuse_open(Path(new))
            replace(old, new)

        def windows_open(path: Any, *arguments: Any, **options: Any) -> int:
            if os.path.isdir(path):
                raise PermissionError(13, "Permission denied", str(path))
            return open_file(path, *arguments, **options)

        patch.setattr(locks, "WINDOWS", True)
        patch.setattr(locks, "fcntl", None)
        patch.setattr("filelock.lock_descriptor", self.lock)
        patch.setattr("filelock.unlock_descriptor", self.unlock)
        patch.setattr(Path, "unlink", windows_unlink)
        patch.setattr(os, "replace", windows_replace)
        patch.setattr(os, "open", windows_open)

    @staticmethod
    def key(descriptor: int) -> tuple[int, int]:
        status = os.fstat(descriptor)
        return status.st_dev, status.st_ino

    def descriptors(self, path: Path) -> list[int]:
        """The descriptors of this process that have the file open."""
        try:
            status = path.lstat()
        except FileNotFoundError:
            return []
        found = []
        for name in os.listdir("/dev/fd"):
            try:
                if self.key(int(name)) == (status.st_dev, status.st_ino):
                    found.append(int(name))
            except OSError:  # the descriptor of the listing itself
                pass
        return found

    def is_open(self, path: Path) -> bool:
        return bool(self.descriptors(path))

    def lock(self, descriptor: int, *, blocking: bool = True, poll_interval: float = 0.05) -> bool:
        key = self.key(descriptor)
        held_by = self.holders.get(key)
        if held_by is not None and self._holds(held_by, key) and held_by != descriptor:
            return False
        self.holders[key] = descriptor
        return True

    def unlock(self, descriptor: int) -> None:
        self.holders.pop(self.key(descriptor), None)

    def _holds(self, descriptor: int, key: tuple[int, int]) -> bool:
        """Whether the descriptor is still open on the file: closing it ends its lock."""
        try:
            return self.key(descriptor) == key
        except OSError:
            return False


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Windows:
    if not os.path.isdir("/dev/fd"):
        pytest.skip("no list of open files here")
    return Windows(monkeypatch)


@pytest.fixture(params=["here", "windows"])
def system(request: pytest.FixtureRequest) -> str:
    """Each test with it runs twice: on this system, and on the stand-in for Windows."""
    if request.param == "windows":
        request.getfixturevalue("windows")
    return str(request.param)


@pytest.mark.usefixtures("system")
def test_a_run_is_held_once_asked_for_without_taking_and_leaves_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "p1" / "seed0"
    with locked(folder):
        owner = holder(folder)
        assert owner is not None and owner["pid"] == os.getpid()
        assert holder(folder) == owner
        with pytest.raises(Busy, match=f"is being run by process {os.getpid()} on"), locked(folder):
            pass
        # what others may read begins behind the byte that Windows locks
        content = lock_path(folder).read_bytes()
        assert json.loads(content[locks.OWN_BYTES :]) == owner
        folder.mkdir()
    assert holder(folder) is None
    assert list(folder.parent.iterdir()) == [folder]
    with locked(folder):
        assert holder(folder) is not None
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.usefixtures("system")
def test_a_lock_that_nobody_holds_is_asked_for_and_stays_free(tmp_path: Path) -> None:
    folder = tmp_path / "seed0"
    lock_path(folder).write_bytes(b" left by a killed process")
    assert holder(folder) is None
    assert holder(folder) is None
    with locked(folder):
        pass
    assert list(tmp_path.iterdir()) == []


def test_many_may_ask_at_once(tmp_path: Path) -> None:
    """Who asks takes nothing from others who ask."""
    fcntl = pytest.importorskip("fcntl")
    folder = tmp_path / "seed0"
    lock_path(folder).write_bytes(b" left by a killed process")
    with open(lock_path(folder), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert holder(folder) is None


@pytest.mark.usefixtures("system")
def test_a_link_is_no_lock(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    lock_path(tmp_path / "seed0").symlink_to(mine)
    with pytest.raises(OSError, match="links|regular"):
        locks.open_own(lock_path(tmp_path / "seed0"))
    assert mine.read_text() == "mine"


@pytest.mark.usefixtures("system")
def test_leftovers_go_and_files_that_are_being_written_stay(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.0.tmp").write_text("left by a killed process")
    with open_atomic(tmp_path / "b.txt") as file:
        file.write(b"half")
        file.flush()
        remove_leftovers(tmp_path)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert len(names) == 1 and names[0].startswith(".b.txt.")
        file.write(b" and half")
    assert (tmp_path / "b.txt").read_text() == "half and half"
    assert list(tmp_path.iterdir()) == [tmp_path / "b.txt"]


@pytest.mark.usefixtures("system")
def test_archives_are_written_by_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    rows = [Row(f"p1/pca/digits/inlier{number}/seed0", {"n": number}) for number in range(4)]
    for row in rows:
        write_rows(path, [row])
    assert len(read_archive(path).lines) == 4
    assert list(tmp_path.iterdir()) == [path]


LOCK_FOLDER = """
import sys, time
from pathlib import Path
from noveltylab.results.locks import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_locked_between_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOCK_FOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "held\n"
        moments = []

        def wait() -> None:
            with locks.locked_folder(tmp_path):
                moments.append(time.monotonic())

        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive() and not moments
        # even a killed process lets it go
        process.kill()
        waiting.join(10)
        assert moments


def test_windows_replaces_a_file_as_soon_as_nobody_reads_it(
    windows: Windows, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    write_atomic(path, "old")
    reader: IO[bytes] = open(path, "rb")  # noqa: SIM115  # a timer closes it
    closing = threading.Timer(0.2, reader.close)
    closing.start()
    write_atomic(path, "new")
    closing.join()
    assert windows.refused and path.read_text() == "new"
    # and gives up in the end, with the old file as it was and nothing beside it
    with pytest.MonkeyPatch.context() as patch, open(path, "rb"):
        patch.setattr(locks, "REPLACE_PAUSE", 0.001)
        with pytest.raises(PermissionError):
            write_atomic(path, "newer")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_windows_leaves_a_lock_that_somebody_else_opened_meanwhile(
    windows: Windows, tmp_path: Path
) -> None:
    path = tmp_path / ".seed0.lock"
    file = locks.open_own(path)
    assert locks.take(file)
    with locks.open_own(path) as other:
        assert not locks.take(other)
        locks.remove_taken(file, path)
        assert path.exists() and windows.refused == 1
        assert locks.take(other)


NAMES = {
    "bottle": "bottle",
    "a:b": "a%3ab",
    'x<y>"|?*': "x%3cy%3e%22%7c%3f%2a",
    "ends.": "ends%2e",
    "50%": "50%25",
    "aux": "aux%",
    "COM1.old": "COM1.old%",
    "Größe 零件": "Größe 零件",
    "con sole": "con sole",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_becomes_a_folder_on_windows_too(name: str) -> None:
    assert folder_name(name, windows=True) == NAMES[name]
    assert folder_name(name, windows=False) == name
    assert len({folder_name(other, windows=True) for other in NAMES}) == len(NAMES)
