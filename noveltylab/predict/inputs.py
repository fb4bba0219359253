"""What somebody gives, as images of a run.

Files, folders, patterns, videos and recordings become a stream of images, in bounded memory; an
array becomes images of the run's shape (`stack_images`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noveltylab.data.decode import Unreadable, check_file, decode, reason, stretch
from noveltylab.data.layout import shown
from noveltylab.data.preprocess import resize
from noveltylab.data.samples import aggregate
from noveltylab.errors import UserError
from noveltylab.predict.paths import VIDEOS, Takes, closed


@dataclass(frozen=True)
class Reader(Takes):
    """How files become the images that a run's method sees.

    kind "image": uint8 (1, channels, side, side) of a file, as `decode` says; "recording":
    (segments, 1, side, side) with the features and the scale of the run, whose scores become one by
    `how` (see aggregate). bits: of the pixels in 16-bit files.
    """

    channels: int
    side: int
    features: str
    scale: tuple[float, float]
    how: str
    bits: int | None = None

    def whole(self, scores: NDArray[np.float64]) -> float:
        """One score of a file from the scores (n,) of its images."""
        if len(scores) == 1:
            return float(scores[0])
        one_whole = np.zeros(len(scores), np.int64)
        (score,) = aggregate(scores, one_whole, 1, self.how)
        return float(score)


@dataclass(frozen=True)
class Item:
    """One image (a file, a frame of a video) or recording: images (n, C, H, W), or None and why."""

    name: str
    path: Path
    images: Tensor | None
    error: str | None = None


def in_jobs(paths: Iterable[Path], reader: Reader, size: int) -> Iterator[list[Path | Item]]:
    """The files in order, in lists of about `size` images: paths to be read, and frames of videos.

    A recording is hundreds of images, and a list of its own; of a video no more than a list of
    frames is in memory.
    """
    job: list[Path | Item] = []
    for path in paths:
        entries: Iterable[Path | Item] = [path]
        if reader.kind != "recording" and path.suffix.lower() in VIDEOS:
            entries = _frames(path, reader)
        for entry in entries:
            job.append(entry)
            if len(job) >= size or reader.kind == "recording":
                yield job
                job = []
    if job:
        yield job


def read_item(path: Path, reader: Reader) -> Item:
    """The image or recording in a file.

    A file that cannot be read is an item with its error, and so is a folder.
    """
    if path.is_dir():
        error = closed(path)
        if error:
            return Item(shown(path), path, None, error)
    if reader.kind == "recording":
        return _recording(path, reader)
    try:
        image = decode(path, reader.channels, reader.side, reader.bits)
    except Unreadable as failure:
        return Item(shown(path), path, None, str(failure))
    return Item(shown(path), path, image[None])


def _recording(path: Path, reader: Reader) -> Item:
    from noveltylab.data.dcase_sound import read_recording

    try:
        check_file(path)
        features = read_recording(path, reader.features, reader.scale)
        return Item(shown(path), path, resize(features, reader.side))
    except UserError as error:
        if "pip install" in str(error):  # nothing of the file
            raise
        return Item(shown(path), path, None, " ".join(str(error).split()).removeprefix(f"{path} "))
    except (Unreadable, OSError, ValueError) as error:
        return Item(shown(path), path, None, reason(error))


def _frames(path: Path, reader: Reader) -> Iterator[Item]:
    """One item for each frame of a video, named <file>#<number from 0>; UserError without PyAV."""
    try:
        import av  # type: ignore[import-not-found,unused-ignore]  # an extra
    except ImportError:
        raise UserError(
            f"{shown(path)}: videos are read with PyAV; install it with: pip install 'noveltylab[video]'"
        ) from None
    number = 0
    try:
        check_file(path)
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                item = f"{shown(path)}#{number:06d}"
                yield Item(item, path, _frame_pixels(frame, reader)[None])
                number += 1
        if not number:
            yield Item(shown(path), path, None, "holds no frames")
    except UserError:
        raise
    except Exception as error:  # what a damaged file makes a decoder raise is not documented
        yield Item(f"{shown(path)}#{number:06d}", path, None, reason(error))


