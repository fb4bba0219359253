"""The pictures of one run, written as files without a display; matplotlib is imported only when one
is drawn.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from noveltylab.results.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
        curves: Name -> (fpr (K,), tpr (K,), auroc), each in [0, 1]; the first is solid, under the
            others.
    """
    figure = _figure(5.0, 5.2)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=(0, (4, 4)), label="chance")
    for i, (name, (fpr, tpr, auroc)) in enumerate(curves.items()):
        look: dict[str, Any] = {
            "color": PALETTE[i % len(PALETTE)],
            "linestyle": STYLES[i % len(STYLES)],
        }
        axes.plot(fpr, tpr, linewidth=2, label=f"{name}, AUROC {auroc:.3f}", **look)
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
    axes.legend(handles[1:] + handles[:1], labels[1:] + labels[:1], loc="lower right", fontsize=9)
    _save(figure, path)


def plot_histogram(
    path: str | Path, scores: Array, is_outlier: NDArray[np.bool_], name: str
) -> None:
    """Draw the scores of inliers against those of outliers, each group as shares of itself, in
    shared bins.

    Args:
        path: Of the picture; its suffix gives the format.
        scores: (N,), finite, any scale; the axis is logarithmic where they are positive over more
            than two decades.
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
        axes.stairs(
            share, edges, fill=True, facecolor=colour, edgecolor=colour, alpha=0.25, hatch=hatch
        )
        axes.stairs(
            share,
            edges,
            color=colour,
            linestyle=line,
            linewidth=1.8,
            label=f"{kind} ({len(values)})",
        )
    beyond = int(np.sum((scores < edges[0]) | (scores > edges[-1])))
    note = f"\n{beyond} beyond the axis, counted in the outermost bins" if beyond else ""
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
    _save(figure, path)


def extreme_cases(
    scores: Array, is_outlier: NDArray[np.bool_], cases: int = 10
) -> dict[str, NDArray[np.int64]]:
    """What ``plot_reconstructions`` shows: title -> at most ``cases`` indices into (N,), the most
    extreme first.

    The cases of a subset that holds all of these are the same, so only they need to be read and
    reconstructed.
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
    explanations: Mapping[str, NDArray[Any]],
    scores: Array,
    is_outlier: NDArray[np.bool_],
    labels: Sequence[object] | NDArray[Any] | None = None,
    *,
    errors: NDArray[Any] | None = None,
    kinds: Sequence[str] | None = None,
    cases: int = 10,
) -> None:
    """Draw the best and worst cases of both kinds, each input above what explains its score, its
    score above all.

    Args:
        path: Of the picture; its suffix gives the format.
        originals: (N, C, H, W), uint8, or floats in [0, 1] (clipped); C of 3 is shown in colour,
            any other as grey.
        explanations: Title -> images as ``originals`` (any C), such as reconstructions; one row
            each, {} for none.
        scores: (N,), finite.
        is_outlier: bool (N,).
        labels: N categories or names, written above each case.
        errors: (N, H, W), where the reconstruction is off; coloured by one scale for all cases.
        kinds: N names of classes, written above the labels.
        cases: Most cases shown for each kind.
    """
    groups = {
        title: chosen
        for title, chosen in extreme_cases(scores, is_outlier, cases).items()
        if len(chosen)
    }
    coloured = None if errors is None else colour_errors(errors).transpose(0, 3, 1, 2)
    shown = {
        "input": originals,
        **explanations,
        **({} if coloured is None else {"error": coloured}),
    }
    tall = originals.shape[2] / originals.shape[3]  # lengths are in widths of one picture
    above = [name for name, values in (("kind", kinds), ("sample", labels)) if values is not None]
    lane, gap = 0.2 + 0.17 * len(above), 0.06
    wide = max(6, *map(len, groups.values())) * (1 + gap)
    deep = lane + len(shown) * (tall + gap)
    inch, margin, header = 0.85, 1.15, 0.35
    across, down = margin + wide * inch + 0.1, len(groups) * (header + deep * inch) + 0.1
    figure = _figure(across, down, layout=None)
    for row, (title, chosen) in enumerate(groups.items()):
        bottom = down - (row + 1) * (header + deep * inch)
        axes = figure.add_axes(
            (margin / across, bottom / down, wide * inch / across, deep * inch / down)
        )
        axes.axis("off")
        colour = OUTLIER if GROUPS[title][0] else INLIER
        axes.text(0, -0.02, title, color=colour, fontsize=11, fontweight="bold", va="bottom")
        left = np.arange(len(chosen)) * (1 + gap)
        style: dict[str, Any] = {"fontsize": 8, "va": "bottom", "linespacing": 1.05}
        axes.text(-0.1, lane - 0.02, "\n".join([*above, "score"]), ha="right", color="0.4", **style)
        for x, i in zip(left, chosen, strict=True):
            words = [_short(str(values[i])) for values in (kinds, labels) if values is not None]
            caption = "\n".join([*words, f"{scores[i]:.3g}"])
            axes.text(x + 0.5, lane - 0.02, caption, ha="center", **style)
        for line, (name, stack) in enumerate(shown.items()):
            y = lane + line * (tall + gap)
            _draw_row(axes, name, stack[chosen], y, tall, gap)
        axes.set(xlim=(0, wide), ylim=(deep, 0), aspect="auto")  # each imshow moved these
    _save(figure, path)


