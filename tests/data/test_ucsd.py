"""UCSD Ped2: both layouts, labels, patches, motion, the frames protocol, damaged copies."""

import copy
import os
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from noveltylab.data import ucsd, ucsd_files
from noveltylab.data.load import load
from noveltylab.data.protocols import split
from noveltylab.data.samples import Samples
from noveltylab.errors import UserError
from noveltylab.report.check import check_run
from noveltylab.results.scores import read_scores
from noveltylab.scoring.metrics import evaluate
from tests.formats import write_ucsd

REAL = Path(os.environ.get("NOVELTYLAB_DATA", "absent"))
FUZZ = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def tiny(root: Path, **options: Any) -> Samples:
    return load("ucsd", root, False, False, **{"cache": False, **options})


@pytest.mark.parametrize("official", [True, False])
def test_both_layouts_give_patches_with_their_frames_labels(tmp_path: Path, official: bool) -> None:
    write_ucsd(tmp_path, official=official)
    samples = tiny(tmp_path)
    assert samples.images.shape == (5 * 8 * 6, 1, 30, 30)
    units = samples.units
    assert units is not None
    assert units.grid == (2, 3)
    assert units.ids[0] == ("train/01/001" if official else "train/01/000")
    assert units.labels.tolist() == [0] * 24 + [0, 0, 0, 0, 1, 1, 1, 1] * 2
    assert samples.labels.tolist() == np.repeat(units.labels, 6).tolist()
    assert samples.official_test is not None
    assert samples.official_test.tolist() == [False] * 144 + [True] * 96
    assert samples.ids[7].endswith("/r0c01")
    assert len(set(samples.ids.tolist())) == len(samples.ids)
    assert samples.facts["clip"].tolist() == np.repeat(np.arange(5), 48).tolist()
    assert not samples.verified


def test_patches_are_the_frame_cut_row_by_row(tmp_path: Path) -> None:
    folder = write_ucsd(tmp_path)
    frame = np.asarray(Image.open(folder / "Train" / "Train001" / "003.tif"))
    mine = tiny(tmp_path).images[2 * 6 : 3 * 6, 0].numpy()
    for number in range(6):
        row, column = divmod(number, 3)
        np.testing.assert_array_equal(
            mine[number], frame[30 * row : 30 * row + 30, 30 * column : 30 * column + 30]
        )
    np.testing.assert_array_equal(ucsd.fold(ucsd.unfold(frame)), frame)


def test_motion_is_the_mean_change_to_the_frame_before(tmp_path: Path) -> None:
    folder = write_ucsd(tmp_path)
    before, after = (
        np.asarray(Image.open(folder / "Test" / "Test002" / f"00{i}.tif"), np.int64) for i in (5, 6)
    )
    motion = tiny(tmp_path).facts["motion"].reshape(5, 8, 6)
    np.testing.assert_allclose(
        motion[4, 5, 4], np.abs(after - before)[30:, 30:60].mean(), rtol=1e-6
    )
    np.testing.assert_array_equal(motion[:, 0], motion[:, 1])


def test_frames_protocol_trains_on_early_clips_and_leaves_out_what_stands_still(
    tmp_path: Path,
) -> None:
    write_ucsd(tmp_path)
    samples = tiny(tmp_path)
    clip, motion = samples.facts["clip"], samples.facts["motion"]
    options = {"seed": 0, "val_fraction": 0.1, "facts": samples.facts}
    parts = split(
        "frames", samples.labels, samples.official_test, 0, motion_filter=0.5, agg="mean", **options
    )
    assert set(clip[parts.train]) == {0, 1}
    assert set(clip[parts.val]) == {2}
    assert set(clip[parts.test]) == {3, 4}
    threshold = np.median(motion[clip < 2])
    for part in (parts.train, parts.val, parts.test):
        assert (motion[part] >= threshold).all()
    assert len(parts.test) == (motion[clip > 2] >= threshold).sum()
    assert (parts.aggregate, parts.whole) == ("mean", True)
    everything = split(
        "frames", samples.labels, samples.official_test, 0, motion_filter=0.0, **options
    )
    assert [len(part) for part in (everything.train, everything.val, everything.test)] == [
        96,
        48,
        96,
    ]


