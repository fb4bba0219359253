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
from noveltylab.results.older import in_options_of_today
from noveltylab.results.phases import selects_nothing_else
from noveltylab.results.schema import Result, Unmeasured, check_config, check_result

PACKAGE = Path(__file__).resolve().parents[1]
#: Ends the name of a floor of the images as the method sees them, which differ from raw pixels.
SEEN = "_seen"
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
    config = in_options_of_today(result.config, result.input.get("shape"))
    return {**content, "config": config}, result.model_copy(update={"config": config})


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
