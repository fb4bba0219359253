"""A run's result.json: written atomically and last, so that its presence means the run is complete."""

import hashlib
import json
import os
import pkgutil
import platform
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

from noveltylab.errors import UserError
from noveltylab.results.files import open_regular, read_json, read_yaml
from noveltylab.results.files import (
    sha256_file as sha256_file,
)  # beside what else is asked of a run folder
from noveltylab.results.older import in_options_of_today
from noveltylab.results.phases import selects_nothing_else
from noveltylab.results.schema import Result, Unmeasured, check_config, check_result

PACKAGE = Path(__file__).resolve().parents[1]
#: Ends the name of a floor of the images as the method sees them, which differ from raw pixels.
SEEN = "_seen"
PACKAGES = ("noveltylab", "torch", "torchvision", "lightning", "torchmetrics", "numpy")
#: Options that came later, and the value under which a run is what it was before there was such an
#: option.
LATER: dict[str, Any] = {
    "trainer.cuda_graph": "off",
    "trainer.winograd": False,
    "trainer.lr_decay_from": 1.0,
    "trainer.average_epochs": 0.0,
    "trainer.select_whole": False,
    "trainer.patience": 0,
    "trainer.batch_norm": "running",
    "data.bits": None,
    "data.label": None,
    "data.source": None,
    "data.target": None,
    "protocol.folds": 0,
    "diagnose": "none",
    "recipe": "default",
}
#: The same for options of one method, by its `_target_`.
LATER_OF_METHOD: dict[str, dict[str, Any]] = {
    "noveltylab.methods.ca_entropy.CAEntropy": {
        "method.latent_bound": "none",
        "method.temperature": 1.0,
        "method.feature_norm": "mean_square",
    },
    "noveltylab.methods.ocgan.OCGAN": {
        "method.double_sigmoid": False,
        "method.mining_loss": "saturated",
    },
    "noveltylab.methods.deep_svdd.DeepSVDD": {
        "method.batch_norm": "fixed",
        "method.first_filters": "random",
        "method.glorot_gain": "all",
        "method.decoder": "mirror",
    },
    "noveltylab.methods.oled.OLED": {
        "method.norm": "encoder",
        "method.mm_turn": None,
        "method.validation": "rec_mask",
    },
    "noveltylab.methods.nda.NDA": {
        "method.encoder": "dim",
        "method.crop_min": 0.08,
        "method.crop_max": 1.0,
        "method.mirror": 0.5,
        "method.turn": 0.5,
        "method.jitter": 0.4,
        "method.grey": 0.2,
    },
}
#: A key whose value is nobody else's business.
_SECRET = re.compile(r"key|token|secret|passw|credential|auth", re.IGNORECASE)
#: The same inside a mapping such as {api_key: x, mode: online}, or in a URL with a password.
_SECRET_INSIDE = re.compile(
    r"""((?:key|token|secret|passw|credential|auth)\w*["']?\s*[:=]\s*|://[^/@\s:]*:)(?:"[^"]*"|'[^']*'|[^,}@\s]+)""",
    re.IGNORECASE,
)


#: Options that change no number: where, how fast and how visibly a run is made.
FREE = {
    "recipe",  # its numbers are recorded one by one
    "output",
    "force",
    "pictures",
    "diagnose",
    "data.download",
    "data.cache",
    "data.inlier",
    "trainer.accelerator",
    "trainer.checkpoint_seconds",
    "trainer.score_batch_size",
    "trainer.winograd",
    "resources.num_cpus",
    "resources.num_gpus",
}
#: Groups of which no option changes a number.
FREE_GROUPS = ("logger.",)
#: Options that a run keeps to and that the report does not tell rows apart by: they follow from
#: others, choose kernels, or are said by the result itself (verified, skipped).
NOTED = {
    "deterministic",
    "data.verify",
    "data.on_error",
    "data.label",
    "data.classes",
    "data.protocols",
    "trainer.strategy",
    "trainer.cuda_graph",
}
#: Options that say which cell of a table a run is. Each has a folder of its own.
CELL = {"inlier", "seed", "method.name"}


def kind_of_option(key: str, own_images: bool = False) -> str:
    """What an option of a recorded config is: "free", "noted", "cell", or "numbers" if it makes the
    numbers.

    All but free ones have to be the same for a run to go on; the report compares "numbers" alone.

    Args:
        key: Dotted, such as "trainer.max_epochs".
        own_images: The run is on a folder of somebody's own images. Another such folder is other
            data; of a published data set the place on the disk says nothing.
    """
    if key in FREE or key.startswith(FREE_GROUPS) or (key == "data.root" and not own_images):
        return "free"
    if key in NOTED:
        return "noted"
    return "cell" if key in CELL else "numbers"


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one of dotted keys: {"data": {"size": 32}} -> {"data.size": 32}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return flat


def flat_options(config: Any) -> dict[str, Any]:
    """A recorded config by dotted key, with the old values of options that it is too old to have.

    trainer.select_whole is left out where it changes nothing: so runs from before it are like those
    after it.
    """
    flat = flatten(config)
    options = LATER | LATER_OF_METHOD.get(str(flat.get("method._target_")), {}) | flat
    if selects_nothing_else(options):
        del options["trainer.select_whole"]
    return options


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write a whole file or nothing: after any failure the old file stands and no temporary file is
    left.

    Args:
        path: The file; its folder is made if missing.
        data: The contents; text is written as UTF-8.
    """
    with open_atomic(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def open_atomic(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write piece by piece, which appears whole under `path` when the block ends, or not
    at all.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            _mark_as_written(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _mark_as_written(file: BinaryIO) -> None:
    """Holds a lock on a temporary file for as long as somebody writes it (see `remove_leftovers`)."""
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of `open_atomic` in a folder that a killed process has left."""
    if fcntl is None:
        return
    for path in folder.glob(".*.tmp"):
        with suppress(OSError), open_regular(path) as file:
            fcntl.flock(
                file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # BlockingIOError: somebody is writing it
            path.unlink()


def write_result(folder: str | Path, result: dict[str, Any]) -> None:
    """Write ``folder/result.json`` in the order given.

    Raises:
        ValueError: A value is NaN or infinite; nothing is written.
        TypeError: A value is no JSON type, such as an array; nothing is written.
    """
    text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False)
    write_atomic(Path(folder) / "result.json", text + "\n")


