"""What a run prints at its end: its metrics beside the floors, and how they came about."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from noveltylab.command import screen
from noveltylab.results.phases import in_words, lacking, seen_by
from noveltylab.results.record import SEEN, standing

#: what the rows in yellow are
RULES = {
    "outlier_val": "rows outlier_val: each score at its best epoch on LABELLED validation outliers; "
    "not the result",
    "oracle": "rows oracle: each score at its best epoch on the TEST labels, an optimistic bound; "
    "not the result",
}

#: the rate of false positives whose threshold is shown
FPR = 0.05

#: what the rows apart from the run's number are
APART = {
    "patches": "patches, their frame's label",
    "patches_by_mask": "patches, by pixel masks",
    "clips": "frames, each clip scaled",
    "images": "single images",
    "files": "whole files",
}

#: orders of the test set under diagnose=batch_statistics, in words
ORDERS = {
    "class_order": "in class order",
    "random_order": "in random order",
    "apart": "inliers and outliers apart",
}


def print_summary(
    result: Mapping[str, Any], folder: str | Path, console: Console | None = None
) -> None:
    """Prints one table and a few lines under it.

    Args:
        result: As ``result.json`` holds it.
        folder: Where the run's files lie.
        console: Where to print; standard output if not given.
    """
    console = console or screen.console()
    dot = " · " if console.encoding.startswith("utf") else " - "
    console.print()
    console.print(Text(_title(result, dot), "bold"))
    if "unmeasured" in result:
        console.print(Text(result["unmeasured"], "yellow"), soft_wrap=True)
    else:
        console.print(_table(result))
    for key, value, style in _facts(result, Path(folder), dot):
        console.print(Text.assemble((f"{key:<9} ", "dim"), (value, style)), soft_wrap=True)
    for line in _diagnosis(result, dot):
        console.print(Text(line, "yellow"), soft_wrap=True)
    for warning in _warnings(result):
        console.print(Text(f"WARNING   {warning}", "bold red"), soft_wrap=True)


def _title(result: Mapping[str, Any], dot: str) -> str:
    inlier, name = str(result["inlier"]), str(result["inlier_name"])
    if name != inlier:
        inlier = f"{inlier} ({name})"
    parts = (
        result["method"],
        result["data"],
        f"inlier {inlier}",
        result["protocol"],
        f"seed {result['seed']}",
    )
    return dot.join(map(str, parts))


def _warnings(result: Mapping[str, Any]) -> list[str]:
    """What the result warns of; an older one calls scores inverted whose interval reaches 0.5."""
    primary = result["primary"]
    metrics = result["scores"][primary]
    if not metrics:
        return list(result["warnings"])
    return standing(result["warnings"], primary, metrics["auroc_ci"])


#: Names of floors as the screen has them, where the short one says too little.
FLOOR_NOTES = {"norm": "|x|^2 alone"}


def _table(result: Mapping[str, Any]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("score", overflow="fold", min_width=12)
    for header in ("AUROC", "95 % interval", "average\nprecision", "EER", "FPR at\n95 % TPR"):
        table.add_column(header, justify="right", no_wrap=True)
    primary = result["primary"]
    table.add_row(*_cells(primary, result["scores"][primary]), style="bold")
    for name, metrics in result["floor"].items():
        table.add_row(*_cells(f"floor: {FLOOR_NOTES.get(name, name)}", metrics))
    for kind, metrics in result.get("kinds", {}).items():
        table.add_row(*_cells(f"{kind} ({metrics['outliers']})", metrics))
    for name, metrics in result["scores"].items():
        if name != primary:
            if name in result.get("transductive", ()):
                name += " (whole test set)"
            table.add_row(*_cells(name, metrics), style="dim")
    for kind, scores in result.get("apart", {}).items():
        table.add_row(*_cells(f"{APART[kind]}: {primary}", scores[primary]), style="dim")
    for rule, scores in result.get("labelled", {}).items():
        table.add_section()
        for name, metrics in scores.items():
            table.add_row(*_cells(f"{rule}: {name}", metrics), style="yellow")
    return table


def _cells(name: str, metrics: Mapping[str, Any]) -> list[Text]:
    low, high = metrics["auroc_ci"]
    return [
        Text(name),
        Text(f"{metrics['auroc']:.4f}"),
        Text(f"{low:.4f} - {high:.4f}"),
        Text(f"{metrics['average_precision']:.4f}"),
        Text(f"{metrics['eer']:.4f}"),
        Text(f"{metrics['fpr95']:.4f}"),
    ]


def _facts(result: Mapping[str, Any], folder: Path, dot: str) -> list[tuple[str, str, str]]:
    """Key, value and style of each line under the table."""
    seconds = result["seconds"]
    lines = [
        ("weights", *_weights(result)),
        ("samples", _samples(result["n"], dot), ""),
    ]
    lines += [("floors", line, "") for line in _floors(result)]
    lines += [("classes", line, "") for line in _leakage(result)]
    lines += [("pixels", line, "") for line in _pixels(result, dot)]
    lines += [("threshold", line, "") for line in _thresholds(result)]
    lines += [("HTER", line, "") for line in _half_total_error_rate(result)]
    lines.append(("seconds", f"{seconds['train']:.1f} train{dot}{seconds['score']:.1f} score", ""))
    lines.append(("data", *_verified(result)))
    lines += [("labels", RULES[rule], "yellow") for rule in result.get("labelled", {})]
    lines += [("also", line, "") for line in _own_metrics(result, dot)]
    lines += [("advice", line, "yellow") for line in _advice(result)]
    lines.append(("folder", str(folder), ""))
    for key, line in zip(("W&B", ""), offline_runs([folder]), strict=False):
        lines.append((key, line, ""))
    files = "result.json, scores.csv, split.npz, config.yaml, run.log"
    if (folder / "figures").is_dir():
        files += ", figures/"
    lines.append(("files", files, ""))
    return lines


def _samples(sizes: Mapping[str, int], dot: str) -> str:
    parts = [
        f"{sizes['train']} train",
        f"{sizes['val']} val",
        f"test {sizes['test_inliers']} inliers, {sizes['test_outliers']} outliers",
    ]
    if sizes.get("skipped"):
        parts.append(f"{sizes['skipped']} unreadable, skipped")
    return dot.join(parts)


def _own_metrics(result: Mapping[str, Any], dot: str) -> list[str]:
    """The method's own metrics, numbers on one line and each sentence on its own.

    Names are as result.json has them.
    """
    numbers, sentences = [], []
    for name, value in result.get("extra", {}).items():
        if isinstance(value, str):
            sentences.append(f"{name} {value}")
        else:
            numbers.append(f"{name} {value:.4g}")
    if not numbers:
        return sentences
    return [dot.join(numbers), *sentences]


def _diagnosis(result: Mapping[str, Any], dot: str) -> list[str]:
    """The lines of diagnose=batch_statistics, under what they are; [] for a run without it."""
    by_order = result.get("diagnosis", {}).get("batch_statistics")
    if not by_order:
        return []
    primary = result["primary"]
    numbers = [f"{name} {by_order[order][primary]['auroc']:.4f}" for order, name in ORDERS.items()]
    return [
        "DIAGNOSIS batch norm in training mode at test; "
        "no numbers of this run: each score depends on its batch",
        f"          {primary}: {dot.join(numbers)}",
    ]


def _floors(result: Mapping[str, Any]) -> list[str]:
    """What the floors of features and of preprocessed images are, and the highest of these."""
    lines = []
    if "features" in result["floor"]:
        lines.append("features: by a network trained on ImageNet, not on this class alone")
    floors = result["floor"].items()
    aurocs = {name: metrics["auroc"] for name, metrics in floors if name.endswith(SEEN)}
    if aurocs:
        highest = max(aurocs, key=lambda name: aurocs[name])
        lines.append(
            f"{SEEN}: of the images as the method sees them; "
            f"the highest is {highest}, {aurocs[highest]:.4f}"
        )
    return lines


def _leakage(result: Mapping[str, Any]) -> list[str]:
    """How many of the nearest neighbours in raw pixels are of another class."""
    leakage = result.get("leakage")
    if leakage is None:
        return []
    return [
        f"{leakage['inliers']:.0%} of the {leakage['neighbours']} nearest neighbours of a test "
        f"inlier are of another class; of any test image {leakage['all']:.0%}"
    ]


def _advice(result: Mapping[str, Any]) -> list[str]:
    """For one's own images: the method to take where trained features are ahead of the run."""
    of_folders = result.get("config", {}).get("data", {}).get("classes") == "folders"
    features = result["floor"].get("features")
    metrics = result["scores"][result["primary"]]
    if not of_folders or features is None or metrics["auroc"] >= features["auroc"]:
        return []
    return [
        f"features of a network trained on ImageNet tell these images apart better "
        f"({features['auroc']:.4f}): take method=features"
    ]


