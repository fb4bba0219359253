"""Groups of files: each is compared with the held-out inliers of its own, and the rate holds in each."""

import csv
import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import betabinom

from noveltylab.errors import UserError
from noveltylab.predict import __main__ as predict
from noveltylab.predict.decisions import Members
from noveltylab.predict.groups import Groups, as_groups, calibrations, check_files, read_groups
from noveltylab.predict.load import load_detector
from noveltylab.results.scores import read_scores
from noveltylab.scoring.conformal import Calibration
from tests.conftest import run_in
from tests.formats import write_images
from tests.predict.test_predict import rows_of, trained

#: Mean and deviation of the scores of good images, by camera: the second one is noisier.
CAMERAS = {"left": (1.0, 0.1), "right": (1.5, 0.5)}


def drawn(rng: np.random.Generator, count: int) -> tuple[np.ndarray[Any, Any], Any]:
    """Scores of good images of two cameras, and the camera of each."""
    cameras = rng.choice(list(CAMERAS), count, p=[0.7, 0.3])
    scores = np.array([rng.normal(*CAMERAS[camera]) for camera in cameras])
    return scores, cameras


def test_the_rate_holds_within_each_group_and_not_for_all_together() -> None:
    """Over draws of held-out inliers: the false positives among fresh ones of each camera follow
    their own beta-binomial law, within bounds that a fair rule leaves once in a thousand times.
    """
    rng = np.random.default_rng(0)
    fpr, fresh_count, outside = 0.1, 100, 0
    pooled = {camera: [] for camera in CAMERAS}  # type: ignore[var-annotated]
    for _ in range(60):
        held_out, cameras = drawn(rng, 300)
        by_camera = {camera: Calibration(held_out[cameras == camera]) for camera in CAMERAS}
        members = Members(Groups("test", "camera"), by_camera)
        for camera, (mean, deviation) in CAMERAS.items():
            fresh = rng.normal(mean, deviation, fresh_count)
            _, novel, _ = members.decide([camera] * fresh_count, fresh, fpr, None)
            n = len(by_camera[camera])
            k = by_camera[camera].allowed(fpr)
            low, high = betabinom.ppf([0.0005, 0.9995], fresh_count, k, n + 1 - k)
            outside += not low <= sum(novel) <= high  # type: ignore[arg-type]  # all are decided
            pooled[camera].append((Calibration(held_out).p_values(fresh) <= fpr).mean())
    assert outside <= 2
    # without groups one camera pays for the other
    assert np.mean(pooled["left"]) < 0.01 and np.mean(pooled["right"]) > 0.25


def test_a_confidence_holds_within_each_group() -> None:
    rng = np.random.default_rng(1)
    over = dict.fromkeys(CAMERAS, 0)
    draws = 300
    for _ in range(draws):
        held_out, cameras = drawn(rng, 300)
        for camera, (mean, deviation) in CAMERAS.items():
            calibration = Calibration(held_out[cameras == camera])
            threshold = calibration.threshold(0.1, 0.9)
            fresh = rng.normal(mean, deviation, 4000)
            over[camera] += bool((fresh > threshold).mean() > 0.11)
    # at most 10 % of the draws, and four deviations of a binomial count
    assert max(over.values()) <= draws * 0.1 + 4 * np.sqrt(draws * 0.09)


def test_p_values_within_groups_are_those_of_crepes_and_of_the_definition() -> None:
    base = pytest.importorskip("crepes.base")
    rng = np.random.default_rng(2)
    held_out, cameras = drawn(rng, 80)
    scores, of_score = drawn(rng, 40)
    # ties as well
    held_out, scores = held_out.round(1), scores.round(1)
    names = [f"{number}.png" for number in range(80)]
    groups = as_groups(dict(zip(names, cameras, strict=True)))
    members = Members(groups, calibrations(groups, names, held_out, None))
    p_values, _, _ = members.decide(of_score.tolist(), scores, 0.1, None)
    theirs = base.p_values_batch(held_out, scores, cameras, of_score, smoothing=False)
    assert np.allclose(p_values, theirs, atol=1e-12)
    for p, score, camera in zip(p_values, scores, of_score, strict=True):
        own = held_out[cameras == camera]
        assert p == pytest.approx((1 + (own >= score).sum()) / (1 + len(own)), abs=1e-12)


# The CSV file.


def write_groups(path: Path, rows: dict[str, str], column: str = "camera") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", column])
        writer.writerows(rows.items())
    return path


