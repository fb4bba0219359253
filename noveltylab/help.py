"""`--help`: every option of the chosen method, data, protocol, trainer and logger.

What they mean is read from the comments in conf/.
"""

import re
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf

from noveltylab.command import words
from noveltylab.command.hints import check_moved
from noveltylab.command.hydra_versions import BASE
from noveltylab.command.recipes import DEFAULT, MEANINGS, config_names, recipes_of
from noveltylab.command.validate import flatten
from noveltylab.errors import UserError, nearest
from noveltylab.installed import find_offer, offered_names

GROUPS = ("method", "data", "protocol", "trainer", "resources", "logger")
#: Columns of the text.
WIDTH = 110
WORDS = "\n".join(
    f"  {f'python -m noveltylab {word} ...':59} {meaning}"
    for word, meaning in words.MEANINGS.items()
)
USAGE = f"""\
noveltylab trains a novelty detector on one class and scores every test sample.

  python -m noveltylab                                        OCGAN on the bundled digits, offline
  python -m noveltylab method=ocgan data=cifar10 inlier=3     one run
  python -m noveltylab -m method=ocgan,pca data=mnist 'inlier=range(0,10)' seed=0,1,2     a sweep
  python -m noveltylab experiment=ocgan/table2_mnist          a paper's table, as one sweep
  python -m noveltylab experiment=ocgan/table2_mnist inlier=3 seed=0 trainer.max_epochs=1     part of it, shortened
  python -m noveltylab search=optuna method=knn method.k=1,3,5       options chosen by held-out inliers
  python -m noveltylab method=knn data=mnist --help           the options of other choices
  python -m noveltylab --cfg job                              the composed configuration

`noveltylab` alone is the same as `python -m noveltylab`. A word before the options does something else:

{WORDS}

Options are written key=value. A finished run is not run again; an interrupted one goes on; `--hydra-help` shows
Hydra's own flags."""


def compose_choices(conf: Path, arguments: list[str]) -> DictConfig:
    """The config with the choices of method, data, ... in `arguments` and nothing else of them.

    Where a choice is wrong, its default stands.
    """
    choices, folders = [], [conf]
    folder = config_dir(arguments)
    if folder is not None:
        folders.append(folder)
        choices.append(f"hydra.searchpath=['file://{folder.resolve()}']")
    for argument in arguments:
        group, names = _choice(argument)
        if all(_is_choice(folders, f"{group}/{name}.yaml") for name in names):
            value = names[0] if len(names) == 1 else f"[{','.join(names)}]"
            choices.append(f"{group}={value}")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), **BASE):
        return compose("train", choices)


def _choice(argument: str) -> tuple[str, list[str]]:
    """The group and the names of `logger=[csv,wandb]`; of a sweep's choices the first."""
    group, _, text = argument.partition("=")
    if not text.startswith("["):
        return group, text.split(",")[:1]
    names = [name.strip() for name in text.strip("[]").split(",")]
    return group, [name for name in names if name]


def _is_choice(folders: Iterable[Path], path: str) -> bool:
    is_stored = ConfigStore.instance().get_type(path) == ObjectType.CONFIG
    return is_stored or any((folder / path).is_file() for folder in folders)


def config_dir(arguments: list[str]) -> Path | None:
    """The folder of the user's own configuration, as in --config-dir DIR; None without one."""
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, text = flag.partition("=")
        if name in ("--config-dir", "-cd"):
            return Path(text if equals else value)
    return None


def choices_of(group: str, folders: Iterable[Path]) -> dict[str, Path | None]:
    """The choices of a group and the file of each: of the folders, then of installed packages."""
    files: dict[str, Path | None] = {}
    for folder in folders:
        for name in config_names(folder / group):
            files.setdefault(name, folder / group / f"{name}.yaml")
    for name in offered_names(group):
        with suppress(UserError):
            offer = find_offer(group, name)
            files.setdefault(name, offer.file if offer else None)
    return dict(sorted(files.items()))


def check_choices(
    typed: Mapping[str, Iterable[str]], choices: Mapping[str, Collection[str]]
) -> None:
    """UserError for a typed choice that its group has not: `data=nope`."""
    for group, names in choices.items():
        for name in typed.get(group, []):
            if name not in names:
                raise UserError(f"{group}={name}: no such choice; {nearest(name, names)}")


