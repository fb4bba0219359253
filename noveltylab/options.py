"""Every option's type, range and kind, in one place; checked before torch is imported.

The defaults stand in conf/. A default here is something else: the value by which runs that were
recorded before there was the option go on meaning what they meant. `Kind` says what an option has
to do with a run's numbers; one without it makes them.

The options of a method (and of a protocol) are the keyword arguments of its class (function):
`check_arguments` reads them from the signature. Their values in older runs are in results/older.py.
"""

import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, BeforeValidator, Field, PositiveInt
from pydantic.fields import FieldInfo

from noveltylab.command.logger_options import LoggerOptions
from noveltylab.command.validate import (
    LONGEST_VALUE,
    STRICT,
    GPUs,
    Label,
    Notes,
    PathText,
    Tag,
    check_encoding,
    flatten,
    group_of,
    one_class,
    validate,
)
from noveltylab.command.wandb_mode import wandb_mode
from noveltylab.data.inlier import (
    COIL_OBJECTS,
    COIL_SEEDED,
    Inlier,
    good_class,
    label_at_position,
    label_by_name,
    named_by_numbers,
    refuse_position,
)
from noveltylab.data.layout import GOOD, find_layout
from noveltylab.errors import UserError
from noveltylab.results.older import METHOD_VALUES, PROTOCOL_VALUES
from noveltylab.results.phases import selects_nothing_else
from noveltylab.results.schema import Name, check_name, folder_name

Share = Annotated[float, Field(ge=0, lt=1)]
OneInlier = Annotated[Inlier, BeforeValidator(one_class)]


class Kind(Enum):
    """What an option has to do with the numbers of a run."""

    #: It makes them: a run goes on with the same value alone, and the report compares it.
    NUMBERS = "numbers"
    #: It changes none: where, how fast and how visibly a run is made.
    FREE = "free"
    #: A run keeps to it, but the report does not tell rows apart by it: it follows from others,
    #: chooses kernels, or the result itself says it (verified, skipped).
    NOTED = "noted"
    #: It says which cell of a table a run is. Each has a folder of its own.
    CELL = "cell"
    #: Where images lie. FREE for a published data set; another folder of one's own is other data.
    PLACE = "place"


class _Strict(BaseModel):
    model_config = STRICT


class DataOptions(_Strict):
    """Which images, and how they become tensors."""

    name: Name
    root: Annotated[PathText | None, Kind.PLACE]
    verify: Annotated[bool, Kind.NOTED]
    download: Annotated[bool, Kind.FREE]
    size: Annotated[int, Field(ge=8, le=1024)] | None
    contrast: Literal["none", "gcn", "gcn_image"]
    subtract_mean: bool
    batch_size: Annotated[int, Field(ge=2)]  # batch norm needs two
    limit_train: Annotated[int, Field(ge=2)] | None
    classes: Annotated[list[str] | Literal["seeded20", "all100", "folders"], Kind.NOTED]
    protocols: Annotated[list[str], Kind.NOTED]
    inlier: Annotated[OneInlier, Kind.FREE]  # the default of `inlier`, which is recorded itself
    features: Literal["logmel", "waveform"] | None = None
    cache: Annotated[bool, Kind.FREE] = False
    on_error: Annotated[Literal["fail", "skip"], Kind.NOTED] = "fail"
    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    label: Annotated[Label | None, Kind.NOTED] = None
    source: PathText | None = None
    target: PathText | None = None
    frames: Annotated[int, Field(ge=1, le=256)] | None = None
    difference: bool = False

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
        """The class names by label, those of the folders for one's own images.

        Raises:
            UserError: The folder of one's own images has no classes.
        """
        if isinstance(self.classes, list):
            return self.classes
        if self.classes != "folders":
            return COIL_OBJECTS
        if self.root is None:  # there is nothing to look at yet: `recorded` asks for it
            return [GOOD]
        return find_layout(self.root).classes

    @property
    def inliers(self) -> list[int]:
        """The labels that inlier=0, 1, ... stand for."""
        if self.classes == "seeded20":
            return COIL_SEEDED
        return list(range(len(self.names)))


