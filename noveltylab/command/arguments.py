"""The command line before Hydra reads it: paths and names that Hydra's grammar does not take.

Hydra wants a value such as `My Parts (2)` or `Größe` in quotes of its own, inside those of the
shell. A path has no other reading, so `readable` puts these quotes around it.
"""

import re
import shlex
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from noveltylab.errors import UserError

#: Options whose value is a path: taken as it is, whatever characters it has.
PATHS = {"data.root", "output"}
#: Options whose value is a name that somebody chose: as it is where Hydra cannot read it.
NAMES = {
    "inlier", "data.inlier", "data.label", "logger.project", "logger.entity", "logger.tracking_uri",
}  # fmt: skip
#: Groups of choices, whose value is the name of one.
GROUPS = {
    "method", "data", "protocol", "recipe", "trainer", "resources", "search", "debug", "experiment", "row",
    "hydra/launcher", "hydra/sweeper",
}  # fmt: skip
#: A group of which several choices go together, as a list.
SEVERAL = "logger"
#: Options whose value is any text, never a list: as it is, unless it stands in Hydra's quotes.
TEXTS = {"notes"}


def readable(arguments: list[str]) -> list[str]:
    """The arguments, with Hydra's quotes around every path and name that need them.

    In a sweep a list of paths or names stays a list.

    Raises:
        UserError: A flag that Hydra does not have; a path with an interpolation that cannot be
        read.
    """
    several = is_sweep(arguments)
    return [_readable(argument, several) for argument in arguments]


def is_sweep(arguments: list[str]) -> bool:
    """Whether the command line asks for several runs.

    Raises:
        UserError: Flags that Hydra does not have, or not together.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # which would print the usage and leave
    flags = parser.parse_args(arguments)
    if flags.experimental_rerun:
        raise UserError(
            "--experimental-rerun: loads a pickle, which is not safe; use: python -m noveltylab rerun"
        )
    exclusive = ("run", "multirun", "cfg", "info", "shell_completion")
    typed = [f"--{name.replace('_', '-')}" for name in exclusive if getattr(flags, name)]
    if len(typed) > 1:
        raise UserError(f"{' and '.join(typed)} do not go together; take one of them")
    prints_only = flags.cfg or flags.info
    if (flags.resolve or flags.package) and not prints_only:
        raise UserError("--resolve and --package belong to --cfg; e.g. --cfg job --resolve")
    names = ("experiment=", "+experiment=")
    experiments = [argument for argument in flags.overrides if argument.startswith(names)]
    return bool(flags.multirun or experiments or "hydra.mode=MULTIRUN" in flags.overrides)


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; options are written key=value, see --help")


def _readable(argument: str, several: bool) -> str:
    pattern = re.fullmatch(r"([\w./]+)=glob\(([^'\"]+)\)", argument)
    if several and pattern and not _parse(argument):  # `k[dn]*`, which Hydra reads in quotes alone
        return f"{pattern[1]}=glob({quote(pattern[2])})"
    match = re.fullmatch(r"(\+{0,2}([\w./]+))=(.*)", argument, re.DOTALL)
    if match is None or match[2] not in {SEVERAL, *GROUPS, *PATHS, *NAMES, *TEXTS}:
        return argument
    typed, key, value = match.groups()
    if key == SEVERAL or key in GROUPS:
        return f"{typed}={_quoted_choices(key, value)}"
    _check_interpolation(key, value)
    override = _parse(argument)
    if key in TEXTS:
        return f"{typed}={_quoted_text(value, override)}"
    in_quotes = _quoted_path if key in PATHS else _quoted_name
    return f"{typed}={in_quotes(value, override, several)}"


def _quoted_choices(key: str, value: str) -> str:
    """Names of choices, with quotes around those that Hydra would read as numbers or null: it would
    end with a traceback.
    """
    names = value.strip()
    is_list = names.startswith("[") and names.endswith("]")
    if is_list:
        names = names[1:-1]
        if key != SEVERAL:
            raise UserError(
                f"{key}={value}: one name goes here; a sweep over several: -m {key}={names}"
            )
    quoted = []
    for name in names.split(","):
        override = _parse(f"{key}={name}")
        content = name if override is None else override.value()
        if is_list and isinstance(content, list | dict):
            raise UserError(f"{key}={value}: names go into the list, such as {key}=[csv,wandb]")
        is_no_text = content is None or isinstance(content, int | float)
        quoted.append(quote(name) if is_no_text else name)
    return f"[{','.join(quoted)}]" if is_list else ",".join(quoted)


def _quoted_text(value: str, override: Override | None) -> str:
    """A text in quotes, unless it stands in quotes that Hydra can read, or is null."""
    in_quotes = override is not None and value.strip()[:1] in ("'", '"')
    return value if in_quotes or value.strip() == "null" else quote(value)


def _quoted_name(value: str, override: Override | None, several: bool) -> str:
    """A name, or a sweep's list of names, with quotes unless Hydra can read it."""
    if override:
        return value
    if several:
        return ",".join(map(quote, value.split(",")))
    return quote(value)


