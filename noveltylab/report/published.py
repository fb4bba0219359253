"""The papers' numbers, from experiments/published.yaml, whose head says what each key means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noveltylab.errors import UserError, nearest

HERE = Path(__file__).resolve().parent
#: beside the package in a checkout, inside it when installed from a wheel
PLACES = (HERE.parents[1] / "experiments" / "published.yaml", HERE / "published.yaml")


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
    """Which runs a printed row is to be compared with; `score` None stands for the primary one."""

    method: str
    score: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """Printed numbers, one text for each column, '-' where there is none.

    `by` says who got them if not the paper.
    """

    row: str
    values: tuple[str, ...]
    by: str = ""

    def number(self, index: int) -> float | None:
        return None if self.values[index] == "-" else float(self.values[index])


@dataclass(frozen=True)
class PaperTable:
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
        return next((i for i, column in enumerate(self.columns) if column.source == "mean"), 0)

    @property
    def by_class(self) -> bool:
        return any(column.inlier is not None for column in self.columns)

    @property
    def about_auroc(self) -> bool:
        return self.columns[self.main].metric == "auroc"

    @property
    def ablation(self) -> bool:
        return self.full is not None


def read_tables(places: Sequence[Path] = PLACES) -> dict[str, PaperTable]:
    """All tables of the papers by name, such as `ocgan/table2_mnist`.

    Raises:
        UserError: The file is missing.
    """
    import yaml

    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(f"the papers' numbers are missing: no {' and no '.join(map(str, places))}")
    with open(path, encoding="utf-8") as file:
        tree = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {ident: _table(ident, table, tree["papers"]) for ident, table in tree["tables"].items()}


def printed_for(
    tables: Mapping[str, PaperTable], result: Mapping[str, Any]
) -> tuple[float, str] | None:
    """The AUROC that a paper prints for the run, and the table's name.

    For the run's class where it is printed, else the mean; None where the paper prints none.

    Only for the run's own method as that paper configures it, by the run's primary score; ablations
    come last.
    """
    about = [
        table
        for table in tables.values()
        if (table.data, table.protocol) == (result["data"], result["protocol"])
    ]
    for table in sorted(about, key=lambda table: (table.ablation, not table.by_class)):
        position = next(
            (i for i, column in enumerate(table.columns) if column.inlier == result["inlier"]),
            table.main,
        )
        for line in table.rows:
            ours = table.counterparts.get(line.row)
            if ours is None or ours.method != result["method"] or not table.about_auroc:
                continue
            if ours.score not in (None, result["primary"]) or line.number(position) is None:
                continue
            if ours.options.items() <= result["config"]["method"].items():
                return float(line.values[position]), table.ident
    return None


def choose(tables: dict[str, PaperTable], names: Sequence[str]) -> dict[str, PaperTable]:
    """The tables named `<paper>/<table>`, or all of a paper named alone.

    Raises:
        UserError: There is no such table.
    """
    choice: dict[str, PaperTable] = {}
    for name in names:
        matches = {
            ident: table
            for ident, table in tables.items()
            if name in (ident, ident.partition("/")[0])
        }
        if not matches:
            raise UserError(f"--table {name}: no such table; {nearest(name, tables)}")
        choice |= matches
    return choice


def _table(ident: str, content: dict[str, Any], papers: dict[str, str]) -> PaperTable:
    classes = [
        Column(name, "auroc", label) for label, name in enumerate(content.get("classes", ()))
    ]
    sources = content.get("columns", {"Mean": "mean"})
    columns = (*classes, *(Column(name, source) for name, source in sources.items()))
    expected = content.get("expected")
    return PaperTable(
        ident=ident,
        paper=papers[ident.partition("/")[0]],
        title=content["title"],
        data=content["data"],
        protocol=content["protocol"],
        metric=content["metric"],
        columns=columns,
        rows=tuple(
            Line(row, _values(ident, row, text, columns)) for row, text in content["rows"].items()
        ),
        others=tuple(
            Line(line["row"], _values(ident, line["row"], line["values"], columns), line["by"])
            for line in content.get("others", ())
        ),
        counterparts={
            row: Counterpart(**fields) for row, fields in content.get("counterparts", {}).items()
        },
        full=content.get("full"),
        expected=tuple(expected) if isinstance(expected, list) else expected,
        notes=tuple(content.get("notes", ())),
    )


def _values(ident: str, row: str, text: str, columns: Sequence[Column]) -> tuple[str, ...]:
    values = tuple(text.split())
    if len(values) != len(columns):
        raise ValueError(f"{ident}, {row}: {len(values)} values for {len(columns)} columns")
    return values
