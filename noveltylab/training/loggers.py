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
from noveltylab.options import Options, WandbOptions
from noveltylab.report.published import printed_for, read_tables
from noveltylab.results.files import MAX_TABLE_BYTES, read_bytes, read_text, write_atomic


class MetricsFile(Logger):
    """Appends `iteration,name,value` rows to `metrics.csv`; a resumed run goes on where its
    checkpoint stands.
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
        with open(self.path, "a", newline="") as file:
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
            rows = [row for row in csv.reader(io.StringIO(text, newline="")) if len(row) == 3]
        except (OSError, csv.Error):  # a pipe in its place would be waited for
            rows = []
        if not rows or not iteration:  # the heading itself may be torn
            self.path.unlink()
            return
        kept = [row for row in rows[1:] if row[0].isdigit() and int(row[0]) <= iteration]
        write_atomic(self.path, "".join(",".join(row) + "\n" for row in [rows[0], *kept]))


class WandbRun(WandbLogger):
    """Lightning's W&B logger with our iteration counter as the axis of every chart."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._wandb_init.pop("anonymous", None)  # which W&B warns of

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # W&B's own step as well: a run that was interrupted goes on along the same axis
        self.experiment.log({**metrics, "iteration": step}, step=step)


def prepare(options: Options) -> None:
    """Checks W&B's mode, key and settings before anything is created. UserError if they cannot be
    used.
    """
    if (
        not isinstance(options.logger, WandbOptions)
        or wandb_mode(options.logger.mode) == "disabled"
    ):
        return
    import wandb

    try:
        wandb.Settings().update_from_env_vars(dict(os.environ))
    except (ValueError, wandb.Error) as error:  # pydantic's error is a ValueError
        raise UserError(
            f"the environment variables of W&B (WANDB_...): {_first_words(error)}"
        ) from None


def _first_words(error: Exception) -> str:
    if isinstance(error, ValidationError):  # without the value, which may be a key
        return "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
        )
    return " ".join(str(error).split())[:300]


def run_id(folder: Path) -> str:
    """The run's id in W&B, kept in its folder: a run that goes on after an interruption is the same
    run there.
    """
    path = folder / "wandb-id"
    try:
        if re.fullmatch(r"[0-9a-f]{16}", kept := read_text(path).strip()):
            return kept
    except (OSError, ValueError):
        pass  # none yet, or not one of ours
    write_atomic(path, f"{(new := secrets.token_hex(8))}\n")
    return new


def build_loggers(options: Options, folder: Path, config: dict[str, Any]) -> list[Logger]:
    """`metrics.csv`, and the W&B run if `logger=wandb`; the run's config goes with it.

    Raises:
        RunFailed: W&B cannot be reached, or does not take the run.
    """
    loggers: list[Logger] = [MetricsFile(folder / "metrics.csv")]
    if (
        isinstance(options.logger, WandbOptions)
        and (mode := wandb_mode(options.logger.mode)) != "disabled"
    ):
        loggers.append(_wandb_run(options, options.logger, mode, folder, config))
    return loggers


def _wandb_run(
    options: Options, settings: WandbOptions, mode: str, folder: Path, config: dict[str, Any]
) -> WandbRun:
    import wandb

    run = WandbRun(
        project=settings.project,
        entity=settings.entity,
        name=f"{options.method['name']}-{options.data.title}-{options.inlier_index}-{options.seed}",
        group=f"{options.method['name']}-{options.data.title}-{options.protocol['name']}",
        tags=[
            options.method["name"],
            options.data.title,
            options.protocol["name"],
            f"select-{options.select}",
        ],
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
        raise RunFailed(
            f"W&B does not take the run ({_first_words(error)}); logger.mode=offline keeps it on disk"
        ) from error
    run.experiment.define_metric("*", step_metric="iteration")
    return run


def finish(
    loggers: list[Logger], result: dict[str, Any] | None, folder: Path, reason: str = ""
) -> None:
    """Puts the result and the pictures into W&B and closes the run, so that the next cell of a
    sweep gets its own.

    A run that failed has no result but a `reason`.
    """
    for logger in loggers:
        if isinstance(logger, WandbRun):
            import wandb

            if result is not None:
                # nothing without labelled outliers
                main = result["scores"][result["primary"]] or {}
                summary = {name: value for name, value in main.items() if name != "auroc_ci"}
                summary |= {
                    f"floor/{name}": floor["auroc"] for name, floor in result["floor"].items()
                }
                if printed := printed_for(read_tables(), result):
                    summary |= {"published": printed[0], "published_in": printed[1]}
                summary |= {
                    "failed": 0,
                    "reason": "",  # of an interruption before
                    "warnings": "; ".join(result["warnings"]),
                    "seconds": result["seconds"]["total"],
                }
                logger.experiment.summary.update(summary)
                logger.experiment.log(
                    {
                        path.stem: wandb.Image(str(path))
                        for path in sorted((folder / "figures").glob("*.png"))
                    }
                )
            else:
                logger.experiment.summary.update({"failed": 1, "reason": reason})
            wandb.finish(exit_code=0 if result is not None else 1)
