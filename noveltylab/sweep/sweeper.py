"""Hydra's sweeper with a view, a table and only the missing cells.

`grid` lists the cells, `cells` reads which of them are missing and runs one of them, `launchers`
settles where they run, `view` follows them and prints them at the end.
"""

import atexit
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import cache, lru_cache
from pathlib import Path
from typing import IO, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins import sweeper
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from noveltylab.command import screen
from noveltylab.command.screen import say
from noveltylab.errors import UserError
from noveltylab.sweep.cells import Cell, left_behind, name_choices, read_cell, update_state
from noveltylab.sweep.estimate import KEPT, Estimates
from noveltylab.sweep.grid import cells_of_grid, options_of_rows
from noveltylab.sweep.launchers import check_launcher, fit_launcher, is_launcher, start_ray
from noveltylab.sweep.plan import write_plans
from noveltylab.sweep.view import Watch, print_cells, print_failures

#: Options that only set a value: cells that differ in nothing else are composed once.
PLAIN = {"inlier", "seed"}


class CellsFailed(Exception):
    """Some cells of the sweep failed; which and why has been printed."""


class CellsUnfinished(Exception):
    """No cell of the sweep failed, but some are not done: other processes are running them."""


class Sweeper(sweeper.Sweeper):
    """Runs what is missing of Hydra's grid of choices, `max_batch_size` cells at a time.

    params, rows: choices and rows of an experiment file (noveltylab/sweep/grid.py).

    Raises (from `sweep`):
        UserError: No cell can run: a bad option, a launcher that is not installed, cells that share
        a folder.
        CellsFailed: Some cells failed; the others are done.
        CellsUnfinished: None failed; some are run by other processes.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(
        self, max_batch_size: int | None, params: DictConfig | None, rows: DictConfig | None
    ) -> None:
        self.max_batch_size = max_batch_size
        self.params = as_written(params)
        self.rows = as_written(rows)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Makes the launcher, after checking that it can be used here."""
        check_launcher(config)
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context, task_function, config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs the missing cells and prints the table of all of them."""
        started = time.monotonic()
        # read every cell's state from its folder
        cells = self.cells(arguments)
        if all(cell.state == "failed" for cell in cells):
            reasons = dict.fromkeys(cell.reason for cell in cells)
            raise UserError("; ".join(itertools.islice(reasons, 3)))
        # launch what is missing; cells of this process print elsewhere
        waiting = [cell for cell in cells if cell.state == "waiting"]
        if waiting:
            room = fit_launcher(self.launcher, self.config)
            size = self.max_batch_size or room.batch
            estimates = Estimates(cells, room.share, KEPT)
            write_plans(cells, estimates.seconds)
            at_once = min(size, room.at_once) if room.at_once else None
            forecast = str(estimates.forecast(cells, at_once))
            with Watch(cells, screen.console(file=sys.stderr), estimates, forecast):
                self.launch(waiting, room.share, size)
        else:
            write_plans(cells)
        # print the table
        print_cells(cells, time.monotonic() - started)
        # end with what is not done
        if any(cell.state == "failed" for cell in cells):
            print_failures(cells)
            raise CellsFailed
        if any(cell.state not in ("done", "complete") for cell in cells):
            raise CellsUnfinished

    def cells(self, arguments: list[str]) -> list[Cell]:
        """All cells, each with what is known of it before anything runs."""
        # the grid of the file and of the command line
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        params = [f"{option}={value}" for option, value in self.params.items()]
        _check_resources(parser.parse_overrides([*params, *arguments]))
        batch = cells_of_grid(self.params, self.rows, arguments, parser)
        # one cell per choice; a choice typed twice is one cell
        by_folder: dict[Path, tuple[Cell, dict[str, Any]]] = {}
        cells = []
        for choice, config in self._compose(batch):
            cell, plain = read_cell(choice, config)
            if cell.folder is None:
                cells.append(cell)
                continue
            first, first_plain = by_folder.setdefault(cell.folder, (cell, plain))
            if first is cell:
                cells.append(cell)
            elif first_plain != plain:
                raise UserError(
                    f"'{' '.join(first.overrides)}' and '{' '.join(choice)}' would share the folder {cell.folder}; "
                    "give each its own, e.g. output='outputs/lr${method.lr}'"
                )
        # what tells the cells apart in the tables; a row's options are told by its name
        name_choices(cells, options_of_rows(self.rows))
        return cells

    def _compose(self, batch: Sequence[Sequence[str]]) -> Iterator[tuple[list[str], DictConfig]]:
        """Each choice with its config.

        Hydra composes in about 0.1 s, so choices that differ in `PLAIN` share one config.
        """
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create()

        @lru_cache(maxsize=64)
        def compose(overrides: tuple[str, ...]) -> DictConfig:
            config = loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                del config["hydra"]
            return config

        for choice in batch:
            plain = [text for text in choice if text.partition("=")[0] in PLAIN]
            config = compose(tuple(text for text in choice if text not in plain))
            for override in parser.parse_overrides(plain):
                OmegaConf.update(config, override.get_key_element(), override.value())
            yield list(choice), config

    def launch(self, waiting: list[Cell], share: list[str], size: int) -> None:
        """Hands the cells to the launcher, `size` at a time; returns when all are back.

        A cell whose process dies without a word does not stop the others where the launcher is ours
        to restart (Ray).

        Args:
            waiting: The cells to run.
            share: Overrides that every cell gets: its share of the machine.
            size: Cells per launch.
        """
        while waiting:
            # launch the next batch
            batch, waiting = waiting[:size], waiting[size:]
            try:
                self._launch_batch(batch, share)
            except KeyboardInterrupt:
                if is_launcher(self.launcher, "LocalLauncher", "SlurmLauncher"):
                    say("jobs that were submitted go on by themselves")
                raise
            except Exception as error:  # launchers fail in many ways
                reason = f"{type(error).__name__}: {error}"
                dead = [cell for cell in batch if cell.folder and left_behind(cell)]
                # no worker of Ray's died: the launcher itself failed
                if not (dead and is_launcher(self.launcher, "RayLauncher")):
                    for cell in batch + waiting:
                        cell.reason = reason  # shown if it turns out neither finished nor running
                    return
                # a worker died: give up its cell and start the others again
                for cell in dead:
                    cell.fail(f"its process died at every try; {reason}")
                again = [cell for cell in batch if cell not in dead and not update_state(cell)]
                waiting = again + waiting
                start_ray(self.launcher)

    def _launch_batch(self, batch: list[Cell], share: list[str]) -> None:
        """Launches cells and waits; keeps the reasons of those that could not write theirs."""
        overrides = [[*cell.overrides, *share] for cell in batch]
        in_this_process = is_launcher(self.launcher, "BasicLauncher")
        with quiet() if in_this_process else nullcontext():
            jobs = self.launcher.launch(overrides, initial_job_idx=0)
        for cell, job in zip(batch, jobs, strict=True):
            reason = getattr(job, "_return_value", None)
            if isinstance(reason, str):
                cell.reason = reason


def as_written(options: DictConfig | None) -> dict[str, Any]:
    """Options of the sweeper, with `${...}` left to the cells."""
    if options is None:
        return {}
    return OmegaConf.to_container(options, resolve=False)  # type: ignore[return-value]  # a mapping


def _check_resources(overrides: list[Override]) -> None:
    """Raises UserError if the resources of a run are swept."""
    for override in overrides:
        if override.is_sweep_override() and override.get_key_element().startswith("resources."):
            raise UserError(f"{override.input_line}: all cells of a sweep get the same resources")


@cache
def devnull() -> IO[str]:
    """A stream that drops what is written.

    It stays open to the end of the process, as log handlers may keep it.
    """
    stream = open(os.devnull, "w")  # noqa: SIM115  # closed at the end
    atexit.register(stream.close)
    return stream


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves the screen to the sweep; runs in this process write their run.log."""
    with redirect_stdout(devnull()), redirect_stderr(devnull()):
        yield
