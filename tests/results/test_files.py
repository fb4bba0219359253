"""Files that somebody else may have written: pipes, devices, links, bombs, and sizes."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from noveltylab.results.files import (
    open_regular,
    read_bytes,
    read_json,
    read_tail,
    read_text,
    read_yaml,
    sha256_file,
)


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """A test that waits for a pipe ends the whole run instead of hanging it."""
    alarm = threading.Timer(20, os._exit, [70])
    alarm.start()
    yield
    alarm.cancel()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


ODD: dict[str, Callable[[Path], object]] = {
    "pipe": pipe,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "folder": Path.mkdir,
    "loop of links": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "huge": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 42),
    "socket": bound_socket,
}
READERS = (open_regular, read_bytes, read_text, read_json, read_yaml, sha256_file)


@pytest.mark.posix
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    ODD[kind](path := Path("odd"))
    for read in READERS:
        with pytest.raises(OSError):  # noqa: PT011  # many words, each in one line
            read(path)
    with pytest.raises(OSError):  # noqa: PT011  # many words, each in one line
        read_tail(path, 10)


@pytest.mark.posix
def test_a_file_of_the_kernel_is_not_waited_for() -> None:
    assert read_bytes("/proc/self/status") == b""  # it says that it is empty, as /proc/kmsg does


def test_a_link_out_of_the_folder_is_refused_and_one_within_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "own").write_text("own")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "in").symlink_to("own")
    (tmp_path / "link").symlink_to(folder)
    assert read_text(tmp_path / "link" / "in", within=folder) == "own"
    for path in (folder / "out", folder / ".." / "secret"):
        with pytest.raises(OSError, match="out of its folder"):
            read_text(path, within=folder)


def test_limits_count_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert read_bytes(path, limit=10) == b"0123456789"
    assert read_tail(path, 3) == b"789" and read_tail(path, 30) == b"0123456789"
    for read in (read_bytes, sha256_file):
        with pytest.raises(OSError, match="10 bytes, more than the 9"):
            read(path, limit=9)


JSON = {
    "deep list": "[" * 100_000,
    "deep mapping": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "rather deep": "[" * 60 + "]" * 60,
    "not a number": '{"a": NaN}',
    "infinite": '{"a": 1e999}',
    "infinity": '{"a": -Infinity}',
    "huge whole number": '{"a": 9999999999999999999999}',
    "half a surrogate": '{"a": "\\ud800"}',
    "half a surrogate in a key": '{"\\udcff": 1}',
    "cut short": '{"a": 1',
    "empty": "",
    "long number": "1" * 10_000,
}
LAUGHS = 'a: &a ["lol","lol"]\n' + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "bomb of references": LAUGHS,
    "deep list": "[" * 100_000,
    "deep block": "".join(" " * level + "a:\n" for level in range(2_000)),
    "tag": "a: !!python/object/apply:os.system [id]\n",
    "own tag": "a: !x 1\n",
    "not a number": "a: .nan\n",
    "date": "a: 2024-01-01\n",
    "mapping by number": "1: 2\n",
    "mapping by list": "? [1]\n: 2\n",
    "no YAML": "a: [\n",
    "binary": "a: \x00\n",
}


@pytest.mark.parametrize("kind", JSON)
def test_json_that_no_run_writes_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text(JSON[kind])
    with pytest.raises(ValueError):  # noqa: PT011  # many words, each in one line
        read_json(tmp_path / "file")


@pytest.mark.parametrize("kind", YAML)
def test_yaml_that_no_run_writes_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text(YAML[kind])
    with pytest.raises(ValueError):  # noqa: PT011  # many words, each in one line
        read_yaml(tmp_path / "file")


@pytest.mark.parametrize("read", [read_text, read_json, read_yaml])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    (tmp_path / "file").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ValueError):  # noqa: PT011  # many words, each in one line
        read(tmp_path / "file")


def test_what_a_run_writes_is_read_as_it_was(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    config = {
        "lr": 1e-5,
        "name": "é",
        "text": "1e-3",
        "day": "2024-01-01",
        "on": "yes",
        "list": [1, None, True, -0.0],
    }
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert read_yaml(path) == config
    path.write_text(json.dumps(config))
    assert read_json(path) == config
