"""Pictures of what lasts in time: clips with their frames, and sound recordings."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from noveltylab.results.files import write_atomic
from noveltylab.run.plots import INLIER, OUTLIER, Array, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_clips(
    path: str | Path, clips: Mapping[str, tuple[Array, NDArray[np.bool_]]], name: str
) -> None:
    """Draws frame scores over time, one panel for each clip, with abnormal frames shaded.

    One vertical axis is for all.

    Args:
        path: The picture's; its suffix gives the format.
        clips: Clip -> (scores (T,), abnormal bool (T,)), in order of time.
        name: Of the score.
    """
    columns = 3 if len(clips) > 3 else 1
    rows = -(-len(clips) // columns)
    figure = new_figure(4.2 * columns, 1.6 * rows + 0.6)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, (clip, (scores, abnormal)) in zip(panels, clips.items(), strict=False):
        steps = np.diff(np.r_[0, abnormal.astype(int), 0])
        starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
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
    save_figure(figure, path)


def plot_frames(
    path: str | Path,
    frames: Mapping[str, tuple[NDArray[np.uint8], Array]],
    limits: tuple[float, float],
    name: str,
) -> None:
    """Draws frames under the scores of their patches.

    Args:
        path: The picture's; its suffix gives the format.
        frames: Title -> (grey frame (H, W), scores (rows, columns) of its patches, NaN where a
            patch was left out).
        limits: Scores that are drawn without and with full colour.
        name: Of the score.
    """
    columns = min(3, len(frames))
    rows = -(-len(frames) // columns)
    figure = new_figure(3.6 * columns, 2.7 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, (title, (frame, scores)) in zip(panels, frames.items(), strict=False):
        axes.imshow(overlay(frame, scores, limits))
        axes.set_title(title, fontsize=8)
    title = f"The most novel frame of each clip, {name} of its patches in orange"
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def animate(
    path: str | Path, frames: Sequence[tuple[NDArray[np.uint8], Array]], limits: tuple[float, float]
) -> None:
    """Draws a clip under the scores of its patches as an animated GIF, ten frames a second.

    Arguments as `plot_frames`.
    """
    from PIL import Image

    pictures = [Image.fromarray(overlay(frame, scores, limits)) for frame, scores in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=100,
        loop=0,
    )
    write_atomic(path, buffer.getvalue())


def overlay(
    frame: NDArray[np.uint8], scores: Array, limits: tuple[float, float]
) -> NDArray[np.uint8]:
    """A grey frame (H, W) with orange laid over its patches, as (H, W, 3).

    The higher a patch's score, the more orange.
    """
    low, high = limits
    unit = np.clip((scores - low) / max(high - low, 1e-12), 0, 1)
    opacity = np.nan_to_num(unit) * 0.75
    sides = (frame.shape[0] // scores.shape[0], frame.shape[1] // scores.shape[1])
    alpha = np.kron(opacity, np.ones(sides))[..., None]
    colour = np.array(list(bytes.fromhex(OUTLIER[1:])))
    picture = frame[..., None] * (1 - alpha) + colour * alpha
    return np.asarray(picture).round().astype(np.uint8)


def plot_recording(
    path: str | Path,
    spectrogram: NDArray[np.floating[Any]],
    seconds: float,
    events: Sequence[tuple[float, float]],
    times: Array,
    scores: Array,
    title: str,
) -> None:
    """Draws a recording's spectrogram above the novelty of its segments, its events marked in both.

    Args:
        path: The picture's; its suffix gives the format.
        spectrogram: (bands, frames), any scale, the lowest band first; or a wave's envelope
            (points,), not negative.
        seconds: What it spans.
        events: Onset and offset of each in seconds; none for a recording without.
        times: (K,), the middle of each segment in seconds.
        scores: (K,), finite.
        title: Of the picture.
    """
    figure = new_figure(8.0, 4.6)
    above, below = figure.subplots(2, 1, sharex=True)
    _draw_sound(above, spectrogram, seconds)
    below.plot(
        times,
        scores,
        color=INLIER,
        drawstyle="steps-mid",
        marker=".",
        markersize=3,
        linewidth=1.4,
    )
    for span in events:
        _mark_event(above, below, span)
    if events:
        handles, labels = below.get_legend_handles_labels()
        below.legend(handles[:1], labels[:1], loc="best", fontsize=8)
    below.set(xlabel="seconds", ylabel="score", xlim=(0, seconds))
    above.set_title(title, fontsize=10)
    save_figure(figure, path)


def _draw_sound(axes: "Axes", spectrogram: NDArray[np.floating[Any]], seconds: float) -> None:
    """A spectrogram (bands, frames), or a wave's envelope (points,)."""
    if spectrogram.ndim == 2:
        axes.imshow(
            spectrogram,
            cmap="cividis",
            aspect="auto",
            origin="lower",
            extent=(0, seconds, 0, len(spectrogram)),
            interpolation="nearest",
        )
        axes.set_ylabel("mel band")
    else:
        moments = (np.arange(len(spectrogram)) + 0.5) * seconds / len(spectrogram)
        axes.fill_between(
            moments,
            -spectrogram,
            spectrogram,
            color="0.4",
            linewidth=0,
        )
        axes.set_ylabel("wave")


def _mark_event(above: "Axes", below: "Axes", span: tuple[float, float]) -> None:
    """Marks an event in the sound and in the scores.

    Black under orange shows on any colour of the spectrogram, the hatch without colour.
    """
    onset, offset = span
    above.axvspan(onset, offset, facecolor="none", edgecolor="black", linewidth=3.2)
    above.axvspan(
        onset,
        offset,
        facecolor="none",
        edgecolor=OUTLIER,
        linewidth=1.6,
        linestyle="--",
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
