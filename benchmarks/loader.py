"""Images per second of the in-memory batches against a DataLoader over PIL images, both end to end on the CPU.

    python -m benchmarks.loader                             # scikit-learn's digits, as temporary MNIST files
    NOVELTYLAB_DATA=/srv/data python -m benchmarks.loader   # the real MNIST
    python -m benchmarks.loader --repeats 9 --images 60000

Ours: positions from torch's DataLoader, gathered and scaled as a training batch (resized once, when loaded).
Theirs: torchvision's dataset, Resize(32), ToTensor, Normalize per image in a DataLoader with 2 workers. The same images
and batch size, both shuffled; one untimed epoch first, then the repeats in turns; the medians are compared.
"""

import argparse
import os
import platform
import statistics
import struct
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from noveltylab.data.datamodule import NoveltyData
from noveltylab.data.load import load
from noveltylab.data.samples import Samples
from noveltylab.data.split import Split


def write_digits(root: Path, n: int) -> None:
    """The bundled digits as MNIST's four files under root.

    They are enlarged to 28 x 28 and repeated to n training images.
    """
    digits = load("digits", None, True, False)
    images = np.pad(
        np.kron(digits.images[:, 0].numpy(), np.ones((1, 3, 3), np.uint8)), ((0, 0), (2, 2), (2, 2))
    )
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for stem, count in (("train", n), ("t10k", len(images))):
        take = np.arange(count) % len(images)
        for kind, array in (
            ("images-idx3", images[take]),
            ("labels-idx1", digits.labels[take].astype(np.uint8)),
        ):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{stem}-{kind}-ubyte").write_bytes(header + array.tobytes())


def ours(samples: Samples, n: int, batch_size: int, chunk: int) -> Callable[[], int]:
    """An epoch over the first n images as one class; returns how many images came out."""
    labels = np.zeros(len(samples.labels), dtype=np.int64)
    labels[-1] = 1
    index = np.arange(len(labels))
    split = Split(index[:n], index[:0], index[-2:], labels[-2:] == 1)
    pooled = Samples(samples.images, labels, None, samples.ids, samples.verified)
    data = NoveltyData(
        pooled,
        split,
        0,
        size=32,
        contrast="none",
        subtract_mean=False,
        batch_size=batch_size,
        seed=0,
        chunk=chunk,
    )
    loader = data.train_dataloader()
    return lambda: sum(data.on_after_batch_transfer(rows, 0).rows.numel() for rows in loader)


def theirs(root: Path, n: int, batch_size: int) -> Callable[[], int]:
    """The same epoch through PIL; the workers persist, so their start is not timed."""
    steps = [transforms.Resize(32), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
    dataset = Subset(datasets.MNIST(str(root), transform=transforms.Compose(steps)), range(n))
    loader = DataLoader(
        dataset, batch_size, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True
    )
    return lambda: sum(len(x) for x, _ in loader)


def speed(epoch: Callable[[], int]) -> float:
    """Images per second of one epoch."""
    start = time.perf_counter()
    return epoch() / (time.perf_counter() - start)


def processor() -> str:
    """The processor's model name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed epochs of each (default 5)")
    parser.add_argument(
        "--images", type=int, default=20_000, help="images in an epoch (default 20000)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, help="images in one training iteration (default 64)"
    )
    parser.add_argument(
        "--chunk", type=int, default=50, help="iterations in one of our batches (default 50)"
    )
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    with tempfile.TemporaryDirectory() as folder:
        real = bool(os.environ.get("NOVELTYLAB_DATA"))
        root = Path(os.environ["NOVELTYLAB_DATA"] if real else folder)
        if not real:
            write_digits(root, options.images)
        samples = load("mnist", root, real, False)
        n = min(
            options.images,
            int((~samples.official_test).sum()) if samples.official_test is not None else 0,
        )
        contenders = {
            "ours": ours(samples, n, options.batch_size, options.chunk),
            "PIL": theirs(root, n, options.batch_size),
        }
        speeds: dict[str, list[float]] = {name: [] for name in contenders}
        for repeat in range(options.repeats + 1):
            for name, epoch in contenders.items():
                if (value := speed(epoch)) and repeat:
                    speeds[name].append(value)
    median = {name: statistics.median(values) for name, values in speeds.items()}
    print(
        f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    source = "MNIST" if real else "digits as MNIST files"
    print(f"{source}, {n} images 28 -> 32, batch {options.batch_size}, chunk {options.chunk}")
    for name, values in speeds.items():
        spread = f"median of {len(values)}; {min(values):,.0f} to {max(values):,.0f}"
        print(f"{name:5} {median[name]:10,.0f} images/s ({spread})")
    print(f"ratio {median['ours'] / median['PIL']:10.1f}")


if __name__ == "__main__":
    main()
