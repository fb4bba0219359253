"""The cells of a sweep: the name, the folder and the state of each run.

A cell's state is read from its folder (noveltylab/run/folder.py), never from the memory of a
process: the same words for one process, Ray's workers, SLURM's jobs and another sweep that meets
the same cells.
"""

import json
import textwrap
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from noveltylab.errors import UserError
from noveltylab.results.record import read_result

#: What every table of cells shows, by any option that was swept.
NAMED = ("protocol", "method", "data", "inlier", "seed")
#: Characters of a reason in the table of failures: a launcher's may hold a whole log.
LONGEST_REASON = 1000


@dataclass
class Cell:
    """One run of a sweep.

    state: "complete" (already), "waiting", "running", "done", "failed", "elsewhere" (another
        process runs it).
    """

    overrides: list[str]
    names: dict[str, str]
    folder: Path | None = None
    failure: Path | None = None
    state: str = "waiting"
    reason: str = ""
    result: dict[str, float] = field(default_factory=dict)
    before: tuple[Any, Any] = (None, None)

    def __str__(self) -> str:
        words = ["{method} {data} inlier {inlier} seed {seed}".format(**self.names)]
        for name, value in self.names.items():
            if name not in NAMED:
                words.append(f"{name} {value}")
        return " ".join(words)

    @property
    def output(self) -> Path | None:
        """The option `output` of the run; None if its options are bad."""
        return self.folder.parents[len(NAMED) - 1] if self.folder else None

    def fail(self, reason: str) -> None:
        """Marks the cell as failed and keeps a shortened reason."""
        self.state = "failed"
        self.reason = textwrap.shorten(reason, LONGEST_REASON)


def read_cell(overrides: list[str], config: DictConfig) -> tuple[Cell, dict[str, Any]]:
    """A cell and its plain config.

    The cell has failed if its options are bad, is complete if its folder says so, else it waits.
    """
    from noveltylab.options import check_options
    from noveltylab.run.folder import failure_path, files_changed, previous

    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # a mapping at the top
    names = {group: str(plain[group].get("name")) for group in ("protocol", "method", "data")}
    names["inlier"] = str(plain["inlier"])
    names["seed"] = str(plain["seed"])
    cell = Cell(overrides, names)
    # check the options, and the folder if there is one already
    try:
        options = check_options(config)
        cell.failure = failure_path(options)
        cell.folder = options.folder
        plain = options.recorded(plain)
        result = previous(options.folder, plain, options.force)
        if result is not None and files_changed(result, options.data):
            from noveltylab.run.images import check_complete  # imports torch

            check_complete(result, options, options.folder)
        if result is None:
            check_names(json.dumps(options.method), json.dumps(options.protocol))
    except UserError as error:
        cell.fail(str(error))
        return cell, plain
    # names as people know them
    cell.names["data"] = options.data.title
    if options.inlier is None:
        cell.names["inlier"] = options.inlier_name
    # what there is before the sweep runs anything
    cell.before = (stamp(cell.folder / "result.json"), stamp(cell.failure))
    if result is not None:
        cell.state = "complete"
        cell.result = numbers(result)
    return cell, plain


def name_choices(cells: list[Cell], options_of_rows: Collection[str] = ()) -> None:
    """Adds to each cell's names the value of every other option that differs between cells.

    Args:
        cells: All cells of the sweep; their names are changed.
        options_of_rows: Options that stand for a row, whose name is shown instead.
    """
    choices = [dict(_choice(text) for text in cell.overrides) for cell in cells]
    for option in dict.fromkeys(option for choice in choices for option in choice):
        values = [choice.get(option, "") for choice in choices]
        columns = [[cell.names.get(name) for cell in cells] for name in cells[0].names]
        if option in NAMED or option in options_of_rows:
            continue
        if len(set(values)) == 1 or values in columns:
            continue
        short = option.rpartition(".")[2]
        title = short if short not in cells[0].names else option
        for cell, value in zip(cells, values, strict=True):
            cell.names[title] = value


@cache
def _choice(text: str) -> tuple[str, str]:
    """`protocol.val_fraction=0.2` as option and value; of text in quotes the text."""
    override = OverridesParser.create().parse_override(text)
    option = override.get_key_element().lstrip("+~")
    value = override.value()
    if isinstance(value, str):
        return option, value
    return option, text.partition("=")[2]


@cache
def check_names(method: str, protocol: str) -> None:
    """Checks the options of a method and a protocol (as JSON) against their signatures.

    Loads torch.

    Raises:
        UserError: What is wrong, for the whole sweep at once instead of cell by cell.
    """
    from noveltylab.data.protocols import PROTOCOLS
    from noveltylab.methods.base import find_method
    from noveltylab.options import check_arguments

    values = json.loads(method)
    target = find_method(str(values.get("_target_")))
    keys = values.keys() - {"name", "_target_", "primary"}
    check_arguments(target, {key: values[key] for key in keys}, "method")
    values = json.loads(protocol)
    name = values.pop("name")
    if name in PROTOCOLS:
        check_arguments(PROTOCOLS[name], {**values, "seed": 0}, "protocol")


def numbers(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of a result that the table shows; no AUROC without labelled outliers."""
    summary = {}
    metrics = result["scores"][result["primary"]]
    if metrics:
        summary["auroc"] = metrics["auroc"]
    summary["seconds"] = result["seconds"]["total"]
    return summary


def number_text(result: dict[str, float], key: str, digits: int) -> str:
    """A number of `numbers` as text, "none" if the result lacks it."""
    return f"{result[key]:.{digits}f}" if key in result else "none"


def stamp(path: Path) -> tuple[int, int] | None:
    """Changes whenever the file is written anew; None without one."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def update_state(cell: Cell) -> bool:
    """Takes over the result or failure written since the sweep began; returns whether it ended."""
    from noveltylab.run.folder import read_failure

    if cell.folder is None or cell.failure is None or cell.state in ("done", "failed", "complete"):
        return True
    result_before, failure_before = cell.before
    result_now = stamp(cell.folder / "result.json")
    failure_now = stamp(cell.failure)
    if result_now not in (None, result_before):
        try:
            cell.result = numbers(read_result(cell.folder))
            cell.state = "done"
        except UserError as error:
            cell.fail(str(error))
    elif failure_now not in (None, failure_before):
        cell.fail(read_failure(cell.failure))
    return cell.state in ("done", "failed")


def left_behind(cell: Cell) -> bool:
    """Whether a process died while it ran the cell."""
    from noveltylab.run.lock import holder, lock_path

    assert cell.folder is not None
    if update_state(cell):
        return False
    return lock_path(cell.folder).exists() and holder(cell.folder) is None
