"""Checks values against a pydantic model, or against the keyword arguments of a class or function.

Every mistake is told as `trainer.max_epochs=0: ...` in one line, with the right name where the name
is wrong. At the end: what the text of an option must be.
"""

import inspect
import re
import typing
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
)
from pydantic.fields import FieldInfo

from noveltylab.command.hints import option_hint
from noveltylab.errors import UserError
from noveltylab.installed import offered_names

#: Characters of a wrong value that a message repeats.
LONGEST_VALUE = 100
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)
M = TypeVar("M", bound=BaseModel)

#: Bytes that file systems take for the name of a file or folder.
LONGEST_NAME = 255
#: Characters of a tag.
LONGEST_TAG = 64
#: Letters of a label of one's own images.
LONGEST_LABEL = 60
#: Names that no label of one's own images may have: results go by them.
DATA_SETS = {
    *("digits", "mnist", "fmnist", "cifar10", "coil100", "coil20", "ucsd"),
    *("ucsd_clips", "dcase", "dcase_waveform", "folder", "images", "antispoofing"),
}


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one of dotted keys: {"data": {"size": 32}} -> {"data.size": 32}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@cache
def signature_model(function: Callable[..., Any]) -> type[BaseModel]:
    """The keyword-only arguments of a class or function as a model."""
    target = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(target, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        default = parameter.default
        if default is parameter.empty:
            default = ...  # pydantic's word for an argument that is required
        fields[name] = (hints[name], default)
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
        options = {prefix + key for key in (*flatten(values), *model.model_fields)}
        for mistake in mistakes:
            if mistake["type"] == "extra_forbidden":
                options.discard(prefix + ".".join(map(str, mistake["loc"])))
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
    value = re.sub(r"//[^/@]*@", "//***@", str(mistake["input"]))[:LONGEST_VALUE]
    return f"{option}={value}: {message.replace('input', 'the value', 1)}"


def _place(model: type[BaseModel], location: tuple[Any, ...]) -> tuple[list[str], list[str]]:
    """The keys that lead to a mistake, and the names of the options beside the last of them."""
    path: list[str] = []
    siblings: list[str] = []
    field: FieldInfo | None = None
    group: type[BaseModel] | None = model
    for part in location:
        if group is None:
            break  # the place in a list, or pydantic's own name for a branch of a union
        siblings = list(group.model_fields)
        path.append(str(part))
        field = group.model_fields.get(part)
        group = group_of(field)
    return path, siblings


def group_of(field: FieldInfo | None) -> type[BaseModel] | None:
    """The model of a field that is a group of options; None for a single option, or without one."""
    annotation = field.annotation if field else None
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return None


# What the text of an option must be: a path, a label, a project of W&B, a share of a GPU.


def _usable_path(path: str) -> str:
    if not path.strip():
        raise ValueError("the path is empty; name a folder")
    if "${" in path or "\0" in path:
        raise ValueError("no path can be read with ${ or a zero byte in it; choose another name")
    for part in Path(path).parts:
        if len(part.encode(errors="replace")) > LONGEST_NAME:
            raise ValueError(
                f"a part of the path is longer than the {LONGEST_NAME} bytes that a name may have"
            )
    try:
        Path(path).expanduser()
    except RuntimeError:
        raise ValueError(
            f"there is no home folder of {path.split('/')[0]}; as a name it is ./{path}"
        ) from None
    return path


def _usable_project(name: str) -> str:
    if not re.fullmatch(r"[^/\\\\#?%:]{1,128}", name):
        raise ValueError("a project of W&B has 1 to 128 characters without / \\ # ? % :")
    return name


def _usable_uri(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.password:
        raise ValueError(
            "a password would be kept with the run; MLflow reads it from MLFLOW_TRACKING_PASSWORD"
        )
    if not parts.scheme or (parts.scheme == "sqlite" and not uri.startswith("sqlite:///")):
        raise ValueError(
            "no address of an MLflow store; a file is sqlite:////srv/mlflow.db, a server http://host:5000"
        )
    return uri


def _usable_tag(tag: str) -> str:
    if not 0 < len(tag.strip()) <= LONGEST_TAG:
        raise ValueError(f"a tag has 1 to {LONGEST_TAG} characters, as W&B wants it")
    return tag


def _as_text(tag: object) -> object:
    """A tag that YAML reads as a number."""
    return str(tag) if isinstance(tag, int | float) and not isinstance(tag, bool) else tag


def usable_label(label: str | int) -> str | int:
    """The label, if it can be a folder's name and is not that of a data set; else ValueError."""
    text = str(label)
    plain = text.isprintable() and text.strip(" .") == text and not set(text) & set('/\\:*?"<>|')
    if not plain or not 0 < len(text) <= LONGEST_LABEL:
        raise ValueError(
            f"a name of at most {LONGEST_LABEL} letters, digits, spaces, dots, dashes; "
            "it becomes a folder's name"
        )
    if text.casefold() in DATA_SETS.union(offered_names("data")):
        raise ValueError(
            f"that is the name of a data set; call your own otherwise, e.g. data.label=my-{text}"
        )
    return label


def _shareable(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("one GPU can be shared (0.25), several are whole (2)")
    return gpus


def one_class(value: object) -> object:
    """The value, which is no list: a class goes here, and pydantic would speak of each type."""
    if isinstance(value, list | dict):
        raise ValueError("one class goes here; a sweep over several: -m inlier=0,1")
    return value


PathText = Annotated[str, AfterValidator(_usable_path)]
Label = Annotated[str | int, AfterValidator(usable_label)]
Project = Annotated[str, AfterValidator(_usable_project)]
TrackingURI = Annotated[str, AfterValidator(_usable_uri)]
Tag = Annotated[str, BeforeValidator(_as_text), AfterValidator(_usable_tag)]
Notes = Annotated[str, Field(max_length=5000)]  # as MLflow has it
GPUs = Annotated[float, Field(ge=0), AfterValidator(_shareable)]


def check_encoding(config: dict[str, Any]) -> None:
    """Raises UserError for text that is no UTF-8, which no file could keep.

    The name of a folder on an old disk may be such a text.
    """
    for key, value in flatten(config).items():
        try:
            str(value).encode()
        except UnicodeEncodeError:
            raise UserError(f"{key}={value}: this name is no UTF-8; rename what it names") from None


def check_arguments(
    function: Callable[..., Any], values: dict[str, Any], prefix: str
) -> dict[str, Any]:
    """Checks values against the keyword-only arguments of a class or function.

    Returns:
        The values, with the defaults filled in.

    Raises:
        UserError: Names the option as `<prefix>.<key>` and says what was expected.
    """
    return validate(signature_model(function), values, f"{prefix}.").model_dump()
