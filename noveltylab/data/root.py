"""The data folder: where it is, and what to say when files are not in it."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from noveltylab.errors import UserError


def resolve_root(root: str | Path | None) -> Path:
    """The data folder: data.root, else NOVELTYLAB_DATA, else `data` in the working directory."""
    path = Path(root or os.environ.get("NOVELTYLAB_DATA") or "data")
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"data.root={path}: there is no such home folder") from None


def missing(files: str, folder: Path, remedy: str) -> UserError:
    """The one error for absent files: what was looked for, all places looked at, what to do."""
    environment = os.environ.get("NOVELTYLAB_DATA") or "not set"
    place = str(folder) if folder.is_dir() else f"{folder} (no such folder)"
    return UserError(
        f"{files} not found in {place}. The data folder is the option data.root, else the "
        f"environment variable NOVELTYLAB_DATA ({environment}), else {Path('data').absolute()}. "
        f"{remedy}"
    )


def fetch(download: Callable[[], object], title: str, remedy: str, folder: Path) -> None:
    """Run a library's downloader.

    Args:
        download: The downloader.
        title: The data set, for the error.
        remedy: What to do by hand, for the error.
        folder: Where the files go. It and its parents are removed again if they were made for
            nothing.

    Raises:
        UserError: whatever goes wrong.
    """
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        download()
    except Exception as error:  # downloaders fail in many ways, and each means the same
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"Downloading {title} failed ({reason}). {remedy}") from error
    finally:
        for path in new_folders:
            with suppress(OSError):  # it holds something, or is gone
                path.rmdir()
