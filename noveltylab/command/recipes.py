"""Recipes: the options with which a method runs on a data set, `recipe=default|paper|ours|...`.

A method's recipes stand in conf/recipe/<method>.yaml, one after the other. A section of a recipe
belongs to the data sets that its name lists (`mnist fmnist`), or to `every` one; the sections of a
data set are merged from top to bottom, over conf/method/<method>.yaml. The top line
`starts_from: <method>/<recipe>` puts another recipe below all sections. A method without a file has
the recipe `default` alone, which changes nothing. Runs of any recipe but `default` are called
<method>_<recipe>.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from noveltylab.installed import offered_names

PACKAGE = Path(__file__).resolve().parents[1]
#: conf/ beside the package in a checkout, inside it when installed from a wheel
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())
FOLDER = CONF / "recipe"
DEFAULT = "default"
#: The section of all data sets, and the line that names the recipe below.
EVERY, BELOW = "every", "starts_from"
#: What each recipe is, in the order of the help.
MEANINGS = {
    DEFAULT: "what we recommend for the data; where a table is kept, the options that it was run with",
    "paper": "the paper read literally; what it leaves open as its authors' code, else as default",
    "ours": "the change of one option that helped most on one digit, over default",
    "first_code": "what the authors' first code has and their later one has not, over default",
    "readme": "the settings of the README of the authors' code",
    "release": "the defaults of the authors' released code",
}


def config_names(folder: Path) -> list[str]:
    """The choices that a folder of conf/ holds: the names of its config files."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


@cache
def recipes_of(method: str) -> tuple[str, ...]:
    """The recipes that a method has, `default` first; the method as in method=..."""
    if not re.fullmatch(r"\w+", method, re.ASCII):
        return (DEFAULT,)
    return (DEFAULT, *sorted(name for name in _read(method) if name != DEFAULT))


def recipe_options(method: str, recipe: str, data: str) -> dict[str, Any]:
    """The options of a method's recipe for a data set as nested plain values, {} where it has none.

    Args:
        method: As in method=...
        recipe: As in recipe=...
        data: As in data=...
    """
    if recipe not in recipes_of(method):
        return {}
    options = _sections(f"{method}/{recipe}", data)
    if recipe != DEFAULT:
        options = merge(options, {"method": {"name": f"{method}_{recipe}"}})
    return options


def _sections(name: str, data: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for title, section in read_recipe(name).items():
        if title == BELOW:
            options = _sections(section, data)
        elif title == EVERY or data in title.split():
            options = merge(options, section)
    return options


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two trees of options as one new one; `above` has the last word."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(under, dict) and isinstance(value, dict):
            merged[key] = merge(under, value)
        else:
            merged[key] = value
    return merged


def read_recipe(name: str) -> dict[str, Any]:
    """The sections of a recipe `<method>/<recipe>`, {} where there is none."""
    method, _, recipe = name.partition("/")
    return dict(_read(method).get(recipe, {}))


@cache
def _read(method: str) -> dict[str, dict[str, Any]]:
    """The recipes of a method's file by name, {} where there is no such file."""
    path = FOLDER / f"{method}.yaml"
    return read_own_yaml(path) if path.is_file() else {}


def read_own_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of noveltylab's own, with OmegaConf's rules: 1e-3 is a number.

    OmegaConf's reader itself is several times slower, which a hundred files make felt.
    """
    with open(path, encoding="utf-8") as file:
        content: dict[str, Any] = yaml.load(file, _own_loader())
    return content


@cache
def _own_loader() -> Any:
    from omegaconf._utils import get_yaml_loader

    class OwnLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # one of two classes
        yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers

    return OwnLoader


def register_recipes() -> None:
    """Makes the recipes choices of Hydra's.

    They are `recipe=<recipe>`, and by method and data what it changes (see conf/train.yaml).
    """
    from noveltylab.command.hydra_versions import store_late  # imports Hydra

    for recipe in MEANINGS:
        store_late(recipe, {"recipe": recipe}, "recipe", str(FOLDER))
    for method in config_names(FOLDER):
        for recipe in recipes_of(method):
            for data in sorted({*config_names(CONF / "data"), *offered_names("data")}):
                options = recipe_options(method, recipe, data)
                if options:
                    store_late(data, options, f"recipe/{method}/{recipe}", str(FOLDER))
