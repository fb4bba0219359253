"""Diagnoses: what a run's scores would be under a fault of evaluation.

They stand beside its number and never are one.

`batch_statistics`: batch norm in training mode while the test set is scored, as after a forgotten
`eval()`. An image's score then depends on the other images of its batch, and so on the order of the
test set: in class order most batches hold one class, and their statistics tell inliers from
outliers, which no method may know.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noveltylab.data.datamodule import NoveltyData
from noveltylab.errors import UserError
from noveltylab.methods.base import Method
from noveltylab.nets.batch_norm import batch_norms
from noveltylab.results.scores import Scores, write_scores
from noveltylab.scoring.aggregate import measured_scores
from noveltylab.scoring.apply import to_float64
from noveltylab.scoring.batches import in_batches
from noveltylab.scoring.metrics import evaluate

#: Images in a batch of the diagnosis, whatever trainer.score_batch_size says.
BATCH_SIZE = 128
#: The scores of a diagnosis, in the run's folder; a column is named `<order>.<score>`.
FILE = "scores_batch_statistics.csv"

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
Labels = NDArray[np.int64]
Flags = NDArray[np.bool_]
Order = Callable[[Labels, Flags, int], list[Rows]]


def in_class_order(labels: Labels, is_outlier: Flags, seed: int) -> list[Rows]:
    """Batches of the test set sorted by class; a batch at the border of two classes holds both."""
    return split_evenly(np.argsort(labels, kind="stable"))


def in_random_order(labels: Labels, is_outlier: Flags, seed: int) -> list[Rows]:
    """Batches of the shuffled test set."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    return split_evenly(shuffled)


def by_kind(labels: Labels, is_outlier: Flags, seed: int) -> list[Rows]:
    """Batches of inliers and batches of outliers of all classes, both shuffled."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    flags = is_outlier[shuffled]
    inliers = split_evenly(shuffled[~flags])
    outliers = split_evenly(shuffled[flags])
    return inliers + outliers


#: How the test set comes in batches.
ORDERS: dict[str, Order] = {
    "class_order": in_class_order,
    "random_order": in_random_order,
    "apart": by_kind,
}


def split_evenly(rows: Rows) -> list[Rows]:
    """Batches of BATCH_SIZE.

    A last image by itself, which has no statistics, joins the batch before it.
    """
    starts = range(0, len(rows), BATCH_SIZE)
    batches = [rows[start : start + BATCH_SIZE] for start in starts]
    if len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] = np.concatenate([batches[-1], last])
    return batches


def check(diagnose: str, name: str, method: Method, is_outlier: Flags) -> None:
    """Refuses a diagnosis that says nothing about this method or this test set.

    Args:
        diagnose: The option's value.
        name: Of the method, as in method=...
        method: With its networks, trained or not.
        is_outlier: (N,), of the test images.

    Raises:
        UserError: The diagnosis says nothing.
    """
    if diagnose == "none":
        return
    if not method.iterative:
        raise UserError(
            f"diagnose={diagnose}: method={name} is fitted once, without batch norm; diagnose=none"
        )
    if not batch_norms(method):
        raise UserError(
            f"diagnose={diagnose}: method={name} has no batch norm with these options; diagnose=none"
        )
    outliers = is_outlier.sum()
    inliers = (~is_outlier).sum()
    if not outliers or not inliers:
        kind = "inliers" if inliers else "outliers"
        raise UserError(
            f"diagnose={diagnose}: all {len(is_outlier)} test images are {kind}; diagnose=none"
        )
    if min(outliers, inliers) < 2:
        raise UserError(
            f"diagnose={diagnose}: needs two test images of each kind for a batch; diagnose=none"
        )


@contextmanager
def batch_statistics(method: Method) -> Iterator[None]:
    """Inside, batch norms use the statistics of the batch.

    Their running ones stay as they are, as does all else.
    """
    norms = batch_norms(method)
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.training = True
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, (training, track) in zip(norms, before, strict=True):
            norm.training = training
            norm.track_running_stats = track


def score_in_order(method: Method, data: NoveltyData, batches: list[Rows]) -> dict[str, Array]:
    """Every score under batch statistics: name -> (n_test,), in the order of the test set.

    Args:
        method: Trained, on its device.
        data: The run's.
        batches: Positions in the test set, each once.
    """
    columns = _score(method, data, data.test, batches)
    if type(method).combine_scores is not Method.combine_scores:
        held_out = {}
        if len(data.val) > 1:
            val_batches = split_evenly(np.arange(len(data.val)))
            held_out = _score(method, data, data.val, val_batches)
        columns |= method.combine_scores(columns, held_out)
    return to_float64(columns)


def _score(
    method: Method, data: NoveltyData, images: Tensor, batches: list[Rows]
) -> dict[str, Tensor]:
    def scores(x: Tensor) -> dict[str, Tensor]:
        with batch_statistics(method):
            return method.novelty_score(x)

    parts = []
    for rows in batches:
        part = images[torch.from_numpy(rows).to(images.device)]
        parts.append(in_batches(method, data.preprocess, part, scores, len(rows)))
    # back in the order of the images
    order = np.concatenate(batches)
    back = torch.from_numpy(np.argsort(order))
    columns = {}
    for name in parts[0]:
        column = torch.cat([part[name] for part in parts])
        columns[name] = column[back]
    return columns


def diagnose(method: Method, data: NoveltyData, seed: int, folder: Path) -> dict[str, Any]:
    """Scores the test set under batch statistics in every order, writes FILE and measures it.

    Returns:
        The section `diagnosis` of the result: {"batch_statistics": {order: {score: metrics}}}.
    """
    columns: dict[str, Array] = {}
    for order, batches_of in ORDERS.items():
        batches = batches_of(data.test_labels, data.test_is_outlier, seed)
        pieces = data.pieces(score_in_order(method, data, batches))
        order_scores, _ = measured_scores(pieces, data.wholes)
        for name, column in order_scores.columns.items():
            columns[f"{order}.{name}"] = column
    # the samples are the same in every order
    scores = Scores(order_scores.ids, order_scores.labels, order_scores.is_outlier, columns)
    write_scores(folder / FILE, scores)
    return {"batch_statistics": measure(scores)}


def measure(scores: Scores) -> dict[str, dict[str, Any]]:
    """Order -> score -> metrics, from columns named `<order>.<score>`."""
    metrics: dict[str, dict[str, Any]] = {order: {} for order in ORDERS}
    for column, values in scores.columns.items():
        order, _, name = column.partition(".")
        metrics[order][name] = evaluate(values, scores.is_outlier)
    return metrics
