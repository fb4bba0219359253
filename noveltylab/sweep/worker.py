"""Runs one cell of a sweep, in this process or in a launcher's worker."""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from noveltylab.command.screen import say, say_error
from noveltylab.errors import RunFailed, UserError


def run_cell(config: DictConfig, run: Callable[[DictConfig], float | None]) -> float | str | None:
    """Runs one cell and returns its AUROC, or None if it failed or runs elsewhere.

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
        auroc = run(config)
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
    return auroc
