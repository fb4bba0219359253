"""The pictures of one run, written as files without a display.

matplotlib is imported only when one is drawn.
"""

import io
import itertools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from noveltylab.results.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

# Okabe and Ito's palette, told apart with any colour vision
INLIER = "#0072B2"
OUTLIER = "#D55E00"
PALETTE = (INLIER, OUTLIER, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")


def plot_roc(path: str | Path, curves: Mapping[str, tuple[Array, Array, float]]) -> None:
    """Draws ROC curves.

    Args:
        path: The picture's; its suffix gives the format.
        curves: Name -> (fpr (K,), tpr (K,), auroc), each in [0, 1]; the first is solid, under the
            others.
    """
    figure = new_figure(5.0, 5.2, layout=None)
    figure.subplots_adjust(left=0.13, right=0.97, bottom=0.1, top=0.93)
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
    figure = new_figure(6.4, 4.0, layout=None)
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
    # the note is a line of its own
    figure.subplots_adjust(left=0.12, right=0.98, bottom=0.19 if note else 0.14, top=0.92)
    save_figure(figure, path)


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
        caption = f"{shortened(kind, 30)} ({len(scores)})"
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
        kind = Path(path).suffix[1:]
        # an eighth larger than at most, in half the time
        options = {"compress_level": 3} if kind == "png" else None
        figure.savefig(buffer, format=kind, dpi=150, pil_kwargs=options)
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


def shortened(text: str, length: int = 11) -> str:
    return text if len(text) <= length else "…" + text[1 - length :]
