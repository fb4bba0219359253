"""Keeps a run's folder while the run lasts: its log and loggers, and what a refused run leaves."""

import logging
import os
import re
import shutil
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from noveltylab.command.screen import LogLines
from noveltylab.data.split import save_split
from noveltylab.errors import INTERRUPTED, RunFailed, UserError
from noveltylab.installed import packages_of
from noveltylab.options import Options
from noveltylab.results.files import open_regular, write_atomic
from noveltylab.run.folder import code_in_words, record_code, set_unknown_aside
from noveltylab.run.read import Images
from noveltylab.training import loggers

log = logging.getLogger("noveltylab")

#: How torch and CUDA say that there is no memory left.
NO_MEMORY = re.compile(r"out of memory|can't allocate")


class OutOfMemory(RunFailed):
    """The machine has too little memory for the options."""


@contextmanager
def explained(folder: Path, options: Options) -> Iterator[None]:
    """Turns a full disk or a full memory into a RunFailed that says what to do."""
    try:
        yield
    except OSError as error:
        path = error.filename2 or error.filename or folder
        raise RunFailed(
            f"cannot read or write {path}: {error.strerror or error}; what was finished before is "
            "intact, and the same command goes on when that is mended"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        reason = " ".join(str(error).split())[:120]
        batch_size = options.data.batch_size
        score_batch_size = options.trainer.score_batch_size
        raise OutOfMemory(
            f"out of memory ({reason}); lower data.batch_size={batch_size} if this was training, "
            f"trainer.score_batch_size={score_batch_size} if it was scoring"
        ) from error


@contextmanager
def recorded(folder: Path, options: Options, config: dict[str, Any]) -> Iterator[list[Any]]:
    """Creates the folder, keeps `run.log` and the loggers open, and gives these loggers.

    With force=true the old folder is moved aside. A failure is written into the log and raised
    again. What was refused before the first checkpoint leaves nothing behind, so that the corrected
    command works.
    """
    aside: Path | None = None
    try:
        if options.force and (folder / "config.yaml").is_file():
            aside = move_aside(folder)
        entries = set(folder.iterdir()) if folder.is_dir() else None
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output={options.output}: cannot create {folder}: {error.strerror}; "
            "choose another output"
        ) from None
    try:
        with written(folder, options, config, aside) as sinks:
            yield sinks
    except (UserError, OutOfMemory):
        if not (folder / "checkpoints" / "last.ckpt").exists():
            undo(folder, entries, aside)
        raise


def move_aside(folder: Path) -> Path:
    """Renames a run's folder to <name>.<date>-<time>, or the first such name that is free."""
    name = f"{folder.name}.{datetime.now(UTC):%Y%m%d-%H%M%S}"
    path = folder.with_name(name)
    number = 1
    while os.path.lexists(path):
        number += 1
        path = folder.with_name(f"{name}-{number}")
    return folder.rename(path)


def undo(folder: Path, entries: set[Path] | None, aside: Path | None) -> None:
    """Removes what a refused run has written, and puts the folder that was moved aside back.

    Args:
        folder: The run's folder.
        entries: What the folder held before; None if there was no folder.
        aside: Where the old folder is now, if it was moved.
    """
    if entries is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        for path in set(folder.iterdir()) - entries:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    if aside is not None and not folder.exists():
        aside.rename(folder)


@contextmanager
def written(
    folder: Path, options: Options, config: dict[str, Any], aside: Path | None
) -> Iterator[list[Any]]:
    """Keeps the files open that are written as long as the run lasts; gives the loggers."""
    with explained(folder, options):
        prepare_folder(folder, config)
        to_file = logging.FileHandler(folder / "run.log", encoding="utf-8")
    to_screen = logging.StreamHandler()
    to_screen.setLevel(logging.INFO)
    sinks: list[Any] = []
    with logging_to(to_file, to_screen):
        try:
            log.info(f"run folder {folder}")
            if aside:
                log.info(f"force=true: the old run is kept as {aside}")
            sinks += loggers.build_loggers(options, folder, config)
            with warnings.catch_warnings(), explained(folder, options):
                yield sinks
        except BaseException as error:
            # what is expected is said on the screen once, by whoever started the run
            if isinstance(error, KeyboardInterrupt):
                reason = INTERRUPTED
                log.debug(reason)
            else:
                reason = f"{type(error).__name__}: {error}".strip()
                is_expected = isinstance(error, (UserError, RunFailed))
                log.debug(traceback.format_exc())
                log.log(logging.DEBUG if is_expected else logging.ERROR, reason)
            with suppress(OSError):  # the same disk, perhaps
                loggers.finish(sinks, None, folder, reason)
            raise


def prepare_folder(folder: Path, config: dict[str, Any]) -> None:
    """Removes what a killed run was just writing, and writes config.yaml if there is none."""
    for unfinished in folder.rglob(".*.tmp"):  # nobody else writes here: the lock is ours
        unfinished.unlink(missing_ok=True)
    if not (folder / "config.yaml").is_file():
        write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    if os.path.lexists(folder / "run.log"):
        # a pipe would be waited for, a link may lead anywhere
        open_regular(folder / "run.log", within=folder).close()


@contextmanager
def logging_to(*handlers: logging.Handler) -> Iterator[None]:
    """Inside, all lines of the log go to these handlers alone; closes them afterwards."""
    form = LogLines("%(asctime)s %(message)s", "%H:%M:%S")
    before = (log.level, log.propagate, logging.raiseExceptions)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    for handler in handlers:
        handler.setFormatter(form)
        log.addHandler(handler)
    # a full disk is said once, by `explained`, not for each line of the log
    logging.raiseExceptions = False
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            with suppress(OSError):  # what a full disk did not take
                handler.close()
        level, log.propagate, logging.raiseExceptions = before
        log.setLevel(level)


@dataclass(frozen=True)
class Origin:
    """What a run is made of: its split and its code.

    Attributes:
        split_sha256: Hash of the split, as in split.npz.
        code: The state of this code (`provenance.code_state`).
        earlier_code: States of other code that trained the run before an interruption.
        warnings: What is doubtful in that.
    """

    split_sha256: str
    code: dict[str, Any]
    earlier_code: list[dict[str, Any]]
    warnings: list[str]


def record_origin(folder: Path, options: Options, images: Images, is_known: bool) -> Origin:
    """Writes split.npz and code.json into the run's folder, before anything is trained.

    Args:
        folder: The run's folder.
        options: Of the run.
        images: All that were read, and which of them train and test.
        is_known: Whether the images of an earlier checkpoint are known to be these; it is moved
            aside otherwise.
    """
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    log.info(f"{torch.get_num_threads()} threads, visible GPUs: {devices}")
    if not is_known:
        set_unknown_aside(folder)
    samples = images.samples
    path = folder / "split.npz"
    digest = save_split(path, images.split, samples.ids, samples.labels, images.hashes)
    packages = packages_of(str(options.method.get("_target_")), options.data.name)
    code, earlier_code = record_code(folder, packages)
    doubts = []
    for state in earlier_code:
        before, now = code_in_words(state), code_in_words(code)
        doubt = f"trained in part by other code: {before}; now {now}"
        log.warning(doubt)
        doubts.append(doubt)
    return Origin(digest, code, earlier_code, doubts)
