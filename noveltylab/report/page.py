"""Writes a document as one HTML page that needs no network.

Script and style are inside, and nothing else may load.
"""

import base64
import hashlib
import os
from functools import partial
from pathlib import Path
from urllib.parse import quote

from noveltylab.report.blocks import Curves, Document, Picture
from noveltylab.report.side_by_side import standalone
from noveltylab.report.svg import line_class, line_plot, rank_plot
from noveltylab.report.template import render
from noveltylab.report.text import describe_ranks, word_columns

HERE = Path(__file__).resolve().parent
#: Steps of the heat map's colours in page.css.
HEAT_STEPS = 12


def to_html(document: Document, folder: Path) -> str:
    """The page.

    Args:
        document: What it shows; every text of it is escaped.
        folder: Where the page will lie: links to runs are relative to it.
    """
    style, script = ((HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return render(
        HERE / "page.html.j2",
        document=document,
        style=style,
        script=script,
        policy=policy,
        line_plot=line_plot,
        line_class=line_class,
        rank_plot=rank_plot,
        describe_ranks=describe_ranks,
        word_columns=word_columns,
        heat=heat,
        legend=legend,
        relative=partial(relative, folder=folder),
    )


def pictures(document: Document) -> dict[str, str]:
    """Name -> SVG of every picture of a document, as files that need nothing else."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    blocks = [block for section in document.sections for block in section.blocks]
    return {
        block.name: standalone(block.svg, style) for block in blocks if isinstance(block, Picture)
    }


def heat(value: float) -> str:
    """The style class of a place in [0, 1] on the colour scale."""
    return f"h{min(int(value * HEAT_STEPS), HEAT_STEPS - 1)}"


def legend(curves: Curves) -> list[str]:
    """The lines' names in the order of their looks."""
    return list(dict.fromkeys(name for lines in curves.panels.values() for name in lines))


def relative(target: Path, folder: Path) -> str:
    """A link that can only lead to a file.

    It is relative, with every sign quoted that a URL gives a meaning to.
    """
    return quote(os.fsencode(Path(os.path.relpath(target, folder)).as_posix()), safe="/.")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
