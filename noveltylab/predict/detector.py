"""A finished run as something that scores new images: its method, weights, preprocessing and held-out inliers.

    from noveltylab import load_detector
    detector = load_detector("outputs/folder/ca_entropy/folder/inlier0/seed0")
    table = detector.frame(["new/0001.png", "new/0002.png"])        # a pandas data frame

Nothing in the folder is executed: weights are tensors (weights_only), the method is one of noveltylab's own, and every file is
compared with the checksum that the run's result holds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from noveltylab.command.screen import say
from noveltylab.data.decode import fit, in_order
from noveltylab.data.preprocess import Preprocess
from noveltylab.data.protocols import MAX_FOLDS
from noveltylab.errors import UserError
from noveltylab.methods.base import Method, find_method
from noveltylab.options import Options, check_arguments, read_options
from noveltylab.predict.inputs import Item, Kind, Reader, expand, in_jobs, read_item
from noveltylab.results.files import open_regular, sha256_file
from noveltylab.results.record import read_result, recorded_config
from noveltylab.results.runs import require_run
from noveltylab.results.scores import read_scores
from noveltylab.run.folder import damage
from noveltylab.scoring.apply import (
    alike_batch,
    deployed,
    explanations,
    reconstructions,
    score_alike,
    score_in_threads,
    single_threads,
)
from noveltylab.scoring.conformal import Calibration, check_rate, decide
from noveltylab.scoring.folds import Folds, in_folds

if TYPE_CHECKING:
    import pandas as pd

#: images that a thread reads and scores before it takes the next ones
JOB = 256
#: a run's images are no larger, whatever its folder says
LARGEST = 4096

Columns = dict[str, NDArray[np.float64]]
#: name, images as scored, score, error and path of a file, or of a frame of a video
Row = tuple[str, Tensor | None, float, str | None, Path]


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


class _Recorded(BaseModel):
    """What is read of a run's result to use it."""

    model_config = ConfigDict(strict=True)
    primary: str
    transductive: list[str]
    files: dict[str, str]
    weights: _Weights
    input: _Input
    folds: Annotated[int, Field(ge=0, le=MAX_FOLDS)] = 0


