"""`make learn`: trains methods within minutes of a CPU core each, keeps every result and writes RESULTS.md from them.

python -m experiments.learn                          # the plan mnist: every method and class of mnist.yaml
python -m experiments.learn baselines --inlier 0,3   # some classes of another plan
python -m experiments.learn --report                 # no run: only RESULTS.md, from the results kept in ../results/

Cells that are complete are not run again. A plan is the YAML file of its name beside this one.
"""

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import OmegaConf

from experiments import keep
from noveltylab.errors import UserError
from noveltylab.options import OLD_VALUES
from noveltylab.results.archive import find_row, read_kept_file
from noveltylab.results.files import write_atomic
from noveltylab.results.phases import lacking, seen_by
from noveltylab.results.record import read_result

HERE = Path(__file__).parent
PLANS = sorted(
    (path.stem for path in HERE.glob("*.yaml")),
    key=lambda name: (not name.startswith("mnist"), name),
)

Result = dict[str, Any]
#: The floors that every run has, of raw pixels.
FLOORS = ("pca", "knn")
#: A class and a seed: a column of a plan's table.
Cell = tuple[int, int]


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, the highest of the runs', or 2 for bad input and for kept results of other
    options.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.learn", description=__doc__.partition("`: ")[2]
    )
    parser.add_argument(
        "plan",
        nargs="?",
        choices=PLANS,
        default="mnist",
        help="which file of cells (default mnist)",
    )
    parser.add_argument(
        "--inlier", help="these classes of the plan alone, e.g. 0,3,8 (default: its first ones)"
    )
    parser.add_argument("--method", help="these methods of the plan alone, e.g. ocgan,oled")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/learn"), help="where the run folders go"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="runs at once, one thread each"
    )
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    code = 0
    if not options.report:
        plan = read_plan(options.plan)
        try:
            methods = pick(options.method, plan["methods"], "--method")
            inliers = (
                pick(options.inlier, plan["inliers"], "--inlier")
                if options.inlier
                else plan["first"]
            )
        except UserError as error:
            parser.error(str(error))
        cells = [
            (method, cell) for cell in plan["cells"] if cell[0] in inliers for method in methods
        ]
        with ThreadPoolExecutor(options.jobs) as pool:
            waiting = [
                pool.submit(run, options.plan, plan, method, cell, options.output)
                for method, cell in cells
            ]
            # a signal's is negative
            code = max((abs(future.result()) for future in waiting), default=0)
    try:
        page = document()
        keep.write_pages()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_atomic(HERE / "RESULTS.md", page)
    print(page)
    return code


def read_plan(name: str) -> dict[str, Any]:
    """title, data, protocol, inliers, steady, every, methods (name -> overrides; `method=...` where
    it is a variant), notes.

    `first`: the classes that run where none is asked for, which have a mean of their own; without
    it all. `logged`: names of losses whose mean over a run's last epoch stands in a table of its
    own; the logs are kept. Overrides that begin with the name of a row above are those of that row
    and more. `seeds`: one, 0, where none is named; made of them: `cells`.
    """
    plan: Any = OmegaConf.to_container(OmegaConf.load(HERE / f"{name}.yaml"))
    plan.setdefault("first", plan["inliers"])
    plan["cells"] = [
        (inlier, seed) for inlier in plan["inliers"] for seed in plan.setdefault("seeds", [0])
    ]
    rows = plan["methods"]
    for method, own in rows.items():
        if own and "=" not in own[0]:
            above = rows[own[0]]
            method_option = [] if above and above[0].startswith("method=") else [f"method={own[0]}"]
            rows[method] = [*method_option, *above, *own[1:]]
    return dict(plan)


def pick(asked: str | None, known: Iterable[Any], option: str) -> list[Any]:
    """Those of `known` that a comma-separated option names, all where it was not given; UserError
    for another.
    """
    by_name = {str(item): item for item in known}
    names = asked.split(",") if asked else list(by_name)
    if unknown := [name for name in names if name not in by_name]:
        raise UserError(
            f"{option} {','.join(unknown)}: not in this plan; choose from {', '.join(by_name)}"
        )
    return [by_name[name] for name in names]


def overrides(name: str, plan: dict[str, Any], method: str, cell: Cell, output: Path) -> list[str]:
    """The options of one cell."""
    options = plan["methods"][method]
    return [
        *(
            []
            if any(text.startswith("method=") for text in (*plan["every"], *options))
            else [f"method={method}"]
        ),
        f"method.name={method}",
        f"data={plan['data']}",
        f"protocol={plan['protocol']}",
        f"inlier={cell[0]}",
        f"seed={cell[1]}",
        f"output={output / name}",
        "pictures=false",
        *plan["every"],
        *options,
        *(["select=oracle"] if cell[0] in plan["steady"] else []),
    ]


def run(name: str, plan: dict[str, Any], method: str, cell: Cell, output: Path) -> int:
    """One run in a process of its own; its result is kept, and its epochs where the plan asks for
    them.
    """
    command = [sys.executable, "-m", "noveltylab", *overrides(name, plan, method, cell, output)]
    # One thread each: two runs side by side finish sooner than one after the other with two
    # threads.
    code = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    ).returncode
    if code == 0:
        run_folder = (output / name / folder(plan, method, cell)).absolute()
        # a method that is fitted once has no epochs
        logged = (cell[0] in plan["steady"] or "logged" in plan) and (
            run_folder / "metrics.csv"
        ).is_file()
        keep.keep(run_folder, f"learn/{name}", ("metrics.csv",) if logged else ())
    return code


def folder(plan: dict[str, Any], method: str, cell: Cell) -> Path:
    return Path(
        str(plan["protocol"]), method, str(plan["data"]), f"inlier{cell[0]}", f"seed{cell[1]}"
    )


def kept_folder(name: str, plan: dict[str, Any], method: str, cell: Cell) -> Path:
    """Its row in the archive of the plan."""
    return keep.archive(f"learn/{name}") / folder(plan, method, cell)


def document() -> str:
    """RESULTS.md: a section for each plan."""
    lines = [
        "# Do the methods learn?",
        "",
        "AUROC of runs of minutes on one CPU core, seed 0 where none is named. By `make learn` from `../results/learn/`;",
        "schedules in the plan's file. Bold: the method's primary score. The weights are those of the epoch with the lowest",
        "loss on held-out inliers: no label of an outlier chose anything. Last five: highest minus lowest test AUROC of the",
        "last five epochs, of the classes where `select=oracle` logged it. A cell without a number was not run. Seconds are",
        "those of training; other work ran beside some runs.",
    ]
    begun = [name for name in PLANS if keep.archive(f"learn/{name}").is_file()]
    for name in begun:
        lines += ["", *section(name, read_plan(name))]
    if waiting := [f"`{name}.yaml`" for name in PLANS if name not in begun]:
        lines += ["", f"Not run yet: {', '.join(waiting)}."]
    return "\n".join(lines) + "\n"


def section(name: str, plan: dict[str, Any]) -> list[str]:
    """One plan's table: per class and mean, floors, seconds, epochs, hardware."""
    by_method = {
        method: [kept(name, plan, method, cell) for cell in plan["cells"]]
        for method in plan["methods"]
    }
    results = [result for cells in by_method.values() for result in cells if result]
    names = {result["inlier"]: result["inlier_name"] for result in results}
    seed = ", seed {}" if len(plan["seeds"]) > 1 else ""
    heads = [
        "method",
        "score",
        *(names.get(cell[0], str(cell[0])) + seed.format(cell[1]) for cell in plan["cells"]),
    ]
    heads += [
        f"mean of {', '.join(names.get(inlier, str(inlier)) for inlier in inliers)}"
        for inliers in averaged(plan)[:-1]
    ]
    heads += ["mean", "last five", "epochs", "seconds"]
    lines = [
        f"## {plan['title']}",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + " --- |" * len(heads),
    ]
    for method, cells in by_method.items():
        lines += rows(name, plan, method, cells)
    for size in sorted({result["config"]["data"]["size"] for result in results}):
        for floor in FLOORS if results else ():
            # methods may hold out different shares, which moves a floor's fourth digit: the first
            # method's stand here
            runs = [run for run in reversed(results) if run["config"]["data"]["size"] == size]
            by_cell = {(run["inlier"], run["seed"]): run["floor"][floor]["auroc"] for run in runs}
            values = [by_cell.get(cell) for cell in plan["cells"]]
            lines.append(row(plan, f"floor: {floor}, {size} px", "", values, "", "", "", ""))
    lines += seen_floors(plan, by_method)
    provenances = [result["provenance"] for result in results]
    machines = sorted(
        {f"{run['hardware']['cpu']}, torch {run['versions']['torch']}" for run in provenances}
    )
    if results and plan.get("logged"):
        lines += ["", *logged_table(name, plan, by_method)]
    return [
        *lines,
        "",
        f"`{name}.yaml`; {'; '.join(machines) or 'nothing run'}.",
        "",
        plan["notes"].strip(),
    ]


def rows(name: str, plan: dict[str, Any], method: str, results: list[Result | None]) -> list[str]:
    """One line for each score of a method."""
    complete = [result for result in results if result]
    if not complete:
        return [row(plan, method, "", [None] * len(results), "", "", "", "")]
    epochs = span([result["selected"]["epoch"] for result in complete])
    planned = complete[0]["config"]["trainer"]["max_epochs"]
    epochs = "fitted once" if epochs == "0" else f"{epochs} of {planned}{unseen(complete)}"
    seconds = span([round(result["seconds"]["train"]) for result in complete])
    lines = []
    for score in complete[0]["scores"]:
        values = [result["scores"][score]["auroc"] if result else None for result in results]
        spreads = [
            steady(name, plan, method, cell, score)
            for cell in plan["cells"]
            if cell[0] in plan["steady"]
        ]
        five = ", ".join(f"{spread:.3f}" for spread in spreads if spread is not None)
        mark = "**" if score == complete[0]["primary"] else ""
        lines.append(row(plan, method, score, values, mark, five, epochs, seconds))
    return [*lines, *diagnosed(plan, method, results)]


def diagnosed(plan: dict[str, Any], method: str, results: list[Result | None]) -> list[str]:
    """One line for each order of the test set under `diagnose=batch_statistics`; no numbers of the
    method.
    """
    primary = next(result["primary"] for result in results if result)
    by_run = [
        result.get("diagnosis", {}).get("batch_statistics", {}) if result else {}
        for result in results
    ]
    lines = []
    for order in dict.fromkeys(order for orders in by_run for order in orders):
        values = [orders[order][primary]["auroc"] if order in orders else None for orders in by_run]
        words = f"*{method} under batch statistics, {order.replace('_', ' ')}*"
        lines.append(row(plan, words, primary, values, "", "", "", ""))
    return lines


def seen_floors(plan: dict[str, Any], by_method: dict[str, list[Result | None]]) -> list[str]:
    """The highest floor of the images as each method sees them, where these are not raw pixels."""
    lines = []
    for method, results in by_method.items():
        columns: dict[str, list[float | None]] = {}
        for floor in dict.fromkeys(
            name for result in results if result for name in result["floor"] if name not in FLOORS
        ):
            columns[floor] = [
                result["floor"].get(floor, {}).get("auroc") if result else None
                for result in results
            ]
        if columns:
            highest = max(
                columns,
                key=lambda floor: mean(value for value in columns[floor] if value is not None),
            )
            lines.append(
                row(
                    plan,
                    f"floor of what {method} sees: {highest}",
                    "",
                    columns[highest],
                    "",
                    "",
                    "",
                    "",
                )
            )
    return lines


def logged_table(
    name: str, plan: dict[str, Any], by_method: dict[str, list[Result | None]]
) -> list[str]:
    """What the logs say of the last epoch, and the method's own metrics, each the mean over the
    cells that were run.
    """
    extra = list(
        dict.fromkeys(
            key
            for results in by_method.values()
            for result in results
            if result
            for key in result.get("extra", {})
        )
    )
    lines = [
        "| " + " | ".join(["method", *plan["logged"], *extra]) + " |",
        "|" + " --- |" * (1 + len(plan["logged"] + extra)),
    ]
    for method, results in by_method.items():
        complete = [
            (cell, result) for cell, result in zip(plan["cells"], results, strict=True) if result
        ]
        logs = [last_epoch(name, plan, method, cell, result) for cell, result in complete]
        columns = [[log[key] for log in logs if key in log] for key in plan["logged"]]
        columns += [
            [result["extra"][key] for _, result in complete if key in result.get("extra", {})]
            for key in extra
        ]
        lines.append(
            "| "
            + " | ".join([method, *(f"{mean(values):.4g}" if values else "" for values in columns)])
            + " |"
        )
    return lines


def last_epoch(
    name: str, plan: dict[str, Any], method: str, cell: Cell, result: Result
) -> dict[str, float]:
    """Name -> mean over the last epoch of what the run logged then."""
    lines = log(name, plan, method, cell)
    last = max((int(line["iteration"]) for line in lines), default=0)
    begins = last * (1 - 1 / result["config"]["trainer"]["max_epochs"])
    values: dict[str, list[float]] = {}
    for line in lines:
        if int(line["iteration"]) > begins:
            values.setdefault(line["name"], []).append(float(line["value"]))
    return {key: mean(logged) for key, logged in values.items()}


def log(name: str, plan: dict[str, Any], method: str, cell: Cell) -> list[dict[str, str]]:
    """The lines of a run's metrics.csv, none where it is not kept."""
    try:
        content = read_kept_file(kept_folder(name, plan, method, cell), "metrics.csv")
    except FileNotFoundError:
        return []
    return list(csv.DictReader(content.decode().splitlines()))


def unseen(results: list[Result]) -> str:
    """In how many runs the scored weights have not seen the whole method, "" for none."""
    lacks = [
        lack
        for result in results
        if (lack := lacking(seen_by(result["selected"], result["config"])))
    ]
    return f", {lacks[0]} in {len(lacks)} of {len(results)}" if lacks else ""


def span(values: list[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def row(
    plan: dict[str, Any], method: str, score: str, values: list[float | None], mark: str, *rest: str
) -> str:
    """One line; a mean is that of its classes, seeds averaged first, or says of how many cells."""
    by_cell = list(zip(plan["cells"], values, strict=True))
    means = [
        _mean([pair for pair in by_cell if pair[0][0] in inliers], mark)
        for inliers in averaged(plan)
    ]
    cells = ["" if value is None else f"{mark}{value:.4f}{mark}" for value in values]
    return "| " + " | ".join([method, score, *cells, *means, *rest]) + " |"


def averaged(plan: dict[str, Any]) -> list[list[int]]:
    """The classes behind each column of means: the first ones, where there are more, and all."""
    return (
        [plan["first"], plan["inliers"]] if plan["first"] != plan["inliers"] else [plan["inliers"]]
    )


def _mean(by_cell: list[tuple[Cell, float | None]], mark: str) -> str:
    by_class: dict[int, list[float]] = {}
    for (inlier, _), value in by_cell:
        if value is not None:
            by_class.setdefault(inlier, []).append(value)
    count = sum(map(len, by_class.values()))
    short = "" if count == len(by_cell) else f" ({count} of {len(by_cell)})"
    return f"{mark}{mean(map(mean, by_class.values())):.4f}{mark}{short}" if by_class else "not run"


def steady(name: str, plan: dict[str, Any], method: str, cell: Cell, score: str) -> float | None:
    """Range of the test AUROC over the last five epochs, None where the run did not log it."""
    logged = log(name, plan, method, cell)
    values = [float(line["value"]) for line in logged if line["name"] == f"val/oracle-{score}"][-5:]
    return max(values) - min(values) if values else None


def kept(name: str, plan: dict[str, Any], method: str, cell: Cell) -> Result | None:
    """A cell's result, None where it was not run.

    Raises:
        UserError: It was run with other options than the plan's.
    """
    place = kept_folder(name, plan, method, cell)
    if find_row(place) is None:
        return None
    result = read_result(place)
    used = OmegaConf.create(result["config"])
    # a row that builds on another, or on every row's options, has the last word
    for key, text in dict(
        override.split("=", 1) for override in (*plan["every"], *plan["methods"][method])
    ).items():
        value = OmegaConf.select(used, key, default=OLD_VALUES.get(key))
        if (
            key != "method"
            and OmegaConf.select(OmegaConf.from_dotlist([f"{key}={text}"]), key) != value
        ):
            raise UserError(
                f"{place}: {key}={OmegaConf.select(used, key)}, but {name}.yaml has {text}: run it again"
            )
    return result


if __name__ == "__main__":
    sys.exit(main())
