"""metrics.csv and an offline W&B run, read back from disk."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noveltylab.command.wandb_mode import wandb_mode
from noveltylab.errors import Interrupted, UserError
from noveltylab.run.summary import offline_runs
from noveltylab.training.checkpoints import Checkpoints
from noveltylab.training.loggers import MetricsFile, run_id
from tests.conftest import TINY

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_metrics_file_rewinds_to_a_checkpoint_and_drops_a_torn_row(tmp_path: Path) -> None:
    sink = MetricsFile(tmp_path / "metrics.csv")
    for iteration in (10, 20, 30):
        sink.log_metrics({"train/mse": iteration / 7}, step=iteration)
    with open(sink.path, "a") as file:
        file.write("40,train/")
    sink.rewind(20)
    sink.log_metrics({"train/mse": 0.5}, step=30)
    rows = sink.path.read_text().splitlines()
    assert rows == [
        "iteration,name,value",
        f"10,train/mse,{10 / 7!r}",
        f"20,train/mse,{20 / 7!r}",
        "30,train/mse,0.5",
    ]


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user who has never logged in to W&B; returns the home folder."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


KEY = "0123456789" * 4


def test_without_a_key_wandb_stays_offline(no_key: Path) -> None:
    assert wandb_mode("auto") == wandb_mode("offline") == "offline"
    with pytest.raises(UserError, match="logger.mode=online: no key of W&B is configured"):
        wandb_mode("online")


@pytest.mark.parametrize(
    "place", ["environment", "netrc", "NETRC", "token", "settings", "own server"]
)
def test_a_key_is_found_where_wandb_keeps_it(
    no_key: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    host = "wandb.example.org" if place == "own server" else "api.wandb.ai"
    entry = f"machine {host}\n  login user\n  password {KEY}\n"
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    elif place == "token":
        monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", "token")
    elif place == "settings":
        (no_key / ".config" / "wandb").mkdir(parents=True)
        (no_key / ".config" / "wandb" / "settings").write_text(f"[default]\napi_key = {KEY}\n")
    else:
        path = no_key / ("elsewhere" if place == "NETRC" else ".netrc")
        path.write_text(entry)
        path.chmod(0o600)
    if place == "NETRC":
        assert wandb_mode("auto") == "offline"
        monkeypatch.setenv("NETRC", str(no_key / "elsewhere"))
    if place == "own server":
        assert wandb_mode("auto") == "offline"
        monkeypatch.setenv("WANDB_BASE_URL", f"https://{host}")
    assert wandb_mode("auto") == wandb_mode("online") == "online"
    assert wandb_mode("offline") == "offline"


@pytest.mark.parametrize(
    ("setting", "mode"),
    [("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled"), ("online", "online")],
)
def test_wandbs_own_variable_is_heeded(
    no_key: Path, monkeypatch: pytest.MonkeyPatch, setting: str, mode: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", setting)
    assert wandb_mode("auto") == mode
    assert wandb_mode("offline") == "offline", "an option goes before the environment"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("WANDB_MODE", "", "WANDB_MODE is empty: W&B knows online, offline and disabled"),
        ("WANDB_MODE", " ", "WANDB_MODE is empty"),
        ("WANDB_MODE", "Offline!", "WANDB_MODE=Offline!: W&B knows online"),
        ("WANDB_MODE", "online", "WANDB_MODE=online: no key of W&B is configured"),
        ("WANDB_API_KEY", "abc", "the configured key of W&B is none"),
        ("WANDB_SILENT", "perhaps", "the environment variables of W&B (WANDB_...): silent: "),
    ],
)
def test_what_wandb_would_stumble_over_is_refused(
    command: Cli,
    no_key: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv(variable, value)
    process = command("logger=wandb", *TINY)
    assert (process.returncode, process.stderr.count("\n"), process.stdout) == (2, 1, ""), (
        process.stderr
    )
    assert message in process.stderr
    assert list((no_key / "elsewhere").iterdir()) == []


def test_the_key_is_never_shown(no_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret!")
    with pytest.raises(UserError) as refusal:
        wandb_mode("auto")
    assert "secret" not in str(refusal.value)


def test_a_disabled_wandb_leaves_nothing(
    no_key: Path, monkeypatch: pytest.MonkeyPatch, run_here: Callable[..., dict[str, Any]]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run_here("logger=wandb", "method=pca")
    assert not list(no_key.rglob("*wandb*"))


def inspect(file: Path, *flags: str) -> str:
    wandb = Path(sys.executable).with_name("wandb")
    return subprocess.run(
        [wandb, "leet", "inspect", *flags, file], capture_output=True, text=True, check=True
    ).stdout


def history(file: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in inspect(file, "--json").splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def test_an_interrupted_run_goes_on_as_the_same_run(
    no_key: Path, monkeypatch: pytest.MonkeyPatch, run_here: Callable[..., dict[str, Any]]
) -> None:
    """Two offline folders with one id and one axis, which `wandb sync` sends as one run."""
    choose = Checkpoints._choose

    def interrupt(self: Checkpoints, method: Any, epoch: int, epochs: int, keep: bool) -> None:
        choose(self, method, epoch, epochs, keep)
        self.stop.signal = signal.SIGTERM if epoch == 2 else None

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_choose", interrupt)
        with pytest.raises(Interrupted):
            run_here("logger=wandb", *TINY)
    run_here("logger=wandb", *TINY)
    (folder,) = (path.parent for path in no_key.rglob("wandb-id"))
    files = sorted(
        folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns
    )
    assert [file.name for file in files] == [f"run-{run_id(folder)}.wandb"] * 2
    rows = [row for file in files for row in history(file) if "iteration" in row]
    steps = [row["iteration"] for row in rows]
    assert len(steps) == 4 and steps == sorted(set(steps)) == [row["_step"] for row in rows]
    sent = offline_runs([folder])[1]
    assert sent.startswith("to send it: wandb sync ")
    assert set(shlex.split(sent.partition("sync ")[2])) == {str(file.parent) for file in files}


def test_what_was_sent_is_not_named(tmp_path: Path) -> None:
    run = tmp_path / "My Parts (2)" / "wandb" / "offline-run-1-a"
    run.mkdir(parents=True)
    assert offline_runs([tmp_path / "My Parts (2)"]) == [
        f"offline in {run}",
        f"to send it: wandb sync '{run}'",
    ]
    (run / "run-a.wandb.synced").touch()
    assert offline_runs([tmp_path / "My Parts (2)"]) == []


def test_offline_run_holds_config_history_and_summary(no_key: Path, cli: Cli) -> None:
    """A whole run in a process of its own, of a user without a key."""
    process = cli("logger=wandb", *TINY, "pictures=true")
    assert process.returncode == 0, process.stderr
    (file,) = (no_key / "elsewhere").rglob("*.wandb")
    assert file.parent.name.startswith("offline-run")
    folder = file.parent.relative_to(no_key / "elsewhere")
    assert (
        f"W&B       offline in {folder}\n          to send it: wandb sync {folder}\n"
        in process.stdout
    )
    (result,) = (no_key / "elsewhere").rglob("result.json")
    losses = {row["iteration"]: row["train/mse"] for row in history(file) if "train/mse" in row}
    assert len(losses) == 4
    assert list(losses) == sorted(losses)
    run = json.loads(inspect(file, "--summary", "--json"))
    assert run["config"]["method"]["channels"] == 4
    assert run["state"] == "finished"
    expected = json.loads(result.read_text())
    assert run["summary"]["auroc"] == expected["scores"]["mse"]["auroc"]
    assert run["summary"]["failed"] == 0
    assert "published" not in run["summary"]  # no paper prints a number for the bundled digits
    assert run["summary"]["floor/pca"] == expected["floor"]["pca"]["auroc"]
    assert run["summary"]["roc"]["_type"] == "image-file"
