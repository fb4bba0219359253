"""The one way to a web page: a template whose texts are shown, never obeyed."""

from pathlib import Path
from typing import Any

from noveltylab.command.screen import plain


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
