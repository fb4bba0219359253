"""Keeps the results of runs in experiments/results/ and writes the pages of tables and studies from them.

python -m experiments.keep outputs/ocgan/table2_mnist ocgan/table2_mnist   # the runs of that table, under its name
python -m experiments.keep                                                 # only the pages, from what is kept

What is kept is each run's result.json, a few kilobytes, as a line of experiments/results/<name>.jsonl, with the run's folder
<protocol>/<method>/<data>/inlier<k>/seed<s>; of a study its losses as well. A result of the same cell under the same name is
replaced. Where the run and its data lay on this machine is left out. A trial is never kept: a run with other options than its
experiment's, or a shortened run of a table.
"""

import argparse
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from experiments.studies import studies_page
from noveltylab.command.screen import say
from noveltylab.errors import UserError
from noveltylab.report.__main__ import report
from noveltylab.report.blocks import Block, Bullets, Document, Grid, Heading, RankPlot
from noveltylab.report.collect import Collected, Run, collect
from noveltylab.report.published import choose, read_tables
from noveltylab.report.tables import build
from noveltylab.report.text import to_markdown
from noveltylab.results.archive import SUFFIX, Row, write_rows
from noveltylab.results.files import write_atomic
from noveltylab.results.older import place_of_today
from noveltylab.results.record import read_result

EXPERIMENTS = Path(__file__).parent
KEPT = EXPERIMENTS / "results"
#: Differences that are named where a run is not kept.
NAMED = 3
PAPERS = ("ocgan", "ca_entropy", "oled", "nda")
#: The folder of studies: runs of minutes on a CPU, whose logs are kept as well.
STUDIES = "learn"


def archive(name: str) -> Path:
    """Where the results of a name are kept, such as learn/mnist."""
    return KEPT / f"{name}{SUFFIX}"


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.keep",
        description=" ".join(__doc__.partition("\n\n")[0].split()),
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="of runs, at any depth; without it only the pages are written",
    )
    parser.add_argument(
        "name", nargs="?", help="under which they are kept, e.g. ocgan/table2_mnist"
    )
    parser.add_argument(
        "--shortened",
        action="store_true",
        help="keep shortened runs as well, under a name that is no table's",
    )
    options = parser.parse_args(arguments)
    if (options.folder is None) != (options.name is None):
        parser.error(
            "a folder goes with a name, e.g. outputs/ocgan/table2_mnist ocgan/table2_mnist"
        )
    try:
        pages = (
            write_pages()
            if options.folder is None
            else keep_runs(options.folder, options.name, options.shortened)
        )
    except UserError as error:
        say(f"error: {error}")
        return 2
    for page in pages:
        say(f"page: {page}")
    return 0


def keep_runs(folder: Path, name: str, shortened: bool = False) -> list[Path]:
    """Keeps the whole runs below a folder under a name; returns the pages that were written.

    Args:
        folder: Of runs.
        name: Of an experiment, such as ocgan/table2_mnist, whose options its runs must have; or
            another one.
        shortened: Keep shortened runs as well, under a name that is no table's.
    """
    collected = collect(folder, check=True)
    rows = []
    for run in collected.runs:
        if reasons := why_not(run, collected, name, shortened):
            say(f"not kept: {run.folder} ({'; '.join(reasons)})")
        else:
            rows.append(row_of(run.folder, name, log_files(run.folder, name)))
    for place, why in [
        *collected.damaged,
        *collected.unfinished,
        *collected.unmeasured,
        *collected.trials,
    ]:
        say(f"not kept: {place} ({why})")
    paper, table = name.partition("/")[0], name if is_table(name) else ""
    if not rows:
        # a trial is looked at where it was made
        _, paths = report(folder, tables=[table] if table else [])
        return [paths["html"]]
    write_rows(archive(name), rows)
    return write_pages([paper] if paper in PAPERS else None)


def log_files(run_folder: Path, name: str) -> tuple[str, ...]:
    """The logs that are kept of a run: a study's, if the method logged any."""
    is_study = name.startswith(f"{STUDIES}/")
    return ("metrics.csv",) if is_study and (run_folder / "metrics.csv").is_file() else ()


