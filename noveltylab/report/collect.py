"""Finds the runs below a folder; whatever is damaged or unfinished is named with its reason, never a crash."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from noveltylab.errors import UserError
from noveltylab.report.recipe import Recipe, compare_to_recipe, limits
from noveltylab.results import flat_options, read_result, sha256_file

RUN_FOLDER = re.compile(r"seed\d+$")
MOVED_ASIDE = re.compile(r"seed\d+\.\d{8}-\d{6}$")
LOG_TAIL = 65536
#: options that say where and how a run ran, or which cell it is; the rest makes its numbers
NOT_COMPARED = {
    "inlier", "seed", "output", "force", "pictures", "deterministic", "method.name",
    "data.root", "data.download", "data.cache", "data.verify", "data.on_error", "data.inlier", "data.classes",
    "data.protocols", "trainer.accelerator", "trainer.strategy", "trainer.checkpoint_seconds",
    "trainer.score_batch_size", "trainer.winograd", "trainer.cuda_graph",
}  # fmt: skip

VERIFIED, UNVERIFIED = "verified", "not verified"
Unit = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


class Metrics(_Strict):
    auroc: Unit
    auroc_ci: Annotated[list[Unit], Field(min_length=2, max_length=2)]
    average_precision: Unit
    eer: Unit
    fpr95: Unit


class Selected(_Strict):
    rule: str
    epoch: int
    value: float | None


class Place(_Strict):
    """Which run a result.json is of."""

    method: str
    data: str
    protocol: str
    inlier: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0)]
    files: dict[str, str]


class Unmeasured(Place):
    """A run without labelled outliers, which has no number to report."""

    unmeasured: str


class Result(Place):
    """What the report reads of a result.json."""

    inlier_name: str
    primary: str
    scores: dict[str, Metrics]
    floor: dict[str, Metrics]
    selected: Selected
    seconds: dict[str, float]
    warnings: list[str]
    config: dict[str, Any]
    provenance: dict[str, Any]
    data_verified: bool | None  # None: there are no checksums to compare with
    labelled: dict[str, dict[str, Metrics]] = {}
    transductive: list[str] = []
    apart: dict[str, dict[str, Metrics]] = {}
    extra: dict[str, Any] = {}
    n: dict[str, Any] = {}
    input: dict[str, Any] = {}
    split_sha256: str | None = None
    images_sha256: str | None = None

    @model_validator(mode="after")
    def _has_its_primary(self) -> "Result":
        if self.primary not in self.scores:
            raise ValueError(f"primary is {self.primary!r}, but scores has {', '.join(self.scores) or 'none'}")
        return self


@dataclass(frozen=True)
class Run:
    """One complete run.

    Attributes:
        folder: Where it lies.
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
    def family(self) -> str:
        """The method behind the name, which a row of an ablation has of its own: the module of its class."""
        target = self.options.get("method._target_", "").split(".")
        return target[-2] if len(target) > 1 else self.result.method

    @cached_property
    def all_options(self) -> dict[str, Any]:
        """Every option by dotted key."""
        return flat_options(self.result.config)

    @property
    def fitted_once(self) -> bool:
        """Whether its method has no epochs."""
        return self.result.selected.epoch == 0

    @cached_property
    def options(self) -> dict[str, str]:
        """The options that make the numbers, as dotted keys and text."""
        options = {
            key: str(value)
            for key, value in self.all_options.items()
            if key not in NOT_COMPARED and not key.startswith(("logger.", "resources."))
        }
        options["select"] = "last" if options.get("select") == "last" else "val_loss"  # the number's own rule
        if not limits(self.all_options.get("data.limit_train"), self.trained_on):
            options["data.limit_train"] = "None"
        if self.fitted_once:
            unused = [key for key in options if key.startswith("trainer.") and key != "trainer.precision"]
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
            self.family, result.data, result.protocol, self.source, self.all_options, self.trained_on, self.fitted_once
        )

    @property
    def shortened(self) -> tuple[str, ...]:
        """Why it is no whole run, one reason each."""
        return self.recipe.fewer_images + self.recipe.shorter

    @property
    def images(self) -> str | None:
        """What tells its images from others of the same name: their checksum, or the folder of one's own images."""
        if self.result.images_sha256 is not None:
            return self.result.images_sha256
        own = self.all_options.get("data.classes") == "folders"
        return str(self.all_options.get("data.root")) if own else None

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
            "data": VERIFIED if self.result.data_verified else UNVERIFIED,
        }


