"""Seconds and memory to batches of each dataset in $NOVELTYLAB_DATA, against the plain way, each in its own process.

    NOVELTYLAB_DATA=/srv/data python -m benchmarks.readers                 # every dataset that is there
    NOVELTYLAB_DATA=/srv/data python -m benchmarks.readers ucsd coil20

Ours: the reader, the protocol's split and its batches, as a run has them; `first` without a cache, `again` with it.
Plain: one image file (sound segment) at a time through PIL (soundfile, librosa) in a DataLoader with 2 workers, the same
training samples and batch size; an epoch of it is timed on at most 2,000 samples and scaled up. Memory is the peak of the
process above what its imports take, workers not counted; `x data` is its ratio to the uint8 images that a run holds: the
dataset's and those of its split where they are resized or gathered from it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

SETS = ("mnist", "fmnist", "cifar10", "coil20", "coil100", "ucsd", "dcase")
PLAIN = 2000
BATCH = 64
ROOT = Path(os.environ.get("NOVELTYLAB_DATA") or "data")


def memory() -> int:
    """Peak bytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ours(name: str) -> dict[str, float]:
    """Seconds to the first batch, of an epoch of batches, and peak memory, through the framework."""
    from hydra import compose, initialize_config_dir

    from noveltylab.command.hydra_versions import BASE
    from noveltylab.job import CONF
    from noveltylab.options import check_options
    from noveltylab.run.build import build
    from noveltylab.run.read import read_and_split

    overrides = [f"data={name}", "method=pca", "data.verify=false", f"data.batch_size={BATCH}"]
    with initialize_config_dir(str(CONF), **BASE):
        options = check_options(
            compose("train", [*overrides, "inlier=park" if name == "dcase" else "inlier=0"])
        )
    before, start = memory(), time.perf_counter()
    samples, parts = read_and_split(options)
    data, _ = build(options, samples, parts)
    loader = data.train_dataloader()
    data.on_after_batch_transfer(next(iter(loader)), 0)
    first = time.perf_counter() - start
    start = time.perf_counter()
    count = sum(data.on_after_batch_transfer(rows, 0).rows.numel() for rows in loader)
    epoch = time.perf_counter() - start
    whole = samples.images.untyped_storage().data_ptr()
    copies = [
        part
        for part in (data.train, data.val, data.test)
        if part.untyped_storage().data_ptr() != whole
    ]
    return {
        "first": first,
        "epoch": epoch / count * len(parts.train),
        "train": len(parts.train),
        "bytes": memory() - before,
        "data": samples.images.nbytes + sum(part.nbytes for part in copies),
    }


