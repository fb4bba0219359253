"""Weights & Biases: one run there for each run here, on its server or kept on disk."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from noveltylab.command.logger_options import LoggerOptions
from noveltylab.command.wandb_mode import wandb_mode
from noveltylab.errors import RunFailed, UserError
from noveltylab.training.sink import Card, Sink, first_words, keep_id, kept_id


class WandbRun(WandbLogger, Sink):
    """Lightning's W&B logger with our iteration counter as the axis of every chart."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._wandb_init.pop("anonymous", None)  # which W&B warns of

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # W&B's own step as well: a run that was interrupted goes on along the same axis
        self.experiment.log({**metrics, "iteration": step}, step=step)

    def conclude(self, summary: dict[str, Any], pictures: list[Path]) -> None:
        """Fills the table of runs and the panels, and ends the run: a sweep's next has its own."""
        import wandb

        self.experiment.summary.update(summary)
        self.experiment.log({path.stem: wandb.Image(str(path)) for path in pictures})
        wandb.finish(exit_code=0)

    def fail(self, reason: str) -> None:
        """Marks the run as failed and ends it."""
        import wandb

        self.experiment.summary.update({"failed": 1, "reason": reason})
        wandb.finish(exit_code=1)


def check(settings: LoggerOptions) -> None:
    """Raises UserError where W&B's mode, key or settings cannot be used."""
    if wandb_mode(settings.mode) == "disabled":
        return
    import wandb

    try:
        wandb.Settings().update_from_env_vars(dict(os.environ))
    except (ValueError, wandb.Error) as error:  # pydantic's error is a ValueError
        reason = first_words(error)
        raise UserError(f"the environment variables of W&B (WANDB_...): {reason}") from None


def run_id(folder: Path) -> str:
    """The run's id in W&B, kept in its folder.

    A run that goes on after an interruption is the same run there.
    """
    path = folder / "wandb-id"
    identifier = kept_id(path, "[0-9a-f]{16}")
    if not identifier:  # none yet, or not one of ours
        identifier = secrets.token_hex(8)
        keep_id(path, identifier)
    return identifier


def open_run(card: Card) -> WandbRun | None:
    """The W&B run of a run; None where WANDB_MODE disables it.

    Raises:
        RunFailed: W&B cannot be reached, or does not take the run.
    """
    mode = wandb_mode(card.settings.mode)
    if mode == "disabled":
        return None
    import wandb

    cell = card.cell
    run = WandbRun(
        project=card.settings.project,
        entity=card.settings.entity,
        name=card.name,
        group=f"{cell['method']}-{cell['data']}-{cell['protocol']}",
        tags=card.all_tags,
        notes=card.notes or None,
        save_dir=str(card.folder),
        id=run_id(card.folder),
        # not Lightning's `offline`, which sets WANDB_MODE for all later runs of the process
        mode=mode,
        settings=wandb.Settings(silent=mode == "offline"),  # where the files lie is said at the end
        config=card.config,
    )
    try:
        run.experiment.define_metric("iteration")
    except (wandb.Error, ValueError) as error:
        reason = first_words(error)
        raise RunFailed(
            f"W&B does not take the run ({reason}); logger.mode=offline keeps it on disk"
        ) from error
    run.experiment.define_metric("*", step_metric="iteration")
    return run
