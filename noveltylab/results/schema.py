"""The one schema of what a run's folder says: result.json and config.yaml, whoever wrote them.

Every reader of a folder goes through `read_result` and `read_config` of record.py, which check by
it. What a key means is said where it is written (run/); what a later version added is ignored, or
has a default here.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from noveltylab.results.locks import WINDOWS

M = TypeVar("M", bound=BaseModel)
Unit = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Rule = Annotated[str, Field(pattern=r"^(outlier_val|oracle)$")]
#: what a run measures beside its own number: patches labelled as their frames, patches labelled by
#: masks of pixels, frames of clips that are each scaled by themselves, single images of videos,
#: whole sound files
APART = ("patches", "patches_by_mask", "clips", "images", "files")
Apart = Annotated[str, Field(pattern=rf"^({'|'.join(APART)})$")]
Diagnosis = Annotated[str, Field(pattern=r"^batch_statistics$")]
Order = Annotated[str, Field(pattern=r"^(class_order|random_order|apart)$")]
#: a file right in the run's folder
FileName = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100)]
#: pixels of a side of an image that a method may see
LARGEST_SIDE = 4096
#: letters of a name that a folder gets
LONGEST_NAME = 100


def check_name(name: str) -> str:
    """The name, if it may become that of a folder.

    Raises ValueError for one that would lead elsewhere, or hide what it is.
    """
    if not name or len(name) > LONGEST_NAME:
        raise ValueError(f"a name has 1 to {LONGEST_NAME} letters")
    leads_elsewhere = "/" in name or "\\" in name or name.startswith(".")
    if leads_elsewhere or not name.isprintable() or name != name.strip():
        raise ValueError(
            "a name holds no /, \\ or control characters, and starts with no dot or space"
        )
    return name


#: what Windows takes for something else in a name, and names that are devices there
_FOREIGN = re.compile(r'[%<>:"|?*]|[. ]$')
_DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)


def folder_name(name: str, windows: bool = WINDOWS) -> str:
    """A name as that of a folder: as it is, but on Windows, which some names would lead elsewhere.

    There each sign that Windows does not take is written as %xx, and a name of a device such as
    `aux` ends with %. Other names never become the same.
    """
    if not windows:
        return name
    safe = _FOREIGN.sub(lambda match: f"%{ord(match[0]):02x}", name)
    return f"{safe}%" if _DEVICES.fullmatch(safe) else safe


Name = Annotated[str, AfterValidator(check_name)]


class Record(BaseModel):
    """A part of a result: strict types, finite numbers; keys of later versions are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


class Metrics(Record):
    auroc: Unit
    auroc_ci: Annotated[list[Unit], Field(min_length=2, max_length=2)]
    average_precision: Unit
    eer: Unit
    fpr95: Unit


class Kind(Metrics):
    """One kind of outlier against all inliers."""

    outliers: Count


class SeenPhase(Record):
    name: str
    epochs: Count


class Epochs(Record):
    """How many were planned, and how many trained: fewer where trainer.patience ended training."""

    planned: Count
    trained: Count


class Selected(Record):
    rule: Literal["val_loss", "last"]
    epoch: Count
    value: float | None
    phases: list[SeenPhase] | None = None  # None: an older result, see phases.py

    @model_validator(mode="after")
    def _has_its_value(self) -> "Selected":
        if self.rule == "val_loss" and self.value is None:
            raise ValueError("rule is val_loss, but there is no value")
        return self


class Threshold(Record):
    fpr: Unit
    threshold: float | None
    upper: Unit | None
    expected: Unit = 0.0
    bound: Unit = 0.0
    needed: Count = 0
    more_images: Count = 0

    @model_validator(mode="after")
    def _has_its_rates(self) -> "Threshold":
        missing = sorted({"expected", "bound"} - self.model_fields_set)
        if missing and self.threshold is not None and self.upper is None:
            raise ValueError(f"has neither upper nor {', '.join(missing)}")
        return self


class Thresholds(Record):
    score: str
    held_out: Count
    exact: bool
    folds: Count = 0
    smallest_fpr: Unit = 0.0
    at: list[Threshold]


class Weights(Record):
    file: Annotated[str, Field(pattern=r"^checkpoints/\w[\w.-]*\.pt$", max_length=200)]
    sha256: Digest


class Input(Record):
    shape: Annotated[
        list[Annotated[int, Field(ge=1, le=LARGEST_SIDE)]], Field(min_length=3, max_length=3)
    ]
    kind: Literal["image", "frame", "video", "file"]
    scale: Annotated[list[float], Field(min_length=2, max_length=2)] | None


def _check_seconds(seconds: dict[str, float]) -> dict[str, float]:
    missing = {"train", "score", "total"} - seconds.keys()
    if missing:
        raise ValueError(f"has no {', '.join(sorted(missing))}")
    return seconds


class Sizes(Record):
    train: Count
    val: Count
    test_inliers: Count
    test_outliers: Count
    skipped: Count = 0
    missing: Count = 0


class Provenance(Record):
    versions: dict[str, str | None]
    commit: str | None
    hardware: dict[str, str | int | float | None]
    command: str = ""
    time: str = ""


class Named(Record):
    name: Name


