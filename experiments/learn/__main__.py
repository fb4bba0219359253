"""`make learn`: trains each method on three MNIST digits with a CPU budget and writes the table with both floors.

python -m experiments.learn [output]         # cells that are complete are not run again
"""

import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import OmegaConf

from noveltylab.results import write_atomic

HERE = Path(__file__).parent


def main(output: str = "outputs/learn") -> int:
    plan: Any = OmegaConf.to_container(OmegaConf.load(HERE / "learn.yaml"))
    cells = [(method, digit) for method in plan["methods"] for digit in plan["digits"]]

    def run(cell: tuple[str, int]) -> int:
        method, digit = cell
        overrides = [
            f"method={method}",
            f"inlier={digit}",
            f"output={output}",
            *plan["every"],
            *plan["methods"][method],
            *(["select=oracle"] if digit in plan["steady"] else []),
        ]
        # One thread each: two runs side by side finish sooner than one after the other with two threads.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, "-m", "noveltylab", *overrides], env=environment, check=False).returncode

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        codes = list(pool.map(run, cells))
    write_atomic(HERE / "RESULTS.md", table(plan, Path(output)))
    print((HERE / "RESULTS.md").read_text())
    return max(codes)


def table(plan: dict[str, Any], output: Path) -> str:
    """The results that there are, as Markdown: per digit and mean, floors, seconds, selection, hardware."""
    digits = plan["digits"]
    heads = [
        "method",
        "score",
        *(f"digit {digit}" for digit in digits),
        "mean",
        "last five",
        "weights",
        "seconds a run",
    ]
    lines = [
        "# Do the methods learn?",
        "",
        "MNIST P2, one seed, AUROC. Written by `make learn` from the runs' results; schedules in `learn.yaml`.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + " --- |" * len(heads),
    ]
    whole: list[dict[str, Any]] = []
    for method in plan["methods"]:
        found = [read(output, method, digit) for digit in digits]
        there = [result for result in found if result]
        if not there:
            lines.append(f"| {method} |" + " not run |" * (len(heads) - 1))
            continue
        if len(there) == len(digits):
            whole = there
        weights = ", ".join(f"{result['selected']['rule']} {result['selected']['epoch']}" for result in there)
        seconds = ", ".join(f"{result['seconds']['train']:.0f}" for result in there)
        for score in there[0]["scores"]:
            values = [result["scores"][score]["auroc"] if result else None for result in found]
            mark = "**" if score == there[0]["primary"] else ""
            spreads = [steady(output, method, digit, score) for digit in digits]
            five = ", ".join("-" if spread is None else f"{spread:.3f}" for spread in spreads)
            lines.append(row(method, score, values, mark, five, weights, seconds))
    if whole:
        lines += [
            row(f"floor: {floor}", "", [result["floor"][floor]["auroc"] for result in whole], "", "", "", "")
            for floor in whole[0]["floor"]
        ]
        facts = whole[0]["provenance"]
        lines += [
            "",
            f"{facts['hardware']['cpu']}, {facts['hardware']['cores']} cores; torch {facts['versions']['torch']}.",
        ]
        lines += [
            "Bold: the method's primary score. Weights: rule and epoch; no label of an outlier was used for them. Last five: "
        ]
        lines += [
            "difference between the highest and the lowest test AUROC of the last five epochs (`select=oracle` logs it)."
        ]
    return "\n".join([*lines, "", plan["notes"].strip()]) + "\n"


def row(method: str, score: str, values: list[float | None], mark: str, *rest: str) -> str:
    """One line; a cell that was not run says so, and then there is no mean."""
    numbers = [value for value in values if value is not None]
    average = mean(numbers) if len(numbers) == len(values) else None
    cells = ["not run" if value is None else f"{mark}{value:.4f}{mark}" for value in (*values, average)]
    return "| " + " | ".join([method, score, *cells, *rest]) + " |"


def steady(output: Path, method: str, digit: int, score: str) -> float | None:
    """Range of the test AUROC over the last five epochs, None where the run did not log it."""
    path = folder(output, method, digit) / "metrics.csv"
    rows = csv.DictReader(path.read_text().splitlines()) if path.is_file() else []
    found = [float(line["value"]) for line in rows if line["name"] == f"val/oracle-{score}"][-5:]
    return max(found) - min(found) if found else None


def folder(output: Path, method: str, digit: int) -> Path:
    return output / "p2" / method / "mnist" / f"inlier{digit}" / "seed0"


def read(output: Path, method: str, digit: int) -> dict[str, Any] | None:
    path = folder(output, method, digit) / "result.json"
    return dict(json.loads(path.read_text())) if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
