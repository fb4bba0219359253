"""A sweep: which of its cells are missing, handing those to a launcher, a view while they run, and
a table at the end.

A cell's state is read from its folder (noveltylab/run/folder.py), never from the memory of a
process: the same words for one process, Ray's workers, SLURM's jobs and another sweep that meets
the same cells.
"""

import atexit
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import sys
import textwrap
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from statistics import fmean
from typing import IO, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins import sweeper
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from noveltylab.command import screen
from noveltylab.command.screen import plain, say, say_error, show
from noveltylab.errors import RunFailed, UserError
from noveltylab.results.files import read_tail
from noveltylab.results.provenance import cores
from noveltylab.results.record import read_result
from noveltylab.run.summary import offline_runs

#: Plugin package -> the extra that installs it.
EXTRAS = {"hydra_ray_launcher": "ray", "hydra_submitit_launcher": "slurm"}

#: Cells per launch where nobody says otherwise: what each returns is kept until the last of a
#: launch is back.
BATCH = 256

#: Seconds between two looks at the folders of the cells that are not finished.
LOOK_SECONDS = 1.0

#: Characters of a reason in the table of failures: a launcher's may hold a whole log.
LONGEST_REASON = 1000

#: Options that only set a value: cells that differ in nothing else are composed once.
PLAIN = {"inlier", "seed"}

#: What every table of cells shows, by any option that was swept.
NAMED = ("protocol", "method", "data", "inlier", "seed")

#: Columns of the tables where they go to a file, with options that were swept.
WIDEST = 200

#: Bytes at the end of a run's log in which its newest epoch is looked for.
LOG_TAIL = 8000


class CellsFailed(Exception):
    """Some cells of the sweep failed; which and why has been printed."""


class CellsUnfinished(Exception):
    """No cell of the sweep failed, but some are not done: other processes are running them."""


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
        chosen = [f"{name} {value}" for name, value in self.names.items() if name not in NAMED]
        return " ".join(
            ["{method} {data} inlier {inlier} seed {seed}".format(**self.names), *chosen]
        )

    @property
    def output(self) -> Path | None:
        """The option `output` of the run; None where its options are bad."""
        return self.folder.parents[len(NAMED) - 1] if self.folder else None

    def fail(self, reason: str) -> None:
        self.state, self.reason = "failed", textwrap.shorten(reason, LONGEST_REASON)


