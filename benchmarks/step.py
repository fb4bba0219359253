"""What the framework costs: a bare loop over a method's `update` against the whole fit, same batches, side by side.

    python -m benchmarks.step                            # OCGAN on MNIST ($NOVELTYLAB_DATA), else on the bundled digits
    python -m benchmarks.step --method oled --repeats 5

bare: the batches of every epoch are made beforehand, then `update` is called on each; nothing is logged or saved.
fit: the Trainer with seeds, loader, log and checkpoints, as a run has it, but nothing is held out: the framework alone.
fit and selection: the same with the loss on held-out inliers after every epoch, as many of them for each training image as
a run has. In turns; medians.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from noveltylab.command.hydra_versions import BASE
from noveltylab.data.datamodule import NoveltyData
from noveltylab.job import CONF
from noveltylab.methods.base import Batch, Method
from noveltylab.options import Options, check_options
from noveltylab.results.provenance import provenance
from noveltylab.run.build import build
from noveltylab.run.pipeline import train_method
from noveltylab.run.read import read_and_split
from noveltylab.training.loggers import build_loggers

SIDES = ("bare", "fit", "fit and selection")


def made(options: Options, images: int, held_out: bool) -> tuple[NoveltyData, Method]:
    """A run's data, cut to so many training images and its share of held-out ones, and its method."""
    samples, whole = read_and_split(options)
    share = images / len(whole.train) if held_out else 0
    return build(
        options,
        samples,
        replace(whole.limit(images), val=whole.val[: round(share * len(whole.val))]),
    )


def seconds_of(side: str, options: Options, images: int) -> float:
    """That one side takes for all its epochs, with data and method made before."""
    data, method = made(options, images, side == "fit and selection")
    if side == "bare":
        return bare(options, data, method)
    with tempfile.TemporaryDirectory() as folder:
        sinks = build_loggers(options, Path(folder), {})
        start = time.perf_counter()
        train_method(method, data, options, sinks, Path(folder))
        return time.perf_counter() - start


def bare(options: Options, data: NoveltyData, method: Method) -> float:
    """Seconds of `update` alone over the batches of all epochs."""
    method.prepare(data.preprocess(data.train))
    method.to(memory_format=torch.channels_last)
    method.train()
    chunks = [data.gather(rows.view(-1, data.batch_size)) for rows in data.train_dataloader()]
    batches = [
        Batch(x.contiguous(memory_format=torch.channels_last), rows)
        for chunk in chunks
        for x, rows in zip(*chunk, strict=True)
    ]
    start = time.perf_counter()
    for epoch in range(options.trainer.max_epochs):
        method.progress = epoch / options.trainer.max_epochs
        for batch in batches:
            method.update(batch)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default="ocgan", help="a method of conf/method (default ocgan)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each (default 3)")
    parser.add_argument("--images", type=int, default=1280, help="training images (default 1280)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs (default 3)")
    parser.add_argument(
        "--batch-size", type=int, default=64, help="images in one iteration (default 64)"
    )
    arguments = parser.parse_args()
    logging.getLogger("noveltylab").setLevel(logging.WARNING)
    real = bool(os.environ.get("NOVELTYLAB_DATA"))
    overrides = [
        f"method={arguments.method}",
        f"data={'mnist' if real else 'digits'}",
        f"data.batch_size={arguments.batch_size}",
        f"trainer.max_epochs={arguments.epochs}",
        "trainer.accelerator=cpu",
    ]
    with initialize_config_dir(str(CONF), **BASE):
        options = check_options(compose("train", overrides))
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for repeat in range(arguments.repeats + 1):
        for side in SIDES:
            value = seconds_of(side, options, arguments.images)
            if repeat:  # the first turn warms up
                seconds[side].append(value)
    median = {side: statistics.median(values) for side, values in seconds.items()}
    facts = provenance()
    print(
        f"{facts['hardware']['cpu']}, {facts['hardware']['cores']} cores, torch {facts['versions']['torch']}"
    )
    print(
        f"{arguments.method} on {options.data.name}, batch {arguments.batch_size}, "
        f"{arguments.images} images, {arguments.epochs} epochs, "
        f"{torch.get_num_threads()} threads, medians of {arguments.repeats}"
    )
    for side, values in seconds.items():
        ratio = median[side] / median["bare"]
        print(
            f"{side:17} {median[side]:8.2f} s   ({min(values):.2f} to {max(values):.2f})   {ratio:.3f}"
        )


if __name__ == "__main__":
    main()
