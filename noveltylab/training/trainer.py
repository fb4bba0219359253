"""Lightning's Trainer for the options of a run, and what of them this machine does not have."""

import logging
import os
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from noveltylab.errors import UserError
from noveltylab.options import Options
from noveltylab.training.weights import AtomicCheckpointIO

log = logging.getLogger("noveltylab")


def first_process() -> bool:
    """Whether this is the run's main process, not a helper that Lightning started for another of
    its devices.
    """
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


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
    # Lightning's own are among these
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
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
    # data is resident: workers would copy it
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # Lightning 2.6.6 under torch 2.15
    warnings.filterwarnings("ignore", message=".isinstance.treespec, LeafSpec.")
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