def test_a_run_measures_whole_frames_and_reports_patches_apart(
    tmp_path: Path, run_here: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ucsd(tmp_path, frames=12)
    result = run_here(
        "data=ucsd",
        "method=pca",
        f"data.root={tmp_path}",
        "data.verify=false",
        "protocol.motion_filter=0.3",
        "pictures=true",
    )
    assert result["n"]["test_inliers"] == result["n"]["test_outliers"] == 12
    assert set(result["apart"]) == {"patches", "patches_by_mask", "clips"}
    folder = tmp_path / "outputs" / "frames" / "pca" / "ucsd" / "inlier0" / "seed0"
    for name in ("clips.png", "frames.png", "clip.gif", "cases.png"):
        with Image.open(folder / "figures" / name) as picture:
            picture.load()
    frames = np.genfromtxt(
        folder / "scores.csv", delimiter=",", names=True, dtype=None, encoding=None
    )
    patches = np.genfromtxt(
        folder / "scores_patches.csv", delimiter=",", names=True, dtype=None, encoding=None
    )
    for frame in frames:
        mine = [patch["residual"] for patch in patches if patch["id"].startswith(f"{frame['id']}/")]
        assert frame["residual"] == (max(mine) if mine else frames["residual"].min())
    inliers, outliers = (frames["residual"][frames["is_outlier"] == kind] for kind in (0, 1))
    wins = np.sign(outliers[:, None] - inliers).mean() / 2 + 0.5
    assert result["scores"]["residual"]["auroc"] == pytest.approx(wins)


@pytest.mark.parametrize("official", [True, False])
def test_masks_label_the_patches_that_they_reach_into(tmp_path: Path, official: bool) -> None:
    write_ucsd(tmp_path, official=official)
    samples = tiny(tmp_path)
    masked = samples.facts["masked"].reshape(5, 8, 2, 3)
    assert not masked[:3].any() and not masked[3:, :4].any()
    # from frame 5 on the second square lies in the lower row, 5 pixels further left in each frame:
    # columns 40 to 69, ...
    assert (
        masked[3:, 4:, 1].tolist()
        == [[[False, True, True]] * 2 + [[False, True, False]] + [[True, True, False]]] * 2
    )
    assert not masked[:, :, 0].any()
    assert len(samples.notes) == 1


def test_a_run_measures_patches_labelled_by_masks_apart(
    tmp_path: Path, run_here: Callable[..., dict[str, Any]]
) -> None:
    """The unit of OLED's release: in it a patch of an abnormal frame may be an inlier."""
    write_ucsd(tmp_path, frames=12)
    options = (
        "data=ucsd",
        "method=pca",
        f"data.root={tmp_path}",
        "data.verify=false",
        "protocol.motion_filter=0.3",
    )
    result = run_here(*options)
    folder = tmp_path / "outputs" / "frames" / "pca" / "ucsd" / "inlier0" / "seed0"
    by_frame, by_mask = (
        read_scores(folder / f"scores_{name}.csv") for name in ("patches", "patches_by_mask")
    )
    masked = dict(
        zip(tiny(tmp_path).ids.tolist(), tiny(tmp_path).facts["masked"].tolist(), strict=True)
    )
    assert by_mask.is_outlier.tolist() == [masked[name] for name in by_mask.ids]
    assert by_mask.ids == by_frame.ids
    assert (by_frame.is_outlier & ~by_mask.is_outlier).any() and not (
        by_mask.is_outlier & ~by_frame.is_outlier
    ).any()
    np.testing.assert_array_equal(by_mask.columns["residual"], by_frame.columns["residual"])
    metrics = result["apart"]["patches_by_mask"]["residual"]
    assert metrics == evaluate(by_mask.columns["residual"], by_mask.is_outlier)
    assert metrics["auroc"] > result["apart"]["patches"]["residual"]["auroc"]
    assert check_run(folder, result) == ""
    changed = copy.deepcopy(result)
    changed["apart"]["patches_by_mask"]["residual"]["auroc"] += 0.001
    with pytest.raises(
        UserError, match=r"apart\.patches_by_mask\.residual\.auroc is .*scores_patches_by_mask\.csv"
    ):
        check_run(folder, changed)


@pytest.mark.parametrize("absent", ["Test001_gt", "Test002_gt", "Test002_gt/003.bmp"])
def test_absent_masks_are_one_line_and_label_nothing(tmp_path: Path, absent: str) -> None:
    folder = write_ucsd(tmp_path) / "Test"
    path = folder / absent
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    samples = tiny(tmp_path)
    assert "masked" not in samples.facts
    clip, frame = absent[4:7], 3 if absent.endswith("bmp") else 1
    (note,) = samples.notes[1:]
    assert note.startswith(
        f"UCSD Ped2: no mask of the abnormal pixels of test/{clip[1:]} frame {frame:03d} in {folder}"
    )


def test_without_masks_a_run_has_patches_of_their_frames_label_alone(
    tmp_path: Path, run_here: Callable[..., dict[str, Any]]
) -> None:
    write_ucsd(tmp_path, frames=12, masks=False)
    result = run_here("data=ucsd", "method=pca", f"data.root={tmp_path}", "data.verify=false")
    assert set(result["apart"]) == {"patches", "clips"}
    assert sum("no mask of the abnormal pixels" in warning for warning in result["warnings"]) == 1


@pytest.mark.parametrize("content", [b"BM", np.zeros((30, 90), np.bool_)])
def test_a_damaged_mask_is_one_error_that_names_it(tmp_path: Path, content: Any) -> None:
    path = write_ucsd(tmp_path) / "Test" / "Test002_gt" / "004.bmp"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(content).save(path)
    with pytest.raises(UserError, match=r"Test002_gt/004\.bmp"):
        tiny(tmp_path)


def test_masks_against_the_labels_of_frames_are_counted(tmp_path: Path) -> None:
    folder = write_ucsd(tmp_path) / "Test" / "Test001_gt"
    shutil.copy(folder / "008.bmp", folder / "001.bmp")
    shutil.copy(folder / "002.bmp", folder / "006.bmp")
    assert (
        tiny(tmp_path).notes[1]
        == "UCSD Ped2: masks and labels of 2 frames disagree; each is used as it is"
    )


def test_cache_gives_the_same_and_notices_a_changed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_ucsd(tmp_path)
    plain, first = tiny(tmp_path), tiny(tmp_path, cache=True)
    with monkeypatch.context() as patched:
        patched.setattr(ucsd, "read_patches", None)
        again = tiny(tmp_path, cache=True)
    for cached in (first, again):
        assert (cached.images == plain.images).all()
        for name in ("motion", "masked"):
            np.testing.assert_array_equal(cached.facts[name], plain.facts[name])
    Image.fromarray(np.zeros((60, 90), np.uint8)).save(folder / "Train" / "Train001" / "001.tif")
    assert not tiny(tmp_path, cache=True).images[0].any()
    masks = folder / "Test" / "Test001_gt"
    shutil.copy(masks / "008.bmp", masks / "001.bmp")
    assert tiny(tmp_path, cache=True).facts["masked"].sum() > plain.facts["masked"].sum()


def damage_clip(folder: Path) -> None:
    shutil.rmtree(folder / "Train" / "Train002")


def damage_frame(folder: Path) -> None:
    (folder / "Test" / "Test001" / "004.tif").unlink()


def damage_truncated(folder: Path) -> None:
    path = folder / "Test" / "Test001" / "004.tif"
    path.write_bytes(path.read_bytes()[:200])


def damage_magic(folder: Path) -> None:
    (folder / "Train" / "Train001" / "002.tif").write_bytes(b"no picture at all")


def damage_size(folder: Path) -> None:
    Image.fromarray(np.zeros((30, 30), np.uint8)).save(folder / "Train" / "Train001" / "002.tif")


def damage_bomb(folder: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(
        folder / "Train" / "Train001" / "001.tif", compression="group4"
    )


def damage_labels(folder: Path) -> None:
    path = folder / "Test" / "UCSDped2.m"
    path.write_text(path.read_text().replace("[5:8]", "[5:80]", 1))


def damage_label_count(folder: Path) -> None:
    (folder / "Test" / "UCSDped2.m").write_text("TestVideoFile{end+1}.gt_frame = [5:8];\n")


def damage_label_text(folder: Path) -> None:
    (folder / "Test" / "UCSDped2.m").write_text(
        "TestVideoFile{end+1}.gt_frame = [5:system('ls')];\n"
    )


def damage_empty(folder: Path) -> None:
    for path in (folder / "Test" / "Test002").iterdir():
        path.unlink()


def damage_last_frames(folder: Path) -> None:
    for name in ("007.tif", "008.tif"):
        (folder / "Test" / "Test001" / name).unlink()


def damage_no_labels(folder: Path) -> None:
    (folder / "Test" / "UCSDped2.m").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncated, r"Test001/004\.tif is not a readable image"),
        (damage_magic, r"Train001/002\.tif is not a readable image"),
        (damage_size, r"002\.tif: expected 60 x 90 pixels, found 30 x 30"),
        (damage_bomb, r"001\.tif"),
        (damage_label_count, r"labels 1 clips, but there are 2 test clips"),
        (damage_label_text, r"UCSDped2\.m: cannot read the frames '5:system"),
        (damage_no_labels, r"UCSDped2\.m not found"),
    ],
)
def test_damage_is_one_error_that_names_the_file(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(write_ucsd(tmp_path))
    with pytest.raises(UserError, match=message):
        tiny(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message", "frames"),
    [
        (damage_clip, r"UCSDped2: train clip 02 is missing or empty.*data\.verify=false", 32),
        (damage_frame, r"Test001: frame 004 of 001 to 008 is missing.*data\.verify=false", 39),
        (
            damage_labels,
            r"UCSDped2\.m: frames 5 to 80 of test clip 01, which has 8 frames.*data\.verify=false",
            40,
        ),
        (damage_empty, r"labels 2 clips, but there are 1 test clips.*data\.verify=false", 32),
        (
            damage_last_frames,
            r"frames 5 to 8 of test clip 01, which has 6 frames.*data\.verify=false",
            38,
        ),
    ],
)
def test_a_set_with_gaps_is_read_only_unverified_and_counted(
    tmp_path: Path, damage: Callable[[Path], None], message: str, frames: int
) -> None:
    damage(write_ucsd(tmp_path))
    with pytest.raises(UserError, match=message):
        load("ucsd", tmp_path, True, False, cache=False)
    samples = tiny(tmp_path)
    assert len(samples.images) == frames * 6 and samples.verified is False
    assert (
        samples.missing == 4560 - frames and f"{4560 - frames} of 4560 missing" in samples.notes[0]
    )
    assert samples.units is not None
    for name, label in zip(samples.units.ids.tolist(), samples.units.labels.tolist(), strict=True):
        assert label == (name.startswith("test") and int(name[-3:]) > 4), name


def test_frames_of_another_size_are_not_the_official_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ucsd(tmp_path)
    for name, value in (
        ("TRAIN_CLIPS", 3),
        ("TRAIN_FRAMES", 24),
        ("TEST_LENGTHS", (8, 8)),
        ("TEST_ABNORMAL", (4, 4)),
    ):
        monkeypatch.setattr(ucsd, name, value)
    with pytest.raises(
        UserError, match=r"expected \(240, 360\) as height and width of a frame, found \(60, 90\)"
    ):
        load("ucsd", tmp_path, True, False, cache=False)
    assert "60 x 90 pixels in place of the original 240 x 360" in tiny(tmp_path).notes[0]
    monkeypatch.setattr(ucsd, "FRAME", (60, 90))
    samples = load("ucsd", tmp_path, True, False, cache=False)
    assert samples.verified is None and samples.missing == 0


@pytest.mark.parametrize("official", [True, False])
def test_the_sets_own_folder_may_be_the_root(tmp_path: Path, official: bool) -> None:
    folder = write_ucsd(tmp_path, official=official)
    for root in (folder, folder.parent):
        np.testing.assert_array_equal(tiny(root).images, tiny(tmp_path).images)


def test_the_archive_is_unpacked_once_into_the_cache(tmp_path: Path) -> None:
    write_ucsd(tmp_path / "unpacked")
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / ucsd_files.ARCHIVE, "w:gz") as archive:
        archive.add(
            tmp_path / "unpacked" / "UCSD_Anomaly_Dataset.v1p2", "UCSD_Anomaly_Dataset.v1p2"
        )
    for place in (root, root, root / ucsd_files.ARCHIVE):
        for name in ("motion", "masked"):
            np.testing.assert_array_equal(
                tiny(place).facts[name], tiny(tmp_path / "unpacked").facts[name]
            )
        np.testing.assert_array_equal(tiny(place).images, tiny(tmp_path / "unpacked").images)
    assert os.listdir(root) == [ucsd_files.ARCHIVE]
    assert len(os.listdir(tmp_path / "cache" / "unpacked")) == 1


