"""Trains a method with Lightning's Trainer, from its last checkpoint or from the start.

Whatever is random in an epoch is a pure function of (seed, epoch): a run resumed from the
checkpoint of any epoch ends with the numbers of a run that was never interrupted, whenever its
checkpoints were written.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from noveltylab.data.datamodule import NoveltyData
from noveltylab.errors import UserError
from noveltylab.methods.base import Method
from noveltylab.options import TrainerOptions
from noveltylab.results.phases import Seen, in_words, lacking, seen_after
from noveltylab.scoring.batches import channels_last
from noveltylab.scoring.kept_features import kept_features
from noveltylab.training.callbacks import (
    Average,
    Decay,
    ProgressBar,
    Reseed,
    Stop,
    first_process,
)
from noveltylab.training.checkpoints import (
    AtomicCheckpointIO,
    Checkpoints,
    Selected,
    first_whole_epoch,
    load_file,
)
from noveltylab.training.cuda_graph import graphed
from noveltylab.training.estimate import Estimate
from noveltylab.training.precision import FLOAT32
from noveltylab.training.sink import Sink

log = logging.getLogger("noveltylab")

#: Images per `training_step`: many iterations, yet a progress bar that moves every few seconds on a
#: CPU.
CHUNK_IMAGES = 1024
#: Numbers in them, at most: a gibibyte.
CHUNK_VALUES = 2**28


@dataclass(frozen=True)
class Training:
    """What training has given.

    Attributes:
        selected: The weights behind the run's number.
        labelled: Score name -> the weights that a rule with outlier labels chose for it; never the
            run's number.
        epochs: How many were trained.
        phases: Which phases of the method the selected weights have seen.
        seconds: What it took, by name.
        estimated: What it was estimated to take, by name.
        warnings: What is doubtful in the selected weights.
    """

    selected: Selected
    labelled: dict[str, Selected]
    epochs: int
    phases: list[Seen]
    seconds: dict[str, float]
    estimated: dict[str, float]
    warnings: list[str]


def train(
    method: Method,
    data: NoveltyData,
    settings: TrainerOptions,
    method_options: Mapping[str, Any],
    *,
    main_rule: str,
    labelled_rule: str | None,
    seed: int,
    deterministic: bool,
    title: str,
    loggers: Sequence[Logger],
    folder: Path,
) -> Checkpoints:
    """Trains from `checkpoints/last.ckpt` in the folder, or from the start.

    Args:
        method: With its initial weights.
        data: Batches of the split's images.
        settings: How long, where and how exactly.
        method_options: The options of the method, which an advice on shorter runs names.
        main_rule: The rule behind the run's number, "last" or "val_loss".
        labelled_rule: "outlier_val" or "oracle" if that is asked for as well.
        seed: Of all random numbers.
        deterministic: Whether only deterministic kernels may run.
        title: Stands before the progress bar.
        loggers: Where losses go.
        folder: The run's folder.

    Returns:
        The callback that knows the weights which the rules have kept (see `select`).
    """
    # callbacks
    stop = Stop()
    average = None
    if settings.average_epochs:
        average = Average(settings.average_epochs, first_whole_epoch(method, settings))
    estimate = Estimate(settings, method_options, data, lambda: checkpoints.seconds)
    checkpoints = Checkpoints(
        settings,
        main_rule,
        labelled_rule,
        data,
        folder / "checkpoints",
        stop=stop,
        average=average,
        estimate=estimate,
    )
    callbacks: list[Callback] = [Reseed(seed)]
    if average:
        callbacks.append(average)
    callbacks += [checkpoints, ProgressBar(title), stop, estimate]
    if settings.lr_decay_from < 1:
        callbacks.append(Decay(settings.lr_decay_from))

    # data and method on their device
    trainer = build_trainer(settings, deterministic, callbacks, loggers, folder)
    device = trainer.strategy.root_device
    place(method, data, device, settings.precision)
    if first_process():
        estimate.probe(method, checkpoints.labelled_images)

    # training
    if not method.iterative:
        return checkpoints
    method.graph = graphed(method, settings.cuda_graph, device, settings.precision)
    fit(trainer, method, data, loggers, checkpoints.folder / "last.ckpt")
    # a checkpoint of before does not know
    checkpoints.trained = checkpoints.trained or settings.max_epochs
    method.to(device)
    if average:
        average.put(method)
    method.float()  # of trainer.precision=64-true: scored as `predict` will
    return checkpoints


def place(method: Method, data: NoveltyData, device: torch.device, precision: str) -> None:
    """Puts the data and the method on the device and prepares the method for training there."""
    data.place(device)
    method.to(device)
    try:
        if method.features_key:
            method.prepare_features(kept_features(method, data.preprocess, data.train))
        elif type(method).prepare is not Method.prepare:
            method.prepare(data.preprocess(data.train.to(device)))
    except ValueError as error:
        raise UserError(str(error)) from None
    if method.iterative:
        channels_last(method)
    data.dtype = torch.float64 if precision == "64-true" else torch.float32


def fit(
    trainer: L.Trainer, method: Method, data: NoveltyData, loggers: Sequence[Logger], last: Path
) -> None:
    """Lets the Trainer train, from the checkpoint `last` if there is one that can be read."""
    iteration = resumable_iteration(last)
    for logger in loggers:
        if isinstance(logger, Sink):
            logger.rewind(iteration)
    checkpoint = str(last) if last.exists() else None
    try:
        trainer.fit(method, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as exit:  # Lightning turns Ctrl-C into an exit
        if isinstance(exit.__context__, KeyboardInterrupt):
            raise exit.__context__ from None
        raise


def resumable_iteration(last: Path) -> int:
    """The iteration that a checkpoint stands at; 0 without one.

    A damaged one is moved aside, and counts as none.
    """
    if not last.exists():
        return 0
    try:
        content = load_file(last)
        iteration = int(content["iteration"])
        # all or none: they belong to one another
        for stem in content["callbacks"]["Checkpoints"]["best"]:
            load_file(last.with_name(f"{stem}.pt"))
    except Exception as error:  # a torn or foreign file fails in many ways, and each means the same
        damaged = last.replace(last.with_suffix(".damaged"))
        reason = " ".join(str(error).split())[:200]
        log.warning(
            f"{last} or a file beside it cannot be read ({type(error).__name__}: {reason}); "
            f"kept as {damaged.name}, training starts again"
        )
        return 0
    log.info(f"resuming from {last} (iteration {iteration})")
    return iteration


def select(method: Method, checkpoints: Checkpoints) -> Training:
    """Selects the weights of a trained method by the rules."""
    epochs = checkpoints.settings.max_epochs
    selected = checkpoints.select(method)
    seconds = checkpoints.seconds
    phases = seen_after(method.phases, selected.epoch, epochs)
    doubts = []
    if lacking(phases):
        doubts.append(unseen(phases, epochs))
    return Training(
        selected=selected,
        labelled=checkpoints.select_labelled(),
        epochs=checkpoints.trained,
        phases=phases,
        seconds=seconds,
        estimated=checkpoints.estimate.seconds,
        warnings=doubts,
    )


def unseen(phases: Sequence[Seen], epochs: int) -> str:
    """The warning that the scored weights are not those of the whole method."""
    return (
        f"not the whole method: the scored weights have seen {in_words(phases)} of {epochs} epochs; "
        "train for more trainer.max_epochs"
    )


def build_trainer(
    settings: TrainerOptions,
    deterministic: bool,
    callbacks: list[Callback],
    loggers: Sequence[Logger],
    folder: Path,
) -> L.Trainer:
    """Lightning's Trainer with everything it would print or write by itself switched off."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # data is resident: workers would copy it
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # a network trained elsewhere trains on with the statistics of its batch norms as they are
    warnings.filterwarnings("ignore", message="Found .* module.s. in eval mode")
    # Lightning 2.6.6 under torch 2.15
    warnings.filterwarnings("ignore", message=".isinstance.treespec, LeafSpec.")
    strategy: str = settings.strategy
    if strategy == "auto" and settings.devices > 1 and settings.accelerator != "mps":
        # each network has its own loss, so no backward pass reaches every weight
        strategy = "ddp_find_unused_parameters_true"
    assert settings.precision != "auto"  # run/build.py has settled it
    return L.Trainer(
        default_root_dir=folder,
        max_epochs=settings.max_epochs,
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy=strategy,
        precision=settings.precision,
        deterministic=deterministic,
        callbacks=callbacks,
        logger=list(loggers),
        plugins=[AtomicCheckpointIO()],
        log_every_n_steps=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )


