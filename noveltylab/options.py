"""Every option's type and range, in one place; checked before torch is imported or anything is
created.

The options of a method (and of a protocol) are the keyword arguments of its class (function):
`check_arguments` reads them from the signature, so that a misspelt key, a wrong type or a value out
of range fails with one line.
"""

import inspect
import random
import re
import typing
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from noveltylab.command.hints import option_hint
from noveltylab.command.wandb_mode import wandb_mode
from noveltylab.errors import UserError, nearest
from noveltylab.results.record import LATER, flatten
from noveltylab.results.schema import Name, check_name

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
#: COIL-100's objects by label, and the 20 of the papers' "20 random classes": the same for every
#: method
COIL_OBJECTS = [f"obj{number}" for number in range(1, 101)]
COIL_SEEDED = sorted(random.Random(0).sample(range(100), 20))
#: Bytes that file systems take for the name of a file or folder.
LONGEST_NAME = 255
#: Characters of a wrong value that a message repeats.
SHOWN = 100
#: names that no label of one's own images may have: results go by them
DATA_SETS = {
    *(
        "digits",
        "mnist",
        "fmnist",
        "cifar10",
        "coil100",
        "coil20",
        "ucsd",
        "dcase",
        "dcase_waveform",
    ),
    *("folder", "images", "antispoofing"),
}
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)


#: a class by its name or position, as the command line reads it; None: the good one of one's own
#: folders
Inlier = int | str | float | bool | None


class _Strict(BaseModel):
    model_config = STRICT


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


PathText = Annotated[str, AfterValidator(_usable_path)]


def usable_label(label: str | int) -> str | int:
    """A label as it is. ValueError: it would lead elsewhere as a folder's name, or is that of a
    data set.
    """
    text = str(label)
    if not (text.isprintable() and text.strip(" .") == text and 0 < len(text) <= 60) or set(
        text
    ) & set('/\\:*?"<>|'):
        raise ValueError(
            "a name of at most 60 letters, digits, spaces, dots, dashes; it becomes a folder's name"
        )
    if text.casefold() in DATA_SETS:
        raise ValueError(
            f"that is the name of a data set; call your own otherwise, e.g. data.label=my-{text}"
        )
    return label


class DataOptions(_Strict):
    name: Name
    root: PathText | None
    verify: bool
    download: bool
    size: Annotated[int, Field(ge=8, le=1024)] | None
    contrast: Literal["none", "gcn", "gcn_image"]
    subtract_mean: bool
    batch_size: Annotated[int, Field(ge=2)]  # batch norm needs two
    limit_train: Annotated[int, Field(ge=2)] | None
    classes: list[str] | Literal["seeded20", "all100", "folders"]
    protocols: list[str]
    inlier: Inlier
    features: Literal["logmel", "waveform"] | None = None
    cache: bool = False
    on_error: Literal["fail", "skip"] = "fail"
    bits: Annotated[int, Field(ge=8, le=16)] | None = LATER["data.bits"]
    label: Annotated[str | int, AfterValidator(usable_label)] | None = LATER["data.label"]
    source: PathText | None = LATER["data.source"]
    target: PathText | None = LATER["data.target"]

    @property
    def title(self) -> str:
        """What the data are called in the run's folder, on the screen and in reports."""
        return self.name if self.label is None else str(self.label)

    @property
    def fitted_on_training(self) -> bool:
        """Whether the preprocessing has numbers of its own from all training images."""
        return self.contrast == "gcn" or self.subtract_mean

    @property
    def names(self) -> list[str]:
        """The class names by label; of one's own images those of the folders. UserError where there
        are none.
        """
        if self.classes == "folders":
            from noveltylab.data.layout import GOOD, find_layout

            return (
                [GOOD] if self.root is None else find_layout(self.root).classes
            )  # `recorded` asks for the root
        return COIL_OBJECTS if isinstance(self.classes, str) else self.classes

    @property
    def inliers(self) -> list[int]:
        """The labels that inlier=0, 1, ... stand for."""
        return COIL_SEEDED if self.classes == "seeded20" else list(range(len(self.names)))