def plot_rows(path: str | Path, rows: Sequence[tuple[str, NDArray[Any]]]) -> None:
    """Draw titled rows of images as a grid.

    Args:
        path: Of the picture; its suffix gives the format.
        rows: Title and images (N, C, H, W) of each row, as ``plot_reconstructions`` takes them; all
            of one height and width.
    """
    height, width = rows[0][1].shape[2:]
    tall, gap = height / width, 0.06  # lengths are in widths of one picture
    wide = max(len(images) for _, images in rows) * (1 + gap)
    deep = len(rows) * (tall + gap)
    inch, margin = 0.75, 1.6
    across, down = margin + wide * inch + 0.1, deep * inch + 0.2
    figure = _figure(across, down, layout=None)
    axes = figure.add_axes((margin / across, 0.1 / down, wide * inch / across, deep * inch / down))
    axes.axis("off")
    for line, (title, images) in enumerate(rows):
        _draw_row(axes, title, images, line * (tall + gap), tall, gap)
    axes.set(xlim=(0, wide), ylim=(deep, 0), aspect="auto")  # each imshow moved these
    _save(figure, path)


def _draw_row(
    axes: "Axes", title: str, images: NDArray[Any], top: float, tall: float, gap: float
) -> None:
    """Images (N, C, H, W) side by side below `top`, their title left of them; lengths are in widths
    of one picture.
    """
    axes.text(-0.1, top + tall / 2, title, fontsize=9, ha="right", va="center")
    for position, picture in enumerate(_pictures(images)):
        left = position * (1 + gap)
        axes.imshow(picture, extent=(left, left + 1, top + tall, top), interpolation="nearest")


def colour_errors(errors: NDArray[Any]) -> NDArray[np.uint8]:
    """Errors (N, H, W), not negative, as colours (N, H, W, 3): the 99.5th percentile of all of them
    is the brightest.
    """
    from matplotlib import colormaps

    known = np.nan_to_num(errors)
    scale = max(float(np.quantile(known, 0.995)), 1e-9)
    coloured = colormaps["inferno"](np.clip(known / scale, 0, 1))[..., :3]
    return np.asarray((coloured * 255).round(), dtype=np.uint8)


def plot_kinds(
    path: str | Path, groups: Mapping[str, Array], aurocs: Mapping[str, float], name: str
) -> None:
    """Draw the scores of each kind of outlier, one row each, under those of the inliers.

    Args:
        path: Of the picture; its suffix gives the format.
        groups: Class -> its scores (n,), the inliers first.
        aurocs: Kind -> AUROC against all inliers, for each class but the first.
        name: Of the score.
    """
    figure = _figure(7.0, 1.2 + 0.45 * len(groups))
    axes = figure.add_subplot()
    rng = np.random.default_rng(0)  # spreads the points of a row
    for row, (kind, scores) in enumerate(groups.items()):
        colour = OUTLIER if kind in aurocs else INLIER
        axes.plot(
            scores,
            row + rng.uniform(-0.25, 0.25, len(scores)),
            ".",
            color=colour,
            alpha=0.6,
            markersize=4,
        )
        axes.plot([np.median(scores)] * 2, [row - 0.35, row + 0.35], color="black", linewidth=1.4)
    captions = [
        f"{_short(kind, 30)} ({len(scores)})"
        + (f"\nAUROC {aurocs[kind]:.3f}" if kind in aurocs else "")
        for kind, scores in groups.items()
    ]
    axes.set_yticks(range(len(groups)), captions, fontsize=8)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.invert_yaxis()
    axes.set(xlabel=f"{name}, larger is more novel; black: the median", title="Scores by kind")
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    _save(figure, path)


