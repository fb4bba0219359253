"""The pictures of one run, written as files without a display.

matplotlib is imported only when one is drawn.
"""

import io
import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noveltylab.results.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

# Okabe and Ito's palette, told apart with any colour vision
INLIER = "#0072B2"
OUTLIER = "#D55E00"
PALETTE = (INLIER, OUTLIER, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")

#: Groups of cases: title -> whether they are outliers, whether their scores are the highest.
GROUPS = {
    "inliers, lowest scores (most typical)": (False, False),
    "inliers, highest scores (false alarms)": (False, True),
    "outliers, highest scores (best found)": (True, True),
    "outliers, lowest scores (missed)": (True, False),
}


def plot_roc(path: str | Path, curves: Mapping[str, tuple[Array, Array, float]]) -> None:
    """Draws ROC curves.

    Args:
        path: The picture's; its suffix gives the format.
        curves: Name -> (fpr (K,), tpr (K,), auroc), each in [0, 1]; the first is solid, under the
            others.
    """
    figure = new_figure(5.0, 5.2)
    axes = figure.add_subplot()
    axes.plot(
        [0, 1],
        [0, 1],
        color="0.6",
        linewidth=1,
        linestyle=(0, (4, 4)),
        label="chance",
    )
    colours, styles = itertools.cycle(PALETTE), itertools.cycle(STYLES)
    for name, (fpr, tpr, auroc) in curves.items():
        label = f"{name}, AUROC {auroc:.3f}"
        axes.plot(
            fpr,
            tpr,
            linewidth=2,
            label=label,
            color=next(colours),
            linestyle=next(styles),
        )
    axes.set(
        xlabel="false positive rate (inliers)",
        ylabel="true positive rate (outliers)",
        title="ROC",
        aspect="equal",
    )
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[1:] + handles[:1],
        labels[1:] + labels[:1],
        loc="lower right",
        fontsize=9,
    )
    save_figure(figure, path)


def plot_histogram(
    path: str | Path, scores: Array, is_outlier: NDArray[np.bool_], name: str
) -> None:
    """Draws the scores of inliers against those of outliers in shared bins.

    Each group is drawn as shares of itself.

    Args:
        path: The picture's; its suffix gives the format.
        scores: (N,), finite, any scale; the axis is logarithmic where they are positive over more
            than two decades.
        is_outlier: bool (N,).
        name: Of the score.
    """
    groups = {"inliers": scores[~is_outlier], "outliers": scores[is_outlier]}
    edges, logarithmic = _shared_bins(*groups.values())
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    looks = ((INLIER, None, "-"), (OUTLIER, "////", "--"))  # dashes let the line below be seen
    for (kind, values), (colour, hatch, line) in zip(groups.items(), looks, strict=True):
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        shares = counts / max(1, len(values))
        axes.stairs(
            shares,
            edges,
            fill=True,
            facecolor=colour,
            edgecolor=colour,
            alpha=0.25,
            hatch=hatch,
        )
        label = f"{kind} ({len(values)})"
        axes.stairs(
            shares,
            edges,
            color=colour,
            linestyle=line,
            linewidth=1.8,
            label=label,
        )
    note = ""
    beyond = int(np.sum((scores < edges[0]) | (scores > edges[-1])))
    if beyond:
        note = f"\n{beyond} beyond the axis, counted in the outermost bins"
    axes.set(
        xlabel=f"{name}, larger is more novel{note}",
        ylabel="share of the group",
        title=f"Scores: {name}",
    )
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=9)
    save_figure(figure, path)


def extreme_cases(
    scores: Array, is_outlier: NDArray[np.bool_], cases: int = 10
) -> dict[str, NDArray[np.int64]]:
    """What `plot_reconstructions` shows: title -> at most `cases` indices, the extreme ones first.

    The indices are into (N,). The cases of a subset that holds all of these are the same, so only
    they need to be read and reconstructed.
    """
    order = np.argsort(scores, kind="stable")
    groups = {}
    for title, (kind, highest) in GROUPS.items():
        members = order[is_outlier[order] == kind]
        if highest:
            members = members[::-1]
        groups[title] = members[:cases]
    return groups


