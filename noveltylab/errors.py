"""The errors a user is meant to read, each said in one line without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend.

    The message says what was looked for, where, what was found and what to do.
    """


class RunFailed(Exception):
    """A run that cannot go on for a reason that is known: exit code 1.

    What was there before is intact.
    """


#: How the log of a run ends that was interrupted: it has not failed.
INTERRUPTED = "interrupted"


class Interrupted(KeyboardInterrupt):
    """SIGTERM, or Ctrl-C, after the last checkpoint was written: exit code 128 + signal."""

    def __init__(self, signal: int) -> None:
        super().__init__()
        self.signal = signal


#: Share of equal letters from which a name counts as near.
NEAR = 0.65


def near_name(name: str, options: Iterable[str]) -> str | None:
    """The option that `name` is a slip of (`ocgn`) or a part of (`svdd`); None where none is near."""
    name = name.lower()
    spellings = {option.lower(): option for option in sorted(options, reverse=True)}
    matches = difflib.get_close_matches(name, spellings, n=1, cutoff=NEAR)
    if not matches and len(name) > 2:
        matches = [option for option in spellings if name in option.split("_")]
    return spellings[matches[0]] if matches else None


def nearest(name: str, options: Iterable[str]) -> str:
    """A hint for a wrong name: ``did you mean 'ocgan'? Choose from: knn, ocgan, pca``."""
    choices = sorted(options)
    hint = f"Choose from: {', '.join(choices)}"
    close = near_name(name, choices)
    if close:
        hint = f"did you mean '{close}'? {hint}"
    return hint


def in_one_line(error: BaseException) -> str:
    """What an exception says in one printable line of at most 160 characters."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    line = " ".join(text.split())
    line = "".join(sign if sign.isprintable() else " " for sign in line)[:160]
    return line or type(error).__name__
