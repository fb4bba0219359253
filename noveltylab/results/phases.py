"""Phases of a method's training, and which of them the scored weights have seen.

OCGAN trains without and then with mining. What the weights have seen is read from what a run
records, without torch, so that old results are judged by the same rule as new ones. A method says
its phases itself (`Method.phases`); for those who may not import it, `CONFIGURED` says them by its
recorded options, and a test compares the two.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: What weights learned from that have seen nothing but the training inliers of their run.
THIS_CLASS = "this class alone"
#: What a configuration that somebody else wrote may raise here.
FOREIGN = (KeyError, TypeError, ValueError, ArithmeticError)


@dataclass(frozen=True)
class Phase:
    """A stage of training.

    Attributes:
        name: As it stands behind a number of epochs: `with mining`.
        start: Share of the planned epochs at which it begins; it ends where the next one begins.
        selectable: Whether the method's validation loss is finite in it: else its weights are never
            selected.
    """

    name: str
    start: float
    selectable: bool = True


@dataclass(frozen=True)
class Seen:
    """How many epochs of a phase some weights have seen."""

    name: str
    epochs: int


def begins(start: float, epochs: int) -> int:
    """The first epoch e, counted from 1, of a phase: (e - 1) / epochs >= start.

    One after the last epoch if there is none.
    """
    product = math.ceil(start * epochs)  # is rounded, so the epochs around it are tried
    for past_epochs in range(max(0, product - 1), min(epochs, product + 2)):
        if past_epochs / epochs >= start:
            return past_epochs + 1
    return epochs + 1


def seen_after(phases: Sequence[Phase], epoch: int, epochs: int) -> list[Seen]:
    """What weights have seen after `epoch` of `epochs` planned ones, phase by phase.

    [] for a method of one phase.
    """
    firsts = [min(begins(phase.start, epochs), epoch + 1) for phase in phases]
    ends = [*firsts[1:], epoch + 1]
    history = []
    for phase, first, end in zip(phases, firsts, ends, strict=False):
        history.append(Seen(phase.name, end - first))
    return history


# By recorded options.


def ocgan_phases(method: Mapping[str, Any]) -> list[Phase]:
    """Those of noveltylab.methods.ocgan.OCGAN."""
    if not method.get("use_mining", False):
        return []
    return [Phase("without mining", 0.0), Phase("with mining", float(method["mining_start"]))]


def deep_svdd_phases(method: Mapping[str, Any]) -> list[Phase]:
    """Those of noveltylab.methods.deep_svdd.DeepSVDD."""
    if "pretrain" not in method:
        return []
    pretrain = float(method["pretrain"])
    phases = []
    if pretrain:
        phases.append(Phase("of pretraining", 0.0, selectable=False))
    warm_up = 0.0
    if method["objective"] == "soft-boundary":
        warm_up = float(method["warm_up"])
    if warm_up:
        phases.append(Phase("with a radius of 0", pretrain))
    phases.append(Phase("of one-class training", soft_boundary_start(pretrain, warm_up)))
    return phases if len(phases) > 1 else []


def drocc_phases(method: Mapping[str, Any]) -> list[Phase]:
    """Those of noveltylab.methods.drocc.DROCC."""
    if not method.get("warm_up", 0):
        return []
    warm_up = float(method["warm_up"])
    return [Phase("without found points", 0.0), Phase("with found points", warm_up)]


def soft_boundary_start(pretrain: float, warm_up: float) -> float:
    """The share of all epochs from which the radius moves: a share `warm_up` after pretraining."""
    if not warm_up:
        return pretrain
    return pretrain + (warm_up - ROUNDING) * (1 - pretrain)


#: The share of a phase that is over is rounded to nine digits by Deep SVDD.
ROUNDING = 5e-10
CONFIGURED: dict[str, Callable[[Mapping[str, Any]], list[Phase]]] = {
    "noveltylab.methods.ocgan.OCGAN": ocgan_phases,
    "noveltylab.methods.deep_svdd.DeepSVDD": deep_svdd_phases,
    "noveltylab.methods.drocc.DROCC": drocc_phases,
}


def configured_phases(method: Mapping[str, Any]) -> list[Phase]:
    """The phases of a method by its recorded options, [] for a method of one phase.

    ValueError, TypeError, KeyError: the options are not those of the method.
    """
    phases = CONFIGURED.get(str(method.get("_target_")))
    return phases(method) if phases else []


def seen_by(selected: Mapping[str, Any], config: Mapping[str, Any]) -> list[Seen]:
    """What the scored weights of a run have seen: as recorded, of an older result by its options.

    Args:
        selected: The section of this name of a result.json.
        config: The recorded configuration.
    """
    recorded = selected.get("phases")
    if recorded is not None:
        return [Seen(phase["name"], phase["epochs"]) for phase in recorded]
    if not selected["epoch"]:
        return []
    try:
        phases = configured_phases(config["method"])
        return seen_after(phases, selected["epoch"], config["trainer"]["max_epochs"])
    except FOREIGN:
        return []


def lacking(seen: Sequence[Seen]) -> str:
    """The phase at which weights stand that lack the last one, "" for those of the whole method.

    OCGAN's are `without mining` then.
    """
    if not seen or seen[-1].epochs:
        return ""
    for phase in reversed(seen):
        if phase.epochs:
            return phase.name
    return seen[0].name


def in_words(seen: Sequence[Seen]) -> str:
    """`19 without mining, 1 with mining`."""
    return ", ".join(f"{phase.epochs or 'none'} {phase.name}" for phase in seen)


def selects_nothing_else(options: Mapping[str, Any]) -> bool:
    """Whether trainer.select_whole changes nothing in a run with these options, by dotted key."""
    method = {}
    for key, value in options.items():
        if key.startswith("method."):
            method[key.removeprefix("method.")] = value
    try:
        phases = configured_phases(method)
    except FOREIGN:
        return False
    if not phases or phases[-1].start <= 0:
        return True
    if options.get("trainer.average_epochs"):
        return False
    earlier_selectable = any(phase.selectable for phase in phases[:-1])
    return options.get("select") == "last" or not earlier_selectable
