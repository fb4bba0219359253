"""Finds the runs below a folder.

Whatever is damaged or unfinished is named with its reason, never a crash.
"""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from noveltylab.errors import INTERRUPTED, UserError
from noveltylab.options import flat_options, kind_of_option
from noveltylab.report.check import check_run
from noveltylab.report.recipe import Recipe, compare_to_recipe, limits
from noveltylab.results.archive import SUFFIX, archive_of, is_archive, read_archive, without_suffix
from noveltylab.results.files import read_tail
from noveltylab.results.older import place_of_today
from noveltylab.results.phases import lacking, seen_by
from noveltylab.results.record import load_result, standing
from noveltylab.results.schema import Metrics, Result, Unmeasured, folder_name
from noveltylab.results.search import FILE as SEARCH_FILE
from noveltylab.results.search import Search, read_search
from noveltylab.scoring.auroc import interval_of_counts, widest

RUN_FOLDER = re.compile(r"seed\d+$")
MOVED_ASIDE = re.compile(r"seed\d+\.\d{8}-\d{6}(-\d+)?$")
LOG_TAIL = 65536

UNVERIFIED = "not verified"
#: data_verified in words; None where there are no checksums to compare with.
STATES = {True: "verified", False: UNVERIFIED, None: "cannot be verified"}


@dataclass(frozen=True)
class Run:
    """One complete run.

    Attributes:
        folder: Where it lies: a folder, or a path into an archive.
        source: Its output folder below the report's folder, "" for that folder itself.
        result: Its numbers.
    """

    folder: Path
    source: str
    result: Result

    @property
    def cell(self) -> tuple[int, int]:
        return self.result.inlier, self.result.seed

    @property
    def place(self) -> Path:
        """What can be opened of it: its folder, or the archive that holds it."""
        return archive_of(self.folder) or self.folder

    def interval(self, metrics: Metrics) -> tuple[float, float]:
        """95 percent interval of one of its AUROCs over the test images.

        An older result has a bootstrap's percentiles, which have no width where all images are in
        order: it is widened by what the numbers of test images say.
        """
        low, high = metrics.auroc_ci
        if self.result.auroc_ci_method is not None:
            return low, high
        inliers, outliers = (
            max(1, self.result.n[f"test_{kind}"]) for kind in ("inliers", "outliers")
        )
        return widest((low, high), interval_of_counts(metrics.auroc, inliers, outliers))

    @property
    def family(self) -> str:
        """The method behind the name: the module of its class.

        A row of an ablation has a name of its own.
        """
        target = self.options.get("method._target_", "")
        module = target.rpartition(".")[0].rpartition(".")[2]
        return module or self.result.method

    @cached_property
    def all_options(self) -> dict[str, Any]:
        """Every option by dotted key."""
        return flat_options(self.result.config)

    @property
    def fitted_once(self) -> bool:
        """Whether its method has no epochs."""
        return self.result.selected.epoch == 0

    @cached_property
    def warnings(self) -> list[str]:
        """What it warns of; an older one calls scores inverted whose interval reaches 0.5."""
        primary = self.result.primary
        return standing(self.result.warnings, primary, self.interval(self.result.scores[primary]))

    @cached_property
    def lacks(self) -> str:
        """What its scored weights are if they have not seen the whole method, else "".

        Such as `without mining`.
        """
        return lacking(seen_by(self.result.selected.model_dump(), self.result.config))

    @cached_property
    def options(self) -> dict[str, str]:
        """The options that make the numbers, as dotted keys and text."""
        options = {
            key: str(value)
            for key, value in self.all_options.items()
            if kind_of_option(key) == "numbers"
        }
        # the number's own rule
        options["select"] = "last" if options.get("select") == "last" else "val_loss"
        if not limits(self.all_options.get("data.limit_train"), self.trained_on):
            options["data.limit_train"] = "None"
        if self.fitted_once:
            unused = [
                key for key in options if key.startswith("trainer.") and key != "trainer.precision"
            ]
            for key in ("select", *unused):
                del options[key]
        return options

    @property
    def trained_on(self) -> int | None:
        """How many images it trained on."""
        count = self.result.n.get("train")
        return count if isinstance(count, int) else None

    @cached_property
    def recipe(self) -> Recipe:
        """How it differs from a whole run."""
        result = self.result
        return compare_to_recipe(
            self.family,
            result.data,
            result.protocol,
            self.source,
            self.all_options,
            self.trained_on,
            self.fitted_once,
        )

    @property
    def shortened(self) -> tuple[str, ...]:
        """Why it is no whole run, one reason each."""
        return self.recipe.fewer_images + self.recipe.shorter

    @property
    def images(self) -> str | None:
        """What tells its images from others of the same name.

        This is their checksum, or the folder of one's own images.
        """
        if self.result.images_sha256 is not None:
            return self.result.images_sha256
        own_images = self.all_options.get("data.classes") == "folders"
        return str(self.all_options.get("data.root")) if own_images else None

    @cached_property
    def made_with(self) -> dict[str, str]:
        """What else its numbers were made with: fact -> value."""
        provenance = self.result.provenance
        versions, hardware = (_mapping(provenance, key) for key in ("versions", "hardware"))
        commit, dirty, _ = str(provenance.get("commit")).partition("-dirty")
        return {
            "commit": commit[:10] + dirty,
            "torch": str(versions.get("torch")),
            "machine": str(hardware.get("gpu") or hardware.get("cpu")),
            "threads": str(hardware.get("threads")),
            "data": STATES[self.result.data_verified],
        }


