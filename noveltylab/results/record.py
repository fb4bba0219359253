"""A run's result.json: written atomically and last, so that its presence means the run is complete."""

import errno
import json
import pkgutil
import re
from pathlib import Path
from typing import Any

from noveltylab.errors import UserError
from noveltylab.results.archive import archive_of, find_row
from noveltylab.results.files import read_json, read_yaml, write_atomic
from noveltylab.results.older import DATA_SETS, PROTOCOLS, in_options_of_today
from noveltylab.results.schema import Result, Unmeasured, check_config, check_result

PACKAGE = Path(__file__).resolve().parents[1]
#: Ends the name of a floor of the images as the method sees them, which differ from raw pixels.
SEEN = "_seen"


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
