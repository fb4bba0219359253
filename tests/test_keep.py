"""Results that are kept, and the papers' pages written from them."""

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
    pages = {paper: (keep.EXPERIMENTS / paper / "RESULTS.md").read_text() for paper in keep.PAPERS}
    monkeypatch.setattr(keep, "EXPERIMENTS", tmp_path)
    keep.write_pages()
    assert {paper: (tmp_path / paper / "RESULTS.md").read_text() for paper in keep.PAPERS} == pages


def test_results_are_kept_under_a_name(
    run_here: Run, here: Path, tmp_path: Path, small_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here("method=pca", "data=mnist", "data.verify=false", "inlier=3")
    assert keep.main([str(tmp_path / "outputs"), "ocgan/table2_mnist"]) == 0
    assert "pca" in (here / "ocgan" / "RESULTS.md").read_text()
    place = here / "results" / "ocgan" / "table2_mnist" / "p2" / "pca" / "mnist" / "inlier3" / "seed0"
    assert [path.name for path in place.iterdir()] == ["result.json"]
    assert keep.main([]) == 0


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
