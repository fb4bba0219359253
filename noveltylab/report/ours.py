"""Our runs of one (protocol, data) by themselves.

Numbers, remarks, heat map, comparisons, ranks, curves, the runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from noveltylab.report.blocks import Block, Bullets, Cell, Grid, GridRow, Heading, number
from noveltylab.report.collect import Run
from noveltylab.report.compare import Comparisons, Paired, class_means, ranked
from noveltylab.report.expected import Expected, expect
from noveltylab.report.grouping import differing
from noveltylab.report.plots import training_curves
from noveltylab.report.published import PaperTable
from noveltylab.report.rows import (
    FLOOR_TRAINED_ON,
    FLOORS,
    MARK,
    SHOWN_FLOORS,
    Row,
    has_floor,
    leakage_by_class,
)
from noveltylab.report.stats import Cells, rank, summarise, tie_reasons
from noveltylab.results.record import SEEN

#: Rules that use labels of outliers: shown apart.
RULES = ("outlier_val", "oracle")
#: Orders of the test set under which `diagnose=batch_statistics` scores.
ORDERS = ("class_order", "random_order", "apart")
WARNINGS_SHOWN = 10
#: What the row and the column `class leakage` show.
LEAKAGE = (
    "Class leakage: the share of a test inlier's 10 nearest neighbours in raw pixels that are of "
    "another class; near 1, outliers lie among the inliers and AUROC may turn over (arXiv 2606.02601)"
)


def our_blocks(
    rows: Sequence[Row], comparisons: Comparisons, table: PaperTable | None
) -> Iterator[Block]:
    """Everything about our runs.

    Args:
        rows: All of one (protocol, data), at least one.
        comparisons: Of these rows.
        table: A paper's table of this (protocol, data), which says how many inliers it takes.
    """
    expected = expect(rows, table)
    data = rows[0].runs[0].result.data
    yield Heading("Our runs")
    yield _details(rows, expected, data)
    if any(row.kinds_apart for row in rows):
        yield _apart(rows)
    if any(row.diagnosis(ORDERS[0]) for row in rows):
        yield _diagnosis(rows)
    remarks = tuple(_remarks(rows, expected))
    if remarks:
        yield Bullets("Remarks", remarks)
    yield _heat(rows)
    if comparisons:
        yield _paired(comparisons)
    ranks = rank(ranked(rows))
    if ranks is not None:
        yield ranks
    for row in rows:
        curves = training_curves(row.name, row.runs)
        if curves.panels:
            yield curves
    yield _run_list(rows)


def _details(rows: Sequence[Row], expected: Expected, data: str) -> Grid:
    rules = [rule for rule in RULES if any(row.labelled(rule) for row in rows)]
    seen = _seen(rows)
    elsewhere = [name for name in FLOOR_TRAINED_ON if has_floor(rows, name)]
    trained = [f"minus {name}, trained on {FLOOR_TRAINED_ON[name]}" for name in elsewhere]
    first = "row|score|mean|std over seeds|95 % interval|cells|minus pca|minus knn"
    headers = (*first.split("|"), *seen, *trained, *rules, "weights", "schedule")
    lines = []
    for row in rows:
        for score in (None, *row.scores):
            kind = row.kind if score is None else ""
            cells = _detail(row, score, expected, data, rules, bool(seen), elsewhere)
            lines.append(GridRow(cells, kind))
    return Grid("Our numbers", headers, tuple(lines))


def _detail(
    row: Row,
    score: str | None,
    expected: Expected,
    data: str,
    rules: Sequence[str],
    with_seen: bool,
    elsewhere: Sequence[str],
) -> tuple[Cell, ...]:
    cells = row.cells(score)
    summary = summarise(cells)
    score_name = score or row.primary
    name = f"{score_name} (transductive)" if row.transductive(score_name) else score_name
    if summary is None:  # cannot happen: every listed score occurs in at least one run
        raise ValueError(f"{row.name} has no score {score_name}")
    interval = Cell("-")
    if summary.interval is not None:
        low, high = summary.interval
        interval = Cell(f"{low:.4f} to {high:.4f}", low)
    seed_note = f"({summary.seeds} seed{'s' * (summary.seeds != 1)})"
    # gaps to the floors on the very same cells
    gaps = [_gap(cells, row.floor(floor), data) for floor in FLOORS]
    if with_seen:
        gaps.append(_seen_gap(row, cells, data))
    gaps += [_gap(cells, row.floor(floor), data) for floor in elsewhere]
    return (
        Cell(row.name),
        Cell(name),
        number(summary.mean, note=expected.note(summary.classes)),
        number(summary.seed_std, note=seed_note),
        interval,
        Cell(f"{len(cells)} of {expected.cells}", len(cells)),
        *gaps,
        *(_labelled(row, rule, score) for rule in rules),
        Cell(row.weights),
        Cell(row.schedule),
    )


def _seen(rows: Sequence[Row]) -> list[str]:
    """The header of the column on floors of what a method sees.

    Only where any method sees more than raw pixels.
    """
    if not any(row.seen_floors for row in rows):
        return []
    return ["minus the highest floor of what it sees"]


def _seen_gap(row: Row, cells: Cells, data: str) -> Cell:
    """As `_gap`, and which floor it is."""
    if row.highest_seen is None:
        return Cell("-")
    gap = _gap(cells, row.floor(row.highest_seen), data)
    return replace(gap, text=f"{gap.text} ({row.highest_seen})")


def _gap(cells: Cells, other_cells: Cells, data: str) -> Cell:
    """The difference of means over the cells that both have, with '=' where it is a tie."""
    both = cells.keys() & other_cells.keys()
    ours = summarise({cell: cells[cell] for cell in both})
    theirs = summarise({cell: other_cells[cell] for cell in both})
    if ours is None or theirs is None:
        return Cell("-")
    gap = ours.mean - theirs.mean
    reasons = tie_reasons(gap, data, ours.error, ours.seed_std)
    return number(gap, signed=True, note="=" if reasons else "")


def _labelled(row: Row, rule: str, score: str | None) -> Cell:
    """What choosing the epoch by labels of outliers gives.

    Beside it stands how much that adds over the same cells.
    """
    labelled, ours = row.labelled(rule, score), row.cells(score)
    summary = summarise(labelled)
    plain = summarise({cell: value for cell, value in ours.items() if cell in labelled})
    if summary is None or plain is None:
        return Cell("-")
    return number(summary.mean, note=f"({summary.mean - plain.mean:+.4f}, {len(labelled)} cells)")


def _apart(rows: Sequence[Row]) -> Grid:
    lines = []
    for row in rows:
        for kind in row.kinds_apart:
            summary = summarise(row.apart(kind))
            if summary is not None:
                unit = Cell(kind.replace("_", " "))
                count = Cell(str(summary.cells), summary.cells)
                lines.append(GridRow((Cell(row.name), unit, number(summary.mean), count)))
    caption = "AUROC over other units, no part of the numbers above"
    return Grid(caption, ("row", "unit", "mean", "cells"), tuple(lines))


def _diagnosis(rows: Sequence[Row]) -> Grid:
    """Means over the same cells in evaluation mode and under batch statistics."""
    lines = []
    for row in rows:
        cells = {order: row.diagnosis(order) for order in ORDERS}
        diagnosed = cells[ORDERS[0]]
        if not diagnosed:
            continue
        evaluated = {cell: value for cell, value in row.cells().items() if cell in diagnosed}
        means = [summarise(values) for values in (evaluated, *cells.values())]
        numbers = [number(summary.mean if summary else None) for summary in means]
        count = Cell(str(len(diagnosed)), len(diagnosed))
        lines.append(GridRow((Cell(row.name), Cell(row.primary), *numbers, count)))
    caption = (
        "Diagnosis, no numbers of these methods: AUROC with batch norm in training mode at test, "
        "in batches of 128, where a score depends on the other images of its batch; "
        "beside it evaluation mode, which is the runs' own number"
    )
    headers = (
        "row",
        "score",
        "evaluation mode",
        "class order",
        "random order",
        "inliers and outliers apart",
        "cells",
    )
    return Grid(caption, headers, tuple(lines))


def _remarks(rows: Sequence[Row], expected: Expected) -> Iterator[str]:
    lacking: dict[str, list[str]] = {}
    for row in rows:
        missing = expected.missing(row.cells())
        if missing:
            lacking.setdefault(missing, []).append(row.name)
    for missing, names in lacking.items():
        yield f"Missing cells of {', '.join(names)}: {missing}"
    differences = differing(rows)
    for row in rows:
        if differences.get(row.name):
            yield f"{row.name} is told apart by {', '.join(differences[row.name])}"
        for key, counts in row.varying.items():
            values = ", ".join(f"{value} in {count} runs" for value, count in counts.items())
            yield f"{row.name}: its runs differ in {key}: {values}"
        if unverified := sum(run.result.data_verified is False for run in row.runs):
            yield f"{row.name}: the data of {unverified} runs was not verified by checksum"
        if unknown := sum(run.result.data_verified is None for run in row.runs):
            yield f"{row.name}: the data of {unknown} runs cannot be verified (no checksums to compare with)"
    warned = [f"{_where(run)}: {text}" for row in rows for run in row.runs for text in run.warnings]
    yield from warned[:WARNINGS_SHOWN]
    if len(warned) > WARNINGS_SHOWN:
        yield f"{len(warned) - WARNINGS_SHOWN} more warnings in the list of runs"


def _where(run: Run) -> str:
    result = run.result
    words = f"{result.method} inlier {result.inlier} seed {result.seed}"
    return f"{words} ({run.source})" if run.source else words


def class_names(rows: Sequence[Row]) -> dict[int, str]:
    """Inlier label -> name, in the order of labels."""
    results = [run.result for row in rows for run in row.runs]
    names = {result.inlier: result.inlier_name for result in results}
    return dict(sorted(names.items()))


def _heat(rows: Sequence[Row]) -> Grid:
    means, names = class_means(rows, SHOWN_FLOORS), class_names(rows)
    values = [value for classes in means.values() for value in classes.values()]
    low, high = min(values), max(values)
    lines = []
    for name, classes in means.items():
        cells = [_heat_cell(classes.get(label), low, high) for label in names]
        lines.append(GridRow((Cell(name), *cells), _kind_by_name(name)))
    caption = (
        f"AUROC by class, mean over seeds; colour from {low:.3f} (pale) to {high:.3f} (strong)"
    )
    leakage = leakage_by_class(rows)
    if leakage:
        cells = [number(leakage.get(label), 3) for label in names]
        lines.append(GridRow((Cell("class leakage"), *cells)))
        caption += f". {LEAKAGE}"
    return Grid(caption, ("row", *names.values()), tuple(lines))


def _heat_cell(value: float | None, low: float, high: float) -> Cell:
    if value is None:
        return Cell("-")
    span = (high - low) or 1.0
    return Cell(f"{value:.3f}", value, heat=(value - low) / span)


def _kind_by_name(name: str) -> str:
    """`GridRow.kind` of a row or floor."""
    if name.startswith("floor: "):
        return "floor"
    return "trial" if name.endswith(MARK) else "ours"


def _paired(comparisons: Comparisons) -> Grid:
    headers = "first|second|classes|cells|mean difference|95 % interval|wins-ties-losses|p|Holm p|what it says"
    lines = tuple(GridRow(_pair_cells(*comparison)) for comparison in comparisons)
    caption = (
        "Paired comparison of primary scores, first minus second, one difference a class: seeds are averaged first. Interval: "
        "Student's over the classes. p: Wilcoxon's signed rank over the classes, two-sided; of a single class DeLong's over "
        "its test images. Holm p: corrected for all comparisons of this table; one is higher where it is under 0.05 and the "
        "interval leaves out 0. A tie is a difference under the standard error that the test images give"
    )
    return Grid(caption, tuple(headers.split("|")), lines, page_only=True)


def _pair_cells(first: str, second: str, paired: Paired) -> tuple[Cell, ...]:
    interval = Cell("-")
    if paired.interval is not None:
        low, high = paired.interval
        interval = Cell(f"{low:+.4f} to {high:+.4f}", low)
    return (
        Cell(first),
        Cell(second),
        Cell(str(paired.classes), paired.classes),
        Cell(str(paired.pairs), paired.pairs),
        number(paired.mean, signed=True),
        interval,
        Cell(f"{paired.wins}-{paired.ties}-{paired.losses}", paired.wins - paired.losses),
        _p_cell(paired.p),
        _p_cell(paired.holm),
        Cell(paired.verdict),
    )


def _p_cell(p: float | None) -> Cell:
    return Cell("-") if p is None else Cell(f"{p:.3g}", p)


def _run_list(rows: Sequence[Row]) -> Grid:
    seen = "|highest floor of what it sees" if _seen(rows) else ""
    with_pixels = any(run.result.pixels is not None for row in rows for run in row.runs)
    pixels = "|pixel AUROC|AUPRO" if with_pixels else ""
    headers = (
        f"row|inlier|seed|score|AUROC|95 % interval{pixels}|pca|knn|features{seen}|class leakage|"
        "weights|minutes|warnings|files"
    )
    runs = [(row, run) for row in rows for run in row.runs]
    lines = tuple(GridRow(_run_cells(row, run, with_pixels, bool(seen))) for row, run in runs)
    return Grid("All runs", tuple(headers.split("|")), lines, page_only=True, folded=True)


def _run_cells(row: Row, run: Run, with_pixels: bool, with_seen: bool) -> tuple[Cell, ...]:
    result = run.result
    metrics = result.scores[result.primary]
    low, high = run.interval(metrics)
    place = str(result.inlier)
    if result.inlier_name != place:
        place = f"{result.inlier} {result.inlier_name}"
    # of maps, by masks
    pixels = []
    if with_pixels:
        pixels = [Cell("-"), Cell("-")]
    if with_pixels and result.pixels is not None:
        pixels = [number(result.pixels.auroc), number(result.pixels.aupro)]
    # the floors on the run's split, and of what its method sees
    floors = []
    for name in SHOWN_FLOORS:
        floor = result.floor.get(name)
        floors.append(number(floor.auroc if floor else None))
    if with_seen:
        floors.append(_highest_seen(run))
    weights = f"{result.selected.rule}, epoch {result.selected.epoch}"
    if run.lacks:
        weights += f"; {run.lacks}"
    minutes = result.seconds.get("total", 0.0) / 60
    return (
        Cell(row.name),
        Cell(place, result.inlier),
        Cell(str(result.seed), result.seed),
        Cell(result.primary),
        number(metrics.auroc),
        Cell(f"{low:.4f} to {high:.4f}", low),
        *pixels,
        *floors,
        number(result.leakage.inliers if result.leakage else None, 3),
        Cell(weights),
        number(minutes, 1),
        Cell(" ".join(run.warnings)),
        Cell("", links=(("folder", run.place), *_pictures(run.folder))),
    )


def _highest_seen(run: Run) -> Cell:
    """The highest floor of what its method sees, and which one."""
    floors = run.result.floor
    names = [name for name in floors if name.endswith(SEEN)]
    if not names:
        return Cell("-")
    highest = max(names, key=lambda name: floors[name].auroc)
    return number(floors[highest].auroc, note=f"({highest})")


def _pictures(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted((folder / "figures").glob("*.png")):
        yield path.stem, path
