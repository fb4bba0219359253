"""The papers' numbers, from experiments/published.yaml, whose head says what each key means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from noveltylab.errors import UserError, nearest
from noveltylab.report.stats import Cells
from noveltylab.results.phases import THIS_CLASS

HERE = Path(__file__).resolve().parent
#: Beside the package in a checkout, inside it when installed from a wheel.
PLACES = (HERE.parents[1] / "experiments" / "published.yaml", HERE / "published.yaml")
#: What a printed row's method was trained on; the first where the file names none.
TRAINED_ON = (
    THIS_CLASS,
    "inliers and outliers",
    "ImageNet",
    "more than ImageNet",
    "image and text",
    "not checked",
)


@dataclass(frozen=True)
class Column:
    """A column of numbers: of one inlier class (by label), or of a quantity.

    A quantity is `mean`, a metric, or `extra.<name>`.
    """

    name: str
    source: str = "auroc"
    inlier: int | None = None

    @property
    def metric(self) -> str:
        return "auroc" if self.source == "mean" else self.source


@dataclass(frozen=True)
class Counterpart:
    """Which runs a printed row is to be compared with.

    Attributes:
        method: Its name here.
        score: None stands for the primary one.
        options: Below method.
        data: The data set it is run on, None for the table's. Runs on another one have no number
            in the table: they are only said to be runnable.
        protocol: That of `data`.
    """

    method: str
    score: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    protocol: str | None = None


@dataclass(frozen=True)
class Line:
    """Printed numbers, one text for each column, '-' where there is none.

    `trained_on` is one of `TRAINED_ON`; `by` says who got the numbers if not the paper.
    """

    row: str
    values: tuple[str, ...]
    trained_on: str
    by: str = ""

    def number(self, index: int) -> float | None:
        return None if self.values[index] == "-" else float(self.values[index])


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper, as published.yaml describes it."""

    ident: str
    paper: str
    title: str
    data: str
    protocol: str
    metric: str
    columns: tuple[Column, ...]
    rows: tuple[Line, ...]
    others: tuple[Line, ...]
    counterparts: dict[str, Counterpart]
    full: str | None
    expected: int | tuple[int, ...] | None
    notes: tuple[str, ...]

    @property
    def main(self) -> int:
        """The index of the column that sums a row up: the mean over classes, else the first."""
        sources = [column.source for column in self.columns]
        return sources.index("mean") if "mean" in sources else 0

    @property
    def metrics(self) -> list[str]:
        """What its columns measure, each once."""
        return list(dict.fromkeys(column.metric for column in self.columns))

    @property
    def by_class(self) -> bool:
        return any(column.inlier is not None for column in self.columns)

    @property
    def about_auroc(self) -> bool:
        return self.columns[self.main].metric == "auroc"

    @property
    def ablation(self) -> bool:
        return self.full is not None

    def inside(self, cells: Cells) -> Cells:
        """The cells that the table is about, where it names its inliers."""
        if not isinstance(self.expected, tuple):
            return cells
        return {cell: value for cell, value in cells.items() if cell[0] in self.expected}


@dataclass(frozen=True)
class FieldRow:
    """A mean over classes that another paper prints, and what its method was trained on.

    Attributes:
        row: The method.
        mean: As printed, in percent.
        trained_on: One of `TRAINED_ON`.
        source: Where the number is printed.
    """

    row: str
    mean: str
    trained_on: str
    source: str


#: (protocol, data) -> rows of the field, in the order of the file.
FieldRows = dict[tuple[str, str], tuple[FieldRow, ...]]


def read_tables(places: Sequence[Path] = PLACES) -> dict[str, PaperTable]:
    """All tables of the papers by name, such as `ocgan/table2_mnist`.

    Raises:
        UserError: The file is missing.
    """
    tree = _read_file(places)
    tables = {}
    for ident, content in tree["tables"].items():
        paper = tree["papers"][ident.partition("/")[0]]
        tables[ident] = _table(ident, paper, content)
    return tables


def read_reasons(places: Sequence[Path] = PLACES) -> dict[str, str]:
    """Why a printed row has no counterpart here, by its name or by `<table>: <row>`.

    Raises:
        UserError: The file is missing.
    """
    return dict(_read_file(places).get("not_run", {}))


@cache
def table_names() -> frozenset[str]:
    """The names of the papers' tables; read once, as each run of a report asks for them."""
    return frozenset(_read_file(PLACES)["tables"])


def read_field(places: Sequence[Path] = PLACES) -> FieldRows:
    """What later methods print on the same data and protocol; shown, and never compared.

    Raises:
        UserError: The file is missing.
        ValueError: A row says of no known data what its method was trained on, or has no mean.
    """
    rows: FieldRows = {}
    for block in _read_file(places).get("field", ()):
        key = block["protocol"], block["data"]
        if key in rows:
            raise ValueError(f"field: {' · '.join(key)} stands there twice")
        rows[key] = tuple(_field_row(key, content) for content in block["rows"])
    return rows


