"""What the folders say: who holds a run, dead or alive, and how it failed."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from noveltylab.errors import UserError
from noveltylab.run.folder import previous
from noveltylab.run.lock import Busy, holder, lock_path, locked

HOLD = """
import sys
from pathlib import Path
from noveltylab.run.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

#: Takes the lock again and again; whoever has it must be the only one who can make the marker.
CROWD = """
import sys, time
from pathlib import Path
from noveltylab.run.lock import Busy, locked
folder, marker, taken = Path(sys.argv[1]), Path(sys.argv[2]), 0
while taken < 20:
    try:
        with locked(folder):
            marker.touch(exist_ok=False)
            time.sleep(0.001)
            marker.unlink()
            taken += 1
    except Busy:
        pass
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs the run of `folder`."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        if process.poll() is None:
            process.communicate("")


def test_a_held_run_is_busy_and_says_by_whom(tmp_path: Path) -> None:
    folder = tmp_path / "p1" / "seed0"
    with held_by_another(folder) as process:
        owner = holder(folder)
        assert owner is not None
        assert (owner["pid"], owner["host"]) == (process.pid, socket.gethostname())
        with (
            pytest.raises(
                Busy, match=f"{folder} is being run by process {process.pid} on .* since 20"
            ),
            locked(folder),
        ):
            pass
        assert holder(folder) == owner
    assert holder(folder) is None
    with locked(folder):
        assert holder(folder) == json.loads(lock_path(folder).read_text())


@pytest.mark.posix
def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "seed0"
    with held_by_another(folder) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lock_path(folder).exists()
        assert holder(folder) is None
        with locked(folder):
            assert holder(folder) is not None
    assert list(tmp_path.iterdir()) == []


def test_only_one_of_many_holds_it(tmp_path: Path) -> None:
    """Four processes take and drop one lock, with its folder made and removed each time."""
    command = [
        sys.executable,
        "-c",
        CROWD,
        str(tmp_path / "made" / "seed0"),
        str(tmp_path / "marker"),
    ]
    crowd = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(process.communicate()[1], process.returncode) for process in crowd] == [("", 0)] * 4
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_refused_run_leaves_no_folder_and_a_begun_one_stays(tmp_path: Path) -> None:
    folder = tmp_path / "p1" / "pca" / "seed0"
    with pytest.raises(UserError, match="bad"), locked(folder):
        raise UserError("bad")
    assert list(tmp_path.iterdir()) == []
    with locked(folder):
        folder.mkdir()
    assert list(folder.parent.iterdir()) == [folder]


def test_without_locks_it_runs_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    for seed in (0, 1):
        with locked(tmp_path / f"seed{seed}"):
            assert holder(tmp_path / f"seed{seed}") is None
    assert capfd.readouterr().err.count("no locks") == 1


def test_a_second_run_of_the_same_folder_exits_2_and_touches_nothing(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "outputs" / "p1" / "pca" / "digits" / "inlier3" / "seed0"
    with held_by_another(folder) as process:
        second_run = command("method=pca", "inlier=3", f"output={tmp_path / 'outputs'}")
        assert second_run.returncode == 2
        assert f"is being run by process {process.pid}" in second_run.stderr
        assert second_run.stderr.count("\n") == 1
        assert not folder.exists()


def test_a_run_completed_while_it_waited_for_the_lock_is_not_run_again(
    run_here: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_here("method=pca")
    real, calls = previous, []

    def late(*arguments: Any) -> Any:
        calls.append(arguments)
        return None if len(calls) == 1 else real(*arguments)

    monkeypatch.setattr("noveltylab.run.pipeline.previous", late)
    assert run_here("method=pca") == json.loads(json.dumps(first))
    assert len(calls) == 2


def test_a_run_made_before_an_option_existed_is_complete(
    run_here: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_here("method=pca")
    (path,) = (tmp_path / "outputs").rglob("result.json")
    result = json.loads(path.read_text())
    del result["config"]["trainer"]["cuda_graph"]
    path.write_text(json.dumps(result))
    assert run_here("method=pca")["scores"] == json.loads(json.dumps(first["scores"]))
    assert "complete already" in capsys.readouterr().out
    with pytest.raises(UserError, match="trainer.cuda_graph: off there, auto here"):
        run_here("method=pca", "trainer.cuda_graph=auto")


@pytest.mark.parametrize(
    "content", ["5", "[]", '"x"', "{}", "null", '{"pid": 1}', "not JSON", "[" * 5000, "x" * 10000]
)
def test_whatever_a_lock_file_holds_a_held_one_is_busy_and_a_free_one_is_taken(
    tmp_path: Path, content: str
) -> None:
    folder = tmp_path / "seed0"
    lock_path(folder).write_text(content)
    assert holder(folder) is None
    with locked(folder):
        lock_path(folder).write_text(content)
        assert holder(folder) == {}
        with pytest.raises(Busy, match="is being run by another process"), locked(folder):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.posix
def test_what_is_no_file_is_no_lock_and_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    for name, make in {
        "link": lambda path: path.symlink_to(mine),
        "folder": lambda path: path.mkdir(),
        "pipe": lambda path: os.mkfifo(path),
    }.items():
        folder = tmp_path / name / "seed0"
        folder.parent.mkdir()
        make(lock_path(folder))
        with pytest.raises(UserError, match="cannot create"), locked(folder):
            pass
        assert holder(folder) is None or name == "link"
    assert mine.read_text() == "mine"
