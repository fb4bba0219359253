"""UCSD Ped2 as stacks of frames: which frames a stack has, borders of clips, runs, bad input."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2.functional import resize

from noveltylab.data import ucsd_clips
from noveltylab.data.load import load
from noveltylab.data.protocols import split
from noveltylab.data.samples import Samples
from noveltylab.data.ucsd_clips import stack_starts
from noveltylab.errors import UserError
from noveltylab.report.check import check_run
from noveltylab.results.scores import read_scores
from noveltylab.run.build import iterations_at_once
from noveltylab.scoring.metrics import evaluate
from tests.formats import write_ucsd

REAL = Path(os.environ.get("NOVELTYLAB_DATA", "absent"))
#: 3 training and 2 test clips of 8 frames, unless a test says otherwise
CLIPS = ("train/01", "train/02", "train/03", "test/01", "test/02")


def tiny(root: Path, **options: Any) -> Samples:
    defaults = {"cache": False, "size": 32, "frames": 4, "difference": False}
    return load("ucsd_clips", root, False, False, **{**defaults, **options})


def squares(folder: Path, size: int = 32) -> dict[str, np.ndarray]:
    """The frames of each clip of the official layout, resized one by one, (8, size, size)."""
    clips = {}
    for name in CLIPS:
        part, number = name.split("/")
        frames = []
        for path in sorted((folder / part.title() / f"{part.title()}0{number}").glob("0*.tif")):
            pixels = torch.from_numpy(np.array(Image.open(path)))[None, None]
            frames.append(resize(pixels, [size, size], antialias=True)[0, 0].numpy())
        clips[name] = np.stack(frames)
    return clips


@pytest.mark.parametrize("frames", [1, 2, 4, 5, 8])
def test_a_frame_is_the_middle_of_its_stack_or_has_the_nearest_one(
    tmp_path: Path, frames: int
) -> None:
    clips = squares(write_ucsd(tmp_path))
    samples = tiny(tmp_path, frames=frames)
    assert samples.images.shape == (40, frames, 32, 32)
    assert samples.images.dtype == torch.uint8
    for row, name in enumerate(samples.ids.tolist()):
        clip, _, number = name.rpartition("/")
        frame = int(number) - 1
        # as the authors' code: the 9th frame of 16 is that of the stack
        whole = range(frames // 2, 8 - (frames - 1 - frames // 2))
        middle = min(max(frame, whole[0]), whole[-1])
        first = middle - frames // 2
        np.testing.assert_array_equal(
            samples.images[row].numpy(), clips[clip][first : first + frames], err_msg=name
        )
        assert samples.facts["own"][row] == (frame in whole)


@pytest.mark.parametrize("frames", [1, 3])
def test_differences_are_signed_and_of_neighbours(tmp_path: Path, frames: int) -> None:
    clips = squares(write_ucsd(tmp_path))
    samples = tiny(tmp_path, frames=frames, difference=True)
    assert samples.images.dtype == torch.int16
    for row in np.flatnonzero(samples.facts["own"]):
        clip, _, number = samples.ids[row].rpartition("/")
        frame = int(number) - 1
        for place in range(frames):
            after = frame - frames // 2 + place
            change = clips[clip][after].astype(int) - clips[clip][after - 1]
            np.testing.assert_array_equal(samples.images[row, place].numpy(), 128 * change)
    # the first frame of a clip has none before it
    own = samples.facts["own"].reshape(5, 8)
    assert own.sum(1).tolist() == [8 - frames] * 5
    assert not own[:, 0].any()
    assert samples.images.min() < 0 < samples.images.max()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(9, 20), min_size=1, max_size=4), st.integers(1, 8), st.integers(0, 1))
def test_no_stack_crosses_the_border_of_a_clip(
    lengths: list[int], frames: int, skipped: int
) -> None:
    starts, own = stack_starts(lengths, frames, skipped)
    clip = np.repeat(np.arange(len(lengths)), lengths)
    assert (clip[starts] == clip).all() and (clip[starts + frames - 1] == clip).all()
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    assert (starts - first[clip] >= skipped).all()
    assert own.sum() == sum(lengths) - len(lengths) * (frames - 1 + skipped)
    assert len(set(starts[own].tolist())) == own.sum()
    assert set(starts.tolist()) == set(starts[own].tolist())


@pytest.mark.parametrize("official", [True, False])
def test_frames_have_their_labels_ids_and_clips(tmp_path: Path, official: bool) -> None:
    write_ucsd(tmp_path, official=official)
    samples = tiny(tmp_path)
    assert samples.ids[0] == ("train/01/001" if official else "train/01/000")
    assert samples.labels.tolist() == [0] * 24 + [0, 0, 0, 0, 1, 1, 1, 1] * 2
    assert samples.facts["clip"].tolist() == np.repeat(np.arange(5), 8).tolist()
    assert samples.official_test is not None
    assert samples.official_test.tolist() == [False] * 24 + [True] * 16
    units = samples.units
    assert units is not None and units.border == (2, 1)
    assert (units.kind, units.grid, units.of.tolist()) == ("frame", (1, 1), list(range(40)))
    assert units.ids.tolist() == samples.ids.tolist()
    assert samples.verified is False and len(samples.notes) == 1


def test_the_protocol_trains_on_whole_stacks_and_tests_every_frame(tmp_path: Path) -> None:
    write_ucsd(tmp_path)
    samples = tiny(tmp_path)
    clip = samples.facts["clip"]
    parts = split(
        "whole_frames",
        samples.labels,
        samples.official_test,
        0,
        seed=0,
        val_fraction=0.1,
        facts=samples.facts,
    )
    assert sorted(parts.train.tolist()) == [2, 3, 4, 5, 6, 10, 11, 12, 13, 14]
    assert parts.val.tolist() == [18, 19, 20, 21, 22]
    assert parts.test.tolist() == list(range(24, 40))
    assert not set(clip[parts.train]) & set(clip[parts.val])
    assert (parts.aggregate, parts.whole) == ("max", True)
    with pytest.raises(UserError, match=r"protocol=whole_frames needs to know each sample's clip"):
        split("whole_frames", samples.labels, samples.official_test, 0, seed=0, val_fraction=0.1)


Run = Callable[..., dict[str, Any]]


def run_tiny(run_here: Run, root: Path, *options: str) -> tuple[dict[str, Any], Path]:
    result = run_here(
        "data=ucsd_clips",
        f"data.root={root}",
        "data.size=32",
        "data.verify=false",
        "trainer.accelerator=cpu",
        *options,
    )
    folder = (
        root / "outputs" / "whole_frames" / result["method"] / "ucsd_clips" / "inlier0" / "seed0"
    )
    assert check_run(folder, result) == ""
    return result, folder


def test_a_run_pools_all_frames_and_scales_clips_without_their_borders(
    tmp_path: Path, run_here: Run
) -> None:
    write_ucsd(tmp_path, frames=12)
    result, folder = run_tiny(run_here, tmp_path, "method=pca", "data.frames=4", "pictures=true")
    assert result["n"]["test_inliers"] == result["n"]["test_outliers"] == 12
    assert set(result["apart"]) == {"clips"}
    for name in ("clips.png", "frames.png", "clip.gif", "cases.png"):
        with Image.open(folder / "figures" / name) as picture:
            picture.load()
    # as eval.py of the authors' code, by hand
    frames = read_scores(folder / "scores.csv")
    column = frames.columns["residual"]
    scaled, outliers = [], []
    for clip in range(2):
        rows = np.arange(12 * clip + 2, 12 * clip + 12 - 1)
        low, high = column[rows].min(), column[rows].max()
        scaled += ((column[rows] - low) / (high - low)).tolist()
        outliers += frames.is_outlier[rows].tolist()
        assert column[12 * clip] == column[12 * clip + 1] == column[12 * clip + 2]
        assert column[12 * clip + 11] == column[12 * clip + 10]
    expected = evaluate(np.array(scaled), np.array(outliers))
    assert result["apart"]["clips"]["residual"] == expected
    assert {"auroc", "eer"} <= expected.keys()


@pytest.mark.parametrize("difference", ["false", "true"])
def test_single_frames_and_differences_run(tmp_path: Path, run_here: Run, difference: str) -> None:
    write_ucsd(tmp_path, frames=12)
    options = ("method=pca", "data.frames=1", f"data.difference={difference}", "pictures=true")
    result, folder = run_tiny(run_here, tmp_path, *options)
    assert result["n"]["train"] == 24 - 2 * (difference == "true")
    # as the plain mean square of all that moves
    if difference == "true":
        floor = read_scores(folder / "floors.csv").columns["norm"]
        clips = squares(Path(tmp_path, "UCSD_Anomaly_Dataset.v1p2", "UCSDped2"))
        change = np.diff(clips["test/01"].astype(float), axis=0) / 256
        np.testing.assert_allclose(floor[1:12], np.square(change).mean((1, 2)), rtol=1e-5)
        assert floor[0] == floor[1]


def test_memae_for_video_runs_on_stacks(tmp_path: Path, run_here: Run) -> None:
    write_ucsd(tmp_path, frames=20)
    options = ("method=memae", "method.width=0.1", "trainer.max_epochs=1", "data.batch_size=4")
    result, folder = run_tiny(run_here, tmp_path, *options, "pictures=true")
    assert result["config"]["method"]["slots"] == 2000
    assert result["config"]["data"]["frames"] == 16
    assert result["n"]["train"] == 2 * 5
    assert {"mse", "mae"} == result["scores"].keys()
    clips = read_scores(folder / "scores_clips.csv")
    numbers = [int(name.rpartition("/")[2]) for name in clips.ids]
    assert numbers == [9, 10, 11, 12, 13] * 2


def test_the_cache_keeps_resized_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ucsd(tmp_path / "data")
    monkeypatch.setenv("NOVELTYLAB_CACHE", str(tmp_path / "cache"))
    first = tiny(tmp_path / "data", cache=True)
    with monkeypatch.context() as patched:
        patched.setattr(ucsd_clips, "read_frames", None)
        again = tiny(tmp_path / "data", cache=True)
        # stacks of another length are made of the same frames
        assert tiny(tmp_path / "data", cache=True, frames=2).images.shape[1] == 2
    assert torch.equal(first.images, again.images)
    assert tiny(tmp_path / "data", cache=True, size=16).images.shape[2:] == (16, 16)
    assert tiny(tmp_path / "data", size=None).images.shape[2:] == (60, 90)


# Bad input.


def test_a_clip_shorter_than_a_stack_is_one_error(tmp_path: Path) -> None:
    write_ucsd(tmp_path)
    message = r"data\.frames=9: train/01 has 8 frames, and .* Use data\.frames=1 to 8\."
    with pytest.raises(UserError, match=message):
        tiny(tmp_path, frames=9)
    message = r"train/01 has 8 frames, 7 differences of them, .* Use data\.frames=1 to 7\."
    with pytest.raises(UserError, match=message):
        tiny(tmp_path, frames=8, difference=True)


def test_frames_of_another_size_or_damaged_are_one_error(tmp_path: Path) -> None:
    folder = write_ucsd(tmp_path)
    path = folder / "Test" / "Test001" / "003.tif"
    Image.fromarray(np.zeros((60, 60), np.uint8)).save(path)
    with pytest.raises(UserError, match=r"003\.tif: expected 60 x 90 pixels, found 60 x 60"):
        tiny(tmp_path)
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"003\.tif is not a readable image"):
        tiny(tmp_path)
    with pytest.raises(UserError, match=r"expected 16 training clips, found 3"):
        load("ucsd_clips", folder, True, False, cache=False, size=32, frames=4, difference=False)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("data.frames=0", r"data\.frames=0: "),
        ("data.frames=12", r"data\.frames=12 data\.size=32: MemAE for video takes stacks of a mul"),
        ("data.size=24", r"data\.frames=8 data\.size=24: MemAE for video takes stacks of a multi"),
        ("data.size=null", r"data\.size=60: MemAE takes square images"),
        ("protocol=frames", r"protocol=frames does not fit data=ucsd_clips; it can be whole_frame"),
    ],
)
def test_options_that_do_not_fit_are_one_error(
    tmp_path: Path, run_here: Run, option: str, message: str
) -> None:
    write_ucsd(tmp_path, frames=12)
    with pytest.raises(UserError, match=message):
        run_tiny(run_here, tmp_path, "method=memae", "data.frames=8", option)


@pytest.mark.skipif(not (REAL / "ped2").is_dir(), reason="no ped2 in $NOVELTYLAB_DATA")
def test_real_ped2_has_a_score_for_every_frame() -> None:
    samples = load(
        "ucsd_clips", REAL, True, False, cache=False, size=16, frames=16, difference=False
    )
    assert samples.images.shape == (4560, 16, 16, 16)
    assert samples.facts["own"].sum() == 4560 - 28 * 15
    assert samples.labels.sum() == 1648


def test_fewer_iterations_are_made_at_once_where_stacks_are_large() -> None:
    def samples(*shape: int) -> Samples:
        empty = np.zeros(0, np.int64)
        names = np.zeros(0, np.str_)
        return Samples(torch.zeros(0, *shape, dtype=torch.uint8), empty, None, names, None)

    assert iterations_at_once(samples(1, 28, 28), 32, 64) == 16
    assert iterations_at_once(samples(16, 64, 64), 64, 10) == 102
    # 256 stacks of a million numbers
    assert iterations_at_once(samples(16, 240, 360), 256, 10) == 25
    assert iterations_at_once(samples(256, 1024, 1024), None, 10) == 1
