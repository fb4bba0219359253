"""Checks values against a pydantic model, or against the keyword arguments of a class or function.

Every mistake is told as `trainer.max_epochs=0: ...` in one line, with the right name where the name
is wrong.
"""

import inspect
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from noveltylab.command.dotted import flatten
from noveltylab.command.hints import option_hint
from noveltylab.errors import UserError

#: Characters of a wrong value that a message repeats.
LONGEST_VALUE = 100
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)
M = TypeVar("M", bound=BaseModel)


@cache
def signature_model(function: Callable[..., Any]) -> type[BaseModel]:
    """The keyword-only arguments of a class or function as a model."""
    target = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(target, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        required = parameter.default is parameter.empty
        fields[name] = (hints[name], ... if required else parameter.default)
    return create_model(function.__name__, __config__=STRICT, **fields)


def validate(model: type[M], values: dict[str, Any], prefix: str = "") -> M:
    """The values as a checked value of the model.

    Args:
        model: What is expected.
        values: Nested, as in a configuration.
        prefix: What messages put before each key, such as `method.`.

    Raises:
        UserError: Names each wrong option and says what was expected.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        mistakes = error.errors()
        unknown = set()
        for mistake in mistakes:
            if mistake["type"] == "extra_forbidden":
                unknown.add(prefix + ".".join(map(str, mistake["loc"])))
        options = {prefix + key for key in (*flatten(values), *model.model_fields)} - unknown
        messages = [_explain(model, mistake, prefix, options) for mistake in mistakes]
        raise UserError("; ".join(dict.fromkeys(messages))) from None


def _explain(model: type[BaseModel], mistake: Any, prefix: str, options: set[str]) -> str:
    """One mistake that pydantic found as `trainer.max_epochs=0: ...`."""
    path, siblings = _place(model, mistake["loc"])
    option = prefix + ".".join(path)
    if mistake["type"] == "extra_forbidden":
        hint = option_hint(option, options)
        return f"{option}: no such option; {hint}Choose from: {', '.join(sorted(siblings))}"
    if mistake["type"] == "missing":
        return f"{option}: not set in the configuration; give it a value"
    message = mistake["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    value = str(mistake["input"])[:LONGEST_VALUE]
    return f"{option}={value}: {message.replace('input', 'the value', 1)}"


def _place(model: type[BaseModel], location: tuple[Any, ...]) -> tuple[list[str], list[str]]:
    """The keys that lead to a mistake, and the names of the options beside the last of them."""
    path: list[str] = []
    siblings: list[str] = []
    field: FieldInfo | None = None
    group: type[BaseModel] | None = model
    for part in location:
        if group is None:
            branch = _branch(field, part)
            if branch is None:
                break  # pydantic's own name for a branch of a union
            group = branch
            continue
        siblings = list(group.model_fields)
        path.append(str(part))
        field = group.model_fields.get(part)
        group = None if field is None else group_of(field)
    return path, siblings


def group_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a group of options, None for a single option."""
    annotation = field.annotation
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _branch(field: FieldInfo | None, tag: Any) -> type[BaseModel] | None:
    """The model of a union that its discriminator calls `tag`, None if there is none."""
    if field is None or not isinstance(field.discriminator, str):
        return None
    for model in typing.get_args(field.annotation):
        tags = typing.get_args(model.model_fields[field.discriminator].annotation)
        if tag in tags:
            return typing.cast(type[BaseModel], model)
    return None
