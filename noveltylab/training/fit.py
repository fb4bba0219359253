"""Trains a method with Lightning's Trainer: seeds, checkpoints, selection, progress.

Whatever is random in an epoch is a pure function of (seed, epoch): a run resumed from the
checkpoint of any epoch ends with the numbers of a run that was never interrupted, whenever its
checkpoints were written.
"""

import io
import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from noveltylab.command.screen import console
from noveltylab.command.signals import HANGUP, SIGNALS, handle, leave_terminal
from noveltylab.data.datamodule import NoveltyData
from noveltylab.data.protocols import VAL_LABELLED
from noveltylab.errors import Interrupted, UserError
from noveltylab.methods.base import Method
from noveltylab.options import Options, TrainerOptions
from noveltylab.results.files import open_regular, write_atomic
from noveltylab.results.phases import begins
from noveltylab.scoring.aggregate import measured_scores
from noveltylab.scoring.apply import (
    fresh_batch_norm,
    novelty_scores,
    renew_batch_norm,
    validation_loss,
)
from noveltylab.scoring.metrics import evaluate
from noveltylab.training.cuda_graph import graphed
from noveltylab.training.estimate import Estimate
from noveltylab.training.loggers import MetricsFile

log = logging.getLogger("noveltylab")

#: Images per `training_step`: many iterations, yet a progress bar that moves every few seconds on a
#: CPU.
CHUNK_IMAGES = 1024


@dataclass
class Selected:
    """One choice of weights: `rule`, the `epoch` they stand at (1 = after the first), the rule's
    `value`, the file.
    """

    rule: str
    epoch: int
    value: float | None
    path: Path


def first_process() -> bool:
    """Whether this is the run's main process, not a helper that Lightning started for another of
    its devices.
    """
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


def save_weights(path: Path, method: Method, data: NoveltyData, **facts: Any) -> None:
    """Weights of the method and of its preprocessing, with plain facts, loadable with
    `weights_only=True`.
    """
    _save(
        {"method": method.state_dict(), "preprocess": data.preprocess.state_dict(), **facts}, path
    )


def load_weights(path: Path, method: Method) -> None:
    """Puts the saved weights into the method."""
    method.load_state_dict(_load(path, method.device)["method"])


def _load(path: str | Path, device: Any = "cpu") -> Any:
    """What `_save` wrote; no pipe is waited for, no code is run."""
    with open_regular(path) as file:
        return torch.load(file, map_location=device, weights_only=True)


