"""The cache: same key, same arrays, made once; a damaged entry is made again."""

import os
from pathlib import Path

import numpy as np
import pytest

from noveltylab.data.cache import cache_folder, cached, code_key, fingerprint
from noveltylab.results.files import open_atomic


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