def why_not(run: Run, collected: Collected, name: str, shortened: bool) -> list[str]:
    """Why a run is not kept under a name; empty if it is."""
    reasons = [reason for place, reason in collected.unchecked if place == run.folder]
    if is_experiment(name):
        differences = list(departures(run, name))
        remainder = f" and {len(differences) - NAMED} more" if len(differences) > NAMED else ""
        reasons += [f"a trial: {', '.join(differences[:NAMED])}{remainder}"] if differences else []
        # a study says itself how short its runs are
        shortened = not is_table(name)
    if run.shortened and not shortened:
        reasons.append(f"shortened: {', '.join(run.shortened)}")
    return reasons


def is_experiment(name: str) -> bool:
    """Whether there is an `experiment=<name>`."""
    return name in experiment_files()


def is_table(name: str) -> bool:
    """Whether `experiment=<name>` runs a paper's table."""
    return name.partition("/")[0] in PAPERS and is_experiment(name)


def departures(run: Run, name: str) -> Iterator[str]:
    """In which options that make numbers a run differs from its experiment's own.

    Each as `size 8 instead of 28`.
    """
    result = run.result
    choices = tuple(typed_choices(run.all_options, result.method, name))
    try:
        plan = planned(name, choices)
    except Exception as error:  # Hydra's, of many classes: the experiment has no such row
        yield f"no row of {name} ({' '.join(str(error).split())[:100]})"
        return
    planned_options = Run(
        run.folder, run.source, result.model_copy(update={"config": plan})
    ).options
    if result.method != (method := plan["method"]["name"]):
        yield f"method.name {result.method} instead of {method}"
    for key in sorted(planned_options.keys() | run.options.keys()):
        value = run.options.get(key, "absent")
        planned_value = planned_options.get(key, "absent")
        if as_number(value) != as_number(planned_value):
            yield f"{key} {value} instead of {planned_value}"


def as_number(text: str) -> float | str:
    """The number that an option's text is, so that 1 and 1.0 are equal; another text as it is."""
    try:
        return float(text)
    except ValueError:
        return text


def typed_choices(options: dict[str, Any], method: str, name: str) -> Iterator[str]:
    """The choices that make a run the row of the experiment that it says it is."""
    if rows_of(name):
        yield f"row={method}"
    for key in composed(name)["hydra"]["sweeper"]["params"]:
        if key in ("inlier", "seed"):
            continue
        # a group of options, such as the data, is chosen by its name
        value = options.get(key, options.get(f"{key}.name"))
        if value is not None:
            yield f"{key}={value}"
    yield f"recipe={options['recipe']}"


def rows_of(name: str) -> dict[str, list[str]]:
    """The rows of an experiment's file and their options; none if it has no rows."""
    return experiment_files()[name]


def experiment_files() -> dict[str, dict[str, list[str]]]:
    """The name of every experiment and its rows."""
    from noveltylab.configs import EXPERIMENTS as FILES  # takes a second: Hydra

    return FILES


@cache
def planned(name: str, choices: tuple[str, ...]) -> dict[str, Any]:
    """The configuration of one row of an experiment, as plain values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from noveltylab.sweep.grid import cells_of_grid

    (options,) = cells_of_grid({}, rows_of(name), choices, OverridesParser.create())
    config = composed(name, *options)
    plain = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    return OmegaConf.to_container(plain, resolve=True)  # type: ignore[return-value]  # a mapping at the top


@cache
def composed(name: str, *overrides: str) -> Any:
    """The configuration of an experiment with Hydra's own part."""
    from hydra import compose, initialize_config_dir

    from noveltylab.command.hydra_versions import BASE
    from noveltylab.job import CONF  # which makes the experiments choices of Hydra's

    with initialize_config_dir(str(CONF), **BASE):
        return compose("train", [f"experiment={name}", *overrides], return_hydra_config=True)


def row_of(folder: Path, name: str, also: tuple[str, ...] = ()) -> Row:
    """A complete run folder as a row of the archive of that name."""
    files = {file: (folder / file).read_bytes().decode() for file in also}
    return Row(
        "/".join(place_of_today(folder.parts[-5:])), portable(read_result(folder), name), files
    )


def portable(result: dict[str, Any], name: str) -> dict[str, Any]:
    """The content of a result.json with the folders of this machine put as a reader would have
    them.
    """
    output = f"outputs/{name}"
    command = re.sub(
        r"^\S*__main__\.py", "python -m noveltylab", result["provenance"].get("command", "")
    )
    command = re.sub(r" data\.root=\S+", "", re.sub(r"\boutput=\S+", f"output={output}", command))
    data = {**result["config"]["data"], "root": None}
    return {
        **result,
        "config": {**result["config"], "output": output, "data": data},
        "provenance": {**result["provenance"], "command": command},
    }


