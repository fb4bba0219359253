"""`make learn`: trains methods within minutes of a CPU core each, keeps every result and writes RESULTS.md from them.

python -m experiments.learn                          # the plan mnist: every method and class of mnist.yaml
python -m experiments.learn baselines --inlier 0,3   # some classes of another plan
python -m experiments.learn --report                 # no run: only RESULTS.md, from the results kept in results/

Cells that are complete are not run again. A plan is the YAML file of its name beside this one.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import OmegaConf

from noveltylab.report.__main__ import report
from noveltylab.results import read_result, write_atomic

HERE = Path(__file__).parent
#: result.json of every run that RESULTS.md is written from: <plan>/<protocol>/<method>/<data>/inlier<k>/seed<s>/
KEPT = HERE / "results"
PLANS = sorted(path.stem for path in HERE.glob("*.yaml"))
PAPERS = ("ocgan", "ca_entropy", "oled", "nda")

Result = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or the highest of the runs'."""
    made = argparse.ArgumentParser(prog="python -m experiments.learn", description=__doc__.partition("`: ")[2])
    made.add_argument("plan", nargs="?", choices=PLANS, default="mnist", help="which file of cells (default mnist)")
    made.add_argument("--inlier", help="these classes of the plan alone, e.g. 0,3,8")
    made.add_argument("--method", help="these methods of the plan alone, e.g. ocgan,oled")
    made.add_argument("--output", type=Path, default=Path("outputs/learn"), help="where the run folders go")
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once, one thread each")
    made.add_argument("--report", action="store_true", help="run nothing")
    options = made.parse_args(arguments)
    code = 0
    if not options.report:
        plan = read_plan(options.plan)
        methods = options.method.split(",") if options.method else list(plan["methods"])
        inliers = [int(text) for text in options.inlier.split(",")] if options.inlier else plan["inliers"]
        if unknown := [name for name in methods if name not in plan["methods"]]:
            made.error(f"--method {','.join(unknown)}: not in this plan; choose from {', '.join(plan['methods'])}")
        cells = [(method, inlier) for inlier in inliers for method in methods]
        with ThreadPoolExecutor(options.jobs) as pool:
            waiting = [pool.submit(run, options.plan, plan, *cell, options.output) for cell in cells]
            code = max((future.result() for future in waiting), default=0)
    write_atomic(HERE / "RESULTS.md", document())
    for paper in PAPERS:
        report(KEPT, tables=[paper], markdown=HERE.parent / paper / "RESULTS.md")
    print((HERE / "RESULTS.md").read_text())
    return code


def read_plan(name: str) -> dict[str, Any]:
    """title, data, protocol, inliers, steady, every, methods (name -> overrides; `method=...` where it is a variant), notes."""
    plan: Any = OmegaConf.to_container(OmegaConf.load(HERE / f"{name}.yaml"))
    return dict(plan)


def run(name: str, plan: dict[str, Any], method: str, inlier: int, output: Path) -> int:
    """One cell in a process of its own; its result is kept, and its epochs where the plan asks for them."""
    own = plan["methods"][method]
    named = [] if any(text.startswith("method=") for text in own) else [f"method={method}"]
    overrides = [
        *named,
        f"method.name={method}",
        f"data={plan['data']}",
        f"protocol={plan['protocol']}",
        f"inlier={inlier}",
        f"output={output / name}",
        "pictures=false",
        *plan["every"],
        *own,
        *(["select=oracle"] if inlier in plan["steady"] else []),
    ]
    # One thread each: two runs side by side finish sooner than one after the other with two threads.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = subprocess.run([sys.executable, "-m", "noveltylab", *overrides], env=environment, check=False).returncode
    if code == 0:
        place = folder(plan, method, inlier)
        for file in ("result.json", *(["metrics.csv"] if inlier in plan["steady"] else [])):
            (KEPT / name / place).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(output / name / place / file, KEPT / name / place / file)
    return code


def folder(plan: dict[str, Any], method: str, inlier: int) -> Path:
    return Path(str(plan["protocol"]), method, str(plan["data"]), f"inlier{inlier}", "seed0")


def document() -> str:
    """RESULTS.md: a section for each plan."""
    lines = [
        "# Do the methods learn?",
        "",
        "AUROC of runs of a few minutes on one CPU core, one seed. Written by `make learn` from the results in `results/`;",
        "schedules in the plan's file. Bold: the method's primary score. The weights are those of the epoch with the lowest",
        "loss on held-out inliers: no label of an outlier chose anything. Last five: highest minus lowest test AUROC of the",
        "last five epochs, of the classes where `select=oracle` logged it. A cell without a number was not run. Seconds are",
        "those of training; other work ran beside some runs.",
    ]
    for name in PLANS:
        lines += ["", *section(name, read_plan(name))]
    return "\n".join(lines) + "\n"


