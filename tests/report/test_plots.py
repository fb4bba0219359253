"""Training curves, and losses and reconstructions of several methods in one picture."""

import base64
import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from noveltylab.report.__main__ import report
from noveltylab.report.blocks import Picture
from noveltylab.report.collect import collect
from noveltylab.report.grouping import group
from noveltylab.report.plots import COLOURS, POINTS, line_class, line_plot, training_curves
from noveltylab.report.side_by_side import read_reconstructions, side_by_side
from tests.report.conftest import WriteRun


def lines(*values: float, name: str = "train/mse") -> str:
    return "iteration,name,value\n" + "".join(
        f"{i},{name},{value}\n" for i, value in enumerate(values)
    )


def test_a_line_is_the_mean_over_seeds(outputs: Path, write_run: WriteRun) -> None:
    (write_run(seed=0, auroc=0.9) / "metrics.csv").write_text(lines(1, 2, 3))
    (write_run(seed=1, auroc=0.9) / "metrics.csv").write_text(lines(3, 4))
    (write_run(inlier=5, auroc=0.9) / "metrics.csv").write_text(lines(7, 8, name="val/loss"))
    curves = training_curves("ocgan", collect(outputs).runs)
    assert list(curves.panels) == ["val/loss", "train/mse"]
    assert curves.panels["train/mse"] == {"0": [(0, 2), (1, 3), (2, 3)]}
    assert curves.panels["val/loss"] == {"5": [(0, 7), (1, 8)]}


@pytest.mark.parametrize(
    "tail",
    ["3,train/mse", "x,y,z\n", "4,train/mse,nan\n5,train/mse,inf\n", "\x00\n", "6,train/mse,1e\n"],
)
def test_what_a_damaged_file_still_holds_is_drawn(
    outputs: Path, write_run: WriteRun, tail: str
) -> None:
    (write_run(auroc=0.9) / "metrics.csv").write_text(lines(1, 2) + tail)
    assert training_curves("ocgan", collect(outputs).runs).panels == {
        "train/mse": {"0": [(0, 1), (1, 2)]}
    }


def test_no_file_no_curves(outputs: Path, write_run: WriteRun) -> None:
    (write_run(auroc=0.9) / "metrics.csv").unlink()
    assert training_curves("ocgan", collect(outputs).runs).panels == {}


@pytest.mark.parametrize("count", [POINTS, POINTS + 1, 1000, 1001])
def test_long_curves_are_thinned_and_keep_their_ends(
    outputs: Path, write_run: WriteRun, count: int
) -> None:
    (write_run(auroc=0.9) / "metrics.csv").write_text(lines(*range(count)))
    (points,) = training_curves("ocgan", collect(outputs).runs).panels["train/mse"].values()
    assert (
        len(points) <= POINTS + 1 and points[0] == (0, 0) and points[-1] == (count - 1, count - 1)
    )


def test_a_panel_is_logarithmic_over_a_wide_range_of_positive_values() -> None:
    def text(low: float, high: float) -> str:
        return line_plot("a<b", {"x": [(0, low), (9, high)]}, ["x"])

    assert "(log)" in text(0.01, 1) and "(log)" not in text(0.1, 1) and "(log)" not in text(0, 1)
    assert "a&lt;b" in text(0, 1) and 'points="8.0,108.0 232.0,24.0"' in text(0, 1)
    assert 'points="8.0,66.0 232.0,66.0"' in text(1, 1)


def test_every_line_has_a_look_of_its_own() -> None:
    looks = [line_class(index) for index in range(2 * COLOURS)]
    assert len(set(looks)) == 2 * COLOURS


LOSSES = "iteration,name,value\n" + "".join(
    f"{i},train/{{0}},{1 / i}\n{i},val/loss,{2 / i}\n{i},train/count,99\n" for i in (1, 2, 3)
)


def keep_images(
    folder: Path, grey: int, ids: tuple[str, ...] = ("a", "b", "c"), **changed: Any
) -> None:
    """Reconstructions of one grey each, the second of them of an outlier.

    Images of the greys 1, 2, 3.
    """
    stack = np.ones((len(ids), 1, 4, 4), np.uint8)
    arrays: dict[str, Any] = {
        "id": np.array(ids),
        "is_outlier": np.arange(len(ids)) == 1,
        "image": stack * np.arange(1, len(ids) + 1, dtype=np.uint8)[:, None, None, None],
        "reconstruction": stack * np.uint8(grey),
    }
    (folder / "figures").mkdir(exist_ok=True)
    np.savez(folder / "figures" / "reconstructions.npz", **(arrays | changed))


def picture(outputs: Path) -> Picture:
    (rows,) = group(collect(outputs).runs).values()
    (drawing,) = side_by_side(rows)
    return drawing


def greys(svg: str) -> list[int]:
    """The grey of each image of a picture, in the order in which they are drawn."""
    codes = re.findall(r"data:image/png;base64,([^\"]+)", svg)
    return [Image.open(io.BytesIO(base64.b64decode(code))).getpixel((0, 0)) for code in codes]  # type: ignore[misc]  # one number: grey


