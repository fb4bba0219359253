"""What a run prints at its end: its metrics beside the floors, how they came about, and where
everything lies.
"""

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
    "outlier_val": "rows outlier_val: each score at its best epoch on LABELLED validation outliers; not the result",
    "oracle": "rows oracle: each score at its best epoch on the TEST labels, an optimistic bound; not the result",
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
    inlier, name = str(result["inlier"]), str(result["inlier_name"])
    shown = inlier if name == inlier else f"{inlier} ({name})"
    parts = (
        result["method"],
        result["data"],
        f"inlier {shown}",
        result["protocol"],
        f"seed {result['seed']}",
    )
    console.print()
    console.print(Text(dot.join(map(str, parts)), "bold"))
    if "unmeasured" in result:
        console.print(Text(result["unmeasured"], "yellow"), soft_wrap=True)
    else:
        console.print(_table(result))
    for key, value, style in _facts(result, folder, dot):
        console.print(Text.assemble((f"{key:<9} ", "dim"), (value, style)), soft_wrap=True)
    for line, style in _diagnosis(result, dot):
        console.print(Text.assemble((line, style)), soft_wrap=True)
    for warning in _warnings(result):
        console.print(Text(f"WARNING   {warning}", "bold red"), soft_wrap=True)


def _warnings(result: Mapping[str, Any]) -> list[str]:
    """What the result warns of; an older one calls scores inverted whose interval reaches 0.5."""
    primary = result["primary"]
    metrics = result["scores"][primary]
    return (
        standing(result["warnings"], primary, metrics["auroc_ci"])
        if metrics
        else list(result["warnings"])
    )


#: Names of floors as the screen has them, where the short one says too little.
FLOOR_NOTES = {"norm": "|x|^2 alone"}