class Sweeper(sweeper.Sweeper):
    """Hydra's grid of choices; of it, what is missing is launched, `max_batch_size` cells at a
    time.

    params: choices from a file (`hydra.sweeper.params`), which those of the command line override.

    Raises (from `sweep`):
        UserError: no cell can run: a bad option, a launcher that is not installed, cells that share
        a folder.
        CellsFailed: some cells failed; the others are done.
        CellsUnfinished: none failed; some are run by other processes.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None) -> None:
        self.max_batch_size, self.params = max_batch_size, params or {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        check_launcher(config)
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context, task_function, config
        )

    def sweep(self, arguments: list[str]) -> None:
        started = time.monotonic()
        cells = self.cells(arguments)
        if all(cell.state == "failed" for cell in cells):
            raise UserError(
                "; ".join(itertools.islice(dict.fromkeys(cell.reason for cell in cells), 3))
            )
        if todo := [cell for cell in cells if cell.state == "waiting"]:
            share, size = fit_launcher(self.launcher, self.config)
            with Watch(
                cells, screen.console(file=sys.stderr)
            ):  # cells of this process print elsewhere
                self.launch(todo, share, self.max_batch_size or size)
        print_cells(cells, time.monotonic() - started)
        if any(cell.state == "failed" for cell in cells):
            print_failures(cells)
            raise CellsFailed
        if any(cell.state not in ("done", "complete") for cell in cells):
            raise CellsUnfinished

    def cells(self, arguments: list[str]) -> list[Cell]:
        """All cells, each with what is known of it before anything runs."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(
            [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        )
        for override in overrides:
            if override.is_sweep_override() and override.get_key_element().startswith("resources."):
                raise UserError(
                    f"{override.input_line}: all cells of a sweep get the same resources"
                )
        (batch,) = BasicSweeper.split_arguments(overrides, None)
        found: dict[Path, tuple[Cell, dict[str, Any]]] = {}
        cells = []
        for choice, config in self._compose(batch):
            cell, plain = read_cell(choice, config)
            cells.append(cell)
            if cell.folder is None:
                continue
            other, there = found.setdefault(cell.folder, (cell, plain))
            if other is not cell and there == plain:
                cells.pop()  # typed twice
            elif other is not cell:
                raise UserError(
                    f"'{' '.join(other.overrides)}' and '{' '.join(choice)}' would share the folder {cell.folder}; "
                    "give each its own, e.g. output='outputs/lr${method.lr}'"
                )
        name_choices(cells)
        return cells

    def _compose(self, batch: Sequence[Sequence[str]]) -> Iterator[tuple[list[str], DictConfig]]:
        """Each choice with its config. Hydra composes in about 0.1 s, so choices that differ in
        `PLAIN` share one.
        """
        loader, parser = self.hydra_context.config_loader, OverridesParser.create()

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

    def launch(self, todo: list[Cell], share: list[str], size: int) -> None:
        """Hands the cells to the launcher, `size` at a time, each with the overrides `share`;
        returns when all are back.

        A cell whose process dies without a word does not stop the others where the launcher is ours
        to restart (Ray).
        """
        while todo:
            batch, todo = todo[:size], todo[size:]
            try:
                with quiet() if is_launcher(self.launcher, "BasicLauncher") else nullcontext():
                    jobs = self.launcher.launch(
                        [[*cell.overrides, *share] for cell in batch], initial_job_idx=0
                    )
                for cell, job in zip(batch, jobs, strict=True):
                    if isinstance(reason := getattr(job, "_return_value", None), str):
                        cell.reason = reason  # which it could not leave in a file
            except KeyboardInterrupt:
                if is_launcher(self.launcher, "LocalLauncher", "SlurmLauncher"):
                    say("jobs that were submitted go on by themselves")
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                dead = [cell for cell in batch if cell.folder and left_behind(cell)]
                if not (dead and is_launcher(self.launcher, "RayLauncher")):
                    for cell in batch + todo:
                        cell.reason = (
                            reason  # of those that turn out to be neither finished nor running
                        )
                    return
                for cell in dead:
                    cell.fail(f"its process died at every try; {reason}")
                todo = [cell for cell in batch if cell not in dead and not finished(cell)] + todo
                start_ray(self.launcher)


def read_cell(overrides: list[str], config: DictConfig) -> tuple[Cell, dict[str, Any]]:
    """A cell and its plain config: failed where its options are bad, complete where its folder says
    so, else waiting.
    """
    from noveltylab.options import check_options
    from noveltylab.run.failures import failure_path
    from noveltylab.run.folder import previous
    from noveltylab.run.stamp import files_changed

    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # a mapping at the top
    groups = {group: str(plain[group].get("name")) for group in ("protocol", "method", "data")}
    cell = Cell(overrides, groups | {"inlier": str(plain["inlier"]), "seed": str(plain["seed"])})
    try:
        options = check_options(config)
        cell.folder, cell.failure = options.folder, failure_path(options)
        plain = options.recorded(plain)
        done = previous(options.folder, plain, options.force)
        if done is not None and files_changed(done, options):
            from noveltylab.run.identity import check_complete  # imports torch

            check_complete(done, options, options.folder)
        if done is None:
            check_names(json.dumps(options.method), json.dumps(options.protocol))
    except UserError as error:
        cell.fail(str(error))
        return cell, plain
    cell.names["data"] = options.data.title
    if options.inlier is None:
        cell.names["inlier"] = options.inlier_name
    cell.before = (stamp(cell.folder / "result.json"), stamp(cell.failure))
    if done is not None:
        cell.state = "complete"
        cell.result = numbers(done)
    return cell, plain


def name_choices(cells: list[Cell]) -> None:
    """Adds to each cell's names what was chosen for it by every other option that differs between
    cells.
    """
    chosen = [dict(_choice(text) for text in cell.overrides) for cell in cells]
    for option in dict.fromkeys(option for choices in chosen for option in choices):
        values = [choices.get(option, "") for choices in chosen]
        columns = [[cell.names.get(name) for cell in cells] for name in cells[0].names]
        if (
            option in NAMED or len(set(values)) == 1 or values in columns
        ):  # a row of a table is a method's name
            continue
        short = option.rpartition(".")[2]
        title = short if short not in cells[0].names else option
        for cell, value in zip(cells, values, strict=True):
            cell.names[title] = value