def plot_reconstructions(
    path: str | Path,
    originals: NDArray[Any],
    explanations: Mapping[str, NDArray[Any]],
    scores: Array,
    is_outlier: NDArray[np.bool_],
    labels: Sequence[object] | NDArray[Any] | None = None,
    *,
    errors: NDArray[Any] | None = None,
    kinds: Sequence[str] | None = None,
    cases: int = 10,
) -> None:
    """Draws the best and worst cases of both kinds, each input above what explains its score.

    The score stands above all.

    Args:
        path: The picture's; its suffix gives the format.
        originals: (N, C, H, W), uint8, or floats in [0, 1] (clipped); C of 3 is shown in colour,
            any other as grey.
        explanations: Title -> images as `originals` (any C), such as reconstructions; one row each,
            {} for none.
        scores: (N,), finite.
        is_outlier: bool (N,).
        labels: N categories or names, written above each case.
        errors: (N, H, W), where the reconstruction is off; coloured by one scale for all cases.
        kinds: N names of classes, written above the labels.
        cases: Most cases shown for each kind.
    """
    # what is shown
    all_groups = extreme_cases(scores, is_outlier, cases)
    groups = {title: members for title, members in all_groups.items() if len(members)}
    stacks = {"input": originals, **explanations}
    if errors is not None:
        stacks["error"] = colour_errors(errors).transpose(0, 3, 1, 2)
    captions: dict[str, list[str]] = {}
    if kinds is not None:
        captions["kind"] = [_short(str(kind)) for kind in kinds]
    if labels is not None:
        captions["sample"] = [_short(str(label)) for label in labels]
    captions["score"] = [f"{value:.3g}" for value in scores]

    # the page; lengths are in widths of one picture, from the top
    grid = _Grid(height=originals.shape[2] / originals.shape[3])
    head = 0.2 + 0.17 * (len(captions) - 1)
    columns = max(6, *map(len, groups.values()))
    inch, margin, title_inches = 0.85, 1.15, 0.35
    wide = columns * grid.step
    deep = head + len(stacks) * grid.line
    group_inches = title_inches + deep * inch
    across = margin + wide * inch + 0.1
    down = len(groups) * group_inches + 0.1
    figure = new_figure(across, down, layout=None)

    # each group
    for row, (title, members) in enumerate(groups.items()):
        bottom = down - (row + 1) * group_inches
        box = (margin / across, bottom / down, wide * inch / across, deep * inch / down)
        axes = figure.add_axes(box)
        axes.axis("off")
        _draw_head(axes, title, captions, members, head, grid)
        for line, (name, stack) in enumerate(stacks.items()):
            _draw_row(axes, name, stack[members], head + line * grid.line, grid)
        # each imshow moved these
        axes.set(xlim=(0, wide), ylim=(deep, 0), aspect="auto")
    save_figure(figure, path)


def _draw_head(
    axes: "Axes",
    title: str,
    captions: Mapping[str, Sequence[str]],
    members: NDArray[np.int64],
    bottom: float,
    grid: "_Grid",
) -> None:
    """The title of a group of cases, and the captions of each case above `bottom`."""
    colour = OUTLIER if GROUPS[title][0] else INLIER
    axes.text(0, -0.02, title, color=colour, fontsize=11, fontweight="bold", va="bottom")
    style: dict[str, Any] = {"fontsize": 8, "va": "bottom", "linespacing": 1.05}
    y = bottom - 0.02
    axes.text(-0.1, y, "\n".join(captions), ha="right", color="0.4", **style)
    for column, case in enumerate(members):
        middle = column * grid.step + 0.5
        caption = "\n".join(words[case] for words in captions.values())
        axes.text(middle, y, caption, ha="center", **style)


def plot_rows(path: str | Path, rows: Sequence[tuple[str, NDArray[Any]]]) -> None:
    """Draws titled rows of images as a grid.

    Args:
        path: The picture's; its suffix gives the format.
        rows: Title and images (N, C, H, W) of each row, as `plot_reconstructions` takes them; all
            of one height and width.
    """
    _, _, height, width = rows[0][1].shape
    grid = _Grid(height / width)
    wide = max(len(images) for _, images in rows) * grid.step
    deep = len(rows) * grid.line
    inch, margin = 0.75, 1.6
    across, down = margin + wide * inch + 0.1, deep * inch + 0.2
    figure = new_figure(across, down, layout=None)
    axes = figure.add_axes((margin / across, 0.1 / down, wide * inch / across, deep * inch / down))
    axes.axis("off")
    for line, (title, images) in enumerate(rows):
        _draw_row(axes, title, images, line * grid.line, grid)
    # each imshow moved these
    axes.set(xlim=(0, wide), ylim=(deep, 0), aspect="auto")
    save_figure(figure, path)


class _Grid(NamedTuple):
    """Where images of one size stand, in widths of one of them."""

    height: float
    gap: float = 0.06

    @property
    def step(self) -> float:
        """From the left edge of an image to that of the next one."""
        return 1 + self.gap

    @property
    def line(self) -> float:
        """From the upper edge of a row to that of the next one."""
        return self.height + self.gap


def _draw_row(axes: "Axes", title: str, images: NDArray[Any], top: float, grid: _Grid) -> None:
    """Images (N, C, H, W) side by side below `top`, their title left of them."""
    bottom = top + grid.height
    axes.text(-0.1, top + grid.height / 2, title, fontsize=9, ha="right", va="center")
    for position, picture in enumerate(_pictures(images)):
        edge = position * grid.step
        axes.imshow(picture, extent=(edge, edge + 1, bottom, top), interpolation="nearest")


def colour_errors(errors: NDArray[Any]) -> NDArray[np.uint8]:
    """Errors (N, H, W), not negative, as colours (N, H, W, 3).

    The 99.5th percentile of all of them is the brightest.
    """
    from matplotlib import colormaps

    finite = np.nan_to_num(errors)
    scale = max(float(np.quantile(finite, 0.995)), 1e-9)
    coloured = colormaps["inferno"](np.clip(finite / scale, 0, 1))[..., :3]
    return np.asarray((coloured * 255).round(), dtype=np.uint8)


