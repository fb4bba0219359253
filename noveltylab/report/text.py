"""Writes a document as Markdown and as LaTeX; all text is escaped."""

import re
import unicodedata
from collections.abc import Iterator

from noveltylab.report.blocks import Block, Bullets, Cell, Curves, Document, Grid, GridRow, Heading, RankPlot, Text

MARKDOWN = re.compile(r"([\\`*\[\]|~$#]|(?<![^\W_])_|_(?![^\W_]))")
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "·": r"$\cdot$", "[": "{[}", "]": "{]}",
}  # fmt: skip


def one_line(text: str) -> str:
    """Without line breaks and control characters, which would end a row."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


# Markdown.


def to_markdown(document: Document) -> str:
    """GitHub's Markdown."""
    lines = [f"# {escape_markdown(document.title)}", ""]
    for text in document.lead:
        lines += [escape_markdown(text), ""]
    for section in document.sections:
        lines += [f"## {escape_markdown(section.title)}", ""]
        lines += [line for block in section.blocks for line in _markdown_block(block)]
    lines += [line for block in document.end for line in _markdown_block(block)]
    return "\n".join(lines).rstrip() + "\n"


def escape_markdown(text: str) -> str:
    """Plain text, on one line, that no Markdown reader takes for markup or HTML."""
    plain = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return MARKDOWN.sub(r"\\\1", plain)


def _markdown_block(block: Block) -> Iterator[str]:
    match block:
        case Heading(text):
            yield from (f"### {escape_markdown(text)}", "")
        case Text(text):
            yield from (escape_markdown(text), "")
        case Bullets(title, points):
            yield from (f"{escape_markdown(title)}:", "", *(f"- {escape_markdown(item)}" for item in points), "")
        case Grid(page_only=False):
            yield from _markdown_grid(block)
        case RankPlot():
            yield from (escape_markdown(describe_ranks(block)), "")
        case Grid() | Curves():
            pass  # on the page


def _markdown_grid(grid: Grid) -> Iterator[str]:
    yield from (f"{escape_markdown(grid.caption)}:", "")
    yield f"| {' | '.join(map(escape_markdown, grid.headers))} |"
    yield f"|{'|'.join(' --- ' if column in word_columns(grid) else ' ---: ' for column in range(len(grid.headers)))}|"
    for row in grid.rows:
        texts = [escape_markdown(cell.text) for cell in row.cells]
        mark = {"ours": "**", "others": "*"}.get(row.kind, "") if texts[0] else ""
        yield f"| {' | '.join([f'{mark}{texts[0]}{mark}', *texts[1:]])} |"
    yield ""


def word_columns(grid: Grid) -> set[int]:
    """The indices of the columns that hold words, which are set to the left."""
    return {
        column
        for column in range(len(grid.headers))
        if column == 0 or not any(_numeric(row.cells[column]) for row in grid.rows)
    }


def _numeric(cell: Cell) -> bool:
    return cell.value is not None or cell.text.startswith("-")


def describe_ranks(plot: RankPlot) -> str:
    """The plot in a sentence."""
    ranks = ", ".join(f"{name} {value:.2f}" for name, value in plot.mean.items())
    return (
        f"Average ranks over {plot.classes} classes (1 is best): {ranks}. Ranks closer than {plot.critical:.2f} do not differ "
        "(Nemenyi, 5 %)."
    )


# LaTeX.


def to_latex(document: Document) -> str:
    r"""One table environment for each grid; the document that takes them in needs \usepackage{booktabs}."""
    grids = [
        (section.title, block) for section in document.sections for block in section.blocks if isinstance(block, Grid)
    ]
    head = "% Needs \\usepackage{booktabs}; wide tables may want \\usepackage{graphicx} and \\resizebox.\n"
    return head + "\n".join(_latex_grid(title, grid) for title, grid in grids if not grid.page_only)


def escape_latex(text: str) -> str:
    """Plain text, on one line; letters with accents lose them and other signs become '?', so that any engine compiles."""
    plain = "".join(c if c in LATEX else unicodedata.normalize("NFKD", c) for c in one_line(text))
    plain = "".join(
        c if c in LATEX else c.encode("ascii", "replace").decode() for c in plain if not unicodedata.combining(c)
    )
    return "".join(LATEX.get(c, c) for c in plain)


def _latex_grid(title: str, grid: Grid) -> str:
    words = word_columns(grid)
    layout = "".join("l" if column in words else "r" for column in range(len(grid.headers)))
    return "\n".join(
        (
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{escape_latex(f'{title}: {grid.caption}')}}}",
            f"\\begin{{tabular}}{{{layout}}}",
            "\\toprule",
            f"{' & '.join(map(escape_latex, grid.headers))} \\\\",
            "\\midrule",
            *(_latex_row(row) for row in grid.rows),
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
            "",
        )
    )


def _latex_row(row: GridRow) -> str:
    return f"{' & '.join(_latex_cell(cell, row.kind) for cell in row.cells)} \\\\"


def _latex_cell(cell: Cell, kind: str) -> str:
    text = escape_latex(cell.text)
    return f"\\textbf{{{text}}}" if kind == "ours" and text else text
