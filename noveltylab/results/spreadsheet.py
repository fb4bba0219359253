"""Text in CSV files as cells that no spreadsheet runs.

A spreadsheet takes a cell that starts with =, +, -, @, a tab or a line end for a formula, and runs
it.

Such a text gets an apostrophe in front, which spreadsheets hide and `unquote` takes away. Numbers
are written as they are.
"""

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_QUOTED = re.compile(r"'+[=+\-@\t\r\n]")


def quote(text: str) -> str:
    """The text as a cell that is never a formula; the same for every ordinary text."""
    return f"'{text}" if _FORMULA.match(text) else text


def unquote(cell: str) -> str:
    """The text of a cell that `quote` made."""
    return cell[1:] if _QUOTED.match(cell) else cell
