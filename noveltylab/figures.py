"""The pictures of one run, written as files without a display; matplotlib is imported only when one is drawn."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from noveltylab.results import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

# Okabe and Ito's palette, told apart with any colour vision
INLIER, OUTLIER = "#0072B2", "#D55E00"
PALETTE = (INLIER, OUTLIER, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")

GROUPS = {
    "inliers, lowest scores (most typical)": (0, False),
    "inliers, highest scores (false alarms)": (0, True),
    "outliers, highest scores (best found)": (1, True),
    "outliers, lowest scores (missed)": (1, False),
}


def plot_roc(path: str | Path, curves: Mapping[str, tuple[Array, Array, float]]) -> None:
    """Draw ROC curves.

    Args:
        path: Of the picture; its suffix gives the format.
        curves: Name -> (fpr (K,), tpr (K,), auroc), each in [0, 1]; the first is solid, under the others.
    """
    figure = _figure(5.0, 5.2)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=(0, (4, 4)), label="chance")
    for i, (name, (fpr, tpr, auroc)) in enumerate(curves.items()):
        look: dict[str, Any] = {"color": PALETTE[i % len(PALETTE)], "linestyle": STYLES[i % len(STYLES)]}
        axes.plot(fpr, tpr, linewidth=2, label=f"{name}, AUROC {auroc:.3f}", **look)
    axes.set(
        xlabel="false positive rate (inliers)", ylabel="true positive rate (outliers)", title="ROC", aspect="equal"
    )
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[1:] + handles[:1], labels[1:] + labels[:1], loc="lower right", fontsize=9)
    _save(figure, path)


def plot_histogram(path: str | Path, scores: Array, is_outlier: NDArray[np.bool_], name: str) -> None:
    """Draw the scores of inliers against those of outliers, each group as shares of itself, in shared bins.

    Args:
        path: Of the picture; its suffix gives the format.
        scores: (N,), finite, any scale; the axis is logarithmic where they are positive over more than two decades.
        is_outlier: bool (N,).
        name: Of the score.
    """
    groups = {"inliers": scores[~is_outlier], "outliers": scores[is_outlier]}
    edges, logarithmic = _shared_bins(*groups.values())
    figure = _figure(6.4, 4.0)
    axes = figure.add_subplot()
    looks = ((INLIER, None, "-"), (OUTLIER, "////", "--"))  # dashes let the line below be seen
    for (kind, values), (colour, hatch, line) in zip(groups.items(), looks, strict=True):
        count = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
        share = count / max(1, len(values))
        axes.stairs(share, edges, fill=True, facecolor=colour, edgecolor=colour, alpha=0.25, hatch=hatch)
        axes.stairs(share, edges, color=colour, linestyle=line, linewidth=1.8, label=f"{kind} ({len(values)})")
    beyond = int(np.sum((scores < edges[0]) | (scores > edges[-1])))
    note = f"\n{beyond} beyond the axis, counted in the outermost bins" if beyond else ""
    axes.set(xlabel=f"{name}, larger is more novel{note}", ylabel="share of the group", title=f"Scores: {name}")
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=9)
    _save(figure, path)


def extreme_cases(scores: Array, is_outlier: NDArray[np.bool_], cases: int = 10) -> dict[str, NDArray[np.int64]]:
    """What ``plot_reconstructions`` shows: title -> at most ``cases`` indices into (N,), the most extreme first.

    The cases of a subset that holds all of these are the same, so only they need to be read and reconstructed.
    """
    order = np.argsort(scores, kind="stable")
    groups = {}
    for title, (kind, highest) in GROUPS.items():
        members = order[is_outlier[order] == kind]
        groups[title] = (members[::-1] if highest else members)[:cases]
    return groups


def plot_reconstructions(
    path: str | Path,
    originals: NDArray[Any],
    reconstructions: NDArray[Any] | None,
    scores: Array,
    is_outlier: NDArray[np.bool_],
    labels: Sequence[object] | NDArray[Any] | None = None,
    *,
    cases: int = 10,
) -> None:
    """Draw the best and worst cases of both kinds, each input above its reconstruction, its score above both.

    Args:
        path: Of the picture; its suffix gives the format.
        originals: (N, C, H, W), uint8, or floats in [0, 1] (clipped); C of 3 is shown in colour, any other as grey.
        reconstructions: As ``originals``, or None for a method that makes none.
        scores: (N,), finite.
        is_outlier: bool (N,).
        labels: N categories or names, written above each case.
        cases: Most cases shown for each kind.
    """
    groups = {title: chosen for title, chosen in extreme_cases(scores, is_outlier, cases).items() if len(chosen)}
    stacks = {"input": originals, "reconstruction": reconstructions}
    shown = {name: stack for name, stack in stacks.items() if stack is not None}
    tall = originals.shape[2] / originals.shape[3]  # lengths are in widths of one picture
    lane, gap = 0.2 if labels is None else 0.37, 0.06
    wide = max(6, *map(len, groups.values())) * (1 + gap)
    deep = lane + len(shown) * (tall + gap)
    inch, margin, header = 0.85, 1.15, 0.35
    across, down = margin + wide * inch + 0.1, len(groups) * (header + deep * inch) + 0.1
    figure = _figure(across, down, layout=None)
    for row, (title, chosen) in enumerate(groups.items()):
        bottom = down - (row + 1) * (header + deep * inch)
        axes = figure.add_axes((margin / across, bottom / down, wide * inch / across, deep * inch / down))
        axes.axis("off")
        colour = OUTLIER if GROUPS[title][0] else INLIER
        axes.text(0, -0.02, title, color=colour, fontsize=11, fontweight="bold", va="bottom")
        left = np.arange(len(chosen)) * (1 + gap)
        style: dict[str, Any] = {"fontsize": 8, "va": "bottom", "linespacing": 1.05}
        axes.text(-0.1, lane - 0.02, "score" if labels is None else "sample\nscore", ha="right", color="0.4", **style)
        for x, i in zip(left, chosen, strict=True):
            caption = f"{scores[i]:.3g}" if labels is None else f"{_short(str(labels[i]))}\n{scores[i]:.3g}"
            axes.text(x + 0.5, lane - 0.02, caption, ha="center", **style)
        for line, (name, stack) in enumerate(shown.items()):
            y = lane + line * (tall + gap)
            axes.text(-0.1, y + tall / 2, name, fontsize=9, ha="right", va="center")
            for x, picture in zip(left, _pictures(stack[chosen]), strict=True):
                axes.imshow(picture, extent=(x, x + 1, y + tall, y), interpolation="nearest")
        axes.set(xlim=(0, wide), ylim=(deep, 0), aspect="auto")  # each imshow moved these
    _save(figure, path)


def plot_embedding(path: str | Path, embedding: NDArray[np.generic], is_outlier: NDArray[np.bool_]) -> None:
    """t-SNE of an embedding (N, D), inliers against outliers; the layout is seeded."""
    from sklearn.manifold import TSNE

    points = TSNE(perplexity=min(30, (len(embedding) - 1) / 3), random_state=0).fit_transform(embedding)
    figure = _figure(6, 6)
    axes = figure.subplots()
    for kind, label, colour in ((True, "outliers", OUTLIER), (False, "inliers", INLIER)):
        x, y = points[is_outlier == kind].T
        axes.scatter(x, y, s=12, color=colour, label=label, alpha=0.8, linewidths=0)
    axes.set(title=f"t-SNE of the embedding, {len(embedding)} test images", xticks=[], yticks=[])
    axes.legend()
    _save(figure, path)


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> "Figure":
    """A figure of so many inches; made without pyplot, which would keep it alive and want a display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def _save(figure: "Figure", path: str | Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix[1:], dpi=150)
    write_atomic(path, buffer.getvalue())


