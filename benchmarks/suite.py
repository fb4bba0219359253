"""The four methods side by side: a bare PyTorch loop, the same under plain Lightning, and noveltylab.

    python -m benchmarks.suite                                   # all methods on MNIST and CIFAR-10 shapes (`make bench`)
    python -m benchmarks.suite --methods ocgan --shapes mnist --repeats 5
    python -m benchmarks.suite --device cuda                     # `make bench-gpu`

Each contender is a process of its own (peak memory and time to its first step are its own) that waits between its turns; the
turns go round, and medians are compared. All are forked from one process that has imported everything once: what that took is
part of every time to the first step. Threads wait for each other as those of a run on this machine would. A turn is a whole
training of four short epochs, end to end: images through the loader, all the paper's steps (OCGAN mines in the last of them, as
by default), losses read; for noveltylab also log, checkpoint and selection on a run's own share of held-out images.
Real images where $NOVELTYLAB_DATA has them, else the bundled digits enlarged. Results are appended to benchmarks/RESULTS.md.

bare, lightning: benchmarks/reference.py. lab: noveltylab's whole `fit`. lab update: its `update` on batches made beforehand.
"""

import argparse
import logging
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from noveltylab.command.hydra_versions import BASE
from noveltylab.nets.cpu.threads import settle_waiting

HERE = Path(__file__).parent
METHODS, SHAPES = ("ocgan", "ca_entropy", "oled", "nda"), ("mnist", "cifar10")
CONTENDERS = ("bare", "lightning", "lab")
#: (contender, precision) in the order of the table; the first is what all are compared with
ROWS = [
    ("bare", "32-true"),
    ("lightning", "32-true"),
    ("lab", "32-true"),
    ("lab update", "32-true"),
]
ROWS += [("bare", "bf16-mixed"), ("lab", "bf16-mixed")]
EPOCHS, SCORED = 4, 256
#: steps an epoch and images a step on a CPU, so that all of it takes minutes: OLED's steps are the
#: longest by far
SIZES = {"ocgan": (1, 64), "ca_entropy": (2, 64), "oled": (1, 16), "nda": (3, 32)}
GPU_STEPS, BATCH = 200, 64
#: what a CPU needs so that all of it takes minutes: OLED's networks for CIFAR-10 want a GPU
NARROWER = {("oled", "cifar10"): "method.width=0.25"}
#: the papers' networks, where the recipes have narrower ones
WHOLE = {
    "ocgan": ["method.channels=64", "method.classifier_channels=64", "method.mining_steps=5"],
    "ca_entropy": ["method.channels=64"],
    "oled": ["method.width=1.0"],
    "nda": ["method.channels=64"],
}
#: held-out images for each training image, as the protocols hold them out: their loss is looked at
#: after every epoch
HELD_OUT = 1 / 9


# What a contender does, in its process.


def images(shape: str, count: int) -> Any:
    """uint8 (count, C, H, W): the first real ones, else the bundled digits at that shape."""
    import numpy as np
    import torch

    from noveltylab.data.load import load

    if os.environ.get("NOVELTYLAB_DATA"):
        pictures = load(shape, None, False, False).images[:count]
    else:
        digits = np.kron(
            load("digits", None, True, False).images.numpy(), np.ones((1, 1, 4, 4), np.uint8)
        )
        pictures = torch.from_numpy(digits)
        pictures = (
            pictures[:, :, 2:30, 2:30] if shape == "mnist" else pictures.expand(-1, 3, -1, -1)
        )
    return pictures[torch.arange(count) % len(pictures)].contiguous()


