"""`search=optuna`: options chosen by held-out inliers, with Optuna and Hydra's launchers.

A trial is a choice of options; its runs are the cells of a sweep (`inlier=0,1 seed=0,1`), whose
mean criterion Optuna is told. The study lies beside the runs in a file of SQLite, so that a search
that was killed goes on: with the trials that were running, then with the next.
"""

import hashlib
import itertools
import json
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from noveltylab.command import screen
from noveltylab.command.arguments import quote
from noveltylab.command.screen import say
from noveltylab.errors import UserError
from noveltylab.results.files import open_regular
from noveltylab.results.record import read_result
from noveltylab.results.search import (
    Search,
    Trial,
    criterion,
    mean,
    write_search,
)
from noveltylab.run.lock import locked
from noveltylab.sweep.cells import Cell
from noveltylab.sweep.launchers import fit_launcher
from noveltylab.sweep.space import (
    distribution,
    first_value,
    identity,
    is_searched,
    key_of,
)
from noveltylab.sweep.sweeper import CellsFailed, Sweeper
from noveltylab.sweep.view import Watch, print_search

STUDY = "study.sqlite3"


class OptunaSearch(Sweeper):
    """Asks Optuna for `n_trials` choices, runs them and keeps what was chosen.

    n_trials: Trials in all, with those of earlier tries of the same search; no more than there are
        combinations of listed values.
    n_jobs: Trials at a time; a launcher runs their cells side by side.
    sampler: "tpe" or "random".
    sampler_seed: Of the sampler; the same search asks for the same trials.

    Raises (from `sweep`):
        UserError: No search as it was typed, or Optuna is not installed.
        CellsFailed: No trial was measured.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        sampler: str,
        sampler_seed: int,
        params: DictConfig | None = None,
        rows: DictConfig | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__(max_batch_size, params, rows)
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.sampler = sampler
        self.sampler_seed = sampler_seed

    def sweep(self, arguments: list[str]) -> None:
        """Runs the trials that are missing and prints what was chosen."""
        self.check_settings()
        optuna = import_optuna()
        started = time.monotonic()
        # what is searched, which runs a trial has, and what all of them share
        if self.rows:
            raise UserError("search=optuna: the rows of an experiment are no options to search")
        typed = [f"{option}={value}" for option, value in self.params.items()] + arguments
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(typed)
        space = [override for override in overrides if is_searched(override)]
        if not space:
            raise UserError(
                "search=optuna: nothing to choose; give options several values, such as "
                "'method.lr=tag(log,interval(1e-4,1e-2))' or method.k=1,3,5"
            )
        plain = [override for override in overrides if override not in space]
        fixed = [str(override.input_line) for override in plain]
        distributions = {key_of(override): distribution(override) for override in space}
        # its folder and its study
        to_json = optuna.distributions.distribution_to_json
        searched = {key: to_json(values) for key, values in distributions.items()}
        base = self._base(fixed)
        folder = self.folder(base, [*identity(plain), searched])
        self.check_trial(fixed, distributions, folder)
        search = Search(
            method=str(base.method.name),
            data=str(base.data.name),
            criterion="",
            fixed=fixed,
            space={key_of(override): override.get_value_string() for override in space},
            asked=self.n_trials,
            trials=[],
        )
        with locked(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with opened_study(optuna, folder) as study:
                self.list_all(study, distributions)
                say(f"search: {folder}, {len(ended(study))} of {self.n_trials} trials ended before")
                search = self.run_trials(optuna, study, distributions, fixed, search, folder)
        # what was chosen
        print_search(search, folder, time.monotonic() - started)
        if search.chosen is None:
            raise CellsFailed

    def check_settings(self) -> None:
        """Raises UserError for settings of the search that cannot be meant."""
        for name, value in (("n_trials", self.n_trials), ("n_jobs", self.n_jobs)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f"hydra.sweeper.{name}={value}: a number of trials, 1 or more")
        if self.sampler not in ("tpe", "random"):
            raise UserError(f"hydra.sweeper.sampler={self.sampler}: it can be tpe or random")
        if not isinstance(self.sampler_seed, int) or not 0 <= self.sampler_seed < 2**31:
            raise UserError(
                f"hydra.sweeper.sampler_seed={self.sampler_seed}: a whole number from 0"
            )

    def check_trial(
        self, fixed: Sequence[str], distributions: dict[str, Any], folder: Path
    ) -> None:
        """Raises UserError if not even the first values can run, before anything is created."""
        options = [f"{key}={first_value(values)}" for key, values in distributions.items()]
        cells = self.cells([*fixed, *options, output_of(folder, options)])
        if all(cell.state == "failed" for cell in cells):
            raise UserError(cells[0].reason)

    def folder(self, config: DictConfig, content_of_search: list[Any]) -> Path:
        """<output>/search/<method>-<data>-<hash of what is searched>."""
        content = json.dumps([content_of_search, self.sampler, self.sampler_seed])
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        title = f"{config.method.name}-{config.data.name}-{digest}"
        return Path(str(config.output)).expanduser() / "search" / title

    def _base(self, fixed: Sequence[str]) -> DictConfig:
        """The config of one of the runs, before any option is chosen."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        plain = [text for text in fixed if not parser.parse_override(text).is_sweep_override()]
        return self.hydra_context.config_loader.load_sweep_config(self.config, plain)

    def run_trials(
        self,
        optuna: Any,
        study: Any,
        distributions: dict[str, Any],
        fixed: Sequence[str],
        search: Search,
        folder: Path,
    ) -> Search:
        """Runs trials until `n_trials` have ended; search.json is written after each."""
        cells_of: dict[int, list[Cell]] = {}
        while True:
            search = record(search, study)
            write_search(folder, search)
            if len(search.trials) >= self.n_trials:
                return search
            numbers = self.next_trials(optuna, study, distributions)
            for number in numbers:
                options = trial_options(study, number)
                cells_of[number] = self.cells([*fixed, *options, output_of(folder, options)])
            self.run_cells([cell for number in numbers for cell in cells_of[number]])
            for number in numbers:
                self.tell(optuna, study, number, cells_of[number], folder)

    def list_all(self, study: Any, distributions: dict[str, Any]) -> None:
        """Where all values are listed, and few, each combination is tried once."""
        if not all(hasattr(values, "choices") for values in distributions.values()):
            return
        combinations = list(itertools.product(*(each.choices for each in distributions.values())))
        if len(combinations) <= self.n_trials:
            self.n_trials = len(combinations)
            for values in combinations:
                options = dict(zip(distributions, values, strict=True))
                study.enqueue_trial(options, skip_if_exists=True)

    def next_trials(self, optuna: Any, study: Any, distributions: dict[str, Any]) -> list[int]:
        """Numbers of the trials to run: those that a killed search left behind, then new ones."""
        running = optuna.trial.TrialState.RUNNING
        left_behind = study.get_trials(deepcopy=False, states=(running,))
        numbers = [trial.number for trial in left_behind][: self.n_jobs]
        while len(numbers) < self.n_jobs and len(ended(study)) + len(numbers) < self.n_trials:
            # seeded by the trial, so that a search that goes on asks as if it had not been stopped
            seed = self.sampler_seed + len(study.get_trials(deepcopy=False))
            samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
            study.sampler = samplers[self.sampler](seed=seed)
            numbers.append(study.ask(distributions).number)
        return numbers

    def run_cells(self, cells: list[Cell]) -> None:
        """Runs those cells that are missing, as a sweep does."""
        waiting = [cell for cell in cells if cell.state == "waiting"]
        if not waiting:
            return
        room = fit_launcher(self.launcher, self.config)
        with Watch(cells, screen.console(file=sys.stderr)):
            self.launch(waiting, room.share, self.max_batch_size or room.batch)

    def tell(self, optuna: Any, study: Any, number: int, cells: list[Cell], folder: Path) -> None:
        """Tells Optuna the mean criterion of a trial's runs, or that one of them failed."""
        measured = [measure(cell) for cell in cells]
        value = mean([measure.value for measure in measured])
        attributes = {
            "auroc": mean([measure.auroc for measure in measured]),
            "folders": [relative(cell, folder) for cell in cells],
            "criterion": measured[0].words,
        }
        study.set_user_attr(attribute(number), attributes)
        options = " ".join(trial_options(study, number))
        if value is None:
            study.tell(number, state=optuna.trial.TrialState.FAIL)
            reason = next(measure.reason for measure in measured if measure.value is None)
            say(f"trial {number}: {options}: failed: {reason}")
            return
        study.tell(number, value)
        say(f"trial {number}: {options}: {measured[0].words} {value:.6g}")


