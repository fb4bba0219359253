"""Face anti-spoofing across two sets: layout, the protocol cross, thresholds of the source set,
error rates of videos.
"""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noveltylab.data.load import load
from noveltylab.data.protocols import split
from noveltylab.data.samples import Samples
from noveltylab.data.split import Split
from noveltylab.errors import UserError
from noveltylab.methods.pca import PCA
from noveltylab.predict.load import load_detector
from noveltylab.report.check import check_run
from noveltylab.results.schema import check_result
from noveltylab.results.scores import read_scores
from noveltylab.scoring.metrics import error_rates, source_threshold
from tests.formats import write_faces

Run = Callable[..., dict[str, Any]]
CROSS = (
    "data=antispoofing",
    "method=pca",
    "data.source=casia",
    "data.target=replay",
    "trainer.accelerator=cpu",
)


def faces(root: Path, source: str = "casia", target: str = "replay", **options: Any) -> Samples:
    sets = {"source": source, "target": target, "size": 16, "on_error": "fail", "bits": None}
    return load("antispoofing", root, False, False, **{**sets, **options})


def cut(samples: Samples, **options: Any) -> Split:
    arguments = {"seed": 0, "val_fraction": 0.2, "facts": samples.facts, **options}
    return split("cross", samples.labels, samples.official_test, 0, **arguments)


def parts_of(samples: Samples, index: Any) -> set[str]:
    """<set>/<part>/<class> of samples."""
    return {"/".join(name.split("/")[:3]) for name in samples.ids[index].tolist()}


def videos_of(samples: Samples, index: Any) -> set[str]:
    return {name.rpartition("/")[0] for name in samples.ids[index].tolist()}


def test_a_video_is_a_folder_of_images_and_other_folders_are_attacks(tmp_path: Path) -> None:
    write_faces(tmp_path)
    samples = faces(tmp_path)
    units = samples.units
    assert units is not None and units.kind == "video"
    # casia's training part, replay's test part
    assert len(units.ids) == 2 * 6 + 2 * 6 and len(samples.images) == 4 * 24
    assert samples.images.shape[1:] == (1, 16, 16)
    for name, label, test in zip(
        units.ids.tolist(), units.labels.tolist(), units.test.tolist(), strict=True
    ):
        assert label == ("/attack/print/" in name)
        assert test == name.startswith("replay/test/")
    assert [units.ids[unit] for unit in units.of] == [
        name.rpartition("/")[0] for name in samples.ids
    ]


def test_an_image_right_in_a_class_folder_is_a_video_of_its_own(tmp_path: Path) -> None:
    write_faces(tmp_path)
    folder = tmp_path / "replay" / "test" / "real"
    shutil.copy(folder / "v0" / "000.png", folder / "loose.png")
    units = faces(tmp_path).units
    assert units is not None
    assert "replay/test/real/loose.png" in units.ids.tolist()


@pytest.mark.parametrize("name", ["Real", "LIVE", "genuine"])
def test_genuine_folders_go_by_several_names(tmp_path: Path, name: str) -> None:
    write_faces(tmp_path)
    for path in (tmp_path / "casia" / "train", tmp_path / "replay" / "test"):
        (path / "real").rename(path / name)
    assert (faces(tmp_path).labels == 0).sum() == 2 * 6 * 4


def test_without_a_development_part_whole_videos_are_held_out(tmp_path: Path) -> None:
    write_faces(tmp_path)
    samples = faces(tmp_path)
    parts = cut(samples)
    assert parts_of(samples, parts.train) == parts_of(samples, parts.val) == {"casia/train/real"}
    assert parts_of(samples, parts.source_outliers) == {"casia/train/attack"}
    assert parts_of(samples, parts.test) == {"replay/test/real", "replay/test/attack"}
    held_out, trained = videos_of(samples, parts.val), videos_of(samples, parts.train)
    assert len(held_out) == 2 and len(trained) == 4 and not held_out & trained
    assert (samples.labels[parts.test] == 1).tolist() == parts.is_outlier.tolist()
    assert (parts.aggregate, parts.whole) == ("mean", True)
    assert videos_of(samples, cut(samples, seed=1).val) != held_out


def test_a_development_part_takes_the_place_of_held_out_videos(tmp_path: Path) -> None:
    write_faces(tmp_path)
    samples = faces(tmp_path, "replay", "casia")
    parts = cut(samples, agg="max")
    assert (
        parts_of(samples, parts.train) == {"replay/train/real"}
        and len(videos_of(samples, parts.train)) == 6
    )
    assert parts_of(samples, parts.val) == {"replay/devel/real"}
    assert parts_of(samples, parts.source_outliers) == {"replay/devel/attack"}
    assert parts_of(samples, parts.test) == {"casia/test/real", "casia/test/attack"}


