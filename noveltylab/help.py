"""`--help`: every option of the chosen method, data, protocol, trainer and logger.

What they mean is read from the comments in conf/.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf

from noveltylab.command import words
from noveltylab.command.hydra_versions import BASE
from noveltylab.command.recipes import DEFAULT, MEANINGS, config_names, recipes_of
from noveltylab.command.validate import flatten

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
    choices = []
    for argument in arguments:
        group, _, names = argument.partition("=")
        name = names.split(",")[0]
        path = f"{group}/{name}.yaml"
        if (conf / path).is_file() or ConfigStore.instance().get_type(path) == ObjectType.CONFIG:
            choices.append(f"{group}={name}")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), **BASE):
        return compose("train", choices)


def flat_keys(config: DictConfig) -> list[str]:
    """All dotted keys: `method.lr`, `seed`, ..."""
    return list(flatten(OmegaConf.to_container(config)))


def explanations(path: Path) -> Iterator[tuple[str, str, str]]:
    """(key, explanation, example) of every commented line of a config file."""
    for line in path.read_text().splitlines():
        match = re.match(r"(\w+): .*?  # (.*?); e\.g\. (.*)$", line)
        if match:
            yield match[1], match[2], match[3]


def print_help(conf: Path, arguments: list[str], experiments: Iterable[str] = ()) -> None:
    """Prints usage, the choices of every group, and each option.

    An option is printed with its value, what it means and an example.
    """
    config = compose_choices(conf, arguments)
    chosen = {group: config[group].get("name", "default") for group in GROUPS}
    # a row of an ablation goes by a name of its own
    chosen["method"] = config.method._target_.split(".")[-2]
    print(USAGE)
    print("\nChoices")
    for group in GROUPS:
        names = "|".join(config_names(conf / group))
        print(f"  {f'{group}={names}':58} (now {chosen[group]})")
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
        print(f"\n{group} ({chosen[group]})")
        _print_options(conf / group / f"{chosen[group]}.yaml", config[group], f"{group}.")
        for path in sorted((conf / group / "common").glob("*.yaml")):
            _print_options(path, config[group], f"{group}.")


def _print_options(path: Path, values: DictConfig, prefix: str) -> None:
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


def _print_filled(text: str, first_indent: str, indent: int) -> None:
    """Print a text in lines of WIDTH columns, those after the first one indented."""
    print(textwrap.fill(text, WIDTH, initial_indent=first_indent, subsequent_indent=" " * indent))
