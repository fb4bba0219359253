"""Files are whole or absent; a result says what it was made with."""

import hashlib
import json
import os
import stat
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from noveltylab.errors import UserError
from noveltylab.results.files import read_json, sha256_file, write_atomic
from noveltylab.results.provenance import commit, provenance
from noveltylab.results.record import read_result, write_result


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "scores.csv"
    write_atomic(path, "old")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_syncs_the_file_before_it_takes_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(handle: int) -> None:
        calls.append("fsync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "fsync file")
        fsync(handle)

    def record_replace(*names: Any) -> None:
        calls.append("replace")
        replace(*names)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    write_atomic(tmp_path / "new folder" / "file", b"\x00\xff")
    assert calls == ["fsync file", "replace", "fsync folder"]
    assert (tmp_path / "new folder" / "file").read_bytes() == b"\x00\xff"


def test_result_round_trip_keeps_order_and_every_bit(tmp_path: Path) -> None:
    result = {"z": 0.1 + 0.2, "a": ["é", None, True, 1e-300], "m": {}}
    write_result(tmp_path, result)
    result_read = read_json(tmp_path / "result.json")
    assert result_read == result
    assert list(result_read) == ["z", "a", "m"]


@pytest.mark.parametrize(
    ("value", "error"),
    [(float("nan"), ValueError), (float("inf"), ValueError), (Path(), TypeError)],
)
def test_what_json_cannot_hold_is_refused_before_writing(
    tmp_path: Path, value: Any, error: type[Exception]
) -> None:
    write_result(tmp_path, {"auroc": 0.5})
    with pytest.raises(error):
        write_result(tmp_path, {"auroc": value})
    assert read_json(tmp_path / "result.json") == {"auroc": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b'{"a": 1', "damaged"),
        (b"[1]", "holds a list"),
        (b"\xff\xfe\xfd", "damaged"),
        (b"", "damaged"),
    ],
)
def test_unreadable_result_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(UserError, match=f"result.json: .*{message}.* (R|r)un (it )?again"):
        read_result(tmp_path)


def test_sha256_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_provenance_is_complete_and_in_utc() -> None:
    started = datetime(2024, 2, 29, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    facts = provenance(started, gpu="a GPU")
    assert facts["time"] == "2024-02-28T23:00:00+00:00"
    assert set(facts["versions"]) == {
        "python", "noveltylab", "torch", "torchvision", "lightning", "torchmetrics", "numpy"
    }  # fmt: skip
    assert facts["versions"]["torch"]
    assert facts["hardware"]["gpu"] == "a GPU"
    assert (
        facts["hardware"]["cores"] >= 1
        and facts["hardware"]["memory_gib"] > 0
        and facts["hardware"]["cpu"]
    )
    json.dumps(facts, allow_nan=False)


def test_commit_is_of_the_checkout_that_tracks_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_now = commit.__wrapped__  # what is kept for the process left out

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    package, installed = tmp_path / "package", tmp_path / "venv" / "package"
    for folder in (package, installed):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    git("init", "-q")
    (tmp_path / ".gitignore").write_text("venv\n")
    assert commit_now(package) is None
    git("add", ".")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD").strip()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert commit_now(package) == head
    assert commit_now(installed) is None
    (package / "__init__.py").write_text("changed")
    assert commit_now(package) == f"{head}-dirty"