@cache
def _choice(text: str) -> tuple[str, str]:
    """`protocol.val_fraction=0.2` as option and value; of text in quotes the text."""
    override = OverridesParser.create().parse_override(text)
    value = override.value()
    return override.get_key_element().lstrip("+~"), value if isinstance(
        value, str
    ) else text.partition("=")[2]


@cache
def check_names(method: str, protocol: str) -> None:
    """Checks the keys and values of a method and a protocol (as JSON) against their signatures;
    loads torch.

    Raises:
        UserError: what is wrong, for the whole sweep at once instead of cell by cell.
    """
    from noveltylab.data.protocols import PROTOCOLS
    from noveltylab.methods.base import find_method
    from noveltylab.options import check_arguments

    given = json.loads(method)
    target = find_method(str(given.get("_target_")))
    check_arguments(
        target,
        {key: given[key] for key in given.keys() - {"name", "_target_", "primary"}},
        "method",
    )
    given = json.loads(protocol)
    if given["name"] in PROTOCOLS:
        check_arguments(PROTOCOLS[given.pop("name")], {**given, "seed": 0}, "protocol")


def numbers(result: dict[str, Any]) -> dict[str, float]:
    """What the table shows of a result; no AUROC without labelled outliers."""
    metrics = result["scores"][result["primary"]]
    return ({"auroc": metrics["auroc"]} if metrics else {}) | {
        "seconds": result["seconds"]["total"]
    }


def said(result: dict[str, float], key: str, digits: int) -> str:
    """A number of `numbers`, "none" where the result has it not."""
    return f"{result[key]:.{digits}f}" if key in result else "none"


def stamp(path: Path) -> tuple[int, int] | None:
    """Changes whenever the file is written anew; None without one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


# Launchers.


def is_launcher(launcher: Any, *names: str) -> bool:
    """By name, since the plugins need not be installed."""
    return type(launcher).__name__ in names


def check_launcher(config: DictConfig) -> None:
    """Refuses a launcher that is not installed, or not usable here."""
    target = str(config.hydra.launcher["_target_"])
    name = config.hydra.runtime.choices["hydra/launcher"]
    if target not in Plugins.instance().class_name_to_class:
        extra = next((extra for package, extra in EXTRAS.items() if package in target), None)
        hint = f"; install it with: pip install 'noveltylab[{extra}]'" if extra else ""
        raise UserError(f"hydra/launcher={name}: this launcher is not installed{hint}")
    if config.trainer.devices > 1 and "submitit" not in name:
        raise UserError(
            f"trainer.devices={config.trainer.devices}: with hydra/launcher={name} each run of a sweep has one device; use "
            "submitit_slurm or submitit_local for runs over several"
        )
    if target.endswith(".SlurmLauncher") and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError(
            f"hydra/launcher={name}: no sbatch and srun here; start the sweep where SLURM is, or use ray"
        )


def fit_launcher(launcher: Any, config: DictConfig) -> tuple[list[str], int]:
    """Fills in the launcher's automatic settings: what every cell is told of its share, and cells
    per launch.
    """
    cpus = config.resources.num_cpus
    if is_launcher(launcher, "BasicLauncher"):
        return [], 1
    if is_launcher(launcher, "RayLauncher"):
        cpus = fit_ray(launcher, config.trainer.accelerator == "cpu")
        return [f"resources.num_cpus={cpus}"], BATCH
    if is_launcher(launcher, "LocalLauncher"):
        cpus = cpus or 1
        at_once = 1 if config.resources.num_gpus else max(1, cores() // cpus)
        return [f"resources.num_cpus={cpus}"], at_once
    return [], BATCH


def fit_ray(launcher: Any, cpu_only: bool) -> int:
    """Settles the share of a cell in what Ray has; returns its whole cores.

    Raises:
        UserError: more is asked for than this machine has, which would wait for ever (a cluster may
        yet grow).
    """
    have = start_ray(launcher)
    gpus, cpus = have.get("GPU", 0.0), have.get("CPU", 1.0)
    remote = launcher.ray_cfg.remote
    if remote.num_gpus is None:
        remote.num_gpus = 0 if cpu_only or not gpus else 1
    if remote.num_cpus is None:
        remote.num_cpus = (
            max(1, int(cpus * remote.num_gpus / gpus)) if remote.num_gpus and gpus else 1
        )
    for name, wanted, found in (
        ("num_gpus", remote.num_gpus, gpus),
        ("num_cpus", remote.num_cpus, cpus),
    ):
        if wanted > found and launcher.ray_cfg.init.address == "local":
            raise UserError(
                f"resources.{name}={wanted:g}: Ray has {found:g} here, so no run would ever start"
            )
    return max(1, int(remote.num_cpus))


def start_ray(launcher: Any) -> dict[str, float]:
    """Starts Ray, or connects to it (again: ends the runs under way, which go on from their
    checkpoints); what it has.

    Raises:
        UserError: it does not start, or nothing answers at the address.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1"
    )  # a run without a GPU must not see one
    settings: dict[str, Any] = OmegaConf.to_container(launcher.ray_cfg.init, resolve=True)  # type: ignore[assignment]
    host, _, port = str(settings["address"]).rpartition(":")
    if host and port.isdigit():
        try:  # Ray itself would knock for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise UserError(
                f"hydra.launcher.ray.init.address={host}:{port}: no Ray answers there: {error}"
            ) from None
    if ray.is_initialized():
        ray.shutdown()
    try:
        ray.init(**settings)
    except Exception as error:  # Ray raises just that where it is too slow to start
        hint = (
            "; a cluster that asks for a token needs RAY_AUTH_MODE=token"
            if settings["address"] != "local"
            else ""
        )
        raise UserError(
            f"hydra/launcher=ray: {error} (settings: hydra.launcher.ray.init{hint})"
        ) from None
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


