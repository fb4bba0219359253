"""The one way to the terminal: names and texts of others are shown, never obeyed.

A file may be called anything, also `\\x1b[2J` (which clears a terminal) or `[bold]`; a terminal may
know ASCII alone. Whatever is printed goes through here.
"""

import io
import sys
import unicodedata
from typing import TextIO

from rich.console import Console

#: Characters that a terminal obeys or that reorder the line: control, format, surrogate, separator.
UNSHOWN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def plain(text: object) -> str:
    """The text with every character that a terminal would obey written as `\\x1b` or `\\u202e`."""
    return "".join(_shown(character) for character in str(text))


def _shown(character: str) -> str:
    if unicodedata.category(character) not in UNSHOWN:
        return character
    return character.encode("unicode_escape").decode("ascii")


def console(stderr: bool = False) -> Console:
    """A console that reads no markup and replaces what the terminal's encoding lacks."""
    tolerate_encoding(sys.stderr if stderr else sys.stdout)
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def tolerate_encoding(stream: TextIO) -> None:
    """Makes a stream write `\\u96f6` for a character that its encoding lacks, not fail."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
        stream.reconfigure(errors="backslashreplace")


def say(text: object) -> None:
    """Prints one line to standard error."""
    tolerate_encoding(sys.stderr)
    print(plain(" ".join(str(text).split())), file=sys.stderr)