def _save(content: dict[str, Any], path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints are whole or absent, and are read back without running code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        _save(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> Any:
        return _load(path, map_location or "cpu")


class Reseed(Callback):
    """Makes every epoch's random numbers a function of (seed, epoch, process)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        entropy = np.random.SeedSequence([self.seed, trainer.current_epoch, trainer.global_rank])
        torch.manual_seed(
            int(entropy.generate_state(1, np.uint64)[0]) >> 1
        )  # NumPy 1 shifts no uint64 by an int


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
        self.trained = state_dict.get(
            "trained", 0
        )  # a checkpoint of before has none, nor the others
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
        log.debug(
            f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: begun"
        )  # a sweep's view shows it
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


def check_device(options: Options) -> None:
    """Refuses what this machine or Lightning does not have, before anything is created."""
    wanted = options.trainer.accelerator
    if wanted in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator={wanted}: no CUDA device is visible here; use trainer.accelerator=cpu or auto"
        )
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UserError(
            "trainer.accelerator=mps: no Apple GPU here; use trainer.accelerator=cpu or auto"
        )
    if (
        torch.cuda.is_available()
        and wanted != "cpu"
        and options.trainer.devices > torch.cuda.device_count()
    ):
        raise UserError(
            f"trainer.devices={options.trainer.devices}: {torch.cuda.device_count()} CUDA devices are visible here"
        )
    on_gpu = wanted != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available())
    if options.trainer.precision == "16-mixed" and not on_gpu:
        raise UserError(
            "trainer.precision=16-mixed: needs a GPU; on a CPU use bf16-mixed or 32-true"
        )
    try:
        with warnings.catch_warnings():
            build_trainer(options, [], [], options.folder)
    except (
        ValueError,
        TypeError,
        RuntimeError,
        ImportError,
    ) as error:  # Lightning's own are among these
        reason = " ".join(str(error).split())[:300]
        settings = options.trainer
        raise UserError(
            f"trainer.accelerator={settings.accelerator}, devices={settings.devices}, strategy={settings.strategy}, "
            f"precision={settings.precision}: cannot be had here ({reason}); trainer.accelerator=cpu trainer.devices=1 "
            "runs everywhere"
        ) from None


def build_trainer(
    options: Options, callbacks: list[Callback], loggers: list[Logger], folder: Path
) -> L.Trainer:
    """Lightning's Trainer with everything it would print or write by itself switched off."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore", message=".*does not have many workers"
    )  # data is resident: workers would copy it
    warnings.filterwarnings(
        "ignore", message=".isinstance.treespec, LeafSpec."
    )  # Lightning 2.6.6 under torch 2.15
    settings = options.trainer
    several = settings.devices > 1 and settings.accelerator != "mps"
    return L.Trainer(
        default_root_dir=folder,
        max_epochs=settings.max_epochs,
        accelerator=settings.accelerator,
        devices=settings.devices,
        # each network has its own loss, so no backward pass reaches every weight
        strategy="ddp_find_unused_parameters_true"
        if several and settings.strategy == "auto"
        else settings.strategy,
        precision=settings.precision,
        deterministic=options.deterministic,
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
        log_every_n_steps=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )


def _iteration_of(last: Path) -> int:
    """The iteration that a checkpoint stands at; 0 where there is none, or a damaged one, which is
    moved aside.
    """
    if not last.exists():
        return 0
    try:
        content = _load(last)
        iteration = int(content["iteration"])
        for stem in content["callbacks"]["Checkpoints"][
            "best"
        ]:  # all or none: they belong to one another
            _load(last.with_name(f"{stem}.pt"))
    except Exception as error:  # a torn or foreign file fails in many ways, and each means the same
        damaged = last.rename(last.with_suffix(".damaged"))
        reason = " ".join(str(error).split())[:200]
        log.warning(
            f"{last} or a file beside it cannot be read ({type(error).__name__}: {reason}); kept as {damaged.name}, "
            "training starts again"
        )
        return 0
    log.info(f"resuming from {last} (iteration {iteration})")
    return iteration


def fit(
    method: Method, data: NoveltyData, options: Options, loggers: list[Logger], folder: Path
) -> Checkpoints:
    """Trains, from `checkpoints/last.ckpt` if the folder has one; the returned callback knows the
    selected weights.
    """
    stop = Stop()
    settings, average = options.trainer, None
    if settings.average_epochs:
        average = Average(settings.average_epochs, first_whole_epoch(method, settings))
    checkpoints = Checkpoints(options, data, folder / "checkpoints", stop, average)
    progress = ProgressBar(
        f"{options.method['name']} {options.data.title} inlier {options.inlier_index}"
    )
    callbacks = [Reseed(options.seed), *([average] if average else []), checkpoints, progress, stop]
    callbacks.append(checkpoints.estimate)
    if options.trainer.lr_decay_from < 1:
        callbacks.append(Decay(options.trainer.lr_decay_from))
    trainer = build_trainer(options, callbacks, loggers, folder)
    device = trainer.strategy.root_device
    data.place(device)
    method.to(device)
    try:
        method.prepare(data.preprocess(data.train.to(device)))
    except ValueError as error:
        raise UserError(str(error)) from None
    if method.iterative:
        method.to(memory_format=torch.channels_last)
    data.dtype = torch.float64 if options.trainer.precision == "64-true" else torch.float32
    if first_process():
        checkpoints.estimate.probe(method, checkpoints.labelled_images)
    if not method.iterative:
        return checkpoints
    method.graph = graphed(method, options.trainer.cuda_graph, device, options.trainer.precision)
    last = folder / "checkpoints" / "last.ckpt"
    iteration = _iteration_of(last)
    for logger in loggers:
        if isinstance(logger, MetricsFile):
            logger.rewind(iteration)
    try:
        trainer.fit(
            method,
            datamodule=data,
            ckpt_path=str(last) if last.exists() else None,
            weights_only=True,
        )
    except SystemExit as exit:  # Lightning turns Ctrl-C into an exit
        raise (
            exit.__context__ if isinstance(exit.__context__, KeyboardInterrupt) else exit
        ) from None
    checkpoints.trained = (
        checkpoints.trained or settings.max_epochs
    )  # a checkpoint of before does not know
    method.to(device)
    if average:
        average.put(method)
    method.float()  # of trainer.precision=64-true: scored as `predict` will
    return checkpoints