# In the process that runs a cell.


def run_cell(config: DictConfig, run: Callable[[DictConfig], float | None]) -> float | str | None:
    """Runs one cell, here or in a launcher's worker; returns its AUROC, or None where it failed or
    runs elsewhere.

    A failure is kept in a file for the process that started the sweep; nothing is raised, so that
    the others run. Where the file cannot be written (a full disk), the reason is returned.
    """
    from noveltylab.options import check_options
    from noveltylab.run.failures import failure_path, write_failure
    from noveltylab.run.lock import Busy

    settings = HydraConfig.get()
    overrides = list(settings.overrides.task)
    if os.getcwd() != settings.runtime.cwd:
        os.chdir(settings.runtime.cwd)  # relative paths mean the same in every worker
    if "noveltylab" not in sys.argv[0]:
        # a launcher's worker, whose own command line repeats nothing
        sys.argv = [str(Path(__file__).parents[1] / "__main__.py"), *overrides]
    options = check_options(config)
    try:
        auroc = run(config)
    except Busy as error:
        say(error)
        return None
    except Exception as error:
        known = isinstance(error, (UserError, RunFailed))
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        say_error(reason)
        reason = " ".join(reason.split())
        try:
            write_failure(options, overrides, reason, traceback.format_exc())
        except OSError:
            return reason
        return None
    with suppress(OSError):
        failure_path(options).unlink(missing_ok=True)
    return auroc


@cache
def nowhere() -> IO[str]:
    """A stream that forgets; open to the end of the process, as log handlers may keep it."""
    stream = open(os.devnull, "w")  # noqa: SIM115  # closed at the end
    atexit.register(stream.close)
    return stream


@contextmanager
def quiet() -> Iterator[None]:
    """Runs in this process write their run.log and leave the screen to the sweep."""
    with redirect_stdout(nowhere()), redirect_stderr(nowhere()):
        yield


# What is shown.


def finished(cell: Cell) -> bool:
    """Whether the cell was done or failed since the sweep began; takes over its numbers or reason."""
    from noveltylab.run.failures import read_failure

    if cell.folder is None or cell.failure is None or cell.state in ("done", "failed", "complete"):
        return True
    now = (stamp(cell.folder / "result.json"), stamp(cell.failure))
    if now[0] not in (None, cell.before[0]):
        try:
            cell.result = numbers(read_result(cell.folder))
            cell.state = "done"
        except UserError as error:
            cell.fail(str(error))
    elif now[1] not in (None, cell.before[1]):
        cell.fail(read_failure(cell.failure))
    return cell.state in ("done", "failed")


def left_behind(cell: Cell) -> bool:
    """Whether a process died while it ran the cell."""
    from noveltylab.run.lock import holder, lock_path

    assert cell.folder is not None
    return not finished(cell) and lock_path(cell.folder).exists() and holder(cell.folder) is None


