"""The command `noveltylab`, which is also `python -m noveltylab`.

Without a word it composes conf/ with the command line and hands the config to `run`; with one, as
in `noveltylab predict ...`, it calls the module of that word (command/words.py). Torch is not
imported here: `--help`, `--cfg job` and most bad input answer at once.
"""

import os
import re
import signal
import sys
import warnings
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from noveltylab.command.arguments import explain_unreadable, readable
from noveltylab.command.hints import check_moved, option_hint
from noveltylab.command.recipes import CONF as CONF
from noveltylab.command.recipes import PACKAGE as PACKAGE
from noveltylab.command.recipes import recipes_of, register_recipes
from noveltylab.command.screen import say, say_error, terminal
from noveltylab.command.signals import HANGUP, SIGNALS, exit_code, handle, leave_terminal
from noveltylab.command.words import MODULES, run_word, wrong_word
from noveltylab.errors import Interrupted, RunFailed, UserError, nearest
from noveltylab.nets.cpu.threads import settle_waiting
from noveltylab.sweep.cells import run_cell
from noveltylab.sweep.grid import row_options
from noveltylab.sweep.sweeper import CellsFailed, CellsUnfinished, Sweeper


def register_experiments() -> dict[str, dict[str, list[str]]]:
    """Makes the files in experiments/ choices of Hydra's; returns each one's rows.

    <paper>/<table>.yaml becomes experiment=<paper>/<table>, and each of its rows row=<name>; the
    sweeper puts the options of a row in its place. (Hydra names a group after its folder, and would
    want experiments/ to be conf/experiment/.)
    """
    store = ConfigStore.instance()
    folders = [path / "experiments" for path in (PACKAGE, PACKAGE.parent)]
    experiments = {}
    for path in sorted(path for folder in folders for path in folder.glob("*/*.yaml")):
        if not path.read_text().startswith("# @package _global_"):
            continue  # some other YAML file
        content: Any = OmegaConf.load(path)
        store.store(path.stem, content, f"experiment/{path.parent.name}", "_global_", str(path))
        rows = OmegaConf.to_container(content).get("hydra", {}).get("sweeper", {}).get("rows", {})  # type: ignore[union-attr]  # a mapping at the top
        for row in rows:
            store.store(row, {}, "row", "_global_", str(path))
        experiments[f"{path.parent.name}/{path.stem}"] = rows
    return experiments


#: <paper>/<table> of every experiment file, and its rows: name -> options
EXPERIMENTS = register_experiments()
register_recipes()

