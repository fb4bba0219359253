"""metrics.csv, and what W&B, TensorBoard and MLflow were told, read back by their own readers."""

import csv
import importlib
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

from noveltylab.command.logger_options import LoggerOptions
from noveltylab.command.wandb_mode import wandb_mode
from noveltylab.errors import Interrupted, RunFailed, UserError
from noveltylab.run.summary import offline_runs
from noveltylab.training.checkpoints import Checkpoints
from noveltylab.training.loggers import MetricsFile
from noveltylab.training.wandb_sink import run_id
from tests.conftest import TINY, assert_refused

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


#: A run of a second with three iterations.
QUICK = ("method=ae", "data.limit_train=48", "data.batch_size=16", "trainer.max_epochs=3",
         "trainer.val_every=1", "trainer.accelerator=cpu")  # fmt: skip
DESCRIBED = ("tags=[lamp-b,3]", "notes='the new lamp, at night'")


def folder_of(tmp_path: Path) -> Path:
    (result,) = (tmp_path / "outputs").rglob("result.json")
    return result.parent


def losses_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """metrics.csv: name -> its points."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in csv.DictReader((folder / "metrics.csv").read_text().splitlines()):
        curves.setdefault(row["name"], []).append((int(row["iteration"]), float(row["value"])))
    return curves


def interrupt(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any], *options: str) -> None:
    """Runs until a signal in the second epoch."""
    choose = Checkpoints._choose

    def stop(self: Checkpoints, method: Any, epoch: int, epochs: int, keep: bool) -> None:
        choose(self, method, epoch, epochs, keep)
        self.stop.signal = signal.SIGTERM if epoch == 2 else None

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_choose", stop)
        with pytest.raises(Interrupted):
            run(*options)


def fail(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any], *options: str) -> None:
    """Runs until the scores are to be computed."""

    def no_memory(*_: object) -> None:
        raise MemoryError("no memory for scores")

    with monkeypatch.context() as patch:
        patch.setattr("noveltylab.run.pipeline.score", no_memory)
        with pytest.raises(RunFailed):
            run(*options)


def events_of(folder: Path) -> Any:
    """What TensorBoard's own reader finds."""
    module = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(module, reason="the extra [tensorboard] is not installed")
    events = reader.EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    return events.Reload()


def text_of(events: Any, name: str) -> str:
    return str(events.Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0].decode())


def test_tensorboard_reads_losses_result_texts_and_pictures(
    run_here: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    result = run_here(*QUICK, *DESCRIBED, "logger=tensorboard", "pictures=true")
    folder = folder_of(tmp_path)
    events = events_of(folder)
    for name, points in losses_of(folder).items():
        read = [(point.step, point.value) for point in events.Scalars(name)]
        assert read == [(step, pytest.approx(value, rel=1e-6)) for step, value in points]
    auroc = result["scores"][result["primary"]]["auroc"]
    assert events.Scalars("result/auroc")[0].value == pytest.approx(auroc)
    assert events.Scalars("result/failed")[0].value == 0
    assert text_of(events, "tags") == "ae, digits, p1, select-val_loss, lamp-b, 3"
    assert text_of(events, "notes") == "the new lamp, at night"
    pictures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"roc", "scores", "cases"} <= pictures == set(events.Tags()["images"])
    options = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"method.channels" in options and b"trainer.max_epochs" in options


def test_tensorboard_goes_on_where_the_run_does(
    run_here: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*QUICK, "logger=tensorboard", "trainer.checkpoint_seconds=0")
    interrupt(monkeypatch, run_here, *options)
    fail(monkeypatch, run_here, *options)
    (config,) = tmp_path.rglob("config.yaml")
    events = events_of(config.parent)
    assert events.Scalars("result/failed")[-1].value == 1
    assert "no memory for scores" in text_of(events, "result/reason")
    run_here(*options)
    events = events_of(folder_of(tmp_path))
    for name, points in losses_of(folder_of(tmp_path)).items():
        assert [point.step for point in events.Scalars(name)] == [step for step, _ in points]
    assert events.Scalars("result/failed")[-1].value == 0


def mlflow_runs(uri: str, experiment: str = "noveltylab") -> tuple[Any, list[Any]]:
    """MLflow's own client of a store, and the runs of an experiment."""
    for module in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(module, reason="the extra [mlflow] is not installed")
    client = importlib.import_module("mlflow").MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return client, client.search_runs([found.experiment_id])