class MethodRecord(Named):
    target: Annotated[str, Field(alias="_target_")]
    primary: str


class DataRecord(Named):
    root: str | None = None
    classes: list[str] | str = ""
    label: Annotated[str, AfterValidator(check_name)] | int | None = None
    limit_train: int | None = None


class Config(Record):
    """What every recorded configuration has; options.py checks it where a run is used."""

    method: MethodRecord
    data: DataRecord
    protocol: Named
    trainer: dict[str, Any]
    inlier: Count | str  # the name of a class folder, where these are called by numbers
    seed: Count
    output: str


class ErrorRates(Record):
    """Shares of attacks accepted, of genuine videos rejected, and their mean, at a threshold."""

    threshold: float
    far: Unit
    frr: Unit
    hter: Unit


class Cross(Record):
    """Across data sets: which ones, what placed the threshold, and the error rates of each score."""

    source: str
    target: str
    rule: Literal["equal_error"] | Unit
    source_inliers: Count
    source_outliers: Count
    scores: dict[str, ErrorRates]


class Leakage(Record):
    """Shares of an image's nearest neighbours that are of another class, means over images."""

    neighbours: Count
    inliers: Unit
    all: Unit


class Pixels(Record):
    """How well maps find defects to the pixel, by masks; `error`: how far bins may put it off."""

    auroc: Unit
    aupro: Unit
    images: Count
    defects: Count
    without_mask: Count = 0
    error: Unit = 0.0


class Place(Record):
    """What a result holds with and without labelled outliers: which run it is, how it went."""

    method: Name
    data: Name
    protocol: Name
    inlier: Count
    inlier_name: str
    seed: Count
    select: str
    primary: str
    selected: Selected
    epochs: Epochs | None = None
    seconds: Annotated[dict[str, Seconds], AfterValidator(_check_seconds)]
    estimated: dict[str, Seconds] = {}
    n: dict[str, Any]
    split_sha256: Digest | None = None
    data_verified: bool | None  # None: there are no checksums to compare with
    warnings: list[str]
    files: dict[FileName, Digest]
    provenance: dict[str, Any]
    config: dict[str, Any]
    thresholds: Thresholds | None = None
    input: dict[str, Any] = {}
    images_sha256: str | None = None
    transductive: list[str] = []
    trained_on: str = "this class alone"
    extra: dict[str, float | str] = {}


class _Parts(Record):
    """What is asked of the parts of a result that stay plain mappings."""

    n: Sizes
    provenance: Provenance
    config: Config
    weights: Weights | None = None
    input: Input | None = None


class Unmeasured(Place):
    """A run without labelled outliers, which has no number to report."""

    unmeasured: str
    scores: dict[str, None]
    floor: dict[str, Metrics] = {}


class Result(Place):
    """A run with its numbers."""

    scores: dict[str, Metrics]
    floor: dict[str, Metrics]
    labelled: dict[Rule, dict[str, Metrics]] = {}
    apart: dict[Apart, dict[str, Metrics]] = {}
    kinds: dict[str, Kind] = {}
    cross: Cross | None = None
    leakage: Leakage | None = None
    pixels: Pixels | None = None
    diagnosis: dict[Diagnosis, dict[Order, dict[str, Metrics]]] = {}
    auroc_ci_method: str | None = None  # None: a bootstrap's percentiles

    @model_validator(mode="after")
    def _has_its_primary(self) -> "Result":
        sections = {"scores": self.scores}
        for kind, metrics in self.apart.items():
            sections[f"apart.{kind}"] = metrics
        for kind, orders in self.diagnosis.items():
            for order, metrics in orders.items():
                sections[f"diagnosis.{kind}.{order}"] = metrics
        for name, scores in sections.items():
            if self.primary not in scores:
                raise ValueError(
                    f"primary is {self.primary!r}, but {name} has {', '.join(scores) or 'none'}"
                )
        return self


def check_result(content: Any) -> Result | Unmeasured:
    """The content of a result.json as checked values.

    Raises ValueError that names the fields which are not as a run writes them.
    """
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, not a result")
    model: type[Result | Unmeasured] = Unmeasured if "unmeasured" in content else Result
    result = _validated(model, content)
    config = _validated(_Parts, content).config
    label = config.data.label
    title = config.data.name if label is None else str(label)
    names = (config.method.name, title, config.protocol.name)
    if names != (result.method, result.data, result.protocol):
        raise ValueError(
            f"config: is that of {' '.join(names)}, not of {result.method} {result.data} {result.protocol}"
        )
    return result


def check_config(content: Any) -> None:
    """The content of a config.yaml. ValueError as `check_result`."""
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"holds {kind}, not a configuration")
    _validated(Config, content)


def _validated(model: type[M], content: dict[str, Any]) -> M:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """The first fields that are wrong, as `scores.mse.auroc: should be a valid number; ...`."""
    items = error.errors(include_input=False)[:3]
    sentences = [_explain(dict(item)) for item in items]
    return "; ".join(dict.fromkeys(sentences))


def _explain(item: dict[str, Any]) -> str:
    field = ".".join(map(str, item["loc"]))[:200]
    message = str(item["msg"]).removeprefix("Value error, ")
    if not field:
        return message
    return f"{field}: {message[0].lower()}{message[1:]}"
