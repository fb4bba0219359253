"""What a report is made of, before it is Markdown, LaTeX or HTML.

All text is plain: each writer escapes it.
"""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Cell:
    """One cell of a grid.

    Attributes:
        text: What it shows.
        value: What it sorts by, if it is a number.
        heat: Its place on the colour scale in [0, 1]; None for no colour.
        links: (text, target) of what it leads to.
    """

    text: str
    value: float | None = None
    heat: float | None = None
    links: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True)
class GridRow:
    """A row of a table, and where its numbers come from.

    `kind` is published, others, field, ours, trial (ours, shortened), floor, or "" for no matter.
    """

    cells: tuple[Cell, ...]
    kind: str = ""


@dataclass(frozen=True)
class Grid:
    """A table; the first column names the row.

    `page_only` grids are too wide or too long for a text.
    """

    caption: str
    headers: tuple[str, ...]
    rows: tuple[GridRow, ...]
    page_only: bool = False
    folded: bool = False


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Bullets:
    title: str
    points: tuple[str, ...]


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class RankPlot:
    """Average ranks over classes, 1 for the highest mean.

    Attributes:
        mean: Row -> average rank, best first.
        classes: How many classes all rows have.
        critical: The critical difference of two ranks; None where there are too few classes for
            one, and it is exceeded too often by chance.
    """

    mean: dict[str, float]
    classes: int
    critical: float | None


@dataclass(frozen=True)
class Curves:
    """Training curves of one row: panel -> line -> [(iteration, value)]."""

    name: str
    panels: dict[str, dict[str, list[tuple[float, float]]]]


@dataclass(frozen=True)
class Picture:
    """A picture, also written as a file of its own.

    `missing` names what it lacks, one sentence each.
    """

    name: str
    caption: str
    svg: str
    missing: tuple[str, ...] = ()


Block = Grid | Text | Bullets | Heading | RankPlot | Curves | Picture


@dataclass
class Section:
    """What belongs to one (protocol, data)."""

    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass
class Document:
    """A report: what is said first, a section for each (protocol, data), what is said last."""

    title: str
    lead: list[str]
    sections: list[Section]
    end: list[Block]


def number(value: float | None, digits: int = 4, signed: bool = False, note: str = "") -> Cell:
    """A number, '-' for none, with a note."""
    if value is None:
        return Cell(f"- {note}".strip())
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return Cell(f"{text} {note}".strip(), value)
