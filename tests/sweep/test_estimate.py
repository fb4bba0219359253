"""What a sweep will take: which runs stand for a cell, scaling, places, and what is not known."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noveltylab.results.archive import Row, write_rows
from noveltylab.results.provenance import cpu_name
from noveltylab.results.record import write_result
from noveltylab.sweep import estimate
from noveltylab.sweep.cells import Cell
from noveltylab.sweep.estimate import (
    Estimates,
    Forecast,
    finished,
    machine_here,
    makespan,
    rest,
    runs_in,
    work_of,
)
from noveltylab.sweep.plan import read_plans
from tests.report.conftest import flat_metrics, result_of

Cli = Callable[..., subprocess.CompletedProcess[str]]
#: Of ten epochs; a tenth of a second of other things.
SECONDS = {"train": 50.0, "labelled": 10.0, "score": 5.0, "total": 65.0}
PCA = ("-m", "method=pca", "trainer=cpu", "pictures=false", "floor_features=off")


@pytest.fixture(autouse=True)
def a_small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(estimate, "DRIVER", Path("nowhere"))


def result(
    method: str = "ocgan",
    *,
    epochs: int = 10,
    hardware: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Of a run with these options of the method on this machine by one thread."""
    content = result_of(method, "mnist", "p2", 0, 0, {"mse": flat_metrics(0.9)}, {})
    config = content["config"]
    config["method"] |= options
    config["trainer"] = {"max_epochs": epochs, "accelerator": "cpu", **(trainer or {})}
    config["resources"] = {"num_cpus": None, "num_gpus": None}
    content["seconds"] = SECONDS
    content["epochs"] = {"planned": epochs, "trained": epochs}
    content["provenance"]["hardware"] = {
        "cpu": cpu_name(), "threads": 1, "gpu": None, **(hardware or {}),
    }  # fmt: skip
    return content


def cell(output: Path, inlier: int = 0, method: str = "ocgan", **options: Any) -> Cell:
    """One that waits."""
    folder = output / "p2" / method / "mnist" / f"inlier{inlier}" / "seed0"
    names = {"protocol": "p2", "method": method, "data": "mnist", "inlier": str(inlier)}
    config = result(method, **options)["config"]
    return Cell([], names, folder, config={**config, "inlier": inlier})


def keep(output: Path, inlier: int, content: dict[str, Any]) -> None:
    method = content["method"]
    folder = output / "p2" / method / "mnist" / f"inlier{inlier}" / "seed0"
    folder.mkdir(parents=True)
    write_result(folder, content)


# Which runs stand for a cell.


@pytest.mark.parametrize(
    ("change", "is_like"),
    [
        ({}, True),
        ({"hardware": {"cpu": "another"}}, False),
        ({"hardware": {"threads": 2}}, False),
        ({"hardware": {"threads": None}}, False),
        ({"hardware": {"gpu": "a GPU"}}, False),
        ({"trainer": {"val_every": 7}}, False),
        ({"trainer": {"winograd": True}}, False),
        ({"trainer": {"score_batch_size": 7}}, True),
        ({"width": 64}, False),
        ({"epochs": 20}, True),
    ],
)
def test_a_run_stands_for_a_cell_of_the_same_work(
    tmp_path: Path, change: dict[str, Any], is_like: bool
) -> None:
    keep(tmp_path, 3, result(**change))
    waiting = cell(tmp_path, 4)
    estimates = Estimates([waiting], kept=tmp_path / "none")
    assert (estimates.seconds(waiting) is not None) is is_like


def test_class_and_seed_and_name_of_a_row_do_not_matter() -> None:
    first, second = result(), result()
    second["config"] |= {"inlier": 7, "seed": 3, "output": "elsewhere", "pictures": False}
    second["config"]["method"]["name"] = "a_row"
    assert finished(first).work == finished(second).work


def test_training_is_scaled_by_the_epochs_and_scoring_is_not() -> None:
    run = finished(result(epochs=10))
    assert run.seconds_of(10) == 65.0
    assert run.seconds_of(25) == pytest.approx(65 + 60 * 1.5)
    assert run.seconds_of(5) == pytest.approx(65 - 30)


