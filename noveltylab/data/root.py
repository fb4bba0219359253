"""The data folder: where it is, and what to say when files are not in it."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from noveltylab.errors import UserError


def resolve_root(root: str | Path | None) -> Path:
    """The data folder: option data.root, else environment NOVELTYLAB_DATA, else ``data`` in the
    working directory.
    """
    chosen = Path(root or os.environ.get("NOVELTYLAB_DATA") or "data")
    try:
        return chosen.expanduser()
    except RuntimeError:
        raise UserError(f"data.root={chosen}: there is no such home folder") from None


def missing(what: str, folder: Path, remedy: str) -> UserError:
    """The one error for absent files: what was looked for, all places looked at, what to do."""
    environment = os.environ.get("NOVELTYLAB_DATA")
    return UserError(
        f"{what} not found in {folder}{'' if folder.is_dir() else ' (no such folder)'}. The data folder is the option "
        f"data.root, else the environment variable NOVELTYLAB_DATA ({environment or 'not set'}), else "
        f"{Path('data').absolute()}. {remedy}"
    )


def fetch(download: Callable[[], object], what: str, remedy: str, folder: Path) -> None:
    """Run a library's downloader; whatever goes wrong becomes one UserError that says how to do it
    by hand.

    folder: where the files go. It and its parents are removed again if they were made for nothing.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        download()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"Downloading {what} failed ({reason}). {remedy}") from error
    finally:
        for path in made:
            with suppress(OSError):  # it holds something, or is gone
                path.rmdir()
