"""MNIST: 60,000 + 10,000 grey digits of 28 x 28 pixels.

Lies in ``<root>/MNIST/raw`` as torchvision lays it out. Also reads any data set of the same IDX
files (fmnist.py), which may lie right in ``<root>`` and in some other folders that people use. A
folder may hold the files compressed, extracted or both (then the extracted ones are read); nothing
is written to it unless downloading was asked for.
"""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import datasets

from noveltylab.data.root import fetch, missing, resolve_root
from noveltylab.data.samples import Samples
from noveltylab.errors import UserError
from noveltylab.results.files import open_regular

# torchvision knows the compressed files only; these are the sha256 of what its checksums guarantee,
# extracted
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

#: where the files of each set may lie, below the data folder
PLACES = {
    "MNIST": ("MNIST/raw", "MNIST", "mnist/raw", "mnist", "raw", ""),
    "FashionMNIST": (
        "FashionMNIST/raw",
        "FashionMNIST",
        "fashion-mnist/raw",
        "fashion-mnist",
        "fashion-mnist/data/fashion",
        "fashion_mnist",
        "fmnist/raw",
        "fmnist",
        "data/fashion",
        "raw",
        "",
    ),
}
#: the sets are named alike and told apart by one small file: its sha256 -> class and option
_TELLING = "t10k-labels-idx1-ubyte"
_FASHION = "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
_SETS = {SHA256[_TELLING]: ("MNIST", "data=mnist"), _FASHION: ("FashionMNIST", "data=fmnist")}

_COUNTS = {"train": 60_000, "t10k": 10_000}
_PARTS = {"train": "train", "t10k": "test"}
SIZE = (28, 28)
_UBYTE = 0x08


def read(root: Path | None, *, verify: bool, download: bool) -> Samples:
    """Samples with images (70000, 1, 28, 28), official training part first.

    Raises:
        UserError: files are missing or cannot be used.
    """
    return read_idx(datasets.MNIST, SHA256, root, verify=verify, download=download)


def read_idx(
    kind: type[datasets.MNIST],
    sha256: Mapping[str, str],
    root: Path | None,
    *,
    verify: bool,
    download: bool,
) -> Samples:
    """Read the four IDX files of one of torchvision's dataset classes.

    Args:
        kind: The class.
        sha256: Checksum of each extracted file.
        root: The data folder.
        verify: Checksums and counts must be the official ones. Without it any well-formed files of
            28 x 28 images and labels 0..9 do, the training or the test part may be missing, and the
            result is not verified.
        download: Fetch absent files with torchvision.

    Raises:
        UserError: files are missing or cannot be used.
    """
    md5 = {name.removesuffix(".gz"): checksum for name, checksum in kind.resources}
    folder, stems = _find(kind, list(md5), resolve_root(root), verify, download)
    _check_set(folder, kind.__name__)
    # shapes and counts, before memory is taken
    names = [name for name in md5 if name.startswith(tuple(stems))]
    shapes = {name: _shape(folder / name) for name in names}
    if verify:
        for name in names:
            _verify(folder / name, md5[name], sha256[name])
    counts = dict.fromkeys(_COUNTS, 0)
    for stem in stems:
        counts[stem] = _count(folder, stem, shapes, _COUNTS[stem] if verify else None)
    # contents
    total = sum(counts.values())
    images = np.empty((total, *SIZE), np.uint8)
    labels = np.empty(total, np.uint8)
    ids: list[str] = []
    start = 0
    for stem in stems:
        end = start + counts[stem]
        _fill(images[start:end], folder / f"{stem}-images-idx3-ubyte")
        _fill(labels[start:end], folder / f"{stem}-labels-idx1-ubyte")
        largest = labels[start:end].max(initial=0)
        if largest > 9:
            raise UserError(f"{folder}/{stem}-*: expected labels 0 to 9, found {largest}.")
        ids += [f"{_PARTS[stem]}/{i:05d}" for i in range(counts[stem])]
        start = end
    return Samples(
        images=torch.from_numpy(images).unsqueeze(1),
        labels=labels.astype(np.int64),
        official_test=np.repeat([False, True], list(counts.values())),
        ids=np.array(ids),
        verified=verify,
        missing=sum(count for stem, count in _COUNTS.items() if stem not in stems),
    )


def _find(
    kind: type[datasets.MNIST], names: list[str], root: Path, verify: bool, download: bool
) -> tuple[Path, list[str]]:
    """The folder with the most of the files, and the stems of the parts that are whole in it."""
    folders = [root / place for place in PLACES[kind.__name__]]
    folder = max(folders, key=lambda place: len(_present(place, names)))
    present = _present(folder, names)
    absent = [name for name in names if name not in present]
    if not absent:
        return folder, list(_COUNTS)
    stems = [stem for stem in _COUNTS if not any(name.startswith(stem) for name in absent)]
    packed = ", ".join(f"{name}.gz" for name in absent)
    by_hand = f"Put {packed} (or the extracted files) into {folder}."
    if download:
        folder = root / kind.__name__ / "raw"
        fetch(lambda: kind(str(root), download=True), kind.__name__, by_hand, folder)
        return folder, list(_COUNTS)
    if verify or not stems:
        remedy = f"{by_hand} Or let it be fetched: data.download=true."
        if stems:
            remedy += " Or accept the part that is there with data.verify=false."
        raise missing(" and ".join(absent), folder, remedy)
    return folder, stems