def options(method: str, shape: str, precision: str, device: str, batch: int, epochs: int) -> Any:
    from hydra import compose, initialize_config_dir

    from noveltylab.job import CONF
    from noveltylab.options import check_options

    overrides = [
        f"method={method}",
        f"data={shape}",
        "inlier=0",
        "data.size=32",
        "data.contrast=none",
        "data.subtract_mean=false",
        "trainer.average_epochs=0.0",
        "trainer.lr_decay_from=1.0",
        *WHOLE[method],
    ]
    overrides += [
        f"data.batch_size={batch}",
        f"trainer.max_epochs={epochs}",
        f"trainer.precision={precision}",
    ]
    overrides += (
        ["trainer.accelerator=gpu", "trainer.cuda_graph=auto"]
        if device == "cuda"
        else ["trainer.accelerator=cpu"]
    )
    if device == "cpu" and (method, shape) in NARROWER:
        overrides.append(NARROWER[method, shape])
    with initialize_config_dir(str(CONF), **BASE):
        return check_options(compose("train", overrides))


def parts_of(steps: int, batch: int) -> tuple[int, int, int]:
    """How many images are trained on in an epoch, held out and scored."""
    return steps * batch, round(HELD_OUT * steps * batch), SCORED


class Contender:
    """One side of the comparison on one method and shape."""

    def __init__(
        self,
        name: str,
        method: str,
        shape: str,
        device: str,
        steps: int,
        batch: int = BATCH,
        pixels: Any = None,
    ) -> None:
        """`pixels`: what `images` gave another process, as an array, since reading them takes more
        memory than training.
        """
        import numpy as np
        import torch

        from noveltylab.data.samples import Samples
        from noveltylab.data.split import Split

        # Lightning's advice to the plain module would drown the table
        warnings.filterwarnings("ignore")
        logging.getLogger("noveltylab").setLevel(logging.WARNING)
        for quiet in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(quiet).setLevel(logging.ERROR)
        self.name, self.method, self.shape, self.device = name, method, shape, device
        self.steps, self.batch, self.epochs = steps, batch, EPOCHS
        train, val, test = parts_of(steps, batch)
        pixels = images(shape, train + val + test) if pixels is None else torch.from_numpy(pixels)
        labels = np.zeros(len(pixels), dtype=np.int64)
        labels[-test // 2 :] = 1
        index = np.arange(len(pixels))
        parts = index[:train], index[train : train + val], index[train + val :]
        self.split = Split(*parts, labels[parts[2]] == 1)
        self.samples = Samples(pixels, labels, None, index.astype(str), True)
        self.times: list[float] = []

    def seen(self) -> None:
        """Called after every step."""
        if not self.times:
            self.wait()
            self.times.append(time.time())

    def wait(self) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def build(self, precision: str) -> Any:
        from noveltylab.run.build import build

        run_options = options(
            self.method, self.shape, precision, self.device, self.batch, self.epochs
        )
        return run_options, *build(run_options, self.samples, self.split)

    def turn(self, precision: str, kind: str, first: bool = False) -> dict[str, float]:
        """Trains once: seconds of it, when the first step was done, peak memory; counts operations
        on the first turn.

        Plain Lightning does what the bare loop does: its first turn counts nothing, and is one
        epoch.
        """
        import torch

        self.epochs = 1 if first and kind == "lightning" else EPOCHS
        settings, data, method = self.build(precision)

        def train() -> float:
            if kind == "lab update":
                return self._update(data, method, precision)
            return (
                self._lab(settings, data, method)
                if kind == "lab"
                else self._plain(data, method, precision)
            )

        seconds, counted = count_flops(train) if first and kind != "lightning" else (train(), 0)
        self.wait()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if self.device == "cuda":
            peak = torch.cuda.max_memory_reserved()
        costs = {
            "seconds": seconds,
            "first": self.times[0] if self.times else 0.0,
            "peak": float(peak),
        }
        costs["flops"] = counted / (EPOCHS * self.steps * self.batch)
        if kind != "lab update":
            costs["score"] = self._score(data, method)
        return costs

    def _update(self, data: Any, method: Any, precision: str) -> float:
        import torch

        from noveltylab.methods.base import Batch

        data.place(torch.device(self.device))
        method.to(self.device).prepare(data.preprocess(data.train))
        method.to(memory_format=torch.channels_last).train()
        chunks = [
            data.gather(rows.to(data.train.device).view(-1, self.batch))
            for rows in data.train_dataloader()
        ]
        batches = [
            Batch(x.contiguous(memory_format=torch.channels_last), rows)
            for chunk in chunks
            for x, rows in zip(*chunk, strict=True)
        ]
        self.wait()
        start = time.perf_counter()
        for epoch in range(EPOCHS):
            method.progress = epoch / EPOCHS
            with torch.autocast(self.device, torch.bfloat16, enabled=precision != "32-true"):
                for batch in batches:
                    method.update(batch)
        self.wait()
        return time.perf_counter() - start

    def _lab(self, settings: Any, data: Any, method: Any) -> float:
        from noveltylab.run.pipeline import train_method
        from noveltylab.training.loggers import build_loggers

        inner = method.update

        def update(batch: Any) -> Any:
            losses = inner(batch)
            self.seen()
            return losses

        method.update = update
        with tempfile.TemporaryDirectory() as folder:
            sinks = build_loggers(settings, Path(folder), {})
            start = time.perf_counter()
            train_method(method, data, settings, sinks, Path(folder))
            self.wait()
            return time.perf_counter() - start

    def _reference(self, data: Any, method: Any) -> Any:
        from benchmarks.reference import REFERENCES

        method.prepare(data.preprocess(data.train))
        return REFERENCES[self.method](method).to(self.device)

    def _plain(self, data: Any, method: Any, precision: str) -> float:
        import lightning as L

        from benchmarks.reference import PlainModule, bare_loop, loader

        reference = self._reference(data, method)
        pixels = self.samples.images[: self.steps * self.batch]
        batches = loader(pixels, 32, self.batch, method, self.device)
        start = time.perf_counter()
        if self.name == "bare":
            bare_loop(
                reference, batches, self.epochs, self.device, precision != "32-true", self.seen
            )
        else:
            with tempfile.TemporaryDirectory() as folder:
                trainer = L.Trainer(
                    default_root_dir=folder,
                    max_epochs=self.epochs,
                    accelerator="gpu" if self.device == "cuda" else "cpu",
                    devices=1,
                    precision=precision,  # type: ignore[arg-type]  # one of those that it takes
                    enable_progress_bar=False,
                    enable_model_summary=False,
                )
                trainer.fit(PlainModule(reference, self.seen), batches)
        self.wait()
        return time.perf_counter() - start

    def _score(self, data: Any, method: Any) -> float:
        """Images scored in a second; lab: every named score, the others: the primary one."""
        from benchmarks.reference import REFERENCES, loader, score_all
        from noveltylab.scoring.apply import novelty_scores

        method.to(self.device)
        start = time.perf_counter()
        if self.name == "lab":
            novelty_scores(method, data.preprocess, data.test, 512)
        else:
            batches = loader(data.test, 32, BATCH, None, self.device, ordered=True)
            score_all(REFERENCES[self.method](method), batches, self.device)
        return len(data.test) / (time.perf_counter() - start)


def count_flops(function: Callable[[], float]) -> tuple[float, int]:
    """What the function returns and its floating-point operations by torch's formulas.

    Torch's own counter also follows modules, and fails on gradients at inputs.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    total = 0

    class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
        def __torch_dispatch__(
            self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal total
            output = operation(*args, **(kwargs or {}))
            if (formula := flop_registry.get(operation._overloadpacket)) is not None:
                total += formula(*args, **(kwargs or {}), out_val=output)
            return output

    with Count():  # type: ignore[no-untyped-call]
        returned = function()
    return returned, total


def serve(requests: Any, arguments: tuple[Any, ...]) -> None:
    """Answers one request after another; None is the last."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1), os.dup2(nowhere, 2)  # what libraries print would stand in the table
    try:
        contender = Contender(*arguments)
        while (request := requests.recv()) is not None:
            requests.send(contender.turn(**request))
    except Exception:  # whatever it was: only the process that prints the table can say it
        requests.send(traceback.format_exc())


# The comparison.


def peaks(device: str) -> dict[str, float]:
    """GFLOP/s by precision of a large convolution: the peak here.

    It has 64 x 128 x 32 x 32 inputs, 3 x 3 kernels and 128 outputs, channels last.
    """
    import torch
    from torch.nn import functional as F

    rates = {}
    for precision, dtype in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        x, weight = (
            torch.randn(shape, device=device, dtype=dtype)
            for shape in ((64, 128, 32, 32), (128, 128, 3, 3))
        )
        x, weight = (part.contiguous(memory_format=torch.channels_last) for part in (x, weight))
        times = []
        for _ in range(8):
            start = time.perf_counter()
            F.conv2d(x, weight, padding=1)
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        rates[precision] = 2 * 64 * 128 * 128 * 9 * 1024 / min(times) / 1e9
    return rates


class Processes:
    """Where contenders come from."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["noveltylab.run.pipeline", "benchmarks.reference"])
        start = time.time()
        empty = self.context.Process(target=time.time)
        empty.start()
        empty.join()
        #: seconds that all imports took, once
        self.imports = time.time() - start

    def start(self, *arguments: Any) -> "Process":
        return Process(self.context, arguments)


class Process:
    """A contender's process."""

    def __init__(self, context: Any, arguments: tuple[Any, ...]) -> None:
        self.started = time.time()
        self.requests, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, arguments), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, **request: Any) -> dict[str, float]:
        try:
            self.requests.send(request)
            answer = self.requests.recv()
        except (EOFError, BrokenPipeError):
            self.process.join()
            answer = f"ended with {self.process.exitcode}"
        if isinstance(answer, str):
            raise SystemExit(f"a contender failed:\n{answer[-2000:]}")
        return dict(answer)

    def close(self) -> None:
        self.requests.send(None)
        self.process.join()


