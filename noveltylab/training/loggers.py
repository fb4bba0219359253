"""Where losses go: `metrics.csv` in the run folder always, Weights & Biases if asked for."""

import csv
import io
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from pydantic import ValidationError

from noveltylab.command.wandb_mode import wandb_mode
from noveltylab.errors import RunFailed, UserError
from noveltylab.options import CSVOptions, WandbOptions
from noveltylab.report.published import printed_for, read_tables
from noveltylab.results.files import MAX_TABLE_BYTES, read_bytes, read_text, write_atomic


class MetricsFile(Logger):
    """Appends `iteration,name,value` rows to `metrics.csv`.

    A resumed run goes on where its checkpoint stands.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run's config.yaml holds them."""

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


class WandbRun(WandbLogger):
    """Lightning's W&B logger with our iteration counter as the axis of every chart."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._wandb_init.pop("anonymous", None)  # which W&B warns of

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # W&B's own step as well: a run that was interrupted goes on along the same axis
        self.experiment.log({**metrics, "iteration": step}, step=step)


def check_logger(settings: CSVOptions | WandbOptions) -> None:
    """Raises UserError where W&B's mode, key or settings cannot be used."""
    if _wandb_mode(settings) is None:
        return
    import wandb

    try:
        wandb.Settings().update_from_env_vars(dict(os.environ))
    except (ValueError, wandb.Error) as error:  # pydantic's error is a ValueError
        reason = _first_words(error)
        raise UserError(f"the environment variables of W&B (WANDB_...): {reason}") from None


def _wandb_mode(settings: CSVOptions | WandbOptions) -> str | None:
    """The mode that W&B runs in; None without it."""
    if not isinstance(settings, WandbOptions):
        return None
    mode = wandb_mode(settings.mode)
    return None if mode == "disabled" else mode


def _first_words(error: Exception) -> str:
    if isinstance(error, ValidationError):  # without the value, which may be a key
        sentences = []
        for item in error.errors():
            field = ".".join(map(str, item["loc"]))
            sentences.append(f"{field}: {item['msg']}")
        return "; ".join(sentences)
    return " ".join(str(error).split())[:300]


def run_id(folder: Path) -> str:
    """The run's id in W&B, kept in its folder.

    A run that goes on after an interruption is the same run there.
    """
    path = folder / "wandb-id"
    try:
        identifier = read_text(path).strip()
    except (OSError, ValueError):
        identifier = ""
    if re.fullmatch(r"[0-9a-f]{16}", identifier):
        return identifier
    # none yet, or not one of ours
    identifier = secrets.token_hex(8)
    write_atomic(path, f"{identifier}\n")
    return identifier


def build_loggers(
    settings: CSVOptions | WandbOptions,
    cell: Mapping[str, Any],
    folder: Path,
    config: dict[str, Any],
) -> list[Logger]:
    """`metrics.csv`, and the W&B run if `logger=wandb`.

    Args:
        settings: The options of the logger.
        cell: Which run it is (`Options.cell`); names it.
        folder: The run's.
        config: The whole recorded configuration, which goes into W&B.

    Raises:
        RunFailed: W&B cannot be reached, or does not take the run.
    """
    loggers: list[Logger] = [MetricsFile(folder / "metrics.csv")]
    mode = _wandb_mode(settings)
    if mode is not None:
        assert isinstance(settings, WandbOptions)
        loggers.append(_wandb_run(settings, mode, cell, folder, config))
    return loggers


def _wandb_run(
    settings: WandbOptions,
    mode: str,
    cell: Mapping[str, Any],
    folder: Path,
    config: dict[str, Any],
) -> WandbRun:
    import wandb

    method, data, protocol = cell["method"], cell["data"], cell["protocol"]
    run = WandbRun(
        project=settings.project,
        entity=settings.entity,
        name=f"{method}-{data}-{cell['inlier']}-{cell['seed']}",
        group=f"{method}-{data}-{protocol}",
        tags=[method, data, protocol, f"select-{cell['select']}"],
        save_dir=str(folder),
        id=run_id(folder),
        # not Lightning's `offline`, which sets WANDB_MODE for all later runs of the process
        mode=mode,
        settings=wandb.Settings(silent=mode == "offline"),  # where the files lie is said at the end
        config=config,
    )
    try:
        run.experiment.define_metric("iteration")
    except (wandb.Error, ValueError) as error:
        reason = _first_words(error)
        raise RunFailed(
            f"W&B does not take the run ({reason}); logger.mode=offline keeps it on disk"
        ) from error
    run.experiment.define_metric("*", step_metric="iteration")
    return run


def finish(
    loggers: list[Logger], result: dict[str, Any] | None, folder: Path, reason: str = ""
) -> None:
    """Puts the result and the pictures into W&B and closes its run.

    The next cell of a sweep gets a run of its own. A run that failed has no result but a `reason`.
    """
    for logger in loggers:
        if not isinstance(logger, WandbRun):
            continue
        import wandb

        summary = logger.experiment.summary
        if result is None:
            summary.update({"failed": 1, "reason": reason})
            wandb.finish(exit_code=1)
            continue
        summary.update(summarise(result))
        pictures = {}
        for path in sorted((folder / "figures").glob("*.png")):
            pictures[path.stem] = wandb.Image(str(path))
        logger.experiment.log(pictures)
        wandb.finish(exit_code=0)


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """The columns of a result in W&B's table of runs."""
    # nothing without labelled outliers
    summary = dict(result["scores"][result["primary"]] or {})
    summary.pop("auroc_ci", None)
    for name, floor in result["floor"].items():
        summary[f"floor/{name}"] = floor["auroc"]
    printed = printed_for(read_tables(), result)
    if printed:
        summary["published"], summary["published_in"] = printed
    summary["failed"] = 0
    summary["reason"] = ""  # of an interruption before
    summary["warnings"] = "; ".join(result["warnings"])
    summary["seconds"] = result["seconds"]["total"]
    return summary
