"""What the text of an option must be: a path, a label, a project of W&B, a share of a GPU."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from noveltylab.command.dotted import flatten
from noveltylab.errors import UserError

#: Bytes that file systems take for the name of a file or folder.
LONGEST_NAME = 255
#: Letters of a label of one's own images.
LONGEST_LABEL = 60
#: Names that no label of one's own images may have: results go by them.
DATA_SETS = {
    *("digits", "mnist", "fmnist", "cifar10", "coil100", "coil20", "ucsd"),
    *("dcase", "dcase_waveform", "folder", "images", "antispoofing"),
}


def _usable_path(path: str) -> str:
    if not path.strip():
        raise ValueError("the path is empty; name a folder")
    if "${" in path or "\0" in path:
        raise ValueError("no path can be read with ${ or a zero byte in it; choose another name")
    if any(len(part.encode(errors="replace")) > LONGEST_NAME for part in Path(path).parts):
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


def usable_label(label: str | int) -> str | int:
    """The label, if it can be a folder's name and is not that of a data set; else ValueError."""
    text = str(label)
    plain = text.isprintable() and text.strip(" .") == text and not set(text) & set('/\\:*?"<>|')
    if not plain or not 0 < len(text) <= LONGEST_LABEL:
        raise ValueError(
            f"a name of at most {LONGEST_LABEL} letters, digits, spaces, dots, dashes; "
            "it becomes a folder's name"
        )
    if text.casefold() in DATA_SETS:
        raise ValueError(
            f"that is the name of a data set; call your own otherwise, e.g. data.label=my-{text}"
        )
    return label


def _shareable(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("one GPU can be shared (0.25), several are whole (2)")
    return gpus


PathText = Annotated[str, AfterValidator(_usable_path)]
Label = Annotated[str | int, AfterValidator(usable_label)]
Project = Annotated[str, AfterValidator(_usable_project)]
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