def rows_for(peak: dict[str, float]) -> list[tuple[str, str]]:
    """The rows of the table: those in bf16 only where the machine is faster in it, not where it
    emulates it.
    """
    return [row for row in ROWS if row[1] == "32-true" or peak[row[1]] > peak["32-true"]]


def sizes(method: str, arguments: argparse.Namespace) -> tuple[int, int]:
    """Steps an epoch and images a step."""
    steps, batch = (GPU_STEPS, BATCH) if arguments.device == "cuda" else SIZES[method]
    return arguments.steps or steps, batch


def compare(
    method: str,
    shape: str,
    arguments: argparse.Namespace,
    peak: dict[str, float],
    nursery: Processes,
) -> list[str]:
    """Rows of the table for one method and shape."""
    processes, first, memory, flops = {}, {}, {}, {}
    pixels = images(shape, sum(parts_of(*sizes(method, arguments)))).numpy()
    for name in CONTENDERS:  # one after another: starting together they would slow each other
        processes[name] = process = nursery.start(
            name, method, shape, arguments.device, *sizes(method, arguments), pixels
        )
        costs = process.ask(precision="32-true", kind=name, first=True)
        first[name] = nursery.imports + costs["first"] - process.started
        memory[name], flops[name] = costs["peak"], costs["flops"]
    flops["lab update"], flops["lightning"] = flops["lab"], flops["bare"]
    turns: dict[tuple[str, str], list[dict[str, float]]] = {row: [] for row in rows_for(peak)}
    for _ in range(arguments.repeats):
        for name, precision in turns:
            process = processes["lab" if name.startswith("lab") else name]
            turns[name, precision].append(process.ask(precision=precision, kind=name))
    for process in processes.values():
        process.close()
    steps, batch = sizes(method, arguments)
    count = EPOCHS * steps * batch
    speed = {
        row: [count / turn["seconds"] for turn in row_turns] for row, row_turns in turns.items()
    }
    median = {row: statistics.median(values) for row, values in speed.items()}
    scored = {
        row: statistics.median(turn.get("score", 0) for turn in row_turns)
        for row, row_turns in turns.items()
    }
    lines = []
    for (name, precision), values in speed.items():
        rate = median[name, precision]
        once = name in first and precision == "32-true"
        gigaflops = rate * flops[name] / 1e9
        cells = [
            f"{method}, {NARROWER[method, shape]}"
            if arguments.device == "cpu" and (method, shape) in NARROWER
            else method,
            shape,
            name,
            precision.split("-")[0],
            f"{rate:.0f} ({min(values):.0f}-{max(values):.0f})",
            f"{rate / median['bare', '32-true']:.2f}",
            f"{rate / median['lightning', '32-true']:.2f}",
            f"{1000 * batch / rate:.0f}",
            f"{gigaflops:.0f} ({100 * gigaflops / peak[precision]:.0f} %)",
            f"{memory[name] / 2**20:.0f}" if once else "",
            f"{first[name]:.1f}" if once else "",
            f"{scored[name, precision]:.0f}" if scored[name, precision] else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


HEADS = [
    "method",
    "shape",
    "side",
    "bits",
    "images/s (range)",
    "x bare 32",
    "x lightning 32",
    "ms a step",
    "GFLOP/s (of peak)",
    "peak MiB",
    "s to first step",
    "scored/s",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=SHAPES)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=3, help="turns of each (default 3)")
    parser.add_argument(
        "--steps", type=int, help="steps in an epoch (default 1 or 2, on a GPU 200)"
    )
    parser.add_argument(
        "--results", type=Path, default=HERE / "RESULTS.md", help="where to append the table"
    )
    arguments = parser.parse_args()
    settle_waiting(None)
    nursery = Processes()
    import torch

    from noveltylab.results.provenance import provenance

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is visible here")
    gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else None
    facts = provenance(datetime.now(UTC), gpu, torch.get_num_threads())
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    peak = peaks(arguments.device)
    waiting = (
        f"{os.environ['GOMP_SPINCOUNT']} turns"
        if "GOMP_SPINCOUNT" in os.environ
        else "as OpenMP has it"
    )
    real = "real images" if os.environ.get("NOVELTYLAB_DATA") else "digits enlarged to the shape"
    lines = [
        f"## {datetime.now(UTC):%Y-%m-%d %H:%M}, commit {str(facts.get('commit') or 'unknown')[:12]}",
        "",
        f"{gpu or facts['hardware']['cpu']}, {torch.get_num_threads()} of {facts['hardware']['cores']} cores; {versions}. "
        f"Threads wait {waiting}. Convolution peak {peak['32-true']:.0f} GFLOP/s in float32, "
        f"{peak['bf16-mixed']:.0f} in bfloat16. {EPOCHS} epochs of "
        + ", ".join(
            "{} x {} images ({})".format(*sizes(method, arguments), method)
            for method in arguments.methods
        )
        + f", medians of {arguments.repeats} turns, {real}.",
        "",
        "| " + " | ".join(HEADS) + " |",
        "|" + " --- |" * len(HEADS),
    ]
    print("\n".join(lines), flush=True)
    if not arguments.results.exists():
        arguments.results.write_text(
            "# Speed, side by side\n\nAppended by `make bench`; what the columns are: docs/notes/benchmarks.md.\n"
        )
    append(arguments.results, ["", *lines])
    for method in arguments.methods:
        for shape in arguments.shapes:
            append(arguments.results, compare(method, shape, arguments, peak, nursery))


def append(path: Path, lines: list[str]) -> None:
    """Adds lines to the table at once: what was measured stays when the rest is interrupted."""
    with open(path, "a") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
