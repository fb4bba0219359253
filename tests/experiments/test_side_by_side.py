"""Pictures of several runs below each other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments import side_by_side


@pytest.fixture
def runs(pca_outputs: Path, tmp_path: Path) -> list[Path]:
    """Two runs, one with a red and one with a wider blue picture."""
    (result,) = pca_outputs.rglob("result.json")
    folders = []
    for name, colour, width in (("dae", "red", 30), ("ocgan", "blue", 50)):
        folder = tmp_path / name
        (folder / "figures").mkdir(parents=True)
        content = json.loads(result.read_text())
        content["method"] = content["config"]["method"]["name"] = name
        (folder / "result.json").write_text(json.dumps(content))
        Image.new("RGB", (width, 20), colour).save(folder / "figures" / "latent_paths.png")
        folders.append(folder)
    return folders


def test_each_run_stands_below_its_title_in_the_order_given(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "deep" / "both.png"
    assert side_by_side.main(["latent_paths", *map(str, runs), "--output", str(output)]) == 0
    image = Image.open(output)
    title = side_by_side.TITLE
    assert image.size == (50, 2 * (title + 20))
    assert image.getpixel((5, title + 10)) == (255, 0, 0)
    assert image.getpixel((45, title + 10)) == (255, 255, 255)
    assert image.getpixel((45, 2 * title + 30)) == (0, 0, 255)
    written = [
        image.crop((0, top, 50, top + title)).convert("L").getextrema()[0]
        for top in (0, title + 20)
    ]
    assert max(written) < 100
    assert str(output) in capsys.readouterr().err
    assert side_by_side.title(runs[1]).startswith("ocgan · digits · inlier 8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run / "figures" / "latent_paths.png", "no such picture; this run has none"),
        (lambda run: run / "result.json", "this run is not complete"),
    ],
)
def test_what_a_run_lacks_is_said(
    runs: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], Path],
    message: str,
) -> None:
    change(runs[1]).unlink()
    output = tmp_path / "both.png"
    arguments: list[Any] = ["latent_paths", *map(str, runs), "--output", str(output)]
    assert side_by_side.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()
