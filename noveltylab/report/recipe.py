"""How much a whole run trains: what conf/ gives a method on its data, and which runs have less."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeGuard

import yaml

from noveltylab.command import recipes
from noveltylab.command.validate import flatten
from noveltylab.report.published import table_names

#: Beside the package in a checkout, inside it when installed from a wheel.
ROOTS = (recipes.PACKAGE.parent, recipes.PACKAGE)
#: A name that may become part of a path.
PLAIN_NAME = re.compile(r"\w+(/\w+)?", re.ASCII)
#: Options of which less is a shorter run, and their unit.
AMOUNTS = {"trainer.max_epochs": "epochs", "method.search_steps": "search steps"}


@dataclass(frozen=True)
class Recipe:
    """What conf/ and its experiment give a run, beside what the run had.

    Attributes:
        fewer_images: Why it trained on fewer images than a whole run, one reason each.
        shorter: Why its training or its search was shorter, one reason each.
        other_input: How far images and split are from the data set's own: 0 as conf/data and
            conf/protocol have them, 1 as the recipe has them, 2 otherwise.
    """

    fewer_images: tuple[str, ...]
    shorter: tuple[str, ...]
    other_input: int


def compare_to_recipe(
    method: str,
    data: str,
    protocol: str,
    source: str,
    options: Mapping[str, Any],
    trained_on: int | None,
    fitted_once: bool,
) -> Recipe:
    """How a run differs from a whole run by its recipe.

    Args:
        method: The method behind the name, as in method=...
        data: As in data=...
        protocol: As in protocol=...
        source: The output folder, which ends in <paper>/<table> for the runs of a table.
        options: All options of the run by dotted key.
        trained_on: How many images it trained on, if that is known.
        fitted_once: Whether it has no epochs.
    """
    data = str(options.get("data.name", data))  # one's own images may go by a label
    recipe = recipe_options(method, data, protocol, source, options)
    return Recipe(
        tuple(_fewer_images(options, recipe, trained_on)),
        tuple(_shorter(options, recipe, fitted_once)),
        0
        if _same_input(options, _options_of_conf(method, data, protocol))
        else 1
        if _same_input(options, recipe)
        else 2,
    )


def _same_input(options: Mapping[str, Any], recipe: Mapping[str, Any]) -> bool:
    """Whether images and split were prepared as one's own options have it."""
    keys = [key for key in recipe if key == "data.size" or key.startswith("protocol.")]
    return all(_same(options.get(key, recipe[key]), recipe[key]) for key in keys)


def limits(limit: Any, trained_on: int | None) -> bool:
    """Whether data.limit_train left training images out, as far as the result tells."""
    return _is_number(limit) and (trained_on is None or trained_on >= limit)


def _fewer_images(
    options: Mapping[str, Any], recipe: Mapping[str, Any], trained_on: int | None
) -> Iterator[str]:
    limit = options.get("data.limit_train")
    if limits(limit, trained_on):
        yield f"the first {limit} training images"
    if options.get("data.classes") == "folders":
        return  # one's own images have no table to be whole for
    for key, sign in (("protocol.train_share", 1), ("protocol.val_fraction", -1)):
        share, whole = options.get(key), recipe.get(key)
        if _is_number(share) and _is_number(whole) and sign * share < sign * whole:
            yield f"{key.partition('.')[2]} {share:g} instead of {whole:g}"


def _shorter(
    options: Mapping[str, Any], recipe: Mapping[str, Any], fitted_once: bool
) -> Iterator[str]:
    for key, unit in AMOUNTS.items():
        amount, whole = options.get(key), recipe.get(key)
        if fitted_once and key.startswith("trainer."):
            continue
        if _is_number(amount) and _is_number(whole) and amount < whole:
            yield f"{amount} of {whole} {unit}"


def recipe_options(
    method: str, data: str, protocol: str, source: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options that conf/, the run's recipe and its table give it, by dotted key.

    A study (experiments/learn) gives none: its runs are shortened, however its file has them.
    """
    recipe = str(options.get("recipe", recipes.DEFAULT))
    conf_options = _options_of_conf(method, data, protocol) | flatten(
        recipes.recipe_options(method, recipe, data)
    )
    name = "/".join(source.split("/")[-2:])
    return conf_options | _read("experiments", name) if name in table_names() else conf_options


def _options_of_conf(method: str, data: str, protocol: str) -> dict[str, Any]:
    """The options of a method on a data set without any recipe."""
    options: dict[str, Any] = {}
    for folder, name, prefix in (
        ("conf/data/common", "image_options", "data."),
        ("conf/data", data, "data."),
        ("conf/trainer", "default", "trainer."),
        ("conf/protocol", protocol, "protocol."),
        ("conf/method", method, "method."),
    ):
        options |= {prefix + key: value for key, value in _read(folder, name).items()}
    return options


@cache
def _read(folder: str, name: str) -> dict[str, Any]:
    """A YAML file of options by dotted key, {} where there is none."""
    if not PLAIN_NAME.fullmatch(name):
        return {}
    for root in ROOTS:
        path = root / folder / f"{name}.yaml"
        if path.is_file():
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            return flatten(content) if isinstance(content, dict) else {}
    return {}


def _same(value: Any, recipe_value: Any) -> bool:
    """Whether two options are equal; YAML reads 1e-3 as text."""
    if _is_number(value) and isinstance(recipe_value, str):
        try:
            return bool(value == float(recipe_value))
        except ValueError:
            return False
    return bool(value == recipe_value)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
