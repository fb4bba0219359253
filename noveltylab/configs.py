"""Composes conf/ with what was typed, and says Hydra's errors in one line.

The same for the command, which hands its options to Hydra, and for `compose` of the Python API
(noveltylab/api.py), which leaves no trace in the Hydra of its caller. Imports no torch.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import hydra
import hydra.version
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from noveltylab.command.arguments import explain_unreadable, readable
from noveltylab.command.hints import check_moved, option_hint
from noveltylab.command.hydra_versions import BASE, share_store, store_late
from noveltylab.command.recipes import (
    CONF,
    PACKAGE,
    config_names,
    read_own_yaml,
    recipes_of,
    register_recipes,
)
from noveltylab.command.validate import flatten
from noveltylab.errors import UserError, nearest
from noveltylab.installed import find_offer, offered_names
from noveltylab.sweep.grid import cells_of_grid, no_such_row, row_options


def read_experiments() -> dict[str, tuple[str, dict[str, Any]]]:
    """The files in experiments/: <paper>/<table> -> its path and what it holds."""
    folders = [path / "experiments" for path in (PACKAGE, PACKAGE.parent)]
    files = {}
    for path in sorted(path for folder in folders for path in folder.glob("*/*.yaml")):
        if path.read_text(encoding="utf-8").startswith(
            "# @package _global_"
        ):  # else some other YAML file
            files[f"{path.parent.name}/{path.stem}"] = (str(path), read_own_yaml(path))
    return files


def _of_sweeper(content: dict[str, Any], name: str) -> dict[str, Any]:
    """`params` or `rows` of an experiment file, {} where it has none."""
    return dict(content.get("hydra", {}).get("sweeper", {}).get(name) or {})


#: <paper>/<table> of every experiment file, and what it holds
FILES = read_experiments()
#: <paper>/<table> of every experiment file, and its rows: name -> options
EXPERIMENTS = {name: _of_sweeper(content, "rows") for name, (_, content) in FILES.items()}


def register() -> None:
    """Makes the files in experiments/, their rows and the recipes choices of Hydra's.

    <paper>/<table>.yaml becomes experiment=<paper>/<table>, and each of its rows row=<name>; the
    sweeper puts the options of a row in its place. (Hydra names a group after its folder, and would
    want experiments/ to be conf/experiment/.)
    """
    share_store()
    rows: dict[str, str] = {}
    for name, (path, content) in FILES.items():
        paper, _, table = name.partition("/")
        store_late(table, content, f"experiment/{paper}", path)
        rows |= dict.fromkeys(EXPERIMENTS[name], path)
    for row, path in rows.items():
        store_late(row, {}, "row", path)
    register_recipes()
    register_offers()


def register_offers() -> None:
    """Makes what other installed packages offer choices of Hydra's: method=<name>, data=<name>.

    A name of noveltylab's own stays its own. What cannot be used is no choice; `explain` says why.
    """
    for group in ("method", "data"):
        for name in set(offered_names(group)) - set(config_names(CONF / group)):
            with suppress(UserError):
                options, provider = offered_options(group, name)
                ConfigStore.instance().store(name, options, group, provider=provider)


def offered_options(group: str, name: str) -> tuple[dict[str, Any], str]:
    """The options of an offered method or data set, and the package that offers it.

    Raises:
        UserError: Why it cannot be used.
    """
    offer = find_offer(group, name)
    if offer is None:
        raise UserError(f"{group}={name}: no installed package offers it")
    return offer.options(), offer.package


@contextmanager
def hydras_choices(arguments: list[str]) -> Iterator[None]:
    """For `--hydra-help` Hydra's own choices alone: it takes minutes to go through our recipes."""
    store = ConfigStore.instance()
    before = store.repo
    if "--hydra-help" in arguments:
        ours = ("experiment", "recipe", "row")
        store.repo = {name: group for name, group in before.items() if name not in ours}
    try:
        yield
    finally:
        store.repo = before