def _mapping(tree: dict[str, Any], key: str) -> dict[str, Any]:
    value = tree.get(key)
    return value if isinstance(value, dict) else {}


@dataclass
class Collected:
    """All that lies below a folder; the reasons are one line each."""

    runs: list[Run] = field(default_factory=list)
    unmeasured: list[tuple[Path, str]] = field(default_factory=list)
    damaged: list[tuple[Path, str]] = field(default_factory=list)
    unfinished: list[tuple[Path, str]] = field(default_factory=list)


def collect(folder: Path, check: bool = False) -> Collected:
    """Reads every run below a folder; nothing of it is executed.

    Args:
        folder: Of one or several outputs, at any depth.
        check: Compare the files of each run with the checksums that its result holds.

    Raises:
        UserError: There is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Name the output folder of runs, as in output=...")
    found = Collected()
    top = folder.resolve()
    for path, complete in _run_folders(top):
        if not complete:
            found.unfinished.append((path, _why_unfinished(path)))
            continue
        try:
            read = _read(path, top, check)
            if isinstance(read, Run):
                found.runs.append(read)
            else:
                found.unmeasured.append((path, " ".join(read.unmeasured.split())))
        except UserError as error:
            found.damaged.append((path, " ".join(str(error).split())))
    if not (found.runs or found.unmeasured or found.damaged or found.unfinished):
        raise UserError(f"{folder}: holds no runs. Run `python -m noveltylab output={folder}` or name another folder.")
    return found


def _run_folders(top: Path) -> Iterator[tuple[Path, bool]]:
    """Each run folder, and whether it is complete; folders that force=true moved aside are passed over."""
    for name, folders, files in os.walk(top):
        folders[:] = sorted(child for child in folders if not child.startswith(".") and not MOVED_ASIDE.match(child))
        path = Path(name)
        complete = "result.json" in files
        if complete or ("config.yaml" in files and RUN_FOLDER.match(path.name)):
            folders.clear()
            yield path, complete


def _read(folder: Path, top: Path, check: bool) -> Run | Unmeasured:
    try:
        content = read_result(folder)
        result = (Unmeasured if "unmeasured" in content else Result).model_validate(content)
    except ValidationError as error:
        raise UserError("; ".join(_explain(dict(item)) for item in error.errors()[:3])) from None
    except RecursionError:
        raise UserError("result.json: nested too deeply") from None
    layout = (result.protocol, result.method, result.data, f"inlier{result.inlier}", f"seed{result.seed}")
    if folder.parts[-5:] != layout:
        raise UserError(f"it says {'/'.join(layout)}, but lies elsewhere: moved, renamed or edited")
    if check:
        _check_files(folder, result.files)
    if isinstance(result, Unmeasured):
        return result
    assert isinstance(result, Result)
    output = folder.parents[4]
    inside = output.is_relative_to(top) and output != top
    return Run(folder, output.relative_to(top).as_posix() if inside else "", result)


def _explain(item: dict[str, Any]) -> str:
    where = ".".join(map(str, item["loc"]))
    return f"result.json: {where}{': ' if where else ''}{item['msg'].removeprefix('Value error, ').lower()}"


def _check_files(folder: Path, files: dict[str, str]) -> None:
    for name, digest in files.items():
        if Path(name).name != name:
            raise UserError(f"result.json: files names {name!r}, which is no file of the run")
        try:
            same = sha256_file(folder / name) == digest
        except OSError as error:
            raise UserError(f"{name}: cannot be read ({error.strerror})") from None
        if not same:
            raise UserError(f"{name}: is not the file that result.json records (its SHA-256 differs)")


def _why_unfinished(folder: Path) -> str:
    """The error that ended the run, else how far its log got."""
    try:
        with open(folder / "run.log", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "not begun, running or killed; it has no run.log"
    lines = text.rpartition(" run folder ")[2].splitlines()  # of the last attempt
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    failed = any("Traceback (most recent call last)" in line for line in lines)
    return f"{'failed' if failed else 'running or killed'}: {last[:500]}"
