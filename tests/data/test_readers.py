"""Readers against tiny files in the true formats, whole and damaged, and against real files."""

import gzip
import hashlib
import os
import pickle
import shutil
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from torchvision import datasets

from noveltylab.data import cifar10, mnist
from noveltylab.data.load import load
from noveltylab.data.samples import Samples
from noveltylab.data.stored import resolve_root
from noveltylab.errors import UserError
from tests.formats import blobs, idx_bytes, python2_batch, write_cifar10, write_mnist

REAL = pytest.mark.skipif(
    "NOVELTYLAB_DATA" not in os.environ, reason="NOVELTYLAB_DATA names no folder with real data"
)


def read(name: str, root: Path, verify: bool = False) -> Samples:
    return load(name, root, verify, False)


def expect(name: str, root: Path, *parts: str, verify: bool = False) -> None:
    """Reading raises one UserError with all the parts in its message."""
    with pytest.raises(UserError) as caught:
        read(name, root, verify)
    for part in parts:
        assert part in str(caught.value)


@pytest.fixture
def unofficial(tmp_path: Path) -> Path:
    write_mnist(tmp_path)
    write_mnist(tmp_path, "FashionMNIST")
    write_cifar10(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "shape"), [("mnist", (1, 28, 28)), ("fmnist", (1, 28, 28)), ("cifar10", (3, 32, 32))]
)
def test_contents(unofficial: Path, name: str, shape: tuple[int, int, int]) -> None:
    samples = read(name, unofficial)
    train, labels = blobs(400, shape[0], shape[1], 0)
    order = (
        np.concatenate([np.arange(i, 400, 5) for i in range(5)])
        if name == "cifar10"
        else np.arange(400)
    )
    assert samples.images.shape == (600, *shape)
    assert samples.images.is_contiguous()
    assert np.array_equal(samples.images[:400].numpy(), train[order])
    assert np.array_equal(samples.images[400:].numpy(), blobs(200, shape[0], shape[1], 1)[0])
    assert np.array_equal(samples.labels[:400], labels[order])
    assert samples.labels.dtype == np.int64
    assert samples.official_test is not None
    assert np.array_equal(np.flatnonzero(samples.official_test), np.arange(400, 600))
    assert samples.ids[[0, 399, 400, 599]].tolist() == [
        "train/00000",
        "train/00399",
        "test/00000",
        "test/00199",
    ]
    assert len(set(samples.ids)) == 600
    assert samples.verified is False


def test_digits(tmp_path: Path) -> None:
    samples = read("digits", tmp_path / "nowhere", verify=True)
    assert samples.images.shape == (1797, 1, 8, 8)
    assert samples.images.min() == 0
    assert samples.images.max() == 255
    assert samples.ids[17] == "digits/0017"
    assert samples.official_test is None
    assert samples.verified
    assert set(samples.labels) == set(range(10))


@pytest.mark.posix
@pytest.mark.parametrize(("compressed", "plain"), [(True, False), (False, True)])
def test_idx_needs_one_form_only_and_writes_nothing(
    tmp_path: Path, compressed: bool, plain: bool
) -> None:
    folder = write_mnist(tmp_path, compressed=compressed, plain=plain)
    before = sorted(folder.iterdir())
    folder.chmod(0o555)
    assert read("mnist", tmp_path).images.shape == (600, 1, 28, 28)
    assert sorted(folder.iterdir()) == before
    assert len(before) == 4
    folder.chmod(0o755)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_verify_refuses_another_checksum_and_says_how_to_accept(
    tmp_path: Path, name: str, plain: bool
) -> None:
    write_mnist(tmp_path, plain=plain)
    write_cifar10(tmp_path)
    kind = "md5" if name == "cifar10" or not plain else "sha256"
    file = (
        "data_batch_1"
        if name == "cifar10"
        else "train-images-idx3-ubyte" + ("" if plain else ".gz")
    )
    expect(name, tmp_path, str(file), f"expected {kind}", "found", "data.verify=false", verify=True)


def test_verify_demands_official_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_mnist(tmp_path, compressed=False)
    monkeypatch.setattr(mnist, "SHA256", {file.name: _sha256(file) for file in folder.iterdir()})
    expect("mnist", tmp_path, "expected 60000 images, found 400", verify=True)
    monkeypatch.setattr(mnist, "_COUNTS", {"train": 400, "t10k": 200})
    assert read("mnist", tmp_path, verify=True).verified


def test_verified_cifar10_passes_through_the_same_unpickler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_cifar10(tmp_path, 400, 80)
    monkeypatch.setattr(cifar10, "MD5", {name: _md5(folder / name) for name in cifar10.MD5})
    expect("cifar10", tmp_path, "expected 10000 labels and images, found 80", verify=True)
    monkeypatch.setattr(cifar10, "_COUNT", 80)
    assert read("cifar10", tmp_path, verify=True).verified


