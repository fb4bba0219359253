"""MNIST: 60,000 + 10,000 grey digits of 28 x 28 pixels, in ``<root>/MNIST/raw`` as torchvision lays
it out.

Also reads any dataset of the same IDX files (fmnist.py), which may lie right in ``<root>`` and in
some other folders that people use. A folder may hold the files compressed, extracted or both (then
the extracted ones are read); nothing is written to it unless downloading was asked for.
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
        *(
            "FashionMNIST/raw",
            "FashionMNIST",
            "fashion-mnist/raw",
            "fashion-mnist",
            "fashion-mnist/data/fashion",
        ),
        *("fashion_mnist", "fmnist/raw", "fmnist", "data/fashion", "raw", ""),
    ),
}
#: the sets are named alike and told apart by one small file: its sha256 -> class and option
_TELLING = "t10k-labels-idx1-ubyte"
_FASHION = "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
_SETS = {SHA256[_TELLING]: ("MNIST", "data=mnist"), _FASHION: ("FashionMNIST", "data=fmnist")}

_COUNTS = {"train": 60_000, "t10k": 10_000}
_PARTS = ("train", "test")
SIZE = (28, 28)
_UBYTE = 0x08


def read(root: Path | None, *, verify: bool, download: bool) -> Samples:
    """Samples with images (70000, 1, 28, 28), official training part first. UserError for unusable
    files.
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

    sha256: checksum of each extracted file. verify: checksums and counts must be the official ones;
    without it any well-formed files of 28 x 28 images and labels 0..9 do, the training or the test
    part may be missing, and the result is not verified.
    """
    root = resolve_root(root)
    md5 = {name.removesuffix(".gz"): checksum for name, checksum in kind.resources}
    folder = max(
        (root / place for place in PLACES[kind.__name__]),
        key=lambda place: len(_present(place, md5)),
    )
    absent = [name for name in md5 if name not in _present(folder, md5)]
    stems = [stem for stem in _COUNTS if not any(name.startswith(stem) for name in absent)]
    by_hand = (
        f"Put {', '.join(f'{name}.gz' for name in absent)} (or the extracted files) into {folder}."
    )
    if absent and download:
        folder, stems = root / kind.__name__ / "raw", list(_COUNTS)
        fetch(lambda: kind(str(root), download=True), kind.__name__, by_hand, folder)
    elif absent and (verify or not stems):
        accept = " Or accept the part that is there with data.verify=false." if stems else ""
        raise missing(
            " and ".join(absent),
            folder,
            f"{by_hand} Or let it be fetched: data.download=true.{accept}",
        )
    _check_set(folder, kind.__name__)
    names = [name for name in md5 if name.startswith(tuple(stems))]
    shapes = {name: _shape(folder / name) for name in names}
    if verify:
        for name in names:
            _verify(folder / name, md5[name], sha256[name])
    counts = [
        _count(folder, stem, shapes, count if verify else None) if stem in stems else 0
        for stem, count in _COUNTS.items()
    ]
    images, labels = np.empty((sum(counts), *SIZE), np.uint8), np.empty(sum(counts), np.uint8)
    start = 0
    for stem, count in zip(_COUNTS, counts, strict=True):
        if stem not in stems:
            continue
        _fill(images[start : start + count], folder / f"{stem}-images-idx3-ubyte")
        _fill(labels[start : start + count], folder / f"{stem}-labels-idx1-ubyte")
        if count and (largest := labels[start : start + count].max()) > 9:
            raise UserError(f"{folder}/{stem}-*: expected labels 0 to 9, found {largest}.")
        start += count
    return Samples(
        images=torch.from_numpy(images).unsqueeze(1),
        labels=labels.astype(np.int64),
        official_test=np.repeat([False, True], counts),
        ids=np.array(
            [
                f"{part}/{i:05d}"
                for part, count in zip(_PARTS, counts, strict=True)
                for i in range(count)
            ]
        ),
        verified=verify,
        missing=sum(count for stem, count in _COUNTS.items() if stem not in stems),
    )


def _present(folder: Path, names: Iterable[str]) -> list[str]:
    """Which of these files lie in a folder, extracted or compressed."""
    return [
        name
        for name in names
        if any((folder / f"{name}{suffix}").is_file() for suffix in ("", ".gz"))
    ]


def _check_set(folder: Path, name: str) -> None:
    """UserError where the files are those of the other set, which only their contents tell."""
    if not _present(folder, [_TELLING]):
        return
    with _opened(folder / _TELLING) as (path, stream):
        other, option = _SETS.get(hashlib.sha256(stream.read(1 << 20)).hexdigest(), (name, ""))
    if other != name:
        raise UserError(
            f"{path} is of {other}, not of {name}: use {option}, or name another data.root."
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
            f"{path} is truncated or corrupt: not a whole gzip file, {path.stat().st_size} bytes ({error}). Replace it."
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Replace it.") from None


def _verify(path: Path, md5_compressed: str, sha256_extracted: str) -> None:
    """UserError unless the file has the official checksum."""
    what, expected = ("sha256", sha256_extracted) if path.is_file() else ("md5", md5_compressed)
    path = path if path.is_file() else path.with_name(f"{path.name}.gz")
    with open_regular(path) as file:
        found = hashlib.file_digest(file, what).hexdigest()
    if found != expected:
        raise UserError(
            f"{path} is not the official file: expected {what} {expected}, found {found}. Replace it, or accept it "
            "with data.verify=false, which labels the result unverified."
        )


def _shape(path: Path) -> tuple[int, ...]:
    """Shape of the bytes in an IDX file. UserError names the file, the expected and the found.

    Header: two zero bytes, type 0x08, number of dimensions, then each dimension as a big-endian
    32-bit integer.
    """
    ndim = 3 if "idx3" in path.name else 1
    expected, start = bytes([0, 0, _UBYTE, ndim]), 4 + 4 * ndim
    with _opened(path) as (found_at, stream):
        header = stream.read(start)
        if (magic := header[:4]) != expected:
            found = magic.hex() or "nothing"
            raise UserError(
                f"{found_at} is not an IDX file: expected it to start with {expected.hex()}, found {found}."
            )
        shape = struct.unpack(f">{ndim}I", header[4:].ljust(4 * ndim, b"\0"))
        wanted = start + math.prod(shape)
        size = found_at.stat().st_size
        # before memory is taken for what a header claims; gzip makes nothing more than 1,032 times
        # smaller
        if wanted > (size * 1032 if found_at.suffix == ".gz" else size) or len(header) < start:
            raise _wrong_length(found_at, wanted, size)
    return shape


def _fill(array: NDArray[np.uint8], path: Path) -> None:
    """Reads what follows the header into an array of the announced shape, contiguous, so that
    nothing lies in memory twice.
    """
    start = 4 + 4 * array.ndim
    with _opened(path) as (found_at, stream):
        stream.read(start)
        view, at = array.reshape(-1).data, 0
        while at < len(view) and (count := stream.readinto(view[at:])):  # type: ignore[attr-defined]
            at += count
        rest = len(stream.read(1 << 20))
        if at < len(view) or rest:
            raise _wrong_length(found_at, start + len(view), start + at + rest)


def _wrong_length(path: Path, wanted: int, found: int) -> UserError:
    return UserError(
        f"{path} is truncated or corrupt: its header announces {wanted} bytes, found {found}. Replace it."
    )


def _count(
    folder: Path, stem: str, shapes: Mapping[str, tuple[int, ...]], expected: int | None
) -> int:
    """How many images one part has. UserError where images and labels do not go together."""
    (n, *size), (n_labels,) = (
        shapes[f"{stem}-images-idx3-ubyte"],
        shapes[f"{stem}-labels-idx1-ubyte"],
    )
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