class TrainerOptions(_Strict):
    """How long, where and how exactly a method trains, and which weights are scored."""

    max_epochs: PositiveInt
    accelerator: Annotated[Literal["auto", "cpu", "gpu", "cuda", "mps"], Kind.FREE]
    devices: PositiveInt
    strategy: Annotated[Literal["auto", "ddp_find_unused_parameters_true"], Kind.NOTED]
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed", "auto"]
    cuda_graph: Annotated[Literal["off", "auto", "on"], Kind.NOTED] = "off"
    winograd: Annotated[bool, Kind.FREE] = False
    lr_decay_from: Annotated[float, Field(ge=0, le=1)] = 1.0
    average_epochs: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    val_every: PositiveInt
    select_from: Share
    select_whole: bool = False
    patience: Annotated[int, Field(ge=0)] = 0
    batch_norm: Literal["running", "anew"] = "running"
    checkpoint_seconds: Annotated[float, Field(ge=0), Kind.FREE]
    score_batch_size: Annotated[PositiveInt, Kind.FREE]


class ResourceOptions(_Strict):
    """What a launcher gives to each run."""

    num_gpus: Annotated[GPUs | None, Kind.FREE]
    num_cpus: Annotated[PositiveInt | None, Kind.FREE]


class Options(_Strict):
    """All options of one run."""

    method: dict[str, Any]
    data: DataOptions
    protocol: dict[str, Any]
    trainer: TrainerOptions
    resources: ResourceOptions
    logger: Annotated[LoggerOptions, Kind.FREE]
    inlier: Annotated[OneInlier, Kind.CELL]
    seed: Annotated[int, Field(ge=0, lt=2**32), Kind.CELL]
    select: Literal["last", "val_loss", "outlier_val", "oracle"]
    output: Annotated[PathText, Kind.FREE]
    deterministic: Annotated[bool, Kind.NOTED]
    force: Annotated[bool, Kind.FREE]
    pictures: Annotated[bool, Kind.FREE] = True
    floor_features: Annotated[Literal["auto", "off"], Kind.FREE] = "off"
    recipe: Annotated[Name, Kind.FREE] = "default"  # its numbers are recorded one by one
    diagnose: Annotated[Literal["none", "batch_statistics"], Kind.FREE] = "none"
    debug: Annotated[Name | None, Kind.NOTED] = None
    tags: Annotated[list[Tag], Kind.FREE] = []
    notes: Annotated[Notes | None, Kind.FREE] = None

    @property
    def main_rule(self) -> str:
        """The rule behind the run's number: `select` where it uses inliers only, else `val_loss`."""
        return "last" if self.select == "last" else "val_loss"

    @property
    def labelled_rule(self) -> str | None:
        """`outlier_val` or `oracle` if asked for: reported apart, since they use outliers' labels."""
        return self.select if self.select in ("outlier_val", "oracle") else None

    @property
    def folds(self) -> int:
        """In how many folds every training inlier is held out once; 0 for a held-out part."""
        return int(self.protocol.get("folds", 0))

    @property
    def inlier_index(self) -> int:
        """The label of the class that trains."""
        return resolve_inlier(self.inlier, self.data)

    def recorded(self, config: dict[str, Any]) -> dict[str, Any]:
        """The plain config as a run keeps it.

        The inlier is recorded by its label, or by its name where class folders are named by
        numbers; a folder of one's own images by its full path.

        Raises:
            UserError: No such folder is given, or it holds no images.
        """
        recorded = {**config, "inlier": self.inlier_index}
        if self.data.classes == "folders":
            root = find_layout(self.data.root).root.resolve()
            recorded["data"] = {**config["data"], "root": str(root)}
            if named_by_numbers(self.data.names):  # a position would be read as a name
                recorded["inlier"] = self.data.names[self.inlier_index]
        return recorded

    @property
    def inlier_name(self) -> str:
        """The name of the class that trains, the first one of `T-shirt/top`."""
        name = self.data.names[self.inlier_index]
        if self.data.classes == "folders":
            return name
        return name.split("/")[0]

    @property
    def cell(self) -> dict[str, Any]:
        """Which cell of a table the run is, in the words of its result."""
        return {
            "method": self.method["name"],
            "data": self.data.title,
            "protocol": self.protocol["name"],
            "inlier": self.inlier_index,
            "inlier_name": self.inlier_name,
            "seed": self.seed,
            "select": self.select,
        }

    @property
    def folder(self) -> Path:
        """The run's folder: <output>/<protocol>/<method>/<data>/inlier<k>/seed<s>."""
        names = (self.protocol["name"], self.method["name"], self.data.title)
        cell = Path(f"inlier{self.inlier_index}", f"seed{self.seed}")
        return Path(self.output).expanduser().joinpath(*map(folder_name, names)) / cell


