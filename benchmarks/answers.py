"""CPU seconds until the command answers, beside `import torch` and `import lightning`, in turns.

    python -m benchmarks.answers               # 5 rounds of all
    python -m benchmarks.answers --rounds 3

Mistakes, a run that is complete already, a prediction of a few images and a run of a second. CPU
seconds of the whole process, user and system, since other work on the machine stretches seconds of
the clock; medians of the rounds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

RUN = "outputs/p1/pca/digits/inlier8/seed0"
PCA = ("method=pca", "data=digits", "floor_features=off", "pictures=false")
#: What is typed behind `python -m noveltylab`.
ANSWERS: dict[str, tuple[str, ...]] = {
    "a bad method value": ("method=ocgan", "method.lr=-1"),
    "missing data": ("data=mnist", "data.root=nowhere"),
    "a folder that is no run": ("predict", "run=nowhere", "input=images"),
    "an input that is not there": ("predict", f"run={RUN}", "input=nowhere"),
    "complete already": PCA,
    "predict, 90 files": ("predict", f"run={RUN}", "input=images"),
    "pca on digits, anew": (*PCA, "force=true"),
}
FILES = 90


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answers")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "import lightning": [sys.executable, "-c", "import lightning"],
    }
    for name, arguments in ANSWERS.items():
        commands[name] = [sys.executable, "-m", "noveltylab", *arguments]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for _ in range(rounds):
            for name, command in commands.items():
                seconds[name].append(cpu_seconds(command, Path(folder)))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print("| command | CPU seconds | x import torch | x import lightning |")
    print("| --- | ---: | ---: | ---: |")
    for name, median in medians.items():
        of_torch = median / medians["import torch"]
        of_lightning = median / medians["import lightning"]
        print(f"| {name} | {median:.2f} | {of_torch:.2f} | {of_lightning:.2f} |")


def prepare(folder: Path) -> None:
    """A complete run, and images for it."""
    (folder / "images").mkdir()
    for number in range(FILES):
        image = Image.new("L", (8, 8), number)
        image.save(folder / "images" / f"{number}.png")
    cpu_seconds([sys.executable, "-m", "noveltylab", *PCA], folder)


def cpu_seconds(command: list[str], folder: Path) -> float:
    """User and system seconds of a command, whatever its exit code."""
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, _, usage = os.wait4(process.pid, 0)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
