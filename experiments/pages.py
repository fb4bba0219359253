"""Tables of pages that a program writes between markers: `<!-- name -->` and `<!-- end -->`."""

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from noveltylab.results.files import write_atomic

#: Marker of a page -> what makes the lines between it and its end.
Tables = Mapping[str, Callable[[], Iterator[str]]]


def header(*cells: str) -> Iterator[str]:
    """The first two lines of a table."""
    yield row(*cells)
    yield "|" + " --- |" * len(cells)


def row(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def with_tables(page: str, tables: Tables) -> str:
    """The page with every table between its markers made anew.

    Raises:
        ValueError: A marker is missing.
    """
    for name, lines in tables.items():
        before, marker, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"no markers of {name}")
        table = "\n".join(lines())
        page = f"{before}{marker}{table}\n{end}{after}"
    return page


def write_if_asked(program: str, page: Path, tables: Tables) -> bool:
    """Reads the command line of a program; with --write the tables of its page are made anew.

    Returns whether they were.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}")
    parser.add_argument("--write", action="store_true", help=f"write the tables into {page.name}")
    write = bool(parser.parse_args().write)
    if write:
        write_atomic(page, with_tables(page.read_text(), tables))
    return write