def test_the_files_of_cifar10_are_those_of_torchvision() -> None:
    """They stand in the reader as well, which finds the files without importing torchvision."""
    official = datasets.CIFAR10
    assert list(cifar10.MD5.items()) == [
        (name, md5) for name, md5 in [*official.train_list, *official.test_list]
    ]
    assert (official.base_folder, official.filename) == (cifar10.FOLDER, cifar10.ARCHIVE)
    assert official.tgz_md5 == cifar10.ARCHIVE_MD5


#: a header that announces 4 exabytes
BOMB = b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 2 + b"\0\0\0\x01"


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _flip_middle(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 50] = b"\xff" * 50
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "damage", "parts"),
    [
        ("train-images-idx3-ubyte", _truncate, ["announces 313616 bytes", "found 313516"]),
        (
            "train-images-idx3-ubyte",
            _empty,
            ["expected it to start with 00000803", "found nothing"],
        ),
        ("t10k-labels-idx1-ubyte", _truncate, ["announces 208 bytes", "found 108"]),
        (
            "t10k-labels-idx1-ubyte",
            lambda file: file.write_bytes(b"\0\0\x08\x01\0"),
            ["is truncated"],
        ),
        (
            "t10k-labels-idx1-ubyte",
            lambda file: file.write_bytes(b"\0\0\x08\x03" + bytes(204)),
            ["00000801", "00000803"],
        ),
        (
            "train-images-idx3-ubyte.gz",
            _truncate,
            ["truncated or corrupt", "not a whole gzip file"],
        ),
        ("train-images-idx3-ubyte.gz", _flip_middle, ["truncated or corrupt"]),
        ("train-images-idx3-ubyte.gz", _empty, ["found"]),
        (
            "train-images-idx3-ubyte.gz",
            lambda file: file.write_bytes(gzip.compress(BOMB)),
            ["announces 4611", "found"],
        ),
        (
            "train-images-idx3-ubyte",
            lambda file: file.write_bytes(BOMB),
            ["announces 4611", "found 16"],
        ),
        (
            "t10k-images-idx3-ubyte.gz",
            lambda file: file.write_bytes(b"<html>404</html>"),
            ["truncated or corrupt"],
        ),
        (
            "t10k-images-idx3-ubyte.gz",
            lambda file: file.write_bytes(gzip.compress(b"nonsense")),
            ["not an IDX file"],
        ),
    ],
)
def test_damaged_idx_is_named(
    tmp_path: Path, file: str, damage: Callable[[Path], None], parts: list[str]
) -> None:
    folder = write_mnist(tmp_path, compressed=file.endswith("gz"), plain=not file.endswith("gz"))
    damage(folder / file)
    expect("mnist", tmp_path, str(folder / file), *parts)


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("train-labels-idx1-ubyte", np.zeros(399, np.uint8), "400 images but 399 labels"),
        ("t10k-labels-idx1-ubyte", np.full(200, 10, np.uint8), "expected labels 0 to 9, found 10"),
        (
            "t10k-images-idx3-ubyte",
            np.zeros((200, 8, 9), np.uint8),
            "expected images of 28 x 28 pixels, found 8 x 9",
        ),
    ],
)
def test_inconsistent_idx_files_are_refused(
    tmp_path: Path, file: str, array: np.ndarray, message: str
) -> None:
    folder = write_mnist(tmp_path, compressed=False)
    (folder / file).write_bytes(idx_bytes(array))
    expect("mnist", tmp_path, str(folder), message)


