"""Presets, trials, and Hydra's own folders."""

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from noveltylab.api import compose
from noveltylab.errors import UserError
from noveltylab.report.__main__ import report
from noveltylab.report.collect import collect
from noveltylab.results.record import read_result
from tests.conftest import assert_refused

Cli = Callable[..., subprocess.CompletedProcess[str]]
TRIAL = ("debug=fast", "method=ae", "trainer=cpu")
PLACE = Path("p1", "ae", "digits", "inlier8", "seed0")


@pytest.mark.parametrize(
    ("preset", "accelerator", "devices"),
    [("cpu", "cpu", 1), ("gpu", "gpu", 1), ("mps", "mps", 1), ("ddp", "auto", 2)],
)
def test_a_preset_of_the_trainer_is_the_default_with_another_device(
    preset: str, accelerator: str, devices: int
) -> None:
    default = compose("method=ae").trainer
    options = compose("method=ae", f"trainer={preset}").trainer
    assert (options.accelerator, options.devices) == (accelerator, devices)
    places = {"accelerator", "devices", "strategy"}
    assert options.model_dump(exclude=places) == default.model_dump(exclude=places)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_one_line(command: Cli, tmp_path: Path) -> None:
    process = command("trainer=gpu", "method=ae")
    assert_refused(process, "no CUDA device is visible here", tmp_path)


@pytest.mark.parametrize(
    "argument", ["hydra.run.dir=my runs", "++hydra.run.dir=x", "hydra.sweep.dir=x"]
)
def test_hydras_folders_are_answered_with_output(
    command: Cli, tmp_path: Path, argument: str
) -> None:
    process = command(argument, "method=pca")
    assert_refused(process, f"; use output={argument.partition('=')[2]}\n", tmp_path)


def test_a_trial_is_short_marked_and_apart(command: Cli, tmp_path: Path) -> None:
    for _ in range(2):  # as often as one likes
        process = command(*TRIAL)
        assert process.returncode == 0, process.stderr
        assert "a trial (debug=fast), not a result" in process.stdout
    top = tmp_path / "elsewhere"
    assert {path.name for path in top.iterdir()} == {"outputs_debug"}
    folder = top / "outputs_debug" / PLACE
    result = read_result(folder)
    assert result["config"]["trainer"]["max_epochs"] == 1
    assert result["config"]["data"]["limit_train"] == 256
    assert not list((folder / "figures").glob("*.png"))
    assert len(list(folder.parent.glob("seed0*"))) == 2


def test_a_trial_is_in_no_table(command: Cli, tmp_path: Path) -> None:
    assert command(*TRIAL, "output=both").returncode == 0
    assert command("method=pca", "trainer=cpu", "output=both", "pictures=false").returncode == 0
    collected = collect(tmp_path / "elsewhere" / "both")
    assert [run.result.method for run in collected.runs] == ["pca"]
    assert [path.parts[-4] for path, _ in collected.trials] == ["ae"]
    assert collected.trials[0][1] == "debug=fast, not a result"
    _, paths = report(tmp_path / "elsewhere" / "both")
    rows = csv.DictReader(paths["csv"].read_text().splitlines())
    assert {row["row"] for row in rows if row["kind"] == "ours"} == {"pca"}
    assert "Trials, left out" in paths["md"].read_text()


def test_a_trial_moves_no_run_aside(command: Cli, tmp_path: Path) -> None:
    run = ("method=ae", "trainer=cpu", "output=both", "trainer.max_epochs=1", "pictures=false")
    assert command(*run).returncode == 0
    before = read_result(tmp_path / "elsewhere" / "both" / PLACE)
    process = command(*TRIAL, "output=both")
    assert process.returncode == 2
    assert "holds a run that is no trial, and debug=fast moves none aside" in process.stderr
    assert read_result(tmp_path / "elsewhere" / "both" / PLACE) == before
    assert len(list((tmp_path / "elsewhere" / "both" / PLACE).parent.iterdir())) == 1


def test_a_trial_has_the_last_word_over_an_experiment_and_you_over_both() -> None:
    words = ("experiment=learn/mnist", "row=nda", "inlier=3", "seed=0")
    assert compose(*words).trainer.max_epochs == 8
    options = compose("debug=fast", *words)
    assert (options.trainer.max_epochs, options.data.limit_train) == (1, 256)
    assert options.output == "outputs_debug" and not options.pictures
    typed = compose("debug=fast", *words, "trainer.max_epochs=3", "output=mine")
    assert (typed.trainer.max_epochs, typed.output, typed.debug) == (3, "mine", "fast")
    with pytest.raises(UserError, match="debug=fats: no such choice; did you mean 'fast'"):
        compose("debug=fats")


def test_a_sweep_of_trials_says_so_in_its_table(command: Cli) -> None:
    process = command("-m", "debug=fast", "method=pca", "trainer=cpu", "inlier=3,4")
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("fast") >= 2
