"""metrics.csv and an offline W&B run, read back from disk."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noveltylab.loggers import MetricsFile, wandb_offline
from tests.conftest import TINY


def test_metrics_file_rewinds_to_a_checkpoint_and_drops_a_torn_row(tmp_path: Path) -> None:
    sink = MetricsFile(tmp_path / "metrics.csv")
    for iteration in (10, 20, 30):
        sink.log_metrics({"train/mse": iteration / 7}, step=iteration)
    with open(sink.path, "a") as file:
        file.write("40,train/")
    sink.rewind(20)
    sink.log_metrics({"train/mse": 0.5}, step=30)
    rows = sink.path.read_text().splitlines()
    assert rows == ["iteration,name,value", f"10,train/mse,{10 / 7!r}", f"20,train/mse,{20 / 7!r}", "30,train/mse,0.5"]


def test_without_a_key_wandb_stays_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wandb_offline("auto")
    assert wandb_offline("offline")
    assert not wandb_offline("online")


def test_offline_run_holds_config_history_and_summary(
    cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = cli("logger=wandb", "logger.mode=offline", *TINY, "pictures=true")
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "elsewhere").rglob("*.wandb")
    assert file.parent.name.startswith("offline-run")
    (result,) = (tmp_path / "elsewhere").rglob("result.json")

    def inspect(*flags: str) -> str:
        wandb = Path(sys.executable).with_name("wandb")
        return subprocess.run(
            [wandb, "leet", "inspect", *flags, file], capture_output=True, text=True, check=True
        ).stdout

    records: list[dict[str, Any]] = [json.loads(line) for line in inspect("--json").splitlines()]
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    losses = {row["iteration"]: row["train/mse"] for row in rows if "train/mse" in row}
    assert len(losses) == 4
    assert list(losses) == sorted(losses)
    run = json.loads(inspect("--summary", "--json"))
    assert run["config"]["method"]["channels"] == 4
    assert run["state"] == "finished"
    expected = json.loads(result.read_text())
    assert run["summary"]["auroc"] == expected["scores"]["mse"]["auroc"]
    assert run["summary"]["failed"] == 0
    assert "published" not in run["summary"]  # no paper prints a number for the bundled digits
    assert run["summary"]["floor/pca"] == expected["floor"]["pca"]["auroc"]
    assert run["summary"]["roc"]["_type"] == "image-file"