def _declared(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Each option by dotted key; `method`, `protocol` and `logger` as one."""
    for name, field in model.model_fields.items():
        group = group_of(field)
        is_one = any(isinstance(item, Kind) for item in field.metadata)
        if group is None or is_one:
            yield f"{prefix}{name}", field
        else:
            yield from _declared(group, f"{prefix}{name}.")


def _kind(field: FieldInfo) -> Kind:
    for item in field.metadata:
        if isinstance(item, Kind):
            return item
    return Kind.NUMBERS


#: The kind of each option; of `method`, `protocol` and `logger` that of all their options.
KINDS = {key: _kind(field) for key, field in _declared(Options)}
#: Options that came later, with the value that reproduces runs from before them.
OLD_VALUES: dict[str, Any] = PROTOCOL_VALUES | {
    key: field.default for key, field in _declared(Options) if not field.is_required()
}


def kind_of_option(key: str, own_images: bool = False) -> str:
    """The kind of an option of a recorded config: "free", "noted", "cell" or "numbers".

    All but free ones have to be the same for a run to go on; the report compares "numbers" alone.

    Args:
        key: Dotted, such as "trainer.max_epochs".
        own_images: The run is on a folder of somebody's own images.
    """
    if key == "method.name":  # each row of an ablation has a name of its own
        return Kind.CELL.value
    group = key.partition(".")[0]
    kind = KINDS.get(key) or KINDS.get(group, Kind.NUMBERS)
    if kind is Kind.PLACE:
        kind = Kind.NUMBERS if own_images else Kind.FREE
    return kind.value


def flat_options(config: Any) -> dict[str, Any]:
    """A recorded config by dotted key, with the old values of options that it is too old to have.

    trainer.select_whole is left out where it changes nothing: so runs from before it are like those
    after it.
    """
    flat = flatten(config)
    options = OLD_VALUES | METHOD_VALUES.get(str(flat.get("method._target_")), {}) | flat
    if selects_nothing_else(options):
        del options["trainer.select_whole"]
    return options


def check_options(config: DictConfig) -> Options:
    """The composed config as a checked value.

    Raises:
        UserError: A key is unknown, a value has a wrong type or range, or the data does not have
            the inlier.
    """
    try:
        plain = typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    check_encoding(plain)
    options = validate(Options, plain)
    if options.logger.wandb:
        wandb_mode(options.logger.mode)  # which refuses a wrong WANDB_MODE, or a missing key
    resolve_inlier(options.inlier, options.data)
    _check_names(options)
    _check_combinations(options)
    return options


def _check_combinations(options: Options) -> None:
    """Raises UserError for options that exclude each other."""
    protocol, data, trainer = options.protocol["name"], options.data, options.trainer
    if protocol not in data.protocols:
        raise UserError(
            f"protocol={protocol} does not fit data={data.name}; "
            f"it can be {', '.join(data.protocols)}"
        )
    if trainer.lr_decay_from < 1 and trainer.cuda_graph != "off":
        raise UserError(
            f"trainer.lr_decay_from={trainer.lr_decay_from}: a recorded graph keeps its learning "
            f"rate; trainer.cuda_graph={trainer.cuda_graph} has to be off"
        )
    if trainer.patience and options.select == "last":
        raise UserError(
            f"trainer.patience={trainer.patience}: select=last scores the last of the planned "
            "epochs; take select=val_loss, or trainer.patience=0"
        )


def _check_names(options: Options) -> None:
    """UserError unless method and protocol have names that may become folders."""
    for group in ("method", "protocol"):
        name = getattr(options, group).get("name")
        if not isinstance(name, str):
            raise UserError(
                f"{group}.name is missing in the configuration; "
                f"it is the name of the file in conf/{group}/"
            )
        try:
            check_name(name)
        except ValueError as error:
            raise UserError(f"{group}.name={name[:LONGEST_VALUE]}: {error}") from None


def read_options(config: dict[str, Any]) -> Options:
    """The recorded config of a run as a checked value; its data need not be on this machine.

    Raises:
        UserError: As `check_options`.
    """
    options = validate(Options, config)
    _check_names(options)
    return options


def resolve_inlier(inlier: Inlier, data: DataOptions) -> int:
    """The label of the class that `inlier` names; a name wins over a position.

    Raises:
        UserError: There is no such class, or several that could be meant.
    """
    if inlier is None and data.classes == "folders" and data.root is not None:
        return good_class(data.root)
    if inlier is None:
        return 0
    label = label_by_name(inlier, data.names)
    if label is not None:
        return label
    if data.classes == "folders":
        refuse_position(inlier, data.names)
    return label_at_position(inlier, data.names, data.inliers, data.title)