class OneByOne(Dataset[Tensor]):
    """Samples read one at a time, resized and scaled by torchvision's transforms on PIL images."""

    def __init__(self, count: int, read: Callable[[int], Any]) -> None:
        from torchvision import transforms

        self.count, self.read = count, read
        self.transform = transforms.Compose(
            [transforms.Resize((32, 32)), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.transform(self.read(index))
        return image


def idx_files(name: str) -> OneByOne:
    from PIL import Image
    from torchvision import datasets

    whole = {"mnist": datasets.MNIST, "fmnist": datasets.FashionMNIST}[name](str(ROOT))
    rows = (whole.targets == 0).nonzero().flatten().tolist()
    return OneByOne(len(rows), lambda index: Image.fromarray(whole.data[rows[index]].numpy()))


def cifar10() -> OneByOne:
    from PIL import Image

    from noveltylab.data.load import load  # a pickle is read by the safe reader here as well

    samples = load("cifar10", ROOT, False, False)
    rows = np.flatnonzero((samples.labels == 0) & ~np.asarray(samples.official_test)).tolist()
    images = samples.images.numpy()
    return OneByOne(
        len(rows), lambda index: Image.fromarray(images[rows[index]].transpose(1, 2, 0))
    )


def picture_files(pattern: str) -> OneByOne:
    from PIL import Image

    files = sorted(ROOT.glob(pattern))
    return OneByOne(len(files), lambda index: Image.open(files[index]))


def patches() -> OneByOne:
    from PIL import Image

    files = sorted(ROOT.glob("ped2/training/frames/*/*.jpg")) or sorted(
        ROOT.glob("*/UCSDped2/Train/Train*/[0-9]*.tif")
    )

    def read(index: int) -> Any:
        frame, place = divmod(index, 96)
        row, column = 30 * (place // 12), 30 * (place % 12)
        return Image.open(files[frame]).crop((column, row, column + 30, row + 30))

    return OneByOne(len(files) * 96, read)


def segments() -> OneByOne:
    import librosa
    import soundfile
    from PIL import Image

    files = sorted(ROOT.glob("TUT-*-development/data/mixture_data/devtrain/*/audio/*.wav"))
    length = 63 * 512 + 2048

    def read(index: int) -> Any:
        file, place = divmod(index, 40)
        wave, rate = soundfile.read(
            files[file], start=place * 64 * 512, frames=length, dtype="float32"
        )
        mel = librosa.feature.melspectrogram(
            y=wave, sr=rate, n_fft=2048, hop_length=512, n_mels=64, center=False
        )
        level = np.clip(librosa.power_to_db(mel) * 2 + 128, 0, 255)
        return Image.fromarray(level.astype(np.uint8))

    return OneByOne(len(files) * 40, read)


def plain(name: str) -> dict[str, float]:
    """The same numbers the plain way."""
    builders: dict[str, Callable[[], OneByOne]] = {
        "cifar10": cifar10,
        "coil20": lambda: picture_files("COIL-20/coil-20-32x32/obj1__*.png"),
        "coil100": lambda: picture_files("coil-100/**/obj1__*.png"),
        "ucsd": patches,
        "dcase": segments,
    }
    before, start = memory(), time.perf_counter()
    whole = builders[name]() if name in builders else idx_files(name)
    part = Subset(whole, torch.randperm(len(whole))[:PLAIN].tolist())
    loader = DataLoader(part, min(BATCH, len(part)), num_workers=2, persistent_workers=True)
    next(iter(loader))
    first = time.perf_counter() - start
    start = time.perf_counter()
    count = sum(len(x) for x in loader)
    return {
        "first": first,
        "epoch_each": (time.perf_counter() - start) / count,
        "bytes": memory() - before,
    }


def measured(way: str, name: str, cache: str) -> dict[str, float]:
    environment = {**os.environ, "NOVELTYLAB_CACHE": cache}
    command = [sys.executable, "-m", "benchmarks.readers", "--one", way, name]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(process.stderr.strip().splitlines()[-1])
    return dict(json.loads(process.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sets", nargs="*", help=f"of {', '.join(SETS)} (default: those that are there)"
    )
    parser.add_argument("--one", choices=("ours", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        import noveltylab.run.pipeline  # noqa: F401  # imports belong to neither side

        print(json.dumps({"ours": ours, "plain": plain}[arguments.one](arguments.sets[0])))
        return
    from noveltylab.results.provenance import provenance

    facts = provenance()
    print(
        f"{facts['hardware']['cpu']}, {facts['hardware']['cores']} cores, torch {facts['versions']['torch']}"
    )
    print(
        "dataset  train samples | to first batch: ours, again, plain | an epoch: ours, plain, ratio | peak: ours, x data, plain"
    )
    for name in arguments.sets or SETS:
        with tempfile.TemporaryDirectory() as cache:
            try:
                first, again, plain_costs = (
                    measured(way, name, cache) for way in ("ours", "ours", "plain")
                )
            except RuntimeError as error:
                print(f"{name:8} not measured: {error}")
                continue
        epoch = plain_costs["epoch_each"] * again["train"]
        print(
            f"{name:8} {int(again['train']):7} | "
            f"{first['first']:6.2f} s {again['first']:6.2f} s {plain_costs['first']:6.2f} s | "
            f"{again['epoch']:7.3f} s {epoch:8.2f} s {epoch / again['epoch']:6.0f} x | {again['bytes'] / 2**20:5.0f} MiB "
            f"{again['bytes'] / again['data']:4.1f} {plain_costs['bytes'] / 2**20:5.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
