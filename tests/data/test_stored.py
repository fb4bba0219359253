"""Archives by anybody, and the cache: nothing is written elsewhere, nothing grows without bound."""

import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from noveltylab.data import stored
from noveltylab.data.cache import cache_folder, cached, code_key, fingerprint
from noveltylab.data.stored import Stored, tar_files, unpack, zip_members
from noveltylab.errors import UserError
from noveltylab.results.files import open_atomic

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


class Maker:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"x": np.arange(5, dtype=np.uint8), "y": np.array(3.5)}


def test_made_once_for_each_key() -> None:
    make = Maker()
    for key, calls in (({"a": 1}, 1), ({"a": 1}, 1), ({"a": 2}, 2), ({"a": 1}, 2)):
        entry = cached("name", key, make)
        assert make.calls == calls
        np.testing.assert_array_equal(entry["x"], np.arange(5))
        assert entry["x"].dtype == np.uint8
        assert entry["y"] == 3.5


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 torn", None])
def test_damaged_entry_is_made_again(damage: bytes | None) -> None:
    make = Maker()
    cached("name", {}, make)
    (entry,) = cache_folder().glob("name-*.npz")
    content = entry.read_bytes()
    entry.write_bytes(content[: len(content) // 2] if damage is None else damage)
    cached("name", {}, make)
    assert make.calls == 2
    cached("name", {}, make)
    assert make.calls == 2


@pytest.mark.parametrize("change", ["value", "type", "shape", "name", "more", "other key"])
def test_a_whole_entry_of_other_contents_is_made_again(change: str) -> None:
    """As another version, a copy under another name or a bad disk would leave it."""
    make = Maker()
    cached("name", {}, make)
    (entry,) = cache_folder().glob("name-*.npz")
    with np.load(entry) as file:
        arrays = dict(file)
    if change == "other key":
        cached("name", {"other": 1}, make)
        (second_entry,) = set(cache_folder().glob("name-*.npz")) - {entry}
        entry.write_bytes(second_entry.read_bytes())
    else:
        x = arrays.pop("x")
        arrays |= {
            "value": {"x": x + 1},
            "type": {"x": x.astype(np.int8)},
            "shape": {"x": x[None]},
            "name": {"z": x},
            "more": {"x": x, "z": x},
        }[change]
        np.savez(entry, **arrays)
    calls = make.calls
    np.testing.assert_array_equal(cached("name", {}, make)["x"], np.arange(5))
    assert make.calls == calls + 1


def test_temporary_files_of_the_killed_go_and_those_of_the_living_stay() -> None:
    cached("name", {}, Maker())
    (cache_folder() / ".floors-1.npz.abcd.tmp").write_bytes(b"torn")
    with open_atomic(cache_folder() / "other.npz") as file:
        (living,) = set(cache_folder().glob(".*.tmp")) - {cache_folder() / ".floors-1.npz.abcd.tmp"}
        cached("name", {}, Maker())
        assert list(cache_folder().glob(".*.tmp")) == [living]
        file.write(b"whole")
    assert (cache_folder() / "other.npz").read_bytes() == b"whole"


def test_the_key_of_code_sees_its_source_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_key(("data.ucsd",), ("numpy", "no-such-package"))
    assert before["no-such-package"] == "none"
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#")
    assert code_key(("data.ucsd",), ("numpy",))["data.ucsd"] != before["data.ucsd"]


def test_a_pickle_in_the_cache_is_never_loaded() -> None:
    make = Maker()
    cached("name", {}, make)
    (entry,) = cache_folder().glob("name-*.npz")
    np.savez(entry, x=np.array([object()], dtype=object))
    assert cached("name", {}, make)["x"].dtype == np.uint8
    assert make.calls == 2


def test_unwritable_folder_is_said_and_nothing_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog
) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NOVELTYLAB_CACHE", str(tmp_path / "file" / "below"))
    assert cached("name", {}, Maker())["y"] == 3.5


def test_fingerprint_sees_names_sizes_and_times(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_bytes(b"1")
    seen = {fingerprint(files, tmp_path), fingerprint(files[:1], tmp_path)}
    files[0].write_bytes(b"12")
    seen.add(fingerprint(files, tmp_path))
    os.utime(files[0], (1, 1))
    seen.add(fingerprint(files, tmp_path))
    files[0].unlink()
    files[0].write_bytes(b"21")
    os.utime(files[0], (1, 1))  # as `cp -p` leaves another file of the same size
    seen.add(fingerprint(files, tmp_path))
    assert len(seen) == 5
    assert fingerprint(files, tmp_path) in seen