def test_no_program_is_started_for_a_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = write_ucsd(tmp_path) / "Train" / "Train001" / "002.tif"
    frame.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 60\n%%EndComments\nshowpage\n")
    started: list[str] = []
    monkeypatch.setattr(
        "PIL.EpsImagePlugin.Ghostscript",
        lambda *arguments: started.append("gs") or Image.new("RGB", (90, 60)),
    )
    with pytest.raises(UserError, match=r"Train001/002\.tif is not a readable image"):
        tiny(tmp_path)
    assert not started


def test_damaged_mat_file(tmp_path: Path) -> None:
    folder = write_ucsd(tmp_path, official=False)
    path = folder / "ped2.mat"
    for content in (b"", b"MATLAB 5.0", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"ped2\.mat does not hold the abnormal frames"):
            tiny(tmp_path)


def test_absent_data_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"UCSDped2 \(or ped2\) not found in .*Put UCSD_Anomaly_Dataset"
    ):
        tiny(tmp_path)


def test_a_copy_with_other_counts_is_refused_unless_accepted(tmp_path: Path) -> None:
    write_ucsd(tmp_path)
    with pytest.raises(UserError, match=r"expected 16 training clips, found 3.*data\.verify=false"):
        load("ucsd", tmp_path, True, False, cache=False)


