"""Keeps the checkpoint to resume from and the weights that the selection rules ask for.

Their files are whole or absent, and are read without running code.
"""

import io
import logging
import math
import signal
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from noveltylab.data.datamodule import NoveltyData
from noveltylab.data.protocols import VAL_LABELLED
from noveltylab.errors import Interrupted
from noveltylab.methods.base import Method
from noveltylab.options import TrainerOptions
from noveltylab.results.files import open_regular, write_atomic
from noveltylab.results.phases import begins
from noveltylab.scoring.aggregate import measured_scores
from noveltylab.scoring.apply import (
    fresh_batch_norm,
    novelty_scores,
    prepare_score,
    renew_batch_norm,
    validation_loss,
)
from noveltylab.scoring.metrics import evaluate
from noveltylab.training.callbacks import Average, Stop
from noveltylab.training.estimate import Estimate

log = logging.getLogger("noveltylab")


def save_weights(path: Path, method: Method, data: NoveltyData, **facts: Any) -> None:
    """Saves the weights of the method and of its preprocessing, with plain facts.

    They can be loaded with `weights_only=True`.
    """
    weights = {"method": method.state_dict(), "preprocess": data.preprocess.state_dict()}
    save_file({**weights, **facts}, path)


def load_weights(path: Path, method: Method) -> None:
    """Puts the saved weights into the method."""
    method.load_state_dict(load_file(path, method.device)["method"])


def load_file(path: str | Path, device: Any = "cpu") -> Any:
    """What `save_file` wrote; no pipe is waited for, no code is run."""
    with open_regular(path) as file:
        return torch.load(file, map_location=device, weights_only=True)


