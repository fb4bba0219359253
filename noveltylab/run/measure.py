"""Measures a run: everything in its result that follows from its scores and floors."""

import math
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from noveltylab.data.datamodule import NoveltyData
from noveltylab.data.split import Split
from noveltylab.methods.base import Method
from noveltylab.options import Options
from noveltylab.results.record import SEEN
from noveltylab.results.schema import APART
from noveltylab.results.scores import Scores
from noveltylab.run.score import RunScores, score_labelled
from noveltylab.scoring.auroc import METHOD
from noveltylab.scoring.conformal import thresholds
from noveltylab.scoring.floors import Floor
from noveltylab.scoring.folds import Folds
from noveltylab.scoring.leakage import measure_leakage
from noveltylab.scoring.metrics import (
    collapse_warnings,
    error_rates,
    evaluate,
    evaluate_kinds,
    source_threshold,
)
from noveltylab.training.checkpoints import Selected


def measure(
    method: Method,
    data: NoveltyData,
    split: Split,
    options: Options,
    selected: Selected,
    run_scores: RunScores,
    floors: list[Floor],
) -> dict[str, Any]:
    """The part of the result that says which run it is and how well it did.

    Without an outlier in the test each score's metrics are None, there is no floor, and
    `unmeasured` says so.
    """
    result = measure_scores(options, run_scores, floors)
    result["thresholds"] = measure_thresholds(run_scores.held_out, selected, method, options, split)
    if "unmeasured" not in result:
        result["leakage"] = measure_leakage(data)
        result["extra"] = method.extra_metrics(*examples(method, data))
        result["warnings"] += method.doubts(result["extra"])
    return result


def measure_scores(options: Options, run_scores: RunScores, floors: list[Floor]) -> dict[str, Any]:
    """The part of the result that follows from the scores and the floors alone."""
    scores, primary = run_scores.test, options.method["primary"]
    is_labelled = bool(scores.is_outlier.any())
    # metrics of each score and of each floor
    metrics: dict[str, Any] = dict.fromkeys(scores.columns)
    floor_metrics = {}
    if is_labelled:
        metrics = evaluate_all(scores)
        for floor in floors:
            floor_metrics[floor.name] = evaluate(floor.scores, scores.is_outlier)
    # what is doubtful in them
    primary_metrics = metrics[primary]
    doubts = collapse_warnings(primary, scores.columns[primary], primary_metrics)
    if primary_metrics:
        floor_aurocs = {name: floor["auroc"] for name, floor in floor_metrics.items()}
        doubts += floor_warnings(primary, primary_metrics["auroc"], floor_aurocs)
    apart, apart_doubts = measure_apart(run_scores.apart)
    # the sections of the result
    result = options.cell
    result["primary"] = primary
    result["scores"] = {primary: primary_metrics, **metrics}
    result["auroc_ci_method"] = METHOD
    if not is_labelled:
        result["unmeasured"] = (
            f"no labelled outliers among the {len(scores)} test samples: "
            "scores and thresholds, but no AUROC"
        )
    result["floor"] = floor_metrics
    result["apart"] = apart
    if run_scores.source is not None:
        result["cross"] = measure_cross(options, run_scores.source, scores)
    if is_labelled and scores.classes:
        kinds = evaluate_kinds(scores.columns[primary], scores.is_outlier, scores.classes)
        if kinds:
            result["kinds"] = kinds
    result["warnings"] = doubts + apart_doubts
    return result


def evaluate_all(scores: Scores) -> dict[str, dict[str, Any]]:
    """Score name -> its metrics."""
    return {name: evaluate(column, scores.is_outlier) for name, column in scores.columns.items()}


def floor_warnings(primary: str, auroc: float, floors: dict[str, float]) -> list[str]:
    """The warning that a score does not stand above the floors of its own run, if so.

    Args:
        primary: Name of the score.
        auroc: Its AUROC.
        floors: Name -> AUROC of each floor.
    """
    raw_aurocs, seen_aurocs = [], {}
    for name, value in floors.items():
        if name.endswith(SEEN):
            seen_aurocs[name] = value
        else:
            raw_aurocs.append(value)
    if auroc < min(floors["pca"], floors["knn"]):
        return [f"{primary}: AUROC {auroc:.4f} is below both floors; PCA or neighbours do better"]
    if seen_aurocs and auroc > max(raw_aurocs):
        name, highest = max(seen_aurocs.items(), key=itemgetter(1))
        if auroc <= highest:
            return [
                f"{primary}: AUROC {auroc:.4f} is above the floors of raw pixels, but not above "
                f"{name} ({highest:.4f}): the preprocessing alone does as much"
            ]
    if auroc <= floors["norm"]:
        return [
            f"{primary}: AUROC {auroc:.4f} is not above that of |x|^2 alone ({floors['norm']:.4f})"
        ]
    return []


