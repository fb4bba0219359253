"""The errors a user is meant to read, each said in one line without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. The message says what was looked for, where, what was found and
    what to do.
    """


class RunFailed(Exception):
    """A run that cannot go on for a reason that is known: exit code 1. What was there before is
    intact.
    """


class Interrupted(KeyboardInterrupt):
    """SIGTERM, or Ctrl-C, after the last checkpoint was written: exit code 128 + signal."""

    def __init__(self, signal: int) -> None:
        super().__init__()
        self.signal = signal


#: Share of equal letters from which a name counts as near.
NEAR = 0.65


def near_name(name: str, options: Iterable[str]) -> str | None:
    """The option that `name` is a slip of (`ocgn`) or a part of (`svdd`); None where none is near."""
    known = {option.lower(): option for option in sorted(options, reverse=True)}
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=NEAR)
    parts = [option for option in known if len(name) > 2 and name.lower() in option.split("_")]
    return known[(close + parts)[0]] if close or parts else None


def nearest(name: str, options: Iterable[str]) -> str:
    """A hint for a wrong name: ``did you mean 'ocgan'? Choose from: knn, ocgan, pca``."""
    known = sorted(options)
    close = near_name(name, known)
    hint = f"did you mean '{close}'? " if close else ""
    return f"{hint}Choose from: {', '.join(known)}"
