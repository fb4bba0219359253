"""The pictures of a run, drawn from its scores and test images into `figures/`."""

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from noveltylab.data.datamodule import NoveltyData
from noveltylab.data.dcase_sound import BANDS, RATE, SEGMENTERS, SIDE
from noveltylab.data.samples import ReadUnits, Samples, ScoredUnits
from noveltylab.methods.base import RECONSTRUCTION, Method
from noveltylab.results.files import write_atomic
from noveltylab.results.scores import Scores
from noveltylab.run import plots, plots_in_time, plots_of_images
from noveltylab.run.plots_of_images import limits_of
from noveltylab.run.score import RunScores
from noveltylab.scoring.apply import (
    embeddings,
    explanations,
    image_rows,
    novelty_maps,
    reconstruction_errors,
)
from noveltylab.scoring.floors import Floor
from noveltylab.scoring.metrics import roc

#: Test inliers, and as many outliers, in the t-SNE picture of methods that embed (NDA's figure 4).
EMBEDDED = 500
#: Fewer make no picture.
FEWEST_EMBEDDED = 4
#: Images whose maps are computed at once.
MAPPED = 32
#: Training images, test inliers and outliers that a method makes its own pictures of.
SHOWN = 10


def draw(
    method: Method,
    samples: Samples,
    data: NoveltyData,
    run_scores: RunScores,
    floors: list[Floor],
    result: dict[str, Any],
    pictures: Path,
) -> None:
    """Draws the pictures of the run.

    They are the ROC, the scores' histogram, the best and worst cases with their reconstructions,
    and what the data and the method have to show besides.
    """
    scores, primary = run_scores.test, result["primary"]
    column = scores.columns[primary]
    # the numbers
    if result["scores"][primary]:  # None without labelled outliers
        draw_roc(scores, floors, result, pictures)
    plots.plot_histogram(pictures / "scores.png", column, scores.is_outlier, primary)
    if result.get("kinds"):
        draw_kinds(scores, result["kinds"], primary, pictures)
    # the images
    draw_embedding(method, data, pictures)
    pieces = scores
    if data.wholes and data.wholes.main:
        kind = "images" if data.wholes.kind == "video" else "patches"
        pieces = run_scores.apart.get(kind, scores)  # whole frames are their own pieces
    draw_cases(method, data, pieces, primary, pictures)
    draw_rows(method, data, pictures)
    keep_reconstructions(method, data, pictures)
    # what lasts in time
    if samples.units and samples.units.kind == "frame":
        patches = pieces.columns[primary]
        draw_clips(samples, samples.units, pieces.ids, patches, column, primary, pictures)
    elif samples.units and data.wholes and samples.units.kind == "file":
        draw_recordings(samples, samples.units, data.wholes, column, pictures)


def draw_roc(scores: Scores, floors: list[Floor], result: dict[str, Any], pictures: Path) -> None:
    """The ROC curve of the primary score above those of the floors."""
    primary = result["primary"]
    auroc = result["scores"][primary]["auroc"]
    curves = {result["method"]: (*roc(scores.columns[primary], scores.is_outlier), auroc)}
    for floor in floors:
        auroc = result["floor"][floor.name]["auroc"]
        curves[f"{floor.name} (floor)"] = (*roc(floor.scores, scores.is_outlier), auroc)
    plots.plot_roc(pictures / "roc.png", curves)


