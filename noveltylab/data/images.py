"""A folder of one's own images: good parts to train on and, perhaps, labelled kinds to test on.

The layouts stand in layout.py, how an image is read in decode.py. Images are grey where all
training inliers are, else colour; each is stretched to data.size x data.size pixels. There are no
checksums: files are what they are.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from noveltylab.data.decode import Unreadable, brightest, decode, in_order, is_colour, is_deep
from noveltylab.data.layout import find_layout, shown
from noveltylab.data.samples import Samples
from noveltylab.errors import UserError

#: files that an error or a note names
NAMED = 3
#: bits of the pixels of cameras
DEPTHS = (8, 10, 12, 14)


def read(
    root: Path | None,
    *,
    verify: bool,
    download: bool,
    inlier: int,
    size: int | None,
    on_error: str,
    bits: int | None = None,
) -> Samples:
    """Samples with images (N, C, size, size), C = 1 or 3, and ids the paths below the root.

    labels: by `Layout.classes`.

    Args:
        root: The folder.
        verify: Has no effect.
        download: Has no effect.
        inlier: The label that trains.
        size: Pixels of a side; None: all images must have one size.
        on_error: "fail": a file that cannot be read is an error; "skip": it is left out, named in
            the notes and counted in `skipped`.
        bits: As `decode` takes it.

    Raises:
        UserError: the folder has no layout, the inlier class has no training images, or images
            cannot be read.
    """
    layout = find_layout(root)
    files = list(layout.files())
    names = layout.classes
    if inlier >= len(names):
        raise UserError(f"inlier={inlier}: {layout.root} has the classes {', '.join(names[:20])}")
    training = [path for path, label, is_test in files if label == inlier and not is_test]
    if not training:
        raise UserError(
            f"inlier={names[inlier]}: {layout.root} has no training images of it, "
            f"only of {', '.join(layout.train)}"
        )
    paths = [path for path, _, _ in files]
    images, positions, skipped = read_images(layout.root, paths, training, size, bits, on_error)
    ids: list[str] = []
    labels: list[int] = []
    flags: list[bool] = []
    for position in positions:
        path, label, is_test = files[position]
        ids.append(shown(path.relative_to(layout.root).as_posix()))
        labels.append(label)
        flags.append(is_test)
    official_test = None
    if layout.test is not None:
        official_test = np.array(flags, np.bool_)
    return Samples(
        images=images,
        labels=np.array(labels, np.int64),
        official_test=official_test,
        ids=np.array(ids),
        verified=None,
        notes=(*skipped, *layout.left_out(), *_dark(training, bits)),
        names=tuple(names),
        skipped=len(files) - len(positions),
    )


def read_images(
    root: Path,
    paths: list[Path],
    training: list[Path],
    size: int | None,
    bits: int | None,
    on_error: str,
) -> tuple[Tensor, list[int], list[str]]:
    """The images of files below a folder, in colour if one of the training images is.

    Returns:
        The images (n, C, H, W), their positions among `paths`, and sentences on those that were
        skipped.

    Raises:
        UserError: A file cannot be read and on_error is "fail", or none can be read.
    """
    channels = 3 if any(in_order(_coloured, training)) else 1
    images, failures = _read(root, paths, channels, size, bits)
    summary = _summary(failures, len(paths))
    if failures and on_error == "fail":
        raise UserError(
            f"{summary}; mend or remove them, or leave them out with data.on_error=skip"
        )
    if len(failures) == len(paths):
        raise UserError(f"{summary}; nothing is left to train on")
    positions = [position for position in range(len(paths)) if position not in failures]
    notes = [f"skipped: {summary}"] if failures else []
    return images, positions, notes


def _coloured(path: Path) -> bool:
    try:
        return is_colour(path)
    except Unreadable:  # said when its pixels are read
        return False


def _dark(training: list[Path], bits: int | None) -> list[str]:
    """A note if the training images of 16 bits use far fewer, which leaves few levels of grey."""
    if bits is not None:
        return []
    flags = in_order(_deep, training)
    deep = [path for path, is_deep_image in zip(training, flags, strict=True) if is_deep_image]
    maximum = 0
    for value in in_order(_brightest, deep):
        maximum = max(maximum, value)
        if maximum >= 1 << 14:
            return []
    if not deep:
        return []
    depth = next(depth for depth in DEPTHS if maximum < 1 << depth)
    return [
        f"the brightest pixel of the {len(deep)} training images of 16 bits has {maximum:,} of "
        f"65,535: of its grey levels {(maximum >> 8) + 1} are left in 8 bits. "
        f"If it is a camera's {depth} bits, say data.bits={depth}"
    ]


def _deep(path: Path) -> bool:
    try:
        return is_deep(path)
    except Unreadable:  # said when its pixels are read
        return False


def _brightest(path: Path) -> int:
    try:
        return brightest(path)
    except Unreadable:
        return 0


def _read(
    root: Path, paths: list[Path], channels: int, size: int | None, bits: int | None
) -> tuple[Tensor, dict[int, str]]:
    """The images that can be read (n, C, H, W), and position -> "name (why)" of the others."""
    images: Tensor | None = None
    failures: dict[int, str] = {}
    count = 0

    def one(path: Path) -> Tensor | str:
        try:
            return decode(path, channels, size, bits)
        except Unreadable as error:
            return f"{shown(path.relative_to(root).as_posix())} ({error})"

    for position, image in enumerate(in_order(one, paths)):
        if isinstance(image, str):
            failures[position] = image
            continue
        if images is None:
            images = torch.empty((len(paths), *image.shape), dtype=torch.uint8)
        if image.shape != images.shape[1:]:
            _, height, width = image.shape
            raise UserError(
                f"data.size=null needs images of one size, but {shown(paths[position])} has "
                f"{width} x {height} pixels and others have {images.shape[3]} x {images.shape[2]}; "
                "set data.size, e.g. data.size=64"
            )
        images[count] = image
        count += 1
    if images is None:
        return torch.empty(0, channels, 1, 1, dtype=torch.uint8), failures
    return images[:count], failures


def _summary(failures: dict[int, str], count: int) -> str:
    """A sentence on the images that cannot be read, with the first of them."""
    names = ", ".join(list(failures.values())[:NAMED])
    if len(failures) > NAMED:
        names += f" and {len(failures) - NAMED} more"
    return f"{len(failures)} of {count} images cannot be read: {names}"