@FUZZ
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.text("TestVideoFile{end+1}.gt_frame = [0123456789:,];\n ", max_size=200).map(str.encode),
        st.lists(st.text("0123456789:, ", max_size=12)).map(
            lambda spans: "\n".join(
                f"TestVideoFile{{end+1}}.gt_frame = [{span}];" for span in spans
            ).encode()
        ),
    )
)
def test_label_parser_refuses_or_reads(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "UCSDped2.m"
    path.write_bytes(content)
    with suppress(UserError):
        assert [len(clip) for clip in ucsd_files.read_labels(path, [180, 120])] == [180, 120]


def test_label_parser_knows_several_spans_and_single_frames(tmp_path: Path) -> None:
    path = tmp_path / "UCSDped2.m"
    path.write_text("TestVideoFile{end+1}.gt_frame = [2 : 3, 5 7:8];")
    (labels,) = ucsd_files.read_labels(path, [9])
    assert np.flatnonzero(labels).tolist() == [1, 2, 4, 6, 7]


@pytest.mark.skipif(not (REAL / "ped2").is_dir(), reason="no ped2 in $NOVELTYLAB_DATA")
def test_real_labels_agree_with_the_second_label_file() -> None:
    lengths = list(ucsd.TEST_LENGTHS)
    first, second = (
        ucsd_files.read_labels(REAL / "ped2" / name, lengths) for name in ("UCSDped2.m", "ped2.mat")
    )
    assert sum(int(clip.sum()) for clip in first) == 1648
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "ped2").is_dir(), reason="no ped2 in $NOVELTYLAB_DATA")
def test_real_ped2_has_the_official_counts() -> None:
    samples = load("ucsd", REAL, True, False, cache=False)
    assert samples.images.shape == (4560 * 96, 1, 30, 30)
    assert samples.labels.sum() == 1648 * 96
