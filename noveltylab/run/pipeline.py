"""One run, stage by stage: read, split, build, train, score, measure, draw, record.

Each stage ends in a file of the run's folder: split.npz, checkpoints/, scores.csv, figures/ and at
last result.json, which means that the run is complete. Bad input is refused before the folder
exists.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger

from noveltylab.data.datamodule import NoveltyData
from noveltylab.methods.base import Method
from noveltylab.options import Options
from noveltylab.results.record import write_result
from noveltylab.run.build import build, settle_precision
from noveltylab.run.complete import report_complete
from noveltylab.run.describe import describe, describe_origin, hash_files
from noveltylab.run.folder import previous, set_damaged_aside
from noveltylab.run.lock import locked
from noveltylab.run.measure import measure, measure_labelled
from noveltylab.run.pictures import draw
from noveltylab.run.pixels import masks_of_run, measure_maps
from noveltylab.run.read import check_complete, check_same, read_and_split, read_images
from noveltylab.run.recording import explained, record_origin, recorded
from noveltylab.run.score import score, score_floors
from noveltylab.run.summary import print_summary
from noveltylab.scoring import diagnosis
from noveltylab.training import loggers
from noveltylab.training.callbacks import first_process
from noveltylab.training.checkpoints import Checkpoints, load_weights
from noveltylab.training.fit import check_device, select, train

log = logging.getLogger("noveltylab")


def run(options: Options, config: dict[str, Any]) -> dict[str, Any]:
    """Trains, scores and measures one (method, data, protocol, inlier, seed); returns its result.

    A complete run is reported and not run again; an interrupted one goes on from its last
    checkpoint. A helper process of a run on several devices trains its share and returns {}: it
    writes nothing.

    Raises:
        UserError: for bad input, before anything is created; or the images are others than when the
        run began.
        Busy: another process is running it.
    """
    folder = options.folder
    check_device(options.trainer, options.deterministic)
    loggers.check_loggers(options.logger)
    config = options.recorded(config)
    if not first_process():
        return help_training(options)
    result = previous(folder, config, options.force)
    if result is None:
        with locked(folder):
            # somebody else may have completed it since
            result = previous(folder, config, options.force)
            if result is None:
                if not options.force:
                    set_damaged_aside(folder)
                return run_stages(options, config, folder)
    check_complete(result, options, folder)
    report_complete(result, options, folder)
    return result


def run_stages(options: Options, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Runs all stages, each on the values of those before it; returns the result."""
    if options.resources.num_cpus:
        torch.set_num_threads(options.resources.num_cpus)
    batch_size, epochs = options.trainer.score_batch_size, options.trainer.max_epochs
    seconds: dict[str, float] = {}

    # read, split, build: bad input is refused here
    images = read_images(options)
    data, method = build(options, images.samples, images.split)
    with explained(folder, options):
        options, config, reason = settle_precision(options, config, data, method)
    masks = masks_of_run(options, method, data)
    is_known = options.force or check_same(folder, images)

    with recorded(folder, options, config) as sinks:
        if reason:
            log.info(reason)
        origin = record_origin(folder, options, images, is_known)
        training = select(method, train_method(method, data, options, sinks, folder))
        selected = training.selected
        with timed(seconds, "score"):
            scores = score(method, data, batch_size, selected, folder)
        with timed(seconds, "floors"):
            with_features = options.floor_features == "auto"
            floors = score_floors(data, batch_size, with_features, scores.test, folder)
        with timed(seconds, "measure"):
            result = measure(method, data, images.split, options, selected, scores, floors)
            if masks is not None:
                result["pixels"] = measure_maps(method, data, masks)
            if options.pictures:
                draw(method, images.samples, data, scores, floors, result, folder / "figures")
            result["labelled"] = measure_labelled(
                method, data, batch_size, training.labelled, options.labelled_rule, folder
            )
        if options.diagnose != "none":
            with timed(seconds, "diagnose"):
                load_weights(selected.path, method)
                result["diagnosis"] = diagnosis.diagnose(method, data, options.seed, folder)

        # record
        result |= describe(method, data, images, scores.test, training, epochs, origin, seconds)
        doubts = trial_doubts(options) + data.warnings + origin.warnings + training.warnings
        result["warnings"] = doubts + result["warnings"]
        result["files"] = hash_files(folder)
        result["provenance"] = describe_origin(method, origin)
        result["config"] = config
        write_result(folder, result)
        loggers.finish(sinks, result, folder)
    print_summary(result, folder)
    return result


def train_method(
    method: Method, data: NoveltyData, options: Options, sinks: Sequence[Logger], folder: Path
) -> Checkpoints:
    """Trains the method; hands each value of the options to the training that needs it."""
    return train(
        method,
        data,
        options.trainer,
        options.method,
        main_rule=options.main_rule,
        labelled_rule=options.labelled_rule,
        seed=options.seed,
        deterministic=options.deterministic,
        title=f"{options.method['name']} {options.data.title} inlier {options.inlier_index}",
        loggers=sinks,
        folder=folder,
    )


def trial_doubts(options: Options) -> list[str]:
    """The mark of a run that only tries whether everything works."""
    if options.debug is None:
        return []
    return [f"a trial (debug={options.debug}), not a result: the report leaves it out"]


def help_training(options: Options) -> dict[str, Any]:
    """Trains the share of a helper process on another device; returns {}."""
    log.setLevel(logging.CRITICAL)  # all is said once, by the main process
    data, method = build(options, *read_and_split(options))
    train_method(method, data, options, [], options.folder)
    return {}


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Notes how long the block took."""
    start = time.monotonic()
    yield
    seconds[name] = time.monotonic() - start
