"""Keeps the checkpoint to resume from and the weights that the selection rules ask for."""

import logging
import math
import signal
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from noveltylab.data.datamodule import NoveltyData
from noveltylab.data.protocols import VAL_LABELLED
from noveltylab.errors import Interrupted
from noveltylab.methods.base import Method
from noveltylab.options import Options, TrainerOptions
from noveltylab.results.phases import begins
from noveltylab.scoring.aggregate import measured_scores
from noveltylab.scoring.apply import (
    fresh_batch_norm,
    novelty_scores,
    renew_batch_norm,
    validation_loss,
)
from noveltylab.scoring.metrics import evaluate
from noveltylab.training.callbacks import Average, Stop
from noveltylab.training.estimate import Estimate
from noveltylab.training.weights import save_weights

log = logging.getLogger("noveltylab")


@dataclass
class Selected:
    """One choice of weights: `rule`, the `epoch` they stand at (1 = after the first), the rule's
    `value`, the file.
    """

    rule: str
    epoch: int
    value: float | None
    path: Path


def first_whole_epoch(method: Method, settings: TrainerOptions) -> int:
    """The first epoch, counted from 1, whose weights are those of the whole method; the last one
    where none is.

    1 with trainer.select_whole=false, which asks for weights of any epoch.
    """
    if not settings.select_whole:
        return 1
    return min(begins(method.whole_from, settings.max_epochs), settings.max_epochs)


