"""The words of the command, as in `noveltylab predict ...`, and the module that each one runs."""

import sys
from importlib import import_module

from noveltylab.command.screen import say_error
from noveltylab.errors import near_name

#: Word -> the module whose `main` it calls.
MODULES = {
    "predict": "noveltylab.predict.__main__",
    "report": "noveltylab.report.__main__",
    "export": "noveltylab.predict.export",
    "rerun": "noveltylab.run.rerun",
    "dashboard": "noveltylab.report.dashboard",
    "diagnose": "noveltylab.run.diagnose",
    "status": "noveltylab.sweep.status",
}
#: Word -> what it does, for the help.
MEANINGS = {
    "predict": "scores, p-values and decisions of new files by a finished run",
    "report": "tables and one HTML page of all results below a folder",
    "export": "a finished run's score as one file, for other programs",
    "rerun": "repeat a finished run and compare its scores",
    "dashboard": "the workspace of W&B for a project",
    "diagnose": "what faults of evaluation would do to a finished run's number",
    "status": "what of a folder of runs is complete, running, failed and left",
}


def run_word(word: str, arguments: list[str]) -> int:
    """Calls the module of a word with the arguments after it; returns its exit code."""
    module = import_module(MODULES[word])
    code = module.main(arguments)
    return int(code or 0)


def wrong_word(argument: str) -> str | None:
    """What to say of a first argument that looks like a word but is none; None if it is fine.

    Options have a `=`, flags begin with `-`, and Hydra's deletions begin with `~`.
    """
    if argument in MODULES or "=" in argument or argument[:1] in ("", "-", "~"):
        return None
    near = near_name(argument, MODULES)
    hint = ""
    if near:
        hint = f"did you mean '{near}'? "
    return (
        f"cannot read '{argument}' on the command line; {hint}"
        f"The commands are: {', '.join(MODULES)}; options are written key=value, e.g. inlier=3"
    )


def commands() -> set[str]:
    """The names that `python -m` may run."""
    names = {"noveltylab", "noveltylab.__main__"}
    for module in MODULES.values():
        names |= {module, module.removesuffix(".__main__")}
    return names


def refuse_other_modules(arguments: list[str]) -> None:
    """Ends `python -m noveltylab.<module>` with exit code 2 if the module is no command.

    Args:
        arguments: The command line of the interpreter (`sys.orig_argv`).
    """
    module = requested_module(arguments)
    if module is None or module in commands():
        return
    say_error(f"{module} is no command; type: {nearest_command(module)}")
    sys.exit(2)


def requested_module(arguments: list[str]) -> str | None:
    """The module of noveltylab that `python -m` was asked to run; None if there is none."""
    for position, argument in enumerate(arguments[1:], 1):
        if not argument.startswith("-"):
            continue
        # `-m name`, `-um name` or `-mname`
        _, flag, name = argument.partition("m")
        if flag and not name:
            name = "".join(arguments[position + 1 : position + 2])
        if name.split(".")[0] == "noveltylab":
            return name
    return None


def nearest_command(module: str) -> str:
    """The command that may be meant by a module's name: the last of its parts that is a word."""
    for part in reversed(module.split(".")):
        if part in MODULES:
            return f"python -m noveltylab {part}"
    return "python -m noveltylab"
