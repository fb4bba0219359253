"""Trains the method of a run and names the weights that were selected."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.loggers import Logger

from noveltylab.data.datamodule import NoveltyData
from noveltylab.methods.base import Method
from noveltylab.options import Options
from noveltylab.results.phases import Seen, in_words, lacking, seen_after
from noveltylab.training.checkpoints import Selected
from noveltylab.training.fit import fit


@dataclass(frozen=True)
class Training:
    """What training has given.

    Attributes:
        selected: The weights behind the run's number.
        labelled: Score name -> the weights that a rule with outlier labels chose for it; never the
            run's number.
        epochs: How many were trained.
        phases: Which phases of the method the selected weights have seen.
        seconds: What it took, by name.
        estimated: What it was estimated to take, by name.
        warnings: What is doubtful in the selected weights.
    """

    selected: Selected
    labelled: dict[str, Selected]
    epochs: int
    phases: list[Seen]
    seconds: dict[str, float]
    estimated: dict[str, float]
    warnings: list[str]


def train(
    method: Method, data: NoveltyData, options: Options, loggers: list[Logger], folder: Path
) -> Training:
    """Trains from the last checkpoint in the folder, or from the start, and selects the weights."""
    checkpoints = fit(method, data, options, loggers, folder)
    selected, seconds = checkpoints.main(method), checkpoints.seconds
    epochs = options.trainer.max_epochs
    phases = seen_after(method.phases, selected.epoch, epochs)
    return Training(
        selected=selected,
        labelled=checkpoints.labelled(),
        epochs=checkpoints.trained,
        phases=phases,
        seconds=seconds,
        estimated=checkpoints.estimate.seconds,
        warnings=[unseen(phases, epochs)] if lacking(phases) else [],
    )


def unseen(phases: Sequence[Seen], epochs: int) -> str:
    """The warning that the scored weights are not those of the whole method."""
    return (
        f"not the whole method: the scored weights have seen {in_words(phases)} of {epochs} epochs; "
        "train for more trainer.max_epochs"
    )