def test_methods_stand_side_by_side(outputs: Path, write_run: WriteRun) -> None:
    for name, grey in (("nda", 70), ("ocgan", 90)):
        folder = write_run(name, inlier=8, auroc=0.9)
        (folder / "metrics.csv").write_text(LOSSES.format(name))
        keep_images(folder, grey)
    drawing = picture(outputs)
    assert drawing.name == "p2_mnist_inlier8" and drawing.missing == ()
    texts = [
        element.text
        for element in ElementTree.fromstring(drawing.svg).iter()
        if element.tag == "text"
    ]
    for expected in (
        "nda",
        "ocgan",
        "val/loss",
        "train/nda",
        "train/ocgan",
        "input",
        "inliers",
        "outliers",
    ):
        assert expected in texts, expected
    assert drawing.svg.count("<polyline") == 4  # the constant one is no loss
    lines = re.findall(r'points="([^"]+)"', drawing.svg)
    # of 1, 1/2, 1/3 and of 2, 1, 2/3: each is divided by its largest value
    assert len(set(lines)) == 1
    # inliers a and c, then the outlier b: the images, then what each method makes of them
    assert greys(drawing.svg) == [1, 3, 2, 70, 70, 70, 90, 90, 90]


def test_what_a_run_lacks_is_named(outputs: Path, write_run: WriteRun) -> None:
    for name, ids in (("nda", ("a", "b", "c")), ("oled", ("a", "b", "c")), ("ae", ("a", "b", "d"))):
        keep_images(write_run(name, auroc=0.9), 5, ids)
    (write_run("kde", auroc=0.9) / "metrics.csv").unlink()
    drawing = picture(outputs)
    assert set(drawing.missing) == {
        "kde: no losses (no metrics.csv, or fitted once)",
        "kde: no reconstructions (none kept, or the method makes none)",
        "ae: its reconstructions are of other test images",
    }
    assert len(greys(drawing.svg)) == 3 * 3


def test_the_seed_is_one_that_most_rows_have(outputs: Path, write_run: WriteRun) -> None:
    for name, seed, grey in (("nda", 0, 1), ("nda", 1, 2), ("oled", 1, 3), ("oled", 2, 4)):
        keep_images(write_run(name, seed=seed, auroc=0.9), grey)
    drawing = picture(outputs)
    assert greys(drawing.svg)[3:] == [2, 2, 2, 3, 3, 3]
    assert "seed 1:" in drawing.caption


@pytest.mark.parametrize("names", [("nda",), ("nda", "oled")])
def test_one_method_alone_makes_no_picture(
    outputs: Path, write_run: WriteRun, names: tuple[str, ...]
) -> None:
    for name in names:
        (write_run(name, auroc=0.9) / "metrics.csv").unlink()
    (rows,) = group(collect(outputs).runs).values()
    assert list(side_by_side(rows)) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"image": np.ones((3, 1, 4), np.uint8)},
        {"image": np.ones((3, 2, 4, 4), np.uint8)},
        {"reconstruction": np.ones((2, 1, 4, 4), np.uint8)},
        {"reconstruction": np.ones((3, 1, 4, 4))},
        {"is_outlier": np.zeros(2, np.bool_)},
        {"id": np.array([["a"], ["b"], ["c"]])},
        {"id": np.array([{"a": 1}, "b", "c"])},
        {"image": np.ones((3, 1, 0, 4), np.uint8)},
    ],
)
def test_a_damaged_file_of_images_is_none(tmp_path: Path, changed: dict[str, Any]) -> None:
    keep_images(tmp_path, 7, **changed)
    assert read_reconstructions(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive at all"])
def test_a_file_that_is_no_archive_is_none(tmp_path: Path, content: bytes) -> None:
    keep_images(tmp_path, 7)
    assert read_reconstructions(tmp_path) is not None
    (tmp_path / "figures" / "reconstructions.npz").write_bytes(content)
    assert read_reconstructions(tmp_path) is None


def test_names_are_escaped_in_the_picture(outputs: Path, write_run: WriteRun) -> None:
    for name in ("<b>&", "plain"):
        folder = write_run(name, auroc=0.9)
        keep_images(folder, 5)
        (folder / "metrics.csv").write_text('iteration,name,value\n1,"<i>&",1\n2,"<i>&",2\n')
    drawing = picture(outputs)
    assert "<b>" not in drawing.svg and "<i>" not in drawing.svg
    ElementTree.fromstring(drawing.svg)


def test_the_report_writes_the_picture_and_shows_it_on_its_page(
    outputs: Path, write_run: WriteRun
) -> None:
    for name in ("nda", "oled"):
        keep_images(write_run(name, inlier=2, auroc=0.9), 5)
    _, paths = report(outputs)
    file = outputs / "report" / "side_by_side" / "p2_mnist_inlier2.svg"
    content = file.read_text()
    ElementTree.fromstring(content)
    assert ".c0 { stroke" in content and len(greys(content)) == 9
    page = paths["html"].read_text()
    assert "http://" not in page and "img-src data:;" in page and len(greys(page)) == 9
    assert set(paths) == {"html", "md", "csv", "tex"}
