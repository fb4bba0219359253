"""Plots as SVG text, styled by the page.

Class names only, no colour of their own, every name escaped.
"""

import html
import math
from collections.abc import Mapping, Sequence

from noveltylab.command.screen import plain
from noveltylab.report.blocks import RankPlot

Points = Sequence[tuple[float, float]]
#: Colours of the page's style; from the eighth line on they come again, dashed.
COLOURS = 7


def escape(text: str) -> str:
    """Text of a picture, its control characters made visible."""
    return html.escape(plain(text))


def rank_plot(plot: RankPlot) -> str:
    """One row for each method with its average rank.

    Half the critical difference, if there is one, stands to both sides.
    """
    label, width, step = 8 * max(map(len, plot.mean)) + 16, 420, 26
    count = len(plot.mean)
    height = step * count + 34

    def x(value: float) -> float:
        return label + (value - 1) / max(1, count - 1) * (width - 20) + 10

    low, high = x(1), x(count)
    parts = []
    for tick in range(1, count + 1):
        parts.append(
            f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="4" y2="{height - 26}"/>'
        )
        parts.append(
            f'<text x="{x(tick):.1f}" y="{height - 10}" text-anchor="middle">{tick}</text>'
        )
    for index, (name, value) in enumerate(plot.mean.items()):
        y = step * index + 18
        parts.append(f'<text x="{label - 6}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        if plot.critical is not None:
            start, end = (
                min(max(x(value + side * plot.critical / 2), low), high) for side in (-1, 1)
            )
            parts.append(f'<line class="bar" x1="{start:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<circle class="dot" cx="{x(value):.1f}" cy="{y}" r="5"><title>{value:.2f}</title></circle>'
        )
    return _svg(label + width, height, "average ranks", parts)


def line_plot(title: str, lines: Mapping[str, Points], order: Sequence[str]) -> str:
    """One panel of training curves as a picture; arguments as `line_parts`."""
    return _svg(300, 130, title, line_parts(title, lines, order))


def line_parts(title: str, lines: Mapping[str, Points], order: Sequence[str]) -> list[str]:
    """One panel of training curves, 300 x 130.

    The value axis is logarithmic where positive values span more than a factor 20.

    Args:
        title: Of the panel.
        lines: Name -> at least 2 points (iteration, value), all finite.
        order: Names of all lines, by which each has its look in every panel.
    """
    values = [value for points in lines.values() for _, value in points]
    logs = min(values) > 0 and max(values) > 20 * min(values)
    low, high = min(values), max(values)
    first = min(points[0][0] for points in lines.values())
    last = max(points[-1][0] for points in lines.values())

    def place(value: float) -> float:
        bottom, top, level = (math.log(v) if logs else v for v in (low, high, value))
        return 108.0 - 84 * ((level - bottom) / (top - bottom) if top > bottom else 0.5)

    parts = [
        f'<text class="title" x="8" y="14">{escape(title)}{" (log)" if logs else ""}</text>',
        '<line class="grid" x1="8" x2="232" y1="24" y2="24"/><line class="grid" x1="8" x2="232" y1="108" y2="108"/>',
        f'<text x="234" y="28">{high:.3g}</text><text x="234" y="112">{low:.3g}</text>',
        f'<text x="8" y="124">{first:.0f}</text><text x="232" y="124" text-anchor="end">iteration {last:.0f}</text>',
    ]
    for name, points in lines.items():
        path = " ".join(
            f"{8 + 224 * (x - first) / ((last - first) or 1):.1f},{place(y):.1f}" for x, y in points
        )
        parts.append(
            f'<polyline class="{line_class(order.index(name))}" points="{path}"><title>{escape(name)}</title></polyline>'
        )
    return parts


def line_class(index: int) -> str:
    """The look of the n-th line; the legend uses it too."""
    return f"line c{index % COLOURS}" + (" dashed" if index >= COLOURS else "")


def _svg(width: float, height: float, name: str, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg {size} role="img" aria-label="{escape(name)}">{"".join(parts)}</svg>'