def compose_config(arguments: list[str]) -> DictConfig:
    """The config of one run, from options as they are typed behind `noveltylab`.

    An experiment is a sweep: row=, inlier= and seed= have to leave one of its runs.

    Raises:
        UserError: What the command would refuse; a flag of the command; several runs.
    """
    for argument in arguments:
        if not isinstance(argument, str):
            raise UserError(f"{argument!r}: options are texts, e.g. 'inlier=3'")
        if argument.startswith("-"):
            raise UserError(f"{argument}: flags belong to the command; from Python only options go")
    check_moved(arguments)
    typed = with_debug(readable(arguments))
    with own_hydra():
        try:
            typed = one_cell(typed)
            config = hydra.compose("train", typed, return_hydra_config=True)
        except HydraException as error:
            raise UserError(explain(error, typed)) from None
        except OmegaConfBaseException as error:
            raise UserError(f"the configuration: {str(error).splitlines()[0]}") from None
    check_choices(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return config


@contextmanager
def own_hydra() -> Iterator[None]:
    """Inside, a Hydra that reads conf/; the one of the caller's program is put back afterwards."""
    mine = own_choices()
    store, instance = ConfigStore.instance(), GlobalHydra.instance()
    version = hydra.version.VersionBase.instance()
    before = (store.repo, instance.hydra, version.version_base)
    store.repo = mine
    instance.clear()
    try:
        with initialize_config_dir(str(CONF), **BASE):
            yield
    finally:
        store.repo, instance.hydra, version.version_base = before
        GlobalHydra.set_instance(instance)


@cache
def own_choices() -> dict[str, Any]:
    """Hydra's store of choices with ours, made beside the store of the caller's program."""
    Plugins.instance()  # whose own choices go into the caller's
    store = ConfigStore.instance()
    before = store.repo
    store.repo = copy.deepcopy(before)
    try:
        register()
        return store.repo
    finally:
        store.repo = before


def one_cell(arguments: list[str]) -> list[str]:
    """For an experiment the options of its only run; else the arguments as they are.

    Raises:
        UserError: The experiment has several runs, or no such row.
    """
    experiments = [text for text in arguments if text.startswith("experiment=")]
    name = experiments[-1].partition("=")[2] if experiments else ""
    if name not in FILES:
        return arguments
    params = _of_sweeper(FILES[name][1], "params")
    typed = [text for text in arguments if text not in experiments]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    cells = cells_of_grid(params, EXPERIMENTS[name], typed, parser)
    if len(cells) != 1:
        raise UserError(
            f"experiment={name}: these are {len(cells)} runs, which the command runs as a sweep; "
            "for one of them name its row (where there are rows), inlier and seed"
        )
    return [f"experiment={name}", *cells[0]]


def check_choices(choices: Mapping[str, Any]) -> None:
    """Raises UserError for choices of Hydra's that one run cannot have.

    They are a row without its experiment, and a recipe that the method has not
    (conf/recipe/<method>.yaml).
    """
    if choices["row"]:
        raise UserError(no_such_row(choices["row"], {}))
    recipe, method = str(choices["recipe"]), str(choices["method"])
    recipes = recipes_of(method)
    if recipe not in recipes:
        raise UserError(
            f"recipe={recipe}: method={method} has no such recipe; it has: {', '.join(recipes)}"
        )


def with_row(arguments: list[str]) -> list[str]:
    """For `--cfg`, which composes no cell of a sweep: the options of a row in the place of row=..."""
    values = dict(text.split("=", 1) for text in arguments if "=" in text)
    rows = EXPERIMENTS.get(values.get("experiment", ""), {})
    row = values.get("row")
    if row not in rows or not {"--cfg", "-c"} & set(arguments):
        return arguments
    options = [text for text in arguments if not text.startswith("row=")]
    # after experiment=..., so that what is typed behind it has the last word
    place = options.index(f"experiment={values['experiment']}") + 1
    options[place:place] = [*row_options(rows, row), f"method.name={row}"]
    return options


def with_debug(arguments: list[str]) -> list[str]:
    """Behind the arguments the options of debug=..., so that no row of an experiment has its own.

    What is typed as well has the last word.
    """
    names = _typed_values("debug", arguments)
    path = CONF / "debug" / f"{names[-1] if names else ''}.yaml"
    if not path.is_file():
        return arguments
    typed = {text.partition("=")[0].lstrip("+") for text in arguments}
    options: Any = OmegaConf.to_container(OmegaConf.load(path))
    texts = [f"{key}={json.dumps(value)}" for key, value in flatten(options).items()]
    return [*arguments, *(text for text in texts if text.partition("=")[0] not in typed)]


def explain(error: HydraException, arguments: list[str]) -> str:
    """Hydra's error in one line, with the nearest right name for a wrong one.

    Args:
        error: What Hydra raised.
        arguments: The options that were typed.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if group.startswith("experiment"):
            return _unknown_experiment(str(error.missing_cfg_file).removeprefix("experiment/"))
        if group == "recipe":
            return _unknown_recipe(name, arguments)
        if group == "row":
            return _unknown_row(name, arguments)
        if name in offered_names(group):  # of a package, and no choice for a reason
            try:
                offered_options(group, name)
            except UserError as reason:
                return str(reason)
        names = error.options or config_names(CONF / group)
        if names:
            return f"{group}={name}: no such choice; {nearest(name, names)}"
        return f"no configuration named '{error.missing_cfg_file}' under {CONF}"
    if isinstance(error, OverrideParseException):
        return explain_unreadable(str(error.override), arguments)
    message = str(error)
    match = re.match(r"Sweep parameters '(.*)' requires", message)
    if match:
        return f"{match[1]}: several values are a sweep, which takes -m"
    unknown = _unknown_setting(arguments)
    if unknown:
        return unknown
    match = re.search(r"Ambiguous value for argument '(.*)'\n", message)
    if match:
        key, _, value = match[1].partition("=")
        return (
            f"{match[1]}: several values are a sweep, which takes -m; "
            f"as one text: '{key}=\"{value}\"', as a list: '{key}=[{value}]'"
        )
    match = re.match(r"Error merging override (.*)", message)
    if match:
        return f"{match[1]}: the value is of another kind than that of the option; see --help"
    match = re.match(r"Could not override '([^']+)'", message)
    if match:
        return _unknown_key(match[1], arguments)
    return message


def _unknown_setting(arguments: list[str]) -> str:
    """What to say of a setting that a search has not, "" without one; Hydra tells of others."""
    searches = [name for name in _typed_values("search", arguments) if name]
    if not searches or not (CONF / "search" / f"{searches[-1]}.yaml").is_file():
        return ""
    content: Any = OmegaConf.to_container(OmegaConf.load(CONF / "search" / f"{searches[-1]}.yaml"))
    settings = sorted(set(content["hydra"]["sweeper"]) - {"_target_"})
    for argument in arguments:
        key = argument.partition("=")[0]
        name = key.removeprefix("hydra.sweeper.")
        if name != key and name not in settings:
            return f"{key}: no such option of search={searches[-1]}; {nearest(name, settings)}"
    return ""


def _unknown_experiment(name: str) -> str:
    return f"experiment={name}: no such choice; {nearest(name, EXPERIMENTS)}"


def _unknown_row(name: str, arguments: list[str]) -> str:
    experiment = ["", *_typed_values("experiment", arguments)][-1]
    if experiment and experiment not in EXPERIMENTS:
        return _unknown_experiment(experiment)
    return no_such_row(name, EXPERIMENTS.get(experiment, {}))


def _unknown_recipe(name: str, arguments: list[str]) -> str:
    methods = _typed_values("method", arguments)
    method = methods[0].split(",")[0] if methods else "ocgan"
    return f"recipe={name}: no such choice of method={method}; {nearest(name, recipes_of(method))}"


def _typed_values(key: str, arguments: list[str]) -> list[str]:
    """The values of the arguments <key>=..."""
    prefix = f"{key}="
    return [argument.removeprefix(prefix) for argument in arguments if argument.startswith(prefix)]


def _unknown_key(key: str, arguments: list[str]) -> str:
    """Names the option nearest to a misspelt one, among those of the chosen method, data, ..."""
    from noveltylab.help import compose_choices, flat_keys

    if any(value.startswith("{") for value in _typed_values(key, arguments)):
        return f"{key}={{...}}: holds no option of {key}; write each as {key}.<option>=<value>"
    parent, _, _ = key.rpartition(".")
    choices = [*_typed_values(parent, arguments), ""][0]
    # of a sweep's choices the first one that has no such option
    for choice in choices.split(","):
        options = flat_keys(compose_choices(CONF, [*arguments, f"{parent}={choice}"]))
        if key not in options:
            break
    prefix = f"{parent}." if parent else ""
    siblings = set()
    for option in options:
        if option.startswith(prefix):
            siblings.add(option.removeprefix(prefix).split(".")[0])
    siblings.discard("_target_")
    remedy = "--help lists all options"
    if siblings:
        remedy = f"Choose from: {', '.join(sorted(siblings))}"
    where = f" of {parent}={choice}" if choice else ""
    return f"{key}: no such option{where}; {option_hint(key, options)}{remedy}"
