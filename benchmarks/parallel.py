"""Two runs side by side with one thread each, against the same two in turn with two threads each, on two cores.

    python -m benchmarks.parallel                                  # OCGAN on the bundled digits
    python -m benchmarks.parallel --repeats 3 method=oled data=mnist trainer.max_epochs=5

Whole commands are timed, start-up included, pinned to the first two cores (Linux); training alone is read from their results.
In turns; medians. Launchers that run several cells at once on a CPU give each its own cores and as many threads.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def main() -> None:
    """Prints both and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("options", nargs="*", default=SHORT, help="of the run")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    seconds: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for _ in range(arguments.repeats):
        for side_by_side, times in seconds.items():
            times.append(measure(side_by_side, arguments.options))
    hardware = provenance()["hardware"]
    print(
        f"{hardware['cpu']}, {hardware['cores']} cores; {' '.join(arguments.options)}; median of {arguments.repeats}"
    )
    for column, label in enumerate(("whole commands", "training alone")):
        beside, in_turn = (
            statistics.median(times[column] for times in seconds[kind]) for kind in (True, False)
        )
        print(
            f"{label}: side by side, 1 thread each {beside:.1f} s; in turn, 2 threads each {in_turn:.1f} s; "
            f"side by side is {in_turn / beside:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
