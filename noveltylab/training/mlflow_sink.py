"""MLflow: one run in a store for each run here; by default the store lies in the output folder."""

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_only

from noveltylab.command.logger_options import LoggerOptions
from noveltylab.command.validate import flatten
from noveltylab.errors import RunFailed
from noveltylab.training.sink import Card, Sink, first_words, keep_id, kept_id, require

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("noveltylab")

#: Seconds between two batches of losses: a store writes each batch to disk, or sends it.
PAUSE = 1.0
#: What MLflow takes at once: parameters of a batch, characters of one.
BATCH, LONGEST = 100, 6000
#: Characters of a tag.
LONGEST_TAG = 5000


class MLflowRun(Sink):
    """Losses as metrics over iterations; options as parameters; pictures as artifacts.

    A store that fails while the run trains ends its log there, never the run: metrics.csv has all.
    """

    def __init__(self, client: "MlflowClient", run: str) -> None:
        super().__init__()
        self.client = client
        self.run = run
        self.is_broken = False
        self.waiting: list[Any] = []
        self.sent_at = time.monotonic()
        #: metric -> the last step of it that the store has, of those that were asked for
        self.last_steps: dict[str, int] = {}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """A point of each curve; one that the store has from before an interruption is left out."""
        from mlflow.entities import Metric

        now, step = int(time.time() * 1000), step or 0
        for name, value in metrics.items():
            if name not in self.last_steps:
                self.last_steps[name] = self.attempt(self.last_step, name) or 0
            if step > self.last_steps[name]:
                self.last_steps[name] = step
                self.waiting.append(Metric(name, float(value), now, step))
        if time.monotonic() - self.sent_at >= PAUSE:
            self.send()

    def last_step(self, name: str) -> int:
        """The last step of a metric in the store, 0 for none."""
        history = self.client.get_metric_history(self.run, name)
        return max((point.step for point in history), default=0)

    def send(self) -> None:
        """Hands what waits to the store."""
        points, self.waiting = self.waiting, []
        self.sent_at = time.monotonic()
        if points:
            self.attempt(self.client.log_batch, self.run, points)

    def attempt(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """What the store answers; None from the first failure on, of which one line is said."""
        if self.is_broken:
            return None
        try:
            return action(*arguments)
        except Exception as error:  # the store's, the network's, the database's
            self.is_broken = True
            log.warning(
                f"MLflow does not take the log ({first_words(error)}); the run goes on without it, "
                "metrics.csv has every loss"
            )
            return None

    def conclude(self, summary: dict[str, Any], pictures: list[Path]) -> None:
        """The result as metrics, its texts as tags, the pictures as artifacts."""
        self.send()
        self.attempt(self._describe, summary)
        for path in pictures:
            self.attempt(self.client.log_artifact, self.run, str(path), "figures")
        self.attempt(self.client.set_terminated, self.run, "FINISHED")

    def fail(self, reason: str) -> None:
        """The run has the status FAILED, and its tag `reason` says why."""
        self.send()
        self.attempt(self._describe, {"failed": 1, "reason": reason})
        self.attempt(self.client.set_terminated, self.run, "FAILED")

    def _describe(self, summary: dict[str, Any]) -> None:
        for name, value in summary.items():
            if isinstance(value, int | float):
                self.client.log_metric(self.run, name, float(value))
            else:
                self.client.set_tag(self.run, name, str(value)[:LONGEST_TAG])


def check() -> None:
    """Raises UserError where the extra is not installed."""
    for module in ("mlflow", "sqlalchemy", "alembic"):
        require(module, "mlflow")


def store_of(settings: LoggerOptions, output: Path) -> tuple[str, str | None]:
    """The address of the store, and where a new experiment keeps its files; None: as it decides."""
    uri = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri, None
    output = output.resolve()
    return f"sqlite:///{output / 'mlflow.db'}", (output / "mlartifacts").as_uri()


def open_run(card: Card) -> MLflowRun:
    """The MLflow run of a run; of one that was interrupted the same again.

    Raises:
        RunFailed: The store cannot be opened, or does not take the run.
    """
    uri, artifacts = store_of(card.settings, card.folder.parents[4])
    try:
        with _quiet():
            client, run = _open(card, uri, artifacts)
    except Exception as error:  # the store's, the network's, the database's
        raise RunFailed(
            f"MLflow does not take the run ({first_words(error)}); its store is "
            "logger.tracking_uri, else MLFLOW_TRACKING_URI, else mlflow.db in the output folder"
        ) from error
    return MLflowRun(client, run)


def _open(card: Card, uri: str, artifacts: str | None) -> tuple["MlflowClient", str]:
    from mlflow import MlflowClient
    from mlflow.entities import Param, RunTag

    client = MlflowClient(uri)
    run = _run_of_before(client, card.folder)
    if run is None:
        experiment = _experiment(client, card.settings.project, artifacts)
        run = client.create_run(experiment, run_name=card.name).info.run_id
        keep_id(card.folder / "mlflow-id", run)
        options = [Param(key, str(value)[:LONGEST]) for key, value in flatten(card.config).items()]
        for start in range(0, len(options), BATCH):
            client.log_batch(run, params=options[start : start + BATCH])
    tags = {key: str(value) for key, value in card.cell.items()}
    tags |= {"tags": ", ".join(card.tags), "mlflow.note.content": card.notes}
    client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])
    client.update_run(run, status="RUNNING")
    return client, run


def _run_of_before(client: "MlflowClient", folder: Path) -> str | None:
    """The run that an interrupted one began, if the store still has it."""
    from mlflow.exceptions import MlflowException

    run = kept_id(folder / "mlflow-id", "[0-9a-f]{32}")
    try:
        if run and client.get_run(run).info.lifecycle_stage == "active":
            return run
    except MlflowException:  # another store
        pass
    return None


def _experiment(client: "MlflowClient", name: str, artifacts: str | None) -> str:
    """The id of the experiment, made where there is none."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # another run of the sweep has just made it
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    return str(experiment.experiment_id)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, MLflow is imported without a word and without a report to its makers."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    with warnings.catch_warnings():
        # MLflow 3.17 under SQLAlchemy 2.1
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