def _quoted_path(value: str, override: Override | None, several: bool) -> str:
    """A path, or a sweep's list of paths, with quotes unless Hydra reads what was typed."""
    if _exists(value):
        return quote(value)
    if override:
        return value if _stays(override, value, several) else quote(value)
    paths = value.split(",")
    if several and all(map(_exists, paths)):
        return ",".join(map(quote, paths))
    return quote(value)


def _stays(override: Override, value: str, several: bool) -> bool:
    """Whether Hydra reads what was typed: the same text, text in quotes, null, or a sweep's list."""
    if override.is_sweep_override():
        return several
    text = value.strip()
    return text[:1] in ("'", '"') or text == "null" or override.value() == text


def _check_interpolation(key: str, value: str) -> None:
    try:
        OmegaConf.create({key: value})
    except OmegaConfBaseException:
        raise UserError(
            f"{key}={value}: ${{ begins the value of another option, as in output='outputs/lr${{method.lr}}'; "
            "choose a name without it"
        ) from None


def _parse(argument: str) -> Override | None:
    """The argument as Hydra reads it; None if it cannot."""
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def quote(value: str) -> str:
    """A text as a quoted value of Hydra's command line."""
    return str(QuotedString(value, Quote.single).with_quotes())


def _exists(value: str) -> bool:
    """Whether a file or folder has just this name; text in quotes of its own is not one."""
    try:
        return bool(value) and Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long a name; `~nobody`
        return False


def read_changes(changes: list[str]) -> DictConfig:
    """Changes to a kept configuration, as `data.root=/srv/data`; paths are taken as they are.

    Raises:
        UserError: A change that cannot be read, or takes another option's value.
    """
    read = OmegaConf.create()
    for change in changes:
        key, equals, value = change.partition("=")
        if not (key and equals) or "${" in change:
            raise UserError(
                f"cannot read '{change}'; changes are written key=value, e.g. data.root=/srv/data"
            )
        try:
            content: Any = value
            if key not in PATHS or value == "null":
                content = OmegaConf.select(OmegaConf.from_dotlist([change]), key)
            OmegaConf.update(read, key, content)
        except (YAMLError, OmegaConfBaseException):
            raise UserError(
                f"cannot read the value in '{change}'; text with signs is written in quotes"
            ) from None
    return read


def explain_unreadable(argument: str, arguments: list[str]) -> str:
    """What to type instead of an argument that Hydra cannot read."""
    key, equals, value = argument.partition("=")
    if equals and key and value:
        quoted = shlex.quote(f"{key}={QuotedString(value, Quote.double).with_quotes()}")
        return (
            f"cannot read the value in '{argument}' on the command line; "
            f"text is written in quotes inside quotes: {quoted}"
        )
    hint = ", e.g. inlier=3"
    position = arguments.index(argument) if argument in arguments else 0
    if position > 0 and "=" in arguments[position - 1]:
        joined = shlex.quote(f"{arguments[position - 1]} {argument}")
        hint = f"; a value with spaces is written in quotes: {joined}"
    return f"cannot read '{argument}' on the command line; options are written key=value{hint}"
