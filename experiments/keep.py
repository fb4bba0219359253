"""Keeps the results of runs in experiments/results/ and writes the pages of the papers' tables from them.

python -m experiments.keep outputs/ocgan/table2_mnist ocgan/table2_mnist   # every result.json there, under this name
python -m experiments.keep                                                 # only the pages, from what is kept

What is kept is each run's result.json, a few kilobytes, in the folders of its run: experiments/results/<name>/<protocol>/
<method>/<data>/inlier<k>/seed<s>/. A result of the same cell under the same name is replaced. Where the run and its data
lay on this machine is left out.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from noveltylab.errors import UserError
from noveltylab.report.__main__ import report
from noveltylab.report.collect import collect
from noveltylab.results import read_result, write_atomic, write_result

EXPERIMENTS = Path(__file__).parent
KEPT = EXPERIMENTS / "results"
PAPERS = ("ocgan", "ca_entropy", "oled", "nda")


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or 2 for bad input."""
    made = argparse.ArgumentParser(prog="python -m experiments.keep", description=__doc__.partition("\n")[0])
    made.add_argument(
        "folder", nargs="?", type=Path, help="of runs, at any depth; without it only the pages are written"
    )
    made.add_argument("name", nargs="?", help="under which they are kept, e.g. ocgan/table2_mnist")
    options = made.parse_args(arguments)
    if (options.folder is None) != (options.name is None):
        made.error("a folder goes with a name, e.g. outputs/ocgan/table2_mnist ocgan/table2_mnist")
    try:
        if options.folder is not None:
            found = collect(options.folder, check=True)
            for run in found.runs:
                keep(run.folder, options.name)
            for folder, why in [*found.damaged, *found.unfinished, *found.unmeasured]:
                print(f"not kept: {folder} ({why})", file=sys.stderr)
        write_pages()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def keep(folder: Path, name: str, also: tuple[str, ...] = ()) -> None:
    """Copies the result of a complete run folder, and other files of it, to where `name` keeps that cell."""
    place = KEPT.joinpath(name, *folder.parts[-5:])
    for file in also:
        write_atomic(place / file, (folder / file).read_bytes())
    write_result(place, portable(read_result(folder), name))


def portable(result: dict[str, Any], name: str) -> dict[str, Any]:
    """The content of a result.json with the folders of this machine put as a reader would have them."""
    output = f"outputs/{name}"
    command = re.sub(r"^\S*__main__\.py", "python -m noveltylab", result["provenance"].get("command", ""))
    command = re.sub(r" data\.root=\S+", "", re.sub(r"\boutput=\S+", f"output={output}", command))
    data = {**result["config"]["data"], "root": None}
    return {
        **result,
        "config": {**result["config"], "output": output, "data": data},
        "provenance": {**result["provenance"], "command": command},
    }


def write_pages() -> None:
    """RESULTS.md of every paper, printed numbers beside those of the kept results, and that of the classical methods."""
    for paper in PAPERS:
        report(KEPT, tables=[paper], markdown=EXPERIMENTS / paper / "RESULTS.md", name=f"the tables of {paper}")
    if (classical := KEPT / "classical").is_dir():
        report(classical, markdown=EXPERIMENTS / "classical" / "RESULTS.md")


if __name__ == "__main__":
    sys.exit(main())
