"""The pictures of a run, drawn from its scores and test images into `figures/`."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noveltylab.data import dcase
from noveltylab.data.datamodule import NoveltyData
from noveltylab.data.samples import Samples
from noveltylab.data.wholes import Wholes
from noveltylab.methods.base import RECONSTRUCTION, Method
from noveltylab.results.files import write_atomic
from noveltylab.results.scores import Scores
from noveltylab.run import plots as figures
from noveltylab.run import plots_in_time
from noveltylab.run.score import RunScores
from noveltylab.scoring.apply import embeddings, explanations, image_rows, reconstruction_errors
from noveltylab.scoring.floors import Floor
from noveltylab.scoring.metrics import roc

#: Test inliers, and as many outliers, in the t-SNE picture of methods that embed (NDA's figure 4).
EMBEDDED = 500
#: Fewer make no picture.
FEWEST_EMBEDDED = 4
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
    """The pictures of the run: ROC, score histogram, best and worst cases with their
    reconstructions, clips.
    """
    scores, primary = run_scores.main, result["primary"]
    column_of_run = scores.columns[primary]
    if metrics := result["scores"][primary]:  # None without labelled outliers
        curves = {result["method"]: (*roc(column_of_run, scores.is_outlier), metrics["auroc"])}
        for floor in floors:
            auroc = result["floor"][floor.name]["auroc"]
            curves[f"{floor.name} (floor)"] = (*roc(floor.scores, scores.is_outlier), auroc)
        figures.plot_roc(pictures / "roc.png", curves)
    figures.plot_histogram(pictures / "scores.png", column_of_run, scores.is_outlier, primary)
    draw_embedding(method, data, pictures)
    pieces = scores
    if data.wholes and data.wholes.main:
        pieces = run_scores.apart["images" if data.wholes.kind == "video" else "patches"]
    column = pieces.columns[primary]
    cases = np.unique(
        np.concatenate(list(figures.extreme_cases(column, pieces.is_outlier).values()))
    )
    images = data.test[torch.from_numpy(cases)]
    rows = explanations(method, data.preprocess, images)
    reconstructed = rows.get(RECONSTRUCTION)
    figures.plot_reconstructions(
        pictures / "cases.png",
        images.numpy(),
        rows,
        column[cases],
        pieces.is_outlier[cases],
        [pieces.ids[case] for case in cases],
        errors=None
        if reconstructed is None
        else reconstruction_errors(method, data.preprocess, images, reconstructed),
        kinds=None if pieces.classes is None else [pieces.classes[case] for case in cases],
    )
    draw_rows(method, data, pictures)
    keep_reconstructions(method, data, pictures)
    if kinds := result.get("kinds"):
        draw_kinds(scores, kinds, primary, pictures)
    if samples.units and samples.units.kind == "frame":
        draw_clips(samples, pieces.ids, column, column_of_run, primary, pictures)
    elif samples.units and data.wholes and samples.units.kind == "file":
        draw_recordings(samples, data.wholes, column_of_run, pictures)


def draw_embedding(method: Method, data: NoveltyData, pictures: Path) -> None:
    """The t-SNE picture of as many test inliers as outliers, drawn at random; none for a method
    that does not embed.
    """
    positions = draw_balanced(data.test_is_outlier, EMBEDDED)
    if len(positions) < FEWEST_EMBEDDED:
        return
    embedded = embeddings(method, data.preprocess, data.test[torch.from_numpy(positions)])
    if embedded is not None:
        figures.plot_embedding(
            pictures / "embedding.png", embedded, data.test_is_outlier[positions]
        )


def draw_balanced(is_outlier: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """At most `count` positions of inliers and as many of outliers, without repeats, the same ones
    for every run.
    """
    rng = np.random.default_rng(0)
    kinds = (np.flatnonzero(is_outlier == kind) for kind in (False, True))
    return np.concatenate([rng.permutation(positions)[:count] for positions in kinds])


def keep_reconstructions(method: Method, data: NoveltyData, pictures: Path) -> None:
    """Keeps a few test images with their reconstructions, from which a report sets methods side by
    side.

    The same images for all runs of a split: inliers, then outliers, that lie evenly over the test.
    None for sounds, or for a method that does not reconstruct.
    """
    if data.test.dtype != torch.uint8:
        return
    positions = np.concatenate(
        [evenly(np.flatnonzero(data.test_is_outlier == kind), SHOWN) for kind in (False, True)]
    )
    images = data.test[torch.from_numpy(positions)]
    reconstructed = explanations(method, data.preprocess, images).get(RECONSTRUCTION)
    if reconstructed is None:
        return
    buffer = io.BytesIO()
    arrays: dict[str, NDArray[Any]] = {
        "id": data.test_ids[positions],
        "is_outlier": data.test_is_outlier[positions],
        "image": images.cpu().numpy(),
        "reconstruction": (np.nan_to_num(reconstructed).clip(0, 1) * 255).round().astype(np.uint8),
    }
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # typed for a keyword that NumPy 1 would store
    write_atomic(pictures / "reconstructions.npz", buffer.getvalue())


def draw_rows(method: Method, data: NoveltyData, pictures: Path) -> None:
    """The method's own pictures, from its first training images and from test images that lie
    evenly over the test.
    """
    inliers, outliers = (
        evenly(np.flatnonzero(data.test_is_outlier == kind), SHOWN) for kind in (False, True)
    )
    parts = (
        data.train[:SHOWN],
        data.test[torch.from_numpy(inliers)],
        data.test[torch.from_numpy(outliers)],
    )
    for name, rows in image_rows(method, data.preprocess, *parts).items():
        figures.plot_rows(pictures / f"{name}.png", rows)


def evenly(positions: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of the positions, evenly spread over them."""
    places = np.linspace(0, len(positions) - 1, min(count, len(positions)))
    return positions[places.round().astype(np.int64)]


