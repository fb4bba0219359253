"""Files that come: each is scored once and whole, nothing is lost, and a change is said."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from noveltylab.errors import UserError
from noveltylab.predict import __main__ as predict
from noveltylab.predict import watch as module
from noveltylab.predict.request import parse
from noveltylab.predict.watch import Watched, Watcher
from noveltylab.run.lock import locked
from tests.conftest import run_in
from tests.formats import write_images
from tests.predict.test_predict import rows_of, trained

#: Ends as soon as every file that is there is scored.
ONCE = ("every=0", "idle=0")


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(
        tmp_path_factory.mktemp("images") / "own",
        {"train/good": 160, "test/good": 100, "test/odd": 30},
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOVELTYLAB_CACHE", str(root / "cache"))
        patch.setattr("noveltylab.run.pipeline.draw", lambda *_: None)
        options = (f"data.root={image_folder}", "protocol.val_fraction=0.4", "select=last")
        return trained(run_in(root), root / "outputs", "pca", "data=images", *options)


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to watch, in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("new").mkdir()
    return Path("new")


def come(new: Path, images: list[Path]) -> None:
    """Copies images one after the other, each later than the last."""
    first = len(list(new.iterdir()))
    for number, path in enumerate(images, first):
        target = new / f"{number:04}.png"
        shutil.copyfile(path, target)
        os.utime(target, ns=(0, 10**18 + number * 10**9))


def images_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def lines(path: Path = Path("watch.csv")) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def watch(run_folder: Path, *options: str) -> int:
    return predict.main([f"run={run_folder}", "--watch", "new/", *ONCE, *options])


def test_files_are_scored_as_predict_does_and_once(
    run_folder: Path, image_folder: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    come(new, images_of(image_folder / "test/odd")[:5])
    come(new, images_of(image_folder / "test/good")[:5])
    assert watch(run_folder) == 0
    screen = capsys.readouterr().out
    assert "watching new/ every 0 s; Ctrl-C ends" in screen and "10 files scored, " in screen
    assert predict.main([f"run={run_folder}", "input=new"]) == 0
    rows = rows_of(Path("scores.csv"))
    assert [row["file"] for row in lines()] == [f"{number:04}.png" for number in range(10)]
    for row in lines():
        for column in ("score", "p_value", "decision"):
            assert row[column] == rows[f"new/{row['file']}"][column]
    novel = [row for row in lines() if row["decision"] == "novel"]
    assert novel and all(f" {row['file']}\n" in screen for row in novel)
    # again: nothing is new; then one more, and one that was written over
    before = Path("watch.csv").read_bytes()
    assert watch(run_folder) == 0
    assert Path("watch.csv").read_bytes() == before
    assert "10 rows of before in watch.csv" in capsys.readouterr().out
    (new / "deep").mkdir()
    shutil.copyfile(images_of(image_folder / "test/good")[7], new / "deep/er.png")
    shutil.copyfile(images_of(image_folder / "test/good")[8], new / "0002.png")
    assert watch(run_folder) == 0
    assert Path("watch.csv").read_bytes().startswith(before)
    assert sorted(row["file"] for row in lines()[10:]) == ["0002.png", "deep/er.png"]
    assert sorted(path.name for path in Path().iterdir()) == ["new", "scores.csv", "watch.csv"]


def test_a_watch_that_was_killed_goes_on_to_the_same_rows(
    run_folder: Path, image_folder: Path, new: Path
) -> None:
    come(new, images_of(image_folder / "test/good")[:30])
    assert watch(run_folder) == 0
    whole = Path("watch.csv").read_bytes()
    # cut anywhere: in a row, behind one, and behind the first line
    ends = [whole.find(b"\n") + 1, len(whole) // 2, whole.rfind(b"\n", 0, -1) + 1, len(whole) - 1]
    kept = [row | {"time": ""} for row in lines()]
    for end in ends:
        Path("watch.csv").write_bytes(whole[:end])
        assert watch(run_folder) == 0
        assert [row | {"time": ""} for row in lines()] == kept
    Path("watch.csv").write_bytes(b"")
    assert watch(run_folder) == 0
    assert [row | {"time": ""} for row in lines()] == kept
    # half a row whose file is gone is taken away, and none is written over it
    whole = Path("watch.csv").read_bytes()
    Path("watch.csv").write_bytes(whole + b"gone.png,0.1,0.5,inlier")
    assert watch(run_folder) == 0
    assert Path("watch.csv").read_bytes() == whole


def watcher_of(run_folder: Path) -> Watcher:
    from noveltylab.predict.load import load_detector

    request = parse([f"run={run_folder}", "--watch=new"])
    return module._watcher(request, load_detector(run_folder), Watched())


def taken(watcher: Watcher, paths: list[Path]) -> list[list[str] | None]:
    return [watcher.take(row) for row in watcher.detector.stream(paths)]


def test_what_is_still_written_is_waited_for(
    run_folder: Path, image_folder: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = images_of(image_folder / "test/good")[0].read_bytes()
    watcher = watcher_of(run_folder)
    path = new / "a.png"
    path.write_bytes(content[:40])
    assert watcher.due() == []  # seen for the first time
    path.write_bytes(content[:60])
    assert watcher.due() == []  # it has grown
    assert watcher.due() == [path]  # its writer pauses
    assert taken(watcher, [path]) == [None]
    path.write_bytes(content)
    # changed between the look and the score
    assert taken(watcher, [path]) == [None]
    assert watcher.due() == []
    assert watcher.due() == [path]
    (cells,) = taken(watcher, [path])
    assert cells is not None and cells[3] in ("inlier", "novel")
    assert watcher.due() == [] and watcher.result.files == 1
    # one that stays as it is counts in the end
    (new / "torn.png").write_bytes(content[:40])
    assert watcher.due() == []
    monkeypatch.setattr(module, "PATIENCE", 0)
    (cells,) = taken(watcher, watcher.due())
    assert cells is not None and cells[3].startswith("unreadable: ")
    assert watcher.due() == [] and watcher.result.unreadable == 1
    # gone between two looks
    (new / "b.png").write_bytes(content)
    assert watcher.due() == []
    (new / "b.png").unlink()
    assert watcher.due() == [] and watcher.waiting == {}


WATCH = """
import sys
from noveltylab.predict.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 0), ("SIGTERM", 143), ("SIGKILL", -9)])
def test_a_signal_ends_it_and_no_row_is_lost(
    run_folder: Path, image_folder: Path, new: Path, number: str, code: int
) -> None:
    if not hasattr(signal, "SIGKILL"):
        pytest.skip("no such signals")
    command = [sys.executable, "-c", WATCH, f"run={run_folder}", "--watch", "new", "every=0.05"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    come(new, images_of(image_folder / "test/good")[:3])
    patience = time.monotonic() + 120
    while not Path("watch.csv").exists() or len(lines()) < 3:
        assert process.poll() is None and time.monotonic() < patience, process.communicate()
        time.sleep(0.05)
    # nobody else adds rows meanwhile
    assert watch(run_folder) == 2
    process.send_signal(getattr(signal, number))
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, "")
    if number != "SIGKILL":
        assert "3 files scored, " in output and "written to watch.csv" in output
        assert not Path(".watch.csv.lock").exists()
    rows = lines()
    come(new, images_of(image_folder / "test/good")[3:6])
    assert watch(run_folder) == 0
    assert lines()[:3] == rows and len(lines()) == 6
    assert not Path(".watch.csv.lock").exists()