class Checkpoints(Callback):
    """Keeps `last.ckpt` for resuming and the weights that the selection rules ask for.

    Files: `last.pt`; `val_loss.pt`, lowest loss on held-out inliers; with select=outlier_val or
    oracle also, for each named score, `<rule>-<score>.pt`, highest AUROC on labelled validation
    images or on the test itself (never the run's number).
    """

    def __init__(
        self,
        options: Options,
        data: NoveltyData,
        folder: Path,
        stop: Stop,
        average: Average | None = None,
    ) -> None:
        self.options, self.data, self.folder, self.stop, self.average = (
            options,
            data,
            folder,
            stop,
            average,
        )
        #: file stem -> {"value", "epoch"} of the weights kept there
        self.best: dict[str, dict[str, float | int]] = {}
        #: epochs that have trained; looks since the last one with a lower loss; whether these were
        #: too many
        self.trained, self.waited, self.stopped = 0, 0, False
        #: spent on rules that use labels, which no run needs
        self.labelled_seconds = 0.0
        self.saved_at = self.started_at = time.monotonic()
        self.estimate = Estimate(options, data, lambda: self.seconds)

    @property
    def labelled_images(self) -> int:
        """How many images a rule that uses labels scores in each of its looks."""
        if self.options.labelled_rule == "outlier_val":
            return min(len(self.data.val), VAL_LABELLED) + len(self.data.val_outliers)
        return len(self.data.test) if self.options.labelled_rule else 0

    @property
    def seconds(self) -> dict[str, float]:
        """Of training so far, those before an interruption included; apart those of rules that use
        labels.
        """
        return {
            "train": time.monotonic() - self.started_at - self.labelled_seconds,
            "labelled": self.labelled_seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        waiting = {"trained": self.trained, "waited": self.waited, "stopped": self.stopped}
        return {"best": self.best, "seconds": self.seconds, **waiting}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, seconds = state_dict["best"], state_dict["seconds"]
        # a checkpoint of before has none, nor the others
        self.trained = state_dict.get("trained", 0)
        self.waited, self.stopped = state_dict.get("waited", 0), state_dict.get("stopped", False)
        self.labelled_seconds = seconds["labelled"]
        self.started_at = time.monotonic() - sum(seconds.values())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.stopped:  # a run that had stopped early does not go on
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        epoch, epochs, settings = (
            trainer.current_epoch + 1,
            int(trainer.max_epochs or 1),
            self.options.trainer,
        )
        pl_module.check_finite()
        self.trained = epoch
        if epoch % settings.val_every == 0 or epoch == epochs:
            with (
                self.average.shown(pl_module) if self.average else nullcontext(),
                self._batch_norm(pl_module),
            ):
                self._choose(pl_module, epoch, epochs, keep=trainer.is_global_zero)
        self.stopped = self._impatient(trainer, epoch, epochs)
        trainer.should_stop |= self.stopped
        # what one process was told or has timed, all of them do: a checkpoint waits for everyone
        anyone = partial(trainer.strategy.reduce_boolean_decision, all=False)
        interrupted = anyone(self.stop.signal is not None)
        over = epoch == epochs or self.stopped or interrupted
        if over or anyone(time.monotonic() - self.saved_at >= settings.checkpoint_seconds):
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self.saved_at = time.monotonic()
        if interrupted:
            raise Interrupted(self.stop.signal or signal.SIGTERM)

    def _impatient(self, trainer: L.Trainer, epoch: int, epochs: int) -> bool:
        """Whether training ends here, by trainer.patience; the first process decides, as each has
        looked for itself.
        """
        patience = self.options.trainer.patience
        if not patience:
            return False
        stops: bool = trainer.strategy.broadcast(self.waited >= patience and epoch < epochs)
        if stops:
            looks = f"{patience} look{'s' * (patience > 1)}"
            log.info(
                f"stopped after epoch {epoch} of {epochs}: {looks} without a lower loss on held-out inliers"
            )
        return stops

    def _choose(self, method: Method, epoch: int, epochs: int, keep: bool) -> None:
        """Looks at the weights, and keeps them for every rule under which none were better."""
        values, first = self._look(method), self._first_choice(method, epochs)
        for logger in method.loggers:
            named = {f"val/{name.removeprefix('val_')}": value for name, value in values.items()}
            logger.log_metrics(named, step=method.iteration)
        for name, value in values.items():
            better = -value if name == "val_loss" else value
            before = self.best.get(name, {}).get("better", -math.inf)
            if name == "val_loss" and epoch >= max(first, begins(method.whole_from, epochs)):
                self.waited = 0 if better > before else self.waited + 1
            if epoch >= first and better > before:
                self.best[name] = {"better": better, "value": value, "epoch": epoch}
                if keep:
                    save_weights(
                        self.folder / f"{name}.pt",
                        method,
                        self.data,
                        rule=name,
                        epoch=epoch,
                        value=value,
                    )

    def _batch_norm(self, method: Method) -> AbstractContextManager[None]:
        """Inside, batch norms have the statistics that trainer.batch_norm asks for."""
        if self.options.trainer.batch_norm == "running":
            return nullcontext()
        return fresh_batch_norm(method, self.data.preprocess, self.data.train, self.data.batch_size)

    def _first_choice(self, method: Method, epochs: int) -> int:
        """The first epoch, counted from 1, whose weights a rule may choose."""
        settings = self.options.trainer
        return max(
            math.floor(settings.select_from * epochs) + 1, first_whole_epoch(method, settings)
        )

    def _look(self, method: Method) -> dict[str, float]:
        """The value of each rule's criterion now, by the stem of the file that keeps its best
        weights.
        """
        data, batch_size = self.data, self.options.trainer.score_batch_size
        values: dict[str, float] = {}
        if len(data.val):
            values["val_loss"] = validation_loss(method, data.preprocess, data.val, batch_size)
            method.losses = {**method.losses, "val": values["val_loss"]}
        if rule := self.options.labelled_rule:
            start = time.monotonic()
            inliers = data.val[:VAL_LABELLED].cpu()
            images = torch.cat([inliers, data.val_outliers]) if rule == "outlier_val" else data.test
            columns = novelty_scores(method, data.preprocess, images, batch_size, data.val)
            is_outlier = np.arange(len(images)) >= len(inliers)
            if rule == "oracle":
                scores, _ = measured_scores(data.pieces(columns), data.wholes)
                columns, is_outlier = scores.columns, scores.is_outlier
            for name, column in columns.items():
                values[f"{rule}-{name}"] = evaluate(column, is_outlier)["auroc"]
            self.labelled_seconds += time.monotonic() - start
        return values

    def main(self, method: Method) -> Selected:
        """The weights behind the run's number: by the inlier-only rule."""
        if self.options.main_rule == "val_loss" and "val_loss" in self.best:
            return self._selected("val_loss")
        if self.options.trainer.batch_norm == "anew":
            renew_batch_norm(method, self.data.preprocess, self.data.train, self.data.batch_size)
        save_weights(self.folder / "last.pt", method, self.data, rule="last", epoch=self.trained)
        return Selected("last", self.trained, None, self.folder / "last.pt")

    def labelled(self) -> dict[str, Selected]:
        """Score name -> the weights that the rule with outlier labels chose for it."""
        start = f"{self.options.labelled_rule}-"
        return {
            stem.removeprefix(start): self._selected(stem)
            for stem in self.best
            if stem.startswith(start)
        }

    def _selected(self, stem: str) -> Selected:
        best = self.best[stem]
        return Selected(stem, int(best["epoch"]), float(best["value"]), self.folder / f"{stem}.pt")