def test_a_run_that_counts_no_epochs_is_not_scaled() -> None:
    content = result()
    del content["epochs"]
    run = finished(content)
    assert (run.seconds_of(10), run.seconds_of(20)) == (65.0, None)


def test_the_share_of_a_launcher_says_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    config = result()["config"]
    assert machine_here(config).threads == 1
    assert machine_here(config, ["resources.num_cpus=3"]).threads == 3
    config["resources"]["num_cpus"] = 2
    assert machine_here(config).threads == 2
    config["resources"]["num_cpus"] = None
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(estimate, "cores", lambda: 6)
    assert machine_here(config).threads == 6


def test_a_gpu_counts_where_the_run_takes_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(estimate, "DRIVER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    config = result(trainer={"accelerator": "auto"})["config"]
    assert machine_here(config).has_gpu
    assert not machine_here(result()["config"]).has_gpu
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not machine_here(config).has_gpu


# Where runs are looked for.


def test_own_runs_count_before_kept_ones(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    rows = []
    for inlier in range(3):
        content = {**result(), "seconds": {**SECONDS, "total": 650.0}}
        rows.append(Row(f"p2/ocgan/mnist/inlier{inlier}/seed0", content))
    write_rows(kept / "learn" / "mnist.jsonl", rows)
    output = tmp_path / "outputs"
    waiting = cell(output, 4)
    assert Estimates([waiting], kept=kept).seconds(waiting) == 650.0
    assert str(Estimates([waiting], kept=kept).forecast([waiting], 1)).endswith(
        "about 11 min, by 3 finished runs like them"
    )
    assert Estimates([waiting]).seconds(waiting) is None
    keep(output, 3, result())
    assert Estimates([waiting], kept=kept).seconds(waiting) == 65.0
    complete = cell(output, 5)
    complete.state, complete.record = "complete", {**result(), "seconds": {"total": 6.5}}
    assert Estimates([waiting, complete], kept=kept).seconds(waiting) == 6.5


def test_a_damaged_result_stands_for_nothing(tmp_path: Path) -> None:
    keep(tmp_path, 3, result())
    (path,) = tmp_path.rglob("result.json")
    path.write_text("{")
    assert runs_in(tmp_path, "ocgan", "mnist") == []


def test_a_cell_that_is_done_says_it_for_those_like_it(tmp_path: Path) -> None:
    """First for the same work, else for the same method and data, whatever the options."""
    cells = [
        cell(tmp_path, 0),
        cell(tmp_path, 1),
        cell(tmp_path, 2, epochs=20),
        cell(tmp_path, 3, width=64),
        cell(tmp_path, 4, method="oled"),
    ]
    estimates = Estimates(cells)
    assert [estimates.seconds(each) for each in cells] == [None] * 5
    cells[0].record = result()
    estimates.add(cells[0])
    assert [estimates.seconds(each) for each in cells[1:]] == [65.0, 125.0, 65.0, None]


def test_work_of_many_cells_is_told_quickly() -> None:
    """A sweep's cells share their work, so a set has one."""
    config = result()["config"]
    works = {work_of({**config, "inlier": inlier}, machine_here(config)) for inlier in range(100)}
    assert len(works) == 1


# How long, in words.


@pytest.mark.parametrize(
    ("seconds", "at_once", "whole"),
    [
        ([], 2, 0.0),
        ([10, 10, 10], 1, 30.0),
        ([10, 10, 10], 2, 20.0),
        ([30, 10, 10, 10], 2, 30.0),
        ([10, 10, 10, 30], 2, 40.0),
        ([10, 20], 8, 20.0),
    ],
)
def test_runs_fill_the_places_in_turn(seconds: list[float], at_once: int, whole: float) -> None:
    assert makespan(seconds, at_once) == whole


@pytest.mark.parametrize(
    ("forecast", "words"),
    [
        (
            Forecast((600.0, 600.0), 5, 1, 3),
            "2 of 5 cells to run, 1 at a time: about 20 min, by 3 finished runs like them",
        ),
        (
            Forecast((600.0, 600.0), 2, 2, 1),
            "2 of 2 cells to run, 2 at a time: about 10 min, by 1 finished run like them",
        ),
        (
            Forecast((600.0, None, None), 3, 1, 1),
            "3 of 3 cells to run, 1 at a time: about 10 min for 1 of them, by 1 finished run like them; "
            "2 of 3 cells not known until one like them is complete",
        ),
        (
            Forecast((None,), 1, 1, 0),
            "1 of 1 cells to run, 1 at a time; how long is not known until the first is complete",
        ),
        (
            Forecast((7200.0, 7200.0), 2, None, 4),
            "2 of 2 cells to run, as many at a time as there is room: about 4.0 h one after another, "
            "by 4 finished runs like them",
        ),
        (
            Forecast((0.1,), 1, 1, 4),
            "1 of 1 cells to run, 1 at a time: about 1 s, by 4 finished runs like them",
        ),
    ],
)
def test_a_forecast_in_words(forecast: Forecast, words: str) -> None:
    assert str(forecast) == words


@pytest.mark.parametrize(
    ("ended", "left", "words"),
    [
        ([], [10.0], ""),
        ([10.0], [], ""),
        ([10.0], [10.0, 10.0], "about 0:00:24 left"),
        ([10.0], [100.0], "about 0:02:00 left"),
        ([10.0, 20.0], [60.0], "about 0:00:24 left"),
        ([10.0], [10.0, None, None], "at least 0:00:12 left (2 of 3 cells not known)"),
    ],
)
def test_the_rest_is_told_at_the_pace_so_far(
    ended: list[float], left: list[float | None], words: str
) -> None:
    """12 seconds have passed: two runs at once make a pace below 1, what is not counted one above."""
    assert rest(ended, left, 12.0) == words


# The command.


def test_a_sweep_says_before_it_begins_what_it_takes(command: Cli, tmp_path: Path) -> None:
    first = command(*PCA, "inlier=3")
    assert "1 of 1 cells to run, 1 at a time; how long is not known" in first.stderr
    again = command(*PCA, "method=pca,knn", "inlier=3,4")
    (line,) = re.findall(r"^sweep: .*", again.stderr, re.M)
    assert line.startswith("sweep: 3 of 4 cells to run, 1 at a time: about ")
    assert line.endswith(
        " for 1 of them, by 1 finished run like them; "
        "2 of 3 cells not known until one like them is complete"
    )
    assert again.stderr.startswith(line), "it stands before the first cell"
    output = tmp_path / "elsewhere" / "outputs"
    result_path = output / "p1" / "pca" / "digits" / "inlier3" / "seed0" / "result.json"
    total = json.loads(result_path.read_text())["seconds"]["total"]
    seconds = [plan.seconds for plan in read_plans(output) if plan.seconds]
    (planned,) = seconds
    assert list(planned) == [output / "p1" / "pca" / "digits" / "inlier4" / "seed0"]
    assert list(planned.values()) == [pytest.approx(total, abs=0.06)]
    assert "cells to run" not in command(*PCA, "method=pca,knn", "inlier=3,4").stderr


def test_status_takes_the_time_of_a_plan_where_no_run_is_like_it(
    command: Cli, tmp_path: Path
) -> None:
    output = tmp_path / "elsewhere" / "outputs"
    plans = output / ".sweep" / "plans"
    plans.mkdir(parents=True)
    name = "p1/pca/digits/inlier4/seed0"
    plan = {"command": "-m", "cells": [name], "seconds": {name: 120.0, "../x": 7.0}}
    (plans / "a.json").write_text(json.dumps(plan))
    assert "1 left; about 0:02:00 to go" in command("status").stdout
    for damaged in ({name: "x"}, [name], {name: None}):
        (plans / "a.json").write_text(json.dumps({**plan, "seconds": damaged}))
        assert command("status").returncode in (0, 2)