def test_a_share_as_threshold_looks_at_no_outlier_of_the_source(tmp_path: Path) -> None:
    write_faces(tmp_path)
    samples = faces(tmp_path)
    assert not len(cut(samples, threshold=0.05).source_outliers)
    for path in (tmp_path / "casia" / "train" / "attack",):
        shutil.rmtree(path)
    samples = faces(tmp_path)
    assert len(cut(samples, threshold=0.05).test)
    with pytest.raises(UserError, match=r"equal_error needs attacks .*protocol\.threshold=0\.05"):
        cut(samples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, r"protocol\.threshold must lie strictly between 0 and 1"),
        ({"val_fraction": 0.0}, r"set protocol\.val_fraction above 0"),
    ],
)
def test_options_that_leave_no_threshold(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    write_faces(tmp_path)
    with pytest.raises(UserError, match=message):
        cut(faces(tmp_path), **options)


def test_a_video_in_two_parts_is_never_split() -> None:
    part = np.array(["train", "train", "devel", "train", "test", "test"])
    facts = {"part": part, "video": np.array([0, 1, 1, 2, 3, 4])}
    with pytest.raises(AssertionError, match="a video lies in two parts"):
        split(
            "cross",
            np.array([0, 0, 0, 1, 0, 1]),
            part == "test",
            0,
            seed=0,
            val_fraction=0.5,
            facts=facts,
        )


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: shutil.rmtree(root / name)


def only_films(root: Path) -> None:
    shutil.rmtree(root / "replay" / "test" / "real")
    (root / "replay" / "test" / "real").mkdir()
    (root / "replay" / "test" / "real" / "client1.mov").write_bytes(b"film")


@pytest.mark.parametrize(
    ("options", "damage", "message"),
    [
        ({"source": None}, None, r"needs|trains on data\.source .*holds casia, replay"),
        ({"target": "oulu"}, None, r"data\.target=oulu: no such folder; .* holds casia, replay"),
        ({"target": "casia"}, None, r"data\.source=casia and data\.target=casia are one folder"),
        ({"target": "../x"}, None, r"data\.target=\.\./x: name a folder right in"),
        ({}, remove("casia/train"), r"casia: has no train/; Expected <set>/train/genuine"),
        ({}, remove("replay/test"), r"replay: has no test/"),
        (
            {},
            remove("casia/train/real"),
            r"train: no videos of genuine \(or real, live\); found the folders attack",
        ),
        ({}, remove("replay/test/attack"), r"test: no videos of attacks; found the folders real"),
        (
            {},
            only_films,
            r"no videos of genuine .*1 video files such as client1\.mov, which become folders of images",
        ),
    ],
)
def test_what_is_missing_is_one_clear_line(
    tmp_path: Path, options: dict[str, Any], damage: Callable[[Path], None] | None, message: str
) -> None:
    write_faces(tmp_path)
    if damage:
        damage(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        faces(tmp_path, **options)
    assert "\n" not in str(error.value)


def test_an_absent_data_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"data\.source and data\.target not found in .*Expected <set>/train/genuine",
    ):
        faces(tmp_path / "absent")


def test_a_link_to_the_same_set_is_the_same_set(tmp_path: Path) -> None:
    write_faces(tmp_path)
    (tmp_path / "copy").symlink_to(tmp_path / "casia")
    with pytest.raises(UserError, match="are one folder"):
        faces(tmp_path, target="copy")


# Thresholds and error rates.


def test_error_rates_by_hand() -> None:
    """Six videos: of three genuine ones one is rejected above 0.5, of three attacks two are
    accepted.
    """
    rates = error_rates([0.1, 0.2, 0.6, 0.3, 0.5, 0.9], [0, 0, 0, 1, 1, 1], 0.5)
    assert rates == {"far": 2 / 3, "frr": 1 / 3, "hter": 0.5}


def test_the_threshold_of_a_share_counts_inliers_alone() -> None:
    scores, flags = np.array([3.0, 1, 2, 4, 100, 0]), np.array([0, 0, 0, 0, 1, 1])
    # at 3, one of four would be rejected; none is above 4
    assert source_threshold(scores, flags, 0.25) == 4.0
    assert source_threshold(scores, flags, 0.5) == 3.0
    moved = scores.copy()
    moved[4:] = -7
    assert source_threshold(moved, flags, 0.5) == 3.0
    assert source_threshold(scores, np.array([0, 0, 0, 0, 1, 0]), "equal_error") == 4.0


# A run.


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "faces")


