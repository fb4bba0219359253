"""The page of the studies (experiments/learn): runs of minutes on a CPU, a line for each of their rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean

from noveltylab.report.collect import Run
from noveltylab.results.schema import Metrics, Result


def studies_page(studies: Mapping[str, Mapping[str, Sequence[Run]]]) -> str:
    """The page of the studies: one line for each row of each of them.

    Args:
        studies: Study -> row -> its kept runs.
    """
    lines = [
        "# Runs of minutes on a CPU",
        "",
        "`noveltylab experiment=learn/<study>` runs a study; its file beside this page says what it asks, its",
        "schedule and what came of it. A line is a row of a study: the AUROC of the method's primary score, the mean",
        "over its classes (seeds averaged first), with the weights of the epoch that the study's rule chooses; no label",
        "of an outlier chose any. pca and knn: floors of raw pixels, of the same classes. Seconds are those of training",
        "one class; other work ran beside some. Each class, each score and intervals:",
        "`noveltylab report experiments/results/learn`.",
        "",
        "| study | row | score | AUROC | class | seed | pca | knn | scored epoch | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    waiting = []
    for study, rows in studies.items():
        for row, runs in rows.items():
            if runs:
                lines.append(study_line(study, row, runs))
            else:
                waiting.append(f"`{study}`, {row}")
    if waiting:
        lines += ["", f"Not run yet: {'; '.join(waiting)}."]
    return "\n".join(lines) + "\n"


def study_line(study: str, row: str, runs: Sequence[Run]) -> str:
    """A row of a study as a line of the page's table."""
    results = [run.result for run in runs]
    cells = [
        study,
        row,
        results[0].primary,
        f"{class_mean(runs, lambda result: result.scores[result.primary]):.4f}",
        listed(result.inlier for result in results),
        listed(result.seed for result in results),
        f"{class_mean(runs, lambda result: result.floor['pca']):.4f}",
        f"{class_mean(runs, lambda result: result.floor['knn']):.4f}",
        scored_epochs(runs),
        span([round(result.seconds["train"]) for result in results]),
    ]
    return f"| {' | '.join(cells)} |"


def class_mean(runs: Iterable[Run], metrics: Callable[[Result], Metrics]) -> float:
    """The mean AUROC over classes, the seeds of each averaged first."""
    by_class: dict[int, list[float]] = {}
    for run in runs:
        by_class.setdefault(run.result.inlier, []).append(metrics(run.result).auroc)
    return mean(mean(aurocs) for aurocs in by_class.values())


def scored_epochs(runs: Sequence[Run]) -> str:
    """Which epochs were scored, of how many, and in how many runs these lack a phase."""
    if all(run.fitted_once for run in runs):
        return "fitted once"
    epochs = span([run.result.selected.epoch for run in runs])
    text = f"{epochs} of {runs[0].result.config['trainer']['max_epochs']}"
    lacks = [run.lacks for run in runs if run.lacks]
    return f"{text}, {lacks[0]} in {len(lacks)} of {len(runs)}" if lacks else text


def listed(numbers: Iterable[int]) -> str:
    """The different numbers, from four on the lowest and the highest."""
    different = sorted(set(numbers))
    if len(different) < 4:
        return ", ".join(map(str, different))
    return span(different)


def span(numbers: Sequence[int]) -> str:
    """The lowest and the highest number."""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
