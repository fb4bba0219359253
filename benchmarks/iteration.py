"""One training iteration: the reference's step against noveltylab's `update`, in one process, in turns.

    python -m benchmarks.iteration                      # the four methods, MNIST's shape, 32 pixels, batch 64
    python -m benchmarks.iteration ocgan --progress 0.9 # once mining has begun
    python -m benchmarks.iteration ca_entropy --compile # and with networks of torch.compile; its first turn compiles

Less than `benchmarks.suite` measures (no loader, no log), but in a minute. Medians; the first turn is not counted.
float32, and bf16 where the machine is faster in it.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.reference import REFERENCES
from benchmarks.suite import BATCH, Contender, peaks, rows_for
from noveltylab.methods.base import Batch
from noveltylab.results.provenance import provenance

Key = TypeVar("Key")


def step(side: str, name: str, shape: str, bf16: bool, progress: float) -> Callable[[], object]:
    """One iteration of that side, with its own networks and optimizers, on random images."""
    _, data, method = Contender("bare" if side == "bare" else "lab", name, shape, "cpu", 4).build(
        "32-true"
    )
    method.prepare(data.preprocess(data.train))
    x, rows = data.preprocess(data.train[:BATCH]), torch.arange(BATCH)
    if side != "bare":
        method.to(memory_format=torch.channels_last).train()
        for network in method.children() if side == "compiled" else ():
            network.compile()
        method.progress = progress
        batch = Batch(x.contiguous(memory_format=torch.channels_last), rows)

        def update() -> object:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return method.update(batch)

        return update
    reference = REFERENCES[name](method).train()
    optimizers = reference.optimizers()

    def minimise(loss: Tensor, number: int) -> None:
        if loss.requires_grad:
            optimizers[number].zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizers[number].step()
        torch.clear_autocast_cache()

    def plain() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = reference.step([x, rows, x.flip(0)], int(100 * progress), 100, minimise)
        return [loss.item() for loss in losses.values()]

    return plain


def turns(functions: Mapping[Key, Callable[[], object]], count: int) -> dict[Key, list[float]]:
    """Seconds of each function, count turns of all of them one after another."""
    times: dict[Key, list[float]] = {key: [] for key in functions}
    for _ in range(count):
        for key, function in functions.items():
            start = time.perf_counter()
            function()
            times[key].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", default=[*REFERENCES])
    parser.add_argument("--shape", default="mnist", choices=("mnist", "cifar10"))
    parser.add_argument(
        "--progress", type=float, default=0.0, help="share of the training that is over"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="a side more: noveltylab's networks compiled, float32",
    )
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    facts = provenance(datetime.now(UTC), None, torch.get_num_threads())
    print(
        f"{facts['hardware']['cpu']}, {torch.get_num_threads()} threads, torch {facts['versions']['torch']}"
    )
    sides = [
        (side, bits != "32-true")
        for side, bits in rows_for(peaks("cpu"))
        if side in ("bare", "lab")
    ]
    sides += [("compiled", False)] if arguments.compile else []
    for name in arguments.methods:
        steps = {
            key: step(key[0], name, arguments.shape, key[1], arguments.progress) for key in sides
        }
        times = turns(steps, arguments.repeats + 1)
        median = {key: statistics.median(values[1:]) for key, values in times.items()}
        for (side, bf16), value in median.items():
            ratio = median["bare", False] / value
            print(
                f"{name:10} {arguments.shape:8} {side:8} {'bf16' if bf16 else '32':4} {1000 * value:7.0f} ms  x {ratio:.2f}"
                f"  first {times[side, bf16][0]:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
