"""`noveltylab status`: complete, running, failed and left, from the folders alone."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noveltylab.run.lock import locked
from noveltylab.sweep.plan import Plan, read_plans
from noveltylab.sweep.status import find

Cli = Callable[..., subprocess.CompletedProcess[str]]
TABLE = Path("outputs", "p1", "pca", "digits")
SWEEP = ("-m", "method=pca", "trainer=cpu", "pictures=false", "inlier=3,4,11")


def status(command: Cli, *arguments: str) -> dict[str, Any]:
    process = command("status", *arguments, "--json")
    assert process.returncode == 0, process.stderr
    content: dict[str, Any] = json.loads(process.stdout)
    return content


def states(content: dict[str, Any]) -> dict[str, str]:
    return {Path(run["folder"]).parent.name: run["state"] for run in content["runs"]}


def write_log(folder: Path, *lines: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").touch()
    text = [f"12:00:00 run folder {folder}", *lines]
    (folder / "run.log").write_text("\n".join(text) + "\n")


def test_a_sweep_is_told_by_its_folders_and_its_plan(
    command: Cli, pca_outputs: Path, tmp_path: Path
) -> None:
    """One run is complete, one was never begun, one runs, one was interrupted, one failed."""
    top = tmp_path / "elsewhere"
    assert command(*SWEEP).returncode == 1  # there is no class 11
    shutil.rmtree(top / TABLE / "inlier4")
    (result,) = (top / TABLE).rglob("result.json")
    seconds = json.loads(result.read_text())["seconds"]["total"]
    write_log(top / TABLE / "inlier5" / "seed0", "12:00:01 epoch 3 of 9, 2 s, 4 s left: mse 0.1")
    write_log(top / TABLE / "inlier6" / "seed0", "Traceback (most recent call last):", "Oops: no")
    running = top / TABLE / "inlier7" / "seed0"
    write_log(running, "12:00:01 epoch 4 of 9, 2 s, 100 s left: mse 0.1")
    moment = time.time()
    os.utime(running / "run.log", (moment, moment))
    with locked(running):
        content = status(command)
        text = command("status").stdout
    assert states(content) == {
        "inlier3": "complete", "inlier4": "left", "inlier5": "left", "inlier6": "failed",
        "inlier7": "running",
    }  # fmt: skip
    counts = [content[state] for state in ("complete", "running", "failed", "left")]
    assert counts == [1, 1, 1, 2]
    # two runs like the complete one, and what the running one says of itself
    assert content["seconds_to_go"] == pytest.approx(100 + 2 * seconds, abs=20)
    assert text.startswith("outputs: 1 complete, 1 running, 1 failed, 2 left; about 0:0")
    assert "p1/pca/digits/inlier4/seed0  not begun" in text
    assert "p1/pca/digits/inlier5/seed0  interrupted, epoch 3 of 9" in text
    assert "p1/pca/digits/inlier6/seed0  Oops: no" in text
    assert f"process {os.getpid()} on " in text
    assert "1 of these by: noveltylab -m method=pca" in text
    assert "complete  " not in text


def test_a_cell_that_failed_says_why(
    command: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError("no memory for scores")

    monkeypatch.setattr("noveltylab.run.pipeline.score", refuse)
    assert command("-m", "method=pca", "trainer=cpu", "inlier=3,4").returncode == 1
    content = status(command)
    assert content["failed"] == 2
    assert all("no memory for scores" in run["says"] for run in content["runs"])
    assert content["seconds_to_go"] is None


def test_one_run_and_several_outputs(command: Cli, pca_outputs: Path, tmp_path: Path) -> None:
    top = tmp_path / "elsewhere"
    for name in ("a", "b"):
        shutil.copytree(pca_outputs, top / "all" / name)
    (run, _) = sorted(path.parent for path in (top / "all").rglob("result.json"))
    aside = run.with_name(f"{run.name}.20260101-000000")
    shutil.copytree(run, aside)
    assert status(command, "all")["complete"] == 2, "what force=true moved aside is no run"
    content = status(command, str(run.relative_to(top)))
    assert (content["complete"], len(content["runs"])) == (1, 1)
    text = command("status", str(run.relative_to(top))).stdout
    auroc = json.loads((run / "result.json").read_text())["scores"]["residual"]["auroc"]
    assert f"AUROC {auroc:.4f}" in text
    (run / "result.json").write_text("{")
    assert status(command, str(run.relative_to(top)))["failed"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "outputs: no such folder"),
        (["nowhere"], "nowhere: no such folder"),
        (["."], ".: holds no runs, and no sweep has planned any there"),
        (["a", "b"], "cannot read 'a b'; it is: python -m noveltylab status [folder] [--json]"),
        (["--foo"], "cannot read '--foo'"),
    ],
)
def test_bad_input_is_one_line(command: Cli, arguments: list[str], message: str) -> None:
    process = command("status", *arguments)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1), process.stderr
    assert message in process.stderr


def test_a_plan_that_somebody_else_wrote_leads_nowhere(tmp_path: Path) -> None:
    plans = tmp_path / ".sweep" / "plans"
    plans.mkdir(parents=True)
    cells = ["p1/pca/digits/inlier3/seed0", "../../../../etc", "/a/b/c/d", "p1/pca", "a/../../b/c"]
    (plans / "a.json").write_text(json.dumps({"command": "-m", "cells": cells}))
    (plans / "b.json").write_text("{")
    (plans / "c.json").write_text('{"command": "-m", "cells": 5}')
    folder = tmp_path / "p1" / "pca" / "digits" / "inlier3" / "seed0"
    assert list(read_plans(tmp_path)) == [Plan("-m", (folder,))]
    assert find(tmp_path)[0] == [folder]