def _pixels(result: Mapping[str, Any], dot: str) -> list[str]:
    """How well the maps find the defects of the masks."""
    pixels = result.get("pixels")
    if pixels is None:
        return []
    return [
        f"AUROC {pixels['auroc']:.4f}{dot}AUPRO {pixels['aupro']:.4f}, "
        f"by masks: {pixels['defects']} defects in {pixels['images']} images"
    ]


def _verified(result: Mapping[str, Any]) -> tuple[str, str]:
    """What is known of the data files, and its style."""
    missing = result["n"].get("missing")
    note = f"; {missing:,} of the official set missing" if missing else ""
    # results of before call data without published checksums unverified, one's own images as well
    is_verified = result.get("data_verified", False)
    if result.get("config", {}).get("data", {}).get("classes") == "folders":
        is_verified = None
    if is_verified is None:
        style = "yellow" if missing else ""
        return f"cannot be verified (no checksums to compare with){note}", style
    if is_verified:
        return f"verified by checksum{note}", ""
    return f"NOT verified by checksum{note}", "yellow"


def offline_runs(folders: Sequence[Path]) -> list[str]:
    """Where the W&B runs of run folders lie that have not been sent, and the command that does."""
    runs = [run for folder in folders for run in sorted(folder.glob("wandb/offline-run-*"))]
    unsent = [run for run in runs if not any(run.glob("*.synced"))]
    if not unsent:
        return []
    place = str(unsent[0])
    if len(unsent) > 1:
        place += f" and {len(unsent) - 1} more"
    paths = " ".join(shlex.quote(str(run)) for run in unsent)
    return [f"offline in {place}", f"to send it: wandb sync {paths}"]


