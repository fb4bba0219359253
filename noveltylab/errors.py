"""The one error a user is meant to read: bad input, said in one line, exit code 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. The message says what was looked for, where, what was found and what to do."""


def nearest(name: str, options: Iterable[str]) -> str:
    """A hint for a wrong name: ``did you mean 'ocgan'? Choose from: knn, ocgan, pca``."""
    known = sorted(options)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Choose from: {', '.join(known)}"