def read_result(folder: str | Path) -> dict[str, Any]:
    """The contents of ``folder/result.json``, with every field that a reader uses (see schema.py).

    Raises:
        UserError: The file is missing or damaged; names the field.
    """
    return load_result(folder)[0]


def load_result(folder: str | Path) -> tuple[dict[str, Any], Result | Unmeasured]:
    """As `read_result`, and the same as checked values."""
    path = Path(folder) / "result.json"
    try:
        content = read_json(path, within=path.parent)
        result = check_result(content)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}, so this run is not complete. Run it again."
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({_line(error)}). Move it away and run again.") from None
    config = in_options_of_today(result.config, result.input.get("shape"))
    return {**content, "config": config}, result.model_copy(update={"config": config})


def read_config(folder: str | Path) -> dict[str, Any]:
    """The contents of ``folder/config.yaml``.

    Raises:
        UserError: The file is missing or damaged; names the field.
    """
    path = Path(folder) / "config.yaml"
    try:
        content = read_yaml(path, within=path.parent)
        check_config(content)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: damaged ({_line(error)}); run again with force=true (the folder is kept beside it)"
        ) from None
    return in_options_of_today(content)


def _line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:400]


def recorded_config(result: dict[str, Any]) -> dict[str, Any]:
    """The configuration in a result that somebody else may have written, as plain values.

    Raises:
        UserError: It is missing, names code that is no method of noveltylab, or holds an
        interpolation.
    """
    config = result.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("method"), dict):
        raise UserError(
            "the run's result.json holds no configuration; run it again with force=true"
        )
    target = str(config["method"].get("_target_"))
    if not is_own_method(target):
        raise UserError(
            f"the run's configuration asks for {target}, which is no method of noveltylab; it is not loaded"
        )
    if "${" in json.dumps(config):
        raise UserError(
            "the run's configuration holds an interpolation (${...}), which a recorded one never does"
        )
    return dict(config)


def is_own_method(target: str) -> bool:
    """Whether a dotted name is that of a class right in one of the modules of noveltylab.methods."""
    modules = {module.name for module in pkgutil.iter_modules([str(PACKAGE / "methods")])} - {
        "base"
    }
    match = re.fullmatch(r"noveltylab\.methods\.(\w+)\.([A-Za-z]\w*)", target, re.ASCII)
    return match is not None and match[1] in modules


def provenance(
    started: datetime | None = None, gpu: str | None = None, threads: int | None = None
) -> dict[str, Any]:
    """What a number was made with.

    Args:
        started: When the run began; now if not given.
        gpu: Name of the accelerator, from the caller, since this module does not import torch.
        threads: How many torch computes with on a CPU, likewise; another number rounds sums
            elsewhere.

    Returns:
        ``versions`` (package -> version, None where not installed), ``commit``, ``hardware``
        (``cpu``, ``cores`` usable, ``threads``, ``memory_gib``, ``gpu``, ``visible_gpus`` as the
        launcher set it), ``command`` and ``time`` (ISO 8601, UTC, seconds).
    """
    return {
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
        "commit": commit(),
        "hardware": {
            "cpu": _cpu(),
            "cores": cores(),
            "threads": threads,
            "memory_gib": _memory_gib(),
            "gpu": gpu,
            "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        },
        "command": " ".join(map(masked, sys.argv)),
        "time": (started or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds"),
    }


def masked(argument: str) -> str:
    """An argument of a command line without what nobody else may read: values of keys, tokens,
    secrets and passwords.
    """
    key, equals, _ = argument.partition("=")
    if equals and (_SECRET.search(key) or "env_set" in key):
        return f"{key}=***"
    return _SECRET_INSIDE.sub(r"\1***", argument)


def commit(package: Path = PACKAGE) -> str | None:
    """The git commit that ``package`` lies in, with ``-dirty`` where the checkout differs from it.

    Returns:
        40 hex digits, perhaps with ``-dirty``; None outside a checkout, or where the enclosing one
        does not track the package (a virtual environment inside another project).
    """
    head = _git(package, "rev-parse", "HEAD")
    if head is None or not _git(package, "ls-files", "--", "__init__.py"):
        return None
    return head if _git(package, "status", "--porcelain") == "" else f"{head}-dirty"


@cache
def sources_sha256(package: Path = PACKAGE) -> str:
    """One hash of all Python files of the package: tells two uncommitted states apart.

    Read once in a process, as the code is.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        contents = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(contents)}\n".encode())
        digest.update(contents)
    return digest.hexdigest()


def code_state() -> dict[str, Any]:
    """Which code runs: `commit`, the hash of the package's `sources`, and the `versions` below it."""
    versions = {name: _version(name) for name in ("torch", "lightning", "numpy")}
    return {"commit": commit(), "sources": sources_sha256(), "versions": versions}


def _git(folder: Path, *arguments: str) -> str | None:
    # inside a git hook these variables would point at another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, env=environment, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):  # counts what a container or taskset leaves us
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
