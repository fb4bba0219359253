"""MNIST and Fashion-MNIST: 60,000 + 10,000 grey pictures of 28 x 28 pixels, digits and clothes.

Their IDX files lie in ``<root>/MNIST/raw`` and ``<root>/FashionMNIST/raw`` as torchvision lays them
out, or in some other folders that people use. A folder may hold the files compressed, extracted or
both (then the extracted ones are read); nothing is written to it unless downloading was asked for.
"""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from noveltylab.data.samples import Samples
from noveltylab.data.stored import fetch, not_fetched, resolve_root
from noveltylab.errors import UserError
from noveltylab.results.files import open_regular

#: of the extracted files; torchvision knows the md5 of the compressed ones only, and these follow
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
FASHION_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
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
_SETS = {
    SHA256[_TELLING]: ("MNIST", "data=mnist"),
    FASHION_SHA256[_TELLING]: ("FashionMNIST", "data=fmnist"),
}

#: data=... -> the name of torchvision's class
_TITLES = {"mnist": "MNIST", "fmnist": "FashionMNIST"}
_COUNTS = {"train": 60_000, "t10k": 10_000}
_PARTS = {"train": "train", "t10k": "test"}
SIZE = (28, 28)
_UBYTE = 0x08


def read(root: Path | None, *, verify: bool, download: bool, name: str = "mnist") -> Samples:
    """Samples with images (70000, 1, 28, 28), official training part first.

    Args:
        root: The data folder.
        verify: Checksums and counts must be the official ones. Without it any well-formed files of
            28 x 28 images and labels 0..9 do, the training or the test part may be missing, and the
            result is not verified.
        download: Fetch absent files with torchvision.
        name: "mnist" or "fmnist".

    Raises:
        UserError: files are missing or cannot be used.
    """
    title, sha256 = _TITLES[name], SHA256
    if name == "fmnist":
        sha256 = FASHION_SHA256
    folder, stems = _find(title, resolve_root(root), verify, download)
    _check_set(folder, title)
    # they take seconds to import: only once the files are there
    import torch
    from torchvision import datasets

    resources = getattr(datasets, title).resources
    md5 = {file.removesuffix(".gz"): checksum for file, checksum in resources}
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.uint8]] = []
    ids: list[str] = []
    for stem in stems:
        image_file, label_file = f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"
        images.append(_read_idx(folder / image_file))
        labels.append(_read_idx(folder / label_file))
        if verify:
            for file in (image_file, label_file):
                _verify(folder / file, md5[file], sha256[file])
        _check_part(f"{folder}/{stem}-*", images[-1], labels[-1], _COUNTS[stem] if verify else None)
        ids += [f"{_PARTS[stem]}/{i:05d}" for i in range(len(labels[-1]))]
    return Samples(
        images=torch.from_numpy(np.concatenate(images)).unsqueeze(1),
        labels=np.concatenate(labels).astype(np.int64),
        official_test=np.array([sample.startswith("test/") for sample in ids]),
        ids=np.array(ids),
        verified=verify,
        missing=sum(_COUNTS.values()) - sum(_COUNTS[stem] for stem in stems),
    )


def check_files(root: Path | None, *, verify: bool, name: str) -> None:
    """UserError where the files are absent; imports neither torch nor torchvision."""
    _find(_TITLES[name], resolve_root(root), verify, download=False)


def _find(title: str, root: Path, verify: bool, download: bool) -> tuple[Path, list[str]]:
    """The folder with the most of the files, and the stems of the parts that are whole in it."""
    names = list(SHA256)
    folders = [root / place for place in PLACES[title]]
    folder = max(folders, key=lambda place: len(_present(place, names)))
    present = _present(folder, names)
    absent = [name for name in names if name not in present]
    if not absent:
        return folder, list(_COUNTS)
    incomplete = {name.partition("-")[0] for name in absent}
    stems = [stem for stem in _COUNTS if stem not in incomplete]
    by_hand = f"Put {'.gz, '.join(absent)}.gz (or the extracted files) into {folder}."
    if download:
        from torchvision import datasets

        kind = getattr(datasets, title)
        folder = root / title / "raw"
        fetch(lambda: kind(str(root), download=True), title, by_hand, folder)
        return folder, list(_COUNTS)
    if verify or not stems:
        raise not_fetched(absent, folder, by_hand, acceptable=bool(stems))
    return folder, stems


def _present(folder: Path, names: Iterable[str]) -> list[str]:
    """Which of these files lie in a folder, extracted or compressed."""
    return [name for name in names if _is_there(folder / name)]


def _is_there(path: Path) -> bool:
    return path.is_file() or path.with_name(f"{path.name}.gz").is_file()


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


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """The bytes in an IDX file in their shape; UserError for any other file.

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
        length = math.prod(shape)
        # before memory is taken for what a header claims; gzip makes nothing more than 1,032 times
        # smaller
        size = actual_path.stat().st_size
        limit = size * 1032 if actual_path.suffix == ".gz" else size
        if start + length > limit or len(header) < start:
            raise _wrong_length(actual_path, start + length, size)
        content = stream.read(length + (1 << 20))  # more than a good file has
        if len(content) != length:
            raise _wrong_length(actual_path, start + length, start + len(content))
    return np.frombuffer(content, np.uint8).reshape(shape)


def _wrong_length(path: Path, announced: int, actual: int) -> UserError:
    return UserError(
        f"{path} is truncated or corrupt: its header announces {announced} bytes, found {actual}. "
        "Replace it."
    )


def _check_part(
    where: str, images: NDArray[np.uint8], labels: NDArray[np.uint8], expected: int | None
) -> None:
    """UserError if images and labels of a part do not go together, or are not so many."""
    if len(images) != len(labels):
        raise UserError(
            f"{where}: {len(images)} images but {len(labels)} labels; "
            "the two files do not belong together."
        )
    height, width = images.shape[1:]
    if (height, width) != SIZE:
        raise UserError(f"{where}: expected images of 28 x 28 pixels, found {height} x {width}.")
    if expected is not None and len(images) != expected:
        raise UserError(f"{where}: expected {expected} images, found {len(images)}.")
    largest = labels.max(initial=0)
    if largest > 9:
        raise UserError(f"{where}: expected labels 0 to 9, found {largest}.")