def import_optuna() -> Any:
    """Optuna, silent but for its warnings; UserError that names the extra if it is missing."""
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            f"search=optuna needs the extra [search] ({error}): pip install 'noveltylab[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def check_database(path: Path) -> None:
    """Raises UserError unless the file is one of SQLite; a link, or a pipe, is refused."""
    try:
        open_regular(path).close()
        with closing(sqlite3.connect(path)) as database:
            database.execute("select count(*) from sqlite_master").fetchone()
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"{path}: the study cannot be opened ({error}); move {path.parent} away to search anew"
        ) from None


@contextmanager
def opened_study(optuna: Any, folder: Path) -> Iterator[Any]:
    """The study in the folder, new or old; its file is closed afterwards.

    Raises:
        UserError: Its file is damaged.
    """
    path = folder / STUDY
    if "?" in str(path.resolve()):
        raise UserError(f"{path}: SQLite takes no ? in a path; choose another output=...")
    if path.exists():
        check_database(path)
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}")
        study = optuna.create_study(
            study_name="search", storage=storage, load_if_exists=True, direction="minimize"
        )
    except Exception as error:  # SQLAlchemy's and Optuna's, of many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: the study cannot be opened ({reason}); move {folder} away to search anew"
        ) from None
    try:
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def ended(study: Any) -> list[Any]:
    """The trials that ended, measured or failed, by number."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def attribute(number: int) -> str:
    """Under which name the study keeps what a trial's runs had besides its value."""
    return f"trial {number}"