def _mapping(tree: dict[str, Any], key: str) -> dict[str, Any]:
    value = tree.get(key)
    return value if isinstance(value, dict) else {}


@dataclass
class Collected:
    """All that lies below a folder; the reasons are one line each.

    `searches`: by their folders, relative to it.
    `checked`: how many runs had every number computed again; `unchecked`: those that have nothing
    to compute it from.
    """

    runs: list[Run] = field(default_factory=list)
    checked: int = 0
    unchecked: list[tuple[Path, str]] = field(default_factory=list)
    unmeasured: list[tuple[Path, str]] = field(default_factory=list)
    damaged: list[tuple[Path, str]] = field(default_factory=list)
    unfinished: list[tuple[Path, str]] = field(default_factory=list)
    searches: list[tuple[Path, Search]] = field(default_factory=list)
    trials: list[tuple[Path, str]] = field(default_factory=list)


def collect(folder: Path, check: bool = False) -> Collected:
    """Reads every run below a folder; nothing of it is executed.

    Args:
        folder: Of one or several outputs, at any depth, or an archive of kept results.
        check: Compare the files of each run with the checksums that its result holds, and compute
            its numbers again.

    Raises:
        UserError: There is no such folder, or no run in it.
    """
    top = folder.resolve()
    if not (top.is_dir() or archive_of(top)):
        raise UserError(
            f"{folder}: no such folder. Name the output folder of runs, as in output=..."
        )
    collected = Collected()
    faults: list[tuple[Path, str]] = []
    searches: list[Path] = []
    places: set[Path] = set()
    for path, complete in _places(top, faults, searches):
        if not complete:
            collected.unfinished.append((path, why_unfinished(path)))
            continue
        try:
            place = _place_of_today(path)
            if place in places:
                raise UserError(
                    "another folder or archive here holds this run as well; move one of them away"
                )
            places.add(place)
            content, run = _read(path, top)
            if check:
                if reason := check_run(path, content):
                    collected.unchecked.append((path, reason))
                else:
                    collected.checked += 1
            if trial := content["config"].get("debug"):
                collected.trials.append((path, f"debug={trial}, not a result"))
            elif isinstance(run, Run):
                collected.runs.append(run)
            else:
                collected.unmeasured.append((path, " ".join(run.unmeasured.split())))
        except UserError as error:
            collected.damaged.append((path, " ".join(str(error).split())))
    collected.searches = list(_read_searches(searches, top, faults))
    collected.damaged += faults
    rest = collected.unmeasured, collected.damaged, collected.unfinished, collected.trials
    if not (collected.runs or any(rest)):
        raise UserError(
            f"{folder}: holds no runs. Run `python -m noveltylab output={folder}` or name another folder."
        )
    return collected


def _place_of_today(path: Path) -> Path:
    """A run's place as a folder, in the names of today."""
    parts = without_suffix(path).parts
    return Path(*parts[:-5], *place_of_today(parts[-5:]))


