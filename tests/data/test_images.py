"""A folder of one's own images: layouts, classes, what cannot be read, and runs that end without an
AUROC.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from noveltylab.command.hydra_versions import BASE
from noveltylab.command.validate import usable_label
from noveltylab.data import images
from noveltylab.data.inlier import Inlier
from noveltylab.data.layout import find_layout, shown
from noveltylab.data.protocols import split
from noveltylab.data.samples import Samples
from noveltylab.errors import UserError
from noveltylab.job import CONF
from noveltylab.options import DataOptions, resolve_inlier
from noveltylab.report.__main__ import report
from noveltylab.results.scores import read_scores
from tests.conftest import forbid
from tests.formats import write_images

Run = Callable[..., dict[str, Any]]
MVTEC = {"train/good": 40, "test/good": 8, "test/scratch": 6, "test/hole": 6}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def data_options(root: Path) -> DataOptions:
    with initialize_config_dir(str(CONF), **BASE):
        config = compose("train", ["data=images", f"data.root={root}"])
    return DataOptions.model_validate(OmegaConf.to_container(config.data))


def read(root: Path, **changes: Any) -> Samples:
    return images.read(
        root,
        **{
            "verify": False,
            "download": False,
            "inlier": 0,
            "size": 16,
            "on_error": "fail",
            **changes,
        },
    )


@pytest.mark.parametrize(
    ("counts", "classes", "tested"),
    [
        (MVTEC, ["good", "hole", "scratch"], 20),
        ({"train/bolt": 5, "train/nut": 4, "test/bolt": 3, "test/nut": 2}, ["bolt", "nut"], 5),
        ({"": 9}, ["good"], None),
        ({"train": 7, "test/odd": 2}, ["good", "odd"], 2),
        ({"a": 4, "b/deep/er": 3}, ["a", "b"], None),
        ({"train/good": 6}, ["good"], None),
        ({"Train/good": 6, "TEST/good": 2, "TEST/bad": 2}, ["good", "bad"], 4),
        ({"10": 2, "9": 2, "1": 2, "02": 2, "x": 2}, ["1", "02", "9", "10", "x"], None),
        ({"train/ok": 5, "train/bad": 3, "test/ok": 2, "test/bad": 2}, ["bad", "ok"], 4),
    ],
)
def test_every_layout(
    tmp_path: Path, counts: dict[str, int], classes: list[str], tested: int | None
) -> None:
    write_images(tmp_path / "own", counts)
    samples = read(tmp_path / "own")
    assert find_layout(tmp_path / "own").classes == classes
    assert len(samples.labels) == sum(counts.values()) == len(set(samples.ids.tolist()))
    assert samples.images.shape[1:] == (1, 16, 16)
    assert (None if samples.official_test is None else int(samples.official_test.sum())) == tested
    for name, label in zip(samples.ids.tolist(), samples.labels, strict=True):
        assert f"{classes[label]}/" in name or classes == ["good"] or "train/0" in name


def test_colour_is_that_of_the_training_inliers(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/good": 5, "test/odd": 2})
    assert read(tmp_path).images.shape[1] == 1
    Image.new("RGB", (9, 9), "red").save(tmp_path / "test" / "odd" / "red.png")
    assert read(tmp_path).images.shape[1] == 1  # an outlier decides nothing
    Image.new("RGB", (9, 9), "red").save(tmp_path / "train" / "good" / "red.png")
    assert read(tmp_path).images.shape[1] == 3


def test_unreadable_images_are_named_and_skipped_only_if_asked(tmp_path: Path) -> None:
    write_images(tmp_path, {"": 10})
    (tmp_path / "0003.png").write_bytes(b"torn")
    (tmp_path / "zero.jpg").write_bytes(b"")
    with pytest.raises(
        UserError,
        match=r"2 of 11 images cannot be read: 0003.png \(.*zero.jpg \(is empty\).*on_error=skip",
    ):
        read(tmp_path)
    samples = read(tmp_path, on_error="skip")
    assert len(samples.ids) == len(samples.images) == 9 and samples.skipped == 2
    assert "0003.png" not in samples.ids.tolist()
    whole = read(write_images(tmp_path / "whole", {"": 10}))
    rows = [row for row, name in enumerate(whole.ids.tolist()) if name in samples.ids.tolist()]
    assert torch.equal(samples.images, whole.images[rows])


@pytest.mark.parametrize("folder", ["", "train/good"])
def test_links_that_lead_nowhere_are_images_that_cannot_be_read(
    tmp_path: Path, folder: str
) -> None:
    write_images(tmp_path, {folder: 10})
    (tmp_path / folder / "loop.png").symlink_to("loop.png")
    (tmp_path / folder / "gone.png").symlink_to("nothing.png")
    with pytest.raises(UserError, match="2 of 12 images cannot be read: .*gone.png .*loop.png"):
        read(tmp_path)
    assert read(tmp_path, on_error="skip").skipped == 2


def test_mixed_sizes_need_a_size(tmp_path: Path) -> None:
    write_images(tmp_path, {"": 10})
    with pytest.raises(UserError, match="data.size=null needs images of one size"):
        read(tmp_path, size=None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: root.mkdir(), "it is empty"),
        (lambda root: root.write_text("x"), "a file"),
        (lambda root: (root / "train").mkdir(parents=True), "holds no images"),
        (lambda root: write_images(root, {"train/good": 3, "test": 2}), "lie in no folder"),
        (
            lambda root: write_images(root, {"bottle/train/good": 3}),
            "choose one: data.root=.*bottle",
        ),
        (
            lambda root: write_images(root, {"test/good": 3, "test/bad": 2}),
            "has test/ but no train/",
        ),
        (
            lambda root: write_images(root, {"train/good": 3, "Train/good": 2}),
            "holds Train, train; leave one",
        ),
        (
            lambda root: write_images(root, {"": 1, "bottle/train/good": 3}),
            "holds several sets, such as bottle",
        ),
        (
            lambda root: [
                write_images(root, {"good": 3}),
                [file.rename(file.with_suffix(".avif")) for file in files(root)],
            ],
            r"no images .*\(3 files of kinds that are not read: 3 .avif\)",
        ),
        (
            lambda root: (root.mkdir(), (root / "notes.txt").write_text("x")),
            "found 1 entries, such as notes.txt",
        ),
    ],
)
def test_what_is_no_set_of_images_is_explained(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "own")
    with pytest.raises(UserError, match=message):
        find_layout(tmp_path / "own")


@pytest.mark.parametrize(
    ("folders", "trained"),
    [
        (["abnormal", "normal"], "normal"),
        (["bad", "Good", "scratch"], "Good"),
        (["train/NG", "train/OK", "test/NG", "test/OK"], "OK"),
        (["train/bad", "train/good"], "good"),
        (["screw"], "screw"),
        (["train/screw", "test/screw", "test/bad"], "screw"),
    ],
)
def test_the_good_folder_trains_where_no_class_is_named(
    tmp_path: Path, folders: list[str], trained: str
) -> None:
    write_images(tmp_path, dict.fromkeys(folders, 2))
    data = data_options(tmp_path)
    assert data.names[resolve_inlier(None, data)] == trained


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ["cat", "dog"],
            "it has the classes cat, dog, and none is called good, normal or ok; say which one trains",
        ),
        (["bad", "good", "normal"], "good, normal are all called good"),
        (["train/good", "test/Good", "test/bad"], "good, Good are all called good"),
        (["null", "good"], "has a class called null"),
    ],
)
def test_otherwise_it_is_asked_for(tmp_path: Path, folders: list[str], message: str) -> None:
    write_images(tmp_path, dict.fromkeys(folders, 2))
    with pytest.raises(UserError, match=message):
        resolve_inlier(None, data_options(tmp_path))


@pytest.mark.parametrize(
    ("folders", "inlier", "trained"),
    [
        ([*map(str, range(1, 11))], 1, "1"),
        ([*map(str, range(1, 11))], 10, "10"),
        ([*map(str, range(1, 11))], "2", "2"),
        (["a", "b"], 1, "b"),
        (["01", "02"], 2, "02"),
        (["01", "1"], 1, "1"),
        (["1_1_1", "other"], 111, "1_1_1"),
        (["1.5", "2.5"], 2.5, "2.5"),
        (["true", "false"], True, "true"),
        (["Good", "good"], "good", "good"),
        (["Cat", "dog"], "cat", "Cat"),
        (["1", "2"], 0, "no class folder of that name .*choose from: 1, 2"),
        (["a", "b"], 2, "has classes 0 to 1: a, b"),
        (["01", "001"], 1, "could be 001 or 01; name it in quotes"),
        (["GOOD", "Good"], "good", "could be GOOD or Good"),
        (["a", "b"], "c", "no such class in images"),
        (["a", "b"], True, "no such class in images"),
    ],
)
def test_a_name_wins_over_a_position(
    tmp_path: Path, folders: list[str], inlier: Inlier, trained: str
) -> None:
    write_images(tmp_path, dict.fromkeys(folders, 1))
    data = data_options(tmp_path)
    if trained in folders:
        assert data.names[resolve_inlier(inlier, data)] == trained
    else:
        with pytest.raises(UserError, match=trained):
            resolve_inlier(inlier, data)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    write_images(
        tmp_path,
        {"train/good": 4, "test/odd": 2, "test/dent": 2, "val/good": 1, "ground_truth/odd": 1},
    )
    assert read(tmp_path).notes == ("left out: folders that are neither train nor test (val)",)
    shutil.rmtree(tmp_path / "val")
    assert read(tmp_path).notes == ()
    for file in files(tmp_path / "test" / "dent"):
        file.rename(file.with_suffix(".HEIC"))
    (tmp_path / "train" / "good" / "0000.png").rename(tmp_path / "train" / "good" / "0000.jp2")
    (tmp_path / "train" / "good" / "notes.txt").write_text("none of them")
    (tmp_path / "train" / "good" / "linked").symlink_to(tmp_path / "ground_truth")
    shutil.copy(tmp_path / "train" / "good" / "0001.png", tmp_path / "test" / "preview.png")
    assert read(tmp_path).notes == (
        "left out: 3 files of kinds that are not read (2 .heic, 1 .jp2); convert them to PNG",
        "left out: 1 links to folders (linked)",
        "left out: 1 images beside the class folders (preview.png)",
    )


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".jif"])
def test_a_jpeg_of_any_name_is_read(tmp_path: Path, suffix: str) -> None:
    write_images(tmp_path, {"train/good": 3}, suffix=".jpg")
    for file in files(tmp_path):
        file.rename(file.with_suffix(suffix))
    assert len(read(tmp_path).ids) == 3


def test_class_folders_win_over_pictures_beside_them(tmp_path: Path) -> None:
    write_images(tmp_path, {"": 3, "good": 9, "bad": 4})
    data = data_options(tmp_path)
    assert data.names == ["bad", "good"] and resolve_inlier(None, data) == 1
    samples = read(tmp_path, inlier=1)
    assert len(samples.ids) == 13
    assert samples.notes == (
        "left out: 3 images beside the class folders (0000.png, 0001.png, 0002.png)",
    )
    write_images(tmp_path, {"": 10})
    with pytest.raises(
        UserError, match="10 images lie beside its folders .*more than in good/.*or say inlier=good"
    ):
        resolve_inlier(None, data)
    assert resolve_inlier("good", data) == 1


@pytest.mark.parametrize("closed", ["train/good/lot2", "test/odd", "train/good"])
def test_a_folder_that_cannot_be_looked_into_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    write_images(tmp_path, {"train/good": 4, "train/good/lot2": 4, "test/odd": 2})
    forbid(monkeypatch, tmp_path / closed)
    with pytest.raises(
        UserError, match=rf"1 folders cannot be looked into: .*{closed} \(Permission denied\)"
    ):
        read(tmp_path, on_error="skip")


def write_deep(root: Path, bits: int, kind: str = "uint16") -> None:
    """Images of 16 bits that use only the lower ones, and as many of 8 bits with the same content."""
    rng = np.random.default_rng(0)
    for where in ("deep/train/good", "plain/train/good"):
        (root / where).mkdir(parents=True)
    for number in range(4):
        pixels = rng.integers(0, 256, (16, 16)).astype(np.uint8)
        pixels[0, 0] = 255
        Image.fromarray(pixels).save(root / "plain/train/good" / f"{number}.tif")
        deep = (pixels.astype(kind) << (bits - 8)).astype(kind)
        Image.fromarray(deep).save(root / "deep/train/good" / f"{number}.tif")


@pytest.mark.parametrize(
    ("bits", "kind"), [(10, "uint16"), (12, "uint16"), (12, "int32"), (8, "int32")]
)
def test_a_camera_s_bits_in_16_are_noticed_and_can_be_said(
    tmp_path: Path, bits: int, kind: str
) -> None:
    write_deep(tmp_path, bits, kind)
    (note,) = read(tmp_path / "deep").notes
    assert f"say data.bits={bits}" in note and f"{255 << (bits - 8):,} of 65,535" in note
    declared = read(tmp_path / "deep", bits=bits)
    assert declared.notes == () and torch.equal(declared.images, read(tmp_path / "plain").images)
    shutil.copy(tmp_path / "plain/train/good/0.tif", tmp_path / "deep/train/good/mixed.tif")
    assert f"say data.bits={bits}" in read(tmp_path / "deep").notes[0]


def test_16_bits_that_are_used_are_no_surprise(tmp_path: Path) -> None:
    write_deep(tmp_path, 16)
    assert read(tmp_path / "deep").notes == ()
    with pytest.raises(UserError, match="has a pixel of 65,280, more than data.bits=12 can hold"):
        read(tmp_path / "deep", bits=12)


def test_names_from_a_file_system_are_harmless(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/good": 6, "test/odd": 3})
    for count, name in enumerate([b"a\nb.png", b"\xff\xfe.png", b"\x1b[31mred.png", b"=1+1.png"]):
        shutil.copy(tmp_path / "train/good/0000.png", bytes(tmp_path / "train/good") + b"/" + name)
        assert count < len(read(tmp_path).ids)
    for name in read(tmp_path).ids.tolist():
        assert name.isprintable()
        name.encode()
    assert shown("a\nb") == "a\\nb"


def test_the_protocol_keeps_outliers_out_of_training() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    official = rng.uniform(size=300) < 0.4
    options = {"seed": 0, "val_fraction": 0.2}
    with_test = split("folders", labels, official, 0, **options)
    assert sorted(with_test.test) == np.flatnonzero(official).tolist()
    assert set(labels[np.concatenate([with_test.train, with_test.val])]) == {0}
    without = split("folders", labels, None, 0, **options)
    assert set(np.flatnonzero(labels != 0)) < set(without.test.tolist())
    no_good = official & (labels != 0)
    parts = split("folders", labels, no_good, 0, **options)
    assert (labels[parts.test] == 0).any() and set(np.flatnonzero(no_good)) < set(
        parts.test.tolist()
    )
    flat = split("folders", np.zeros(50, np.int64), None, 0, **options)
    assert not flat.is_outlier.any() and len(flat.test) == 10 and len(flat.val) == 8


def test_a_run_on_mvtec_style_images(run_here: Run, tmp_path: Path) -> None:
    write_images(tmp_path / "own", MVTEC, channels=3)
    (tmp_path / "own" / "test" / "hole" / "torn.png").write_bytes(b"\x89PNG")
    result = run_here(
        *("method=pca", "data=images", f"data.root={tmp_path / 'own'}", "data.on_error=skip"),
        *("data.label='Größe 2'", "pictures=true"),
    )
    assert result["scores"]["residual"]["auroc"] > 0.9
    assert result["n"] == {
        "train": 32,
        "val": 8,
        "test_inliers": 8,
        "test_outliers": 12,
        "skipped": 1,
    }
    assert any("torn.png" in warning for warning in result["warnings"])
    assert result["inlier_name"] == "good" and result["input"]["shape"] == [3, 32, 32]
    # by kind of defect, and under the product's name
    scores = read_scores(tmp_path / "outputs/folders/pca/Größe 2/inlier0/seed0/scores.csv")
    assert result["data"] == "Größe 2" and result["data_verified"] is None
    assert scores.classes == [name.split("/")[1] for name in scores.ids]
    assert {kind: metrics["outliers"] for kind, metrics in result["kinds"].items()} == {
        "hole": 6,
        "scratch": 6,
    }
    column = scores.columns["residual"]
    for kind, metrics in result["kinds"].items():
        outlier_scores = column[[name == kind for name in scores.classes]]
        assert metrics["auroc"] == pytest.approx(
            (outlier_scores[:, None] > column[~scores.is_outlier]).mean()
        )
    pictures = tmp_path / "outputs/folders/pca/Größe 2/inlier0/seed0/figures"
    assert {"kinds.png", "cases.png"} < {picture.name for picture in pictures.iterdir()}

    runs, written = report(tmp_path / "outputs")
    assert not runs.damaged
    assert [run.result.data for run in runs.runs] == ["Größe 2"]
    assert "Größe 2" in written["md"].read_text()


@pytest.mark.parametrize(
    "label", ["mnist", "a/b", "../up", ".hidden", "", "x" * 61, "tab\there", "a:b"]
)
def test_a_label_is_a_name_that_leads_nowhere(label: str) -> None:
    with pytest.raises(ValueError, match="letters, digits|name of a data set"):
        usable_label(label)


def test_without_labelled_outliers_there_are_scores_and_thresholds_but_no_auroc(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    write_images(tmp_path / "own", {"": 130})
    options = (
        "method=knn",
        "data=images",
        f"data.root={tmp_path / 'own'}",
        f"output={tmp_path / 'outputs'}",
    )
    for message in ("no labelled outliers among the 26 test samples", "complete already"):
        process = command(*options)
        assert process.returncode == 0, process.stderr
        assert message in process.stdout and "distance above" in process.stdout
    (path,) = (tmp_path / "outputs").rglob("result.json")
    result = json.loads(path.read_text())
    assert result["scores"] == {"distance": None} and result["floor"] == {}
    assert [row["fpr"] for row in result["thresholds"]["at"]] == [0.01, 0.05, 0.1]
    assert result["thresholds"]["held_out"] == 20 and result["thresholds"]["exact"]
    assert len(read_scores(path.parent / "calibration.csv")) == 20
    assert {picture.name for picture in (path.parent / "figures").iterdir()} == {
        "scores.png",
        "cases.png",
    }

    runs, written = report(tmp_path / "outputs")
    assert not runs.runs and len(runs.unmeasured) == 1
    assert "No labelled outliers" in written["md"].read_text()

    sweep = command("-m", *options, "seed=0,1")
    assert sweep.returncode == 0, sweep.stderr
    assert "2 cells: 1 done, 1 complete" in sweep.stdout


def test_another_folder_is_another_run(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        write_images(tmp_path / name, {"train/good": 20, "test/odd": 4})
    options = ("method=pca", "data=images", f"output={tmp_path / 'outputs'}")
    assert command(*options, f"data.root={tmp_path / 'one'}").returncode == 0
    process = command(*options, f"data.root={tmp_path / 'two'}")
    assert (
        process.returncode == 2
        and "data.root" in process.stderr
        and len(process.stderr.splitlines()) == 1
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "data=images needs data.root"),
        (("data.root=nowhere",), "data.root=nowhere: no such folder"),
        (("data.root={root}", "inlier=bad"), "no such class in images; Choose from: good, odd"),
        (("data.root={root}", "inlier=odd"), "no training images of it, only of good"),
        (("data.root={root}", "data.on_error=ignore"), "data.on_error=ignore"),
        (
            ("data.root={root}", "method=ocsvm", "select=oracle", "protocol=p1", "data.size=4"),
            "data.size=4",
        ),
    ],
)
def test_bad_input_is_one_line_before_anything_is_created(
    command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    options: tuple[str, ...],
    message: str,
) -> None:
    write_images(tmp_path / "own", {"train/good": 20, "test/odd": 4})
    process = command(
        "data=images",
        f"output={tmp_path / 'outputs'}",
        *(o.format(root=tmp_path / "own") for o in options),
    )
    assert process.returncode == 2
    assert message in process.stderr and len(process.stderr.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()
