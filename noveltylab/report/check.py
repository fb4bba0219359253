"""Computes every number of a run again from its scores files and compares it with its result.json.

Independent of the code that wrote it: AUROC and average precision are sums over the ROC curve here.
A number that nothing in the folder determines (seconds, the method's own metrics, floors whose
scores were not kept) is not compared.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noveltylab.command.dotted import flatten
from noveltylab.errors import UserError
from noveltylab.options import kind_of_option
from noveltylab.report.split import read_split, split_hash
from noveltylab.results.files import read_yaml, sha256_file
from noveltylab.results.older import in_options_of_today
from noveltylab.results.schema import APART
from noveltylab.results.scores import Scores, read_scores
from noveltylab.scoring.auroc import METHOD, interval, place
from noveltylab.scoring.conformal import Calibration, needed
from noveltylab.scoring.metrics import roc, source_threshold

Array = NDArray[np.float64]
#: Differences that rounding explains: another version may sum in another order.
ROUNDING = 1e-9
LABELLED = ("outlier_val", "oracle")


def check_run(folder: Path, content: Mapping[str, Any]) -> str:
    """Compares a complete run's result with its files.

    Args:
        folder: The run's folder.
        content: Its result.json, which fits the schema.

    Returns:
        Why its numbers cannot be checked, "" where they were.

    Raises:
        UserError: Names the first number or file that is not what it should be.
    """
    files = content["files"]
    for name in files:
        if Path(name).name != name:
            raise UserError(f"result.json: files names {name!r}, which is no file of the run")
    if not any((folder / name).exists() for name in {"config.yaml", "scores.csv", *files}):
        return "only its result.json was kept: no scores files to compute its numbers from"
    for name, digest in files.items():
        check_file(folder, name, digest)
    if "scores.csv" not in files:
        raise UserError(
            "result.json: files does not name scores.csv, so nothing says that it is the run's own"
        )
    weights = content.get("weights")
    # may be deleted to save space
    if isinstance(weights, dict) and (folder / str(weights.get("file"))).exists():
        check_file(folder, str(weights["file"]), str(weights.get("sha256")))
    for difference in _differences(folder, content):
        raise UserError(f"result.json: {difference}")
    return ""


def check_file(folder: Path, name: str, digest: str) -> None:
    """Raises UserError if a file of the run is not the one that its result records."""
    try:
        same = sha256_file(folder / name, within=folder) == digest
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None
    if not same:
        raise UserError(f"{name}: is not the file that result.json records (its SHA-256 differs)")


def _differences(folder: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """Each number that is not what the files give, in words."""
    files = content["files"]
    scores = read_scores(folder / "scores.csv")
    yield from _options(folder, content)
    if "split.npz" in files:
        yield from _split(folder, content, scores)
    outliers = int(scores.is_outlier.sum())
    yield from _unequal(
        "n.test_outliers", content["n"].get("test_outliers"), outliers, "scores.csv"
    )
    yield from _unequal(
        "n.test_inliers", content["n"].get("test_inliers"), len(scores) - outliers, "scores.csv"
    )
    if "unmeasured" in content:
        if outliers:
            yield f"unmeasured says that there are no labelled outliers, but scores.csv has {outliers}"
    else:
        exact = content.get("auroc_ci_method") == METHOD
        yield from _metrics("scores", content["scores"], scores, "scores.csv", exact)
        yield from _others(folder, content, exact)
        yield from _cross(folder, content, scores)
    yield from _thresholds(folder, content)


def _others(folder: Path, content: Mapping[str, Any], exact: bool) -> Iterator[str]:
    """The numbers that stand beside the run's own."""
    files = content["files"]
    for part, names in (("apart", APART), ("labelled", LABELLED)):
        for name in names:
            file, recorded = f"scores_{name}.csv", content.get(part, {}).get(name)
            if recorded is not None and file not in files:
                yield f"{part}.{name} has numbers, but files names no {file}"
            elif recorded is not None:
                yield from _metrics(
                    f"{part}.{name}", recorded, read_scores(folder / file), file, exact
                )
    yield from _diagnosis(folder, content, exact)
    if "floors.csv" in files:
        yield from _metrics(
            "floor", content["floor"], read_scores(folder / "floors.csv"), "floors.csv", exact
        )


