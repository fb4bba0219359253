"""Tiny datasets in the true on-disk formats. Deterministic: each class is its own blob of light plus noise."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def blobs(n: int, channels: int, side: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """n images uint8 (n, channels, side, side), labels 0..9 in turn; a class is a blob at its own place on a circle."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 10
    angle = 2 * np.pi * labels / 10
    centre = side / 2 + side / 4 * np.stack([np.sin(angle), np.cos(angle)], 1) + rng.normal(0, side / 40, (n, 2))
    y, x = np.mgrid[:side, :side]
    distance = (y - centre[:, 0, None, None]) ** 2 + (x - centre[:, 1, None, None]) ** 2
    light = 230 * np.exp(-distance / (2 * (side / 8) ** 2))[:, None] * (1 - 0.2 * np.arange(channels))[:, None, None]
    images = np.clip(light + rng.uniform(0, 20, (n, channels, side, side)), 0, 255)
    return images.astype(np.uint8), labels.astype(np.uint8)


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """An IDX file of unsigned bytes: magic, dimensions big-endian, data."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def write_mnist(
    root: Path,
    name: str = "MNIST",
    n_train: int = 400,
    n_test: int = 200,
    *,
    compressed: bool = True,
    plain: bool = True,
) -> Path:
    """Write `<root>/<name>/raw` with the four IDX files (name "MNIST" or "FashionMNIST"); return that folder."""
    folder = root / name / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for stem, n, seed in (("train", n_train, 0), ("t10k", n_test, 1)):
        images, labels = blobs(n, 1, 28, seed)
        for kind, array in (("images-idx3", images[:, 0]), ("labels-idx1", labels)):
            content = idx_bytes(array)
            if plain:
                (folder / f"{stem}-{kind}-ubyte").write_bytes(content)
            if compressed:
                (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(content, 1, mtime=0))
    return folder


def write_cifar10(root: Path, n_train: int = 400, n_test: int = 200) -> Path:
    """Write `<root>/cifar-10-batches-py` as Python-2 style pickles, n_train spread over five; return that folder."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = blobs(n_train, 3, 32, 0)
    parts = [(f"data_batch_{i + 1}", images[i::5], labels[i::5]) for i in range(5)]
    for name, data, label in [*parts, ("test_batch", *blobs(n_test, 3, 32, 1))]:
        (folder / name).write_bytes(python2_batch(name, data.reshape(len(data), -1), label.tolist()))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = {"num_cases_per_batch": 10_000, "label_names": names, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def python2_batch(name: str, data: NDArray[np.uint8], labels: list[int]) -> bytes:
    """One batch in the opcodes of Python 2 with NumPy 1: byte strings, numpy.core names, dtype flags as integers."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + number(0) + b"\x85" + text("b") + b"\x87R"
        + b"(" + number(1) + number(data.shape[0]) + number(data.shape[1]) + b"\x86"
        + b"cnumpy\ndtype\n" + text("u1") + number(0) + number(1) + b"\x87R"
        + b"(" + number(3) + text("|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
        + b"\x89" + b"T" + struct.pack("<i", data.size) + data.tobytes() + b"tb"
    )  # fmt: skip
    items = (
        text("batch_label") + text(name) + text("labels") + b"](" + b"".join(map(number, labels)) + b"e"
        + text("data") + array
        + text("filenames") + b"](" + b"".join(text(f"{i:04d}.png") for i in range(len(labels))) + b"e"
    )  # fmt: skip
    return b"\x80\x02}(" + items + b"u."
