"""Masks of defects beside one's own images, in MVTec AD's layout; read to measure, never to train.

    <root>/test/<kind>/<name>.png                     an image of a defect
    <root>/ground_truth/<kind>/<name>_mask.png        where it is: every pixel that is not black

A mask has its image's own size. Good images have none: no pixel of theirs is a defect.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noveltylab.data.decode import Unreadable, image_size, read_pixels
from noveltylab.data.layout import SUFFIXES, shown
from noveltylab.errors import UserError

FOLDER = "ground_truth"
#: masks that a sentence names
NAMED = 3


@dataclass(frozen=True)
class Masked:
    """A test image whose defects are known to the pixel.

    row: its position in the test part; height, width: its own size; path: its mask, None for a good
    image.
    """

    row: int
    height: int
    width: int
    path: Path | None

    def read(self) -> NDArray[np.bool_]:
        """Which pixels are a defect, (height, width)."""
        if self.path is None:
            return np.zeros((self.height, self.width), np.bool_)
        return read_pixels(self.path, 1)[..., 0] > 0


@dataclass(frozen=True)
class Masks:
    """The test images that pixels are measured on, and the names of those of defects without mask."""

    images: list[Masked]
    missing: list[str]

    def left_out(self) -> list[str]:
        """A sentence on the images that are left out, none where there are none."""
        if not self.missing:
            return []
        names = ", ".join(self.missing[:NAMED])
        if len(self.missing) > NAMED:
            names += f" and {len(self.missing) - NAMED} more"
        plural = "s" if len(self.missing) > 1 else ""
        return [
            f"pixels are measured without {len(self.missing)} test image{plural} of defects "
            f"that have no mask in {FOLDER}/: {names}"
        ]


def find_masks(
    root: Path, ids: Sequence[str], is_outlier: NDArray[np.bool_] | Sequence[bool]
) -> Masks | None:
    """The masks of test images; None where the folder has none of them.

    Args:
        root: The folder of the images.
        ids: Paths of the test images below the root (n,).
        is_outlier: (n,), which of them show a defect.

    Raises:
        UserError: A mask cannot be read, or has another size than its image.
    """
    folder = _ground_truth(root)
    if folder is None:
        return None
    images: list[Masked] = []
    missing: list[str] = []
    count = 0
    for row, (name, is_defect) in enumerate(zip(ids, is_outlier, strict=True)):
        path = root / name
        mask = None
        if is_defect:
            mask = _mask_of(folder, Path(name))
            if mask is None:
                missing.append(name)
                continue
            count += 1
        try:
            height, width = image_size(path)
        except Unreadable as error:
            raise UserError(f"{shown(path)}: its size cannot be read ({error})") from None
        masked = Masked(row, height, width, mask)
        if mask is not None:
            _check(masked, path)
        images.append(masked)
    return Masks(images, missing) if count else None


def _ground_truth(root: Path) -> Path | None:
    for name in sorted(os.listdir(root)):
        if name.casefold() == FOLDER and (root / name).is_dir():
            return root / name
    return None


def _mask_of(folder: Path, name: Path) -> Path | None:
    """The mask of test/<kind>/<name>; None without one."""
    place = folder.joinpath(*name.parts[1:-1])
    for stem in (f"{name.stem}_mask", name.stem):
        for suffix in [".png", *sorted(SUFFIXES - {".png"})]:
            path = place / f"{stem}{suffix}"
            if path.is_file():
                return path
    return None


def _check(masked: Masked, image: Path) -> None:
    """Raises UserError for a mask that cannot be read or has another size than its image."""
    assert masked.path is not None
    try:
        height, width = masked.read().shape
    except Unreadable as error:
        raise UserError(
            f"{shown(masked.path)}: the mask of {shown(image)} cannot be read ({error}); mend it, "
            "or remove it, and its image is left out where pixels are measured"
        ) from None
    if (height, width) != (masked.height, masked.width):
        raise UserError(
            f"{shown(masked.path)}: the mask has {width} x {height} pixels and its image "
            f"{shown(image)} {masked.width} x {masked.height}; a mask has the size of its image"
        )
