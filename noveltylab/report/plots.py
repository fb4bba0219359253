"""Training curves from the metrics.csv of runs, and plots as SVG text, styled by the page.

The plots have class names only, no colour of their own, and every name escaped.
"""

import csv
import html
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from noveltylab.command.screen import plain
from noveltylab.report.blocks import Curves, RankPlot
from noveltylab.report.collect import Run
from noveltylab.results.archive import read_kept_file

Points = Sequence[tuple[float, float]]
#: Bytes of a metrics.csv that are read: a million values.
MAX_METRICS_BYTES = 64 << 20
#: Points of a line; more would not be seen.
POINTS = 60
#: Colours of the page's style; from the eighth line on they come again, dashed.
COLOURS = 7


# Curves: one line a class, the mean over its seeds.


def training_curves(name: str, runs: Sequence[Run]) -> Curves:
    """Panels val/... first, then train/...; empty if no run has a readable metrics.csv.

    Args:
        name: Of the row.
        runs: Of one row.
    """
    values: defaultdict[tuple[str, str, int], list[float]] = defaultdict(list)
    for run in runs:
        for iteration, curve, value in _read_metrics(run.folder):
            values[curve, run.result.inlier_name, iteration].append(value)
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for (curve, line, iteration), numbers in values.items():
        lines = panels.setdefault(curve, {})
        point = float(iteration), sum(numbers) / len(numbers)
        lines.setdefault(line, []).append(point)
    ordered = {}
    for curve in sorted(panels, key=lambda curve: (not curve.startswith("val"), curve)):
        lines = panels[curve]
        thinned = {line: _thin(sorted(points)) for line, points in lines.items() if len(points) > 1}
        if thinned:
            ordered[curve] = thinned
    return Curves(name, ordered)


def loss_curves(run: Run) -> dict[str, list[tuple[float, float]]]:
    """Loss -> [(iteration, value)] of one run, val/... first.

    Empty if it has no readable metrics.csv.
    """
    panels = training_curves("", [run]).panels
    return {curve: lines[run.result.inlier_name] for curve, lines in panels.items()}


def _read_metrics(folder: Path) -> Iterator[tuple[int, str, float]]:
    """The readable lines of its metrics.csv; a file cut short or damaged gives what it still holds."""
    try:
        content = read_kept_file(folder, "metrics.csv", MAX_METRICS_BYTES)
        text = content.decode("utf-8", "replace")
        for row in csv.reader(io.StringIO(text, newline="")):
            try:
                iteration, name, value = int(row[0]), row[1], float(row[2])
            except (ValueError, IndexError):
                continue  # the header, or a line cut short
            if math.isfinite(value) and 0 <= iteration < 2**53:
                yield iteration, name, value
    except (OSError, csv.Error):
        return


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    step = max(1, math.ceil(len(points) / POINTS))
    thinned = points[::step]
    if thinned[-1] != points[-1]:
        thinned.append(points[-1])
    return thinned


# Pictures.


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
        value = min(max(value, 1), count)
        return label + (value - 1) / max(1, count - 1) * (width - 20) + 10

    parts = []
    for tick in range(1, count + 1):
        place = f"{x(tick):.1f}"
        parts.append(f'<line class="grid" x1="{place}" x2="{place}" y1="4" y2="{height - 26}"/>')
        parts.append(f'<text x="{place}" y="{height - 10}" text-anchor="middle">{tick}</text>')
    for index, (name, value) in enumerate(plot.mean.items()):
        y = step * index + 18
        parts.append(f'<text x="{label - 6}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        if plot.critical is not None:
            start = x(value - plot.critical / 2)
            end = x(value + plot.critical / 2)
            parts.append(f'<line class="bar" x1="{start:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}"/>')
        title = f"<title>{value:.2f}</title>"
        parts.append(f'<circle class="dot" cx="{x(value):.1f}" cy="{y}" r="5">{title}</circle>')
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
    low, high = min(values), max(values)
    first = min(points[0][0] for points in lines.values())
    last = max(points[-1][0] for points in lines.values())
    logarithmic = low > 0 and high > 20 * low

    def scale(value: float) -> float:
        return math.log(value) if logarithmic else value

    def place(value: float) -> float:
        span = scale(high) - scale(low)
        share = (scale(value) - scale(low)) / span if span > 0 else 0.5
        return 108.0 - 84 * share

    parts = [
        f'<text class="title" x="8" y="14">{escape(title)}{" (log)" * logarithmic}</text>',
        '<line class="grid" x1="8" x2="232" y1="24" y2="24"/>',
        '<line class="grid" x1="8" x2="232" y1="108" y2="108"/>',
        f'<text x="234" y="28">{high:.3g}</text><text x="234" y="112">{low:.3g}</text>',
        f'<text x="8" y="124">{first:.0f}</text>',
        f'<text x="232" y="124" text-anchor="end">iteration {last:.0f}</text>',
    ]
    iterations = (last - first) or 1
    for name, points in lines.items():
        pairs = [f"{8 + 224 * (x - first) / iterations:.1f},{place(y):.1f}" for x, y in points]
        look = line_class(order.index(name))
        line = f'<polyline class="{look}" points="{" ".join(pairs)}">'
        parts.append(f"{line}<title>{escape(name)}</title></polyline>")
    return parts


def line_class(index: int) -> str:
    """The look of the n-th line; the legend uses it too."""
    return f"line c{index % COLOURS}" + (" dashed" if index >= COLOURS else "")


def _svg(width: float, height: float, name: str, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg {size} role="img" aria-label="{escape(name)}">{"".join(parts)}</svg>'