def _diagnosis(folder: Path, content: Mapping[str, Any], exact: bool) -> Iterator[str]:
    """The AUROCs under batch statistics, which are no numbers of the run."""
    by_order = content.get("diagnosis", {}).get("batch_statistics")
    if by_order is None:
        return
    file = "scores_batch_statistics.csv"
    if file not in content["files"]:
        yield f"diagnosis.batch_statistics has numbers, but files names no {file}"
        return
    recorded = {
        f"{order}.{name}": metrics
        for order, scores in by_order.items()
        for name, metrics in scores.items()
    }
    yield from _metrics(
        "diagnosis.batch_statistics", recorded, read_scores(folder / file), file, exact
    )


def _cross(folder: Path, content: Mapping[str, Any], test: Scores) -> Iterator[str]:
    """The error rates at the threshold of the source set."""
    recorded = content.get("cross")
    if recorded is None:
        return
    if "scores_source.csv" not in content["files"]:
        yield "cross has numbers, but files names no scores_source.csv"
        return
    source = read_scores(folder / "scores_source.csv")
    if missing := sorted(set(recorded["scores"]) ^ set(source.columns)):
        yield f"cross.scores: {missing[0]!r} does not stand in both result.json and scores_source.csv"
        return
    outliers = int(source.is_outlier.sum())
    for key, count in (("source_outliers", outliers), ("source_inliers", len(source) - outliers)):
        yield from _unequal(f"cross.{key}", recorded[key], count, "scores_source.csv")
    for name, rates in recorded["scores"].items():
        threshold = source_threshold(source.columns[name], source.is_outlier, recorded["rule"])
        yield from _unequal(
            f"cross.scores.{name}.threshold", rates["threshold"], threshold, "scores_source.csv"
        )
        column = test.columns[name]
        accepted = float((column[test.is_outlier] <= threshold).mean())
        rejected = float((column[~test.is_outlier] > threshold).mean())
        again = {"far": accepted, "frr": rejected, "hter": (accepted + rejected) / 2}
        for rate, value in again.items():
            yield from _unequal(f"cross.scores.{name}.{rate}", rates[rate], value, "scores.csv")


def _metrics(
    where: str, recorded: Mapping[str, Any], scores: Scores, file: str, exact: bool
) -> Iterator[str]:
    """Checks the metrics of every score of a file.

    The AUROC's interval is checked too where this version's method made it.
    """
    if missing := sorted(set(recorded) ^ set(scores.columns)):
        holder = file if missing[0] in scores.columns else "result.json"
        yield f"{where}: {missing[0]!r} stands in {holder} alone"
        return
    for name, column in scores.columns.items():
        for metric, value in recompute(column, scores.is_outlier).items():
            yield from _unequal(f"{where}.{name}.{metric}", recorded[name].get(metric), value, file)
        low, high = recorded[name]["auroc_ci"]
        if not low - ROUNDING <= recorded[name]["auroc"] <= high + ROUNDING:
            yield f"{where}.{name}.auroc_ci is {low:.4f} to {high:.4f}, which does not hold the AUROC"
        if exact:
            bounds = interval(recorded[name]["auroc"], place(column, scores.is_outlier))
            for bound, value, computed in zip(("low", "high"), (low, high), bounds, strict=True):
                yield from _unequal(f"{where}.{name}.auroc_ci, {bound}", value, computed, file)


def recompute(scores: Array, is_outlier: NDArray[np.bool_]) -> dict[str, float]:
    """The metrics of one score, from its ROC curve.

    Args:
        scores: (N,), larger is more novel.
        is_outlier: (N,), with both kinds.

    Returns:
        ``auroc``, ``average_precision``, ``eer``, ``fpr95``. UserError as `metrics.roc`.
    """
    fpr, tpr = roc(scores, is_outlier)
    outliers = int(is_outlier.sum())
    hits, alarms = tpr * outliers, fpr * (len(is_outlier) - outliers)
    precision = hits[1:] / (hits[1:] + alarms[1:])
    gap = fpr + tpr - 1  # rises from -1 to 1; the error rates are equal where it is 0
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return {
        "auroc": float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2)),
        "average_precision": float(np.sum(np.diff(tpr) * precision)),
        "eer": float(fpr[after - 1] + share * (fpr[after] - fpr[after - 1])),
        "fpr95": float(fpr[np.argmax(tpr >= 0.95)]),
    }