def section(name: str, plan: dict[str, Any]) -> list[str]:
    """One plan's table: per class and mean, floors, seconds, epochs, hardware."""
    found = {method: [kept(name, plan, method, inlier) for inlier in plan["inliers"]] for method in plan["methods"]}
    there = [result for results in found.values() for result in results if result]
    names = {result["inlier"]: result["inlier_name"] for result in there}
    heads = ["method", "score", *(names.get(inlier, str(inlier)) for inlier in plan["inliers"])]
    heads += ["mean", "last five", "epochs", "seconds"]
    lines = [f"## {plan['title']}", "", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for method, results in found.items():
        lines += rows(name, plan, method, results)
    for size in sorted({result["config"]["data"]["size"] for result in there}):
        for floor in there[0]["floor"]:
            by_inlier = {
                run["inlier"]: run["floor"][floor]["auroc"] for run in there if run["config"]["data"]["size"] == size
            }
            values = [by_inlier.get(inlier) for inlier in plan["inliers"]]
            lines.append(row(f"floor: {floor}, {size} px", "", values, "", "", "", ""))
    made = [result["provenance"] for result in there]
    machines = sorted({f"{run['hardware']['cpu']}, torch {run['versions']['torch']}" for run in made})
    return [*lines, "", f"`{name}.yaml`; {'; '.join(machines) or 'nothing run'}.", "", plan["notes"].strip()]


def rows(name: str, plan: dict[str, Any], method: str, results: list[Result | None]) -> list[str]:
    """One line for each score of a method."""
    there = [result for result in results if result]
    if not there:
        return [row(method, "", [None] * len(results), "", "", "", "")]
    epochs = span([result["selected"]["epoch"] for result in there])
    planned = there[0]["config"]["trainer"]["max_epochs"]
    seconds = span([round(result["seconds"]["train"]) for result in there])
    lines = []
    for score in there[0]["scores"]:
        values = [result["scores"][score]["auroc"] if result else None for result in results]
        spreads = [steady(name, plan, method, inlier, score) for inlier in plan["steady"]]
        five = ", ".join(f"{spread:.3f}" for spread in spreads if spread is not None)
        mark = "**" if score == there[0]["primary"] else ""
        lines.append(row(method, score, values, mark, five, f"{epochs} of {planned}", seconds))
    return lines


def span(values: list[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def row(method: str, score: str, values: list[float | None], mark: str, *rest: str) -> str:
    """One line; the mean is that of all classes of the plan, or says of how many."""
    numbers = [value for value in values if value is not None]
    short = "" if len(numbers) == len(values) else f" ({len(numbers)} of {len(values)})"
    average = f"{mark}{mean(numbers):.4f}{mark}{short}" if numbers else "not run"
    cells = ["" if value is None else f"{mark}{value:.4f}{mark}" for value in values]
    return "| " + " | ".join([method, score, *cells, average, *rest]) + " |"


def steady(name: str, plan: dict[str, Any], method: str, inlier: int, score: str) -> float | None:
    """Range of the test AUROC over the last five epochs, None where the run did not log it."""
    path = KEPT / name / folder(plan, method, inlier) / "metrics.csv"
    logged = csv.DictReader(path.read_text().splitlines()) if path.is_file() else []
    found = [float(line["value"]) for line in logged if line["name"] == f"val/oracle-{score}"][-5:]
    return max(found) - min(found) if found else None


def kept(name: str, plan: dict[str, Any], method: str, inlier: int) -> Result | None:
    """A cell's result, None where it was not run.

    Raises:
        ValueError: It was run with other options than the plan's.
    """
    place = KEPT / name / folder(plan, method, inlier)
    if not (place / "result.json").is_file():
        return None
    result = read_result(place)
    used = OmegaConf.create(result["config"])
    for override in (*plan["every"], *plan["methods"][method]):
        key, _, text = override.partition("=")
        if key != "method" and OmegaConf.select(OmegaConf.from_dotlist([override]), key) != OmegaConf.select(used, key):
            raise ValueError(f"{place}: {key}={OmegaConf.select(used, key)}, but {name}.yaml has {text}: run it again")
    return result


if __name__ == "__main__":
    sys.exit(main())