# Changes.


def brighter(path: Path, target: Path, add: int) -> None:
    pixels = np.asarray(Image.open(path)).astype(int) + add
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target)


def test_another_light_is_said_and_good_images_are_no_change(
    run_folder: Path, image_folder: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = images_of(image_folder / "test/good")
    come(new, good[:60])
    assert watch(run_folder) == 0
    screen = capsys.readouterr().out
    assert "no change seen; where there is none, at most 1 % of watches ever speak of one" in screen
    assert {row["changed"] for row in lines()} == {""}
    Path("bright").mkdir()
    for path in good[60:]:
        brighter(path, Path("bright") / path.name, 60)
    come(new, images_of(Path("bright")))
    assert watch(run_folder) == 0
    screen = capsys.readouterr().out
    assert "CHANGED (all) at " in screen and "CHANGED (all) since " in screen
    first = next(number for number, row in enumerate(lines()) if row["changed"])
    assert 60 < first < 95
    assert f"CHANGED (all) since {first:04}.png" in screen
    assert float(lines()[first]["wealth_all"]) >= 200
    # it is still said after the watch was begun anew
    assert watch(run_folder) == 0
    assert f"CHANGED (all) since {first:04}.png" in capsys.readouterr().out


def test_odd_images_are_no_change_of_the_good_ones(
    run_folder: Path, image_folder: Path, new: Path
) -> None:
    good, odd = images_of(image_folder / "test/good"), images_of(image_folder / "test/odd")
    mixed = [path for pair in zip(good[:30], odd, strict=True) for path in pair]
    come(new, mixed)
    assert watch(run_folder, "fpr=0.1") == 0
    assert all("good" not in row["changed"] for row in lines())
    assert sum(row["decision"] == "novel" for row in lines()) >= 20


# Refusals.

BAD = [
    (["every=1"], "every= goes with --watch"),
    (["--watch"], "watch: has no value; e.g. watch=new/"),
    (["--watch", "nowhere"], "--watch nowhere: no such folder"),
    (["--watch", "new", "input=new"], "input= cannot stand beside --watch"),
    (["--watch", "new", "fdr=0.1"], "fdr= cannot stand beside --watch"),
    (["--watch", "new", "groups=a.csv"], "groups= cannot stand beside --watch"),
    (["--watch", "new", "--html"], "--html cannot stand beside --watch"),
    (["--watch", "new", "every=soon"], "every=soon: not a number of seconds"),
    (["--watch", "new", "idle=-1"], "idle=-1: not a number of seconds"),
    (["--watch", "new", "alarm=2"], "alarm=2: a share strictly between 0 and 1"),
    (["--watch", "new", "fpr=0.001"], "64 held-out inliers cannot give p <= 0.001"),
    (["--watch", "new", "confidence=0.99"], "90 are needed"),
    (["--watch", "new", "output=mine.csv"], "mine.csv: is there already (was not written by"),
    (["--watch", "new", "output=scores.csv"], "scores.csv: is there already (was not written"),
    (["--watch", "new", "output=link.csv"], "link.csv: is there already (was not written by"),
    (["--watch", "new", "output=damaged.csv"], "damaged.csv: line 2 is damaged"),
]


def test_bad_input_is_one_line_and_nothing_is_created(
    run_folder: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.csv").write_text("file,price\n")
    Path("scores.csv").write_text("file,score,p_value,decision\n")
    Path("link.csv").symlink_to("mine.csv")
    Path("damaged.csv").write_text(",".join(module.COLUMNS) + "\na.png,1\n")
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    for arguments, message in BAD:
        assert predict.main([f"run={run_folder}", *arguments]) == 2, message
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error
        assert before == {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}


def test_rows_of_another_rule_or_watcher_are_not_added_to(
    run_folder: Path, image_folder: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    come(new, images_of(image_folder / "test/good")[:2])
    assert watch(run_folder) == 0
    before = Path("watch.csv").read_bytes()
    assert watch(run_folder, "fpr=0.1") == 2
    assert "line 2 is of run " in capsys.readouterr().err
    with locked(Path("watch.csv")):
        assert watch(run_folder) == 2
    assert "another process watches with it" in capsys.readouterr().err
    assert Path("watch.csv").read_bytes() == before


def test_folds_are_not_watched(
    run_here: Callable[..., dict[str, Any]],
    tmp_path: Path,
    image_folder: Path,
    new: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("noveltylab.run.pipeline.draw", lambda *_: None)
    options = (f"data.root={image_folder}", "data.limit_train=40", "protocol.folds=40")
    folder = trained(run_here, tmp_path / "outputs", "knn", "data=images", *options)
    with pytest.raises(UserError, match="held each out in folds"):
        module.watch(parse([f"run={folder}", "--watch", "new"]), Watched())
    assert not Path("watch.csv").exists()
