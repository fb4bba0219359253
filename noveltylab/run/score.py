"""Scores the test set, the held-out inliers and the floors of a run, and writes the scores files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noveltylab.data.datamodule import NoveltyData
from noveltylab.methods.base import Method
from noveltylab.results.scores import Scores, write_scores
from noveltylab.scoring.aggregate import measured_scores
from noveltylab.scoring.apply import held_out_scores, novelty_scores
from noveltylab.scoring.floors import Floor, floor_scores
from noveltylab.scoring.folds import Folds
from noveltylab.training.checkpoints import Selected, load_weights

Columns = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class RunScores:
    """The scores of a run, the same values as in its files.

    Attributes:
        test: What the run's number is measured on (scores.csv).
        apart: Kind -> scores that are reported beside it (scores_<kind>.csv).
        source: Of the set that places the threshold under `cross` (scores_source.csv); else None.
        held_out: Of held-out inliers, for thresholds (calibration.csv); None if there are none.
    """

    test: Scores
    apart: dict[str, Scores]
    source: Scores | None
    held_out: Scores | None


def score(
    method: Method, data: NoveltyData, batch_size: int, selected: Selected, folder: Path
) -> RunScores:
    """Scores the whole test split with the selected weights and writes the scores files."""
    load_weights(selected.path, method)
    # the test set
    columns = novelty_scores(method, data.preprocess, data.test, batch_size, data.val)
    test, apart = measured_scores(data.pieces(columns), data.wholes)
    write_scores(folder / "scores.csv", test)
    for kind, scores in apart.items():
        write_scores(folder / f"scores_{kind}.csv", scores)
    # the set that places the threshold
    source = None
    if data.source is not None:
        columns = novelty_scores(method, data.preprocess, data.source, batch_size, data.val)
        # a threshold of another set says nothing about a score made of a whole set
        source = data.source_scores(without_transductive(columns, method))
        write_scores(folder / "scores_source.csv", source)
    # held-out inliers
    (folder / "calibration.csv").unlink(missing_ok=True)
    held_out = score_held_out(method, data)
    if held_out is not None:
        write_scores(folder / "calibration.csv", held_out)
    return RunScores(test, apart, source, held_out)


def score_held_out(method: Method, data: NoveltyData) -> Scores | None:
    """The scores of held-out inliers as new images get them; None if there are none."""
    if isinstance(method, Folds):
        rows, columns = method.held_out(data.preprocess, data.train)
        return Scores(
            ids=data.train_ids[rows].tolist(),
            labels=np.full(len(rows), data.inlier),
            is_outlier=np.zeros(len(rows), np.bool_),
            columns=columns,
        )
    if not len(data.val):
        return None
    columns = held_out_scores(method, data.preprocess, data.val)
    # a score made of the whole test set is none of these images'
    return data.held_out(without_transductive(columns, method))


def without_transductive(columns: Columns, method: Method) -> Columns:
    """The columns of scores that are not made of the whole test set."""
    return {name: column for name, column in columns.items() if name not in method.transductive}


def score_floors(
    data: NoveltyData, batch_size: int, with_features: bool, scores: Scores, folder: Path
) -> list[Floor]:
    """The floors of the samples of `scores`; writes floors.csv."""
    floors = floor_scores(data, batch_size, with_features)
    columns = {floor.name: floor.scores for floor in floors}
    table = Scores(scores.ids, scores.labels, scores.is_outlier, columns)
    write_scores(folder / "floors.csv", table)
    return floors


def score_labelled(
    method: Method,
    data: NoveltyData,
    batch_size: int,
    selections: dict[str, Selected],
    path: Path,
) -> Scores:
    """Each named score with the weights that a rule with outlier labels chose for it; writes it.

    The method has other weights afterwards.
    """
    columns = dict.fromkeys(selections, np.empty(0))
    # names often share their best epoch
    by_epoch = {selected.epoch: selected for selected in selections.values()}
    for epoch, selected in by_epoch.items():
        load_weights(selected.path, method)
        epoch_columns = novelty_scores(method, data.preprocess, data.test, batch_size, data.val)
        for name in selections:
            if selections[name].epoch == epoch:
                columns[name] = epoch_columns[name]
    scores, _ = measured_scores(data.pieces(columns), data.wholes)
    write_scores(path, scores)
    return scores
