"""Where losses go: `metrics.csv` in the run folder always, and the loggers that are asked for."""

import csv
import io
import os
from functools import cache
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from noveltylab.command.logger_options import LoggerOptions
from noveltylab.options import Options
from noveltylab.report.published import PaperTable, printed_for, read_tables
from noveltylab.results.files import MAX_TABLE_BYTES, read_bytes, write_atomic
from noveltylab.training import mlflow_sink, wandb_sink
from noveltylab.training.sink import Card, Sink, require
from noveltylab.training.tensorboard_sink import TensorBoardFiles


class MetricsFile(Sink):
    """Appends `iteration,name,value` rows to `metrics.csv`.

    A resumed run goes on where its checkpoint stands.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """One row per value; one open and close per call, so that a killed run has all its rows."""
        new = not self.path.exists()
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(["iteration", "name", "value"])
            writer.writerows([step, name, repr(float(value))] for name, value in metrics.items())

    @rank_zero_only
    def rewind(self, iteration: int) -> None:
        """Drops rows after `iteration`, which a resumed run will write again, and a torn last row."""
        if not os.path.lexists(self.path):
            return
        try:
            text = read_bytes(self.path, MAX_TABLE_BYTES).decode("utf-8", "replace")
            reader = csv.reader(io.StringIO(text, newline=""))
            rows = [row for row in reader if len(row) == 3]
        except (OSError, csv.Error):  # a pipe in its place would be waited for
            rows = []
        if not rows or not iteration:  # the heading itself may be torn
            self.path.unlink()
            return
        lines = [",".join(rows[0]) + "\n"]
        for row in rows[1:]:
            is_past = row[0].isdigit() and int(row[0]) <= iteration
            if is_past:
                lines.append(",".join(row) + "\n")
        write_atomic(self.path, "".join(lines))


def check_loggers(settings: LoggerOptions) -> None:
    """Refuses loggers that cannot be used here, before anything is created.

    Raises:
        UserError: A library is not installed; W&B's mode, key or settings cannot be used.
    """
    if settings.wandb:
        wandb_sink.check(settings)
    if settings.tensorboard:
        require("tensorboard", "tensorboard")
    if settings.mlflow:
        mlflow_sink.check()


def build_loggers(options: Options, folder: Path, config: dict[str, Any]) -> list[Sink]:
    """`metrics.csv`, and each logger that `logger=` names.

    Args:
        options: Of the run.
        folder: The run's.
        config: The whole recorded configuration.

    Raises:
        RunFailed: W&B or MLflow cannot be reached, or does not take the run.
    """
    settings = options.logger
    card = Card.of(options, folder, config)
    sinks: list[Sink] = [MetricsFile(folder / "metrics.csv")]
    if settings.tensorboard:
        sinks.append(TensorBoardFiles(card))
    if settings.mlflow:
        sinks.append(mlflow_sink.open_run(card))
    if settings.wandb:
        run = wandb_sink.open_run(card)
        sinks += [run] if run else []
    return sinks


def finish(
    sinks: list[Sink], result: dict[str, Any] | None, folder: Path, reason: str = ""
) -> None:
    """Hands the result and the pictures to each logger and closes it.

    A run that failed has no result but a `reason`.
    """
    if result is None:
        for sink in sinks:
            sink.fail(reason)
        return
    summary = summarise(result)
    pictures = sorted((folder / "figures").glob("*.png"))
    for sink in sinks:
        sink.conclude(summary, pictures)


@cache
def papers() -> dict[str, PaperTable]:
    """The papers' tables, read once for all runs of a process."""
    return read_tables()


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """The columns of a result in a logger's table of runs."""
    # nothing without labelled outliers
    summary = dict(result["scores"][result["primary"]] or {})
    summary.pop("auroc_ci", None)
    for name, floor in result["floor"].items():
        summary[f"floor/{name}"] = floor["auroc"]
    printed = printed_for(papers(), result)
    if printed:
        summary["published"], summary["published_in"] = printed
    summary["failed"] = 0
    summary["reason"] = ""  # of an interruption before
    summary["warnings"] = "; ".join(result["warnings"])
    summary["seconds"] = result["seconds"]["total"]
    return summary