def test_mlflow_reads_losses_result_texts_and_pictures(
    run_here: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    pytest.importorskip("mlflow", reason="the extra [mlflow] is not installed")
    result = run_here(*QUICK, *DESCRIBED, "logger=mlflow", "logger.project=lamps", "pictures=true")
    folder = folder_of(tmp_path)
    client, (run,) = mlflow_runs(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}", "lamps")
    for name, points in losses_of(folder).items():
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted((point.step, point.value) for point in history) == points
    assert run.info.status == "FINISHED"
    assert run.data.metrics["auroc"] == result["scores"][result["primary"]]["auroc"]
    assert run.data.metrics["floor/pca"] == result["floor"]["pca"]["auroc"]
    assert run.data.params["method.channels"] == str(result["config"]["method"]["channels"])
    assert run.data.tags["tags"] == "lamp-b, 3"
    assert run.data.tags["mlflow.note.content"] == "the new lamp, at night"
    assert run.data.tags["protocol"] == "p1"
    artifacts = {Path(item.path).name for item in client.list_artifacts(run.info.run_id, "figures")}
    assert artifacts == {path.name for path in (folder / "figures").glob("*.png")} != set()


def test_an_interrupted_run_is_one_run_of_mlflow(
    run_here: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a store of one's own, named by MLflow's own variable."""
    pytest.importorskip("mlflow", reason="the extra [mlflow] is not installed")
    uri = f"sqlite:///{tmp_path / 'my store.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    options = (*QUICK, "logger=mlflow", "trainer.checkpoint_seconds=0")
    interrupt(monkeypatch, run_here, *options)
    fail(monkeypatch, run_here, *options)
    client, (run,) = mlflow_runs(uri)
    assert run.info.status == "FAILED" and run.data.metrics["failed"] == 1
    assert "no memory for scores" in run.data.tags["reason"]
    run_here(*options)
    client, (run,) = mlflow_runs(uri)
    assert run.info.status == "FINISHED" and run.data.metrics["failed"] == 0
    assert run.data.tags["reason"] == ""
    for name, points in losses_of(folder_of(tmp_path)).items():
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted((point.step, point.value) for point in history) == points
    assert not (tmp_path / "outputs" / "mlflow.db").exists()


def test_a_store_that_fails_ends_its_log_and_not_the_run(
    run_here: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = pytest.importorskip("mlflow", reason="the extra [mlflow] is not installed")

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("the server has gone")

    monkeypatch.setattr("noveltylab.training.mlflow_sink.PAUSE", 0.0)
    monkeypatch.setattr(client.MlflowClient, "get_metric_history", refuse)
    run_here(*QUICK, "logger=mlflow")
    log = (folder_of(tmp_path) / "run.log").read_text()
    assert log.count("MLflow does not take the log (the server has gone)") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["logger.tracking_uri=http://me:SECRET@host"], "a password would be kept with the run"),
        (["logger.tracking_uri=sqlite://x.db"], "no address of an MLflow store"),
        (["tags=trial"], "tags=trial: the value should be a valid list"),
        (["tags=['']"], "tags=: a tag has 1 to 64 characters"),
    ],
)
def test_what_a_logger_would_stumble_over_is_refused(
    command: Cli, tmp_path: Path, options: list[str], message: str
) -> None:
    process = command("logger=mlflow", *options)
    assert_refused(process, message, tmp_path)
    assert "SECRET" not in process.stderr


@pytest.mark.parametrize("logger", ["tensorboard", "mlflow"])
def test_a_logger_without_its_extra_is_refused(
    command: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: str
) -> None:
    monkeypatch.setattr("noveltylab.training.sink.find_spec", lambda _: None)
    process = command(f"logger=[csv,{logger}]", "method=pca", "trainer.accelerator=cpu")
    assert_refused(process, f"pip install 'noveltylab[{logger}]'", tmp_path)


def test_several_loggers_change_no_number_and_no_option_of_theirs_is_held_against_a_run(
    no_key: Path, run_here: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    for library in ("tensorboard", "mlflow"):
        pytest.importorskip(library, reason=f"the extra [{library}] is not installed")
    alone = run_here(*QUICK, f"output={no_key / 'alone'}")
    every = "logger=[csv,tensorboard,mlflow,wandb]"
    result = run_here(*QUICK, every, "logger.mode=offline")
    assert result["files"]["scores.csv"] == alone["files"]["scores.csv"]
    folder = folder_of(no_key)
    assert {"tensorboard", "mlflow-id", "wandb", "metrics.csv"} <= {
        path.name for path in folder.iterdir()
    }
    again = run_here(*QUICK, "logger=csv", *DESCRIBED)
    assert again == result
    assert "complete already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recorded", "loggers"),
    [
        ({"name": "csv"}, set()),
        ({"name": "wandb", "project": "p", "entity": None, "mode": "offline"}, {"wandb"}),
        ({"wandb": True, "mlflow": True, "project": "p"}, {"wandb", "mlflow"}),
    ],
)
def test_loggers_of_older_runs_are_read(recorded: dict[str, Any], loggers: set[str]) -> None:
    options = LoggerOptions.model_validate(recorded)
    assert {
        name for name in ("wandb", "tensorboard", "mlflow") if getattr(options, name)
    } == loggers
    assert options.project == recorded.get("project", "noveltylab")


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


@pytest.mark.posix
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
    assert_refused(process, message, no_key)


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


@pytest.mark.posix
def test_an_interrupted_run_goes_on_as_the_same_run(
    no_key: Path, monkeypatch: pytest.MonkeyPatch, run_here: Callable[..., dict[str, Any]]
) -> None:
    """Two offline folders with one id and one axis, which `wandb sync` sends as one run."""
    interrupt(monkeypatch, run_here, "logger=wandb", *TINY)
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