def _present(folder: Path, names: Iterable[str]) -> list[str]:
    """Which of these files lie in a folder, extracted or compressed."""
    return [
        name for name in names if (folder / name).is_file() or (folder / f"{name}.gz").is_file()
    ]


def _check_set(folder: Path, name: str) -> None:
    """UserError where the files are those of the other set, which only their contents tell."""
    if not _present(folder, [_TELLING]):
        return
    with _opened(folder / _TELLING) as (path, stream):
        sha256 = hashlib.sha256(stream.read(1 << 20)).hexdigest()
    actual_name, option = _SETS.get(sha256, (name, ""))
    if actual_name != name:
        raise UserError(
            f"{path} is of {actual_name}, not of {name}: use {option}, or name another data.root."
        )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """The file, or the one compressed beside it: its path and a stream of what it holds."""
    if path.is_file():
        with open_regular(path) as plain:
            yield path, plain
        return
    path = path.with_name(f"{path.name}.gz")
    try:
        with open_regular(path) as packed, gzip.open(packed, "rb") as stream:
            yield path, cast(IO[bytes], stream)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is truncated or corrupt: not a whole gzip file, {path.stat().st_size} bytes "
            f"({error}). Replace it."
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Replace it.") from None


def _verify(path: Path, md5_compressed: str, sha256_extracted: str) -> None:
    """UserError unless the file has the official checksum."""
    algorithm, expected = "sha256", sha256_extracted
    if not path.is_file():
        path = path.with_name(f"{path.name}.gz")
        algorithm, expected = "md5", md5_compressed
    with open_regular(path) as file:
        actual = hashlib.file_digest(file, algorithm).hexdigest()
    if actual != expected:
        raise UserError(
            f"{path} is not the official file: expected {algorithm} {expected}, found {actual}. "
            "Replace it, or accept it with data.verify=false, which labels the result unverified."
        )


def _shape(path: Path) -> tuple[int, ...]:
    """Shape of the bytes in an IDX file; UserError for any other file.

    Header: two zero bytes, type 0x08, number of dimensions, then each dimension as a big-endian
    32-bit integer.
    """
    ndim = 3 if "idx3" in path.name else 1
    expected, start = bytes([0, 0, _UBYTE, ndim]), 4 + 4 * ndim
    with _opened(path) as (actual_path, stream):
        header = stream.read(start)
        magic = header[:4]
        if magic != expected:
            raise UserError(
                f"{actual_path} is not an IDX file: expected it to start with {expected.hex()}, "
                f"found {magic.hex() or 'nothing'}."
            )
        shape = struct.unpack(f">{ndim}I", header[4:].ljust(4 * ndim, b"\0"))
        announced = start + math.prod(shape)
        size = actual_path.stat().st_size
        # before memory is taken for what a header claims; gzip makes nothing more than 1,032 times
        # smaller
        limit = size * 1032 if actual_path.suffix == ".gz" else size
        if announced > limit or len(header) < start:
            raise _wrong_length(actual_path, announced, size)
    return shape


def _fill(array: NDArray[np.uint8], path: Path) -> None:
    """Read what follows the header into a contiguous array of the announced shape.

    Nothing lies in memory twice.
    """
    start = 4 + 4 * array.ndim
    with _opened(path) as (actual_path, stream):
        stream.read(start)
        view = array.reshape(-1).data
        filled = 0
        while filled < len(view):
            count = stream.readinto(view[filled:])  # type: ignore[attr-defined]  # IO[bytes] lacks it
            if not count:
                break
            filled += count
        surplus = len(stream.read(1 << 20))
        if filled < len(view) or surplus:
            raise _wrong_length(actual_path, start + len(view), start + filled + surplus)


def _wrong_length(path: Path, announced: int, actual: int) -> UserError:
    return UserError(
        f"{path} is truncated or corrupt: its header announces {announced} bytes, found {actual}. "
        "Replace it."
    )


def _count(
    folder: Path, stem: str, shapes: Mapping[str, tuple[int, ...]], expected: int | None
) -> int:
    """How many images one part has; UserError if images and labels do not go together."""
    n, *size = shapes[f"{stem}-images-idx3-ubyte"]
    (n_labels,) = shapes[f"{stem}-labels-idx1-ubyte"]
    where = f"{folder}/{stem}-*"
    if n != n_labels:
        raise UserError(
            f"{where}: {n} images but {n_labels} labels; the two files do not belong together."
        )
    if tuple(size) != SIZE:
        raise UserError(f"{where}: expected images of 28 x 28 pixels, found {size[0]} x {size[1]}.")
    if expected is not None and n != expected:
        raise UserError(f"{where}: expected {expected} images, found {n}.")
    return n