class Watch:
    """Follows the cells by their folders from a thread of its own: a live view on a terminal, else
    a line per change.
    """

    def __init__(self, cells: list[Cell], console: Any) -> None:
        self.cells, self.console = cells, console
        self.todo = [cell for cell in cells if cell.state == "waiting"]
        self.said: set[int] = set()
        self.started = time.monotonic()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        from rich.live import Live

        self.live = Live(
            console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        if self.console.is_terminal:
            self.live.start()
        else:
            self.console.print(f"sweep: {self.counts()}", soft_wrap=True)
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self.look()
        if self.console.is_terminal:
            self.live.update(self.counts(), refresh=True)
            self.live.stop()
        self.conclude()

    def conclude(self) -> None:
        """What is neither done nor failed now: another process runs it, or nobody does."""
        from noveltylab.run.lock import holder

        for cell in self.todo:
            if finished(cell) or cell.folder is None:
                continue
            if holder(cell.folder) is not None:
                cell.state = "elsewhere"
            else:
                cell.fail(cell.reason or "its process ended without a result (killed?)")

    def _follow(self) -> None:
        while not self.stop.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Brings the states up to date and shows what changed."""
        from noveltylab.run.lock import holder

        for cell in self.todo:
            if not finished(cell):
                cell.state = (
                    "running" if cell.folder and holder(cell.folder) is not None else "waiting"
                )
        if self.console.is_terminal:
            self.live.update(self._screen(), refresh=True)
            return
        for cell in self.todo:
            if cell.state in ("done", "failed") and id(cell) not in self.said:
                self.said.add(id(cell))
                self.console.print(self._line(cell), soft_wrap=True)

    def _line(self, cell: Cell) -> str:
        what = textwrap.shorten(cell.reason, 120)
        if cell.result:
            what = f"AUROC {said(cell.result, 'auroc', 4)}, {cell.result['seconds']:.0f} s"
        return f"{cell.state:<7} {cell}: {what} ({self.counts()})"

    def counts(self) -> str:
        """`12 of 60 done, 2 running, 1 failed, 5 complete already, about 0:40:10 left`."""
        count = Counter(cell.state for cell in self.cells)
        text = f"{count['done']} of {len(self.cells)} done, {count['running']} running, {count['failed']} failed"
        if count["complete"]:
            text += f", {count['complete']} complete already"
        ended = sum(cell.state in ("done", "failed") for cell in self.todo)
        if 0 < ended < len(self.todo):
            left = (time.monotonic() - self.started) / ended * (len(self.todo) - ended)
            text += f", about {clock(left)} left"
        return text

    def _screen(self) -> Any:
        from rich.console import Group
        from rich.padding import Padding
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        running = [cell for cell in self.todo if cell.state == "running"]
        ended = sum(cell.state not in ("waiting", "running") for cell in self.cells)
        rows = [
            Text(f"{cell}  {newest_epoch(cell)}", overflow="ellipsis", no_wrap=True, style="dim")
            for cell in running
        ]
        spent = f"{clock(time.monotonic() - self.started)}: {self.counts()}"
        room = max(3, self.console.height - 4)
        bar = Padding(
            ProgressBar(len(self.cells), ended), 0
        )  # which ends its line; the bar by itself does not
        return Group(Text(spent, no_wrap=True), bar, *rows[:room])


def newest_epoch(cell: Cell) -> str:
    """The newest line on an epoch in the run's own log, since the run was last started."""
    assert cell.folder is not None
    try:
        lines = read_tail(cell.folder / "run.log", LOG_TAIL).decode(errors="replace").splitlines()
    except OSError:
        return "starting"
    for line in reversed(lines):
        words = re.sub(r"^\d\d:\d\d:\d\d ", "", line)
        if words.startswith("epoch "):
            return words
        if words.startswith("run folder "):
            break
    return "no epoch yet"


def clock(seconds: float) -> str:
    """`0:40:10`."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def print_cells(cells: list[Cell], seconds: float) -> None:
    """The table of all cells, on standard output, at most 80 columns wide."""
    styles = {"failed": "bold red", "elsewhere": "yellow", "complete": "dim"}
    names = [
        name
        for name in cells[0].names
        if name != "protocol" or len({cell.names[name] for cell in cells}) > 1
    ]
    table = _table(names)
    for name in ("AUROC", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for cell in cells:
        shown = (
            (said(cell.result, "auroc", 4), said(cell.result, "seconds", 1))
            if cell.result
            else ("", "")
        )
        table.add_row(
            *(cell.names[name] for name in names), *shown, cell.state, style=styles.get(cell.state)
        )
    console = screen.console()
    if not console.is_terminal:
        console = screen.console(width=WIDEST)
    width = min(80, console.width) if len(names) <= len(NAMED) else console.width
    console.print(table, width=width)
    if means := mean_rows(cells):
        console.print(
            _mean_table(means, [name for name in names if name not in ("inlier", "seed")]),
            width=width,
        )
    count = Counter(cell.state for cell in cells)
    states = ", ".join(
        f"{count[state]} {state}"
        for state in ("done", "complete", "elsewhere", "failed")
        if count[state]
    )
    console.print(f"{len(cells)} cells: {states}; {clock(seconds)}", soft_wrap=True)
    if count["elsewhere"]:
        console.print(
            "elsewhere: another process is running it; the same command shows the result",
            soft_wrap=True,
        )
    for line in next_commands(cells):
        console.print(line, soft_wrap=True)


def _table(names: Sequence[str]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold")
    return table


@dataclass
class Mean:
    """The mean AUROC of the cells that differ in class and seed alone: of each class's seeds first,
    then of the classes.
    """

    names: dict[str, str]
    auroc: float
    classes: int
    seeds: int
    measured: int
    cells: int


def mean_rows(cells: list[Cell]) -> list[Mean]:
    """One mean per method, data set and whatever else was swept; [] where each would be of one
    cell.
    """
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        key = tuple(value for name, value in cell.names.items() if name not in ("inlier", "seed"))
        groups.setdefault(key, []).append(cell)
    means = []
    for group in groups.values():
        by_class: dict[str, list[float]] = {}
        for cell in group:
            if "auroc" in cell.result:
                by_class.setdefault(cell.names["inlier"], []).append(cell.result["auroc"])
        if by_class:
            auroc = fmean(fmean(seeds) for seeds in by_class.values())
            seeds = max(map(len, by_class.values()))
            measured = sum(map(len, by_class.values()))
            means.append(Mean(group[0].names, auroc, len(by_class), seeds, measured, len(group)))
    return means if any(mean.cells > 1 for mean in means) else []


def _mean_table(means: list[Mean], names: Sequence[str]) -> Any:
    table = _table(names)
    for name in ("mean AUROC", "classes", "seeds", "cells"):
        table.add_column(name, justify="right", no_wrap=True)
    for mean in means:
        share = (
            str(mean.cells) if mean.measured == mean.cells else f"{mean.measured} of {mean.cells}"
        )
        numbers = (f"{mean.auroc:.4f}", str(mean.classes), str(mean.seeds), share)
        table.add_row(*(mean.names[name] for name in names), *numbers, style="bold")
    return table


def next_commands(cells: list[Cell]) -> list[str]:
    """What to type after a sweep: the report on its results, and what sends runs that W&B has kept
    on disk.
    """
    folders = [cell.folder for cell in cells if cell.folder and cell.result]
    if not folders:
        return []
    outputs = list(dict.fromkeys(str(cell.output) for cell in cells if cell.output and cell.result))
    shared = (
        os.path.commonpath(outputs)
        if len(outputs) > 1 and len({os.path.isabs(path) for path in outputs}) == 1
        else ""
    )
    reported = [shared] if shared.strip("/") else outputs
    lines = [
        f"tables and comparisons: python -m noveltylab report {shlex.quote(path)}"
        for path in reported
    ]
    unsent = [path for folder in folders for path in offline_runs([folder])[:1]]
    if unsent:
        quoted = " ".join(
            f"{shlex.quote(path)}/*/*/*/*/seed*/wandb/offline-run-*" for path in outputs
        )
        lines.append(
            f"{len(unsent)} runs are kept on disk for W&B; to send them: wandb sync {quoted}"
        )
    return lines


def print_failures(cells: list[Cell]) -> None:
    """Which cells failed and why, one line each, on standard error."""
    failed = [(str(cell), cell.reason) for cell in cells if cell.state == "failed"]
    width = max(len(name) for name, _ in failed)
    show(f"\n{len(failed)} of {len(cells)} cells failed; the same command tries them again:")
    said = ""
    for name, reason in failed:
        show(f"  {name:<{width}}  {'the same' if reason == said else plain(reason)}")
        said = reason
