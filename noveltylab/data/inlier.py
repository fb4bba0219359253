"""Which class `inlier=` means: a name, another name of the same class, or a position."""

import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from noveltylab.data.layout import find_layout
from noveltylab.errors import UserError, nearest

#: A class by its name or position, as the command line reads it; None: the good one of one's own
#: folders.
Inlier = int | str | float | bool | None
#: Names of classes that a message lists.
LISTED = 20
#: COIL-100's objects by label.
COIL_OBJECTS = [f"obj{number}" for number in range(1, 101)]
#: The 20 of the papers' "20 random classes": the same for every method.
COIL_SEEDED = sorted(random.Random(0).sample(range(100), 20))


def good_class(root: str | None) -> int:
    """The label of the good class of one's own images.

    Raises:
        UserError: A class is called null, which the command line reads as nothing.
    """
    layout = find_layout(root)
    for name in layout.classes:
        if name.casefold() == "null":
            raise UserError(
                f"data.root={root}: has a class called {name}; "
                f"say which one trains: 'inlier=\"{name}\"'"
            )
    return layout.classes.index(layout.good)


def label_by_name(typed: int | str | float | bool, names: Sequence[str]) -> int | None:
    """The label of the class of that name, None if there is none.

    Names are compared as they are, else as the command line reads them (1_0 as 10), else without
    regard to case. A class listed as `T-shirt/top` answers to both its names.

    Raises:
        UserError: Several classes could be meant.
    """
    text = str(typed)
    # alias and label of the classes that have this name, in one sense after the other
    equal: list[tuple[str, int]] = []
    equal_value: list[tuple[str, int]] = []
    equal_folded: list[tuple[str, int]] = []
    for label, name in enumerate(names):
        for alias in dict.fromkeys((name, *name.split("/"))):
            if alias == text:
                equal.append((alias, label))
            if not isinstance(typed, str) and value_of(alias) == (type(typed), typed):
                equal_value.append((alias, label))
            if alias.casefold() == text.casefold():
                equal_folded.append((alias, label))
    for matches in (equal, equal_value, equal_folded):
        if not matches:
            continue
        aliases, labels = zip(*matches, strict=True)
        if len(set(labels)) > 1:
            raise UserError(
                f"inlier={text}: could be {' or '.join(aliases)}; name it in quotes within quotes: "
                f"'inlier=\"{aliases[0]}\"'"
            )
        return int(labels[0])
    return None


def label_at_position(
    typed: int | str | float | bool, names: Sequence[str], labels: Sequence[int], title: str
) -> int:
    """The label at a position.

    Args:
        typed: The position as it was typed.
        names: Class names by label.
        labels: The labels that positions 0, 1, ... stand for.
        title: What the data are called.

    Raises:
        UserError: It is no position, or there are fewer classes.
    """
    if not isinstance(typed, int) or isinstance(typed, bool):
        hint = nearest(str(typed), names)
        raise UserError(f"inlier={typed}: no such class in {title}; {hint}")
    if not 0 <= typed < len(labels):
        raise UserError(
            f"inlier={typed}: {title} has classes 0 to {len(labels) - 1}: "
            f"{', '.join(names[:LISTED])}"
        )
    return labels[typed]


def refuse_position(typed: int | str | float | bool, names: Sequence[str]) -> None:
    """Raises UserError for a whole number where class folders are named by numbers."""
    if type(typed) is int and named_by_numbers(names):
        raise UserError(
            f"inlier={typed}: no class folder of that name (and no position, where folders are "
            f"named by numbers); choose from: {', '.join(names[:LISTED])}"
        )


def named_by_numbers(names: Sequence[str]) -> bool:
    """Whether the command line reads one of these names as a whole number."""
    return any(value_of(name)[0] is int for name in names)


def value_of(name: str) -> tuple[type, Any]:
    """Type and value that the command line makes of a name without quotes."""
    if name.casefold() in ("true", "false"):
        return bool, name.casefold() == "true"
    for kind in (int, float):
        with suppress(ValueError):
            return kind, kind(name)
    return str, name