def draw_cases(
    method: Method, data: NoveltyData, pieces: Scores, primary: str, pictures: Path
) -> None:
    """The best and worst cases with what the method compares them with."""
    column = pieces.columns[primary]
    groups = plots_of_images.extreme_cases(column, pieces.is_outlier)
    cases = np.unique(np.concatenate(list(groups.values())))
    images = data.test[torch.from_numpy(cases)]
    rows = explanations(method, data.preprocess, images)
    errors = None
    if RECONSTRUCTION in rows:
        errors = reconstruction_errors(method, data.preprocess, images, rows[RECONSTRUCTION])
    maps = novelty_maps(method, data.preprocess, images, MAPPED)
    if maps is not None:
        pixels = images.numpy().transpose(0, 2, 3, 1)
        glowing = plots_of_images.overlay(pixels, maps, *limits_of(maps))
        rows["novelty map"] = (glowing.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    kinds = None
    if pieces.classes is not None:
        kinds = [pieces.classes[case] for case in cases]
    plots_of_images.plot_reconstructions(
        pictures / "cases.png",
        images.numpy(),
        rows,
        column[cases],
        pieces.is_outlier[cases],
        [pieces.ids[case] for case in cases],
        errors=errors,
        kinds=kinds,
    )


def draw_embedding(method: Method, data: NoveltyData, pictures: Path) -> None:
    """The t-SNE picture of as many test inliers as outliers, drawn at random.

    None for a method that does not embed.
    """
    positions = draw_balanced(data.test_is_outlier, EMBEDDED)
    if len(positions) < FEWEST_EMBEDDED:
        return
    embedding = embeddings(method, data.preprocess, data.test[torch.from_numpy(positions)])
    if embedding is not None:
        path = pictures / "embedding.png"
        plots.plot_embedding(path, embedding, data.test_is_outlier[positions])


def draw_balanced(is_outlier: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """At most `count` positions of inliers and as many of outliers, without repeats.

    The same ones for every run.
    """
    rng = np.random.default_rng(0)
    inliers = rng.permutation(np.flatnonzero(~is_outlier))
    outliers = rng.permutation(np.flatnonzero(is_outlier))
    return np.concatenate([inliers[:count], outliers[:count]])


def keep_reconstructions(method: Method, data: NoveltyData, pictures: Path) -> None:
    """Keeps a few test images with their reconstructions, for a report to set side by side.

    The same images for all runs of a split: inliers, then outliers, that lie evenly over the test.
    None for sounds, or for a method that does not reconstruct.
    """
    if data.test.dtype != torch.uint8:
        return
    positions = np.concatenate(spread_by_kind(data))
    images = data.test[torch.from_numpy(positions)]
    reconstruction = explanations(method, data.preprocess, images).get(RECONSTRUCTION)
    if reconstruction is None:
        return
    unit = np.nan_to_num(reconstruction).clip(0, 1)
    arrays: dict[str, NDArray[Any]] = {
        "id": data.test_ids[positions],
        "is_outlier": data.test_is_outlier[positions],
        "image": images.cpu().numpy(),
        "reconstruction": (unit * 255).round().astype(np.uint8),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # typed for a keyword that NumPy 1 would store
    write_atomic(pictures / "reconstructions.npz", buffer.getvalue())


def draw_rows(method: Method, data: NoveltyData, pictures: Path) -> None:
    """The method's own pictures, from its first training images and from spread test images."""
    inliers, outliers = (data.test[torch.from_numpy(rows)] for rows in spread_by_kind(data))
    train = data.train[:SHOWN]
    for name, rows in image_rows(method, data.preprocess, train, inliers, outliers).items():
        plots_of_images.plot_rows(pictures / f"{name}.png", rows)


def spread_by_kind(data: NoveltyData) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """At most SHOWN positions of test inliers and of outliers, evenly spread over the test."""
    inliers = np.flatnonzero(~data.test_is_outlier)
    outliers = np.flatnonzero(data.test_is_outlier)
    return evenly(inliers, SHOWN), evenly(outliers, SHOWN)


def evenly(positions: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of the positions, evenly spread over them."""
    places = np.linspace(0, len(positions) - 1, min(count, len(positions)))
    return positions[places.round().astype(np.int64)]


def draw_kinds(scores: Scores, kinds: dict[str, Any], primary: str, pictures: Path) -> None:
    """The scores of each kind of outlier under those of the inliers."""
    column = scores.columns[primary]
    names = np.array(scores.classes)
    inlier_names = sorted(set(names[~scores.is_outlier].tolist()))
    groups = {"/".join(inlier_names): column[~scores.is_outlier]}
    aurocs = {}
    for kind, metrics in kinds.items():
        groups[kind] = column[scores.is_outlier & (names == kind)]
        aurocs[kind] = metrics["auroc"]
    plots.plot_kinds(pictures / "kinds.png", groups, aurocs, primary)


# Clips of frames.


def draw_clips(
    samples: Samples,
    units: ReadUnits,
    ids: list[str],
    patches: NDArray[np.float64],
    frames: NDArray[np.float64],
    name: str,
    pictures: Path,
) -> None:
    """Frame scores over time, the most novel frame of each clip, and one clip moving.

    Frames are shown under the scores of their patches.

    Args:
        samples: The patches of all frames.
        units: The frames.
        ids: Of the scored patches (n,).
        patches: Their scores (n,).
        frames: Scores of the test frames (U,).
        name: Of the score.
        pictures: The folder.
    """
    tested = np.flatnonzero(units.test)
    groups = units.groups[tested]
    is_abnormal = units.labels[tested] > 0
    score_of_patch = dict(zip(ids, patches.tolist(), strict=True))
    limits = (float(np.median(patches)), float(patches.max()))

    def frame_and_scores(frame: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        return read_frame(samples, units, int(tested[frame]), score_of_patch)

    curves, peaks, mixed = {}, {}, []
    clips = [np.flatnonzero(groups == clip) for clip in dict.fromkeys(groups.tolist())]
    for rows in clips:
        clip = str(groups[rows[0]])
        curves[clip] = (frames[rows], is_abnormal[rows])
        peak = int(rows[frames[rows].argmax()])
        state = "abnormal" if is_abnormal[peak] else "normal"
        peaks[f"{units.ids[tested[peak]]}, {state}"] = frame_and_scores(peak)
        if is_abnormal[rows].any() and not is_abnormal[rows].all():
            mixed.append(rows)
    plots_in_time.plot_clips(pictures / "clips.png", curves, name)
    plots_in_time.plot_frames(pictures / "frames.png", peaks, limits, name)
    moving = (mixed or clips)[0][::3]
    movie = [frame_and_scores(int(frame)) for frame in moving]
    plots_in_time.animate(pictures / "clip.gif", movie, limits)


def read_frame(
    samples: Samples, units: ReadUnits, frame: int, score_of_patch: dict[str, float]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A frame (H, W) and the scores of its patches (rows, columns), NaN where nothing moved."""
    assert units.grid is not None
    first, end = np.searchsorted(units.of, [frame, frame + 1])
    patches = np.arange(first, end)
    scores = [score_of_patch.get(sample, np.nan) for sample in samples.ids[patches]]
    images = samples.images[torch.from_numpy(patches)].numpy()
    tiles = images[:, images.shape[1] // 2]  # of a stack its middle frame
    if tiles.dtype == np.int16:  # differences, of which 0 is grey
        tiles = (tiles // 256 + 128).astype(np.uint8)
    height, width = tiles.shape[1:]
    rows, columns = units.grid
    grid = tiles.reshape(rows, columns, height, width)
    picture = grid.swapaxes(1, 2).reshape(rows * height, columns * width)
    return picture, np.array(scores).reshape(rows, columns)


# Recordings of segments.


class Recording(NamedTuple):
    """A recording put together again from its segments, as plots_in_time.plot_recording takes it.

    picture: log-mel (64, frames) in [0, 1], or the wave's envelope (points,); seconds: their
    length; events: onsets and offsets; times (segments,): the middle of each segment in seconds.
    """

    picture: NDArray[np.float32]
    seconds: float
    events: list[tuple[float, float]]
    times: NDArray[np.float64]


def read_recording(samples: Samples, unit: int) -> Recording:
    """Recording `unit`, a position in samples.units; its dropped end is missing."""
    assert samples.units is not None
    rows = np.flatnonzero(samples.units.of == unit)
    images = samples.images[torch.from_numpy(rows)].numpy()[:, 0]
    if images.dtype == np.int16:
        step = SEGMENTERS["waveform"].step / RATE
        wave = np.abs(images.reshape(-1, 4 * SIDE).astype(np.float32))
        picture = wave.max(1) / 32768
    else:
        step = SEGMENTERS["logmel"].step / RATE
        picture = images.swapaxes(0, 1).reshape(BANDS, -1).astype(np.float32) / 255
    onset = float(samples.facts["onset"][rows[0]])
    offset = float(samples.facts["offset"][rows[0]])
    events = [] if math.isnan(onset) else [(onset, offset)]
    times = samples.facts["start"][rows] + step / 2
    return Recording(picture, len(rows) * step, events, times)


def draw_recordings(
    samples: Samples,
    units: ReadUnits,
    wholes: ScoredUnits,
    segments: NDArray[np.float64],
    pictures: Path,
) -> None:
    """The test recordings whose highest segments are the most telling.

    They are the highest and the lowest one with an event, and the highest without any.

    Args:
        samples: The segments of all recordings.
        units: All recordings.
        wholes: The test recordings.
        segments: Scores of the test segments (n_test,).
        pictures: The folder.
    """
    tested = np.flatnonzero(units.test)
    highest = np.array([segments[wholes.of == index].max() for index in range(len(tested))])
    order = np.argsort(highest, kind="stable")
    with_event = order[wholes.is_outlier[order]]
    without_event = order[~wholes.is_outlier[order]]
    examples = {
        "found": with_event[-1:],
        "missed": with_event[:1],
        "false_alarm": without_event[-1:],
    }
    for name, indices in examples.items():
        for index in indices:
            recording = read_recording(samples, int(tested[index]))
            title = f"{name.replace('_', ' ')}: {wholes.ids[index]}"
            plots_in_time.plot_recording(
                pictures / f"recording_{name}.png",
                recording.picture,
                recording.seconds,
                recording.events,
                recording.times,
                segments[wholes.of == index],
                title,
            )