def test_a_file_is_found_however_its_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = {
        "new/a.png": "A",
        "./new/b.png": "B",
        str(tmp_path / "new/c.png"): "C",
        "d.png": "D",
        "train/good/e.png": "E",
    }
    groups = read_groups(write_groups(tmp_path / "lists/groups.csv", rows))
    assert groups.column == "camera"
    for name in "abc":
        for path in (Path(f"new/{name}.png"), tmp_path / f"new/{name}.png"):
            assert groups.of_file(path) == name.upper()
    # from the CSV file's own folder
    assert groups.of_file(Path("lists/d.png")) == "D"
    assert groups.of_held_out("train/good/e.png", None) == "E"
    assert groups.of_held_out("c.png", tmp_path / "new") == "C"
    assert groups.of_file(Path("elsewhere/a.png")) is None


BAD = [
    ("name,camera\na.png,A\n", None, "has no column `file`, only name, camera"),
    ("file\na.png\n", None, "has the columns file; say which one has the groups"),
    ("file,camera,shift\na,A,1\n", None, "say which one has the groups, e.g. group=camera"),
    ("file,camera\na,A\n", "line", "group=line: groups.csv has no such column"),
    ("file,camera\na.png,\n", None, "line 2 lacks a file or its camera"),
    ("file,camera\na.png,A\n\na.png,B\n", None, "line 4: a.png is of A and of B"),
    ("", None, "is no CSV file"),
    ('file,camera\n"a', None, "is no CSV file"),
]


