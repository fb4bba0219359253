"""What the shell offers on TAB: Hydra's options and choices, and what Hydra does not know of ours.

Hydra asks once for each TAB, by `noveltylab -sc query=<shell>`, with the line in COMP_LINE.
"""

from collections.abc import Collection, Mapping

from hydra.plugins.completion_plugin import CompletionPlugin

from noveltylab.command.recipes import recipes_of
from noveltylab.command.words import MODULES


def complete_ours(experiments: Mapping[str, Collection[str]]) -> None:
    """Makes Hydra's completion offer the command's words, experiments, rows and recipes as well.

    Args:
        experiments: <paper>/<table> of each, and the names of its rows.
    """
    of_hydra = CompletionPlugin._query

    def query(self: CompletionPlugin, config_name: str | None, line: str) -> list[str]:
        *typed, word = line.split(" ")
        if typed and typed[0] in MODULES:
            return _files(word)
        ours = _ours(typed, word, experiments)
        if ours is not None:
            return ours
        # of several choices the last one is being typed
        head, _, last = word.rpartition(",")
        if head and "[" not in head:
            group = head.partition("=")[0]
            words = query(self, config_name, " ".join([*typed, f"{group}={last}"]))
            return [f"{head},{text.removeprefix(f'{group}=')}" for text in words]
        words = [_as_typed(text) for text in of_hydra(self, config_name, line)]
        if not typed:
            words += [name for name in MODULES if name.startswith(word)]
        return sorted({text for text in words if not text.endswith("_target_=")})

    CompletionPlugin._query = query  # type: ignore[method-assign]  # it has no door for others


def _ours(
    typed: list[str], word: str, experiments: Mapping[str, Collection[str]]
) -> list[str] | None:
    """The choices of a group whose files do not lie as Hydra expects; None for other words."""
    group, equals, name = word.partition("=")
    values = dict(text.partition("=")[::2] for text in typed)
    names: Collection[str]
    if group == "experiment":
        names = experiments
    elif group == "row":
        names = experiments.get(values.get("experiment", ""), ())
    elif group == "recipe":
        names = recipes_of(values.get("method", "ocgan"))
    else:
        return None
    if not equals:
        return [f"{group}="]
    return [f"{group}={choice}" for choice in names if choice.startswith(name)]


def _as_typed(text: str) -> str:
    """A candidate of Hydra's as one types it: a group whose folder holds others ends in `=`, too."""
    if text == "experiment/":
        return "experiment="
    if text == "hydra":
        return "hydra/"
    is_open = text.endswith((".", "/")) or "=" in text
    return text if is_open else f"{text}="


def _files(word: str) -> list[str]:
    """Files for the value of `run=...` and the like; others the shell offers by itself."""
    key, equals, value = word.partition("=")
    if not equals:
        return []
    return [f"{key}={path}" for path in CompletionPlugin.complete_files(value or ".")]