@dataclass(eq=False)
class Detector:
    """A trained method that scores images as its run did.

    Attributes:
        folder: Of the run.
        options: Its checked options.
        method: In evaluation mode, on its device.
        preprocess: Fitted on the run's training inliers.
        primary: The score that decides.
        shape: (C, H, W) of the images that the method sees.
        held_out: Score name -> scores of held-out inliers (n,); {} for a run without.
        reader: How a file becomes such images.
    """

    folder: Path
    options: Options
    method: Method
    preprocess: Preprocess
    primary: str
    shape: tuple[int, int, int]
    held_out: Columns
    reader: Reader

    @property
    def calibration(self) -> Calibration | None:
        """Of the primary score; None where the run held out no inliers."""
        column = self.held_out.get(self.primary)
        return None if column is None else Calibration(column, self.folds)

    @property
    def exact(self) -> bool:
        """Whether nothing of the method was chosen by the held-out inliers (else the guarantee is
        approximate).
        """
        if self.folds and self.options.data.fitted_on_training:
            return False
        return self.options.main_rule == "last" or not self.method.iterative

    @property
    def folds(self) -> int:
        """In how many folds each training inlier was held out once; 0 where a part was held out."""
        return len(self.method.members) if isinstance(self.method, Folds) else 0

    def scores(self, images: Tensor) -> Columns:
        """Every score of uint8 (int16 for sound waves) images (N, C, H, W) of the run's shape, N >=
        1: name -> (N,).

        Raw, larger is more novel. Without those that need the whole test set. The same bits as
        `stream` has.
        """
        return self._combined(score_in_threads(self.method, self.preprocess, images))

    def _combined(self, columns: dict[str, Tensor]) -> Columns:
        held = {
            name: torch.from_numpy(column)
            for name, column in self.held_out.items()
            if name in columns
        }
        if held and self.reader.kind == "image":
            columns |= self.method.combine_scores(
                columns, {name: column.float() for name, column in held.items()}
            )
        known = columns.keys() - self.method.transductive
        return {
            name: column.numpy().astype(np.float64)
            for name, column in columns.items()
            if name in known
        }

    def novelty(self, images: Tensor) -> NDArray[np.float64]:
        """The primary score (N,) of images as `scores` takes them."""
        return self.scores(images)[self.primary]

    def reconstruct(self, images: Tensor) -> NDArray[np.float32] | None:
        """Reconstructions in [0, 1] of images as `scores` takes them; None for a method that makes
        none.
        """
        return reconstructions(self.method, self.preprocess, images)

    def explain(self, images: Tensor) -> dict[str, NDArray[np.float32]]:
        """What the method compares images with, as `scores` takes them: title -> (N, C, H, W) in
        [0, 1].
        """
        return explanations(self.method, self.preprocess, images)

    def fit(self, images: Tensor | NDArray[Any]) -> Tensor:
        """Anybody's images as `scores` takes them: uint8 (N, C, H, W), the sizes of the run.

        Args:
            images: uint8 in 0..255, or floats in [0, 1]: (N, C, H, W) or grey (N, H, W); C is 1 or
                3. Grey and colour are turned into each other as those of files are, other sizes
                stretched.

        Raises:
            UserError: Another shape or range, a shape that can be read in two ways, or a run that
            does not take images.
        """
        if self.reader.kind != "image":
            raise UserError(f"this run takes {self.reader.takes}, not images")
        x = _as_tensor(images)
        if reason := wrong_layout(
            tuple(x.shape), "permute" if isinstance(images, Tensor) else "transpose"
        ):
            raise UserError(reason)
        x = x[:, None] if x.ndim == 3 else x
        if x.is_floating_point():
            if not bool(((x >= 0) & (x <= 1)).all()):
                raise UserError(
                    f"images of floats lie in [0, 1], these in [{float(x.min()):.4g}, {float(x.max()):.4g}]"
                )
            x = (x * 255).round().to(torch.uint8)
        if x.dtype != torch.uint8:
            raise UserError(
                f"images are uint8, or floats in [0, 1], not {str(x.dtype).removeprefix('torch.')}"
            )
        channels, side, _ = self.shape
        if x.shape[1] != channels:
            x = x.expand(-1, 3, -1, -1) if channels == 3 else _grey(x)
        return torch.stack([fit(image.contiguous(), side) for image in x])

    def frame(
        self,
        inputs: "Tensor | NDArray[Any] | str | Path | Iterable[str | Path]",
        *,
        fpr: float = 0.05,
        fdr: float | None = None,
    ) -> "pd.DataFrame":
        """Scores, p-values and decisions as a pandas data frame, one row for each image, in the
        order given.

        Args:
            inputs: Images as `fit` takes them; or an image file, a folder, a pattern such as
                "new/*.png", or several of these.
            fpr: Novel is what has p <= fpr: on average at most that share of inliers, in (0, 1).
            fdr: Instead: Benjamini and Hochberg over all rows, at most that expected share of
                inliers among the novel.

        Returns:
            Columns ``file`` (not for images given as arrays), ``score``, ``p_value``, ``novel``
            (bool; None for a file that cannot be read, and for all where the held-out inliers are
            too few for the rule) and ``error`` (None where all went well). Why nothing could be
            decided is said on stderr and kept as ``attrs["undecided"]``.

        Raises:
            UserError: No such file, images of another kind, or pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise UserError(
                "a data frame needs pandas; install it with: pip install 'noveltylab[pandas]'"
            ) from None
        check_rate("fpr" if fdr is None else "fdr", fpr if fdr is None else fdr)
        if isinstance(inputs, Tensor | np.ndarray):
            scores, files, errors = self.novelty(self.fit(inputs)), None, None
        else:
            rows = list(
                self.rows(
                    path for each in _names(inputs) for path in expand(str(each), self.reader)
                )
            )
            files, scores, errors = (
                [row[0] for row in rows],
                np.array([row[1] for row in rows], float),
                [row[2] for row in rows],
            )
        p_values, novel, reason = self.decide(scores, fpr, fdr)
        columns = {"score": scores, "p_value": p_values, "novel": pd.Series(novel, dtype=object)}
        table = pd.DataFrame(
            columns if files is None else {"file": files, **columns, "error": errors}
        )
        if reason:
            table.attrs["undecided"] = reason
            say(f"not decided: {reason}")
        return table

    def rows(self, paths: Iterable[Path]) -> Iterable[tuple[str, float, str | None]]:
        """(name, score, error) of each file, NaN where it cannot be read; bounded memory."""
        for item in self.stream(paths):
            yield item[0], item[2], item[3]

    def stream(self, paths: Iterable[Path]) -> Iterable[Row]:
        """(name, images as scored, score, error, path) of each file in order, a few JOB images in
        memory at a time.

        A recording's score is made of those of its segments as the run's protocol says. Each thread
        reads and scores files of its own.
        """
        with single_threads() as threads:
            size = alike_batch(self.method.device)
            jobs = in_jobs(paths, self.reader, max(size, 2 * JOB // threads // size * size))
            for rows in in_order(self._score, jobs, ahead=threads, threads=threads):
                yield from rows

    def _score(self, job: list[Path | Item]) -> list[Row]:
        items = [
            read_item(found, self.reader) if isinstance(found, Path) else found for found in job
        ]
        good = [item.images for item in items if item.images is not None]
        pieces = self._novelty_in_thread(torch.cat(good)) if good else np.zeros(0)
        rows: list[Row] = []
        at = 0
        for item in items:
            if item.images is None:
                rows.append((item.name, None, float("nan"), item.error, item.path))
                continue
            own = pieces[at : at + len(item.images)]
            at += len(own)
            score = self.reader.whole(own)
            wrong = None if np.isfinite(score) else "its score is not finite"
            rows.append(
                (item.name, item.images, float("nan") if wrong else score, wrong, item.path)
            )
        return rows

    def _novelty_in_thread(self, images: Tensor) -> NDArray[np.float64]:
        """As `novelty`, by the thread that asks."""
        return self._combined(score_alike(self.method, self.preprocess, images))[self.primary]

    def decide(
        self, scores: NDArray[np.float64], fpr: float, fdr: float | None = None
    ) -> tuple[NDArray[np.float64], list[bool | None], str]:
        """p-values (N,) and decisions of scores (N,), and why nothing could be decided, "" where it
        could.

        A score that is NaN has the p-value NaN and the decision None.
        """
        known, calibration = np.isfinite(scores), self.calibration
        p_values, novel = np.full(len(scores), np.nan), np.full(len(scores), None, object)
        if calibration is None:
            return p_values, novel.tolist(), decide(None, (), fpr, fdr).reason
        ranks = calibration.ranks(scores[known])
        p_values[known] = ranks / (len(calibration) + 1)
        counts = np.bincount(ranks - 1, minlength=len(calibration) + 1)
        decision = decide(calibration, counts, fpr, fdr)
        if decision.cut is not None:
            novel[known] = (ranks <= decision.cut).astype(object)
        return p_values, novel.tolist(), decision.reason


def _names(inputs: Any) -> list[str | Path]:
    """One name, or several. UserError for anything else, such as a list of arrays."""
    names = (
        [inputs]
        if isinstance(inputs, str | Path) or not isinstance(inputs, Iterable)
        else list(inputs)
    )
    for name in names:
        if not isinstance(name, str | Path):
            raise UserError(
                f"images are given as files or as one array (N, C, H, W), not as {type(name).__name__}; np.stack makes one "
                "array of several of one size"
            )
    return names


def _as_tensor(images: Tensor | NDArray[Any]) -> Tensor:
    if isinstance(images, Tensor):
        return images.detach().cpu()
    try:
        return torch.from_numpy(
            np.ascontiguousarray(images)
        )  # a flipped array has strides that torch does not know
    except TypeError as error:
        raise UserError(f"images are uint8, or floats in [0, 1], not {images.dtype}") from error


def wrong_layout(shape: tuple[int, ...], turn: str) -> str:
    """Why an array of images is not taken, with the expression that turns it into one that is; ""
    where it is.

    An axis of 3 or 4 that could as well be the colours of one picture is refused: nothing in the
    array tells.

    Args:
        shape: Of the array: (N, C, H, W) with C = 1 or 3, or grey (N, H, W), is right.
        turn: What the array calls a change of its axes, "transpose" or "permute".
    """
    expected = f"images are (N, C, H, W) with C = 1 or 3, or grey (N, H, W), not {shape}"
    if 0 in shape:
        return f"{expected}: the array is empty"
    if len(shape) == 2:
        return f"{expected}: one grey picture (H, W) is images[None]"
    if len(shape) == 3:
        return _wrong_three(shape, expected, turn)
    if len(shape) != 4:
        return expected
    first, last = shape[1] in (1, 3), shape[3] in (1, 2, 3, 4)
    if first and last:
        return (
            f"{expected} for certain: axis 1 and axis 3 could both be the colours; images of so few pixels a side are not "
            f"scored, and if the colours come last, it is images.{turn}(0, 3, 1, 2)"
        )
    if last:
        return f"{expected}: {_without_alpha('(N, H, W, C)', shape[3], '0, 3, 1, 2', turn)}"
    return "" if first else expected


def _wrong_three(shape: tuple[int, ...], expected: str, turn: str) -> str:
    count, _, last = shape
    if last in (1, 2, 3, 4):
        return f"{expected}: {_without_alpha('one picture (H, W, C)', last, '2, 0, 1', turn)}[None]"
    if count in (3, 4):
        colours = "images[None]" if count == 3 else "images[None, :3]"
        return (
            f"{expected} for certain: {count} grey pictures (N, H, W) are images[:, None], one picture (C, H, W) with colours "
            f"is {colours}"
        )
    return ""


def _without_alpha(what: str, channels: int, axes: str, turn: str) -> str:
    """With an alpha channel, which is left out: (H, W, 2) and (H, W, 4)."""
    colours = "" if channels in (1, 3) else f"[..., :{channels - 1}]"
    return f"{what} is images{colours}.{turn}({axes})"


def _grey(x: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> (N, 1, H, W) by ITU-R 601-2, in Pillow's whole numbers, so that files
    and arrays agree.
    """
    red, green, blue = x.to(torch.int32).unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8)[:, None]


