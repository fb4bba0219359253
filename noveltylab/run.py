"""One run, from checked options to a folder that holds everything: config, split, weights, scores, result, pictures.

The stages, each ending in a file: read -> split.npz -> checkpoints/ -> scores.csv -> result.json (last: it means complete).
Bad input is refused before the folder exists.
"""

import logging
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from omegaconf import OmegaConf
from rich.console import Console

from noveltylab import figures, loggers
from noveltylab.data.base import NoveltyData, Samples, load
from noveltylab.data.preprocess import Preprocess
from noveltylab.data.protocols import PROTOCOLS, Split, draw_val_outliers, save_split, split
from noveltylab.errors import UserError, nearest
from noveltylab.evaluate import embeddings, novelty_scores, reconstructions
from noveltylab.help import flatten
from noveltylab.methods.base import Method, find_method
from noveltylab.methods.knn import KNN
from noveltylab.methods.pca import PCA
from noveltylab.metrics import collapse_warnings, evaluate, roc
from noveltylab.options import Options, check_arguments
from noveltylab.results import provenance, read_result, sha256_file, write_atomic, write_result
from noveltylab.scores import Scores, read_scores, write_scores
from noveltylab.summary import print_summary
from noveltylab.train import CHUNK_IMAGES, VAL_LABELLED, Selected, check_device, fit, load_weights

log = logging.getLogger("noveltylab")

#: Test images in the t-SNE picture of methods that embed.
EMBEDDED = 600

#: Options that do not change a run's numbers: a run folder may be resumed or repeated with others.
FREE = {"output", "force", "data.root", "data.download", "trainer.accelerator", "trainer.checkpoint_seconds"}


