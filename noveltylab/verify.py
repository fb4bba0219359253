"""Whether a kept run can be believed: its files are those that its result records, and its numbers follow from them."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from noveltylab.errors import UserError
from noveltylab.files import sha256_file
from noveltylab.metrics import evaluate
from noveltylab.scores import Scores, read_scores

#: Metrics that follow from the scores alone; the interval is drawn at random.
COMPARED = ("auroc", "average_precision", "eer", "fpr95")
#: How far a metric may lie from what the scores give: the last bits of another machine.
TOLERANCE = 1e-9


def verify(folder: Path, result: Mapping[str, Any]) -> list[str]:
    """Checks the files that a run's folder still has.

    Args:
        folder: Run folder.
        result: The content of its result.json.

    Returns:
        Names of the files that were checked; without "scores.csv" where that was not kept.

    Raises:
        UserError: A file is another one than recorded, or the scores give other numbers; names it.
    """
    kept = [name for name in result["files"] if os.path.lexists(folder / name)]
    for name in kept:
        try:
            same = sha256_file(folder / name, within=folder) == result["files"][name]
        except OSError as error:
            raise UserError(f"{folder / name}: {error.strerror}; this run is not believed") from None
        if not same:
            raise UserError(
                f"{folder / name}: not the file that result.json records (its SHA-256 differs); damaged or edited since "
                "the run, so it is not believed"
            )
    if wrong := next(_misfits(folder, result, kept), None):
        raise UserError(f"{folder / 'result.json'}: {wrong}; edited since the run, so it is not believed")
    return kept


def _misfits(folder: Path, result: Mapping[str, Any], kept: list[str]) -> Iterator[str]:
    """What the result says otherwise than its scores files give."""
    parts = {"scores": ("scores.csv", result["scores"])}
    parts |= {f"apart.{kind}": (f"scores_{kind}.csv", scores) for kind, scores in result.get("apart", {}).items()}
    parts |= {f"labelled.{rule}": (f"scores_{rule}.csv", scores) for rule, scores in result.get("labelled", {}).items()}
    for field, (name, recorded) in parts.items():
        if name in kept:
            yield from _differences(field, name, recorded, read_scores(folder / name))


def _differences(field: str, name: str, recorded: Mapping[str, Any], scores: Scores) -> Iterator[str]:
    if recorded.keys() != scores.columns.keys():
        yield f"{field} has {', '.join(recorded)}, but {name} {', '.join(scores.columns)}"
        return
    both = bool(scores.is_outlier.any() and not scores.is_outlier.all())
    for score, metrics in recorded.items():
        if (metrics is not None) != both:
            yield f"{field}.{score} does not fit the labels in {name}"
            continue
        computed = evaluate(scores.columns[score], scores.is_outlier) if both else {}
        for metric in COMPARED if both else ():
            if abs(metrics[metric] - computed[metric]) > TOLERANCE:
                yield f"{field}.{score}.{metric} is {metrics[metric]:.6g}, but {name} gives {computed[metric]:.6g}"
