"""Phases of a method's training, and which of them the scored weights have seen.

Such as OCGAN without and with mining.

Read from what a run records, without torch: so old results are judged by the same rule as new ones.
A method says its phases itself (`Method.phases`); for those who may not import it, `CONFIGURED`
says them by its recorded options, and a test compares the two.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    about = math.ceil(start * epochs)  # a product is rounded, so the epochs around it are tried
    near = range(max(0, about - 1), min(epochs, about + 2))
    return 1 + next((over for over in near if over / epochs >= start), epochs)


def seen_after(phases: Sequence[Phase], epoch: int, epochs: int) -> list[Seen]:
    """What weights have seen after `epoch` of `epochs` planned ones, phase by phase.

    [] for a method of one phase.
    """
    firsts = [min(begins(phase.start, epochs), epoch + 1) for phase in phases]
    ends = [*firsts, epoch + 1][1:]
    return [
        Seen(phase.name, end - first)
        for phase, first, end in zip(phases, firsts, ends, strict=False)
    ]


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
    pretrain, phases = float(method["pretrain"]), []
    if pretrain:
        phases.append(Phase("of pretraining", 0.0, selectable=False))
    warm_up = float(method["warm_up"]) if method["objective"] == "soft-boundary" else 0.0
    if warm_up:
        phases.append(Phase("with a radius of 0", pretrain))
    phases.append(Phase("of one-class training", soft_boundary_start(pretrain, warm_up)))
    return phases if len(phases) > 1 else []


def soft_boundary_start(pretrain: float, warm_up: float) -> float:
    """The share of all epochs at which the radius moves.

    After a share `warm_up` of those after pretraining.
    """
    return pretrain + (warm_up - ROUNDING) * (1 - pretrain) if warm_up else pretrain


#: The share of a phase that is over is rounded to nine digits by Deep SVDD.
ROUNDING = 5e-10
CONFIGURED: dict[str, Callable[[Mapping[str, Any]], list[Phase]]] = {
    "noveltylab.methods.ocgan.OCGAN": ocgan_phases,
    "noveltylab.methods.deep_svdd.DeepSVDD": deep_svdd_phases,
}


def configured_phases(method: Mapping[str, Any]) -> list[Phase]:
    """The phases of a method by its recorded options, [] for a method of one phase.

    ValueError, TypeError, KeyError: the options are not those of the method.
    """
    phases = CONFIGURED.get(str(method.get("_target_")))
    return phases(method) if phases else []


def seen_by(selected: Mapping[str, Any], config: Mapping[str, Any]) -> list[Seen]:
    """What the scored weights of a run have seen.

    As its result records it, of an older result by its options.

    Args:
        selected: Of a result.json, likewise config.
    """
    if (recorded := selected.get("phases")) is not None:
        return [Seen(phase["name"], phase["epochs"]) for phase in recorded]
    if not selected["epoch"]:
        return []
    try:
        return seen_after(
            configured_phases(config["method"]), selected["epoch"], config["trainer"]["max_epochs"]
        )
    except FOREIGN:
        return []


def lacking(seen: Sequence[Seen]) -> str:
    """What weights are that have seen no epoch of the last phase.

    Such as `without mining`; "" for the whole method.
    """
    if not seen or seen[-1].epochs:
        return ""
    return next((phase.name for phase in reversed(seen) if phase.epochs), seen[0].name)


def in_words(seen: Sequence[Seen]) -> str:
    """`19 without mining, 1 with mining`."""
    return ", ".join(f"{phase.epochs or 'none'} {phase.name}" for phase in seen)


def selects_nothing_else(options: Mapping[str, Any]) -> bool:
    """Whether trainer.select_whole changes nothing in a run with these options, by dotted key."""
    method = {
        key.removeprefix("method."): value
        for key, value in options.items()
        if key.startswith("method.")
    }
    try:
        phases = configured_phases(method)
    except FOREIGN:
        return False
    if not phases or phases[-1].start <= 0:
        return True
    unselected = options.get("select") == "last" or not any(
        phase.selectable for phase in phases[:-1]
    )
    return unselected and not options.get("trainer.average_epochs")
