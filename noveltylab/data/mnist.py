"""MNIST: 60,000 + 10,000 grey digits of 28 x 28 pixels, in ``<root>/MNIST/raw`` as torchvision lays it out.

Also reads any dataset of the same IDX files (fmnist.py). A folder may hold the files compressed, extracted or both
(then the extracted ones are read); nothing is written to it unless downloading was asked for.
"""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import datasets  # type: ignore[import-untyped,unused-ignore]

from noveltylab.data.base import Samples, fetch, missing, resolve_root
from noveltylab.errors import UserError

# torchvision knows the compressed files only; these are the sha256 of what its checksums guarantee, extracted
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

_COUNTS = {"train": 60_000, "t10k": 10_000}
_PARTS = ("train", "test")
_UBYTE = 0x08


def read(root: Path | None, *, verify: bool, download: bool) -> Samples:
    """Samples with images (70000, 1, 28, 28), official training part first. UserError for unusable files."""
    return read_idx(datasets.MNIST, SHA256, root, verify=verify, download=download)


def read_idx(
    kind: type[datasets.MNIST], sha256: Mapping[str, str], root: Path | None, *, verify: bool, download: bool
) -> Samples:
    """Read the four IDX files of one of torchvision's dataset classes.

    sha256: checksum of each extracted file. verify: checksums and counts must be the official ones; without it any
    well-formed files of 28 x 28 images and labels 0..9 do, and the result is not verified.
    """
    root = resolve_root(root)
    folder = root / kind.__name__ / "raw"
    md5 = {name.removesuffix(".gz"): checksum for name, checksum in kind.resources}
    absent = [name for name in md5 if not any((folder / f"{name}{suffix}").is_file() for suffix in ("", ".gz"))]
    by_hand = f"Put {', '.join(f'{name}.gz' for name in absent)} (or the extracted files) into {folder}."
    if absent and download:
        fetch(lambda: kind(str(root), download=True), kind.__name__, by_hand)
    elif absent:
        raise missing(" and ".join(absent), folder, f"{by_hand} Or let it be fetched: data.download=true.")
    files = {name: _read_file(folder / name, md5[name], sha256[name], verify) for name in md5}
    images, labels = [], []
    for stem, count in _COUNTS.items():
        x, y = files[f"{stem}-images-idx3-ubyte"], files[f"{stem}-labels-idx1-ubyte"]
        _check(folder, stem, x, y, count if verify else None)
        images.append(x)
        labels.append(y)
    return Samples(
        images=torch.from_numpy(np.concatenate(images)).unsqueeze(1),
        labels=np.concatenate(labels).astype(np.int64),
        official_test=np.repeat([False, True], [len(part) for part in labels]),
        ids=np.array([f"{part}/{i:05d}" for part, y in zip(_PARTS, labels, strict=True) for i in range(len(y))]),
        verified=verify,
    )


def _read_file(path: Path, md5_compressed: str, sha256_extracted: str, verify: bool) -> NDArray[np.uint8]:
    if path.is_file():
        content = path.read_bytes()
        array = parse_idx(content, path)
        found, expected, what = (
            hashlib.sha256(content).hexdigest() if verify else "",
            sha256_extracted,
            "sha256",
        )
    else:
        path = path.with_name(f"{path.name}.gz")
        compressed = path.read_bytes()
        array = parse_idx(_decompress(compressed, path), path)
        found, expected, what = hashlib.md5(compressed).hexdigest() if verify else "", md5_compressed, "md5"
    if verify and found != expected:
        raise UserError(
            f"{path} is not the official file: expected {what} {expected}, found {found}. Replace it, or accept it "
            "with data.verify=false, which labels the result unverified."
        )
    return array


def _decompress(compressed: bytes, path: Path) -> bytes:
    try:
        return gzip.decompress(compressed)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is truncated or corrupt: not a whole gzip file, {len(compressed)} bytes ({error}). Replace it."
        ) from error


def parse_idx(content: bytes, path: Path) -> NDArray[np.uint8]:
    """The array of an IDX file of bytes, in its own shape. UserError names `path`, the expected and the found.

    Header: two zero bytes, type 0x08, number of dimensions, then each dimension as a big-endian 32-bit integer.
    """
    ndim = 3 if "idx3" in path.name else 1
    expected = bytes([0, 0, _UBYTE, ndim])
    if (magic := content[:4]) != expected:
        found = magic.hex() or "nothing"
        raise UserError(f"{path} is not an IDX file: expected it to start with {expected.hex()}, found {found}.")
    start = 4 + 4 * ndim
    shape = struct.unpack(f">{ndim}I", content[4:start].ljust(4 * ndim, b"\0"))
    if len(content) != start + math.prod(shape):
        raise UserError(
            f"{path} is truncated or corrupt: its header announces {start + math.prod(shape)} bytes, found "
            f"{len(content)}. Replace it."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _check(folder: Path, stem: str, x: NDArray[np.uint8], y: NDArray[np.uint8], count: int | None) -> None:
    where = f"{folder}/{stem}-*"
    if len(x) != len(y):
        raise UserError(f"{where}: {len(x)} images but {len(y)} labels; the two files do not belong together.")
    if x.shape[1:] != (28, 28):
        raise UserError(f"{where}: expected images of 28 x 28 pixels, found {x.shape[1]} x {x.shape[2]}.")
    if len(y) and y.max() > 9:
        raise UserError(f"{where}: expected labels 0 to 9, found {y.max()}.")
    if count is not None and len(x) != count:
        raise UserError(f"{where}: expected {count} images, found {len(x)}.")