def _places(
    top: Path, faults: list[tuple[Path, str]], searches: list[Path]
) -> list[tuple[Path, bool]]:
    """Each run folder and row of an archive, in the order of paths, and whether it is complete.

    What cannot be looked into is added to `faults`, with the reason; folders of searches are added
    to `searches`.
    """
    archive = archive_of(top)
    if archive is not None:
        rows = [path for path in _rows(archive, faults) if path.is_relative_to(top)]
        places = [(path, True) for path in rows]
    else:
        places = list(_run_folders(top, faults, searches))
    # a folder stands before the archive of the same name
    return sorted(places, key=lambda place: (without_suffix(place[0]).parts, place[0].parts))


def _run_folders(
    top: Path, faults: list[tuple[Path, str]], searches: list[Path]
) -> Iterator[tuple[Path, bool]]:
    """Each run folder and row of an archive; folders that force=true moved aside are passed over."""
    unreadable: list[OSError] = []
    for name, folders, files in os.walk(top, onerror=unreadable.append):
        folders[:] = sorted(
            child for child in folders if not child.startswith(".") and not MOVED_ASIDE.match(child)
        )
        path = Path(name)
        names = {*files, *folders}  # a folder in the place of a file is damage, which is named
        complete = "result.json" in names
        if is_run_folder(path, names):
            folders.clear()
            yield path, complete
            continue
        if SEARCH_FILE in files:
            searches.append(path)
        for file in sorted(files):
            if file.endswith(SUFFIX) and not file.startswith("."):
                for row in _rows(path / file, faults):
                    yield row, True
    faults += [
        (Path(error.filename), f"cannot be looked into ({error.strerror})") for error in unreadable
    ]


def is_run_folder(folder: Path, names: Collection[str]) -> bool:
    """Whether a folder with entries of these names is a run's, complete or not."""
    return "result.json" in names or (
        "config.yaml" in names and bool(RUN_FOLDER.match(folder.name))
    )


def _read_searches(
    folders: Sequence[Path], top: Path, faults: list[tuple[Path, str]]
) -> Iterator[tuple[Path, Search]]:
    """The searches of these folders; their runs are found like any others."""
    for folder in folders:
        try:
            yield folder.relative_to(top), read_search(folder / SEARCH_FILE)
        except UserError as error:
            faults.append((folder, " ".join(str(error).split())))


def _rows(archive: Path, faults: list[tuple[Path, str]]) -> Iterator[Path]:
    """The rows of an archive as paths into it; none of a file that only ends as an archive does."""
    try:
        if archive.is_symlink() or not is_archive(archive):
            return
        index = read_archive(archive)
    except OSError as error:
        faults.append((archive, f"cannot be read ({error.strerror})"))
        return
    faults += [(archive, fault) for fault in index.faults]
    for folder in index.lines:
        yield archive / folder


def _read(folder: Path, top: Path) -> tuple[dict[str, Any], Run | Unmeasured]:
    content, result = load_result(folder)
    layout = (
        result.protocol,
        result.method,
        result.data,
        f"inlier{result.inlier}",
        f"seed{result.seed}",
    )
    on_windows = tuple(folder_name(name, windows=True) for name in layout)
    if place_of_today(folder.parts[-5:]) not in (layout, on_windows):
        raise UserError(f"it says {'/'.join(layout)}, but lies elsewhere: moved, renamed or edited")
    if isinstance(result, Unmeasured):
        return content, result
    output = folder.parents[4]
    source = ""
    if output.is_relative_to(top) and output != top:
        source = output.relative_to(top).as_posix()
        if archive_of(output):
            source = source.removesuffix(SUFFIX)
    return content, Run(folder, source, result)


def why_unfinished(folder: Path) -> str:
    """The error that ended the run, that it was interrupted, else how far its log got."""
    try:
        text = read_tail(folder / "run.log", LOG_TAIL, within=folder).decode("utf-8", "replace")
    except OSError:
        return "not begun, running or killed; it has no run.log"
    lines = text.rpartition(" run folder ")[2].splitlines()  # of the last attempt
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if last.endswith(f" {INTERRUPTED}"):
        return last
    failed = any("Traceback (most recent call last)" in line for line in lines)
    return f"{'failed' if failed else 'running or killed'}: {last[:500]}"
