"""Results that are kept, and the papers' pages written from them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import keep
from noveltylab.report.collect import collect

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another experiments/."""
    monkeypatch.setattr(keep, "EXPERIMENTS", tmp_path / "experiments")
    monkeypatch.setattr(keep, "KEPT", tmp_path / "experiments" / "results")
    return tmp_path / "experiments"


def test_the_pages_here_are_those_of_the_kept_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing on them is typed by hand, and no kept result is damaged."""
    found = collect(keep.KEPT)
    assert not (found.damaged or found.unfinished or found.unmeasured)
    names = (*keep.PAPERS, "classical")
    pages = {name: (keep.EXPERIMENTS / name / "RESULTS.md").read_text() for name in names}
    monkeypatch.setattr(keep, "EXPERIMENTS", tmp_path)
    keep.write_pages()
    assert {name: (tmp_path / name / "RESULTS.md").read_text() for name in names} == pages


def test_results_are_kept_under_a_name(
    run_here: Run, here: Path, tmp_path: Path, small_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here("method=pca", "data=mnist", "data.verify=false", "inlier=3")
    assert keep.main([str(tmp_path / "outputs"), "ocgan/table2_mnist"]) == 0
    assert "pca" in (here / "ocgan" / "RESULTS.md").read_text()
    place = here / "results" / "ocgan" / "table2_mnist" / "p2" / "pca" / "mnist" / "inlier3" / "seed0"
    assert [path.name for path in place.iterdir()] == ["result.json"]
    text = (place / "result.json").read_text()
    assert str(tmp_path) not in text  # no folder of this machine
    whole = json.loads(next((tmp_path / "outputs").rglob("result.json")).read_text())
    assert {key: value for key, value in json.loads(text).items() if key not in ("config", "provenance")} == {
        key: value for key, value in whole.items() if key not in ("config", "provenance")
    }
    assert keep.main([]) == 0
    next((tmp_path / "outputs").rglob("scores.csv")).write_text("edited")
    capsys.readouterr()
    assert keep.main([str(tmp_path / "outputs"), "ocgan/again"]) == 0
    assert "not kept: " in (said := capsys.readouterr().err) and "scores.csv: is not the file" in said
    assert not (here / "results" / "ocgan" / "again").exists()


def test_a_command_is_kept_without_its_folders() -> None:
    here = {
        "config": {"output": "/x/y", "seed": 1, "data": {"root": "/d", "size": 8}},
        "provenance": {
            "command": "/a/noveltylab/__main__.py method=pyod output=/x/y data.root=/d seed=1",
            "commit": "c",
        },
    }
    assert keep.portable(here, "learn/pyod") == {
        "config": {"output": "outputs/learn/pyod", "seed": 1, "data": {"root": None, "size": 8}},
        "provenance": {"command": "python -m noveltylab method=pyod output=outputs/learn/pyod seed=1", "commit": "c"},
    }


def test_no_kept_result_names_a_folder_of_a_machine() -> None:
    for path in keep.KEPT.rglob("result.json"):
        result = json.loads(path.read_text())
        name = path.relative_to(keep.KEPT).parents[5].as_posix()
        assert result == keep.portable(result, name), path


def test_a_run_whose_files_changed_is_not_kept(run_here: Run, here: Path, tmp_path: Path) -> None:
    run_here("method=pca")
    with open(next((tmp_path / "outputs").rglob("scores.csv")), "a") as file:
        file.write("\n")
    keep.main([str(tmp_path / "outputs"), "x"])
    assert not list(here.rglob("result.json"))


def test_bad_input_exits_2(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keep.main([str(tmp_path / "nowhere"), "x"]) == 2
    assert "no such folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        keep.main([str(tmp_path)])
    assert exit.value.code == 2
    assert "a folder goes with a name" in capsys.readouterr().err