def trial_options(study: Any, number: int) -> list[str]:
    """The options of a trial as they are typed: `method.lr=0.001`."""
    params = study.get_trials(deepcopy=False)[number].params
    return [f"{option}={value}" for option, value in params.items()]


def output_of(folder: Path, options: Sequence[str]) -> str:
    """Where the runs of a trial go, as an option: equal choices share their runs."""
    digest = hashlib.sha256("\n".join(sorted(options)).encode()).hexdigest()[:12]
    return f"output={quote(str(folder / digest))}"


def relative(cell: Cell, folder: Path) -> str:
    """The folder of a run within that of its search; "" if its options were refused."""
    if cell.folder is None:
        return ""
    return cell.folder.relative_to(folder).as_posix()


@dataclass(frozen=True)
class Measure:
    """What a run had: the criterion and what it is in words, its AUROC; or why it had none."""

    value: float | None
    words: str
    auroc: float | None
    reason: str


def measure(cell: Cell) -> Measure:
    """Reads the criterion of a cell that has ended."""
    if cell.state not in ("done", "complete") or cell.folder is None:
        return Measure(None, "", None, cell.reason or cell.state)
    number = criterion(read_result(cell.folder), cell.folder)
    auroc = cell.result.get("auroc")
    if number is None:
        reason = "the run held out no inliers to choose by; give protocol.val_fraction a share"
        return Measure(None, "", auroc, reason)
    value, words = number
    return Measure(value, words, auroc, "")


def record(search: Search, study: Any) -> Search:
    """The search with the trials that have ended by now."""
    trials = []
    words = ""
    for trial in ended(study):
        attributes = study.user_attrs.get(attribute(trial.number), {})
        words = words or attributes.get("criterion", "")
        trials.append(
            Trial(
                number=trial.number,
                options={key: str(value) for key, value in trial.params.items()},
                value=trial.value,
                auroc=attributes.get("auroc"),
                folders=attributes.get("folders", []),
            )
        )
    return search.model_copy(update={"trials": trials, "criterion": words})
