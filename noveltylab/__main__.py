"""The command `noveltylab`, which is also `python -m noveltylab`.

Without a word it composes conf/ with the command line and hands the config to `run`; with one, as
in `noveltylab predict ...`, it calls the module of that word (command/words.py). Torch is not
imported here: `--help`, `--cfg job` and most bad input answer at once.
"""

import logging
import os
import signal
import sys
import warnings

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from noveltylab import __version__
from noveltylab.command.arguments import readable
from noveltylab.command.completion import complete_ours
from noveltylab.command.hints import check_moved
from noveltylab.command.hydra_versions import BASE, allowed
from noveltylab.command.recipes import CONF as CONF
from noveltylab.command.recipes import PACKAGE as PACKAGE
from noveltylab.command.screen import say, say_error, show, terminal
from noveltylab.command.signals import HANGUP, SIGNALS, exit_code, handle, leave_terminal
from noveltylab.command.words import MODULES, run_word, wrong_word
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
    from noveltylab.options import check_options

    check_choices(HydraConfig.get().runtime.choices)
    options = check_options(config)
    settle_waiting(options.resources.num_cpus)
    if options.resources.num_cpus:
        os.environ["OMP_NUM_THREADS"] = str(options.resources.num_cpus)
    # they import torch, which takes seconds: only once the options are known to be good
    from noveltylab.results.search import criterion
    from noveltylab.run.pipeline import run

    result = run(options, OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]  # a mapping at the top
    if not result:
        return None  # a helper process: the main one says it
    number = criterion(result, options.folder)
    return None if number is None else number[0]


def main() -> None:
    """Runs what was typed and ends with an exit code.

    0: done (or already complete). 1: a failure (also of any cell of a sweep). 2: bad input. 3: a
    sweep without failures of which some cells are not done, since other processes are running
    them. 129, 130, 143: ended by SIGHUP (a closed terminal), Ctrl-C, SIGTERM.
    """
    arguments = sys.argv[1:]
    # Pillow's limit of pixels: an error, which names the file, in the place of a warning
    warnings.filterwarnings("error", message="Image size .* exceeds limit")
    with terminal():
        if arguments and arguments[0] in MODULES:
            sys.exit(run_word(arguments[0], arguments[1:]))
        if arguments:
            mistake = wrong_word(arguments[0])
            if mistake:
                _refuse(mistake)
        if "--version" in arguments:  # before Hydra says its own
            show(f"noveltylab {__version__}", sys.stdout)
            return
        if {"-h", "--help"} & set(arguments):
            from noveltylab.help import print_help

            print_help(CONF, arguments, EXPERIMENTS)
            return
        _run_command()


def _run_command() -> None:
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


if __name__ == "__main__":
    main()
