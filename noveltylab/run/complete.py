"""A run that is complete already: found and reported without torch, so that it answers at once."""

import shlex
from pathlib import Path
from typing import Any

from rich.text import Text

from noveltylab.command.screen import console, say
from noveltylab.options import Options
from noveltylab.run.folder import files_changed, previous
from noveltylab.run.summary import print_summary


def find_complete(options: Options, config: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a complete run with these options; None if there is something to do.

    None also if a file of one's own images has changed since: then they have to be read.

    Args:
        options: The options of the run.
        config: The same as plain values.

    Raises:
        UserError: The folder holds a run with other options.
    """
    result = previous(options.folder, options.recorded(config), options.force)
    if result is None or files_changed(result, options.data):
        return None
    return result


def report_complete(result: dict[str, Any], options: Options, folder: Path) -> None:
    """Says that a run is complete already, and shows its numbers."""
    title = Text("complete already", "bold")
    line = Text.assemble(title, f": {folder} (force=true runs it again)")
    console(soft_wrap=True).print(line)
    print_summary(result, folder)
    if options.diagnose != "none" and "diagnosis" not in result:
        say(
            "to diagnose this finished run: python -m noveltylab diagnose "
            f"run={shlex.quote(str(folder))}"
        )
