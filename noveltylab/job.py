"""What was typed as options: composed from conf/ by Hydra, checked, and run.

Torch is imported only once the options are known to be good and the run is not complete already:
`--cfg job`, most bad input and a complete run answer at once.
"""

import logging
import os
import signal
import sys
import warnings
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from noveltylab.command.arguments import readable
from noveltylab.command.completion import complete_ours
from noveltylab.command.hints import check_moved
from noveltylab.command.hydra_versions import BASE, allowed
from noveltylab.command.recipes import CONF as CONF
from noveltylab.command.recipes import PACKAGE as PACKAGE
from noveltylab.command.screen import say, say_error
from noveltylab.command.signals import HANGUP, SIGNALS, exit_code, handle, leave_terminal
from noveltylab.configs import EXPERIMENTS as EXPERIMENTS
from noveltylab.configs import (
    check_choices,
    explain,
    hydras_choices,
    register,
    with_debug,
    with_row,
)
from noveltylab.errors import Interrupted, RunFailed, UserError
from noveltylab.nets.cpu.threads import settle_waiting
from noveltylab.sweep.cells import run_cell
from noveltylab.sweep.search import OptunaSearch
from noveltylab.sweep.sweeper import CellsFailed, CellsUnfinished, Sweeper

register()

#: why the run ended early: kept for the end, as Hydra would print lines of its own
failures: list[UserError | RunFailed] = []


@hydra.main(config_path=str(CONF), config_name="train", **BASE)
def job(config: DictConfig) -> float | str | None:
    """One run, or one cell of a sweep.

    Returns for Hydra's sweepers what a search may minimise: a number of held-out inliers alone.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_cell(config, run_one)
    try:
        return run_one(config)
    except (UserError, RunFailed) as error:
        failures.append(error)
        return None


def run_one(config: DictConfig) -> float | None:
    """Checks the options without torch, then runs.

    Returns the criterion of a search (results/search.py), None without held-out inliers.
    """
    from noveltylab.command.signatures import check_method
    from noveltylab.data.load import check_files
    from noveltylab.options import check_options
    from noveltylab.results.search import criterion
    from noveltylab.run.complete import find_complete, report_complete
    from noveltylab.run.process import importing

    # all that can be told without torch
    check_choices(HydraConfig.get().runtime.choices)
    options = check_options(config)
    check_method(options.method)
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # a mapping at the top
    result = find_complete(options, plain)
    if result is not None:
        report_complete(result, options, options.folder)
    else:
        data = options.data
        check_files(data.name, data.root, data.verify, data.download)
        settle_waiting(options.resources.num_cpus)
        if options.resources.num_cpus:
            os.environ["OMP_NUM_THREADS"] = str(options.resources.num_cpus)
        with importing():
            from noveltylab.run.pipeline import run  # imports torch, which takes seconds

        result = run(options, plain)
    if not result:
        return None  # a helper process: the main one says it
    number = criterion(result, options.folder)
    return None if number is None else number[0]


def run_command() -> None:
    """Runs one run or a sweep, as `sys.argv` says; ends with an exit code (see `__main__.main`)."""
    # Hydra prints its own long explanations and exits with 1 unless this is set; we say it in one
    # line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Our launcher presets carry the plugins' names on purpose; Hydra checks them against the
    # plugins' schemas.
    warnings.filterwarnings(
        "ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema"
    )
    sweepers: tuple[type[Sweeper], ...] = (Sweeper, OptunaSearch)
    for sweeper in sweepers:
        name = f"hydra_plugins.noveltylab.{sweeper.__name__}"
        Plugins.instance().class_name_to_class[name] = sweeper
    for number in set(SIGNALS) - {signal.SIGINT}:
        handle(number, _terminate)
    try:
        check_moved(sys.argv[1:])
        if {"-sc", "--shell-completion"} & set(sys.argv):
            complete_ours(EXPERIMENTS)
        if "--info" in sys.argv or "-i" in sys.argv:
            logging.raiseExceptions = False  # Hydra prints it through a log, perhaps into `| head`
        sys.argv[1:] = with_row(with_debug(readable(sys.argv[1:])))
        targets = [f"{sweeper.__module__}.{sweeper.__name__}" for sweeper in sweepers]
        with allowed(*targets), hydras_choices(sys.argv):
            job()
    except UserError as error:
        _refuse(str(error))
    except CellsFailed:
        sys.exit(1)
    except CellsUnfinished:
        sys.exit(3)
    except HydraException as error:
        _refuse(explain(error, sys.argv[1:]))
    except OmegaConfBaseException as error:
        _refuse(f"the configuration: {str(error).splitlines()[0]}")
    except KeyboardInterrupt as error:
        say("interrupted; the same command goes on from the last checkpoint")
        sys.exit(exit_code(error))
    except BrokenPipeError:
        raise  # nobody reads: see `terminal`
    except OSError as error:  # a full disk, wherever it shows first
        where = error.filename2 or error.filename or "a file"
        _refuse(f"cannot read or write {where}: {error.strerror or error}", 1)
    if failures:
        code = 2 if isinstance(failures[0], UserError) else 1
        _refuse(str(failures[0]), code)


def _terminate(number: int, frame: object) -> None:
    if number == HANGUP:
        leave_terminal()
    raise Interrupted(number)


def _refuse(message: str, code: int = 2) -> None:
    say_error(message)
    sys.exit(code)