def measure_apart(apart: dict[str, Scores]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Metrics of what is no part of the run's number, by kind (`schema.APART`), and warnings."""
    metrics: dict[str, dict[str, Any]] = {}
    doubts = []
    for kind in APART:
        scores = apart.get(kind)
        if scores is None:
            continue
        title = kind.replace("_", " ")
        if scores.is_outlier.all():
            doubts.append(f"no AUROC of {title}: all {len(scores)} are outliers")
        elif not scores.is_outlier.any():
            doubts.append(f"no AUROC of {title}: all {len(scores)} are inliers")
        else:
            metrics[kind] = evaluate_all(scores)
    return metrics, doubts


def measure_cross(options: Options, source: Scores, test: Scores) -> dict[str, Any]:
    """The error rates of each score on the test set at the threshold of the source set."""
    rule = options.protocol["threshold"]
    rates = {}
    for name, column in source.columns.items():
        threshold = source_threshold(column, source.is_outlier, rule)
        errors = error_rates(test.columns[name], test.is_outlier, threshold)
        rates[name] = {"threshold": threshold, **errors}
    return {
        "source": Path(str(options.data.source)).name,
        "target": Path(str(options.data.target)).name,
        "rule": rule,
        "source_inliers": int((~source.is_outlier).sum()),
        "source_outliers": int(source.is_outlier.sum()),
        "scores": rates,
    }


def examples(
    method: Method, data: NoveltyData, count: int = 500
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first test inliers and outliers, preprocessed, for the method's own experiments."""
    method.eval()
    parts = []
    for kind in (False, True):
        positions = np.flatnonzero(data.test_is_outlier == kind)[:count]
        images = data.test[torch.from_numpy(positions)].to(method.device)
        parts.append(data.preprocess(images))
    inliers, outliers = parts
    return inliers, outliers


def measure_labelled(
    method: Method,
    data: NoveltyData,
    batch_size: int,
    selections: dict[str, Selected],
    rule: str | None,
    folder: Path,
) -> dict[str, dict[str, Any]]:
    """Metrics and epoch of each score under a rule with outlier labels: {rule: {score: ...}}.

    {} without such a rule. The method has other weights afterwards.
    """
    if rule is None or not selections:
        return {}
    path = folder / f"scores_{rule}.csv"
    scores = score_labelled(method, data, batch_size, selections, path)
    metrics = evaluate_all(scores)
    section = {}
    for name, selected in selections.items():
        section[name] = {**metrics[name], "epoch": selected.epoch}
    return {rule: section}


def measure_thresholds(
    held_out: Scores | None, selected: Selected, method: Method, options: Options, split: Split
) -> dict[str, Any] | None:
    """The thresholds of the primary score by the scores of held-out inliers.

    None without held-out inliers, or for a score of the whole test set.
    """
    primary = options.method["primary"]
    if primary in method.transductive or held_out is None:
        return None
    folds = len(method.members) if isinstance(method, Folds) else 0
    exact = selected.rule == "last" and not (folds and options.data.fitted_on_training)
    section = thresholds(held_out.columns[primary], primary, exact=exact, folds=folds)
    add_missing_images(section, options, split)
    return section


def add_missing_images(section: dict[str, Any], options: Options, split: Split) -> None:
    """Adds to each rate without a threshold how many more training images would give one.

    Nothing is added where the protocol does not hold out a share of the images.
    """
    if split.aggregate is not None or options.data.limit_train is not None:
        return
    share = 1.0
    if not options.folds:
        share = float(options.protocol.get("val_fraction", 0))
    images = len(split.train) + len(split.val)
    for row in section["at"]:
        if row["threshold"] is None:
            row["more_images"] = images_for(row["needed"], share) - images


def images_for(held_out: int, share: float) -> int:
    """How many images give `held_out` held-out ones, where a share is held out, rounded down."""
    images = max(1, math.floor(held_out / share) - 1)
    while int(share * images) < held_out:
        images += 1
    return images
