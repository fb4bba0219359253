"""What a number was made with: code, versions of packages, machine, command and time."""

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
PACKAGES = ("noveltylab", "torch", "torchvision", "lightning", "torchmetrics", "numpy")
#: A key whose value is nobody else's business.
_SECRET = re.compile(r"key|token|secret|passw|credential|auth", re.IGNORECASE)
#: The same inside a mapping such as {api_key: x, mode: online}, or in a URL with a password.
_SECRET_INSIDE = re.compile(
    r"""((?:key|token|secret|passw|credential|auth)\w*["']?\s*[:=]\s*|://[^/@\s:]*:)(?:"[^"]*"|'[^']*'|[^,}@\s]+)""",
    re.IGNORECASE,
)


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
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        versions[name] = package_version(name)
    moment = (started or datetime.now(UTC)).astimezone(UTC)
    return {
        "versions": versions,
        "commit": commit(),
        "hardware": {
            "cpu": cpu_name(),
            "cores": cores(),
            "threads": threads,
            "memory_gib": _memory_gib(),
            "gpu": gpu,
            "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        },
        "command": " ".join(map(masked, sys.argv)),
        "time": moment.isoformat(timespec="seconds"),
    }


def masked(argument: str) -> str:
    """An argument of a command line without the values of keys, tokens, secrets and passwords."""
    key, equals, _ = argument.partition("=")
    if equals and (_SECRET.search(key) or "env_set" in key):
        return f"{key}=***"
    return _SECRET_INSIDE.sub(r"\1***", argument)


@cache
def commit(package: Path = PACKAGE) -> str | None:
    """The git commit that ``package`` lies in, with ``-dirty`` where the checkout differs from it.

    Asked for once in a process, as its code is read once.

    Returns:
        40 hex digits, perhaps with ``-dirty``; None outside a checkout, or where the enclosing one
        does not track the package (a virtual environment inside another project).
    """
    head = _git(package, "rev-parse", "HEAD")
    if head is None or not _git(package, "ls-files", "--", "__init__.py"):
        return None
    is_clean = _git(package, "status", "--porcelain") == ""
    return head if is_clean else f"{head}-dirty"


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


def code_state(others: Iterable[str] = ()) -> dict[str, Any]:
    """Which code runs: `commit`, the hash of the package's `sources`, and the `versions` below it.

    Args:
        others: Further packages whose versions count: those of the method and the data set.
    """
    versions = {name: package_version(name) for name in ("torch", "lightning", "numpy", *others)}
    return {"commit": commit(), "sources": sources_sha256(), "versions": versions}


def _git(folder: Path, *arguments: str) -> str | None:
    # inside a git hook these variables would point at another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=20, env=environment, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()


@cache
def package_version(package: str) -> str | None:
    """The version of an installed package, read once in a process; None where it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def cpu_name() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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