def _field_row(key: tuple[str, str], content: Mapping[str, str]) -> FieldRow:
    place = f"field, {' · '.join(key)}, {content['row']}"
    trained_on = _trained_on(place, content.get("trained_on"))
    row = FieldRow(content["row"], content["mean"], trained_on, content["source"])
    if not 0 < float(row.mean) <= 100:
        raise ValueError(f"{place}: mean {row.mean} is no percentage")
    return row


def _trained_on(place: str, text: str | None) -> str:
    """What a row was trained on, by what the file says of it at `place`."""
    if text is None:
        return THIS_CLASS
    if text not in TRAINED_ON:
        raise ValueError(f"{place}: trained_on {text!r} is none of {TRAINED_ON}")
    return text


def printed_for(
    tables: Mapping[str, PaperTable], result: Mapping[str, Any]
) -> tuple[float, str] | None:
    """The AUROC that a paper prints for the run, and the table's name.

    For the run's class where it is printed, else the mean; None where the paper prints none.

    Only for the run's own method as that paper configures it, by the run's primary score; ablations
    come last.
    """
    place = result["data"], result["protocol"]
    related = [table for table in tables.values() if (table.data, table.protocol) == place]
    for table in sorted(related, key=lambda table: (table.ablation, not table.by_class)):
        if not table.about_auroc:
            continue
        inliers = [column.inlier for column in table.columns]
        inlier = result["inlier"]
        index = inliers.index(inlier) if inlier in inliers else table.main
        for line in table.rows:
            number = line.number(index)
            counterpart = table.counterparts.get(line.row)
            if number is not None and counterpart and _configures(counterpart, result):
                return number, table.ident
    return None


def _configures(counterpart: Counterpart, result: Mapping[str, Any]) -> bool:
    """Whether the run is of that method with those options and that score."""
    if counterpart.method != result["method"] or counterpart.data is not None:
        return False
    if counterpart.score not in (None, result["primary"]):
        return False
    options: dict[str, Any] = result["config"]["method"]
    return counterpart.options.items() <= options.items()


def choose(tables: dict[str, PaperTable], names: Sequence[str]) -> dict[str, PaperTable]:
    """The tables named `<paper>/<table>`, or all of a paper named alone.

    Raises:
        UserError: There is no such table.
    """
    choice: dict[str, PaperTable] = {}
    for name in names:
        idents = [ident for ident in tables if name in (ident, ident.partition("/")[0])]
        if not idents:
            raise UserError(f"--table {name}: no such table; {nearest(name, tables)}")
        for ident in idents:
            choice[ident] = tables[ident]
    return choice


def _read_file(places: Sequence[Path]) -> dict[str, Any]:
    import yaml

    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(f"the papers' numbers are missing: no {' and no '.join(map(str, places))}")
    with open(path, encoding="utf-8") as file:
        tree: dict[str, Any] = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return tree


def _table(ident: str, paper: str, content: dict[str, Any]) -> PaperTable:
    columns = []
    for label, name in enumerate(content.get("classes", ())):
        columns.append(Column(name, "auroc", label))
    for name, source in content.get("columns", {"Mean": "mean"}).items():
        columns.append(Column(name, source))
    trained_on = dict.fromkeys(content["rows"], THIS_CLASS)
    for row, text in content.get("trained_on", {}).items():
        if row not in trained_on:
            raise ValueError(f"{ident}: trained_on names {row!r}, which is no row of the table")
        trained_on[row] = _trained_on(f"{ident}, {row}", text)
    rows = []
    for row, text in content["rows"].items():
        rows.append(Line(row, _values(ident, row, text, columns), trained_on[row]))
    foreign = []
    for line in content.get("others", ()):
        row = line["row"]
        values = _values(ident, row, line["values"], columns)
        foreign.append(Line(row, values, trained_on.get(row, THIS_CLASS), line["by"]))
    counterparts = {}
    for row, fields in content.get("counterparts", {}).items():
        counterparts[row] = Counterpart(**fields)
    expected = content.get("expected")
    if isinstance(expected, list):
        expected = tuple(expected)
    return PaperTable(
        ident=ident,
        paper=paper,
        title=content["title"],
        data=content["data"],
        protocol=content["protocol"],
        metric=content["metric"],
        columns=tuple(columns),
        rows=tuple(rows),
        others=tuple(foreign),
        counterparts=counterparts,
        full=content.get("full"),
        expected=expected,
        notes=tuple(content.get("notes", ())),
    )


def _values(ident: str, row: str, text: str, columns: Sequence[Column]) -> tuple[str, ...]:
    values = tuple(text.split())
    if len(values) != len(columns):
        raise ValueError(f"{ident}, {row}: {len(values)} values for {len(columns)} columns")
    return values
