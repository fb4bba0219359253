"""What the framework costs: a bare loop over a method's `update` against the whole fit, same batches, side by side.

    python -m benchmarks.step                            # OCGAN on MNIST ($NOVELTYLAB_DATA), else on the bundled digits
    python -m benchmarks.step --method oled --repeats 5

Bare: the batches of every epoch are made beforehand, then `update` is called on each; nothing is logged or saved.
Fit: the Trainer with seeds, loader, log, validation, selection and checkpoints, as a run has it. In turns; medians.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from noveltylab.__main__ import CONF
from noveltylab.loggers import build_loggers
from noveltylab.methods.base import Batch
from noveltylab.options import Options, check_options
from noveltylab.results import provenance
from noveltylab.run import build, read_and_split
from noveltylab.train import fit


def bare(options: Options) -> float:
    """Seconds of `update` alone over the batches of all epochs."""
    data, method = build(options, *read_and_split(options))
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


def whole(options: Options) -> float:
    """Seconds of the whole fit, in a folder of its own."""
    data, method = build(options, *read_and_split(options))
    with tempfile.TemporaryDirectory() as folder:
        sinks = build_loggers(options, Path(folder), {})
        start = time.perf_counter()
        fit(method, data, options, sinks, Path(folder))
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="ocgan", help="a method of conf/method (default ocgan)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each (default 3)")
    parser.add_argument("--images", type=int, default=1280, help="training images (default 1280)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs (default 3)")
    parser.add_argument("--batch-size", type=int, default=64, help="images in one iteration (default 64)")
    asked = parser.parse_args()
    logging.getLogger("noveltylab").setLevel(logging.WARNING)
    real = bool(os.environ.get("NOVELTYLAB_DATA"))
    overrides = [f"method={asked.method}", f"data={'mnist' if real else 'digits'}", f"data.limit_train={asked.images}"]
    overrides += [
        f"data.batch_size={asked.batch_size}",
        f"trainer.max_epochs={asked.epochs}",
        "trainer.accelerator=cpu",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        options = check_options(compose("train", overrides))
    seconds: dict[str, list[float]] = {"bare": [], "fit": []}
    for repeat in range(asked.repeats + 1):
        for name, contender in (("bare", bare), ("fit", whole)):
            value = contender(options)
            if repeat:  # the first turn warms up
                seconds[name].append(value)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    facts = provenance()
    print(f"{facts['hardware']['cpu']}, {facts['hardware']['cores']} cores, torch {facts['versions']['torch']}")
    print(
        f"{asked.method} on {options.data.name}, batch {asked.batch_size}, {asked.epochs} epochs, medians of {asked.repeats}"
    )
    for name, values in seconds.items():
        print(f"{name:5} {median[name]:8.2f} s   ({min(values):.2f} to {max(values):.2f})")
    print(f"fit / bare {median['fit'] / median['bare']:.3f}")


if __name__ == "__main__":
    main()
