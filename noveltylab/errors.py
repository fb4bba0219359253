"""The errors a user is meant to read, each said in one line without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. The message says what was looked for, where, what was found and what to do."""


class RunFailed(Exception):
    """A run that cannot go on for a reason that is known: exit code 1. What was there before is intact."""


class Interrupted(KeyboardInterrupt):
    """SIGTERM, or Ctrl-C, after the last checkpoint was written: exit code 128 + signal."""

    def __init__(self, signal: int) -> None:
        super().__init__()
        self.signal = signal


def nearest(name: str, options: Iterable[str]) -> str:
    """A hint for a wrong name: ``did you mean 'ocgan'? Choose from: knn, ocgan, pca``."""
    known = sorted(options)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Choose from: {', '.join(known)}"