def save_file(content: dict[str, Any], path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


class AtomicCheckpointIO(TorchCheckpointIO):
    """How Lightning writes and reads its checkpoints: as weights are."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        save_file(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> Any:
        return load_file(path, map_location or "cpu")


@dataclass
class Selected:
    """One choice of weights.

    Attributes:
        rule: By which they were chosen.
        epoch: At which they stand; 1 is after the first.
        value: Of the rule's criterion; None for the last weights.
        path: Their file.
    """

    rule: str
    epoch: int
    value: float | None
    path: Path


def first_whole_epoch(method: Method, settings: TrainerOptions) -> int:
    """The first epoch, counted from 1, whose weights are those of the whole method.

    The last one where none is; 1 with trainer.select_whole=false, which asks for any epoch.
    """
    if not settings.select_whole:
        return 1
    return min(begins(method.whole_from, settings.max_epochs), settings.max_epochs)


class Checkpoints(Callback):
    """Keeps `last.ckpt` for resuming and the weights that the selection rules ask for.

    Files: `last.pt`; `val_loss.pt`, lowest loss on held-out inliers; under a rule with outlier
    labels also, for each named score, `<rule>-<score>.pt`, highest AUROC on labelled validation
    images or on the test itself (never the run's number).

    Args:
        settings: The trainer's options.
        main_rule: The rule behind the run's number, "last" or "val_loss".
        labelled_rule: "outlier_val" or "oracle"; None for none.
        data: The images to look at.
        folder: Of the files.
        stop: Knows whether a signal has come.
        average: Of the weights, whose files are kept in their place.
        estimate: Of what training takes.
    """

    def __init__(
        self,
        settings: TrainerOptions,
        main_rule: str,
        labelled_rule: str | None,
        data: NoveltyData,
        folder: Path,
        *,
        stop: Stop,
        average: Average | None,
        estimate: Estimate,
    ) -> None:
        self.settings = settings
        self.main_rule = main_rule
        self.labelled_rule = labelled_rule
        self.data = data
        self.folder = folder
        self.stop = stop
        self.average = average
        self.estimate = estimate
        #: file stem -> {"value", "epoch"} of the weights kept there
        self.best: dict[str, dict[str, float | int]] = {}
        #: epochs that have trained
        self.trained = 0
        #: looks since the last one with a lower loss, and whether these were too many
        self.waited = 0
        self.stopped = False
        #: spent on rules that use labels, which no run needs
        self.labelled_seconds = 0.0
        self.save_time = self.start_time = time.monotonic()

    @property
    def labelled_images(self) -> int:
        """How many images a rule that uses labels scores in each of its looks."""
        if self.labelled_rule is None:
            return 0
        if self.labelled_rule == "outlier_val":
            return min(len(self.data.val), VAL_LABELLED) + len(self.data.val_outliers)
        return len(self.data.test)

    @property
    def seconds(self) -> dict[str, float]:
        """Of training so far, before an interruption too; apart those of rules that use labels."""
        spent = time.monotonic() - self.start_time
        return {"train": spent - self.labelled_seconds, "labelled": self.labelled_seconds}

    def state_dict(self) -> dict[str, Any]:
        waiting = {"trained": self.trained, "waited": self.waited, "stopped": self.stopped}
        return {"best": self.best, "seconds": self.seconds, **waiting}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
        # a checkpoint of before has none of these
        self.trained = state_dict.get("trained", 0)
        self.waited = state_dict.get("waited", 0)
        self.stopped = state_dict.get("stopped", False)
        seconds = state_dict["seconds"]
        self.labelled_seconds = seconds["labelled"]
        self.start_time = time.monotonic() - sum(seconds.values())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.stopped:  # a run that had stopped early does not go on
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        epoch, epochs = trainer.current_epoch + 1, int(trainer.max_epochs or 1)
        pl_module.check_finite()
        self.trained = epoch
        if epoch % self.settings.val_every == 0 or epoch == epochs:
            with ExitStack() as stack:
                if self.average:
                    stack.enter_context(self.average.swapped_in(pl_module))
                stack.enter_context(self._batch_norm(pl_module))
                self._choose(pl_module, epoch, epochs, keep=trainer.is_global_zero)
        self.stopped = self._impatient(trainer, epoch, epochs)
        trainer.should_stop |= self.stopped
        # what one process was told or has timed, all of them do: a checkpoint waits for everyone
        anyone = partial(trainer.strategy.reduce_boolean_decision, all=False)
        interrupted = anyone(self.stop.signal is not None)
        over = epoch == epochs or self.stopped or interrupted
        if over or anyone(time.monotonic() - self.save_time >= self.settings.checkpoint_seconds):
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self.save_time = time.monotonic()
        if interrupted:
            raise Interrupted(self.stop.signal or signal.SIGTERM)

    def _impatient(self, trainer: L.Trainer, epoch: int, epochs: int) -> bool:
        """Whether training ends here, by trainer.patience.

        The first process decides, as each has looked for itself.
        """
        patience = self.settings.patience
        if not patience:
            return False
        stops: bool = trainer.strategy.broadcast(self.waited >= patience and epoch < epochs)
        if stops:
            looks = "1 look" if patience == 1 else f"{patience} looks"
            log.info(
                f"stopped after epoch {epoch} of {epochs}: {looks} without a lower loss "
                "on held-out inliers"
            )
        return stops

    def _choose(self, method: Method, epoch: int, epochs: int, keep: bool) -> None:
        """Looks at the weights, and keeps them for every rule under which none were better."""
        values = self._look(method)
        for logger in method.loggers:
            metrics = {f"val/{name.removeprefix('val_')}": value for name, value in values.items()}
            logger.log_metrics(metrics, step=method.iteration)
        first = self._first_choice(method, epochs)
        first_whole = begins(method.whole_from, epochs)
        for name, value in values.items():
            criterion = -value if name == "val_loss" else value
            record = self.best.get(name, {}).get("better", -math.inf)
            improved = criterion > record
            if name == "val_loss" and epoch >= max(first, first_whole):
                self.waited = 0 if improved else self.waited + 1
            if epoch >= first and improved:
                self.best[name] = {"better": criterion, "value": value, "epoch": epoch}
                if keep:
                    path = self.folder / f"{name}.pt"
                    save_weights(path, method, self.data, rule=name, epoch=epoch, value=value)

    def _batch_norm(self, method: Method) -> AbstractContextManager[None]:
        """Inside, batch norms have the statistics that trainer.batch_norm asks for."""
        if self.settings.batch_norm == "running":
            return nullcontext()
        return fresh_batch_norm(method, self.data.preprocess, self.data.train, self.data.batch_size)

    def _first_choice(self, method: Method, epochs: int) -> int:
        """The first epoch, counted from 1, whose weights a rule may choose."""
        first = math.floor(self.settings.select_from * epochs) + 1
        return max(first, first_whole_epoch(method, self.settings))

    def _look(self, method: Method) -> dict[str, float]:
        """The value of each rule's criterion now, by the file stem of its best weights."""
        data, batch_size = self.data, self.settings.score_batch_size
        values: dict[str, float] = {}
        if len(data.val) or self.labelled_rule:
            prepare_score(method, data.preprocess, data.train)
        if len(data.val):
            values["val_loss"] = validation_loss(method, data.preprocess, data.val, batch_size)
            method.losses = {**method.losses, "val": values["val_loss"]}
        if self.labelled_rule:
            start = time.monotonic()
            for name, auroc in self._labelled_aurocs(method, batch_size).items():
                values[f"{self.labelled_rule}-{name}"] = auroc
            self.labelled_seconds += time.monotonic() - start
        return values

    def _labelled_aurocs(self, method: Method, batch_size: int) -> dict[str, float]:
        """AUROC of each score on the images whose labels the rule uses."""
        data = self.data
        if self.labelled_rule == "oracle":
            columns = novelty_scores(method, data.preprocess, data.test, batch_size, data.val)
            scores, _ = measured_scores(data.pieces(columns), data.wholes)
            columns, is_outlier = scores.columns, scores.is_outlier
        else:
            inliers = data.val[:VAL_LABELLED].cpu()
            images = torch.cat([inliers, data.val_outliers])
            columns = novelty_scores(method, data.preprocess, images, batch_size, data.val)
            is_outlier = np.arange(len(images)) >= len(inliers)
        return {name: evaluate(column, is_outlier)["auroc"] for name, column in columns.items()}

    def select(self, method: Method) -> Selected:
        """The weights behind the run's number: by the inlier-only rule."""
        if self.main_rule == "val_loss" and "val_loss" in self.best:
            return self._selected("val_loss")
        if self.settings.batch_norm == "anew":
            renew_batch_norm(method, self.data.preprocess, self.data.train, self.data.batch_size)
        prepare_score(method, self.data.preprocess, self.data.train)
        save_weights(self.folder / "last.pt", method, self.data, rule="last", epoch=self.trained)
        return Selected("last", self.trained, None, self.folder / "last.pt")

    def select_labelled(self) -> dict[str, Selected]:
        """Score name -> the weights that the rule with outlier labels chose for it."""
        prefix = f"{self.labelled_rule}-"
        selections = {}
        for stem in self.best:
            if stem.startswith(prefix):
                selections[stem.removeprefix(prefix)] = self._selected(stem)
        return selections

    def _selected(self, stem: str) -> Selected:
        best = self.best[stem]
        return Selected(stem, int(best["epoch"]), float(best["value"]), self.folder / f"{stem}.pt")