def _table(result: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
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
            note = " (whole test set)" if name in result.get("transductive", ()) else ""
            table.add_row(*_cells(f"{name}{note}", metrics), style="dim")
    for kind, scores in result.get("apart", {}).items():
        table.add_row(*_cells(f"{APART[kind]}: {primary}", scores[primary]), style="dim")
    for rule, chosen in result.get("labelled", {}).items():
        table.add_section()
        for name, metrics in chosen.items():
            table.add_row(*_cells(f"{rule}: {name}", metrics), style="yellow")
    return table


def _cells(name: str, metrics: Mapping[str, Any]) -> list[Text]:
    low, high = metrics["auroc_ci"]
    numbers = (f"{metrics[key]:.4f}" for key in ("average_precision", "eer", "fpr95"))
    return [
        Text(cell)
        for cell in (name, f"{metrics['auroc']:.4f}", f"{low:.4f} - {high:.4f}", *numbers)
    ]


def _facts(result: Mapping[str, Any], folder: str | Path, dot: str) -> list[tuple[str, str, str]]:
    """Key, value and style of each line under the table."""
    seconds, sizes = result["seconds"], result["n"]
    pictures = ", figures/" if (Path(folder) / "figures").is_dir() else ""
    return [
        ("weights", *_weights(result)),
        (
            "samples",
            f"{sizes['train']} train{dot}{sizes['val']} val{dot}"
            f"test {sizes['test_inliers']} inliers, {sizes['test_outliers']} outliers"
            + (f"{dot}{sizes['skipped']} unreadable, skipped" if sizes.get("skipped") else ""),
            "",
        ),
        *(("floors", line, "") for line in _seen_floors(result)),
        *(("threshold", line, "") for line in _thresholds(result)),
        *(("HTER", line, "") for line in _half_total_error_rate(result)),
        ("seconds", f"{seconds['train']:.1f} train{dot}{seconds['score']:.1f} score", ""),
        ("data", *_verified(result)),
        *(("labels", RULES[rule], "yellow") for rule in result.get("labelled", {})),
        *(("also", line, "") for line in _own_metrics(result, dot)),
        ("folder", str(folder), ""),
        *(
            (key, line, "")
            for key, line in zip(("W&B", ""), offline_runs([Path(folder)]), strict=False)
        ),
        ("files", f"result.json, scores.csv, split.npz, config.yaml, run.log{pictures}", ""),
    ]


def _own_metrics(result: Mapping[str, Any], dot: str) -> list[str]:
    """The method's own metrics, numbers on one line and each sentence on its own; names as
    result.json has them.
    """
    extra = result.get("extra", {})
    numbers = dot.join(
        f"{name} {value:.4g}" for name, value in extra.items() if not isinstance(value, str)
    )
    sentences = [f"{name} {value}" for name, value in extra.items() if isinstance(value, str)]
    return [line for line in (numbers, *sentences) if line]


def _diagnosis(result: Mapping[str, Any], dot: str) -> list[tuple[str, str]]:
    """The lines of diagnose=batch_statistics and their style, under what they are; [] for a run
    without it.
    """
    if not (by_order := result.get("diagnosis", {}).get("batch_statistics")):
        return []
    primary = result["primary"]
    numbers = [f"{name} {by_order[order][primary]['auroc']:.4f}" for order, name in ORDERS.items()]
    warning = "no numbers of this run: each score depends on its batch"
    return [
        (f"DIAGNOSIS batch norm in training mode at test; {warning}", "yellow"),
        (f"          {primary}: {dot.join(numbers)}", "yellow"),
    ]


def _seen_floors(result: Mapping[str, Any]) -> list[str]:
    """What the floors of preprocessed images are, and the highest of them."""
    seen = {
        name: metrics["auroc"] for name, metrics in result["floor"].items() if name.endswith(SEEN)
    }
    if not seen:
        return []
    highest = max(seen, key=lambda name: seen[name])
    return [
        f"{SEEN}: of the images as the method sees them; the highest is {highest}, {seen[highest]:.4f}"
    ]


def _verified(result: Mapping[str, Any]) -> tuple[str, str]:
    """What is known of the data files, and its style."""
    absent = result["n"].get("missing")
    missing = f"; {absent:,} of the official set missing" if absent else ""
    # results of before call data without published checksums unverified, one's own images as well
    own = result.get("config", {}).get("data", {}).get("classes") == "folders"
    verified = None if own else result.get("data_verified", False)
    if verified is None:
        return (
            f"cannot be verified (no checksums to compare with){missing}",
            "yellow" if missing else "",
        )
    if verified:
        return f"verified by checksum{missing}", ""
    return f"NOT verified by checksum{missing}", "yellow"


def offline_runs(folders: Sequence[Path]) -> list[str]:
    """Where the W&B runs of these run folders lie that have not been sent, and the command that
    sends them.
    """
    runs = [run for folder in folders for run in sorted(folder.glob("wandb/offline-run-*"))]
    unsent = [run for run in runs if not any(run.glob("*.synced"))]
    if not unsent:
        return []
    where = str(unsent[0]) if len(unsent) == 1 else f"{unsent[0]} and {len(unsent) - 1} more"
    return [
        f"offline in {where}",
        f"to send it: wandb sync {' '.join(shlex.quote(str(run)) for run in unsent)}",
    ]


def _thresholds(result: Mapping[str, Any]) -> list[str]:
    """The threshold of the primary score for 5 percent of false positives, and its guarantee."""
    needed = f"{FPR:.0%} needs {round(1 / FPR) - 1} held-out inliers, this run has"
    thresholds = result.get("thresholds")
    if thresholds is None:
        images = result.get("input", {}).get("kind") == "image"
        return (
            [f"{needed} none: protocol.val_fraction holds some out"]
            if images and not result["n"]["val"]
            else []
        )
    row = next((row for row in thresholds["at"] if row["fpr"] == FPR), None)
    if row is None:
        return []
    held_out, folds = thresholds["held_out"], thresholds.get("folds", 0)
    if row["threshold"] is None:
        return [f"{needed} {held_out}{_remedies(result, row, folds)}"]
    # not exact where the held-out inliers chose the epoch
    about = "at most" if thresholds["exact"] else "about"
    by = f"{held_out} held-out ones" + (f" in {folds} folds" if folds else "")
    trust = ""
    if row["upper"] is not None:
        trust = f"; under {row['upper']:.0%} with 95 % confidence"
    elif row["bound"] > row["expected"]:
        about, trust = "about", f"; at most {row['bound']:.0%} in the worst case"
    return [
        f"{thresholds['score']} above {row['threshold']:.4g}: {about} {FPR:.0%} of inliers, by {by}{trust}"
    ]


def _half_total_error_rate(result: Mapping[str, Any]) -> list[str]:
    """The primary score's error rates on the target set, and where on the source set the threshold
    is from.
    """
    cross = result.get("cross")
    if cross is None or result["primary"] not in cross["scores"]:
        return []
    rates, rule = cross["scores"][result["primary"]], cross["rule"]
    inliers = f"{cross['source_inliers']} held-out genuine videos"
    if rule == "equal_error":
        by = f"equal error on {cross['source']}, {inliers} and {cross['source_outliers']} attacks"
    else:
        by = f"{rule:.0%} of {inliers} of {cross['source']} rejected"
    return [
        f"{rates['hter']:.4f} on {cross['target']} (FAR {rates['far']:.4f}, FRR {rates['frr']:.4f}) above "
        f"{rates['threshold']:.4g}: {by}"
    ]


def _remedies(result: Mapping[str, Any], row: Mapping[str, Any], folds: int) -> str:
    """What gives the run a threshold: more images, a larger share of them, folds; and the rate that
    it has one for.
    """
    images, needed = (
        result["n"]["train"] + result["n"]["val"],
        row.get("needed", round(1 / FPR) - 1),
    )
    remedies = []
    if more := row.get("more_images"):
        remedies.append(f"{more} more training images")
    share = math.ceil(100 * needed / max(1, images)) / 100
    if more and not folds and share <= 0.5:
        remedies.append(f"protocol.val_fraction={share:g}")
    if more and not folds and result["selected"]["epoch"] == 0 and images >= needed:
        remedies.append(f"protocol.folds={min(images, 200)}")
    listed = f": {' or '.join(remedies)}" if remedies else ""
    smallest = result["thresholds"].get("smallest_fpr")
    return f"{listed}; fpr={smallest:g} has a threshold" if smallest else listed


def _weights(result: Mapping[str, Any]) -> tuple[str, str]:
    """How the scored weights were chosen, in words, and the style: the rule is part of every
    number.
    """
    selected = result["selected"]
    rule, epoch, value = selected["rule"], selected["epoch"], selected["value"]
    seen = seen_by(selected, result.get("config", {}))
    phases = f" ({in_words(seen)})" if seen else ""
    trained = result.get("epochs", {"planned": 0, "trained": 0})
    stopped = (
        f", stopped after {trained['trained']} of {trained['planned']}"
        if trained["trained"] < trained["planned"]
        else ""
    )
    anew = result.get("config", {}).get("trainer", {}).get("batch_norm") == "anew"
    used = (
        "; batch norm by clean training inliers; no outlier used" if anew else "; no outlier used"
    )
    style = "yellow" if lacking(seen) else ""
    if rule == "val_loss":
        return (
            f"epoch {epoch}{phases}, lowest loss on held-out inliers ({value:.4g}){stopped}{used}",
            style,
        )
    if rule == "last":
        return (
            f"of the last epoch, {epoch}{phases}{used}"
            if epoch
            else "fitted once; no outlier used",
            style,
        )
    raise ValueError(f"{rule} is no rule for a run's number")