class TrainerOptions(_Strict):
    max_epochs: Count
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"]
    devices: Count
    strategy: Literal["auto", "ddp_find_unused_parameters_true"]
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"]
    cuda_graph: Literal["off", "auto", "on"] = LATER["trainer.cuda_graph"]
    winograd: bool = LATER["trainer.winograd"]
    lr_decay_from: Annotated[float, Field(ge=0, le=1)] = LATER["trainer.lr_decay_from"]
    average_epochs: Annotated[float, Field(ge=0, allow_inf_nan=False)] = LATER[
        "trainer.average_epochs"
    ]
    val_every: Count
    select_from: Share
    select_whole: bool = LATER["trainer.select_whole"]
    patience: Annotated[int, Field(ge=0)] = LATER["trainer.patience"]
    batch_norm: Literal["running", "anew"] = LATER["trainer.batch_norm"]
    checkpoint_seconds: Annotated[float, Field(ge=0)]
    score_batch_size: Count


def _shareable(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("one GPU can be shared (0.25), several are whole (2)")
    return gpus


class ResourceOptions(_Strict):
    num_gpus: Annotated[float, Field(ge=0), AfterValidator(_shareable)] | None
    num_cpus: Count | None


class CSVOptions(_Strict):
    name: Literal["csv"]


class WandbOptions(_Strict):
    name: Literal["wandb"]
    project: Annotated[str, AfterValidator(_usable_project)]
    entity: str | None
    mode: Literal["auto", "online", "offline"]


LOGGERS: dict[str, type[_Strict]] = {"csv": CSVOptions, "wandb": WandbOptions}
M = TypeVar("M", bound=BaseModel)


class Options(_Strict):
    method: dict[str, Any]
    data: DataOptions
    protocol: dict[str, Any]
    trainer: TrainerOptions
    resources: ResourceOptions
    logger: Annotated[CSVOptions | WandbOptions, Field(discriminator="name")]
    inlier: Inlier
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    select: Literal["last", "val_loss", "outlier_val", "oracle"]
    output: PathText
    deterministic: bool
    force: bool
    pictures: bool = True  # runs of before had no such option
    recipe: Name = LATER["recipe"]
    diagnose: Literal["none", "batch_statistics"] = LATER["diagnose"]

    @property
    def main_rule(self) -> str:
        """The rule behind the run's number: `select` where it uses inliers only, else `val_loss`."""
        return "last" if self.select == "last" else "val_loss"

    @property
    def labelled_rule(self) -> str | None:
        """`outlier_val` or `oracle` if asked for: reported apart, since they use labels of
        outliers.
        """
        return self.select if self.select in ("outlier_val", "oracle") else None

    @property
    def folds(self) -> int:
        """In how many folds every training inlier is held out once; 0 for a held-out part."""
        return int(self.protocol.get("folds", 0))

    @property
    def inlier_index(self) -> int:
        return resolve_inlier(self.inlier, self.data)

    def recorded(self, config: dict[str, Any]) -> dict[str, Any]:
        """The plain config as a run keeps it: the inlier by its label, and a folder of one's own
        images by its full path.

        The inlier by its name where folders are named by numbers.

        UserError where no such folder is given, or holds no images.
        """
        recorded = {**config, "inlier": self.inlier_index}
        if self.data.classes == "folders":
            from noveltylab.data.layout import find_layout

            recorded["data"] = {
                **config["data"],
                "root": str(find_layout(self.data.root).root.resolve()),
            }
            if any(
                _is_number(name) for name in self.data.names
            ):  # a position would be read as a name
                recorded["inlier"] = self.data.names[self.inlier_index]
        return recorded

    @property
    def inlier_name(self) -> str:
        name = self.data.names[self.inlier_index]
        return name if self.data.classes == "folders" else name.split("/")[0]

    @property
    def folder(self) -> Path:
        """The run's folder: <output>/<protocol>/<method>/<data>/inlier<k>/seed<s>."""
        names = (self.protocol["name"], self.method["name"], self.data.title)
        return (
            Path(self.output)
            .expanduser()
            .joinpath(*names, f"inlier{self.inlier_index}", f"seed{self.seed}")
        )


def check_options(config: DictConfig) -> Options:
    """The composed config as a checked value.

    Raises:
        UserError: on an unknown key, a wrong type, a value out of range or an inlier that the data
        does not have.
    """
    try:
        plain = typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    check_encoding(plain)
    options = _validated(Options, plain, "")
    if isinstance(options.logger, WandbOptions):
        wandb_mode(options.logger.mode)  # which refuses a wrong WANDB_MODE, or a missing key
    resolve_inlier(options.inlier, options.data)
    _check_names(options)
    if (protocol := options.protocol["name"]) not in options.data.protocols:
        raise UserError(
            f"protocol={protocol} does not fit data={options.data.name}; it can be {', '.join(options.data.protocols)}"
        )
    if options.trainer.lr_decay_from < 1 and options.trainer.cuda_graph != "off":
        raise UserError(
            f"trainer.lr_decay_from={options.trainer.lr_decay_from}: a recorded graph keeps its learning rate; "
            f"trainer.cuda_graph={options.trainer.cuda_graph} has to be off"
        )
    if options.trainer.patience and options.select == "last":
        raise UserError(
            f"trainer.patience={options.trainer.patience}: select=last scores the last of the planned epochs; "
            "take select=val_loss, or trainer.patience=0"
        )
    return options


def _check_names(options: Options) -> None:
    """UserError unless method and protocol have names that may become folders."""
    for group in ("method", "protocol"):
        name = getattr(options, group).get("name")
        if not isinstance(name, str):
            raise UserError(
                f"{group}.name is missing in the configuration; it is the name of the file in conf/{group}/"
            )
        try:
            check_name(name)
        except ValueError as error:
            raise UserError(f"{group}.name={name[:SHOWN]}: {error}") from None


def check_encoding(config: dict[str, Any]) -> None:
    """Raises UserError for text that is no UTF-8, such as a folder's name of an old disk: no file
    could keep it.
    """
    for key, value in flatten(config).items():
        try:
            str(value).encode()
        except UnicodeEncodeError:
            raise UserError(f"{key}={value}: this name is no UTF-8; rename what it names") from None


def read_options(config: dict[str, Any]) -> Options:
    """The recorded config of a run as a checked value; its data need not be on this machine.
    UserError as check_options.
    """
    options = _validated(Options, config, "")
    _check_names(options)
    return options


def resolve_inlier(inlier: Inlier, data: DataOptions) -> int:
    """The label of `inlier`: a name wins over a position; a class listed as `T-shirt/top` answers
    to both its names.

    Names are compared as they are, else as the command line reads them (1_0 as 10), else without
    regard to case.

    Raises:
        UserError: There is no such class, or several that could be meant.
    """
    names = data.names
    own = data.classes == "folders" and data.root is not None
    if inlier is None:
        return _good_class(data) if own else 0
    typed = str(inlier)
    aliases = [
        (alias, label)
        for label, name in enumerate(names)
        for alias in dict.fromkeys((name, *name.split("/")))
    ]
    ways = (
        lambda alias: alias == typed,
        lambda alias: not isinstance(inlier, str) and _as_typed(alias) == (type(inlier), inlier),
        lambda alias: alias.casefold() == typed.casefold(),
    )
    for way in ways:
        same = [(alias, label) for alias, label in aliases if way(alias)]
        if len({label for _, label in same}) > 1:
            raise UserError(
                f"inlier={typed}: could be {' or '.join(alias for alias, _ in same)}; name it in quotes within quotes: "
                f"'inlier=\"{same[0][0]}\"'"
            )
        if same:
            return same[0][1]
    if type(inlier) is not int:
        raise UserError(f"inlier={typed}: no such class in {data.title}; {nearest(typed, names)}")
    return _at_position(inlier, data)


def _at_position(inlier: int, data: DataOptions) -> int:
    names, count = data.names, len(data.inliers)
    if data.classes == "folders" and any(_is_number(name) for name in names):
        raise UserError(
            f"inlier={inlier}: no class folder of that name (and no position, where folders are named by numbers); choose "
            f"from: {', '.join(names[:20])}"
        )
    if not 0 <= inlier < count:
        raise UserError(
            f"inlier={inlier}: {data.title} has classes 0 to {count - 1}: {', '.join(names[:20])}"
        )
    return data.inliers[inlier]


def _good_class(data: DataOptions) -> int:
    from noveltylab.data.layout import find_layout

    layout = find_layout(data.root)
    if null := next((name for name in layout.classes if name.casefold() == "null"), None):
        raise UserError(
            f"data.root={data.root}: has a class called {null}; say which one trains: 'inlier=\"{null}\"'"
        )
    return layout.classes.index(layout.good)


def _as_typed(name: str) -> tuple[type, Any]:
    """Type and value that the command line makes of a name without quotes."""
    if name.casefold() in ("true", "false"):
        return bool, name.casefold() == "true"
    for kind in (int, float):
        with suppress(ValueError):
            return kind, kind(name)
    return str, name


def _is_number(name: str) -> bool:
    return _as_typed(name)[0] is int


def check_arguments(
    function: Callable[..., Any], given: dict[str, Any], prefix: str
) -> dict[str, Any]:
    """Checks `given` against the keyword-only arguments of a class or function; returns them with
    the defaults filled in.

    Raises:
        UserError: names the option as `<prefix>.<key>` and says what was expected.
    """
    return _validated(_signature_model(function), given, f"{prefix}.").model_dump()


@cache
def _signature_model(function: Callable[..., Any]) -> type[BaseModel]:
    target = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(target, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    return create_model(function.__name__, __config__=STRICT, **fields)


def _validated(model: type[M], given: dict[str, Any], prefix: str) -> M:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        wrong = {
            prefix + ".".join(map(str, item["loc"]))
            for item in error.errors()
            if item["type"] == "extra_forbidden"
        }
        fields = {prefix + name for name in model.model_fields}
        known = {*(prefix + key for key in flatten(given)), *fields} - wrong
        messages = (_explain(model, item, prefix, known) for item in error.errors())
        raise UserError("; ".join(dict.fromkeys(messages))) from None


def _explain(model: type[BaseModel], item: Any, prefix: str, known_options: set[str]) -> str:
    """One pydantic error as `trainer.max_epochs=0: ...`, with the right names where the name is
    wrong.
    """
    here: type[BaseModel] | None = model
    path: list[str] = []
    known: list[str] = []
    for part in item["loc"]:
        if path == ["logger"] and part in LOGGERS:
            here = LOGGERS[part]
            continue
        if here is None:
            break  # pydantic's own name for a branch of a union
        known = list(here.model_fields)
        path.append(str(part))
        annotation = here.model_fields[part].annotation if part in known else None
        here = (
            annotation
            if inspect.isclass(annotation) and issubclass(annotation, BaseModel)
            else None
        )
    option = prefix + ".".join(path)
    if item["type"] == "extra_forbidden":
        siblings = f"Choose from: {', '.join(sorted(known))}"
        return f"{option}: no such option; {option_hint(option, known_options)}{siblings}"
    if item["type"] == "missing":
        return f"{option}: not set in the configuration; give it a value"
    message = item["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{option}={str(item['input'])[:SHOWN]}: {message.replace('input', 'the value', 1)}"
