"""CIFAR-10: 50,000 + 10,000 colour pictures of 32 x 32 pixels, in ``<root>/cifar-10-batches-py`` as torchvision has it.

The files are Python pickles. They are only ever read by an unpickler that knows how to rebuild a byte array and refuses
everything else, so that a stranger's copy cannot run code.
"""

import hashlib
import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import datasets

from noveltylab.data.base import Samples, fetch, missing, resolve_root
from noveltylab.errors import UserError
from noveltylab.files import open_regular

_KIND = datasets.CIFAR10
_PIXELS = 3 * 32 * 32
_COUNT = 10_000


def read(root: Path | None, *, verify: bool, download: bool) -> Samples:
    """Samples with images (60000, 3, 32, 32), official training part first. UserError for unusable files.

    verify: md5 of each file and the counts must be the official ones; without it any well-formed files do, and the
    result is not verified.
    """
    root = resolve_root(root)
    folder = root / _KIND.base_folder
    md5 = dict([*_KIND.train_list, *_KIND.test_list])
    absent = [name for name in md5 if not (folder / name).is_file()]
    by_hand = f"Put {_KIND.filename} (md5 {_KIND.tgz_md5}) into {root} and unpack it there: tar xzf {_KIND.filename}."
    if absent and download:
        fetch(lambda: _KIND(str(root), download=True), "CIFAR-10", by_hand, root)
    elif absent:
        raise missing(" and ".join(absent), folder, f"{by_hand} Or let it be fetched: data.download=true.")
    images, labels, n_test = np.empty((len(md5) * _COUNT, _PIXELS), np.uint8), np.empty(0, np.int64), 0
    for name in md5:  # one at a time, or all would lie in memory twice
        pixels, more = _read_batch(folder / name, md5[name] if verify else None)
        start, n_test = len(labels), len(more)
        labels = np.concatenate([labels, more])
        if len(labels) > len(images):  # only an unofficial copy has more
            images = np.concatenate([images[:start], pixels])
        images[start : len(labels)] = pixels
        del pixels
    n_train = len(labels) - n_test
    return Samples(
        images=torch.from_numpy(images[: len(labels)].reshape(-1, 3, 32, 32)),
        labels=labels,
        official_test=np.repeat([False, True], [n_train, n_test]),
        ids=np.array([*(f"train/{i:05d}" for i in range(n_train)), *(f"test/{i:05d}" for i in range(n_test))]),
        verified=verify,
    )


def _read_batch(path: Path, md5: str | None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels uint8 (n, 3072) and labels int64 (n,) of one file; md5 None accepts any well-formed one."""
    try:
        opened = open_regular(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Replace it.") from None
    with opened as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
        if md5 is not None and found != md5:
            raise UserError(
                f"{path} is not the official file: expected md5 {md5}, found {found} ({path.stat().st_size} bytes). "
                "Replace it, or accept it with data.verify=false, which labels the result unverified."
            )
        file.seek(0)
        table = _unpickle(file, path)
    data, labels = table.get("data"), table.get("labels")
    if not isinstance(data, _Array) or not isinstance(labels, list):
        raise UserError(f"{path}: expected an array 'data' and a list 'labels', found the keys {sorted(table)}.")
    pixels = data.numpy(path)
    if pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise UserError(f"{path}: expected data of shape (n, {_PIXELS}), found {pixels.shape}.")
    if len(labels) != len(pixels) or (md5 is not None and len(labels) != _COUNT):
        wanted = len(pixels) if md5 is None else _COUNT
        raise UserError(f"{path}: expected {wanted} labels and images, found {len(labels)} and {len(pixels)}.")
    if wrong := [label for label in labels if not (type(label) is int and 0 <= label <= 9)]:
        raise UserError(f"{path}: expected labels 0 to 9, found {wrong[0]!r}.")
    return pixels, np.array(labels, dtype=np.int64)


def _unpickle(file: IO[bytes], path: Path) -> dict[str, Any]:
    try:
        table = _Unpickler(file, path).load()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} is truncated or corrupt: expected a whole pickle, {path.stat().st_size} bytes do not make one "
            f"({error}). Replace it."
        ) from error
    if not isinstance(table, dict):
        raise UserError(f"{path}: expected a dict, found {type(table).__name__}.")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in table.items()}


class _Array:
    """Stands in for a NumPy array while unpickling: keeps what the file says, checked before NumPy sees any of it."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def numpy(self, path: Path) -> NDArray[np.uint8]:
        """The array. UserError unless it is a whole array of bytes."""
        try:
            _, shape, dtype, fortran, raw = self.state
            if dtype.code != "u1":
                raise ValueError(f"type {dtype.code}")
            return np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(f"{path}: expected an array of uint8, found another ({error}). Replace it.") from error


class _Dtype:
    """Stands in for numpy.dtype."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment mean nothing for single bytes."""


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.state = (1, shape, dtype, order == "F", raw)
    return array


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


# Python 2 and NumPy 1 wrote the official files, newer versions of both write re-encoded copies
_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    """Builds dicts, lists, numbers, strings and byte arrays; any other name in the file is refused, never looked up."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, encoding="bytes")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise UserError(
                f"{self.path} was refused: it asks for {module}.{name}, which no CIFAR-10 file needs and which could "
                "run code. Replace it by the official file."
            )
        return _ALLOWED[module, name]
