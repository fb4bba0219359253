"""One run, from checked options to a folder that holds everything: config, split, weights, scores,
result, pictures.

The stages, each ending in a file: read -> split.npz -> checkpoints/ -> scores.csv -> result.json
(last: it means complete). Bad input is refused before the folder exists.
"""

import itertools
import logging
import math
import os
import shlex
import shutil
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from omegaconf import OmegaConf
from rich.text import Text

from noveltylab.command.screen import LogLines, console, say
from noveltylab.data.batches import EpochSampler
from noveltylab.data.datamodule import NoveltyData
from noveltylab.data.samples import Samples
from noveltylab.data.split import Split, save_split
from noveltylab.errors import RunFailed, UserError, nearest
from noveltylab.methods.base import Method, find_method
from noveltylab.nets.cpu.layers import use_winograd
from noveltylab.options import Options, check_arguments
from noveltylab.results.files import open_regular, sha256_file, write_atomic
from noveltylab.results.phases import Seen, in_words, lacking, seen_after
from noveltylab.results.provenance import provenance
from noveltylab.results.record import SEEN, write_result
from noveltylab.results.schema import APART
from noveltylab.results.scores import Scores, read_scores, write_scores
from noveltylab.run.failures import OutOfMemory, explained
from noveltylab.run.folder import (
    code_in_words,
    previous,
    record_code,
    set_damaged_aside,
    set_unknown_aside,
)
from noveltylab.run.identity import check_complete, check_same, hash_images, images_sha256
from noveltylab.run.lock import locked
from noveltylab.run.pictures import draw
from noveltylab.run.read import read_and_split
from noveltylab.run.stamp import files_stamp
from noveltylab.run.summary import print_summary
from noveltylab.scoring import diagnosis
from noveltylab.scoring.aggregate import measured_scores
from noveltylab.scoring.apply import batch_norms, held_out_scores, novelty_scores
from noveltylab.scoring.auroc import METHOD
from noveltylab.scoring.conformal import thresholds
from noveltylab.scoring.floors import Floor, floor_scores
from noveltylab.scoring.folds import Folds, in_folds
from noveltylab.scoring.metrics import (
    collapse_warnings,
    error_rates,
    evaluate,
    evaluate_kinds,
    source_threshold,
)
from noveltylab.training import loggers
from noveltylab.training.cuda_graph import graphed
from noveltylab.training.fit import (
    CHUNK_IMAGES,
    Selected,
    check_device,
    first_process,
    fit,
    load_weights,
)

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
    check_device(options)
    loggers.prepare(options)
    config = options.recorded(config)
    folder = options.folder
    if not first_process():
        return _help(options)
    if (done := previous(folder, config, options.force)) is None:
        with locked(folder):
            # somebody else may have completed it since
            if (done := previous(folder, config, options.force)) is None:
                if not options.force:
                    set_damaged_aside(folder)
                return _run(options, config, folder)
    check_complete(done, options, folder)
    console(soft_wrap=True).print(
        Text.assemble(("complete already", "bold"), f": {folder} (force=true runs it again)")
    )
    print_summary(done, folder)
    if options.diagnose != "none" and "diagnosis" not in done:
        say(
            f"to diagnose this finished run: python -m noveltylab diagnose run={shlex.quote(str(folder))}"
        )
    return done


def _help(options: Options) -> dict[str, Any]:
    log.setLevel(logging.CRITICAL)  # all is said once, by the main process
    data, method = build(options, *read_and_split(options))
    fit(method, data, options, [], options.folder)
    return {}


