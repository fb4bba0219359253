"""Loads the detector that a finished run left behind.

Nothing in the folder is executed: weights are tensors (weights_only), the method is one of noveltylab's own, and every file is
compared with the checksum that the run's result holds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from noveltylab.command.signatures import COMMON
from noveltylab.command.validate import check_arguments
from noveltylab.data.preprocess import Preprocess
from noveltylab.data.protocols import MAX_FOLDS
from noveltylab.errors import UserError
from noveltylab.methods.base import Method, find_method
from noveltylab.options import Options, read_options
from noveltylab.predict.detector import Columns, Detector
from noveltylab.predict.inputs import Reader
from noveltylab.predict.paths import kind_of_files
from noveltylab.results.files import open_regular, sha256_file
from noveltylab.results.record import read_result, recorded_config, require_run
from noveltylab.results.scores import read_scores
from noveltylab.run.folder import damage
from noveltylab.scoring.apply import deployed
from noveltylab.scoring.folds import in_folds

#: a run's images are no larger, whatever its folder says
LARGEST = 4096


class _Weights(BaseModel):
    model_config = ConfigDict(strict=True)
    file: Annotated[str, Field(pattern=r"^checkpoints/[\w.-]+\.pt$")]
    sha256: str


class _Input(BaseModel):
    model_config = ConfigDict(strict=True)
    shape: Annotated[
        list[Annotated[int, Field(ge=1, le=LARGEST)]], Field(min_length=3, max_length=3)
    ]
    kind: Literal["image", "frame", "video", "file"]
    scale: Annotated[list[float], Field(min_length=2, max_length=2)] | None


class Recorded(BaseModel):
    """The part of a run's result that a detector needs."""

    model_config = ConfigDict(strict=True)
    primary: str
    transductive: list[str]
    files: dict[str, str]
    weights: _Weights
    input: _Input
    folds: Annotated[int, Field(ge=0, le=MAX_FOLDS)] = 0


def load_detector(folder: str | Path, accelerator: str = "auto") -> Detector:
    """The detector that a finished run left behind.

    Args:
        folder: Run folder, the one with result.json.
        accelerator: auto (a GPU if there is one), cpu or gpu.

    Raises:
        UserError: No complete run is there, a file of it is damaged, it names code that is no
            method of noveltylab, or this machine has no such accelerator.
    """
    # the run's result, checked
    folder = Path(folder).expanduser()
    require_run(folder)
    try:
        content = read_result(folder)
        config = recorded_config(content)
    except RecursionError:
        raise UserError(
            f"{folder}: its result.json is nested too deeply to be a run's; it is not loaded"
        ) from None
    damaged_files = damage(folder)
    if damaged_files:
        raise UserError(
            f"{folder}: {damaged_files} damaged or changed since the run; run it again with force=true"
        )
    try:
        recorded = Recorded.model_validate(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(
            f"{folder}: its result.json does not say {where or 'enough'}, as of an older version; run it again with force=true"
        ) from None
    # the method and its preprocessing, with the weights of the run
    options = read_options(config)
    device = _device(accelerator)
    channels, height, width = recorded.input.shape
    method = _build(options, recorded.primary, (channels, height, width), recorded.folds)
    preprocess = Preprocess(options.data.contrast, options.data.subtract_mean)
    _load_weights(folder, recorded.weights, method, preprocess)
    # what scores
    method = deployed(method.to(device))
    reader = _reader(options, recorded.input)
    held_out, held_out_ids = _held_out(folder, recorded.files)
    return Detector(
        folder=folder,
        options=options,
        method=method,
        preprocess=preprocess.to(device),
        primary=recorded.primary,
        shape=(channels, height, width),
        held_out=held_out,
        reader=reader,
        held_out_ids=held_out_ids,
    )


def _load_weights(folder: Path, weights: _Weights, method: Method, preprocess: Preprocess) -> None:
    """Puts the weights of a run into its method; UserError if the file is not the run's."""
    path = folder / weights.file
    try:
        if sha256_file(path, within=folder) != weights.sha256:
            raise OSError(0, "its SHA-256 differs")
    except OSError as error:
        raise UserError(
            f"{path}: missing, damaged or changed since the run ({error.strerror}); run it again with force=true"
        ) from None
    try:
        with open_regular(path, within=folder) as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
        method.load_state_dict(state["method"])
        preprocess.load_state_dict(state["preprocess"])
    except Exception as error:  # a foreign file fails in many ways, and each means the same
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path}: not the weights of this method ({reason}); run it again with force=true"
        ) from None


def _build(options: Options, primary: str, shape: tuple[int, int, int], folds: int) -> Method:
    """An untrained method of the run's options; UserError if it cannot score single images."""
    keys = options.method.keys() - set(COMMON)
    arguments = {key: value for key, value in options.method.items() if key in keys}
    method_class = find_method(str(options.method.get("_target_")))
    arguments = check_arguments(method_class, arguments, "method")
    try:
        with torch.random.fork_rng():
            if folds:
                method: Method = in_folds(method_class, shape, arguments, folds, folds)
            else:
                method = method_class(shape, **arguments)
    except ValueError as error:
        raise UserError(str(error)) from None
    except (MemoryError, RuntimeError, OverflowError) as error:  # sizes that no machine has
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"the run's method cannot be built here ({reason or 'out of memory'})"
        ) from None
    if primary not in method.score_names:
        raise UserError(
            f"the run's primary score is {primary}, but its method has {', '.join(method.score_names)}"
        )
    if primary in method.transductive:
        raise UserError(
            f"{primary} is made of a whole test set and cannot score a new image; run again with another method.primary"
        )
    return method


def _reader(options: Options, recorded: _Input) -> Reader:
    """How a file becomes images of this run; UserError for a run that does not take files."""
    if recorded.kind == "frame":
        raise UserError(
            "this run scores frames of clips, by what moves in them or comes before, which a file alone does not show; predict "
            "takes runs on images and on sound"
        )
    if recorded.kind == "video":
        raise UserError(
            "this run scores videos by their images and took its threshold from a set of videos; predict takes runs on images "
            "and on sound"
        )
    kind = kind_of_files(recorded.kind)
    channels, height, width = recorded.shape
    if kind == "image" and (height != width or channels not in (1, 3)):
        raise UserError(
            f"this run's images have the shape {channels} x {height} x {width}: files are read as squares, grey or RGB"
        )
    low, high = recorded.scale or (0.0, 0.0)
    how = str(options.protocol.get("agg", "mean"))
    return Reader(
        kind, channels, height, str(options.data.features), (low, high), how, options.data.bits
    )


def _held_out(folder: Path, files: Mapping[str, str]) -> tuple[Columns, list[str]]:
    """Scores of the run's held-out inliers, and their ids; {} and [] for a run without."""
    if "calibration.csv" not in files:
        return {}, []
    scores = read_scores(folder / "calibration.csv", files["calibration.csv"])
    return scores.columns, scores.ids


def _device(accelerator: str) -> torch.device:
    """The device of an accelerator; UserError if this machine has none such."""
    has_gpu = torch.cuda.is_available()
    if accelerator not in ("auto", "cpu", "gpu"):
        raise UserError(f"accelerator={accelerator}: it can be auto, cpu or gpu")
    if accelerator == "gpu" and not has_gpu:
        raise UserError(
            "accelerator=gpu: no CUDA device is visible here; use accelerator=cpu or auto"
        )
    if has_gpu and accelerator != "cpu":
        return torch.device("cuda")
    return torch.device("cpu")
