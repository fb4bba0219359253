"""The command that scores new files: the same scores as the run's, any input, broken files, bounded
memory, the page.
"""

import base64
import csv
import html
import io
import json
import math
import os
import re
import shutil
import struct
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from noveltylab.errors import UserError
from noveltylab.predict import __main__ as predict
from noveltylab.predict.detector import Detector
from noveltylab.predict.inputs import Reader, read_item
from noveltylab.predict.load import load_detector
from noveltylab.predict.paths import expand
from noveltylab.results.scores import read_scores
from noveltylab.scoring.conformal import Calibration
from tests.conftest import forbid, run_in
from tests.data.test_decode import hostile
from tests.formats import write_dcase, write_images
from tests.methods.conftest import SMALL

Rows = dict[str, dict[str, str]]


def trained(go: Callable[..., dict[str, Any]], output: Path, method: str, *options: str) -> Path:
    """The folder of a short run."""
    small = [f"method.{key}={str(value).lower()}" for key, value in SMALL.get(method, {}).items()]
    go(
        f"method={method}",
        f"output={output}",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=1",
        *small,
        *options,
    )
    (path,) = output.rglob("result.json")
    return path.parent


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(
        tmp_path_factory.mktemp("images") / "own",
        {"train/good": 120, "test/good": 12, "test/odd": 12},
        channels=3,
    )


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("noveltylab.run.pipeline.draw", lambda *_: None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def rows_of(path: Path) -> Rows:
    with open(path, newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("method", ["ca_entropy", "pca"])
def test_files_get_the_scores_of_the_run(
    run_here: Callable[..., dict[str, Any]],
    tmp_path: Path,
    image_folder: Path,
    method: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = trained(
        run_here,
        tmp_path / "outputs",
        method,
        "data=images",
        f"data.root={image_folder}",
        "select=last",
    )
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert predict.main([f"run={folder}", f"input={image_folder / 'test'}", "fpr=0.1"]) == 0
    rows, run = rows_of(Path("scores.csv")), read_scores(folder / "scores.csv")
    assert len(rows) == len(run) == 24
    primary = json.loads((folder / "result.json").read_text())["primary"]
    calibration = Calibration(read_scores(folder / "calibration.csv").columns[primary])
    for name, score in zip(run.ids, run.columns[primary], strict=True):
        row = rows[str(image_folder / name)]
        assert float(row["score"]) == pytest.approx(score, rel=1e-5, abs=1e-6)
        p = calibration.p_values([float(row["score"])])[0]
        assert float(row["p_value"]) == p
        assert row["decision"] == ("novel" if p <= 0.1 else "inlier")
    output = capsys.readouterr().out
    assert "24 files scored" in output and "novel by p <= 0.1" in output
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("contrast", ["gcn", "gcn_image"])
def test_a_run_on_digits_scores_pictures_of_digits(
    run_here: Callable[..., dict[str, Any]], tmp_path: Path, contrast: str
) -> None:
    """The run's own preprocessing: enlarged from 8 to 32 pixels, contrast normalised, the mean
    image subtracted.
    """
    from noveltylab.data import digits

    options = ("inlier=3", f"data.contrast={contrast}", "data.subtract_mean=true")
    folder = trained(run_here, tmp_path / "outputs", "pca", *options)
    run, samples = (
        read_scores(folder / "scores.csv"),
        digits.read(None, verify=True, download=False),
    )
    for name in run.ids[:20]:
        number = samples.ids.tolist().index(name)
        pixels = samples.images[number, 0].numpy()
        # as colour, as many tools save them
        Image.fromarray(np.repeat(pixels[..., None], 3, 2)).save(f"{number:04d}.png")
    assert predict.main([f"run={folder}", "input=./*.png"]) == 0
    rows = rows_of(Path("scores.csv"))
    for name, score in list(zip(run.ids, run.columns["residual"], strict=True))[:20]:
        number = samples.ids.tolist().index(name)
        assert float(rows[f"{number:04d}.png"]["score"]) == pytest.approx(score, rel=1e-5, abs=1e-6)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """One run for all tests, which leave it as it is."""
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOVELTYLAB_CACHE", str(root / "cache"))
        return trained(
            run_in(root), root / "outputs", "pca", "data=images", f"data.root={image_folder}"
        )


@pytest.mark.posix
def test_broken_huge_empty_and_hostile_files(
    run_folder: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = Path("new")
    new.mkdir()
    bad = {path.name for path, _ in hostile(new).values()}
    shutil.copy(image_folder / "test/good/0000.png", "new/fine.png")
    shutil.copy(image_folder / "test/good/0001.png", "new/a\nb,=\x1b[31m.png")
    Image.new("L", (9000, 7000), 90).save("new/large.png")
    (new / "notes.txt").write_text("not an image")
    assert predict.main([f"run={run_folder}", "input=new"]) == 1
    rows = rows_of(Path("scores.csv"))
    assert len(rows) == len(bad) - 1 + 3  # a folder named x.png is a folder
    good = {name for name, row in rows.items() if not row["decision"].startswith("unreadable: ")}
    assert good == {"new/fine.png", "new/large.png", "new/a\\nb,=\\x1b[31m.png"}
    assert all(rows[name]["p_value"] for name in good)
    output = capsys.readouterr().out
    assert "11 files cannot be read:" in output and "\x1b[31m" not in output
    assert "new/bomb.png: too many pixels: " in output
    for name in set(rows) - good:
        assert f"{name}: " in output and rows[name]["score"] == ""


def test_benjamini_hochberg_over_all_files(run_folder: Path, image_folder: Path) -> None:
    from scipy.stats import false_discovery_control

    assert (
        predict.main(
            [
                f"run={run_folder}",
                f"input={image_folder / 'test'}",
                "fdr=0.3",
                "output=deep/er/out.csv",
            ]
        )
        == 0
    )
    rows = rows_of(Path("deep/er/out.csv")).values()
    adjusted = false_discovery_control([float(row["p_value"]) for row in rows])
    assert [row["decision"] == "novel" for row in rows] == (adjusted <= 0.3 + 1e-9).tolist()
    assert {path.name for path in Path("deep/er").iterdir()} == {"out.csv"}


@pytest.mark.posix
@pytest.mark.parametrize("method", ["pca", "knn", "oled"])
def test_the_page_shows_the_most_novel_first(
    run_here: Callable[..., dict[str, Any]], tmp_path: Path, image_folder: Path, method: str
) -> None:
    folder = trained(
        run_here, tmp_path / "outputs", method, "data=images", f"data.root={image_folder}"
    )
    hostile_name = "<img src=x onerror=alert(1)>.png"
    shutil.copy(image_folder / "test/odd/0000.png", hostile_name)
    (Path("torn.png")).write_bytes(b"torn")
    for path in (image_folder / "test").rglob("*.png"):
        shutil.copy(path, f"{path.parent.name}{path.name}")
    assert predict.main([f"run={folder}", "input=.", "--html"]) == 1
    page = Path("scores.html").read_text()
    rows = [row for row in rows_of(Path("scores.csv")).values() if row["score"]]
    order = [row["file"] for row in sorted(rows, key=lambda row: -float(row["score"]))]
    names = re.findall(r'<p class="name">(.*?)</p>', page)
    assert (
        len(names) == 25
        and [name.replace("&lt;", "<").replace("&gt;", ">") for name in names] == order
    )
    assert "<img src=x" not in page and "torn.png" in page
    pictures = {
        "pca": ["error map"],
        "knn": [],
        "oled": ["masked image", "reconstruction", "activation map", "error map"],
    }
    assert re.findall('alt="(.*?)"', page) == ["image", *pictures[method]] * 25
    lead = {
        "pca": "Right of each image: where its reconstruction differs, ",
        "oled": "Right of each image: masked image, reconstruction, activation map, and where its reconstruction differs, ",
    }
    assert lead.get(method, "<h1>") in page
    assert (
        "default-src 'none'; img-src data:" in page.replace("&#39;", "'")
        and "http" not in page.split("<body>")[1]
    )


def test_the_page_shows_maps_on_the_files_as_they_are(
    run_here: Callable[..., dict[str, Any]], tmp_path: Path, image_folder: Path
) -> None:
    folder = trained(
        run_here,
        tmp_path / "outputs",
        "patchcore",
        "data=images",
        f"data.root={image_folder}",
        "data.size=32",
        "method.input_size=64",
    )
    with Image.open(image_folder / "test/good/0000.png") as picture:
        wide = np.array(picture.convert("L").resize((60, 30)))
    wide[2:12, 44:58] = 255
    Path("seen").mkdir()
    Image.fromarray(wide).save("seen/wide.png")
    assert predict.main([f"run={folder}", "input=seen", "--html"]) == 0
    page = Path("scores.html").read_text()
    assert re.findall('alt="(.*?)"', page) == ["image", "novelty map"]
    assert "Right of each image: the same with a glow where it is novel, one scale for all." in page
    contents = re.findall('base64,([^"]+)', page)
    image, glowing = [Image.open(io.BytesIO(base64.b64decode(text))) for text in contents]
    assert image.size == glowing.size == (60, 30)
    assert image.getpixel((50, 10)) == (255, 255, 255)
    colours = np.asarray(glowing).astype(int)
    coloured = np.argwhere(np.ptp(colours, axis=2) > 60)
    # the glow lies where the bright spot was put, above the middle and on the right
    row, column = np.median(coloured, axis=0)
    assert row < 15 and column > 36


def test_memory_is_bounded(
    run_folder: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many files there are, few images are alive at once."""
    import gc

    from noveltylab.predict import detector
    from noveltylab.scoring import batches

    monkeypatch.setattr(detector, "JOB", 8)
    monkeypatch.setitem(batches.ALIKE, "cpu", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    paths = sorted((image_folder / "train").rglob("*.png")) * 5
    alive = 0
    for count, _ in enumerate(load_detector(run_folder).stream(iter(paths))):
        if count % 100 == 50:
            alive = max(
                alive,
                sum(
                    type(o) is torch.Tensor and o.shape[-3:] == (3, 32, 32)
                    for o in gc.get_objects()
                ),
            )
    assert 0 < alive < 80


def test_threads_of_their_own_score_alike(run_folder: Path, image_folder: Path) -> None:
    """The rows do not depend on how many threads share the files.

    Torch keeps its threads afterwards.
    """
    paths = sorted(image_folder.rglob("*.png"))
    before, rows_by_threads = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            rows_by_threads.append(
                [
                    (row.name, row.score, row.error)
                    for row in load_detector(run_folder).stream(iter(paths * 3))
                ]
            )
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert [row[0] for row in rows_by_threads[0]] == [row[0] for row in rows_by_threads[1]] and len(
        rows_by_threads[0]
    ) == 3 * len(paths)
    for one, three in zip(*rows_by_threads, strict=True):
        assert one[2] == three[2] and one[1] == pytest.approx(three[1], rel=1e-5, nan_ok=True)


def test_no_held_out_inliers_no_p_values(
    run_here: Callable[..., dict[str, Any]],
    tmp_path: Path,
    image_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("data=images", f"data.root={image_folder}", "protocol.val_fraction=0", "select=last")
    folder = trained(run_here, tmp_path / "outputs", "pca", *options)
    assert predict.main([f"run={folder}", f"input={image_folder / 'test'}", "--html"]) == 0
    rows = rows_of(Path("scores.csv")).values()
    assert {(row["p_value"], row["decision"]) for row in rows} == {("", "")}
    note = "no held-out inliers, so there are no p-values and nothing can be called novel or inlier: 19 are needed"
    for text in (
        capsys.readouterr().out,
        Path("scores.html").read_text(),
        *(row["note"] for row in rows),
    ):
        assert note in text


def write_wav(path: Path, seconds: float = 2.0) -> None:
    rng = np.random.default_rng(0)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 44_100, 0, "NONE", ""))
        file.writeframes((rng.normal(0, 2000, int(44_100 * seconds))).astype("<i2").tobytes())


def test_recordings_of_a_run_on_sound(
    run_here: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    root = tmp_path / "sound"
    write_dcase(root)
    folder = trained(
        run_here,
        tmp_path / "outputs",
        "pca",
        "data=dcase",
        f"data.root={root}",
        "inlier=park",
        "data.verify=false",
    )
    test = sorted(path for path in root.rglob("*.wav") if "evaltest" in str(path))
    write_wav(Path("noise.wav"))
    (Path("torn.wav")).write_bytes(b"RIFF" + struct.pack("<I", 4000) + b"WAVE")
    assert predict.main([f"run={folder}", "input=.", "--html", "output=../out.csv"]) == 1
    rows = rows_of(Path("../out.csv"))
    assert set(rows) == {"noise.wav", "torn.wav"} and "truncated" in rows["torn.wav"]["decision"]
    files = read_scores(folder / "scores_files.csv")
    assert predict.main([f"run={folder}", f"input={test[0].parent}"]) == 0
    expected = dict(zip(files.ids, files.columns["residual"], strict=True))
    seen = {
        Path(name).stem: float(row["score"]) for name, row in rows_of(Path("scores.csv")).items()
    }
    assert expected.keys() <= seen.keys()
    for name, score in expected.items():
        assert seen[name] == pytest.approx(score, rel=1e-4)


def test_a_video_without_its_library_names_the_extra(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    Path("belt.mp4").write_bytes(b"video")
    with pytest.raises(UserError, match=r"pip install 'noveltylab\[video\]'"):
        predict.predict(predict.parse([f"run={run_folder}", "input=belt.mp4"]))
    assert not Path("scores.csv").exists()


def test_frames_of_a_video(
    run_folder: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each frame is scored as a file of the same pixels is; a stand-in for PyAV decodes."""
    import sys
    import types

    stills = [
        Image.open(path).convert("RGB")
        for path in sorted((image_folder / "test/odd").glob("*.png"))
    ]

    class Frame:
        def __init__(self, image: Image.Image) -> None:
            self.image, self.width, self.height = image, *image.size

        def to_ndarray(self, format: str) -> Any:
            assert format == "rgb24"
            return np.asarray(self.image)

    class Container:
        def __enter__(self) -> "Container":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def decode(self, video: int) -> Any:
            yield from map(Frame, stills)
            raise ValueError("the rest is torn")

    monkeypatch.setitem(sys.modules, "av", types.SimpleNamespace(open=lambda path: Container()))
    Path("belt.mp4").write_bytes(b"video")
    assert predict.main([f"run={run_folder}", "input=belt.mp4"]) == 1
    rows = list(rows_of(Path("scores.csv")).values())
    assert [row["file"] for row in rows] == [f"belt.mp4#{number:06d}" for number in range(13)]
    assert rows[-1]["decision"] == "unreadable: the rest is torn"
    assert predict.main([f"run={run_folder}", f"input={image_folder / 'test/odd'}"]) == 0
    stills_scores = [float(row["score"]) for row in rows_of(Path("scores.csv")).values()]
    assert [float(row["score"]) for row in rows[:-1]] == pytest.approx(stills_scores, rel=1e-6)


def test_frames_of_a_real_video(run_folder: Path, image_folder: Path) -> None:
    """Each frame gets the score of a PNG file of its decoded pixels.

    A file cut off in its header is named.
    """
    av = pytest.importorskip("av")
    size = 32
    with av.open("belt.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for path in sorted((image_folder / "test/odd").glob("*.png")):
            pixels = np.asarray(Image.open(path).convert("RGB").resize((size, size)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    Path("stills").mkdir()
    with av.open("belt.mp4") as container:
        for number, frame in enumerate(container.decode(video=0)):
            Image.fromarray(frame.to_ndarray(format="rgb24")).save(f"stills/{number:06d}.png")
    assert predict.main([f"run={run_folder}", "input=belt.mp4"]) == 0
    rows = rows_of(Path("scores.csv"))
    assert len(rows) == 12
    assert predict.main([f"run={run_folder}", "input=stills"]) == 0
    for name, row in rows_of(Path("scores.csv")).items():
        assert float(rows[f"belt.mp4#{Path(name).stem}"]["score"]) == pytest.approx(
            float(row["score"]), rel=1e-6
        )
    Path("torn.mp4").write_bytes(Path("belt.mp4").read_bytes()[:200])
    assert predict.main([f"run={run_folder}", "input=torn.mp4"]) == 1
    assert "unreadable: " in next(iter(rows_of(Path("scores.csv")).values()))["decision"]


BAD = [
    (["run={run}"], "input= is missing"),
    (["input=x"], "run= is missing"),
    (["run={run}", "inputt=x"], "inputt=x: no such option; did you mean 'input='"),
    (["run={run}", "input=x", "-v"], "-v: no such option"),
    (
        ["run={run}", "input=nowhere"],
        "input=nowhere: no such file or folder; this run takes images and videos",
    ),
    (["run={run}", "input=*.bmp"], "no file fits this pattern"),
    (["run={run}", "input=empty"], "holds no images and videos"),
    (["run={run}", "input=sound.wav"], "input=sound.wav: this run takes images and videos"),
    (["run={run}", "input={own}", "fpr=5"], "fpr=5: a share strictly between 0 and 1"),
    (["run={run}", "input={own}", "fpr=five"], "fpr=five: not a number"),
    (["run={run}", "input={own}", "fpr=0.1", "fdr=0.1"], "choose one"),
    (["run={run}", "input={own}", "output=scores.txt"], "the scores are a CSV file"),
    (["run={run}", "input={own}", "output={run}/scores.csv"], "lies in the run's own folder"),
    (["run={run}", "input={own}", "accelerator=tpu"], "it can be auto, cpu or gpu"),
    (
        ["run=nowhere", "input={own}"],
        "run=nowhere: no such folder, so no run is there; no run lies below . either",
    ),
    (
        ["run=/nowhere/p1/ocgan", "input={own}"],
        "no such folder, so no run is there; nor any folder on the way to it",
    ),
    (
        ["run=/nowhere", "input={own}"],
        "no such folder, so no run is there; nor any folder on the way to it",
    ),
    (
        ["run={run}/../seed7", "input={own}"],
        "seed7: no such folder, so no run is there; runs below {run}/..: {run}",
    ),
    (
        ["run={outputs}", "input={own}"],
        "no run is there (it holds no result.json); runs below {outputs}: {run}",
    ),
    (
        ["run={run}/scores.csv", "input={own}"],
        "is a file, and a run is a folder; runs below {run}: {run}",
    ),
    (
        ["run=begun", "input={own}"],
        "run=begun: this run is not complete; the command that began it goes on with it",
    ),
    (
        ["run={run}", "input={own}", "output=mine.csv"],
        "mine.csv: is there already (was not written by predict)",
    ),
    (
        ["run={run}", "input={own}", "output=notes.csv"],
        "notes.csv: is there already (was not written by predict)",
    ),
    (
        ["run={run}", "input={own}", "output=pipe.csv"],
        "pipe.csv: is there already (is a pipe, not a regular file)",
    ),
    (
        ["run={run}", "input={own}", "output=shop.csv", "--html"],
        "shop.html: is there already (was not",
    ),
]


@pytest.mark.posix
def test_bad_input_is_one_line_and_nothing_is_created(
    run_folder: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("begun").mkdir()
    Path("begun/config.yaml").write_text("seed: 0\n")
    Path("mine.csv").write_text("file,price\n")
    Path("notes.csv").write_text("file,score,p_value,decision,my notes\n")
    Path("shop.html").write_text("<!doctype html>")
    os.mkfifo("pipe.csv")
    write_wav(Path("sound.wav"), 0.1)
    names = {"run": run_folder, "own": image_folder, "outputs": run_folder.parents[4]}
    for arguments, message in BAD:
        before = contents()
        assert predict.main([text.format(**names) for text in arguments]) == 2, message
        error = capsys.readouterr().err
        assert message.format(**names) in error and len(error.splitlines()) == 1, error
        assert contents() == before


def contents() -> dict[Path, bytes]:
    """Everything in the working folder."""
    return {path: path.read_bytes() if path.is_file() else b"" for path in Path().rglob("*")}


def test_an_earlier_prediction_is_replaced_and_that_is_said(
    run_folder: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"run={run_folder}", f"input={image_folder / 'test'}", "--html"]
    assert predict.main(arguments) == 0
    assert "in place of" not in capsys.readouterr().out
    assert predict.main([*arguments, "fpr=0.2"]) == 0
    assert (
        "in place of an earlier prediction: scores.csv and scores.html" in capsys.readouterr().out
    )
    # one without decisions is known as well
    assert predict.main([*arguments, "fpr=0.001"]) == 0
    assert predict.main(arguments) == 0


RULES = [
    (
        ("fpr=0.01",),
        "24 held-out inliers cannot give p <= 0.01",
        "99 are needed",
        "fpr=0.04 can be decided",
    ),
    (
        ("fpr=1e-300",),
        "24 held-out inliers cannot give p <= 1e-300",
        "1e+300 are needed",
        "fpr=0.04",
    ),
    (
        ("fdr=0.03",),
        "24 held-out inliers cannot decide 24 files by fdr=0.03",
        "are needed",
        "fpr=0.04",
    ),
]


@pytest.mark.parametrize(("rule", "sentences"), [(rule, sentences) for rule, *sentences in RULES])
def test_nothing_is_called_inlier_where_nothing_could_be_novel(
    run_folder: Path,
    image_folder: Path,
    capsys: pytest.CaptureFixture[str],
    rule: tuple[str, ...],
    sentences: list[str],
) -> None:
    pytest.importorskip("pandas")
    capsys.readouterr()
    assert (
        predict.main([f"run={run_folder}", f"input={image_folder / 'test'}", "--html", *rule]) == 0
    )
    rows = rows_of(Path("scores.csv")).values()
    assert {row["decision"] for row in rows} == {""} and all(
        float(row["p_value"]) > 0.03 for row in rows
    )
    page = html.unescape(Path("scores.html").read_text())
    assert (
        page.count(", p = ") == 24 and "<strong>inlier" not in page and "<strong>novel" not in page
    )
    rates = {key: float(value) for key, _, value in (text.partition("=") for text in rule)}
    screen = capsys.readouterr().out
    table = load_detector(run_folder).frame(str(image_folder / "test"), **rates)
    assert table.novel.isna().all() and table.p_value.notna().all()
    for part in sentences:
        for text in (
            screen,
            page,
            *(row["note"] for row in rows),
            table.attrs["undecided"],
            capsys.readouterr().err,
        ):
            assert part in text or not text, text


def test_one_held_out_inlier_more_decides(
    run_folder: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rate that the sentence names can be decided, and no note is left."""
    assert predict.main([f"run={run_folder}", f"input={image_folder / 'test'}", "fpr=0.04"]) == 0
    rows = rows_of(Path("scores.csv")).values()
    assert {row["decision"] for row in rows} == {"novel", "inlier"} and "note" not in next(
        iter(rows)
    )
    assert "not decided" not in capsys.readouterr().out


def shifted(array: np.ndarray[Any, Any], axes: tuple[int, ...]) -> list[Any]:
    """The array with its axes in another order, as NumPy's and as torch's."""
    turned = np.ascontiguousarray(array.transpose(axes))
    return [turned, torch.from_numpy(turned)]


#: what a refusal says to write instead
EXPRESSION = re.compile(r"images(?:\[[^]]*\])?\.\w+\([\d, ]+\)(?:\[None\])?|images\[None[^]]*\]")


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_that_can_be_read_in_two_ways_are_refused_with_the_right_expression(
    channels: int,
) -> None:
    """What the refusal names is run, and gives the very pictures."""
    pictures = np.random.default_rng(0).integers(0, 256, (5, 3, 24, 20), dtype=np.uint8)
    detector = blind_detector(channels)
    expected = detector.fit(pictures)
    refused = [
        *shifted(pictures[0], (1, 2, 0)),  # one picture (H, W, 3)
        *shifted(pictures[0], (0, 1, 2)),  # one picture (3, H, W), or three grey ones
        *shifted(pictures, (0, 2, 3, 1)),
        *shifted(pictures.astype(np.float32) / 255, (0, 2, 3, 1)),
        # with an alpha channel
        np.concatenate([pictures, pictures[:, :1]], 1).transpose(0, 2, 3, 1),
        np.concatenate([pictures, pictures[:, :1]], 1)[0].transpose(1, 2, 0),
        np.concatenate([pictures, pictures[:, :1]], 1)[0],
    ]
    for images in refused:
        with pytest.raises(UserError, match=r"\(N, C, H, W\) with C = 1 or 3") as error:
            detector.fit(images)
        expression = re.findall(EXPRESSION, str(error.value))[-1]
        x = detector.fit(eval(expression, {"images": images}))
        assert torch.equal(x, expected[: len(x)])
    for shape in [(24, 20, 1), (24, 20)]:
        grey = pictures[0, 0].reshape(shape)
        with pytest.raises(UserError) as error:
            detector.fit(grey)
        x = detector.fit(eval(str(error.value).split(" is ")[-1], {"images": grey}))
        assert torch.equal(x, detector.fit(pictures[:1, :1]))


@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 8, 3),
        (2, 1, 8, 1),
        (3, 8, 8),
        (4, 8, 8),
        (2, 2, 8, 8),
        (8,),
        (1, 2, 3, 8, 8),
        (0, 1, 8, 8),
    ],
)
def test_other_layouts_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        UserError, match=r"images are \(N, C, H, W\) with C = 1 or 3, or grey \(N, H, W\), not"
    ):
        blind_detector(1).fit(np.zeros(shape, np.uint8))


def test_what_is_no_array_of_images_is_refused() -> None:
    detector = blind_detector(1)
    flipped = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8)[:, :, ::-1]
    assert torch.equal(detector.fit(flipped), detector.fit(flipped.copy()))
    for images in (
        np.zeros((2, 8, 8), np.uint16),
        np.full((2, 8, 8), None),
        np.zeros((2, 8, 8), np.int64),
    ):
        with pytest.raises(UserError, match="images are uint8, or floats"):
            detector.fit(images)
    pytest.importorskip("pandas")
    for inputs in ([flipped, flipped], Image.new("L", (8, 8)), 7):
        with pytest.raises(UserError, match="images are given as files or as one array"):
            detector.frame(inputs)  # type: ignore[arg-type]  # the point


def blind_detector(channels: int) -> Detector:
    """One that takes images of 16 pixels a side, without a run behind it."""
    detector = Detector.__new__(Detector)
    detector.shape, detector.reader = (
        (channels, 16, 16),
        Reader("image", channels, 16, "", (0, 0), "mean"),
    )
    return detector


def test_a_hostile_or_damaged_run_folder_is_refused(
    run_folder: Path, image_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (Path(tmp_path / "pwned"),))

    def change(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
        def go(folder: Path) -> None:
            result = json.loads((folder / "result.json").read_text())
            edit(result)
            (folder / "result.json").write_text(json.dumps(result))

        return go

    def pickled(folder: Path) -> None:
        import hashlib
        import pickle

        content = pickle.dumps({"method": Evil(), "preprocess": {}})
        path = folder / "checkpoints" / "last.pt"
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        change(
            lambda result: result.update(weights={"file": "checkpoints/last.pt", "sha256": digest})
        )(folder)

    cases: list[tuple[Callable[[Path], object], str]] = [
        (
            change(lambda r: r["config"]["method"].update(_target_="os.system")),
            "which is no method of noveltylab",
        ),
        (
            change(
                lambda r: r["config"]["method"].update(
                    _target_="noveltylab.methods.base.find_method"
                )
            ),
            "which is no method of noveltylab",
        ),
        (
            change(lambda r: r["config"]["method"].update(components="${oc.env:HOME}")),
            "interpolation",
        ),
        (change(lambda r: r["weights"].update(file="../../x.pt")), "weights.file: "),
        (change(lambda r: r["input"].update(shape=[3, 10**9, 10**9])), "input.shape.1: "),
        (change(lambda r: r.pop("weights")), "does not say weights"),
        (change(lambda r: r.update(primary="zzz")), "primary is 'zzz'"),
        (
            lambda folder: (folder / "calibration.csv").write_text("id\n"),
            "calibration.csv damaged or changed",
        ),
        (lambda folder: (folder / "scores.csv").unlink(), "scores.csv damaged or changed"),
        (
            lambda folder: (folder / "checkpoints" / "last.pt").write_bytes(b"PK"),
            "last.pt: missing, damaged or changed",
        ),
        (lambda folder: (folder / "result.json").write_text("[]"), "holds a list, not a result"),
        (lambda folder: (folder / "result.json").write_text("[" * 10**6), "nested too deeply"),
        (pickled, "not the weights of this method"),
    ]
    for number, (damage, message) in enumerate(cases):
        folder = shutil.copytree(run_folder, tmp_path / f"copy{number}")
        damage(folder)
        assert predict.main([f"run={folder}", f"input={image_folder}"]) == 2, message
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "pwned").exists() and not Path("scores.csv").exists()


def test_a_frame_of_rows(run_folder: Path, image_folder: Path) -> None:
    pytest.importorskip("pandas")
    detector = load_detector(run_folder)
    paths = sorted((image_folder / "test").rglob("*.png"))
    Path("torn.png").write_bytes(b"torn")
    table = detector.frame([*paths, "torn.png"], fpr=0.2)
    assert list(table.columns) == ["file", "score", "p_value", "novel", "error"]
    assert table.file.tolist() == [*map(str, paths), "torn.png"]
    assert (
        math.isnan(table.score.iloc[-1])
        and "known format" in table.error.iloc[-1]
        and table.novel.iloc[-1] is None
    )
    assert table.novel.iloc[:-1].tolist() == (table.p_value.iloc[:-1] <= 0.2).tolist()

    pixels = [
        np.asarray(Image.open(path).convert("RGB").resize((16, 16))).transpose(2, 0, 1)
        for path in paths
    ]
    stacked = np.stack(pixels)
    arrays = [
        stacked,
        torch.from_numpy(stacked),
        stacked.astype(np.float32) / 255,
        torch.from_numpy(stacked[:, :1]),
    ]
    tables = [detector.frame(array) for array in arrays]
    for further_table in tables[1:]:
        assert np.allclose(further_table.score, tables[0].score, rtol=1e-5)
    with pytest.raises(UserError, match=r"lie in \[0, 1\]"):
        detector.frame(stacked.astype(np.float32))
    with pytest.raises(UserError, match=r"C = 1 or 3"):
        detector.frame(np.zeros((2, 5, 8, 8), np.uint8))
    with pytest.raises(UserError, match="no such file"):
        detector.frame("nowhere.png")


@pytest.mark.parametrize("folder", ["a[1]", "[x]/b[0-9]", "My Parts (2)/*", "Größe/零件"])
def test_a_pattern_below_a_folder_with_brackets(tmp_path: Path, folder: str) -> None:
    reader = Reader("image", 1, 32, "", (0.0, 1.0), "max")
    for name in (folder, "a1", "b5"):
        (tmp_path / name / "bad").mkdir(parents=True)
        for number in range(3):
            (tmp_path / name / "bad" / f"{number}.png").touch()
    files = [tmp_path / folder / "bad" / f"{number}.png" for number in range(3)]
    assert list(expand(f"{tmp_path}/{folder}/bad/*.png", reader)) == files
    assert list(expand(f"{tmp_path}/{folder}/**/[12].png", reader)) == files[1:]
    assert list(expand(f"{tmp_path}/{folder}/bad", reader)) == files
    assert list(expand(f"{tmp_path}/[ab][15]/bad/0.png", reader))[:1] == [
        tmp_path / "a1" / "bad" / "0.png"
    ]


def test_a_bracket_that_fits_nothing_says_how_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"no file fits this pattern \(a bracket that belongs to a name is written \[\[\]\)",
    ):
        expand(f"{tmp_path}/a[1]/*.png", Reader("image", 1, 32, "", (0.0, 1.0), "max"))


@pytest.mark.parametrize("given", ["", "*", "**/*.png", "*/*/*.png"])
def test_a_folder_that_cannot_be_looked_into_is_an_item_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """Such folders are listed, never passed over."""
    reader = Reader("image", 1, 16, "", (0, 0), "mean")
    write_images(tmp_path, {"lot/a": 2, "lot/b": 2})
    closed = tmp_path / "lot" / "b"
    forbid(monkeypatch, closed)
    items = [read_item(path, reader) for path in expand(str(tmp_path / given), reader)]
    assert [item.path.name for item in items if item.images is not None] == ["0000.png", "0001.png"]
    (bad,) = [item for item in items if item.images is None]
    assert (
        bad.path == closed and bad.error == "this folder cannot be looked into (Permission denied)"
    )
