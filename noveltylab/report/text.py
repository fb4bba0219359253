"""Writes a document as Markdown; text escaped for Markdown and for LaTeX."""

import re
import unicodedata
from collections.abc import Iterator

from noveltylab.report.blocks import (
    Block,
    Bullets,
    Cell,
    Curves,
    Document,
    Grid,
    Heading,
    Picture,
    RankPlot,
    Text,
)

MARKDOWN = re.compile(r"([\\`*\[\]|~$#]|(?<![^\W_])_|_(?![^\W_]))")
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': "''", "·": r"$\cdot$", "[": "{[}", "]": "{]}", "`": r"\textasciigrave{}",
    "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}", "Ł": r"\L{}", "œ": r"\oe{}",
    "–": "--", "—": "---", "×": r"$\times$", "±": r"$\pm$", "†": r"$^{\dagger}$", "ı": r"\i{}",
}  # fmt: skip
#: Combining accent -> LaTeX's command.
ACCENTS = {
    "\u0300": r"\`", "\u0301": r"\'", "\u0302": r"\^", "\u0303": r"\~", "\u0304": r"\=", "\u0306": r"\u",
    "\u0307": r"\.", "\u0308": r"\"", "\u030a": r"\r", "\u030b": r"\H", "\u030c": r"\v", "\u0327": r"\c",
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
            yield from (
                f"{escape_markdown(title)}:",
                "",
                *(f"- {escape_markdown(item)}" for item in points),
                "",
            )
        case Grid(page_only=False):
            yield from _markdown_grid(block)
        case RankPlot():
            yield from (escape_markdown(describe_ranks(block)), "")
        case Grid() | Curves() | Picture():
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
    sentence = f"Average ranks over {plot.classes} classes (1 is best): {ranks}."
    if plot.critical is None:
        return f"{sentence} So few classes cannot tell ranks apart."
    return f"{sentence} Ranks closer than {plot.critical:.2f} do not differ (Nemenyi, 5 %)."


# LaTeX.


def escape_latex(text: str) -> str:
    """Plain text as LaTeX, on one line, for any engine without a package.

    Accents become commands, other signs their number.
    """
    return "".join(_latex_sign(sign) for sign in unicodedata.normalize("NFC", one_line(text)))


def _latex_sign(sign: str) -> str:
    if sign in LATEX:
        return LATEX[sign]
    if sign.isascii():
        return sign
    base, *marks = list(unicodedata.normalize("NFD", sign))
    if base.isascii() and base.isalpha() and marks and all(mark in ACCENTS for mark in marks):
        for mark in marks:
            base = f"{ACCENTS[mark]}{{{base}}}"
        return base
    plain = unicodedata.normalize("NFKD", sign)
    if plain.isascii():
        return "".join(LATEX.get(letter, letter) for letter in plain)
    return f"{{[}}U+{ord(sign):04X}{{]}}"
