"""Keeps the results of runs in experiments/results/ and writes the pages of the papers' tables from them.

python -m experiments.keep outputs/ocgan/table2_mnist ocgan/table2_mnist   # every result.json there, under this name
python -m experiments.keep                                                 # only the pages, from what is kept

What is kept is each run's result.json, a few kilobytes, in the folders of its run: experiments/results/<name>/<protocol>/
<method>/<data>/inlier<k>/seed<s>/. A result of the same cell under the same name is replaced.
"""

import argparse
import sys
from pathlib import Path

from noveltylab.errors import UserError
from noveltylab.report.__main__ import report
from noveltylab.report.collect import collect
from noveltylab.results import write_atomic

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
            for run in collect(options.folder, check=True).runs:
                keep(run.folder, options.name)
        write_pages()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def keep(folder: Path, name: str, files: tuple[str, ...] = ("result.json",)) -> None:
    """Copies files of a complete run folder to where `name` keeps that cell."""
    for file in files:
        write_atomic(KEPT.joinpath(name, *folder.parts[-5:], file), (folder / file).read_bytes())


def write_pages() -> None:
    """experiments/<paper>/RESULTS.md of every paper: printed numbers beside those of the kept results."""
    for paper in PAPERS:
        report(KEPT, tables=[paper], markdown=EXPERIMENTS / paper / "RESULTS.md")


if __name__ == "__main__":
    sys.exit(main())
