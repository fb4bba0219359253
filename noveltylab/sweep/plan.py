"""The plan of a sweep, kept beside its runs: which folders it is to fill, and by which command.

It decides nothing: a sweep is its folders. It lets `noveltylab status` say what is still to come.
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from noveltylab.results.files import read_json, write_atomic
from noveltylab.results.provenance import masked
from noveltylab.sweep.cells import NAMED, Cell


@dataclass(frozen=True)
class Plan:
    """One sweep over an output folder.

    Attributes:
        command: What was typed behind `noveltylab`, without secrets.
        folders: Of its cells.
    """

    command: str
    folders: tuple[Path, ...]


def write_plans(cells: Sequence[Cell]) -> None:
    """Keeps the plan of a sweep in each output folder that it writes to.

    What cannot be written is left out: the runs themselves will say why.
    """
    command = shlex.join(map(masked, sys.argv[1:]))
    outputs: dict[Path, list[str]] = {}
    for cell in cells:
        if cell.output is not None and cell.folder is not None:
            name = cell.folder.relative_to(cell.output).as_posix()
            outputs.setdefault(cell.output, []).append(name)
    for output, names in outputs.items():
        digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
        content = {"command": command, "cells": sorted(names)}
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
            yield Plan(str(content["command"]), tuple(output / name for name in inside))
