"""`python -m noveltylab report [folder]`: writes report.md, .csv, .tex and .html from the results
below a folder.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from noveltylab.command import screen
from noveltylab.command.signals import end_command, interruptible
from noveltylab.errors import UserError
from noveltylab.report.collect import Collected, collect
from noveltylab.report.latex import main_file
from noveltylab.report.page import pictures, to_html
from noveltylab.report.published import choose, read_field, read_tables
from noveltylab.report.records import to_csv
from noveltylab.report.tables import build, latex_tables
from noveltylab.report.text import one_line, to_markdown
from noveltylab.results.archive import archive_of, without_suffix
from noveltylab.results.files import write_atomic

NAMED = 5
#: Folders of a report with a file for each table or picture.
PARTS = ("tex", "side_by_side")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and returns its exit code.

    0: done; 1: --check found a damaged run; 2: bad input; 128 + signal: interrupted.
    """
    options = parser().parse_args(arguments)
    try:
        with interruptible():
            collected, paths = report(
                options.folder, options.output, options.table, options.markdown, options.check
            )
    except (UserError, KeyboardInterrupt) as error:
        sys.exit(end_command(error, "interrupted; files that were written already are whole"))
    print_summary(collected, paths)
    if options.check and collected.damaged:
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m noveltylab report", description=__doc__.partition("`: ")[2]
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("outputs"),
        help="runs, at any depth, or an archive of kept results (default outputs)",
    )
    parser.add_argument(
        "--output", type=Path, help="where the report goes (default <folder>/report)"
    )
    parser.add_argument(
        "--table", action="append", default=[], metavar="PAPER[/TABLE]",
        help="about these tables of the papers alone, run or not, e.g. ocgan/table2_mnist or ocgan; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write the Markdown to this file, and nothing else",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compute every number again from each run's scores files and compare its files with their checksums; "
        "exit code 1 where one differs",
    )
    return parser


def report(
    folder: Path,
    output: Path | None = None,
    tables: Sequence[str] = (),
    markdown: Path | None = None,
    check: bool = False,
) -> tuple[Collected, dict[str, Path]]:
    """Writes the report.

    Args:
        folder: Of the runs, or an archive of kept results.
        output: Of the report; `<folder>/report` if not given.
        tables: Names of the papers' tables that it is about; all that runs match if none.
        markdown: Write Markdown to this file and nothing else.
        check: Also compare the runs' files with their checksums and compute their numbers again.

    Returns:
        What was found, and what was written: kind -> path.

    Raises:
        UserError: No such folder, no runs in it, no such table, or a file that cannot be written.
    """
    papers = read_tables()
    idents = choose(papers, tables)
    collected = collect(folder, check)
    # of an archive: the report lies in the folder that it stands for
    place = without_suffix(folder) if archive_of(folder) else folder
    document, records = build(collected, papers, place.resolve().name, idents, read_field())
    if markdown is not None:
        texts = {markdown: to_markdown(document)}
    else:
        output = output or place / "report"
        latex = latex_tables(collected, papers, idents)
        texts = {
            output / "report.html": to_html(document, output.resolve()),
            output / "report.md": to_markdown(document),
            output / "report.csv": to_csv(records),
            output / "report.tex": main_file(latex),
            **{output / "tex" / f"{name}.tex": text for name, text in latex.items()},
            **{
                output / "side_by_side" / f"{name}.svg": text
                for name, text in pictures(document).items()
            },
        }
    for path, text in texts.items():
        try:
            # names of files may hold bytes that are no UTF-8
            write_atomic(path, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}). Choose another place."
            ) from None
    return collected, {
        path.suffix.removeprefix("."): path for path in texts if path.parent.name not in PARTS
    }


def print_summary(
    collected: Collected, paths: dict[str, Path], console: Console | None = None
) -> None:
    """Prints what was found and where the report lies."""
    console = console or screen.console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("runs", str(len(collected.runs)))
    if collected.checked or collected.unchecked:
        table.add_row(
            "checked", f"{collected.checked}, their numbers computed again from their scores files"
        )
    for reason, count in Counter(reason for _, reason in collected.unchecked).items():
        table.add_row(f"cannot be checked {count}", Text(reason, "yellow"))
    for name, items, style in (
        ("no labelled outliers", collected.unmeasured, "yellow"),
        ("unfinished", collected.unfinished, "yellow"),
        ("trials, left out", collected.trials, "yellow"),
        ("damaged", collected.damaged, "bold red"),
    ):
        lines = [f"{'/'.join(path.parts[-5:])}: {reason}" for path, reason in items[:NAMED]]
        remainder = (
            [f"and {len(items) - NAMED} more, all in the report"] if len(items) > NAMED else []
        )
        if items:
            table.add_row(f"{name} {len(items)}", Text(one_per_line(lines + remainder), style))
    for kind, path in paths.items():
        table.add_row(kind, Text(str(path)))
    console.print(table)


def one_per_line(texts: Sequence[str]) -> str:
    """Each text on a line of its own, without control characters that a terminal would obey."""
    return "\n".join(map(one_line, texts))


if __name__ == "__main__":
    with screen.terminal():
        main()