def test_missing_files_name_all_places_and_the_remedy(
    unofficial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = unofficial / "MNIST" / "raw"
    for suffix in ("", ".gz"):
        (raw / f"t10k-labels-idx1-ubyte{suffix}").unlink()
    monkeypatch.setenv("NOVELTYLAB_DATA", "/elsewhere")
    message = f"t10k-labels-idx1-ubyte not found in {raw}. "
    words = (message, "NOVELTYLAB_DATA (/elsewhere)", "data.download=true", "data.verify=false")
    expect("mnist", unofficial, *words, verify=True)
    (unofficial / "cifar-10-batches-py" / "data_batch_3").unlink()
    expect(
        "cifar10",
        unofficial,
        "data_batch_3 not found",
        "Put cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        verify=True,
    )
    monkeypatch.delenv("NOVELTYLAB_DATA")
    expect(
        "fmnist",
        unofficial / "no",
        "(no such folder)",
        "NOVELTYLAB_DATA (not set)",
        str(Path("data").absolute()),
    )


def test_a_set_with_a_missing_file_is_read_only_unverified_and_counted(unofficial: Path) -> None:
    whole = read("cifar10", unofficial)
    (unofficial / "cifar-10-batches-py" / "data_batch_1").unlink()
    part = read("cifar10", unofficial)
    assert part.verified is False and part.missing == 10_000 and whole.missing == 0
    assert len(part.ids) < len(whole.ids) and part.ids[0] == "train/10000"
    for suffix in ("", ".gz"):
        (unofficial / "MNIST" / "raw" / f"t10k-labels-idx1-ubyte{suffix}").unlink(missing_ok=True)
    digits = read("mnist", unofficial)
    assert digits.verified is False and digits.missing == 10_000 and not digits.official_test.any()


@pytest.mark.parametrize("place", ["MNIST", "mnist", "mnist/raw", "raw", ""])
def test_idx_files_may_lie_anywhere_sensible(unofficial: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "other" / place).mkdir(parents=True, exist_ok=True)
    for path in (unofficial / "MNIST" / "raw").iterdir():
        shutil.copy(path, tmp_path / "other" / place)
    np.testing.assert_array_equal(
        read("mnist", tmp_path / "other").images, read("mnist", unofficial).images
    )
    samples = read("mnist", unofficial / "MNIST" / "raw")
    np.testing.assert_array_equal(samples.images, read("mnist", unofficial).images)


def test_one_set_is_not_taken_for_the_other(
    unofficial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = unofficial / "MNIST" / "raw"
    with mnist._opened(raw / mnist._TELLING) as (_, stream):
        digest = hashlib.sha256(stream.read()).hexdigest()
    monkeypatch.setitem(mnist._SETS, digest, ("MNIST", "data=mnist"))
    expect("fmnist", raw, "is of MNIST, not of FashionMNIST: use data=mnist")
    assert len(read("mnist", raw).ids)


def test_cifar10_s_archive_is_read_in_place_and_its_folder_may_be_the_root(
    unofficial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = read("cifar10", unofficial)
    np.testing.assert_array_equal(
        read("cifar10", unofficial / "cifar-10-batches-py").images, loose.images
    )
    root = tmp_path / "root"
    root.mkdir()
    path = root / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(unofficial / "cifar-10-batches-py", "cifar-10-batches-py")
    for place in (root, path):
        packed = read("cifar10", place)
        np.testing.assert_array_equal(packed.images, loose.images)
        assert packed.ids.tolist() == loose.ids.tolist() and packed.verified is False
    expect(
        "cifar10",
        root,
        "is not the official archive",
        "md5 c58f30108f718f92721af3b95e74349a",
        verify=True,
    )
    assert [file.name for file in root.iterdir()] == [path.name]
    path.write_bytes(path.read_bytes()[:-1000])
    expect("cifar10", root, str(path), "is truncated or corrupt")


@pytest.mark.parametrize("name", ["mnist", "fmnist", "cifar10"])
def test_failed_download_says_what_to_do_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError(socket.gaierror("no network"))

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(
        UserError, match=rf"Downloading .* failed .*no network.* Put .*gz.* into {tmp_path}"
    ):
        load(name, tmp_path / "a" / "b", True, True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="Downloading"):
        load(name, tmp_path / "a", True, True)
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_nothing_is_fetched_where_all_files_are_there(
    unofficial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("went to the network")

    monkeypatch.setattr(datasets.MNIST, "download", forbidden)
    monkeypatch.setattr(datasets.CIFAR10, "download", forbidden)
    for name in ("mnist", "cifar10"):
        assert len(load(name, unofficial, False, True).images) == 600


def test_unknown_dataset_is_corrected(tmp_path: Path) -> None:
    expect("cifar", tmp_path, "no dataset 'cifar'", "did you mean 'cifar10'?")
    expect("samples", tmp_path, "no dataset 'samples'")


def test_root_is_option_environment_or_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOVELTYLAB_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", "/home/somebody")
    assert resolve_root("/option") == Path("/option")
    assert resolve_root("~/data") == Path("/home/somebody/data")
    assert resolve_root(None) == tmp_path
    monkeypatch.setenv("NOVELTYLAB_DATA", "")
    assert resolve_root(None) == Path("data")


class Hostile:
    """Unpickling it runs a shell command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("verify", [True, False])
def test_hostile_pickle_is_refused_and_runs_nothing(
    tmp_path: Path, protocol: int, verify: bool
) -> None:
    marker = tmp_path / "executed"
    file = write_cifar10(tmp_path) / "data_batch_2"
    file.write_bytes(pickle.dumps({"data": Hostile(marker), "labels": []}, protocol))
    expect(
        "cifar10",
        tmp_path,
        *([] if verify else [str(file), "refused", f"{os.name}.system"]),
        verify=verify,
    )
    assert not marker.exists()
    pickle.loads(file.read_bytes())
    assert marker.exists(), "the attack itself has to work"


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "numpy load",
        "numpy.core.multiarray scalar",
        "_codecs decode",
        "copyreg _reconstructor",
    ],
)
def test_names_near_the_allowed_ones_are_refused(tmp_path: Path, name: str) -> None:
    file = write_cifar10(tmp_path) / "test_batch"
    file.write_bytes(b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n.")
    expect("cifar10", tmp_path, "refused", name.replace(" ", "."))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("keys", [str, str.encode])
def test_reencoded_copies_are_read(
    tmp_path: Path, protocol: int, order: str, keys: Callable[[str], object]
) -> None:
    folder = write_cifar10(tmp_path)
    data = blobs(80, 3, 32, 5)[0].reshape(80, -1)
    data = data if order == "C" else np.asfortranarray(data)
    batch = {keys("data"): data, keys("labels"): [3] * 80, keys("filenames"): ["x"] * 80}
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch, protocol))
    samples = read("cifar10", tmp_path)
    assert np.array_equal(samples.images[:80].numpy().reshape(80, -1), data)
    assert (samples.labels[:80] == 3).all()


GOOD = np.zeros((4, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (python2_batch("b", GOOD, [0, 1, 2, 3])[:-50], "truncated or corrupt"),
        (b"", "truncated or corrupt"),
        (b"<html>404</html>", "truncated or corrupt"),
        (python2_batch("b", GOOD, [0, 1, 2]), "expected 4 labels and images, found 3 and 4"),
        (python2_batch("b", GOOD, [0, 1, 2, 10]), "expected labels 0 to 9, found 10"),
        (
            python2_batch("b", GOOD[:, :1024], [0, 1, 2, 3]),
            r"expected data of shape \(n, 3072\), found \(4, 1024\)",
        ),
        (
            python2_batch("b", GOOD, [0, 1, 2, 3]).replace(b"U\x02u1", b"U\x02f4"),
            "expected an array of uint8.*type f4",
        ),
        (
            pickle.dumps({"data": GOOD.astype(object), "labels": [0] * 4}, 2),
            "expected an array of uint8",
        ),
        (pickle.dumps({"labels": [0] * 4}, 2), r"expected an array 'data'.*\['labels'\]"),
        (pickle.dumps({"data": GOOD, "labels": [True] * 4}, 2), "found True"),
        (pickle.dumps([1]), "expected a dict, found list"),
    ],
)
def test_damaged_cifar10_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = write_cifar10(tmp_path) / "data_batch_4"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"data_batch_4.*{message}"):
        read("cifar10", tmp_path)


def test_the_fixture_is_what_numpy_and_pickle_read(tmp_path: Path) -> None:
    """The generated Python-2 opcodes are real: Python's own unpickler reads them (flags as NumPy 2
    wants them, modules by the names of the NumPy that is installed).
    """
    core = np.zeros(0).__reduce__()[0].__module__.removesuffix("multiarray").encode()
    content = python2_batch("b", GOOD + 7, [0, 1, 2, 3]).replace(b"numpy.core.", core)
    content = content.replace(b"U\x02u1J\0\0\0\0J\1\0\0\0", b"U\x02u1\x89\x88")
    batch = pickle.loads(content, encoding="bytes")
    assert np.array_equal(batch[b"data"], GOOD + 7)
    assert batch[b"labels"] == [0, 1, 2, 3]


@REAL
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fmnist", "FashionMNIST")])
def test_real_idx_files(name: str, folder: str) -> None:
    if not (resolve_root(None) / folder / "raw").is_dir():
        pytest.skip(f"no {folder} in NOVELTYLAB_DATA")
    samples = load(name, None, True, False)
    assert samples.images.shape == (70_000, 1, 28, 28)
    assert samples.verified
    if name == "mnist":
        pooled, test = (
            np.bincount(samples.labels).tolist(),
            np.bincount(samples.labels[samples.official_test]).tolist(),
        )
        assert pooled == [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]
        assert test == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@REAL
def test_real_cifar10_has_the_official_counts() -> None:
    if not (resolve_root(None) / "cifar-10-batches-py").is_dir():
        pytest.skip("no cifar-10-batches-py in NOVELTYLAB_DATA")
    samples = load("cifar10", None, False, False)
    assert samples.images.shape == (60_000, 3, 32, 32)
    assert samples.official_test is not None
    assert np.bincount(samples.labels[~samples.official_test]).tolist() == [5000] * 10


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()