def folder_of(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "cross" / "pca" / "antispoofing" / "inlier0" / "seed0"


def test_a_run_has_the_error_rate_of_videos_at_the_sources_threshold(
    tmp_path: Path, written: Path, run_here: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_here(*CROSS, f"data.root={written}", "pictures=true")
    cross, folder = result["cross"], folder_of(tmp_path)
    assert (cross["source"], cross["target"], cross["rule"]) == ("casia", "replay", "equal_error")
    assert (cross["source_inliers"], cross["source_outliers"]) == (2, 6)
    assert (result["n"]["train"], result["n"]["val"]) == (16, 8)
    assert (result["n"]["test_inliers"], result["n"]["test_outliers"]) == (6, 6)
    images, videos, source = (
        read_scores(folder / f"scores{name}.csv") for name in ("_images", "", "_source")
    )
    for name, score in zip(videos.ids, videos.columns["residual"].tolist(), strict=True):
        mine = [
            value
            for image, value in zip(images.ids, images.columns["residual"], strict=True)
            if name in image
        ]
        assert len(mine) == 4 and score == pytest.approx(np.mean(mine))
    rates = cross["scores"]["residual"]
    threshold = source_threshold(source.columns["residual"], source.is_outlier, "equal_error")
    assert rates == {
        "threshold": threshold,
        **error_rates(videos.columns["residual"], videos.is_outlier, threshold),
    }
    assert {name.split("/")[0] for name in source.ids} == {"casia"}
    output = " ".join(capsys.readouterr().out.split())
    assert (
        f"HTER {rates['hter']:.4f} on replay (FAR {rates['far']:.4f}, FRR {rates['frr']:.4f}) above"
        in output
    )
    assert "equal error on casia, 2 held-out genuine videos and 6 attacks" in output
    assert (folder / "figures" / "cases.png").is_file() and not (
        folder / "figures" / "clips.png"
    ).exists()
    check_result(result)
    with pytest.raises(UserError, match="this run scores videos by their images"):
        load_detector(folder)


def test_the_check_computes_the_error_rates_again(
    tmp_path: Path, written: Path, run_here: Run
) -> None:
    result = run_here(*CROSS, f"data.root={written}", "protocol.threshold=0.05")
    assert result["cross"]["rule"] == 0.05 and result["cross"]["source_outliers"] == 0
    assert check_run(folder_of(tmp_path), result) == ""
    for key in ("threshold", "far", "frr", "hter"):
        changed = copy.deepcopy(result)
        changed["cross"]["scores"]["residual"][key] += 0.01
        with pytest.raises(UserError, match=rf"cross\.scores\.residual\.{key} is "):
            check_run(folder_of(tmp_path), changed)


def test_attacks_reach_neither_training_nor_selection(
    tmp_path: Path, written: Path, run_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other attacks leave the scores of genuine videos as they were.

    What trains is genuine.
    """
    seen: list[int] = []
    prepare = PCA.prepare

    def counted(self: PCA, train: Any) -> None:
        seen.append(len(train))
        prepare(self, train)

    monkeypatch.setattr(PCA, "prepare", counted)
    run_here(*CROSS, f"data.root={written}")
    assert set(seen) == {16}
    before = read_scores(folder_of(tmp_path) / "scores.csv")
    for path in written.rglob("attack/**/*.png"):
        path.write_bytes(
            (written / "casia" / "train" / "attack" / "print" / "v0" / "000.png").read_bytes()
        )
    shutil.rmtree(tmp_path / "outputs")
    run_here(*CROSS, f"data.root={written}")
    after = read_scores(folder_of(tmp_path) / "scores.csv")
    genuine = ~before.is_outlier
    np.testing.assert_array_equal(
        before.columns["residual"][genuine], after.columns["residual"][genuine]
    )
    assert (before.columns["residual"][~genuine] != after.columns["residual"][~genuine]).any()


def test_a_score_of_the_whole_test_set_has_no_threshold_elsewhere(
    written: Path, run_here: Run
) -> None:
    small = (
        "method.width=0.125",
        "method.architecture=mnist",
        "data.batch_size=8",
        "trainer.max_epochs=1",
    )
    result = run_here(
        "data=antispoofing", "method=oled", *CROSS[2:], f"data.root={written}", *small
    )
    assert "s_avg" in result["scores"] and "s_avg" not in result["cross"]["scores"]
    assert {"s_rec", "s_mask", "s_cont"} <= set(result["cross"]["scores"])
