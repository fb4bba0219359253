"""Files that somebody else may have written: regular ones of a bounded size, or a clear error."""

import os
from pathlib import Path

import pytest

from noveltylab.files import open_regular, read_bytes, read_json, read_text, read_yaml, sha256_file

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


def test_regular_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text('{"größe": [1, 2]}', encoding="utf-8")
    assert read_json(path) == read_yaml(path) == {"größe": [1, 2]}
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_text(link) == read_text(path)
    assert sha256_file(link) == sha256_file(path)


@pytest.mark.parametrize("make", ["pipe", "folder", "device"])
def test_nothing_but_regular_files_is_opened(tmp_path: Path, make: str) -> None:
    path = tmp_path / "odd"
    if make == "pipe":
        os.mkfifo(path)
    elif make == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(path)
    with pytest.raises(OSError, match="not a regular file"):
        sha256_file(path)


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * 11)
    assert len(read_bytes(path, limit=11)) == 11
    with pytest.raises(OSError, match="11 bytes, more than the 10"):
        read_bytes(path, limit=10)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "alias"),
        ("[" * 100_000, "nest"),
        ("[" * 60 + "]" * 60, "nested too deeply"),
        ("x: !!python/object:os.system {}", "tag"),
        ("a: [", "expected"),
        ("[1]: 2", "unhashable|key"),
    ],
)
def test_yaml_of_plain_values_alone_is_read(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_yaml(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 60 + "]" * 60, "{", ""])
def test_json_that_is_none_is_a_value_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ValueError):  # noqa: PT011  # the words are those of the json module
        read_json(path)


def test_bytes_that_are_no_text_are_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="utf-8"):
        read_json(path)