#: why the run ended early: kept for the end, as Hydra would print lines of its own
failures: list[UserError | RunFailed] = []


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def job(config: DictConfig) -> float | str | None:
    """One run, or one cell of a sweep.

    Returns the primary AUROC for Hydra's sweepers, None where there is none.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_cell(config, run_one)
    try:
        return run_one(config)
    except (UserError, RunFailed) as error:
        failures.append(error)
        return None


def run_one(config: DictConfig) -> float | None:
    """Checks the options without torch, then runs.

    Returns the primary AUROC, None without labelled outliers.
    """
    from noveltylab.options import check_options

    choices = HydraConfig.get().runtime.choices
    if choices["row"]:
        raise UserError(f"row={choices['row']}: rows are run by the sweep of their experiment=...")
    check_recipe(str(choices["recipe"]), str(choices["method"]))
    options = check_options(config)
    settle_waiting(options.resources.num_cpus)
    if options.resources.num_cpus:
        os.environ["OMP_NUM_THREADS"] = str(options.resources.num_cpus)
    # it imports torch, which takes seconds: only once the options are known to be good
    from noveltylab.run.pipeline import run

    result = run(options, OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]  # a mapping at the top
    if not result:
        return None  # a helper process: the main one says it
    metrics = result["scores"][result["primary"]]
    if not metrics:
        return None
    return float(metrics["auroc"])


def check_recipe(recipe: str, method: str) -> None:
    """Raises UserError for a recipe that this method has not (conf/recipe/<method>.yaml)."""
    recipes = recipes_of(method)
    if recipe not in recipes:
        raise UserError(
            f"recipe={recipe}: method={method} has no such recipe; it has: {', '.join(recipes)}"
        )


def main() -> None:
    """Runs what was typed and ends with an exit code.

    0: done (or already complete). 1: a failure (also of any cell of a sweep). 2: bad input. 3: a
    sweep without failures of which some cells are not done, since other processes are running
    them. 129, 130, 143: ended by SIGHUP (a closed terminal), Ctrl-C, SIGTERM.
    """
    arguments = sys.argv[1:]
    with terminal():
        if arguments and arguments[0] in MODULES:
            sys.exit(run_word(arguments[0], arguments[1:]))
        if arguments:
            mistake = wrong_word(arguments[0])
            if mistake:
                _refuse(mistake)
        if {"-h", "--help"} & set(arguments):
            from noveltylab.help import print_help

            print_help(CONF, arguments, EXPERIMENTS)
            return
        _run_command()


def _run_command() -> None:
    # Hydra prints its own long explanations and exits with 1 unless this is set; we say it in one
    # line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Our launcher presets carry the plugins' names on purpose; Hydra checks them against the
    # plugins' schemas.
    warnings.filterwarnings(
        "ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema"
    )
    Plugins.instance().class_name_to_class["hydra_plugins.noveltylab.Sweeper"] = Sweeper
    for number in set(SIGNALS) - {signal.SIGINT}:
        handle(number, _terminate)
    try:
        check_moved(sys.argv[1:])
        sys.argv[1:] = with_row(readable(sys.argv[1:]))
        job()
    except UserError as error:
        _refuse(str(error))
    except CellsFailed:
        sys.exit(1)
    except CellsUnfinished:
        sys.exit(3)
    except HydraException as error:
        _refuse(explain(error))
    except OmegaConfBaseException as error:
        _refuse(f"the configuration: {str(error).splitlines()[0]}")
    except KeyboardInterrupt as error:
        say("interrupted; the same command goes on from the last checkpoint")
        sys.exit(exit_code(error))
    except BrokenPipeError:
        raise  # nobody reads: see `terminal`
    except OSError as error:  # a full disk, wherever it shows first
        where = error.filename2 or error.filename or "a file"
        _refuse(f"cannot read or write {where}: {error.strerror or error}", 1)
    if failures:
        code = 2 if isinstance(failures[0], UserError) else 1
        _refuse(str(failures[0]), code)


def with_row(arguments: list[str]) -> list[str]:
    """For `--cfg`, which composes no cell of a sweep: the options of a row in the place of row=..."""
    values = dict(text.split("=", 1) for text in arguments if "=" in text)
    rows = EXPERIMENTS.get(values.get("experiment", ""), {})
    row = values.get("row")
    if row not in rows or not {"--cfg", "-c"} & set(arguments):
        return arguments
    others = [text for text in arguments if not text.startswith("row=")]
    # after experiment=..., so that what is typed behind it has the last word
    place = others.index(f"experiment={values['experiment']}") + 1
    others[place:place] = [*row_options(rows, row), f"method.name={row}"]
    return others


def _terminate(number: int, frame: object) -> None:
    if number == HANGUP:
        leave_terminal()
    raise Interrupted(number)


def _refuse(message: str, code: int = 2) -> None:
    say_error(message)
    sys.exit(code)


def explain(error: HydraException) -> str:
    """Hydra's error in one line, with the nearest right name for a wrong one."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if group.startswith("experiment"):
            name = str(error.missing_cfg_file).removeprefix("experiment/")
            return f"experiment={name}: no such choice; {nearest(name, EXPERIMENTS)}"
        if group == "recipe":
            return _unknown_recipe(name)
        if error.options:
            return f"{group}={name}: no such choice; {nearest(name, error.options)}"
        return f"no configuration named '{error.missing_cfg_file}' under {CONF}"
    if isinstance(error, OverrideParseException):
        return explain_unreadable(str(error.override), sys.argv[1:])
    message = str(error)
    match = re.match(r"Sweep parameters '(.*)' requires", message)
    if match:
        return f"{match[1]}: several values are a sweep, which takes -m"
    match = re.search(r"Ambiguous value for argument '(.*)'\n", message)
    if match:
        key, _, value = match[1].partition("=")
        return (
            f"{match[1]}: several values are a sweep, which takes -m; "
            f"as one text: '{key}=\"{value}\"', as a list: '{key}=[{value}]'"
        )
    match = re.match(r"Could not override '([^']+)'", message)
    if match:
        return _unknown_key(match[1])
    return message


def _unknown_recipe(name: str) -> str:
    methods = _typed_values("method")
    method = methods[0].split(",")[0] if methods else "ocgan"
    return f"recipe={name}: no such choice of method={method}; {nearest(name, recipes_of(method))}"


def _typed_values(key: str) -> list[str]:
    """The values on the command line of the arguments <key>=..."""
    arguments = sys.argv[1:]
    prefix = f"{key}="
    return [argument.removeprefix(prefix) for argument in arguments if argument.startswith(prefix)]


def _unknown_key(key: str) -> str:
    """Names the option nearest to a misspelt one, among those of the chosen method, data, ..."""
    from noveltylab.help import compose_choices, flat_keys

    parent, _, _ = key.rpartition(".")
    choices = [*_typed_values(parent), ""][0]
    # of a sweep's choices the first one that has no such option
    for choice in choices.split(","):
        options = flat_keys(compose_choices(CONF, [*sys.argv[1:], f"{parent}={choice}"]))
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


if __name__ == "__main__":
    main()