def plot_embedding(
    path: str | Path, embedding: NDArray[np.generic], is_outlier: NDArray[np.bool_]
) -> None:
    """t-SNE of an embedding (N, D), inliers against outliers; the layout is seeded."""
    from sklearn.manifold import TSNE

    points = TSNE(perplexity=min(30, (len(embedding) - 1) / 3), random_state=0).fit_transform(
        embedding
    )
    figure = _figure(6, 6)
    axes = figure.subplots()
    for kind, label, colour in ((True, "outliers", OUTLIER), (False, "inliers", INLIER)):
        x, y = points[is_outlier == kind].T
        axes.scatter(x, y, s=12, color=colour, label=label, alpha=0.8, linewidths=0)
    outliers = int(is_outlier.sum())
    counts = f"{len(embedding) - outliers} test inliers and {outliers} outliers"
    axes.set(title=f"t-SNE of the embedding, {counts}", xticks=[], yticks=[])
    axes.legend()
    _save(figure, path)


def plot_clips(
    path: str | Path, clips: Mapping[str, tuple[Array, NDArray[np.bool_]]], name: str
) -> None:
    """Frame scores over time, one panel for each clip, abnormal frames shaded; one vertical axis
    for all.

    Args:
        path: Of the picture; its suffix gives the format.
        clips: Clip -> (scores (T,), abnormal bool (T,)), in order of time.
        name: Of the score.
    """
    columns = 3 if len(clips) > 3 else 1
    rows = -(-len(clips) // columns)
    figure = _figure(4.2 * columns, 1.6 * rows + 0.6)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, (clip, (scores, abnormal)) in zip(panels, clips.items(), strict=False):
        starts, ends = (
            np.flatnonzero(np.diff(np.r_[0, abnormal.astype(int), 0]) == step) for step in (1, -1)
        )
        for start, end in zip(starts, ends, strict=True):
            axes.axvspan(start, end, color=OUTLIER, alpha=0.18, linewidth=0)
        axes.plot(np.arange(len(scores)), scores, color=INLIER, linewidth=1.2)
        axes.set_title(clip, fontsize=9, loc="left")
        axes.set_xlim(0, len(scores))
        axes.tick_params(labelsize=7)
    for axes in panels[len(clips) :]:
        axes.set_axis_off()
    figure.supxlabel("frame", fontsize=9)
    figure.supylabel(name, fontsize=9)
    figure.suptitle("Frame scores over time; abnormal frames are shaded", fontsize=10)
    _save(figure, path)


def plot_frames(
    path: str | Path,
    frames: Mapping[str, tuple[NDArray[np.uint8], Array]],
    limits: tuple[float, float],
    name: str,
) -> None:
    """Frames under the scores of their patches.

    Args:
        path: Of the picture; its suffix gives the format.
        frames: Title -> (grey frame (H, W), scores (rows, columns) of its patches, NaN where a
            patch was left out).
        limits: Scores that are drawn without and with full colour.
        name: Of the score.
    """
    columns = min(3, len(frames))
    rows = -(-len(frames) // columns)
    figure = _figure(3.6 * columns, 2.7 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, (title, (frame, scores)) in zip(panels, frames.items(), strict=False):
        axes.imshow(overlay(frame, scores, limits))
        axes.set_title(title, fontsize=8)
    figure.suptitle(
        f"The most novel frame of each clip, {name} of its patches in orange", fontsize=10
    )
    _save(figure, path)


def animate(
    path: str | Path, frames: Sequence[tuple[NDArray[np.uint8], Array]], limits: tuple[float, float]
) -> None:
    """A clip under the scores of its patches as an animated GIF, ten frames a second; arguments as
    `plot_frames`.
    """
    from PIL import Image

    pictures = [Image.fromarray(overlay(frame, scores, limits)) for frame, scores in frames]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=100, loop=0)
    write_atomic(path, buffer.getvalue())


def overlay(
    frame: NDArray[np.uint8], scores: Array, limits: tuple[float, float]
) -> NDArray[np.uint8]:
    """A grey frame (H, W) with orange laid over its patches, the more the higher their scores: (H,
    W, 3).
    """
    low, high = limits
    share = np.nan_to_num(np.clip((scores - low) / max(high - low, 1e-12), 0, 1)) * 0.75
    sides = (frame.shape[0] // scores.shape[0], frame.shape[1] // scores.shape[1])
    alpha = np.kron(share, np.ones(sides))[..., None]
    colour = np.array([int(OUTLIER[at : at + 2], 16) for at in (1, 3, 5)])
    return np.asarray(frame[..., None] * (1 - alpha) + colour * alpha).round().astype(np.uint8)


def plot_recording(
    path: str | Path,
    spectrogram: NDArray[np.floating[Any]],
    seconds: float,
    events: Sequence[tuple[float, float]],
    times: Array,
    scores: Array,
    title: str,
) -> None:
    """Draw a recording's spectrogram above the novelty of its segments, its events marked in both.

    Args:
        path: Of the picture; its suffix gives the format.
        spectrogram: (bands, frames), any scale, the lowest band first; or a wave's envelope
            (points,), not negative.
        seconds: What it spans.
        events: Onset and offset of each in seconds; none for a recording without.
        times: (K,), the middle of each segment in seconds.
        scores: (K,), finite.
        title: Of the picture.
    """
    figure = _figure(8.0, 4.6)
    above, below = figure.subplots(2, 1, sharex=True)
    if spectrogram.ndim == 2:
        extent = (0, seconds, 0, len(spectrogram))
        above.imshow(
            spectrogram,
            cmap="cividis",
            aspect="auto",
            origin="lower",
            extent=extent,
            interpolation="nearest",
        )
        above.set_ylabel("mel band")
    else:
        at = (np.arange(len(spectrogram)) + 0.5) * seconds / len(spectrogram)
        above.fill_between(at, -spectrogram, spectrogram, color="0.4", linewidth=0)
        above.set_ylabel("wave")
    below.plot(
        times, scores, color=INLIER, drawstyle="steps-mid", marker=".", markersize=3, linewidth=1.4
    )
    for onset, offset in events:
        # black under orange shows on any colour of the spectrogram, the hatch without colour
        above.axvspan(onset, offset, facecolor="none", edgecolor="black", linewidth=3.2)
        above.axvspan(
            onset, offset, facecolor="none", edgecolor=OUTLIER, linewidth=1.6, linestyle="--"
        )
        below.axvspan(
            onset,
            offset,
            facecolor=OUTLIER,
            edgecolor=OUTLIER,
            alpha=0.25,
            hatch="////",
            label="event",
        )
    if events:
        below.legend(
            *(found[:1] for found in below.get_legend_handles_labels()), loc="best", fontsize=8
        )
    below.set(xlabel="seconds", ylabel="score", xlim=(0, seconds))
    above.set_title(title, fontsize=10)
    _save(figure, path)


def _figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> "Figure":
    """A figure of so many inches; made without pyplot, which would keep it alive and want a
    display.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def _save(figure: "Figure", path: str | Path) -> None:
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
    """Bin edges over the middle 96 percent of both groups and a little more, and whether they are
    logarithmic.
    """
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
    """(N, C, H, W) of any kind to RGB (N, H, W, 3) in [0, 1]; int16 is sound, its silence grey."""
    if images.dtype == np.int16:
        images = images / 65536 + 0.5
    scale = 255 if images.dtype == np.uint8 else 1
    unit: NDArray[np.float32] = np.nan_to_num(np.clip(images.astype(np.float32) / scale, 0, 1))
    colour = unit if unit.shape[1] == 3 else unit.mean(axis=1, keepdims=True).repeat(3, axis=1)
    return colour.transpose(0, 2, 3, 1)


def _short(text: str, length: int = 11) -> str:
    return text if len(text) <= length else "…" + text[1 - length :]
