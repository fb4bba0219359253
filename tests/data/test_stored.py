"""Archives by anybody: nothing leaves the folder that it is unpacked into, nothing grows without
bound.
"""

import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from noveltylab.data import stored
from noveltylab.data.stored import Stored, tar_files, unpack, zip_members
from noveltylab.errors import UserError

Entry = tuple[str, bytes]


def write_tar(
    path: Path, *entries: Entry, change: Callable[[tarfile.TarInfo], None] | None = None
) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            if change:
                change(entry)
            archive.addfile(entry, io.BytesIO(content))
    return path


def any_name(name: str) -> bool:
    return True


@pytest.mark.parametrize(
    "name",
    ["../out", "/tmp/out", "a/../../out", "a//b", ".hidden/a", "a\\b", "__MACOSX/a", "a\nb", "c:a"],
)
def test_names_that_lead_elsewhere_are_never_written(tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / "a.tar.gz", (name, b"bad"), ("set/good", b"good"))
    folder = unpack(path, any_name, 100, 1000)
    assert [
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()
    ] == ["set/good"]
    packed = tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name, b"bad")
        archive.writestr("set/good", b"good")
    assert list(zip_members(packed)) == ["set/good"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    def change(entry: tarfile.TarInfo) -> None:
        entry.type, entry.linkname, entry.size = kind, "/etc/passwd", 0

    path = write_tar(tmp_path / "a.tar.gz", ("set/a", b""), change=change)
    with pytest.raises(UserError, match="set/a is a link, stored twice or too large"):
        unpack(path, any_name, 100, 1000)
    assert not list((tmp_path / "cache").rglob("*a*/*"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("set/a", b"x" * 101)], "stored twice or too large"),
        ([("set/a", b"1"), ("set/a", b"2")], "stored twice or too large"),
        ([(f"set/{number}", b"x" * 100) for number in range(11)], "more than the 1,000 bytes"),
    ],
)
def test_what_is_too_large_is_refused_and_leaves_nothing(
    tmp_path: Path, entries: list[Entry], message: str
) -> None:
    path = write_tar(tmp_path / "a.tar.gz", *entries)
    with pytest.raises(UserError, match=message):
        unpack(path, any_name, 100, 1000)
    assert os.listdir(tmp_path / "cache" / "unpacked") == []


def test_a_header_that_asks_for_gigabytes_is_refused(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, 8 << 30
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(entry.tobuf() + bytes(1 << 20)))
    with pytest.raises(UserError, match="truncated or corrupt"):
        list(tar_files(path, any_name, 100, 1000))


def test_it_appears_whole_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar.gz", ("set/a", b"1"), ("set/b", b"2"))
    torn = tmp_path / "torn.tar.gz"
    torn.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="truncated or corrupt"):
        unpack(torn, any_name, 100, 1000)
    folder = unpack(path, any_name, 100, 1000)
    assert (folder / "set" / "b").read_bytes() == b"2"
    monkeypatch.setattr(stored, "tar_files", None)
    assert unpack(path, any_name, 100, 1000) == folder
    assert os.listdir(folder.parent) == [folder.name]


def test_a_cache_that_cannot_be_written_is_said_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "a.tar.gz", ("set/a", b"1"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NOVELTYLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        UserError,
        match=r"cannot be written.*NOVELTYLAB_CACHE.*unpack it yourself: tar xzf a\.tar\.gz",
    ):
        unpack(path, any_name, 100, 1000)


def test_a_member_is_read_up_to_its_limit_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("set/bomb.png", bytes(10_000_000))
        archive.writestr("set/a.png", b"as it was")
        link = zipfile.ZipInfo("set/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    members = zip_members(path)
    assert sorted(members) == ["set/a.png", "set/bomb.png"]
    assert members["set/a.png"].read(100) == b"as it was"
    with pytest.raises(
        UserError, match=r"a\.zip/set/bomb\.png is too large: expected at most 100 bytes"
    ):
        members["set/bomb.png"].read(100)
    with pytest.raises(UserError, match="Cannot read .*nothing.png"):
        Stored(path, "set/nothing.png").read(100)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="is no whole zip archive"):
        zip_members(path)
