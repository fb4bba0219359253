"""Repeating a run from what its folder holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noveltylab.rerun import main

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def folder(run_here: Run, tmp_path: Path) -> Path:
    run_here("method=pca")
    return tmp_path / "outputs" / "p1" / "pca" / "digits" / "inlier8" / "seed0"


def test_a_run_is_repeated_to_the_same_bytes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    assert "byte for byte" in capsys.readouterr().out
    again = tmp_path / "outputs-rerun" / "p1" / "pca" / "digits" / "inlier8" / "seed0"
    assert (again / "scores.csv").read_bytes() == (folder / "scores.csv").read_bytes()


def test_other_scores_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "method.components=8"]) == 1
    assert "not the same scores" in capsys.readouterr().out


def test_a_kept_result_without_its_scores_is_compared_by_auroc(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "scores.csv").unlink()
    assert main([str(folder)]) == 0  # by the checksum
    assert main([str(folder), "method.components=8", "force=true"]) == 1
    said = capsys.readouterr().out
    result = json.loads((folder / "result.json").read_text())
    auroc = result["scores"][result["primary"]]["auroc"]
    assert f"AUROC {auroc:.6f} there" in said and "not the same scores" in said


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "result.json"
    result = json.loads(path.read_text())
    change(result["config"])
    path.write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config["method"].update(_target_="os.system"), "asks for os.system, which is no method"),
        (lambda config: config["method"].update(_target_="antigravity.x"), "asks for antigravity.x"),
        (lambda config: config["data"].update(root="${oc.env:HOME}"), "interpolation"),
        (lambda config: config.pop("method"), "config.method: field required"),
        (lambda config: config["method"].update(zzz=1), "no such option"),
    ],
)
def test_a_hostile_or_broken_record_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], object], said: str
) -> None:
    changed(folder, change)
    assert main([str(folder)]) == 2
    assert said in capsys.readouterr().err


def test_bad_arguments(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "not complete" in capsys.readouterr().err
    assert main([str(folder), "nonsense"]) == 2
    assert main([str(folder), f"output={tmp_path / 'outputs'}"]) == 2
    assert "would write over" in capsys.readouterr().err