def flat_keys(config: DictConfig) -> list[str]:
    """All dotted keys: `method.lr`, `seed`, ..."""
    return list(flatten(OmegaConf.to_container(config)))


def explanations(path: Path) -> Iterator[tuple[str, str, str]]:
    """(key, explanation, example) of every commented line of a config file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"(\w+): .*?  # (.*?); e\.g\. (.*)$", line)
        if match:
            yield match[1], match[2], match[3]


def print_help(conf: Path, arguments: list[str], experiments: Collection[str] = ()) -> None:
    """Prints usage, the choices of every group, and each option.

    An option is printed with its value, what it means and an example.

    Raises:
        UserError: For a choice that there is not.
    """
    check_moved(arguments)
    own_folder = config_dir(arguments)
    folders = [conf] if own_folder is None else [conf, own_folder]
    choices = {group: choices_of(group, folders) for group in GROUPS}
    typed = dict(map(_choice, arguments))
    method = typed.get("method", ["ocgan"])[0]
    other_choices = {"experiment": experiments, "recipe": recipes_of(method)}
    check_choices(typed, {**choices, **other_choices})
    config = compose_choices(conf, arguments)
    # logger=[] has no options
    values = {group: config.get(group, OmegaConf.create()) for group in GROUPS}
    current = {group: str(values[group].get("name", "default")) for group in GROUPS}
    current["method"] = method_choice(config, choices["method"])
    current["logger"] = " ".join(loggers_of(values["logger"])) or "none"
    shown = current | {"trainer": typed.get("trainer", ["default"])[0]}
    print(USAGE)
    print("\nChoices")
    for group in GROUPS:
        names = "|".join(choices[group])
        print(f"  {f'{group}={names}':58} (now {shown[group]})")
    for recipe, meaning in MEANINGS.items():
        text = f"{f'recipe={recipe}':22} {meaning}"
        if recipe != DEFAULT:
            methods = [name for name in config_names(conf / "method") if recipe in recipes_of(name)]
            text += f" ({', '.join(methods)})"
        _print_filled(text, "  ", 25)
    print(
        f"  {'':22} now recipe={config.recipe}; in conf/recipe/<method>.yaml.  Example: recipe=paper"
    )
    _print_filled(" | ".join(experiments), "  experiment=", 13)
    print("\nOptions of every run")
    _print_options(conf / "train.yaml", config, "")
    for group in GROUPS:
        print(f"\n{group} ({shown[group]})")
        files = current[group].split() if group == "logger" else [current[group]]
        for name in files:
            _print_options(choices[group].get(name), values[group], f"{group}.")
        for path in sorted((conf / group / "common").glob("*.yaml")):
            _print_options(path, values[group], f"{group}.")


def loggers_of(logger: DictConfig) -> list[str]:
    """The loggers among the options logger.*; one of one's own files may have any other name."""
    return [str(name) for name, value in logger.items() if value is True]


def method_choice(config: DictConfig, names: Iterable[str]) -> str:
    """The composed method as in method=...: a row of an ablation goes by a name of its own."""
    name, module = config.method.get("name"), config.method._target_.split(".")[-2]
    return str(name) if name in names else str(module)


def _print_options(path: Path | None, values: DictConfig, prefix: str) -> None:
    if path is None or not path.is_file():
        _print_plain(values, prefix)
        return
    for key, meaning, example in explanations(path):
        value = OmegaConf.to_container(values).get(key)  # type: ignore[union-attr]  # a mapping, not a list
        text = str(value)
        if value is None:
            text = "null"
        elif isinstance(value, bool):
            text = text.lower()
        line = f"  {prefix}{key}"
        if len(text) < 60:
            line += f"={text}"
        print(line)
        _print_filled(f"{meaning}.  Example: {example}", " " * 6, 6)


def _print_plain(values: DictConfig, prefix: str) -> None:
    """Options of an installed package that has no file of them: their values alone."""
    for key in map(str, values):
        if key not in ("name", "_target_"):
            value = "null" if values[key] is None else values[key]
            print(f"  {prefix}{key}={value}")


def _print_filled(text: str, first_indent: str, indent: int) -> None:
    """Print a text in lines of WIDTH columns, those after the first one indented."""
    print(textwrap.fill(text, WIDTH, initial_indent=first_indent, subsequent_indent=" " * indent))
