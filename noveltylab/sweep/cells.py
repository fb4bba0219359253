"""The cells of a sweep: the name, the folder and the state of each run, and running one.

A cell's state is read from its folder (noveltylab/run/folder.py), never from the memory of a
process: the same words for one process, Ray's workers, SLURM's jobs and another sweep that meets
the same cells.
"""

import json
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from noveltylab.command.screen import say, say_error
from noveltylab.errors import RunFailed, UserError
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
    config: The options as plain values; {} if they are bad.
    record: What its result says of the time it took (`timing`); {} without a result.
    """

    overrides: list[str]
    names: dict[str, str]
    folder: Path | None = None
    failure: Path | None = None
    state: str = "waiting"
    reason: str = ""
    result: dict[str, float] = field(default_factory=dict)
    before: tuple[Any, Any] = (None, None)
    config: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = ["{method} {data} inlier {inlier} seed {seed}".format(**self.names)]
        for name, value in self.names.items():
            if name not in NAMED:
                words.append(f"{name} {value}")
        return " ".join(words)

    @property
    def output(self) -> Path | None:
        """The option `output` of the run; None if its options are bad."""
        if self.folder is None:
            return None
        return self.folder.parents[len(NAMED) - 1]

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
    names = {
        "protocol": str(plain["protocol"].get("name")),
        "method": str(plain["method"].get("name")),
        "data": str(plain["data"].get("name")),
        "inlier": str(plain["inlier"]),
        "seed": str(plain["seed"]),
    }
    if plain.get("debug"):  # a trial says so in every table
        names["debug"] = str(plain["debug"])
    cell = Cell(overrides, names)
    # check the options, and the folder if there is one already
    try:
        options = check_options(config)
        cell.failure = failure_path(options)
        cell.folder = options.folder
        plain = cell.config = options.recorded(plain)
        result = previous(options.folder, plain, options.force)
        if result is not None and files_changed(result, options.data):
            from noveltylab.run.read import check_complete  # imports torch

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
        cell.record = timing(result)
    return cell, plain


def name_choices(cells: list[Cell], options_of_rows: Collection[str] = ()) -> None:
    """Adds to each cell's names the value of every other option that differs between cells.

    Args:
        cells: All cells of the sweep; their names are changed.
        options_of_rows: Options that stand for a row, whose name is shown instead.
    """
    choices = [dict(map(_choice, cell.overrides)) for cell in cells]
    options: dict[str, None] = {}  # in their order
    for choice in choices:
        options |= dict.fromkeys(choice)
    for option in options:
        values = [choice.get(option, "") for choice in choices]
        if option in NAMED or option in options_of_rows or len(set(values)) == 1:
            continue
        # another column says the same
        if any(values == _column(cells, name) for name in cells[0].names):
            continue
        title = option.rpartition(".")[2]
        if title in cells[0].names:
            title = option
        for cell, value in zip(cells, values, strict=True):
            cell.names[title] = value


def _column(cells: list[Cell], name: str) -> list[str | None]:
    """What the cells are named by `name`, None where one has no such name."""
    return [cell.names.get(name) for cell in cells]


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
    from noveltylab.command.signatures import COMMON
    from noveltylab.command.validate import check_arguments
    from noveltylab.run.process import importing

    with importing():
        from noveltylab.data.protocols import PROTOCOLS
        from noveltylab.methods.base import find_method

    # the method's
    arguments = json.loads(method)
    target = find_method(str(arguments.get("_target_")))
    for key in COMMON:
        arguments.pop(key, None)
    check_arguments(target, arguments, "method")
    # the protocol's
    arguments = json.loads(protocol)
    name = arguments.pop("name")
    if name in PROTOCOLS:
        check_arguments(PROTOCOLS[name], {**arguments, "seed": 0}, "protocol")


def numbers(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of a result that the table shows; no AUROC without labelled outliers."""
    values = {}
    metrics = result["scores"][result["primary"]]
    if metrics:
        values["auroc"] = metrics["auroc"]
    values["seconds"] = result["seconds"]["total"]
    return values


def timing(result: dict[str, Any]) -> dict[str, Any]:
    """The part of a result that says what the run took, and of what work on which machine."""
    names = ("config", "seconds", "epochs", "provenance")
    return {name: result[name] for name in names if name in result}


def number_text(result: dict[str, float], key: str, digits: int) -> str:
    """A number of `numbers` as text, "none" if the result lacks it."""
    if key not in result:
        return "none"
    return f"{result[key]:.{digits}f}"


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
            result = read_result(cell.folder)
            cell.result = numbers(result)
            cell.record = timing(result)
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


def run_cell(config: DictConfig, run: Callable[[DictConfig], float | None]) -> float | str | None:
    """Runs one cell, in this process or in a launcher's worker.

    Returns its criterion for a search, or None if it failed or runs elsewhere.

    A failure is kept in a file for the process that started the sweep; nothing is raised, so that
    the others run. If the file cannot be written (a full disk), the reason is returned.
    """
    from noveltylab.options import check_options
    from noveltylab.run.folder import failure_path, write_failure
    from noveltylab.run.lock import Busy

    # the folder and the command line of the process that started the sweep
    settings = HydraConfig.get()
    overrides = list(settings.overrides.task)
    if os.getcwd() != settings.runtime.cwd:
        os.chdir(settings.runtime.cwd)  # relative paths mean the same in every worker
    if "noveltylab" not in sys.argv[0]:
        # a launcher's worker, whose own command line repeats nothing
        sys.argv = [str(Path(__file__).parents[1] / "__main__.py"), *overrides]
    # run, and keep the reason of a failure
    options = check_options(config)
    try:
        value = run(config)
    except Busy as error:
        say(error)
        return None
    except Exception as error:  # of any kind: the other cells go on
        reason = str(error)
        if not isinstance(error, (UserError, RunFailed)):
            reason = f"{type(error).__name__}: {error}"
        say_error(reason)
        reason = " ".join(reason.split())
        try:
            write_failure(options, overrides, reason, traceback.format_exc())
        except OSError:
            return reason
        return None
    # an older failure is over
    with suppress(OSError):
        failure_path(options).unlink(missing_ok=True)
    return value