@lru_cache(maxsize=64)
def check_device(settings: TrainerOptions, deterministic: bool) -> None:
    """Refuses what this machine or Lightning does not have, before anything is created.

    The cells of a sweep, which ask for the same, are told once.
    """
    accelerator, devices = settings.accelerator, settings.devices
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if accelerator in ("gpu", "cuda") and not has_cuda:
        raise UserError(
            f"trainer.accelerator={accelerator}: no CUDA device is visible here; "
            "use trainer.accelerator=cpu or auto"
        )
    if accelerator == "mps" and not has_mps:
        raise UserError(
            "trainer.accelerator=mps: no Apple GPU here; use trainer.accelerator=cpu or auto"
        )
    if has_cuda and accelerator != "cpu" and devices > torch.cuda.device_count():
        raise UserError(
            f"trainer.devices={devices}: {torch.cuda.device_count()} CUDA devices are visible here"
        )
    if settings.precision == "auto":
        if devices > 1:
            raise UserError(
                f"trainer.precision=auto: times one device, and trainer.devices={devices}; "
                "use trainer.precision=32-true or bf16-mixed"
            )
        settings = settings.model_copy(update={"precision": FLOAT32})
    on_gpu = accelerator != "cpu" and (has_cuda or has_mps)
    if settings.precision == "16-mixed" and not on_gpu:
        raise UserError(
            "trainer.precision=16-mixed: needs a GPU; on a CPU use bf16-mixed or 32-true"
        )
    try:
        with warnings.catch_warnings():
            build_trainer(settings, deterministic, [], [], Path())
    # Lightning's own are among these
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"trainer.accelerator={accelerator}, devices={devices}, strategy={settings.strategy}, "
            f"precision={settings.precision}: cannot be had here ({reason}); "
            "trainer.accelerator=cpu trainer.devices=1 runs everywhere"
        ) from None
