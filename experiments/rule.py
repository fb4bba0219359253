"""One rule for what a kept study shows, and the numbers that it needs of the study's cells.

A row is ahead of another where it is so in every pair (each seed, or each class) and Student's 95
percent interval of the mean difference leaves out 0. Everything else is no difference shown.
"""

from collections.abc import Sequence
from statistics import mean

from experiments.keep import archive
from noveltylab.report.collect import Run, collect
from noveltylab.report.stats import of_mean
from noveltylab.results.schema import Result

#: (inlier, seed) -> result
Row = dict[tuple[int, int], Result]


def cells(plan: str) -> dict[str, Row]:
    """Method -> (inlier, seed) -> result of a plan's kept runs."""
    rows: dict[str, Row] = {}
    for run in collect(archive(f"learn/{plan}")).runs:
        rows.setdefault(run.result.method, {})[run.result.inlier, run.result.seed] = run.result
    return {method: dict(sorted(row.items())) for method, row in sorted(rows.items())}


def rows_of_plan(plan: str, data: str) -> dict[str, list[Run]]:
    """The kept runs of a plan on a data set, by the name of their method."""
    rows: dict[str, list[Run]] = {}
    for run in collect(archive(plan)).runs:
        if run.result.data == data:
            rows.setdefault(run.result.method, []).append(run)
    return rows


def auroc(result: Result) -> float:
    """The AUROC of a result's own score."""
    return result.scores[result.primary].auroc


def aurocs(row: Row, score: str) -> list[float]:
    """The AUROC of each cell, in the order of class and seed."""
    return [
        metrics.auroc for result in row.values() if (metrics := result.scores[score]) is not None
    ]


def extras(row: Row, name: str) -> list[float]:
    """One of the method's own metrics of each cell, in the order of class and seed."""
    return [float(result.extra[name]) for result in row.values()]


def of_extra(row: Row, name: str) -> float:
    """The mean over the cells of one of the method's own metrics."""
    return mean(extras(row, name))


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Student's 95 percent of the mean."""
    return of_mean(differences).interval(mean(differences))


def verdict(differences: Sequence[float]) -> str:
    """What the rule says of first minus second: "ahead", "behind" or "no difference shown"."""
    low, high = interval(differences)
    if min(differences) > 0 and low > 0:
        return "ahead"
    if max(differences) < 0 and high < 0:
        return "behind"
    return "no difference shown"


def compared(differences: Sequence[float]) -> str:
    """A mean difference, its interval and the verdict in words."""
    low, high = interval(differences)
    return f"{mean(differences):+.4f} ({low:+.4f} to {high:+.4f}): {verdict(differences)}"
