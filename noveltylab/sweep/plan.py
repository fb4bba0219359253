"""The plan of a sweep, kept beside its runs: which folders it is to fill, and by which command.

It decides nothing: a sweep is its folders. It lets `noveltylab status` say what is still to come.
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noveltylab.results.files import read_json, write_atomic
from noveltylab.results.provenance import masked
from noveltylab.sweep.cells import NAMED, Cell


@dataclass(frozen=True)
class Plan:
    """One sweep over an output folder.

    Attributes:
        command: What was typed behind `noveltylab`, without secrets.
        folders: Of its cells.
        seconds: What a cell was estimated to take before the sweep began, by its folder.
    """

    command: str
    folders: tuple[Path, ...]
    seconds: dict[Path, float] = field(default_factory=dict)


def write_plans(
    cells: Sequence[Cell], estimate: Callable[[Cell], float | None] | None = None
) -> None:
    """Keeps the plan of a sweep in each output folder that it writes to.

    What cannot be written is left out: the runs themselves will say why.

    Args:
        cells: All of the sweep.
        estimate: The seconds that a cell is to take, None where they are not known.
    """
    command = shlex.join(map(masked, sys.argv[1:]))
    outputs: dict[Path, list[str]] = {}
    seconds: dict[Path, dict[str, float]] = {}
    for cell in cells:
        if cell.output is not None and cell.folder is not None:
            name = cell.folder.relative_to(cell.output).as_posix()
            outputs.setdefault(cell.output, []).append(name)
            value = estimate(cell) if estimate and cell.state == "waiting" else None
            if value is not None:
                seconds.setdefault(cell.output, {})[name] = round(value, 1)
    for output, names in outputs.items():
        digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
        content: dict[str, Any] = {"command": command, "cells": sorted(names)}
        if output in seconds:
            content["seconds"] = seconds[output]
        with suppress(OSError):
            path = output / ".sweep" / "plans" / f"{digest[:12]}.json"
            write_atomic(path, json.dumps(content, indent=1) + "\n")


def read_plans(output: Path) -> Iterator[Plan]:
    """The plans that an output folder keeps; a damaged one counts as none."""
    for path in sorted((output / ".sweep" / "plans").glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            content = read_json(path, within=output)
            names = [Path(name) for name in content["cells"]]
            inside = [name for name in names if len(name.parts) == len(NAMED)]
            inside = [name for name in inside if not name.is_absolute() and ".." not in name.parts]
            estimated = content.get("seconds", {})
            seconds = {}
            for name in inside:
                if name.as_posix() in estimated:
                    seconds[output / name] = max(0.0, float(estimated[name.as_posix()]))
            folders = tuple(output / name for name in inside)
            yield Plan(str(content["command"]), folders, seconds)