@pytest.mark.parametrize(("text", "column", "message"), BAD)
def test_bad_groups_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    column: str | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("groups.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_groups(Path("groups.csv"), column)
    with pytest.raises(UserError, match="cannot be read"):
        read_groups(Path("none.csv"))


def test_groups_that_are_too_small_say_what_they_need() -> None:
    groups = as_groups({"a.png": "A", "b.png": "B", "c.png": "C"})
    known = {"A": Calibration(np.arange(30.0)), "B": Calibration(np.arange(12.0))}
    paths = [Path("a.png"), Path("b.png"), Path("c.png")]
    with pytest.raises(UserError, match="fpr=0.05 needs 19 .* each group, and B has 12, C has 0;"):
        check_files(groups, paths, known, 0.05, None)
    with pytest.raises(UserError, match="fpr=0.05 with 95 % confidence needs 59 .*A has 30, B has"):
        check_files(groups, paths, known, 0.05, 0.95)
    check_files(groups, paths[:1], known, 0.05, None)
    with pytest.raises(UserError, match=r"2 files have no group \(d.png, e.png\)"):
        check_files(groups, [*paths, Path("d.png"), Path("e.png")], known, 0.05, None)


# The command.


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(
        tmp_path_factory.mktemp("images") / "own",
        {"train/good": 160, "test/good": 12, "test/odd": 12},
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOVELTYLAB_CACHE", str(root / "cache"))
        patch.setattr("noveltylab.run.pipeline.draw", lambda *_: None)
        options = (f"data.root={image_folder}", "protocol.val_fraction=0.5", "select=last")
        return trained(run_in(root), root / "outputs", "pca", "data=images", *options)


def camera_of(path: Path) -> str:
    return "left" if int(path.stem) % 4 else "=right"


@pytest.fixture
def groups_file(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cameras of held-out images by their ids, of new ones by their full paths."""
    monkeypatch.chdir(tmp_path)
    rows = {}
    for path in sorted(image_folder.rglob("*.png")):
        name = path.relative_to(image_folder).as_posix()
        rows[name if name.startswith("train") else str(path)] = camera_of(path)
    return write_groups(tmp_path / "cameras.csv", rows)


def test_predict_within_groups(
    run_folder: Path,
    image_folder: Path,
    groups_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("pandas")
    arguments = [f"run={run_folder}", f"input={image_folder / 'test'}", "groups=cameras.csv"]
    assert predict.main([*arguments, "fpr=0.2", "--html"]) == 0
    held_out = read_scores(run_folder / "calibration.csv")
    primary = json.loads((run_folder / "result.json").read_text())["primary"]
    of_held_out = np.array([camera_of(Path(name)) for name in held_out.ids])
    rows = rows_of(Path("scores.csv"))
    assert len(rows) == 24
    for name, row in rows.items():
        camera = camera_of(Path(name))
        assert row["camera" if "camera" in row else "group"].lstrip("'") == camera
        own = Calibration(held_out.columns[primary][of_held_out == camera])
        assert float(row["p_value"]) == own.p_values([float(row["score"])])[0]
        assert row["decision"] == ("novel" if float(row["p_value"]) <= 0.2 else "inlier")
    sentence = "At most 0.2 of inliers of each camera are called novel on average."
    assert sentence in capsys.readouterr().out
    page = html.unescape(Path("scores.html").read_text())
    assert sentence in page and "(camera left)" in page
    assert "80 held-out inliers, each within its camera" in page
    # the same in Python
    table = load_detector(run_folder).frame(
        str(image_folder / "test"), fpr=0.2, groups="cameras.csv"
    )
    assert table.group.tolist() == [camera_of(Path(name)) for name in rows]
    assert table.p_value.tolist() == [float(row["p_value"]) for row in rows.values()]
    decisions = ["novel" if novel else "inlier" for novel in table.novel]
    assert decisions == [row["decision"] for row in rows.values()]
    # one of before is replaced
    assert predict.main(arguments[:2]) == 0


@pytest.mark.usefixtures("groups_file")
def test_predict_refuses_groups_that_promise_nothing(
    run_folder: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"run={run_folder}", f"input={image_folder / 'test'}", "groups=cameras.csv"]
    refusals = {
        "fpr=0.01": "fpr=0.01 needs 99 held-out inliers in each camera, and ",
        "fdr=0.1": "groups= goes with fpr=, not with fdr=",
        "group=line": "group=line: cameras.csv has no such column, only file, camera",
        "group=": "group: has no value; e.g. group=camera",
    }
    for option, message in refusals.items():
        assert predict.main([*arguments, option]) == 2
        assert message in capsys.readouterr().err
    detector = load_detector(run_folder)
    with pytest.raises(UserError, match="not with fdr="):
        detector.frame(str(image_folder / "test"), fdr=0.1, groups="cameras.csv")
    with pytest.raises(UserError, match="an array has none"):
        detector.frame(np.zeros((1, 1, 32, 32), np.uint8), groups="cameras.csv")
    with pytest.raises(UserError, match=r"80 held-out inliers have no group \(train/good/"):
        detector.frame(str(image_folder / "test"), groups={"a.png": "A"})
    assert not Path("scores.csv").exists()


def test_predict_with_a_confidence(
    run_folder: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    arguments = [f"run={run_folder}", f"input={image_folder / 'test'}", "confidence=0.95"]
    assert predict.main([*arguments, "fpr=0.05", "--html"]) == 0
    rows = rows_of(Path("scores.csv")).values()
    # of 80 held-out inliers the second highest is too low
    assert all((float(row["p_value"]) < 2 / 81) == (row["decision"] == "novel") for row in rows)
    sentence = (
        "At most 0.05 of inliers are called novel, with 95 % confidence over the draw of the "
        "held-out ones; 0.012 on average over such draws."
    )
    screen = capsys.readouterr().out
    assert sentence in screen and "novel by fpr=0.05 with 95 % confidence" in screen
    assert sentence in html.unescape(Path("scores.html").read_text())
    assert {row["note"] for row in rows} == {sentence}
    table = load_detector(run_folder).frame(str(image_folder / "test"), confidence=0.95)
    assert table.novel.tolist() == [row["decision"] == "novel" for row in rows]
    # too few: nothing is decided, and how many it takes is said
    assert predict.main([*arguments, "fpr=0.01"]) == 0
    assert "299 are needed; fpr=0.037 can be decided" in capsys.readouterr().out
    assert predict.main([*arguments, "fdr=0.1"]) == 2
    assert "confidence= goes with fpr=, not with fdr=" in capsys.readouterr().err


def test_folds_have_neither_groups_nor_a_confidence(
    run_here: Callable[..., dict[str, Any]],
    tmp_path: Path,
    image_folder: Path,
    groups_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("noveltylab.run.pipeline.draw", lambda *_: None)
    options = (f"data.root={image_folder}", "data.limit_train=40", "protocol.folds=40")
    folder = trained(run_here, tmp_path / "outputs", "knn", "data=images", *options)
    for option in ("confidence=0.95", f"groups={groups_file}"):
        assert predict.main([f"run={folder}", f"input={image_folder / 'test'}", option]) == 2
        assert "in folds" in capsys.readouterr().err
    assert not Path("scores.csv").exists()
