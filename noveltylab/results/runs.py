"""Which run folders lie below a folder, for whoever named one that is none."""

import os
from collections.abc import Iterator
from pathlib import Path

from noveltylab.command.screen import say
from noveltylab.errors import UserError

#: run folders that an error lists, and folders that are looked into for them
LISTED, VISITED = 8, 2000


def runs_below(folder: Path) -> Iterator[Path]:
    """The folders at and below `folder` that hold a result.json, by name.

    At most VISITED folders are looked into.
    """
    walk = os.walk(folder, onerror=_tell)
    for (where, folders, files), _ in zip(walk, range(VISITED), strict=False):
        if "result.json" in files:
            folders.clear()
            yield Path(where)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _tell(error: OSError) -> None:
    say(f"{error.filename}: cannot be looked into ({error.strerror})")


def require_run(folder: Path) -> None:
    """Raises UserError where `folder` holds no finished run.

    It says what is there, and which runs lie below it or beside it.
    """
    if (folder / "result.json").is_file():
        return
    if (folder / "config.yaml").is_file():
        raise UserError(
            f"run={folder}: this run is not complete; the command that began it goes on with it"
        )
    if folder.is_dir():
        missing, nearest = "no run is there (it holds no result.json)", folder
    elif os.path.lexists(folder):
        missing, nearest = "is a file, and a run is a folder", folder.parent
    else:
        missing = "no such folder, so no run is there"
        nearest = next(parent for parent in folder.absolute().parents if parent.is_dir())
        nearest = _outputs(nearest)
        if nearest == nearest.parent:  # nobody's runs lie all over a machine
            raise UserError(f"run={folder}: {missing}; nor any folder on the way to it")
    raise UserError(f"run={folder}: {missing}; {_listed(nearest)}")


def _outputs(folder: Path) -> Path:
    """The default output where it lies in the folder, which may be somebody's whole home."""
    default = folder / "outputs"
    return default if default.is_dir() else folder


def _listed(folder: Path) -> str:
    runs = list(runs_below(folder))
    name = _short(folder)
    if not runs:
        return f"no run lies below {name} either"
    first = ", ".join(_short(run) for run in runs[:LISTED])
    remainder = f" and {len(runs) - LISTED} more" if len(runs) > LISTED else ""
    return f"runs below {name}: {first}{remainder}"


def _short(path: Path) -> str:
    """The path as it may be typed here."""
    return os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else str(path)
