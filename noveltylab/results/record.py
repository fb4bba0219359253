"""A run's result.json: written atomically and last, so that its presence means the run is complete.

Also which folders below a folder hold one, for whoever named a folder that holds none.
"""

import errno
import json
import os
import pkgutil
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from noveltylab.command.screen import say
from noveltylab.errors import UserError
from noveltylab.installed import offer_of_target
from noveltylab.results.archive import archive_of, find_row
from noveltylab.results.files import read_json, read_yaml, write_atomic
from noveltylab.results.older import DATA_SETS, PROTOCOLS, in_options_of_today
from noveltylab.results.schema import Result, Unmeasured, check_config, check_result

PACKAGE = Path(__file__).resolve().parents[1]
#: Ends the name of a floor of the images as the method sees them, which differ from raw pixels.
SEEN = "_seen"
#: What the warning of an inverted score begins with, behind the score's name.
INVERTED = ": inverted, "
#: Run folders that an error lists, and folders that are looked into for them.
MOST_LISTED, MOST_VISITED = 8, 2000


def write_result(folder: str | Path, result: dict[str, Any]) -> None:
    """Writes `folder/result.json` in the order given.

    Raises:
        ValueError: A value is NaN or infinite; nothing is written.
        TypeError: A value is no JSON type, such as an array; nothing is written.
    """
    text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False)
    write_atomic(Path(folder) / "result.json", text + "\n")


def read_result(folder: str | Path) -> dict[str, Any]:
    """The contents of `folder/result.json`, with every field that a reader uses (see schema.py).

    The folder may be the row of an archive (see archive.py).

    Raises:
        UserError: The file is missing or damaged; names the field.
    """
    return load_result(folder)[0]


def load_result(folder: str | Path) -> tuple[dict[str, Any], Result | Unmeasured]:
    """As `read_result`, and the same as checked values."""
    path = Path(folder) / "result.json"
    try:
        content = _content(path)
        result = check_result(content)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}, so this run is not complete. Run it again."
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({_line(error)}). Move it away and run again.") from None
    today = {
        "protocol": PROTOCOLS.get(result.protocol, result.protocol),
        "data": DATA_SETS.get(result.data, result.data),
        "config": in_options_of_today(result.config, result.input.get("shape")),
    }
    return {**content, **today}, result.model_copy(update=today)


def _content(path: Path) -> Any:
    """What a result.json holds, of a run's folder or of the row of an archive."""
    if archive_of(path) is None:
        return read_json(path, within=path.parent)
    row = find_row(path.parent)
    if row is None:
        raise FileNotFoundError(errno.ENOENT, "no such row in the archive", str(path))
    return row.result


def read_config(folder: str | Path) -> dict[str, Any]:
    """The contents of `folder/config.yaml`.

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
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
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
    if not is_own_method(target) and offer_of_target(target) is None:
        raise UserError(
            f"the run's configuration asks for {target}, which is no method of noveltylab and is offered by no "
            "installed package (entry points noveltylab.methods); it is not loaded"
        )
    if "${" in json.dumps(config):
        raise UserError(
            "the run's configuration holds an interpolation (${...}), which a recorded one never does"
        )
    return dict(config)


def is_own_method(target: str) -> bool:
    """Whether a dotted name is that of a class right in one of the modules of noveltylab.methods."""
    match = re.fullmatch(r"noveltylab\.methods\.(\w+)\.([A-Za-z]\w*)", target, re.ASCII)
    if match is None or match[1] == "base":
        return False
    return match[1] in {module.name for module in pkgutil.iter_modules([str(PACKAGE / "methods")])}


# A score that points the wrong way: its AUROC's interval lies wholly below 0.5.


def inverted(name: str, auroc: float, interval: Sequence[float]) -> str:
    """The warning of an inverted score, "" where the interval reaches 0.5.

    Args:
        name: Of the score.
        auroc: Over the test images.
        interval: Of the AUROC, low and high.
    """
    if interval[1] >= 0.5:
        return ""
    return (
        f"{name}{INVERTED}an AUROC of {auroc:.3f} means that inliers get higher scores "
        "than outliers."
    )


def standing(warnings: Sequence[str], name: str, interval: Sequence[float]) -> list[str]:
    """The warnings of a result without that of an inverted score where its interval reaches 0.5.

    Older results have it for any AUROC below 0.5.

    Args:
        warnings: As the result has them.
        name: Of its primary score.
        interval: Of that score's AUROC.
    """
    if interval[1] < 0.5:
        return list(warnings)
    return [text for text in warnings if not text.startswith(f"{name}{INVERTED}")]


# Which run folders lie below a folder.


def runs_below(folder: Path) -> Iterator[Path]:
    """The folders at and below `folder` that hold a result.json, by name.

    At most MOST_VISITED folders are looked into.
    """
    walk = os.walk(folder, onerror=_tell)
    for (path, folders, files), _ in zip(walk, range(MOST_VISITED), strict=False):
        if "result.json" in files:
            folders.clear()
            yield Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _tell(error: OSError) -> None:
    say(f"{error.filename}: cannot be looked into ({error.strerror})")


def require_run(folder: Path, option: str = "run=") -> None:
    """Raises UserError where `folder` holds no finished run.

    It says what is there, and which runs lie below it or beside it.

    Args:
        folder: The run's.
        option: What is typed before the folder.
    """
    if (folder / "result.json").is_file():
        return
    if (folder / "config.yaml").is_file():
        raise UserError(
            f"{option}{folder}: this run is not complete; the command that began it goes on with it"
        )
    if folder.is_dir():
        raise UserError(
            f"{option}{folder}: no run is there (it holds no result.json); {_list_runs(folder)}"
        )
    if os.path.lexists(folder):
        runs = _list_runs(folder.parent)
        raise UserError(f"{option}{folder}: is a file, and a run is a folder; {runs}")
    parent = next(parent for parent in folder.absolute().parents if parent.is_dir())
    root = _default_output(parent)
    if root == root.parent:  # nobody's runs lie all over a machine
        raise UserError(
            f"{option}{folder}: no such folder, so no run is there; nor any folder on the way to it"
        )
    raise UserError(f"{option}{folder}: no such folder, so no run is there; {_list_runs(root)}")


def _default_output(folder: Path) -> Path:
    """The default output where it lies in the folder, which may be somebody's whole home."""
    default = folder / "outputs"
    return default if default.is_dir() else folder


def _list_runs(folder: Path) -> str:
    runs = list(runs_below(folder))
    name = _short(folder)
    if not runs:
        return f"no run lies below {name} either"
    first = ", ".join(_short(run) for run in runs[:MOST_LISTED])
    hidden = len(runs) - MOST_LISTED
    remainder = f" and {hidden} more" if hidden > 0 else ""
    return f"runs below {name}: {first}{remainder}"


def _short(path: Path) -> str:
    """The path as it may be typed here."""
    if path.absolute().is_relative_to(Path.cwd()):
        return os.path.relpath(path)
    return str(path)
