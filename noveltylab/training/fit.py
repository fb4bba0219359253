"""Trains a method with Lightning's Trainer, from its last checkpoint or from the start.

Whatever is random in an epoch is a pure function of (seed, epoch): a run resumed from the
checkpoint of any epoch ends with the numbers of a run that was never interrupted, whenever its
checkpoints were written.
"""

import logging
from pathlib import Path

import torch
from lightning.pytorch.loggers import Logger

from noveltylab.data.datamodule import NoveltyData
from noveltylab.errors import UserError
from noveltylab.methods.base import Method
from noveltylab.options import Options
from noveltylab.training.callbacks import Average, Decay, ProgressBar, Reseed, Stop
from noveltylab.training.checkpoints import Checkpoints, first_whole_epoch
from noveltylab.training.cuda_graph import graphed
from noveltylab.training.loggers import MetricsFile
from noveltylab.training.trainer import build_trainer, first_process
from noveltylab.training.weights import load_file

log = logging.getLogger("noveltylab")

#: Images per `training_step`: many iterations, yet a progress bar that moves every few seconds on a
#: CPU.
CHUNK_IMAGES = 1024


def _iteration_of(last: Path) -> int:
    """The iteration that a checkpoint stands at; 0 where there is none, or a damaged one, which is
    moved aside.
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
    # a checkpoint of before does not know
    checkpoints.trained = checkpoints.trained or settings.max_epochs
    method.to(device)
    if average:
        average.put(method)
    method.float()  # of trainer.precision=64-true: scored as `predict` will
    return checkpoints
