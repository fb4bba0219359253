"""Masks in MVTec AD's layout: which are found, which refused, and a run that is measured by them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from noveltylab.data.masks import find_masks
from noveltylab.errors import UserError
from noveltylab.results.record import read_result
from noveltylab.run.summary import print_summary
from tests.formats import write_images, write_masks

IDS = ["test/good/0000.png", "test/odd/0000.png", "test/odd/0001.png"]
FLAGS = [False, True, True]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    root = write_images(
        tmp_path / "parts", {"train/good": 12, "test/good": 4, "test/odd": 4}, side=24
    )
    write_masks(root)
    return root


def test_masks_are_found_beside_the_test_part(parts: Path) -> None:
    masks = find_masks(parts, IDS, FLAGS)
    assert masks is not None and not masks.left_out()
    assert [masked.row for masked in masks.images] == [0, 1, 2]
    for masked, name in zip(masks.images, IDS, strict=True):
        with Image.open(parts / name) as picture:
            width, height = picture.size
        assert (masked.height, masked.width) == (height, width)
        assert masked.read().shape == (height, width)
        assert masked.read().any() == ("odd" in name)


def test_a_folder_without_masks_has_none(parts: Path) -> None:
    (parts / "ground_truth").rename(parts / "elsewhere")
    assert find_masks(parts, IDS, FLAGS) is None


def test_an_image_without_its_mask_is_named(parts: Path) -> None:
    (parts / "ground_truth/odd/0001_mask.png").unlink()
    masks = find_masks(parts, IDS, FLAGS)
    assert masks is not None
    assert [masked.row for masked in masks.images] == [0, 1]
    assert masks.left_out() == [
        "pixels are measured without 1 test image of defects that have no mask in ground_truth/: "
        "test/odd/0001.png"
    ]


def test_a_turned_photograph_is_as_large_as_it_is_shown(parts: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = parts / "test/odd/0000.png"
    Image.new("L", (30, 20)).save(path, exif=exif)
    Image.new("L", (20, 30)).save(parts / "ground_truth/odd/0000_mask.png")
    masks = find_masks(parts, IDS, FLAGS)
    assert masks is not None and (masks.images[1].height, masks.images[1].width) == (30, 20)


@pytest.mark.parametrize("kind", ["size", "torn"])
def test_a_bad_mask_is_one_error_before_anything_is_made(
    parts: Path, run_here: Callable[..., dict[str, Any]], kind: str, tmp_path: Path
) -> None:
    path = parts / "ground_truth/odd/0002_mask.png"
    if kind == "size":
        Image.new("L", (7, 9)).save(path)
        message = "has 7 x 9 pixels and its image"
    else:
        path.write_bytes(path.read_bytes()[:40])
        message = "cannot be read"
    with pytest.raises(UserError, match=message) as caught:
        measured_run(run_here, parts)
    assert "0002_mask.png" in str(caught.value)
    assert not (tmp_path / "outputs").exists()


def measured_run(run_here: Callable[..., dict[str, Any]], root: Path) -> dict[str, Any]:
    return run_here(
        "method=patchcore",
        "data=images",
        f"data.root={root}",
        "data.size=32",
        "method.input_size=64",
        "trainer.accelerator=cpu",
    )


def test_a_run_is_measured_to_the_pixel(
    parts: Path,
    run_here: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (parts / "ground_truth/odd/0003_mask.png").unlink()
    result = measured_run(run_here, parts)
    section = result["pixels"]
    assert (section["images"], section["without_mask"]) == (7, 1)
    assert section["defects"] == 3 and section["error"] == 0
    assert 0.5 < section["auroc"] <= 1 and 0.1 < section["aupro"] <= 1
    assert any("without 1 test image" in warning for warning in result["warnings"])
    (folder,) = (path.parent for path in (tmp_path / "outputs").rglob("result.json"))
    assert read_result(folder)["pixels"] == json.loads(json.dumps(section))
    print_summary(result, folder)
    line = re.search(
        r"pixels +AUROC (\S+) . AUPRO (\S+), by masks: 3 defects in 7", capsys.readouterr().out
    )
    assert line and line[1] == f"{section['auroc']:.4f}" and line[2] == f"{section['aupro']:.4f}"