def run(options: Options, config: dict[str, Any]) -> dict[str, Any]:
    """Trains, scores and measures one (method, data, protocol, inlier, seed); returns its result.

    A complete run is reported and not run again; an interrupted one goes on from its last checkpoint.

    Raises:
        UserError: for bad input, before anything is created.
    """
    check_device(options)
    config = {**config, "inlier": options.inlier_index}
    folder = options.folder
    if (done := previous(folder, config, options.force)) is not None:
        Console().print(f"[bold]complete already[/]: {folder} (force=true runs it again)")
        print_summary(done, folder)
        return done
    samples, parts = read_and_split(options)
    data, method = build(options, samples, parts)
    with recorded(folder, options, config) as sinks:
        digest = save_split(folder / "split.npz", parts, samples.ids, samples.labels)
        checkpoints = fit(method, data, options, sinks, folder)
        selected, seconds = checkpoints.main(method, options.trainer.max_epochs), checkpoints.seconds
        with timed(seconds, "score"):
            score(method, data, options, selected, folder / "scores.csv")
        with timed(seconds, "floors"):
            floors = floor_scores(data, options)
        with timed(seconds, "measure"):
            result = measure(options, folder, floors)
            result["extra"] = method.extra_metrics(*examples(method, data))
            draw(method, data, floors, result, folder)
            result["labelled"] = measure_labelled(method, data, options, checkpoints.labelled(), folder)
        result |= {
            "selected": {"rule": selected.rule, "epoch": selected.epoch, "value": selected.value},
            "transductive": sorted(method.transductive & set(method.score_names)),
            "seconds": {name: round(value, 2) for name, value in (seconds | {"total": sum(seconds.values())}).items()},
            "n": {
                "train": len(parts.train),
                "val": len(parts.val),
                "test_inliers": int((~parts.is_outlier).sum()),
                "test_outliers": int(parts.is_outlier.sum()),
            },
            "split_sha256": digest,
            "data_verified": samples.verified,
            "warnings": data.warnings + result["warnings"],
            "files": {name: sha256_file(folder / name) for name in ("split.npz", "scores.csv", "config.yaml")},
            "provenance": provenance(datetime.now(UTC), gpu_name(method)),
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


def previous(folder: Path, config: dict[str, Any], force: bool) -> dict[str, Any] | None:
    """The result of a complete run with the same options, or None where there is something to do.

    Raises:
        UserError: the folder holds a run with other options; shows the difference.
    """
    if force or not (folder / "config.yaml").is_file():
        return None
    old, new = (flatten(tree) for tree in (OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")), config))
    differences = [
        f"{key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} here"
        for key in sorted({*old, *new})
        if key not in FREE and not key.startswith("logger.") and old.get(key, "absent") != new.get(key, "absent")
    ]
    if differences:
        raise UserError(
            f"{folder} holds a run with other options ({'; '.join(differences)}). "
            "Choose another output=..., or force=true to run again (the old run is kept beside it)"
        )
    return read_result(folder) if (folder / "result.json").is_file() else None


def read_and_split(options: Options) -> tuple[Samples, Split]:
    """The samples and their split; all options of both are checked."""
    protocol = dict(options.protocol)
    name = protocol.pop("name")
    if name not in PROTOCOLS:
        raise UserError(f"protocol.name={name}: no such protocol; {nearest(name, PROTOCOLS)}")
    arguments = check_arguments(PROTOCOLS[name], {**protocol, "seed": options.seed}, "protocol")
    settings = options.data
    samples = load(settings.name, settings.root, settings.verify, settings.download)
    parts = split(name, samples.labels, samples.official_test, options.inlier_index, **arguments)
    parts = parts.limit(settings.limit_train)
    if options.select != "last" and not len(parts.val):
        raise UserError(
            f"select={options.select} needs held-out inliers and the split has none; "
            "raise protocol.val_fraction or use select=last"
        )
    if options.select == "outlier_val":
        flags = samples.official_test
        parts = draw_val_outliers(parts, samples.labels, flags, options.inlier_index, VAL_LABELLED, options.seed)
    return samples, parts


def build(options: Options, samples: Samples, parts: Split) -> tuple[NoveltyData, Method]:
    """The data module and the method, with the seed set for its initial weights."""
    settings = options.data
    arguments = dict(options.method)
    arguments.pop("name")
    primary = arguments.pop("primary", None)
    method_class = find_method(str(arguments.pop("_target_", None)))
    arguments = check_arguments(method_class, arguments, "method")
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
    L.seed_everything(options.seed, verbose=False)
    try:
        method = method_class(data.image_shape, **arguments)
    except ValueError as error:
        raise UserError(str(error)) from None
    if primary not in method.score_names:
        raise UserError(f"method.primary={primary}: no such score; {nearest(str(primary), method.score_names)}")
    return data, method


# The run's folder.


@contextmanager
def recorded(folder: Path, options: Options, config: dict[str, Any]) -> Iterator[list[Any]]:
    """Creates the folder (with force=true moves the old one aside); keeps `run.log` and the loggers open.

    A failure is written into the log and raised again.
    """
    kept = None
    if options.force and (folder / "config.yaml").is_file():
        kept = folder.rename(folder.with_name(f"{folder.name}.{datetime.now(UTC):%Y%m%d-%H%M%S}"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output={options.output}: cannot create {folder}: {error.strerror}; choose another output"
        ) from None
    if not (folder / "config.yaml").is_file():
        write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    form = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    to_file, to_screen = logging.FileHandler(folder / "run.log"), logging.StreamHandler()
    to_screen.setLevel(logging.INFO)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    for handler in (to_file, to_screen):
        handler.setFormatter(form)
        log.addHandler(handler)
    sinks: list[Any] = []
    try:
        log.info(f"run folder {folder}")
        if kept:
            log.info(f"force=true: the old run is kept as {kept}")
        sinks += loggers.build_loggers(options, folder, config)
        with warnings.catch_warnings():
            yield sinks
    except BaseException as error:
        log.debug(traceback.format_exc())
        log.error(f"{type(error).__name__}: {error}".strip())
        loggers.finish(sinks, None, folder)
        raise
    finally:
        for handler in (to_file, to_screen):
            log.removeHandler(handler)
            handler.close()


def score(method: Method, data: NoveltyData, options: Options, selected: Selected, path: Path) -> None:
    """Scores the whole test split with the selected weights and writes the scores file."""
    load_weights(selected.path, method)
    columns = novelty_scores(method, data.preprocess, data.test, options.trainer.score_batch_size, data.val)
    write_scores(path, Scores(data.test_ids.tolist(), data.test_labels, data.test_is_outlier, columns))


def measure_labelled(
    method: Method, data: NoveltyData, options: Options, chosen: dict[str, Selected], folder: Path
) -> dict[str, Any]:
    """The columns of select=outlier_val or oracle: {rule: {score name: metrics and epoch}}, {} without such a rule.

    Each named score is measured with the weights chosen for it, and written to `scores_<rule>.csv`.
    """
    if not chosen:
        return {}
    columns, path = {}, folder / f"scores_{options.labelled_rule}.csv"
    for name, selected in chosen.items():
        load_weights(selected.path, method)
        found = novelty_scores(method, data.preprocess, data.test, options.trainer.score_batch_size, data.val)
        columns[name] = found[name]
    write_scores(path, Scores(data.test_ids.tolist(), data.test_labels, data.test_is_outlier, columns))
    scores = read_scores(path)
    metrics = {name: evaluate(column, scores.is_outlier) for name, column in scores.columns.items()}
    return {str(options.labelled_rule): {name: {**metrics[name], "epoch": chosen[name].epoch} for name in chosen}}


def examples(method: Method, data: NoveltyData, count: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    """The first test inliers and outliers, preprocessed, for the method's own experiments."""
    method.eval()
    index = [np.flatnonzero(data.test_is_outlier == kind)[:count] for kind in (False, True)]
    inliers, outliers = (data.preprocess(data.test[torch.from_numpy(rows)].to(method.device)) for rows in index)
    return inliers, outliers


@dataclass(frozen=True)
class Floor:
    """A floor's scores on the run's test split, (N,)."""

    name: str
    scores: np.ndarray[Any, np.dtype[np.float64]]


def floor_scores(data: NoveltyData, options: Options) -> list[Floor]:
    """PCA residual and nearest neighbours on the run's own training and test images, scaled to [-1, 1]."""
    plain = Preprocess()
    found = []
    for name, floor in (("pca", PCA(data.image_shape)), ("knn", KNN(data.image_shape))):
        floor.to(data.device).prepare(plain(data.train.to(data.device)))
        (column,) = novelty_scores(floor, plain, data.test, options.trainer.score_batch_size).values()
        found.append(Floor(name, column))
    return found


def measure(options: Options, folder: Path, floors: list[Floor]) -> dict[str, Any]:
    """The part of the result that follows from the scores file and the floors alone."""
    scores = read_scores(folder / "scores.csv")
    primary = options.method["primary"]
    metrics = {name: evaluate(column, scores.is_outlier) for name, column in scores.columns.items()}
    floor = {floor.name: evaluate(floor.scores, scores.is_outlier) for floor in floors}
    doubts = collapse_warnings(primary, scores.columns[primary], metrics[primary]["auroc"])
    lowest = min(floor.values(), key=lambda found: float(found["auroc"]))["auroc"]
    if metrics[primary]["auroc"] < lowest:
        doubts.append(
            f"{primary}: AUROC {metrics[primary]['auroc']:.4f} is below both floors; PCA or neighbours do better"
        )
    return {
        "method": options.method["name"],
        "data": options.data.name,
        "protocol": options.protocol["name"],
        "inlier": options.inlier_index,
        "inlier_name": options.inlier_name,
        "seed": options.seed,
        "select": options.select,
        "primary": primary,
        "scores": {primary: metrics[primary], **metrics},
        "floor": floor,
        "warnings": doubts,
    }


def draw(method: Method, data: NoveltyData, floors: list[Floor], result: dict[str, Any], folder: Path) -> None:
    """The pictures of the run: ROC, score histogram, best and worst cases with their reconstructions."""
    scores = read_scores(folder / "scores.csv")
    primary = result["primary"]
    main = scores.columns[primary]
    label = result["method"]
    curves = {label: (*roc(main, scores.is_outlier), result["scores"][primary]["auroc"])}
    for floor in floors:
        curves[f"{floor.name} (floor)"] = (*roc(floor.scores, scores.is_outlier), result["floor"][floor.name]["auroc"])
    figures.plot_roc(folder / "figures" / "roc.png", curves)
    figures.plot_histogram(folder / "figures" / "scores.png", main, scores.is_outlier, primary)
    few = torch.from_numpy(np.random.default_rng(0).permutation(len(main))[:EMBEDDED])
    if (embedded := embeddings(method, data.preprocess, data.test[few])) is not None:
        figures.plot_embedding(folder / "figures" / "embedding.png", embedded, scores.is_outlier[few.numpy()])
    cases = np.unique(np.concatenate(list(figures.extreme_cases(main, scores.is_outlier).values())))
    images = data.test[torch.from_numpy(cases)]
    figures.plot_reconstructions(
        folder / "figures" / "cases.png",
        images.numpy(),
        reconstructions(method, data.preprocess, images),
        main[cases],
        scores.is_outlier[cases],
        [scores.ids[case] for case in cases],
    )


def gpu_name(method: Method) -> str | None:
    """The accelerator's name, None on a CPU."""
    return torch.cuda.get_device_name(method.device) if method.device.type == "cuda" else None
