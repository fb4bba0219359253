"""The grid of a sweep: from choices and rows to the options of each cell.

Choices are `hydra.sweeper.params` of an experiment file and what is typed, such as
`inlier=range(0,10)`. Rows are `hydra.sweeper.rows`, such as an ablation's: a name and its options,
which may start from another row and may hold choices as well.
"""

import itertools
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from noveltylab.errors import UserError, nearest

Rows = Mapping[str, Sequence[str]]


def cells_of_grid(
    params: Mapping[str, object], rows: Rows, typed: Sequence[str], parser: OverridesParser
) -> list[list[str]]:
    """The options of every cell, row by row.

    Args:
        params: Choices of the experiment file; those of a row and typed ones override them.
        rows: Row -> its options; the first may be the name of the row that it starts from.
        typed: Options of the command line. `row=<name>,<name>` picks rows, else all are run.
        parser: Hydra's, which reads the choices.

    Raises:
        UserError: A row that the experiment has not, or a choice that is no list of values.
    """
    file_options = [f"{option}={value}" for option, value in params.items()]
    names = [text.removeprefix("row=") for text in typed if text.startswith("row=")]
    typed_options = [text for text in typed if not text.startswith("row=")]
    if not rows:
        if names:
            raise UserError(no_such_row(names[-1], rows))
        return _product([*file_options, *typed_options], parser)
    cells = []
    for name in names[-1].split(",") if names else rows:
        options = [*file_options, *row_options(rows, name), *typed_options]
        if not _sweeps_methods(options):
            options.append(f"method.name={name}")
        cells += _product(options, parser)
    return cells


def row_options(rows: Rows, name: str) -> list[str]:
    """The options of a row, after those of the row that it starts from.

    Raises:
        UserError: There is no row of that name, or none above it that it could start from.
    """
    if name not in rows:
        raise UserError(no_such_row(name, rows))
    options = list(rows[name])
    if not options or "=" in options[0]:
        return options
    names = list(rows)
    rows_above = names[: names.index(name)]
    if options[0] not in rows_above:
        raise UserError(f"row={name}: starts from '{options[0]}', which is no row above it")
    return [*row_options(rows, options[0]), *options[1:]]


def no_such_row(name: str, rows: Rows) -> str:
    """What to say of a row that is none of these of an experiment; without rows there is none."""
    if not rows:
        return f"row={name}: rows are run by the sweep of their experiment=..."
    return f"row={name}: no such row of this experiment; {nearest(name, rows)}"


def options_of_rows(rows: Rows) -> set[str]:
    """Every option that some row sets, and the name that a row gives its method."""
    texts = [text for options in rows.values() for text in options]
    return {"method.name", *(text.partition("=")[0] for text in texts if "=" in text)}


def _sweeps_methods(options: Sequence[str]) -> bool:
    """Whether several methods run, each under its own name; else a row's name is the run's."""
    methods = [text for text in options if text.startswith(("method=", "method.name="))]
    return bool(methods) and ("," in methods[-1] or methods[-1].startswith("method.name="))


def _product(options: Sequence[str], parser: OverridesParser) -> list[list[str]]:
    """One list of options for each combination of choices; of an option given twice the last."""
    choices: dict[str, list[str]] = {}
    for override in parser.parse_overrides(list(options)):
        choices[override.get_key_element()] = _choices(override)
    return [list(cell) for cell in itertools.product(*choices.values())]


def _choices(override: Override) -> list[str]:
    option = override.get_key_element()
    if not override.is_sweep_override():
        # as it is written: Hydra's own text of a value has its `${...}` escaped
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line}: an interval has no values to list")
    return [f"{option}={value}" for value in override.sweep_string_iterator()]