def _thresholds(result: Mapping[str, Any]) -> list[str]:
    """The threshold of the primary score for 5 percent of false positives, and its guarantee."""
    needed = f"{FPR:.0%} needs {round(1 / FPR) - 1} held-out inliers, this run has"
    thresholds = result.get("thresholds")
    if thresholds is None:
        of_images = result.get("input", {}).get("kind") == "image"
        if of_images and not result["n"]["val"]:
            return [f"{needed} none: protocol.val_fraction holds some out"]
        return []
    row = next((row for row in thresholds["at"] if row["fpr"] == FPR), None)
    if row is None:
        return []
    held_out, folds = thresholds["held_out"], thresholds.get("folds", 0)
    if row["threshold"] is None:
        return [f"{needed} {held_out}{_remedies(result, row, folds)}"]
    # not exact where the held-out inliers chose the epoch
    about = "at most" if thresholds["exact"] else "about"
    basis = f"{held_out} held-out ones"
    if folds:
        basis += f" in {folds} folds"
    trust = ""
    if row["upper"] is not None:
        trust = f"; under {row['upper']:.0%} with 95 % confidence"
    elif row["bound"] > row["expected"]:
        about = "about"
        trust = f"; at most {row['bound']:.0%} in the worst case"
    return [
        f"{thresholds['score']} above {row['threshold']:.4g}: "
        f"{about} {FPR:.0%} of inliers, by {basis}{trust}"
    ]


def _half_total_error_rate(result: Mapping[str, Any]) -> list[str]:
    """The primary score's error rates on the target set, and the threshold's origin."""
    cross = result.get("cross")
    if cross is None or result["primary"] not in cross["scores"]:
        return []
    rates, rule = cross["scores"][result["primary"]], cross["rule"]
    source, inliers = cross["source"], f"{cross['source_inliers']} held-out genuine videos"
    if rule == "equal_error":
        basis = f"equal error on {source}, {inliers} and {cross['source_outliers']} attacks"
    else:
        basis = f"{rule:.0%} of {inliers} of {source} rejected"
    errors = f"(FAR {rates['far']:.4f}, FRR {rates['frr']:.4f})"
    return [
        f"{rates['hter']:.4f} on {cross['target']} {errors} above {rates['threshold']:.4g}: {basis}"
    ]


def _remedies(result: Mapping[str, Any], row: Mapping[str, Any], folds: int) -> str:
    """What gives the run a threshold, and the rate that it has one for.

    More images, a larger share of them, or folds.
    """
    images = result["n"]["train"] + result["n"]["val"]
    needed = row.get("needed", round(1 / FPR) - 1)
    more_images = row.get("more_images")
    remedies = []
    if more_images:
        remedies.append(f"{more_images} more training images")
    if more_images and not folds:
        share = math.ceil(100 * needed / max(1, images)) / 100
        if share <= 0.5:
            remedies.append(f"protocol.val_fraction={share:g}")
        if result["selected"]["epoch"] == 0 and images >= needed:
            remedies.append(f"protocol.folds={min(images, 200)}")
    words = f": {' or '.join(remedies)}" if remedies else ""
    smallest = result["thresholds"].get("smallest_fpr")
    if smallest:
        words += f"; fpr={smallest:g} has a threshold"
    return words


def _weights(result: Mapping[str, Any]) -> tuple[str, str]:
    """How the scored weights were chosen, in words, and the style.

    The rule is part of every number.
    """
    config = result.get("config", {})
    selected = result["selected"]
    rule, epoch = selected["rule"], selected["epoch"]
    seen = seen_by(selected, config)
    style = "yellow" if lacking(seen) else ""
    phases = f" ({in_words(seen)})" if seen else ""
    ending = "; no outlier used"
    if config.get("trainer", {}).get("batch_norm") == "anew":
        ending = "; batch norm by clean training inliers; no outlier used"
    if rule == "last":
        if not epoch:
            return "fitted once; no outlier used", style
        return f"of the last epoch, {epoch}{phases}{ending}", style
    if rule != "val_loss":
        raise ValueError(f"{rule} is no rule for a run's number")
    epochs = result.get("epochs")
    if epochs and epochs["trained"] < epochs["planned"]:
        ending = f", stopped after {epochs['trained']} of {epochs['planned']}{ending}"
    loss = f"lowest loss on held-out inliers ({selected['value']:.4g})"
    return f"epoch {epoch}{phases}, {loss}{ending}", style