def _shared_bins(inliers: Array, outliers: Array) -> tuple[Array, bool]:
    """Bin edges over the middle 96 percent of both groups and a little more, and whether they are logarithmic."""
    pooled = np.concatenate([inliers, outliers])
    middle = [np.quantile(group, (0.02, 0.98)) for group in (inliers, outliers) if len(group)]
    low, high = float(min(ends[0] for ends in middle)), float(max(ends[1] for ends in middle))
    smallest, largest = float(pooled.min()), float(pooled.max())
    count = int(np.clip(np.sqrt(len(pooled)), 10, 60)) + 1
    if smallest > 0 and high > 100 * low:
        more = (high / low) ** 0.2
        return np.geomspace(max(smallest, low / more), min(largest, high * more), count), True
    more = 0.2 * (high - low)
    low, high = max(smallest, low - more), min(largest, high + more)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all alike: give the one bar some room
        room = 0.05 * abs(low) or 0.5
        low, high = low - room, high + room
    return np.linspace(low, high, count), False


def _pictures(images: NDArray[Any]) -> NDArray[np.float32]:
    """(N, C, H, W) of any kind to RGB (N, H, W, 3) in [0, 1]."""
    scale = 255 if images.dtype == np.uint8 else 1
    unit: NDArray[np.float32] = np.nan_to_num(np.clip(images.astype(np.float32) / scale, 0, 1))
    colour = unit if unit.shape[1] == 3 else unit.mean(axis=1, keepdims=True).repeat(3, axis=1)
    return colour.transpose(0, 2, 3, 1)


def _short(text: str, length: int = 11) -> str:
    return text if len(text) <= length else "…" + text[1 - length :]