def _run(options: Options, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    if options.resources.num_cpus:
        torch.set_num_threads(options.resources.num_cpus)
    stamp = files_stamp(options)
    samples, parts = read_and_split(options)
    data, method = build(options, samples, parts)
    hashes = hash_images(samples.images)
    known = options.force or check_same(folder, samples, parts, hashes)
    with recorded(folder, options, config) as sinks:
        log.info(
            f"{torch.get_num_threads()} threads, visible GPUs: {os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}"
        )
        if not known:
            set_unknown_aside(folder)
        digest = save_split(folder / "split.npz", parts, samples.ids, samples.labels, hashes)
        code, before = record_code(folder)
        doubts = [
            f"trained in part by other code: {code_in_words(state)}; now {code_in_words(code)}"
            for state in before
        ]
        for doubt in doubts:
            log.warning(doubt)
        checkpoints = fit(method, data, options, sinks, folder)
        selected, seconds = checkpoints.main(method), checkpoints.seconds
        seen = seen_after(method.phases, selected.epoch, options.trainer.max_epochs)
        if lacking(seen):
            doubts.append(unseen(seen, options.trainer.max_epochs))
        with timed(seconds, "score"):
            score(method, data, options, selected, folder)
        with timed(seconds, "floors"):
            floors = floor_scores(data, options.trainer.score_batch_size)
        with timed(seconds, "measure"):
            result = measure(options, folder, floors)
            result["thresholds"] = cut(result["primary"], selected, method, options, folder)
            note_missing(result["thresholds"], options, parts)
            if "unmeasured" not in result:
                result["extra"] = method.extra_metrics(*examples(method, data))
                result["warnings"] += method.doubts(result["extra"])
            if options.pictures:
                draw(method, samples, data, floors, result, folder)
            result["labelled"] = measure_labelled(
                method, data, options, checkpoints.labelled(), folder
            )
        if options.diagnose != "none":
            with timed(seconds, "diagnose"):
                load_weights(selected.path, method)
                result["diagnosis"] = diagnosis.diagnose(method, data, options.seed, folder)
        result |= {
            "selected": {
                "rule": selected.rule,
                "epoch": selected.epoch,
                "value": selected.value,
                "phases": [asdict(phase) for phase in seen],
            },
            **(
                {"epochs": {"planned": options.trainer.max_epochs, "trained": checkpoints.trained}}
                if method.iterative
                else {}
            ),
            "weights": {
                "file": f"checkpoints/{selected.path.name}",
                "sha256": sha256_file(selected.path),
            },
            "input": {
                "shape": list(data.image_shape),
                "kind": samples.units.kind if samples.units else "image",
                "scale": samples.scale,
            },
            **({"folds": len(method.members)} if isinstance(method, Folds) else {}),
            "transductive": sorted(method.transductive & set(method.score_names)),
            "seconds": {
                name: round(value, 2)
                for name, value in (seconds | {"total": sum(seconds.values())}).items()
            },
            "estimated": {
                name: round(value, 2) for name, value in checkpoints.estimate.seconds.items()
            },
            "n": {
                "train": len(parts.train),
                "val": len(parts.val),
                **result.pop("n_test"),
                **({"skipped": samples.skipped} if samples.skipped else {}),
                **({"missing": samples.missing} if samples.missing else {}),
            },
            "split_sha256": digest,
            **(
                {"images_sha256": images_sha256(samples, hashes), "data_files": stamp}
                if stamp
                else {}
            ),
            "data_verified": samples.verified,
            "warnings": data.warnings + doubts + result["warnings"],
            "files": {
                path.name: sha256_file(path)
                for path in (
                    *(folder / "split.npz", *sorted(folder.glob("scores*.csv"))),
                    *(
                        folder / "config.yaml",
                        folder / "floors.csv",
                        *folder.glob("calibration.csv"),
                    ),
                )
            },
            "provenance": {
                **provenance(datetime.now(UTC), gpu_name(method), torch.get_num_threads()),
                "commit": code["commit"],
                "sources": code["sources"],
                **({"resumed": before} if before else {}),
            },
            "config": config,
        }
        write_result(folder, result)
        loggers.finish(sinks, result, folder)
    print_summary(result, folder)
    return result


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Notes how long the block took."""
    start = time.monotonic()
    yield
    seconds[name] = time.monotonic() - start


# Before anything is created.


def check_count(options: Options, parts: Split, least: int) -> None:
    """Raises UserError where the split has fewer than `least` images to train on, or holds none out
    and has to.
    """
    fraction = float(options.protocol.get("val_fraction", 0))
    pool = len(parts.train) + len(parts.val)
    held_out = 0 if options.select == "last" or options.folds else 1
    if len(parts.train) >= least and len(parts.val) >= held_out:
        return

    def suffices(images: int, share: float) -> bool:
        return int(share * images) >= held_out and images - int(share * images) >= least

    needs = f"method={options.method['name']} needs {least} training image{'s' if least > 1 else ''} at least"
    if not len(parts.val) and held_out:
        needs += f" and select={options.select} needs held-out inliers"
    state = f"the split has {len(parts.train)} and {len(parts.val)} held out (protocol.val_fraction={fraction:g})"
    without = " or select=last" if held_out and pool >= least else ""
    shares = (percent / 100 for percent in range(100))
    if (share := next((share for share in shares if suffices(pool, share)), None)) is not None:
        raise UserError(f"{needs}; {state}: take protocol.val_fraction={share:g}{without}")
    enough = next((images for images in range(1, 10_000) if suffices(images, fraction)), None)
    with_this = f", {enough} with this protocol.val_fraction" if enough else ""
    raise UserError(
        f"{needs}; {state}: that takes {least + held_out} images{with_this}; add some{without}"
    )


def build(options: Options, samples: Samples, parts: Split) -> tuple[NoveltyData, Method]:
    """The data module and the method, with the seed set for its initial weights."""
    settings = options.data
    arguments = dict(options.method)
    arguments.pop("name")
    primary = arguments.pop("primary", None)
    method_class = find_method(str(arguments.pop("_target_", None)))
    arguments = check_arguments(method_class, arguments, "method")
    check_count(options, parts, method_class.least_images)
    if not method_class.iterative and options.trainer.devices > 1:
        raise UserError(
            f"trainer.devices={options.trainer.devices}: method={options.method['name']} is fitted once, on one device"
        )
    if not method_class.iterative and options.trainer.patience:
        raise UserError(
            f"trainer.patience={options.trainer.patience}: method={options.method['name']} is fitted once, without epochs"
        )
    if method_class.own_schedule and options.trainer.lr_decay_from < 1:
        raise UserError(
            f"trainer.lr_decay_from={options.trainer.lr_decay_from}: method={options.method['name']} sets its learning "
            f"rates itself ({method_class.own_schedule})"
        )
    data = NoveltyData(
        samples,
        parts,
        options.inlier_index,
        size=settings.size,
        contrast=settings.contrast,
        subtract_mean=settings.subtract_mean,
        batch_size=settings.batch_size,
        seed=options.seed,
        chunk=max(1, CHUNK_IMAGES // settings.batch_size),
    )
    if method_class.iterative:  # refuses fewer images than the devices take
        EpochSampler(
            len(data.train), data.batch_size, options.seed, replicas=options.trainer.devices
        )
    L.seed_everything(options.seed, verbose=False)
    try:
        if options.folds:
            method: Method = in_folds(
                method_class, data.image_shape, arguments, options.folds, len(parts.train)
            )
        else:
            method = method_class(data.image_shape, **arguments)
    except ValueError as error:
        raise UserError(str(error)) from None
    if options.trainer.batch_norm == "anew" and not batch_norms(method):
        raise UserError(
            f"trainer.batch_norm=anew: method={options.method['name']} has no batch norm with these options"
        )
    if primary not in method.score_names:
        raise UserError(
            f"method.primary={primary}: no such score; {nearest(str(primary), method.score_names)}"
        )
    diagnosis.check(options.diagnose, options.method["name"], method, data.test_is_outlier)
    use_winograd(method, options.trainer.winograd)
    if (
        method.iterative and options.trainer.cuda_graph == "on"
    ):  # what is known to be impossible, before any folder is made
        on_gpu = options.trainer.accelerator != "cpu" and torch.cuda.is_available()
        graphed(method, "on", torch.device("cuda" if on_gpu else "cpu"), options.trainer.precision)
    return data, method


# The run's folder.


@contextmanager
def recorded(folder: Path, options: Options, config: dict[str, Any]) -> Iterator[list[Any]]:
    """Creates the folder (with force=true moves the old one aside); keeps `run.log` and the loggers
    open.

    A failure is written into the log and raised again. What was refused before the first checkpoint
    leaves nothing behind, so that the corrected command works.
    """
    kept: Path | None = None
    try:
        kept = move_aside(folder) if options.force and (folder / "config.yaml").is_file() else None
        entries = set(folder.iterdir()) if folder.is_dir() else None
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output={options.output}: cannot create {folder}: {error.strerror}; choose another output"
        ) from None
    try:
        with written(folder, options, config, kept) as sinks:
            yield sinks
    except (UserError, OutOfMemory):
        if not (folder / "checkpoints" / "last.ckpt").exists():
            undo(folder, entries, kept)
        raise


def move_aside(folder: Path) -> Path:
    """Renames a run's folder to <name>.<date>-<time>, or the first such name that is free; returns
    it.
    """
    moment = f"{folder.name}.{datetime.now(UTC):%Y%m%d-%H%M%S}"
    names = itertools.chain([moment], (f"{moment}-{number}" for number in itertools.count(2)))
    return folder.rename(
        next(path for name in names if not os.path.lexists(path := folder.with_name(name)))
    )


def undo(folder: Path, entries: set[Path] | None, kept: Path | None) -> None:
    """Removes what a refused run has written: the whole folder, or what is new beside the `entries`
    of before.
    """
    if entries is None:
        shutil.rmtree(folder, ignore_errors=True)
    for path in set(folder.iterdir()) - entries if entries is not None else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if kept is not None and not folder.exists():
        kept.rename(folder)


@contextmanager
def written(
    folder: Path, options: Options, config: dict[str, Any], kept: Path | None
) -> Iterator[list[Any]]:
    """The files that are open as long as the run lasts, in a folder that is there."""
    with explained(folder, options):
        for left in folder.rglob(".*.tmp"):  # of a killed run; the lock is ours
            left.unlink(missing_ok=True)
        if not (folder / "config.yaml").is_file():
            write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        if os.path.lexists(
            folder / "run.log"
        ):  # a pipe would be waited for, a link may lead anywhere
            open_regular(folder / "run.log", within=folder).close()
        to_file = logging.FileHandler(folder / "run.log", encoding="utf-8")
    form = LogLines("%(asctime)s %(message)s", "%H:%M:%S")
    to_screen = logging.StreamHandler()
    to_screen.setLevel(logging.INFO)
    before = (log.level, log.propagate, logging.raiseExceptions)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    for handler in (to_file, to_screen):
        handler.setFormatter(form)
        log.addHandler(handler)
    sinks: list[Any] = []
    try:
        logging.raiseExceptions = (
            False  # a full disk is said once, below, not for each line of the log
        )
        log.info(f"run folder {folder}")
        if kept:
            log.info(f"force=true: the old run is kept as {kept}")
        sinks += loggers.build_loggers(options, folder, config)
        with warnings.catch_warnings(), explained(folder, options):
            yield sinks
    except BaseException as error:
        log.debug(traceback.format_exc())
        reason = f"{type(error).__name__}: {error}".strip()
        # what is known is said on the screen once, by whoever started the run
        log.log(
            logging.DEBUG if isinstance(error, (UserError, RunFailed)) else logging.ERROR, reason
        )
        with suppress(OSError):  # the same disk, perhaps
            loggers.finish(sinks, None, folder, reason)
        raise
    finally:
        for handler in (to_file, to_screen):
            log.removeHandler(handler)
            with suppress(OSError):  # what a full disk did not take
                handler.close()
        level, log.propagate, logging.raiseExceptions = before
        log.setLevel(level)


def score(
    method: Method, data: NoveltyData, options: Options, selected: Selected, folder: Path
) -> None:
    """Scores the whole test split with the selected weights and writes the scores files."""
    load_weights(selected.path, method)
    columns = novelty_scores(
        method, data.preprocess, data.test, options.trainer.score_batch_size, data.val
    )
    main, apart = measured_scores(data.pieces(columns), data.wholes)
    for name, scores in (
        ("scores", main),
        *((f"scores_{kind}", scores) for kind, scores in apart.items()),
    ):
        write_scores(folder / f"{name}.csv", scores)
    if data.source is not None:
        columns = novelty_scores(
            method, data.preprocess, data.source, options.trainer.score_batch_size, data.val
        )
        # a score made of a whole set cannot be cut at a threshold of another set
        columns = {
            name: column for name, column in columns.items() if name not in method.transductive
        }
        write_scores(folder / "scores_source.csv", data.source_scores(columns))
    (folder / "calibration.csv").unlink(missing_ok=True)
    held_out = score_held_out(method, data)
    if held_out is not None:
        write_scores(folder / "calibration.csv", held_out)


def score_held_out(method: Method, data: NoveltyData) -> Scores | None:
    """The scores of held-out inliers as new images get them; None where there are none."""
    if isinstance(method, Folds):
        rows, columns = method.held_out(data.preprocess, data.train)
        labels, flags = np.full(len(rows), data.inlier), np.zeros(len(rows), np.bool_)
        return Scores(data.train_ids[rows].tolist(), labels, flags, columns)
    if not len(data.val):
        return None
    columns = held_out_scores(method, data.preprocess, data.val)
    # a score made of the whole test set is none of these images'
    return data.held_out(
        {name: columns[name] for name in columns if name not in method.transductive}
    )


def unseen(seen: Sequence[Seen], epochs: int) -> str:
    """That the scored weights are not those of the whole method, as a warning."""
    return (
        f"not the whole method: the scored weights have seen {in_words(seen)} of {epochs} epochs; train for more "
        "trainer.max_epochs"
    )


def cut(
    primary: str, selected: Selected, method: Method, options: Options, folder: Path
) -> dict[str, Any] | None:
    """The thresholds of the primary score; None without held-out inliers, or for a score of the
    whole test set.
    """
    path = folder / "calibration.csv"
    if primary in method.transductive or not path.is_file():
        return None
    folds = len(method.members) if isinstance(method, Folds) else 0
    exact = selected.rule == "last" and not (folds and options.data.fitted_on_training)
    return thresholds(read_scores(path).columns[primary], primary, exact=exact, folds=folds)


def note_missing(found: dict[str, Any] | None, options: Options, parts: Split) -> None:
    """Adds to each rate without a threshold how many more training images give one, where the
    protocol holds out a share.
    """
    fraction = float(options.protocol.get("val_fraction", 0))
    if found is None or parts.aggregate is not None:
        return
    images = len(parts.train) + len(parts.val)
    for row in found["at"]:
        if row["threshold"] is None and options.data.limit_train is None:
            row["more_images"] = (
                images_for(row["needed"], 1.0 if options.folds else fraction) - images
            )


def images_for(held_out: int, share: float) -> int:
    """How many images it takes to hold out so many of them, of which a share is held out, rounded
    down.
    """
    images = max(1, math.floor(held_out / share) - 1)
    while int(share * images) < held_out:
        images += 1
    return images


def measure_labelled(
    method: Method, data: NoveltyData, options: Options, chosen: dict[str, Selected], folder: Path
) -> dict[str, Any]:
    """The columns of select=outlier_val or oracle: {rule: {score name: metrics and epoch}}, {}
    without such a rule.

    Each named score is measured with the weights chosen for it, and written to `scores_<rule>.csv`.
    """
    if not chosen:
        return {}
    columns, path = (
        dict.fromkeys(chosen, np.empty(0)),
        folder / f"scores_{options.labelled_rule}.csv",
    )
    by_epoch = {
        selected.epoch: selected for selected in chosen.values()
    }  # names often share their best epoch
    for epoch, selected in by_epoch.items():
        load_weights(selected.path, method)
        found = novelty_scores(
            method, data.preprocess, data.test, options.trainer.score_batch_size, data.val
        )
        columns |= {name: found[name] for name in chosen if chosen[name].epoch == epoch}
    write_scores(path, measured_scores(data.pieces(columns), data.wholes)[0])
    scores = read_scores(path)
    metrics = {name: evaluate(column, scores.is_outlier) for name, column in scores.columns.items()}
    return {
        str(options.labelled_rule): {
            name: {**metrics[name], "epoch": chosen[name].epoch} for name in chosen
        }
    }


def examples(
    method: Method, data: NoveltyData, count: int = 500
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first test inliers and outliers, preprocessed, for the method's own experiments."""
    method.eval()
    index = [np.flatnonzero(data.test_is_outlier == kind)[:count] for kind in (False, True)]
    inliers, outliers = (
        data.preprocess(data.test[torch.from_numpy(rows)].to(method.device)) for rows in index
    )
    return inliers, outliers


def measure(options: Options, folder: Path, floors: list[Floor]) -> dict[str, Any]:
    """The part of the result that follows from the scores file and the floors alone.

    Without an outlier in the test each score's metrics are None, there is no floor, and
    `unmeasured` says so.
    """
    scores = read_scores(folder / "scores.csv")
    primary = options.method["primary"]
    labelled = bool(scores.is_outlier.any())
    metrics = {
        name: evaluate(column, scores.is_outlier) if labelled else None
        for name, column in scores.columns.items()
    }
    floor = {floor.name: evaluate(floor.scores, scores.is_outlier) for floor in floors if labelled}
    columns = {floor.name: floor.scores for floor in floors}
    write_scores(
        folder / "floors.csv", Scores(scores.ids, scores.labels, scores.is_outlier, columns)
    )
    main = metrics[primary]
    doubts = collapse_warnings(primary, scores.columns[primary], main)
    if main:
        doubts += floor_warnings(
            primary, main["auroc"], {name: metrics["auroc"] for name, metrics in floor.items()}
        )
    kinds = None
    if labelled and scores.classes:
        kinds = evaluate_kinds(scores.columns[primary], scores.is_outlier, scores.classes)
    unmeasured = f"no labelled outliers among the {len(scores)} test samples: scores and thresholds, but no AUROC"
    return {
        "method": options.method["name"],
        "data": options.data.title,
        "protocol": options.protocol["name"],
        "inlier": options.inlier_index,
        "inlier_name": options.inlier_name,
        "seed": options.seed,
        "select": options.select,
        "primary": primary,
        "scores": {primary: main, **metrics},
        "auroc_ci_method": METHOD,
        **({} if labelled else {"unmeasured": unmeasured}),
        "floor": floor,
        "apart": measure_apart(folder, doubts),
        **measure_cross(options, folder, scores),
        **({"kinds": kinds} if kinds else {}),
        "n_test": {
            "test_inliers": int((~scores.is_outlier).sum()),
            "test_outliers": int(scores.is_outlier.sum()),
        },
        "warnings": doubts,
    }


def floor_warnings(primary: str, auroc: float, floors: dict[str, float]) -> list[str]:
    """What is to be said of a score that does not stand above the floors of its own run; floors:
    name -> AUROC.
    """
    raw = [value for name, value in floors.items() if not name.endswith(SEEN)]
    seen = {name: value for name, value in floors.items() if name.endswith(SEEN)}
    if auroc < min(floors["pca"], floors["knn"]):
        return [f"{primary}: AUROC {auroc:.4f} is below both floors; PCA or neighbours do better"]
    highest = max(seen, key=lambda name: seen[name], default="")
    if seen and auroc <= seen[highest] and auroc > max(raw):
        return [
            f"{primary}: AUROC {auroc:.4f} is above the floors of raw pixels, but not above {highest} "
            f"({seen[highest]:.4f}): the preprocessing alone does as much"
        ]
    if auroc <= floors["norm"]:
        return [
            f"{primary}: AUROC {auroc:.4f} is not above that of |x|^2 alone ({floors['norm']:.4f})"
        ]
    return []


def measure_apart(folder: Path, doubts: list[str]) -> dict[str, dict[str, Any]]:
    """Metrics of what is no part of the run's number, by kind (`schema.APART`)."""
    found: dict[str, dict[str, Any]] = {}
    for kind in APART:
        if not (path := folder / f"scores_{kind}.csv").is_file():
            continue
        scores = read_scores(path)
        if scores.is_outlier.all() or not scores.is_outlier.any():
            doubts.append(
                f"no AUROC of {kind.replace('_', ' ')}: all {len(scores)} are "
                f"{'outliers' if scores.is_outlier.all() else 'inliers'}"
            )
            continue
        found[kind] = {
            name: evaluate(column, scores.is_outlier) for name, column in scores.columns.items()
        }
    return found


def measure_cross(options: Options, folder: Path, test: Scores) -> dict[str, Any]:
    """The error rates of each score at the threshold of the source set, as `cross`; {} under other
    protocols.
    """
    path = folder / "scores_source.csv"
    if not path.is_file():
        return {}
    source, rule = read_scores(path), options.protocol["threshold"]
    rates = {}
    for name, column in source.columns.items():
        threshold = source_threshold(column, source.is_outlier, rule)
        rates[name] = {
            "threshold": threshold,
            **error_rates(test.columns[name], test.is_outlier, threshold),
        }
    return {
        "cross": {
            "source": Path(str(options.data.source)).name,
            "target": Path(str(options.data.target)).name,
            "rule": rule,
            "source_inliers": int((~source.is_outlier).sum()),
            "source_outliers": int(source.is_outlier.sum()),
            "scores": rates,
        }
    }


def gpu_name(method: Method) -> str | None:
    """The accelerator's name, None on a CPU."""
    return torch.cuda.get_device_name(method.device) if method.device.type == "cuda" else None
