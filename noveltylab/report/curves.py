"""Training curves from the metrics.csv of runs: one line a class, the mean over its seeds."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from noveltylab.report.blocks import Curves
from noveltylab.report.collect import Run
from noveltylab.results.archive import read_kept_file

#: Bytes of a metrics.csv that are read: a million values.
MAX_METRICS_BYTES = 64 << 20
#: Points of a line; more would not be seen.
POINTS = 60


def training_curves(name: str, runs: Sequence[Run]) -> Curves:
    """Panels val/... first, then train/...; empty if no run has a readable metrics.csv.

    Args:
        name: Of the row.
        runs: Of one row.
    """
    values: defaultdict[tuple[str, str], defaultdict[int, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for run in runs:
        for iteration, curve, value in _read(run.folder):
            values[curve, run.result.inlier_name][iteration].append(value)
    panels: defaultdict[str, dict[str, list[tuple[float, float]]]] = defaultdict(dict)
    for (curve, line), points in values.items():
        means = [
            (float(iteration), sum(numbers) / len(numbers))
            for iteration, numbers in sorted(points.items())
        ]
        if len(means) > 1:
            panels[curve][line] = _thin(means)
    return Curves(
        name,
        {
            curve: panels[curve]
            for curve in sorted(panels, key=lambda curve: (curve[:3] != "val", curve))
        },
    )


def loss_curves(run: Run) -> dict[str, list[tuple[float, float]]]:
    """Loss -> [(iteration, value)] of one run, val/... first.

    Empty if it has no readable metrics.csv.
    """
    curves = training_curves("", [run])
    return {curve: points for curve, lines in curves.panels.items() for points in lines.values()}


def _read(folder: Path) -> Iterator[tuple[int, str, float]]:
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
    return points[::step] if (len(points) - 1) % step == 0 else [*points[::step], points[-1]]
