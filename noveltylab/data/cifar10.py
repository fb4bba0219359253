"""CIFAR-10: 50,000 + 10,000 colour pictures of 32 x 32 pixels.

Lies in ``<root>/cifar-10-batches-py`` as torchvision has it. ``<root>`` may be that folder itself;
``cifar-10-python.tar.gz`` as downloaded is read in place.

The files are Python pickles. They are only ever read by an unpickler that knows how to rebuild a
byte array and refuses everything else, so that a stranger's copy cannot run code.
"""

import hashlib
import io
import pickle
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from noveltylab.data.samples import Samples
from noveltylab.data.stored import (
    Stored,
    check_archive,
    fetch,
    find_archive,
    not_fetched,
    resolve_root,
    tar_files,
)
from noveltylab.errors import UserError

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
#: md5 of each file of the set, the training part first, as torchvision has them
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_PIXELS = 3 * 32 * 32
_COUNT = 10_000
#: of a file, ten times the official size
_MAX_BYTES = 1 << 29


def read(root: Path | None, *, verify: bool, download: bool) -> Samples:
    """Samples with images (60000, 3, 32, 32), official training part first.

    Args:
        root: The data folder.
        verify: md5 of each file and the counts must be the official ones. Without it any
            well-formed files do, some may be missing, and the result is not verified.
        download: Fetch absent files with torchvision.

    Raises:
        UserError: files are missing or cannot be used.
    """
    contents, folder = _find(resolve_root(root), verify, download)
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    ids: list[str] = []
    sizes = {"train": 0, "test": 0}
    for name, md5 in MD5.items():
        part = "train"
        if name == "test_batch":
            part = "test"
        if name not in contents:
            sizes[part] += _COUNT  # the others keep their ids
            continue
        content = contents.pop(name)
        if isinstance(content, Stored):
            content = content.read(_MAX_BYTES)
        batch, batch_labels = _read_batch(content, folder / name, md5 if verify else None)
        images.append(batch)
        labels.append(batch_labels)
        ids += [f"{part}/{sizes[part] + i:05d}" for i in range(len(batch))]
        sizes[part] += len(batch)
    import torch  # takes seconds: only once the files are there

    return Samples(
        images=torch.from_numpy(_joined(images).reshape(-1, 3, 32, 32)),
        labels=np.concatenate(labels),
        official_test=np.array([name.startswith("test/") for name in ids]),
        ids=np.array(ids),
        verified=verify,
        missing=(len(MD5) - len(images)) * _COUNT,
    )


def check_files(root: Path | None, *, verify: bool) -> None:
    """UserError where the files are absent; imports neither torch nor torchvision."""
    if find_archive(resolve_root(root), ARCHIVE) is None:
        _find(resolve_root(root), verify, download=False)


