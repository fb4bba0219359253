"""Several runs on one machine: side by side, in turn, or as one stacked step.

    python -m benchmarks.parallel                                  # OCGAN on the bundled digits
    python -m benchmarks.parallel --repeats 3 method=oled data=mnist trainer.max_epochs=5
    python -m benchmarks.parallel --stacked                        # OCGAN's encoder and decoder at 32 pixels, 4 runs, batch 64
    python -m benchmarks.parallel --stacked --runs 10 --device cuda

Two runs side by side with one thread each, against the same two in turn with two threads each, on two cores. Whole commands
are timed, start-up included, pinned to the first two cores (Linux); training alone is read from their results. Launchers that
run several cells at once on a CPU give each its own cores and as many threads.

--stacked times one iteration of a denoising auto-encoder: forward, squared error, backward. apart: one run after another;
vmap: torch.func's stacked parameters (batch norm on the batch's statistics alone); grouped: the runs' first two convolutions
as grouped ones. In turns; medians.
"""

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from noveltylab.methods.ocgan import decoder, encoder
from noveltylab.results.provenance import provenance
from noveltylab.results.record import read_result

SHORT = ["method=ocgan", "data=digits", "trainer.max_epochs=10"]


def start(folder: Path, seed: int, threads: int, options: list[str]) -> subprocess.Popen[bytes]:
    """One run as a user starts it."""
    run_options = [
        f"output={folder}",
        f"seed={seed}",
        f"resources.num_cpus={threads}",
        "trainer.accelerator=cpu",
    ]
    command = [sys.executable, "-m", "noveltylab", *options, *run_options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(side_by_side: bool, options: list[str]) -> tuple[float, float]:
    """Seconds of both runs: from the first start to the last end, and of training alone."""
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        runs = []
        for seed in (0, 1):
            runs.append(start(folder, seed, 1 if side_by_side else 2, options))
            if not side_by_side:
                runs[-1].wait()
        if any(run.wait() for run in runs):
            raise SystemExit("a run failed; try its options by themselves")
        seconds = time.perf_counter() - began
        train = [
            read_result(path.parent)["seconds"]["train"] for path in folder.rglob("result.json")
        ]
        return seconds, max(train) if side_by_side else sum(train)


def time_whole_runs(repeats: int, options: list[str]) -> None:
    """Prints the seconds of both ways and their ratio."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    seconds: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for _ in range(repeats):
        for side_by_side, times in seconds.items():
            times.append(measure(side_by_side, options))
    hardware = provenance()["hardware"]
    print(f"{hardware['cpu']}, {hardware['cores']} cores; {' '.join(options)}; median of {repeats}")
    for column, label in enumerate(("whole commands", "training alone")):
        beside = statistics.median(times[column] for times in seconds[True])
        in_turn = statistics.median(times[column] for times in seconds[False])
        print(
            f"{label}: side by side, 1 thread each {beside:.1f} s; in turn, 2 threads each {in_turn:.1f} s; "
            f"side by side is {in_turn / beside:.2f} times as fast"
        )


def plain(network: nn.Module) -> nn.Module:
    """torch's own layers (vmap knows no others), without running statistics or dropout."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = nn.Conv2d
        elif isinstance(module, nn.ConvTranspose2d):
            module.__class__ = nn.ConvTranspose2d
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
        elif isinstance(module, nn.ReLU | nn.LeakyReLU):
            module.inplace = False
    return network


def contenders(runs: int, batch: int, device: str) -> dict[str, Callable[[], object]]:
    """The steps to be timed, by name."""
    networks = [
        plain(nn.Sequential(encoder(1, 64, 16, 4, 2), decoder(1, 64, 16, 4, 2, 0.0))).to(device)
        for _ in range(runs)
    ]
    x = torch.rand(runs, batch, 1, 32, 32, device=device)

    def apart() -> None:
        for network, images in zip(networks, x, strict=True):
            network.zero_grad()
            F.mse_loss(network(images), images).backward()  # type: ignore[no-untyped-call]  # torch's own

    parameters, buffers = stack_module_state(networks)
    base = copy.deepcopy(networks[0]).to("meta")

    def loss(weights: dict[str, Tensor], state: dict[str, Tensor], images: Tensor) -> Tensor:
        return F.mse_loss(functional_call(base, (weights, state), (images,)), images)

    def packed() -> object:
        return vmap(grad(loss))(parameters, buffers, x)

    first = torch.randn(64, 1, 5, 5, device=device, requires_grad=True)
    second = torch.randn(128, 64, 5, 5, device=device, requires_grad=True)
    stacked = [torch.cat([w.detach()] * runs).requires_grad_() for w in (first, second)]
    wide = x.transpose(0, 1).reshape(batch, runs, 32, 32)

    def two_apart() -> None:
        for images in x:
            F.conv2d(
                F.relu(F.conv2d(images, first, None, 2, 2)), second, None, 2, 2
            ).sum().backward()  # type: ignore[no-untyped-call]  # torch's own

    def two_grouped() -> None:
        hidden = F.relu(F.conv2d(wide, stacked[0], None, 2, 2, groups=runs))
        F.conv2d(hidden, stacked[1], None, 2, 2, groups=runs).sum().backward()  # type: ignore[no-untyped-call]  # torch's own

    return {
        "apart": apart,
        "vmap": packed,
        "two layers apart": two_apart,
        "two layers grouped": two_grouped,
    }


def time_stacked_steps(repeats: int, runs: int, batch: int, device: str) -> None:
    """Prints the milliseconds of each way to do one step of all runs."""
    times: dict[str, list[float]] = {}
    steps = contenders(runs, batch, device)
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            start_time = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first turn warms up
                times.setdefault(name, []).append(time.perf_counter() - start_time)
    hardware = provenance()["hardware"]
    print(f"{hardware['cpu']}, {torch.get_num_threads()} threads, {runs} runs, batch {batch}")
    for name, values in times.items():
        print(f"{name:20} {1000 * statistics.median(values):8.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, help="default 1, of stacked steps 5")
    parser.add_argument("--stacked", action="store_true", help="time stacked steps instead")
    parser.add_argument("--runs", type=int, default=4, help="stacked ones (default 4)")
    parser.add_argument("--batch", type=int, default=64, help="of a stacked step (default 64)")
    parser.add_argument("--device", default="cpu", help="of a stacked step (default cpu)")
    parser.add_argument("options", nargs="*", default=SHORT, help="of the whole runs")
    arguments = parser.parse_args()
    if arguments.stacked:
        repeats = arguments.repeats or 5
        time_stacked_steps(repeats, arguments.runs, arguments.batch, arguments.device)
    else:
        time_whole_runs(arguments.repeats or 1, arguments.options)


if __name__ == "__main__":
    main()
