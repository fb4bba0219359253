"""`--help`: every option of the chosen method, data, protocol, trainer and logger, from the
comments in conf/.
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
from noveltylab.command.dotted import flatten
from noveltylab.command.recipes import DEFAULT, MEANINGS, config_names, recipes_of

GROUPS = ("method", "data", "protocol", "trainer", "resources", "logger")
WORDS = "\n".join(
    f"  {'python -m noveltylab ' + word + ' ...':59} {meaning}"
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
    """The config with the choices of method, data, ... in `arguments` and nothing else of them;
    defaults where wrong.
    """
    choices = []
    for argument in arguments:
        group, _, names = argument.partition("=")
        path = f"{group}/{names.split(',')[0]}.yaml"
        if (conf / path).is_file() or ConfigStore.instance().get_type(path) == ObjectType.CONFIG:
            choices.append(f"{group}={names.split(',')[0]}")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose("train", choices)


def flat_keys(config: DictConfig) -> list[str]:
    """All dotted keys: `method.lr`, `seed`, ..."""
    return list(flatten(OmegaConf.to_container(config)))


def explanations(path: Path) -> Iterator[tuple[str, str, str]]:
    """(key, explanation, example) of every commented line of a config file."""
    for line in path.read_text().splitlines():
        if match := re.match(r"(\w+): .*?  # (.*?); e\.g\. (.*)$", line):
            yield match[1], match[2], match[3]


def print_help(conf: Path, arguments: list[str], experiments: Iterable[str] = ()) -> None:
    """Prints usage, the choices of every group and each option with its value, what it means and an
    example.
    """
    config = compose_choices(conf, arguments)
    chosen = {group: config[group].get("name", "default") for group in GROUPS}
    # a row of an ablation goes by a name of its own
    chosen["method"] = config.method._target_.split(".")[-2]
    print(USAGE)
    print("\nChoices")
    for group in GROUPS:
        names = config_names(conf / group)
        print(f"  {group + '=' + '|'.join(names):58} (now {chosen[group]})")
    for recipe, meaning in MEANINGS.items():
        methods = [name for name in config_names(conf / "method") if recipe in recipes_of(name)]
        whose = "" if recipe == DEFAULT else f" ({', '.join(methods)})"
        print(
            textwrap.fill(
                f"{'recipe=' + recipe:22} {meaning}{whose}",
                110,
                initial_indent="  ",
                subsequent_indent=" " * 25,
            )
        )
    print(
        f"  {'':22} now recipe={config.recipe}; in conf/recipe/<method>.yaml.  Example: recipe=paper"
    )
    print(
        textwrap.fill(
            " | ".join(experiments), 110, initial_indent="  experiment=", subsequent_indent=" " * 13
        )
    )
    print("\nOptions of every run")
    _print_options(conf / "train.yaml", config, "")
    for group in GROUPS:
        print(f"\n{group} ({chosen[group]})")
        for path in (
            conf / group / f"{chosen[group]}.yaml",
            *sorted((conf / group / "common").glob("*.yaml")),
        ):
            _print_options(path, config[group], f"{group}.")


def _print_options(path: Path, values: DictConfig, prefix: str) -> None:
    for key, meaning, example in explanations(path):
        value = OmegaConf.to_container(values).get(key)  # type: ignore[union-attr]  # a mapping, not a list
        shown = (
            "null"
            if value is None
            else str(value).lower()
            if isinstance(value, bool)
            else str(value)
        )
        print(f"  {prefix}{key}={shown}" if len(shown) < 60 else f"  {prefix}{key}")
        print(
            textwrap.fill(
                f"{meaning}.  Example: {example}",
                110,
                initial_indent=" " * 6,
                subsequent_indent=" " * 6,
            )
        )