def load_detector(folder: str | Path, accelerator: str = "auto") -> Detector:
    """The detector that a finished run left behind.

    Args:
        folder: Of the run: the one with result.json.
        accelerator: auto (a GPU if there is one), cpu or gpu.

    Raises:
        UserError: No complete run is there, a file of it is damaged, it names code that is no
            method of noveltylab, or this machine has no such accelerator.
    """
    folder = Path(folder).expanduser()
    require_run(folder)
    try:
        content = read_result(folder)
        config = recorded_config(content)
    except RecursionError:
        raise UserError(
            f"{folder}: its result.json is nested too deeply to be a run's; it is not loaded"
        ) from None
    if wrong := damage(folder):
        raise UserError(
            f"{folder}: {wrong} damaged or changed since the run; run it again with force=true"
        )
    try:
        recorded = _Recorded.model_validate(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(
            f"{folder}: its result.json does not say {where or 'enough'}, as of an older version; run it again with force=true"
        ) from None
    options = read_options(config)
    device = _device(accelerator)
    channels, height, width = recorded.input.shape
    method = _build(options, recorded.primary, (channels, height, width), recorded.folds)
    preprocess = Preprocess(options.data.contrast, options.data.subtract_mean)
    path = folder / recorded.weights.file
    try:
        if sha256_file(path, within=folder) != recorded.weights.sha256:
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
    method = deployed(method.to(device))
    reader = _reader(options, recorded.input)
    return Detector(
        folder, options, method, preprocess.to(device), recorded.primary, (channels, height, width),
        _held_out(folder, recorded.files), reader,
    )  # fmt: skip


def _build(options: Options, primary: str, shape: tuple[int, int, int], folds: int) -> Method:
    arguments = {
        key: value
        for key, value in options.method.items()
        if key not in ("name", "primary", "_target_")
    }
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


def _reader(options: Options, given: _Input) -> Reader:
    if given.kind == "frame":
        raise UserError(
            "this run scores frames of clips by the patches that move in them, which a file alone does not show; predict "
            "takes runs on images and on sound"
        )
    if given.kind == "video":
        raise UserError(
            "this run scores videos by their images and took its threshold from a set of videos; predict takes runs on images "
            "and on sound"
        )
    kind: Kind = "recording" if given.kind == "file" else "image"
    channels, height, width = given.shape
    if kind == "image" and (height != width or channels not in (1, 3)):
        raise UserError(
            f"this run's images have the shape {channels} x {height} x {width}: files are read as squares, grey or RGB"
        )
    low, high = given.scale or (0.0, 0.0)
    how = str(options.protocol.get("agg", "mean"))
    return Reader(
        kind, channels, height, str(options.data.features), (low, high), how, options.data.bits
    )


def _held_out(folder: Path, files: Mapping[str, str]) -> Columns:
    if "calibration.csv" not in files:
        return {}
    return read_scores(folder / "calibration.csv", files["calibration.csv"]).columns


def _device(accelerator: str) -> torch.device:
    gpu = torch.cuda.is_available()
    if accelerator not in ("auto", "cpu", "gpu"):
        raise UserError(f"accelerator={accelerator}: it can be auto, cpu or gpu")
    if accelerator == "gpu" and not gpu:
        raise UserError(
            "accelerator=gpu: no CUDA device is visible here; use accelerator=cpu or auto"
        )
    return torch.device("cuda" if gpu and accelerator != "cpu" else "cpu")
