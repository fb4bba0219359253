"""How time and memory grow with images (1k to 60k), image size (28 to 128) and runs in a sweep; a table and a picture.

    python -m benchmarks.growth            # writes benchmarks/growth.md and .png (half an hour, for 1,000 runs)

Images: the split of that many 28-pixel images, an epoch of batches at 32 pixels, scores of all by PCA: what the framework
does; the networks' time is images times a constant. The last point has Ped2's count, 244,800 patches of 30 pixels.
Size: one OCGAN iteration of 16 images. Runs: whole sweeps of PCA on the bundled digits, without pictures; then the report
over them. Each point is a process of its own; memory is its peak, with what the imports take. `power` is the slope between
the two largest points on logarithmic axes.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
POINTS: dict[str, list[int]] = {
    "images": [1000, 4000, 16000, 60000, 244800],
    "size": [32, 48, 64, 96, 128],
    "runs": [1, 10, 100, 1000],
}


def measured(seconds: float, who: int = resource.RUSAGE_SELF) -> dict[str, float]:
    """With the peak memory of this process, or of those that it started."""
    return {"seconds": seconds, "bytes": resource.getrusage(who).ru_maxrss * 1024}


def images(count: int) -> dict[str, float]:
    """Seconds for that many training images, from uint8 to scores."""
    import numpy as np
    import torch

    from noveltylab.data.datamodule import NoveltyData
    from noveltylab.data.protocols import split
    from noveltylab.data.samples import Samples
    from noveltylab.methods.pca import PCA
    from noveltylab.scoring.apply import novelty_scores

    side = 30 if count == 244800 else 28
    total = count + 2000
    pixels = torch.randint(0, 256, (total, 1, side, side), dtype=torch.uint8)
    labels = np.zeros(total, dtype=np.int64)
    labels[-1000:] = 1
    flags = np.arange(total) >= count
    samples = Samples(pixels, labels, flags, np.arange(total).astype(str), True)
    start = time.perf_counter()
    parts = split("p2", labels, flags, 0, seed=0, val_fraction=0.0)
    data = NoveltyData(
        samples,
        parts,
        0,
        size=32,
        contrast="none",
        subtract_mean=False,
        batch_size=64,
        seed=0,
        chunk=16,
    )
    for rows in data.train_dataloader():
        data.on_after_batch_transfer(rows, 0)
    method = PCA(data.image_shape)
    method.prepare(data.preprocess(data.train))
    novelty_scores(method, data.preprocess, data.train, 512)
    return measured(time.perf_counter() - start)


def size(side: int) -> dict[str, float]:
    """Seconds of an OCGAN iteration at that size."""
    import torch

    from noveltylab.methods.base import Batch
    from noveltylab.methods.ocgan import OCGAN

    method = OCGAN((1, side, side)).to(memory_format=torch.channels_last).train()
    batch = Batch(
        torch.rand(16, 1, side, side).contiguous(memory_format=torch.channels_last),
        torch.arange(16),
    )
    times = []
    for _ in range(4):
        start = time.perf_counter()
        method.update(batch)
        times.append(time.perf_counter() - start)
    return measured(statistics.median(times[1:]))


def runs(count: int) -> dict[str, float]:
    """Seconds of a sweep of so many runs, start-up included, and of the report over them.

    Also the number of files of a run.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "noveltylab",
            "-m",
            "method=pca",
            "data=digits",
            f"output={folder}",
        ]
        command += ["pictures=false", f"seed={','.join(map(str, range(count)))}"]
        subprocess.run(command, check=True, capture_output=True)
        swept = time.perf_counter()
        costs = measured(swept - start, resource.RUSAGE_CHILDREN)
        files = sum(path.is_file() for path in Path(folder).rglob("seed*/**/*")) / count
        subprocess.run(
            [sys.executable, "-m", "noveltylab.report", folder], check=True, capture_output=True
        )
        return costs | {"report": time.perf_counter() - swept, "files": files}


def point(kind: str, value: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.growth", "--one", kind, str(value)]
    return dict(
        json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[
                -1
            ]
        )
    )


def power(first: tuple[float, float], last: tuple[float, float]) -> float:
    return math.log(last[1] / first[1]) / math.log(last[0] / first[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--kinds", nargs="+", default=list(POINTS), choices=list(POINTS))
    arguments = parser.parse_args()
    if arguments.one:
        kind, value = arguments.one
        print(json.dumps({"images": images, "size": size, "runs": runs}[kind](int(value))))
        return
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    from noveltylab.results.files import write_atomic
    from noveltylab.results.provenance import provenance

    facts: dict[str, Any] = provenance()
    lines = [
        "# Growth",
        "",
        f"{facts['hardware']['cpu']}, torch {facts['versions']['torch']}. Written by `python -m benchmarks.growth`; what is "
        "timed stands at its top. Power: slope between the two largest points on logarithmic axes; size by pixels.",
        "",
        "| kind | value | seconds | peak MiB | power of time | power of memory |",
        "|" + " --- |" * 6,
    ]
    notes: list[str] = []
    figure, axes = plt.subplots(
        2, len(arguments.kinds), figsize=(4 * len(arguments.kinds), 6), squeeze=False
    )
    for column, kind in enumerate(arguments.kinds):
        measurements = {value: point(kind, value) for value in POINTS[kind]}
        amount = {value: float(value**2 if kind == "size" else value) for value in measurements}
        for position, (value, numbers) in enumerate(measurements.items()):
            slopes = ["", ""]
            if position == len(measurements) - 1:
                before = POINTS[kind][-2]
                slopes = [
                    f"{power((amount[before], measurements[before][name]), (amount[value], numbers[name])):.2f}"
                    for name in ("seconds", "bytes")
                ]
            cells = [
                kind,
                str(value),
                f"{numbers['seconds']:.2f}",
                f"{numbers['bytes'] / 2**20:.0f}",
                *slopes,
            ]
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
            if "report" in numbers:
                notes.append(
                    f"{value} runs: {numbers['files']:.1f} files a run, report in {numbers['report']:.1f} s."
                )
                print(notes[-1], flush=True)
        for row, (name, scale, unit) in enumerate((("seconds", 1, "s"), ("bytes", 2**20, "MiB"))):
            axis, heights = (
                axes[row, column],
                [numbers[name] / scale for numbers in measurements.values()],
            )
            axis.plot([*amount.values()], heights, "o-")
            axis.set(
                xlabel=f"{kind} (pixels)" if kind == "size" else kind,
                ylabel=unit,
                ylim=(0, 1.1 * max(heights)),
            )
            axis.locator_params(nbins=5)
    figure.tight_layout()
    figure.savefig(HERE / "growth.png", dpi=80)
    write_atomic(HERE / "growth.md", "\n".join([*lines, "", *notes]).strip() + "\n")


if __name__ == "__main__":
    main()