def plot_kinds(
    path: str | Path, groups: Mapping[str, Array], aurocs: Mapping[str, float], name: str
) -> None:
    """Draws the scores of each kind of outlier, one row each, under those of the inliers.

    Args:
        path: The picture's; its suffix gives the format.
        groups: Class -> its scores (n,), the inliers first.
        aurocs: Kind -> AUROC against all inliers, for each class but the first.
        name: Of the score.
    """
    figure = new_figure(7.0, 1.2 + 0.45 * len(groups))
    axes = figure.add_subplot()
    rng = np.random.default_rng(0)  # spreads the points of a row
    captions = []
    for row, (kind, scores) in enumerate(groups.items()):
        colour = INLIER
        caption = f"{_short(kind, 30)} ({len(scores)})"
        if kind in aurocs:
            colour = OUTLIER
            caption += f"\nAUROC {aurocs[kind]:.3f}"
        captions.append(caption)
        heights = row + rng.uniform(-0.25, 0.25, len(scores))
        axes.plot(scores, heights, ".", color=colour, alpha=0.6, markersize=4)
        median = np.median(scores)
        axes.plot(
            [median, median],
            [row - 0.35, row + 0.35],
            color="black",
            linewidth=1.4,
        )
    axes.set_yticks(range(len(groups)), captions, fontsize=8)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.invert_yaxis()
    axes.set(xlabel=f"{name}, larger is more novel; black: the median", title="Scores by kind")
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    save_figure(figure, path)


def plot_embedding(
    path: str | Path, embedding: NDArray[np.generic], is_outlier: NDArray[np.bool_]
) -> None:
    """t-SNE of an embedding (N, D), inliers against outliers; the layout is seeded."""
    from sklearn.manifold import TSNE

    perplexity = min(30, (len(embedding) - 1) / 3)
    points = TSNE(perplexity=perplexity, random_state=0).fit_transform(embedding)
    figure = new_figure(6, 6)
    axes = figure.subplots()
    for kind, label, colour in ((True, "outliers", OUTLIER), (False, "inliers", INLIER)):
        x, y = points[is_outlier == kind].T
        axes.scatter(x, y, s=12, color=colour, label=label, alpha=0.8, linewidths=0)
    outliers = int(is_outlier.sum())
    counts = f"{len(embedding) - outliers} test inliers and {outliers} outliers"
    axes.set(title=f"t-SNE of the embedding, {counts}", xticks=[], yticks=[])
    axes.legend()
    save_figure(figure, path)


def new_figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> "Figure":
    """A figure of so many inches, made without pyplot, which would want a display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def save_figure(figure: "Figure", path: str | Path) -> None:
    for axes in figure.axes:
        for text in (axes.title, *axes.texts):
            text.set_parse_math(False)  # names of files may hold a $
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # matplotlib's own font lacks some scripts; the name it draws as boxes there stands whole in
        # scores.csv, and a run has nothing to mend
        warnings.filterwarnings(
            "ignore", message=r"Glyph \d+ .* missing from font", category=UserWarning
        )
        figure.savefig(buffer, format=Path(path).suffix[1:], dpi=150)
    write_atomic(path, buffer.getvalue())


def _shared_bins(inliers: Array, outliers: Array) -> tuple[Array, bool]:
    """Bin edges over the middle 96 percent of both groups and a little more.

    Also whether they are logarithmic.
    """
    pooled = np.concatenate([inliers, outliers])
    smallest, largest = float(pooled.min()), float(pooled.max())
    ends = [np.quantile(group, (0.02, 0.98)) for group in (inliers, outliers) if len(group)]
    low = float(min(start for start, _ in ends))
    high = float(max(end for _, end in ends))
    count = int(np.clip(np.sqrt(len(pooled)), 10, 60)) + 1
    if smallest > 0 and high > 100 * low:
        factor = (high / low) ** 0.2
        edges = np.geomspace(max(smallest, low / factor), min(largest, high * factor), count)
        return edges, True
    margin = 0.2 * (high - low)
    low, high = max(smallest, low - margin), min(largest, high + margin)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all alike: give the one bar some room
        room = 0.05 * abs(low) or 0.5
        low, high = low - room, high + room
    return np.linspace(low, high, count), False


def _pictures(images: NDArray[Any]) -> NDArray[np.float32]:
    """(N, C, H, W) of any kind to RGB (N, H, W, 3) in [0, 1]; int16 is sound, its silence grey."""
    if images.dtype == np.int16:
        images = images / 65536 + 0.5
    scale = 255 if images.dtype == np.uint8 else 1
    unit: NDArray[np.float32] = np.nan_to_num(np.clip(images.astype(np.float32) / scale, 0, 1))
    if unit.shape[1] != 3:
        unit = unit.mean(axis=1, keepdims=True).repeat(3, axis=1)
    return unit.transpose(0, 2, 3, 1)


def _short(text: str, length: int = 11) -> str:
    return text if len(text) <= length else "…" + text[1 - length :]
