"""What happens during training: seeds, learning rates, averaged weights, signals, progress."""

import logging
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
from noveltylab.training.trainer import first_process

log = logging.getLogger("noveltylab")


class Reseed(Callback):
    """Makes every epoch's random numbers a function of (seed, epoch, process)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        entropy = np.random.SeedSequence([self.seed, trainer.current_epoch, trainer.global_rank])
        # NumPy 1 shifts no uint64 by an int
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)


class Decay(Callback):
    """Lets every learning rate fall linearly from a share of the epochs on; the last epoch still
    has more than 0.
    """

    def __init__(self, start: float) -> None:
        self.start = start

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        left = 1 - trainer.current_epoch / (trainer.max_epochs or 1)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])  # goes into checkpoints with the group
                group["lr"] = group["initial_lr"] * min(1.0, left / (1 - self.start))


class Average(WeightAveraging):
    """Beside the weights that train, their exponential average: w <- w + (w_now - w) / n after
    every chunk of iterations.

    n is the number of chunks in `epochs` epochs. What is validated and kept is the average;
    `last.ckpt` has both. It begins anew with the epoch `begin`, counted from 1: no weights from
    before it are in it then.
    """

    def __init__(self, epochs: float, begin: int = 1) -> None:
        super().__init__()
        self.epochs, self.begin = epochs, begin

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Method)
        graph, pl_module.graph = pl_module.graph, None  # what is copied here never trains
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
    def shown(self, method: Method) -> Iterator[None]:
        """The average in the place of the weights."""
        self._swap_models(method)
        try:
            yield
        finally:
            self._swap_models(method)


class Stop(Callback):
    """On the first of SIGNALS training ends with the epoch, with a checkpoint; on the second at
    once.
    """

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
    """One bar for the whole training with losses and the time left; plain lines where there is no
    terminal.
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
        self.bar = Progress(
            *columns,
            console=self.console,
            disable=not self.console.is_terminal or not first_process(),
        )
        self.task = self.bar.add_task(title, total=1.0, losses="")
        self.started = self.spoke = time.monotonic()
        self.begun = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun = trainer.current_epoch / (trainer.max_epochs or 1)
        # a sweep's view shows it
        log.debug(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: begun")
        self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        chunks = max(int(trainer.num_training_batches), 1)
        done = (
            trainer.current_epoch
            + (trainer.fit_loop.epoch_loop.batch_progress.current.completed or 0) / chunks
        )
        self._show(
            pl_module,
            min(done / (trainer.max_epochs or 1), 1.0),
            trainer.current_epoch + 1,
            trainer.max_epochs,
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._show(pl_module, 1.0, trainer.current_epoch, trainer.max_epochs, last=True)
        self.bar.stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.bar.stop()

    def _show(
        self, method: Method, done: float, epoch: int, epochs: int | None, last: bool = False
    ) -> None:
        shown = [
            f"{name} {value:.3g}" for name, value in method.losses.items() if name in ("mse", "val")
        ]
        losses = ", ".join(
            shown or [f"{name} {value:.3g}" for name, value in list(method.losses.items())[:2]]
        )
        self.bar.update(self.task, completed=done, losses=losses)
        now = time.monotonic()
        if last or now - self.spoke >= 10:
            self.spoke = now
            share = done - self.begun
            left = f"{(now - self.started) / share * (1 - done):.0f} s" if share > 0 else "unknown"
            every = ", ".join(f"{name} {value:.3g}" for name, value in method.losses.items())
            line = f"epoch {epoch} of {epochs}, {now - self.started:.0f} s, {left} left: {every}"
            log.log(logging.DEBUG if self.console.is_terminal else logging.INFO, line)
