"""Images that somebody gives as an array: which axes it has, and how they become a run's images."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noveltylab.data.decode import stretch
from noveltylab.errors import UserError


def stack_images(images: Tensor | NDArray[Any], shape: tuple[int, int, int]) -> Tensor:
    """uint8 images (N, C, H, W) of the shape (C, H, W), from an array of anybody's.

    Raises:
        UserError: Another layout, type or range.
    """
    x = _as_tensor(images)
    # (N, C, H, W)
    turn = "permute" if isinstance(images, Tensor) else "transpose"
    reason = wrong_layout(tuple(x.shape), turn)
    if reason:
        raise UserError(reason)
    if x.ndim == 3:
        x = x[:, None]
    # uint8
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
    # the channels and the size of the run
    channels, side, _ = shape
    if x.shape[1] != channels:
        x = x.expand(-1, 3, -1, -1) if channels == 3 else _grey(x)
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


def _without_alpha(layout: str, channels: int, axes: str, turn: str) -> str:
    """The expression that puts the colours first; a last one of 2 or 4 is alpha and left out."""
    colours = "" if channels in (1, 3) else f"[..., :{channels - 1}]"
    return f"{layout} is images{colours}.{turn}({axes})"


def _grey(x: Tensor) -> Tensor:
    """Turns colours into grey by ITU-R 601-2: uint8 (N, 3, H, W) -> (N, 1, H, W).

    In Pillow's whole numbers, so that files and arrays agree.
    """
    red, green, blue = x.to(torch.int32).unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8)[:, None]
