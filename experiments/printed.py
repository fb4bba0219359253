"""The table of docs/printed.md: which printed rows can be run, by which command, and why others cannot.

python -m experiments.printed           # prints it
python -m experiments.printed --write   # and writes it between the markers of the page
"""

from collections.abc import Iterator
from pathlib import Path

from experiments.pages import header, row, write_if_asked
from noveltylab.report.published import Counterpart, PaperTable, read_reasons, read_tables

PAGE = Path(__file__).parents[1] / "docs" / "printed.md"


def runnable_table() -> Iterator[str]:
    """Each printed row that has a counterpart here, once, with the tables that print it."""
    yield from header("printed row", "in", "command")
    places: dict[tuple[str, str, str], list[PaperTable]] = {}
    for table in read_tables().values():
        if table.ablation:
            continue
        for line in table.rows:
            counterpart = table.counterparts.get(line.row)
            if counterpart is not None:
                key = line.row, options_of(counterpart), place_of(counterpart)
                places.setdefault(key, []).append(table)
    for (name, options, place), tables in places.items():
        first = tables[0]
        place = place or f"data={first.data} protocol={first.protocol}"
        yield row(name, names_of(tables), f"`noveltylab {options} {place}`")


def absent_table() -> Iterator[str]:
    """Each printed row that has none, once, with the reason."""
    yield from header("printed row", "in", "why it cannot be run")
    reasons = read_reasons()
    places: dict[tuple[str, str], list[PaperTable]] = {}
    for table in read_tables().values():
        for line in table.rows:
            if line.row not in table.counterparts:
                key = line.row, reason_of(reasons, table, line.row)
                places.setdefault(key, []).append(table)
    for (name, reason), tables in places.items():
        yield row(name, names_of(tables), reason)


def reason_of(reasons: dict[str, str], table: PaperTable, name: str) -> str:
    """Why a row of a table has no counterpart; KeyError where nobody says it."""
    key = f"{table.ident}: {name}"
    return reasons[key] if key in reasons else reasons[name]


def options_of(counterpart: Counterpart) -> str:
    """The options that a counterpart is run with, as they are typed."""
    options = [f"method={counterpart.method}"]
    for key, value in counterpart.options.items():
        options.append(f"method.{key}={str(value).lower()}")
    return " ".join(options)


def place_of(counterpart: Counterpart) -> str:
    """The data and protocol of a counterpart as they are typed, "" where they are the table's."""
    if counterpart.data is None:
        return ""
    return f"data={counterpart.data} protocol={counterpart.protocol}"


def names_of(tables: list[PaperTable]) -> str:
    """The names of tables, each paper once."""
    by_paper: dict[str, list[str]] = {}
    for table in tables:
        paper, _, name = table.ident.partition("/")
        by_paper.setdefault(paper, []).append(name)
    return "; ".join(f"{paper} {', '.join(names)}" for paper, names in by_paper.items())


#: Marker of the page -> the lines between it and its end.
TABLES = {"runnable": runnable_table, "absent": absent_table}


def main() -> None:
    write_if_asked("experiments.printed", PAGE, TABLES)
    for lines in TABLES.values():
        print("\n".join([*lines(), ""]))


if __name__ == "__main__":
    main()
