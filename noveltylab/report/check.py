"""Computes every number of a run again from its scores files and compares it with its result.json.

Independent of the code that wrote it: AUROC and average precision are sums over the ROC curve here.
A number that nothing in the folder determines (seconds, the method's own metrics, floors whose
scores were not kept) is not compared.
"""

import hashlib
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noveltylab.command.validate import flatten
from noveltylab.errors import UserError
from noveltylab.options import kind_of_option
from noveltylab.results.files import open_regular, read_yaml, sha256_file
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
#: Bytes that the arrays of a split's file may have.
MAX_SPLIT_BYTES = 2 * 2**30
SPLIT = ("part", "id", "label", "is_outlier")


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
    if not any((folder / name).exists() for name in ("config.yaml", "scores.csv", *files)):
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
    counts = content["n"]
    scores = read_scores(folder / "scores.csv")
    yield from _options(folder, content)
    if "split.npz" in content["files"]:
        yield from _split(folder, content, scores)
    outliers = int(scores.is_outlier.sum())
    inliers = len(scores) - outliers
    yield from _unequal("n.test_outliers", counts.get("test_outliers"), outliers, "scores.csv")
    yield from _unequal("n.test_inliers", counts.get("test_inliers"), inliers, "scores.csv")
    if "unmeasured" not in content:
        exact = content.get("auroc_ci_method") == METHOD
        yield from _metrics("scores", content["scores"], folder / "scores.csv", exact)
        yield from _numbers_beside(folder, content, exact)
        yield from _cross(folder, content, scores)
    elif outliers:
        yield f"unmeasured says that there are no labelled outliers, but scores.csv has {outliers}"
    yield from _thresholds(folder, content)


def _options(folder: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """The options of result.json against those of config.yaml, which was written before the run."""
    config = content["config"]
    if "config.yaml" in content["files"]:
        old = _written_options(folder, content)
        new = flatten(config)
        for key in sorted(old.keys() | new.keys()):
            if kind_of_option(key) == "numbers" and old.get(key) != new.get(key):
                yield f"config.{key} is {new.get(key)!r}, but config.yaml has {old.get(key)!r}"
    method = config.get("method")
    if isinstance(method, dict):
        configured = method.get("primary")
        yield from _unequal("primary", content["primary"], configured, "its configuration")
    for key in ("inlier", "seed"):
        yield from _unequal(f"config.{key}", config.get(key), content[key], "the run's folder")


def _written_options(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The options of config.yaml by dotted key."""
    try:
        config = read_yaml(folder / "config.yaml", within=folder)
    except (OSError, ValueError) as error:
        raise UserError(f"config.yaml: cannot be read ({error})") from None
    if not isinstance(config, dict):
        return {}
    shape = (content.get("input") or {}).get("shape")
    return flatten(in_options_of_today(config, shape))


# The split.


def _split(folder: Path, content: Mapping[str, Any], scores: Scores) -> Iterator[str]:
    """Which images trained and tested, and how many."""
    split = read_split(folder)
    part = split["part"]
    yield from _unequal("split_sha256", content.get("split_sha256"), split_hash(split), "split.npz")
    for name in ("train", "val"):
        count = int((part == name).sum())
        yield from _unequal(f"n.{name}", content["n"].get(name), count, "split.npz")
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


def read_split(folder: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a run's split.npz by name. UserError where it cannot be read or lacks one."""
    try:
        with open_regular(folder / "split.npz", within=folder) as file:
            with zipfile.ZipFile(file) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > MAX_SPLIT_BYTES:
                raise UserError("split.npz: unpacks to more than a split may have")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in SPLIT}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"split.npz: cannot be read ({error})") from None


def split_hash(split: dict[str, NDArray[Any]]) -> str:
    """The hash of a split as result.json has it.

    Of part, id, label and is_outlier of each image in order.
    """
    columns = [split[name].tolist() for name in SPLIT]
    lines = []
    for part, name, label, is_outlier in zip(*columns, strict=True):
        lines.append(f"{part},{name},{label},{int(is_outlier)}\n")
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


# Metrics.


def _metrics(where: str, recorded: Mapping[str, Any], path: Path, exact: bool) -> Iterator[str]:
    """Checks the metrics of every score of a file.

    The AUROC's interval is checked too where this version's method made it.
    """
    scores = read_scores(path)
    file = path.name
    lonely = sorted(recorded.keys() ^ scores.columns.keys())
    if lonely:
        holder = file if lonely[0] in scores.columns else "result.json"
        yield f"{where}: {lonely[0]!r} stands in {holder} alone"
        return
    for name, column in scores.columns.items():
        metrics = recorded[name]
        for metric, value in recompute(column, scores.is_outlier).items():
            yield from _unequal(f"{where}.{name}.{metric}", metrics.get(metric), value, file)
        auroc = metrics["auroc"]
        low, high = metrics["auroc_ci"]
        label = f"{where}.{name}.auroc_ci"
        if not low - ROUNDING <= auroc <= high + ROUNDING:
            yield f"{label} is {low:.4f} to {high:.4f}, which does not hold the AUROC"
        if exact:
            lower, upper = interval(auroc, place(column, scores.is_outlier))
            yield from _unequal(f"{label}, low", low, lower, file)
            yield from _unequal(f"{label}, high", high, upper, file)


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
    hits = tpr * outliers
    alarms = fpr * (len(is_outlier) - outliers)
    precision = hits[1:] / (hits[1:] + alarms[1:])
    # rises from -1 to 1; the error rates are equal where it is 0
    gap = fpr + tpr - 1
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return {
        "auroc": float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2)),
        "average_precision": float(np.sum(np.diff(tpr) * precision)),
        "eer": float(fpr[after - 1] + share * (fpr[after] - fpr[after - 1])),
        "fpr95": float(fpr[np.argmax(tpr >= 0.95)]),
    }