def _joined(parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """All rows in one array; each part is dropped as soon as it is copied."""
    rows = np.empty((sum(map(len, parts)), _PIXELS), np.uint8)
    start = 0
    for i, part in enumerate(parts):
        rows[start : start + len(part)] = part
        start += len(part)
        parts[i] = part[:0].copy()
    return rows


def _find(root: Path, verify: bool, download: bool) -> tuple[dict[str, Stored | bytes], Path]:
    """Name -> file, or what the archive holds of that name; and where they lie."""
    names = list(MD5)
    folder = root / FOLDER
    if any((root / name).is_file() for name in names):
        folder = root
    present: dict[str, Stored | bytes] = {}
    for name in names:
        if (folder / name).is_file():
            present[name] = Stored(folder / name)
    absent = [name for name in names if name not in present]
    if not absent:
        return present, folder

    archive = find_archive(root, ARCHIVE)
    if archive is not None:
        return _in_archive(archive, verify), archive
    by_hand = (
        f"Put {ARCHIVE} (md5 {ARCHIVE_MD5}) into {root}, as it is or unpacked: tar xzf {ARCHIVE}."
    )
    if download:
        from torchvision import datasets

        fetch(lambda: datasets.CIFAR10(str(root), download=True), "CIFAR-10", by_hand, root)
        folder = root / FOLDER
        return {name: Stored(folder / name) for name in names}, folder
    if verify or not present:
        raise not_fetched(absent, folder, by_hand, acceptable=bool(present))
    return present, folder


def _in_archive(path: Path, verify: bool) -> dict[str, Stored | bytes]:
    if verify:
        check_archive(path, "md5", ARCHIVE_MD5)

    def is_batch(name: str) -> bool:
        return PurePosixPath(name).name in MD5

    contents: dict[str, Stored | bytes] = {}
    for name, content in tar_files(path, is_batch, _MAX_BYTES, 10 * _MAX_BYTES):
        contents[PurePosixPath(name).name] = content
    if not contents or (verify and len(contents) < len(MD5)):
        names = ", ".join(contents) or "none"
        raise UserError(f"{path} holds {names} of {', '.join(MD5)}. Replace it.")
    return contents


def _read_batch(
    content: bytes, path: Path, md5: str | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels uint8 (n, 3072) and labels int64 (n,) of one file.

    md5: None accepts any well-formed file.
    """
    actual_md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 is not None and actual_md5 != md5:
        raise UserError(
            f"{path} is not the official file: expected md5 {md5}, found {actual_md5} "
            f"({len(content)} bytes). Replace it, or accept it with data.verify=false, which "
            "labels the result unverified."
        )
    table = _unpickle(content, path)
    data, labels = table.get("data"), table.get("labels")
    if not isinstance(data, _Array) or not isinstance(labels, list):
        raise UserError(
            f"{path}: expected an array 'data' and a list 'labels', found the keys {sorted(table)}."
        )
    pixels = data.numpy(path)
    if pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise UserError(f"{path}: expected data of shape (n, {_PIXELS}), found {pixels.shape}.")
    if len(labels) != len(pixels) or (md5 is not None and len(labels) != _COUNT):
        expected = len(pixels) if md5 is None else _COUNT
        raise UserError(
            f"{path}: expected {expected} labels and images, found {len(labels)} and {len(pixels)}."
        )
    for label in labels:
        if type(label) is not int or not 0 <= label <= 9:
            raise UserError(f"{path}: expected labels 0 to 9, found {label!r}.")
    return pixels, np.array(labels, dtype=np.int64)


def _unpickle(content: bytes, path: Path) -> dict[str, Any]:
    try:
        table = _Unpickler(content, path).load()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} is truncated or corrupt: expected a whole pickle, {len(content)} bytes do not "
            f"make one ({error}). Replace it."
        ) from error
    if not isinstance(table, dict):
        raise UserError(f"{path}: expected a dict, found {type(table).__name__}.")
    return {_as_text(key): value for key, value in table.items()}


def _as_text(text: object) -> str:
    if isinstance(text, bytes):
        return text.decode("latin1")
    return str(text)


class _Array:
    """Stands in for a NumPy array while unpickling.

    Keeps what the file says, which is checked before NumPy sees any of it.
    """

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def numpy(self, path: Path) -> NDArray[np.uint8]:
        """The array; UserError unless it is a whole array of bytes."""
        try:
            _, shape, dtype, fortran, raw = self.state
            if dtype.code != "u1":
                raise ValueError(f"type {dtype.code}")
            order: Literal["F", "C"] = "F" if fortran else "C"
            return np.frombuffer(raw, dtype=np.uint8).reshape(shape, order=order)
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: expected an array of uint8, found another ({error}). Replace it."
            ) from error


class _Dtype:
    """Stands in for numpy.dtype."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = _as_text(code)

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


#: what the official files name, which Python 2 and NumPy 1 wrote, and copies that newer ones wrote
_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
}


class _Unpickler(pickle.Unpickler):
    """Builds dicts, lists, numbers, strings and byte arrays.

    Any other name in the file is refused, never looked up.
    """

    def __init__(self, content: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise UserError(
                f"{self.path} was refused: it asks for {module}.{name}, which no CIFAR-10 file "
                "needs and which could run code. Replace it by the official file."
            )
        return _ALLOWED[module, name]
