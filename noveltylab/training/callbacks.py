"""What happens during training: seeds, learning rates, averaged weights, signals, progress."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from noveltylab.command.screen import console
from noveltylab.command.signals import HANGUP, SIGNALS, handle, leave_terminal
from noveltylab.errors import Interrupted
from noveltylab.methods.base import Method

log = logging.getLogger("noveltylab")

#: Seconds between two lines about the progress.
LINE_SECONDS = 10


def first_process() -> bool:
    """Whether this is the run's main process, not a helper on another of its devices."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


class Reseed(Callback):
    """Makes every epoch's random numbers a function of (seed, epoch, process)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        entropy = np.random.SeedSequence([self.seed, trainer.current_epoch, trainer.global_rank])
        # NumPy 1 shifts no uint64 by an int
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)


class Decay(Callback):
    """Lets every learning rate fall linearly from a share of the epochs on.

    The last epoch still has more than 0.
    """

    def __init__(self, start: float) -> None:
        self.start = start

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        remainder = 1 - trainer.current_epoch / (trainer.max_epochs or 1)
        factor = min(1.0, remainder / (1 - self.start))
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])  # goes into checkpoints with the group
                group["lr"] = group["initial_lr"] * factor


class Average(WeightAveraging):
    """The exponential average of the weights, beside those that train.

    After every chunk of iterations w <- w + (w_now - w) / n, where n is the number of chunks in
    `epochs` epochs. What is validated and kept is the average; `last.ckpt` has both. It begins anew
    with the epoch `begin`, counted from 1: no weights from before it are in it then.
    """

    def __init__(self, epochs: float, begin: int = 1) -> None:
        super().__init__()
        self.epochs = epochs
        self.begin = begin

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Method)
        graph = pl_module.graph
        pl_module.graph = None  # what is copied here never trains
        super().setup(trainer, pl_module, stage)
        pl_module.graph = graph

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._average_model is not None
        chunks = self.epochs * int(trainer.num_training_batches)
        decay = 1 - 1 / max(1.0, chunks)
        # set here, not in `setup`: Lightning knows the number of chunks only now
        self._average_model.multi_avg_fn = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # untyped in torch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._average_model is not None
        if trainer.current_epoch + 1 == self.begin:
            self._average_model.n_averaged.zero_()  # the next weights are copied, not averaged

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Not here: a run that resumes after its last epoch never ends its training (see `fit`)."""

    def put(self, method: Method) -> None:
        """The average takes the place of the weights, for good."""
        self._copy_average_to_current(method)

    @contextmanager
    def swapped_in(self, method: Method) -> Iterator[None]:
        """The average in the place of the weights."""
        self._swap_models(method)
        try:
            yield
        finally:
            self._swap_models(method)


class Stop(Callback):
    """On the first of SIGNALS training ends with the epoch and a checkpoint; on the second at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning puts its own handlers in place before, and those from outside back afterwards."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handle(number, self.ask)

    def ask(self, number: int, frame: object) -> None:
        if number == HANGUP:
            leave_terminal()
        if self.signal is not None:
            raise Interrupted(number)
        self.signal = number
        log.warning(
            "ending this epoch, then stopping with a checkpoint; once more (Ctrl-C) stops at once"
        )


class ProgressBar(Callback):
    """One bar for the whole training with its losses and the time that remains.

    Plain lines where there is no terminal.
    """

    def __init__(self, title: str) -> None:
        self.console = console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}", markup=False),
        )
        is_hidden = not self.console.is_terminal or not first_process()
        self.bar = Progress(*columns, console=self.console, disable=is_hidden)
        self.task = self.bar.add_task(title, total=1.0, losses="")
        self.start_time = self.line_time = time.monotonic()
        #: share of all epochs at which this process begins
        self.start_share = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start_share = trainer.current_epoch / (trainer.max_epochs or 1)
        # a sweep's view shows it
        log.debug(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: begun")
        self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        chunks = max(int(trainer.num_training_batches), 1)
        epoch_chunks = trainer.fit_loop.epoch_loop.batch_progress.current.completed or 0
        epochs = trainer.current_epoch + epoch_chunks / chunks
        share = min(epochs / (trainer.max_epochs or 1), 1.0)
        self._show(pl_module, share, trainer.current_epoch + 1, trainer.max_epochs)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._show(pl_module, 1.0, trainer.current_epoch, trainer.max_epochs, last=True)
        self.bar.stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.bar.stop()

    def _show(
        self, method: Method, share: float, epoch: int, epochs: int | None, last: bool = False
    ) -> None:
        words = {name: f"{name} {value:.3g}" for name, value in method.losses.items()}
        main_losses = [words[name] for name in words if name in ("mse", "val")]
        first_losses = list(words.values())[:2]
        losses = ", ".join(main_losses or first_losses)
        self.bar.update(self.task, completed=share, losses=losses)
        now = time.monotonic()
        if last or now - self.line_time >= LINE_SECONDS:
            self.line_time = now
            self._write_line(", ".join(words.values()), share, f"epoch {epoch} of {epochs}", now)

    def _write_line(self, losses: str, share: float, epoch: str, now: float) -> None:
        """One line of the log; on the screen where there is no bar."""
        seconds = now - self.start_time
        own_share = share - self.start_share
        remaining = "unknown"
        if own_share > 0:
            remaining = f"{seconds / own_share * (1 - share):.0f} s"
        level = logging.DEBUG if self.console.is_terminal else logging.INFO
        log.log(level, f"{epoch}, {seconds:.0f} s, {remaining} left: {losses}")