def draw_kinds(scores: Scores, kinds: dict[str, Any], primary: str, pictures: Path) -> None:
    """The scores of each kind of outlier under those of the inliers."""
    column, names = scores.columns[primary], np.array(scores.classes)
    good = "/".join(sorted(set(names[~scores.is_outlier].tolist())))
    groups = {good: column[~scores.is_outlier]}
    groups |= {kind: column[scores.is_outlier & (names == kind)] for kind in kinds}
    aurocs = {kind: metrics["auroc"] for kind, metrics in kinds.items()}
    figures.plot_kinds(pictures / "kinds.png", groups, aurocs, primary)


def draw_clips(
    samples: Samples,
    ids: list[str],
    patches: NDArray[np.float64],
    frames: NDArray[np.float64],
    name: str,
    pictures: Path,
) -> None:
    """Frame scores over time, and frames under their patches' scores: the most novel one of each
    clip, and one clip moving.

    ids and patches (n,): the scored patches; frames (U,): scores of the test frames.
    """
    units = samples.units
    assert units is not None
    assert units.grid is not None
    grid = units.grid
    tested = np.flatnonzero(units.test)
    groups, abnormal = units.groups[tested], units.labels[tested] > 0
    scored = dict(zip(ids, patches.tolist(), strict=True))

    def overlay(frame: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """A test frame (H, W) and the scores of its patches (rows, columns), NaN where none moved."""
        rows = np.arange(*np.searchsorted(units.of, [tested[frame], tested[frame] + 1]))
        values = np.array([scored.get(sample, np.nan) for sample in samples.ids[rows]]).reshape(
            grid
        )
        tiles = samples.images[torch.from_numpy(rows)].numpy()[:, 0]
        shape = (*grid, *tiles.shape[1:])
        return tiles.reshape(shape).swapaxes(1, 2).reshape(
            grid[0] * shape[2], grid[1] * shape[3]
        ), values

    clips = {clip: np.flatnonzero(groups == clip) for clip in dict.fromkeys(groups.tolist())}
    plots_in_time.plot_clips(
        pictures / "clips.png",
        {clip: (frames[rows], abnormal[rows]) for clip, rows in clips.items()},
        name,
    )
    peaks = {clip: int(rows[frames[rows].argmax()]) for clip, rows in clips.items()}
    titled = {
        f"{units.ids[tested[frame]]}, {'ab' if abnormal[frame] else ''}normal": overlay(frame)
        for frame in peaks.values()
    }
    limits = (float(np.median(patches)), float(patches.max()))
    plots_in_time.plot_frames(pictures / "frames.png", titled, limits, name)
    mixed = [rows for rows in clips.values() if abnormal[rows].any() and not abnormal[rows].all()]
    moving = (mixed or list(clips.values()))[0][::3]
    plots_in_time.animate(pictures / "clip.gif", [overlay(int(frame)) for frame in moving], limits)


def draw_recordings(
    samples: Samples, wholes: Wholes, segments: NDArray[np.float64], pictures: Path
) -> None:
    """The test file with an event that scores highest, the one that scores lowest, and the highest
    without any.

    segments (n_test,): scores of the test segments.
    """
    units = samples.units
    assert units is not None
    tested = np.flatnonzero(units.test)
    highest = np.array([segments[wholes.of == index].max() for index in range(len(tested))])
    order = np.argsort(highest, kind="stable")
    with_event, without = order[wholes.is_outlier[order]], order[~wholes.is_outlier[order]]
    examples = {"found": with_event[-1:], "missed": with_event[:1], "false_alarm": without[-1:]}
    for name, (index, *_) in ((name, files) for name, files in examples.items() if len(files)):
        track = dcase.track(samples, int(tested[index]))
        scores, title = (
            segments[wholes.of == index],
            f"{name.replace('_', ' ')}: {wholes.ids[index]}",
        )
        path = pictures / f"recording_{name}.png"
        plots_in_time.plot_recording(
            path, track.picture, track.seconds, track.events, track.times, scores, title
        )
