"""Where losses go: `metrics.csv` in the run folder always, Weights & Biases if asked for."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from noveltylab.options import Options, WandbOptions
from noveltylab.report.published import printed_for, read_tables
from noveltylab.results import write_atomic


class MetricsFile(Logger):
    """Appends `iteration,name,value` rows to `metrics.csv`; a resumed run goes on where its checkpoint stands."""

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
        if not self.path.exists():
            return
        with open(self.path, newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == 3]
        if not rows or not iteration:  # the heading itself may be torn
            self.path.unlink()
            return
        kept = [row for row in rows[1:] if row[0].isdigit() and int(row[0]) <= iteration]
        write_atomic(self.path, "".join(",".join(row) + "\n" for row in [rows[0], *kept]))


class WandbRun(WandbLogger):
    """Lightning's W&B logger with our iteration counter as the axis of every chart."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log({**metrics, "iteration": step})


def wandb_offline(mode: str) -> bool:
    """Whether the W&B run stays on disk: asked for, or no key is configured (nobody is ever prompted)."""
    if mode == "auto":
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
    return mode == "offline"


def build_loggers(options: Options, folder: Path, config: dict[str, Any]) -> list[Logger]:
    """`metrics.csv`, and the W&B run if `logger=wandb`; the run's config goes with it."""
    loggers: list[Logger] = [MetricsFile(folder / "metrics.csv")]
    if isinstance(options.logger, WandbOptions):
        run = WandbRun(
            project=options.logger.project,
            entity=options.logger.entity,
            name=f"{options.method['name']}-{options.data.name}-{options.inlier_index}-{options.seed}",
            group=f"{options.method['name']}-{options.data.name}-{options.protocol['name']}",
            tags=[options.method["name"], options.data.name, options.protocol["name"], f"select-{options.select}"],
            save_dir=str(folder),
            offline=wandb_offline(options.logger.mode),
            config=config,
        )
        run.experiment.define_metric("iteration")
        run.experiment.define_metric("*", step_metric="iteration")
        loggers.append(run)
    return loggers


def finish(loggers: list[Logger], result: dict[str, Any] | None, folder: Path, reason: str = "") -> None:
    """Puts the result and the pictures into W&B and closes the run, so that the next cell of a sweep gets its own.

    A run that failed has no result but a `reason`.
    """
    for logger in loggers:
        if isinstance(logger, WandbRun):
            import wandb

            if result is not None:
                main = result["scores"][result["primary"]] or {}  # nothing without labelled outliers
                summary = {name: value for name, value in main.items() if name != "auroc_ci"}
                summary |= {f"floor/{name}": floor["auroc"] for name, floor in result["floor"].items()}
                if printed := printed_for(read_tables(), result):
                    summary |= {"published": printed[0], "published_in": printed[1]}
                summary |= {
                    "failed": 0,
                    "warnings": "; ".join(result["warnings"]),
                    "seconds": result["seconds"]["total"],
                }
                logger.experiment.summary.update(summary)
                logger.experiment.log(
                    {path.stem: wandb.Image(str(path)) for path in sorted((folder / "figures").glob("*.png"))}
                )
            else:
                logger.experiment.summary.update({"failed": 1, "reason": reason})
            wandb.finish(exit_code=0 if result is not None else 1)