def _frame_pixels(frame: Any, reader: Reader) -> Tensor:
    """uint8 (C, side, side) of a frame of PyAV."""
    from PIL import Image

    if frame.width * frame.height > (Image.MAX_IMAGE_PIXELS or 0):
        raise Unreadable(f"too many pixels: {frame.width} x {frame.height}")
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    if reader.channels != 3:
        image = image.convert("L")
    pixels = np.array(image).reshape(image.height, image.width, -1)
    channels_first = torch.from_numpy(pixels).permute(2, 0, 1)
    return stretch(channels_first.contiguous(), reader.side)


def stack_images(images: Tensor | NDArray[Any], shape: tuple[int, int, int]) -> Tensor:
    """uint8 images (N, C, H, W) of the shape (C, H, W), from an array of anybody's.

    Raises:
        UserError: Another layout, type or range.
    """
    x = _as_tensor(images)
    # (N, C, H, W)
    turn = "permute" if isinstance(images, Tensor) else "transpose"
    mistake = wrong_layout(tuple(x.shape), turn)
    if mistake:
        raise UserError(mistake)
    if x.ndim == 3:
        x = x[:, None]
    # uint8
    if x.is_floating_point():
        if not bool(((x >= 0) & (x <= 1)).all()):
            low = float(x.min())
            high = float(x.max())
            raise UserError(f"images of floats lie in [0, 1], these in [{low:.4g}, {high:.4g}]")
        x = (x * 255).round().to(torch.uint8)
    if x.dtype != torch.uint8:
        dtype = str(x.dtype).removeprefix("torch.")
        raise UserError(f"images are uint8, or floats in [0, 1], not {dtype}")
    # the channels and the size of the run
    channels, side, _ = shape
    if x.shape[1] < channels:
        x = x.expand(-1, 3, -1, -1)
    elif x.shape[1] > channels:
        x = _grey(x)
    return torch.stack([stretch(image.contiguous(), side) for image in x])


def _as_tensor(images: Tensor | NDArray[Any]) -> Tensor:
    if isinstance(images, Tensor):
        return images.detach().cpu()
    try:
        # a flipped array has strides that torch does not know
        return torch.from_numpy(np.ascontiguousarray(images))
    except TypeError as error:
        raise UserError(f"images are uint8, or floats in [0, 1], not {images.dtype}") from error


def wrong_layout(shape: tuple[int, ...], turn: str) -> str:
    """Why an array of images is not taken, and the expression that mends it; "" if it is.

    An axis of 3 or 4 that could as well be the colours of one picture is refused: nothing in the
    array tells.

    Args:
        shape: Shape of the array; (N, C, H, W) with C = 1 or 3, or grey (N, H, W), is right.
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
    first = shape[1] in (1, 3)
    last = shape[3] in (1, 2, 3, 4)
    if first and last:
        return (
            f"{expected} for certain: axis 1 and axis 3 could both be the colours; images of so few pixels a side are not "
            f"scored, and if the colours come last, it is images.{turn}(0, 3, 1, 2)"
        )
    if last:
        return f"{expected}: {_without_alpha('(N, H, W, C)', shape[3], '0, 3, 1, 2', turn)}"
    if not first:
        return expected
    return ""


def _wrong_three(shape: tuple[int, ...], expected: str, turn: str) -> str:
    count, _, last = shape
    if last in (1, 2, 3, 4):
        return f"{expected}: {_without_alpha('one picture (H, W, C)', last, '2, 0, 1', turn)}[None]"
    if count in (3, 4):
        colours = {3: "images[None]", 4: "images[None, :3]"}[count]
        return (
            f"{expected} for certain: {count} grey pictures (N, H, W) are images[:, None], one picture (C, H, W) with colours "
            f"is {colours}"
        )
    return ""


def _without_alpha(layout: str, channels: int, axes: str, turn: str) -> str:
    """The expression that puts the colours first; a last one of 2 or 4 is alpha and left out."""
    colours = ""
    if channels in (2, 4):
        colours = f"[..., :{channels - 1}]"
    return f"{layout} is images{colours}.{turn}({axes})"


def _grey(x: Tensor) -> Tensor:
    """Turns colours into grey by ITU-R 601-2: uint8 (N, 3, H, W) -> (N, 1, H, W).

    In Pillow's whole numbers, so that files and arrays agree.
    """
    red, green, blue = x.to(torch.int32).unbind(1)
    grey = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return grey.to(torch.uint8)[:, None]
