"""Writes a document as one HTML page that needs no network.

Script and style are inside, and nothing else may load. `render` is the one way to a web page: a
template whose texts are shown, never obeyed.
"""

import base64
import hashlib
import os
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from noveltylab.command.screen import plain
from noveltylab.report.blocks import Curves, Document, Picture
from noveltylab.report.plots import line_class, line_plot, rank_plot
from noveltylab.report.side_by_side import standalone
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
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
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


def render(path: Path, **values: Any) -> str:
    """A page from the jinja2 template at `path`.

    Every text is escaped, its control characters made visible.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    return environment.from_string(path.read_text(encoding="utf-8")).render(**values)


def _visible(value: Any) -> Any:
    """Text as `plain` shows it; the template's own markup, style and script as they are."""
    return plain(value) if type(value) is str else value


def pictures(document: Document) -> dict[str, str]:
    """Name -> SVG of every picture of a document, as files that need nothing else."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    texts = {}
    for section in document.sections:
        for block in section.blocks:
            if isinstance(block, Picture):
                texts[block.name] = standalone(block.svg, style)
    return texts


def heat(value: float) -> str:
    """The style class of a place in [0, 1] on the colour scale."""
    return f"h{min(int(value * HEAT_STEPS), HEAT_STEPS - 1)}"


def legend(curves: Curves) -> list[str]:
    """The lines' names in the order of their looks."""
    names: dict[str, None] = {}
    for lines in curves.panels.values():
        names |= dict.fromkeys(lines)
    return list(names)


def relative(target: Path, folder: Path) -> str:
    """A link that can only lead to a file.

    It is relative, with every sign quoted that a URL gives a meaning to.
    """
    path = Path(os.path.relpath(target, folder)).as_posix()
    return quote(os.fsencode(path), safe="/.")


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
