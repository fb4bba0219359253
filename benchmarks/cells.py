"""CPU seconds of one more cell of a sweep: `pca` on digits, with and without pictures.

    python -m benchmarks.cells               # 3 rounds of all sides, in turns
    python -m benchmarks.cells --rounds 1

A sweep of MANY cells less one of FEW, over the cells between, so that what is done once (imports,
caches) is left out. CPU seconds of the whole process, user and system; medians of the rounds.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.answers import cpu_seconds

SWEEP = ("-m", "method=pca", "data=digits", "trainer=cpu", "resources.num_cpus=1")
SIDES = {
    "as it comes": (),
    "`pictures=false`": ("pictures=false",),
}
FEW, MANY = 2, 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cells")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    os.environ["OMP_NUM_THREADS"] = "1"
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NOVELTYLAB_CACHE"] = str(Path(folder) / "cache")
        sweep(Path(folder) / "first", MANY, ())  # fills the cache
        for number in range(rounds):
            for name, options in SIDES.items():
                top = Path(folder) / f"{number}-{len(options)}-{name.strip('`')}"
                few = sweep(top / "few", FEW, options)
                many = sweep(top / "many", MANY, options)
                seconds[name].append((many - few) / (MANY - FEW))
    print("| a cell of `pca` on digits | CPU seconds |")
    print("| --- | ---: |")
    for name, values in seconds.items():
        print(f"| {name} | {statistics.median(values):.2f} |")


def sweep(folder: Path, cells: int, options: tuple[str, ...]) -> float:
    """CPU seconds of a sweep of so many seeds in a folder of its own."""
    folder.mkdir(parents=True)
    arguments = [*SWEEP, f"seed=range(0,{cells})", *options]
    return cpu_seconds([sys.executable, "-m", "noveltylab", *arguments], folder)


if __name__ == "__main__":
    main()