def _numbers_beside(folder: Path, content: Mapping[str, Any], exact: bool) -> Iterator[str]:
    """The numbers that stand beside the run's own."""
    files = content["files"]
    for part, names in (("apart", APART), ("labelled", LABELLED)):
        for name in names:
            file = f"scores_{name}.csv"
            recorded = content.get(part, {}).get(name)
            if recorded is None:
                continue
            if file in files:
                yield from _metrics(f"{part}.{name}", recorded, folder / file, exact)
            else:
                yield f"{part}.{name} has numbers, but files names no {file}"
    yield from _diagnosis(folder, content, exact)
    if "floors.csv" in files:
        yield from _metrics("floor", content["floor"], folder / "floors.csv", exact)


def _diagnosis(folder: Path, content: Mapping[str, Any], exact: bool) -> Iterator[str]:
    """The AUROCs under batch statistics, which are no numbers of the run."""
    by_order = content.get("diagnosis", {}).get("batch_statistics")
    if by_order is None:
        return
    file = "scores_batch_statistics.csv"
    if file not in content["files"]:
        yield f"diagnosis.batch_statistics has numbers, but files names no {file}"
        return
    recorded = {}
    for order, scores in by_order.items():
        for name, metrics in scores.items():
            recorded[f"{order}.{name}"] = metrics
    yield from _metrics("diagnosis.batch_statistics", recorded, folder / file, exact)


def _cross(folder: Path, content: Mapping[str, Any], test: Scores) -> Iterator[str]:
    """The error rates at the threshold of the source set."""
    recorded = content.get("cross")
    if recorded is None:
        return
    file = "scores_source.csv"
    if file not in content["files"]:
        yield f"cross has numbers, but files names no {file}"
        return
    source = read_scores(folder / file)
    lonely = sorted(recorded["scores"].keys() ^ source.columns.keys())
    if lonely:
        yield f"cross.scores: {lonely[0]!r} does not stand in both result.json and {file}"
        return
    outliers = int(source.is_outlier.sum())
    inliers = len(source) - outliers
    yield from _unequal("cross.source_outliers", recorded["source_outliers"], outliers, file)
    yield from _unequal("cross.source_inliers", recorded["source_inliers"], inliers, file)
    for name, rates in recorded["scores"].items():
        where = f"cross.scores.{name}"
        threshold = source_threshold(source.columns[name], source.is_outlier, recorded["rule"])
        yield from _unequal(f"{where}.threshold", rates["threshold"], threshold, file)
        rejected = test.columns[name] > threshold
        far = float((~rejected[test.is_outlier]).mean())
        frr = float(rejected[~test.is_outlier].mean())
        computed = {"far": far, "frr": frr, "hter": (far + frr) / 2}
        for rate, value in computed.items():
            yield from _unequal(f"{where}.{rate}", rates[rate], value, "scores.csv")


# Thresholds.


def _thresholds(folder: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """The thresholds on the primary score, from the scores of the held-out inliers."""
    recorded = content.get("thresholds")
    if recorded is None:
        return
    file = "calibration.csv"
    if file not in content["files"]:
        yield f"thresholds are there, but files names no {file}"
        return
    held_out = read_scores(folder / file)
    primary = content["primary"]
    if recorded.get("score") != primary or primary not in held_out.columns:
        yield f"thresholds are those of {recorded.get('score')!r}, the primary score is {primary!r}"
        return
    values = held_out.columns[primary]
    folds = recorded.get("folds", 0)
    yield from _unequal("thresholds.held_out", recorded.get("held_out"), len(values), file)
    # folds of some data are not exact whatever the rule
    if not folds or recorded.get("exact"):
        exact = content["selected"]["rule"] == "last"
        rule = "the rule of selection"
        yield from _unequal("thresholds.exact", recorded.get("exact"), exact, rule)
    calibration = Calibration(values, folds)
    for threshold in recorded["at"]:
        yield from _threshold(threshold, values, calibration, file)


def _threshold(
    recorded: Mapping[str, Any], values: Array, calibration: Calibration, file: str
) -> Iterator[str]:
    """The threshold for one rate of false alarms, and what it promises."""
    rate = recorded["fpr"]
    where = f"thresholds.at, fpr {rate}"
    computed = {
        "expected": calibration.expected(rate),
        "bound": calibration.bound(rate),
        "upper": calibration.upper(rate),
        "needed": needed(rate),
    }
    for key in recorded.keys() & computed.keys():
        yield from _unequal(f"{where}: {key}", recorded[key], computed[key], file)
    # earlier versions had the held-out score itself, without a tolerance for rounding
    rank = calibration.allowed(rate)
    plain = float(np.sort(values)[-rank]) if rank else None
    if not _equal(recorded["threshold"], plain):
        threshold = calibration.threshold(rate)
        yield from _unequal(f"{where}: threshold", recorded["threshold"], threshold, file)


def _unequal(name: str, recorded: Any, computed: Any, file: str) -> Iterator[str]:
    if not _equal(recorded, computed):
        yield f"{name} is {_shown(recorded)}, but {file} gives {_shown(computed)}"


def _equal(recorded: Any, computed: Any) -> bool:
    if isinstance(recorded, float) and isinstance(computed, int | float):
        return math.isclose(recorded, computed, rel_tol=ROUNDING, abs_tol=ROUNDING)
    return bool(recorded == computed)


def _shown(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