def write_pages(papers: Iterable[str] | None = None) -> list[Path]:
    """RESULTS.md of these papers, of the classical methods and of the studies.

    A paper's page shows the rows of its own tables, whichever experiment ran them, and printed
    numbers beside ours; what other papers' tables hold stands on their pages. So a table writes one
    page. Without `papers` all pages are written.
    """
    pages = []
    for paper in PAPERS if papers is None else papers:
        pages.append(page := EXPERIMENTS / paper / "RESULTS.md")
        write_atomic(page, paper_page(paper))
    if papers is None and archive("classical").is_file():
        pages.append(page := EXPERIMENTS / "classical" / "RESULTS.md")
        write_atomic(page, classical_page())
    if papers is None:
        pages.append(page := EXPERIMENTS / STUDIES / "RESULTS.md")
        write_atomic(page, studies_page(runs_of_studies()))
    return pages


def paper_page(paper: str) -> str:
    """The page of a paper: those of its tables that have a run of ours, and our numbers."""
    tables = read_tables()
    collected = collect(KEPT, check=False)
    collected.runs = own_runs(collected.runs, paper)
    places = {place_of(run) for run in collected.runs}
    own_tables = choose(tables, [paper])
    with_runs = [
        name for name in own_tables if (own_tables[name].protocol, own_tables[name].data) in places
    ]
    waiting = [name for name in own_tables if name not in with_runs]
    document = Document(f"Runs of the tables of {paper}", [], [], [])
    if with_runs:
        document, _ = build(collected, tables, f"the tables of {paper}", with_runs)
    for section in document.sections:
        section.blocks = [block for block in section.blocks if on_page(block, classes=False)]
    if waiting:
        titles = tuple(f"{name}: {own_tables[name].title}" for name in waiting)
        document.end.append(Bullets("Tables without a run", titles))
    return to_markdown(document)


def own_runs(runs: list[Run], paper: str) -> list[Run]:
    """The runs of a paper's own rows; shortened ones only where there is no whole one."""
    methods = {paper}
    for name, rows in experiment_files().items():
        if name.startswith(f"{paper}/"):
            methods |= set(rows)
    chosen_runs = []
    for run in runs:
        folder = run.source.partition("/")[0]
        if folder == paper or (folder not in PAPERS and run.result.method in methods):
            chosen_runs.append(run)
    whole = {place_of(run) for run in chosen_runs if not run.shortened}
    return [run for run in chosen_runs if not run.shortened or place_of(run) not in whole]


def place_of(run: Run) -> tuple[str, str]:
    """The protocol and the data of a run, which have a section of their own."""
    return run.result.protocol, run.result.data


def classical_page() -> str:
    """The page of the classical methods: our numbers, the printed ones stand on the papers'."""
    document, _ = build(collect(archive("classical"), check=False), read_tables(), "classical")
    for section in document.sections:
        first = section.blocks.index(Heading("Our runs")) + 1
        section.blocks = [block for block in section.blocks[first:] if on_page(block, classes=True)]
    document.end.clear()
    return to_markdown(document)


def runs_of_studies() -> dict[str, dict[str, list[Run]]]:
    """Study -> row -> its kept runs, none where it was not run yet."""
    studies: dict[str, dict[str, list[Run]]] = {}
    for name, rows in experiment_files().items():
        folder, _, study = name.partition("/")
        if folder == STUDIES:
            runs = collect(archive(name), check=False).runs if archive(name).is_file() else []
            studies[study] = {
                row: [run for run in runs if run.result.method == row] for row in rows
            }
    return studies


def on_page(block: Block, classes: bool) -> bool:
    """Whether a block is short enough for a page of two screens; the report has all of them.

    Args:
        block: Of a section.
        classes: Show the numbers of each class, where no paper's table has them.
    """
    if isinstance(block, Grid):
        if block.caption.startswith("AUROC by class"):
            return classes
        return not block.caption.startswith("AUROC over other units")
    remarks = isinstance(block, Bullets) and block.title in ("Remarks", "Made with")
    return not (remarks or isinstance(block, RankPlot))


if __name__ == "__main__":
    raise SystemExit(main())