def _options(folder: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """The options of result.json against those of config.yaml, which was written before the run."""
    if "config.yaml" in content["files"]:
        try:
            written = read_yaml(folder / "config.yaml", within=folder)
        except (OSError, ValueError) as error:
            raise UserError(f"config.yaml: cannot be read ({error})") from None
        shape = (content.get("input") or {}).get("shape")
        old = flatten(in_options_of_today(written, shape)) if isinstance(written, dict) else {}
        new = flatten(content["config"])
        for key in sorted(old.keys() | new.keys()):
            if kind_of_option(key) == "numbers" and old.get(key) != new.get(key):
                yield f"config.{key} is {new.get(key)!r}, but config.yaml has {old.get(key)!r}"
    method = content["config"].get("method")
    if isinstance(method, dict):
        yield from _unequal(
            "primary", content["primary"], method.get("primary"), "its configuration"
        )
    for key in ("inlier", "seed"):
        yield from _unequal(
            f"config.{key}", content["config"].get(key), content[key], "the run's folder"
        )


def _split(folder: Path, content: Mapping[str, Any], scores: Scores) -> Iterator[str]:
    """Which images trained and tested, and how many."""
    split = read_split(folder)
    part = split["part"]
    yield from _unequal("split_sha256", content.get("split_sha256"), split_hash(split), "split.npz")
    for name in ("train", "val"):
        yield from _unequal(
            f"n.{name}", content["n"].get(name), int((part == name).sum()), "split.npz"
        )
    tested = part == "test"
    pieces, file = scores, "scores.csv"
    for name in ("scores_patches.csv", "scores_images.csv"):
        if name in content["files"]:
            pieces, file = read_scores(folder / name), name
    if pieces.ids != split["id"][tested].tolist():
        yield f"{file} does not hold the test samples of split.npz in their order"
    elif not np.array_equal(pieces.is_outlier, split["is_outlier"][tested]):
        yield f"{file} calls other samples outliers than split.npz"
    elif not np.array_equal(pieces.labels, split["label"][tested]):
        yield f"{file} has other labels than split.npz"


def _thresholds(folder: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """Where the primary score is cut, from the scores of the held-out inliers."""
    recorded = content.get("thresholds")
    if recorded is None:
        return
    if "calibration.csv" not in content["files"]:
        yield "thresholds are there, but files names no calibration.csv"
        return
    held_out = read_scores(folder / "calibration.csv")
    primary = content["primary"]
    if recorded.get("score") != primary or primary not in held_out.columns:
        yield f"thresholds are those of {recorded.get('score')!r}, the primary score is {primary!r}"
        return
    exact = content["selected"]["rule"] == "last"
    values = held_out.columns[primary]
    folds = recorded.get("folds", 0)
    calibration = Calibration(values, folds)
    yield from _unequal(
        "thresholds.held_out", recorded.get("held_out"), len(values), "calibration.csv"
    )
    if not folds or recorded.get("exact"):  # folds of some data are not exact whatever the rule
        yield from _unequal(
            "thresholds.exact", recorded.get("exact"), exact, "the rule of selection"
        )
    for cut in recorded["at"]:
        rate, name = cut["fpr"], f"thresholds.at, fpr {cut['fpr']}"
        again = {
            "expected": calibration.expected(rate),
            "bound": calibration.bound(rate),
            "upper": calibration.upper(rate),
            "needed": needed(rate),
        }
        for key in cut.keys() & again.keys():
            yield from _unequal(f"{name}: {key}", cut[key], again[key], "calibration.csv")
        threshold = calibration.threshold(rate)
        if not _equal(cut["threshold"], threshold) and not _equal(
            cut["threshold"], _plain(values, calibration, rate)
        ):
            yield from _unequal(
                f"{name}: threshold", cut["threshold"], threshold, "calibration.csv"
            )


def _plain(values: Array, calibration: Calibration, rate: float) -> float | None:
    """The threshold as earlier versions had it.

    It was the held-out score itself, without a tolerance for rounding.
    """
    rank = calibration.allowed(rate)
    return float(np.sort(values)[-rank]) if rank else None


def _unequal(name: str, recorded: Any, computed: Any, file: str) -> Iterator[str]:
    if not _equal(recorded, computed):
        yield f"{name} is {_shown(recorded)}, but {file} gives {_shown(computed)}"


def _equal(recorded: Any, computed: Any) -> bool:
    if isinstance(recorded, float) and isinstance(computed, int | float):
        return math.isclose(recorded, computed, rel_tol=ROUNDING, abs_tol=ROUNDING)
    return bool(recorded == computed)


def _shown(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
