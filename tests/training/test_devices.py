"""Several devices and every precision of a CPU.

Two processes train as one does, and one of them says and writes everything. Whatever precision a
CPU is offered trains every method, resumes, and is scored in float32 as `predict` scores.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from noveltylab.results.scores import read_scores
from tests.conftest import TINY
from tests.methods.conftest import ITERATIVE, SMALL
from tests.sweep.test_sweeper import Cli

SHORT = ("data=digits", *TINY[3:], "trainer.max_epochs=2", "trainer.select_from=0")
ONE_EPOCH = (
    "data=digits", "data.batch_size=16", "data.limit_train=48", "trainer.max_epochs=1", "trainer.val_every=1",
    "trainer.select_from=0", "trainer.accelerator=cpu", "trainer.average_epochs=0.5",
)  # fmt: skip


def losses(folder: Path) -> list[float]:
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [float(row["value"]) for row in rows if row["name"] == "val/loss"]


def in_two(cli: Cli, tmp_path: Path, name: str, *options: str) -> tuple[Path, dict[str, Any]]:
    process = cli(
        *SHORT, f"method={name}", "data.batch_size=16", "trainer=ddp", "output=two", *options
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("weights ") == 1
    (path,) = (tmp_path / "elsewhere" / "two").rglob("result.json")
    return path.parent, json.loads(path.read_text())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "ae" else pytest.mark.slow) for name in ITERATIVE],
)
def test_two_processes_train_as_one(
    cli: Cli, run_here: Callable[..., dict[str, Any]], tmp_path: Path, name: str
) -> None:
    """Half the batch each, the same losses.

    Other random numbers and statistics of batches leave a tolerance.
    """
    small = [f"method.{key}={str(value).lower()}" for key, value in SMALL.get(name, {}).items()]
    folder, two = in_two(cli, tmp_path, name, *small)
    one = run_here(*SHORT, f"method={name}", "data.batch_size=32", "trainer.devices=1", *small)
    (alone,) = (tmp_path / "outputs").rglob("result.json")
    assert losses(folder) == pytest.approx(losses(alone.parent), rel=0.02 if name == "ae" else 0.5)
    assert two["n"] == one["n"]
    ids = read_scores(folder / "scores.csv").ids
    assert len(ids) == len(set(ids)) == two["n"]["test_inliers"] + two["n"]["test_outliers"]
    if name == "ae":  # goes on from the checkpoint that it left, to the same scores
        scores = (folder / "scores.csv").read_bytes()
        (folder / "result.json").unlink()
        (folder / "scores.csv").unlink()
        in_two(cli, tmp_path, name, *small)
        assert (folder / "scores.csv").read_bytes() == scores
        assert "resuming" in (folder / "run.log").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("method=pca", "data=digits"),
            "trainer.devices=2: method=pca is fitted once, on one device",
        ),
        (("-m", "method=ae", "data=digits", "inlier=0,1"), "each run of a sweep has one device"),
    ],
)
def test_what_cannot_use_several_devices_is_refused(
    command: Cli, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    process = command(*options, "trainer.accelerator=cpu", "trainer.devices=2")
    assert process.returncode == 2
    assert message in process.stderr
    assert not (tmp_path / "elsewhere" / "outputs").exists()


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "ae" else pytest.mark.slow) for name in ITERATIVE],
)
def test_every_precision_trains_every_method(
    run_here: Callable[..., dict[str, Any]], tmp_path: Path, name: str, precision: str
) -> None:
    small = [f"method.{key}={str(value).lower()}" for key, value in SMALL.get(name, {}).items()]
    arguments = (*ONE_EPOCH, f"method={name}", f"trainer.precision={precision}", *small)
    whole = run_here(*arguments)
    assert 0 <= whole["scores"][whole["primary"]]["auroc"] <= 1
    (folder,) = (path.parent for path in (tmp_path / "outputs").rglob("result.json"))
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    weights = last["current_model_state"]  # beside their average, which stays in float32
    trained = {value.dtype for value in weights.values() if value.is_floating_point()}
    assert trained == {torch.float64 if precision == "64-true" else torch.float32}
    (folder / "result.json").unlink()
    assert run_here(*arguments)["scores"] == whole["scores"]
    assert torch.get_default_dtype() == torch.float32
