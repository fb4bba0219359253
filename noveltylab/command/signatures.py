"""The options of a method as its source declares them: read, not imported.

A module of noveltylab.methods imports torch, which takes seconds. A wrong value is told before.
"""

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, create_model

from noveltylab.command.validate import STRICT, validate

PACKAGE = Path(__file__).resolve().parents[1]
#: Libraries that are imported already and whose names annotations are made of.
OF_ANNOTATIONS = ("pydantic", "typing")
#: What every method's configuration has beside the options of its class.
COMMON = ("name", "_target_", "primary")


def check_method(method: dict[str, Any]) -> None:
    """Checks the options of a method of noveltylab against its class, without importing it.

    What cannot be told from the source alone, as of another package's method, is left to whoever
    builds the method.

    Args:
        method: `name`, `_target_`, `primary` and the options of the method.

    Raises:
        UserError: Names each wrong option and says what was expected.
    """
    module, _, class_name = str(method["_target_"]).rpartition(".")
    path = PACKAGE / "methods" / f"{module.removeprefix('noveltylab.methods.')}.py"
    if not module.startswith("noveltylab.methods.") or not path.is_file():
        return
    model = options_model(path, class_name)
    if model is None:
        return
    values = {key: value for key, value in method.items() if key not in COMMON}
    validate(model, values, "method.")


@cache
def options_model(path: Path, class_name: str) -> type[BaseModel] | None:
    """The keyword-only arguments of a class of a file as a model; None if its source does not tell."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    function = find_init(tree, class_name)
    if function is None or not function.args.kwonlyargs:
        return None
    names = names_of_annotations(tree)
    fields: dict[str, Any] = {}
    arguments = function.args
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if argument.annotation is None:
            return None
        try:
            annotation = evaluated(argument.annotation, names)
        except NameError:
            return None
        # only whether there is a default matters: the configuration has a value of every option
        fields[argument.arg] = (annotation, ... if default is None else None)
    return create_model(class_name, __config__=STRICT, **fields)


def find_init(tree: ast.Module, class_name: str) -> ast.FunctionDef | None:
    """The `__init__` that a class itself defines; None without one."""
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef) and statement.name == class_name:
            for part in statement.body:
                if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                    return part
    return None


def names_of_annotations(tree: ast.Module) -> dict[str, Any]:
    """The names that a module takes from the libraries of annotations, or gives to such types."""
    names: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module in OF_ANNOTATIONS:
            library = importlib.import_module(statement.module)
            for alias in statement.names:
                names[alias.asname or alias.name] = getattr(library, alias.name)
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            # a number, a text or a type with a name of its own, such as Size = Annotated[int, ...]
            try:
                names[statement.targets[0].id] = evaluated(statement.value, names)
            except Exception:  # it needs what is not imported here, and so no annotation needs it
                continue
    return names


def evaluated(expression: ast.expr, names: dict[str, Any]) -> Any:
    """The value of an expression of noveltylab's own source."""
    code = compile(ast.Expression(expression), "<annotation>", "eval")
    return eval(code, dict(names))
