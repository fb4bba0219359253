"""A folder of one's own images: good parts to train on and, where there are any, labelled kinds to
test on.

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
    """Samples with images (N, C, size, size), C = 1 or 3, labels by `Layout.classes`, ids the paths
    below the root.

    size None: all images must have one size. bits: as `decode` takes it. on_error "fail": a file
    that cannot be read is an error, "skip": it is left out, named in the notes and counted in
    `skipped`. UserError also for an inlier class without images in the training part.
    """
    layout = find_layout(root)
    files = list(layout.files())
    names = layout.classes
    if inlier >= len(names):
        raise UserError(f"inlier={inlier}: {layout.root} has the classes {', '.join(names[:20])}")
    training = [path for path, label, tested in files if label == inlier and not tested]
    if not training:
        raise UserError(
            f"inlier={names[inlier]}: {layout.root} has no training images of it, only of {', '.join(layout.train)}"
        )
    images, kept, skipped = read_images(
        layout.root, [path for path, *_ in files], training, size, bits, on_error
    )
    tested = np.array([files[at][2] for at in kept], np.bool_)
    return Samples(
        images=images,
        labels=np.array([files[at][1] for at in kept], np.int64),
        official_test=None if layout.test is None else tested,
        ids=np.array([shown(files[at][0].relative_to(layout.root)) for at in kept]),
        verified=None,
        notes=(*skipped, *layout.left_out(), *_dark(training, bits)),
        names=tuple(names),
        skipped=len(files) - len(kept),
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
    images, bad = _read(root, paths, channels, size, bits)
    if bad and on_error == "fail":
        raise UserError(
            f"{_said(bad, len(paths))}; mend or remove them, or leave them out with data.on_error=skip"
        )
    if len(bad) == len(paths):
        raise UserError(f"{_said(bad, len(paths))}; nothing is left to train on")
    positions = [position for position in range(len(paths)) if position not in bad]
    return images, positions, [f"skipped: {_said(bad, len(paths))}"] if bad else []


def _coloured(path: Path) -> bool:
    try:
        return is_colour(path)
    except Unreadable:  # said when its pixels are read
        return False


def _dark(training: list[Path], bits: int | None) -> list[str]:
    """A sentence where the training images of 16 bits use far fewer, which leaves them a few levels
    of grey.
    """
    if bits is not None:
        return []
    deep = [path for path, is_so in zip(training, in_order(_deep, training), strict=True) if is_so]
    most = 0
    for value in in_order(_brightest, deep):
        most = max(most, value)
        if most >= 1 << 14:
            return []
    if not deep:
        return []
    depth = next(depth for depth in DEPTHS if most < 1 << depth)
    return [
        f"the brightest pixel of the {len(deep)} training images of 16 bits has {most:,} of 65,535: of its grey levels "
        f"{(most >> 8) + 1} are left in 8 bits. If it is a camera's {depth} bits, say data.bits={depth}"
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
    bad: dict[int, str] = {}
    count = 0

    def one(path: Path) -> Tensor | str:
        try:
            return decode(path, channels, size, bits)
        except Unreadable as error:
            return f"{shown(path.relative_to(root))} ({error})"

    for at, found in enumerate(in_order(one, paths)):
        if isinstance(found, str):
            bad[at] = found
            continue
        if images is None:
            images = torch.empty((len(paths), *found.shape), dtype=torch.uint8)
        if found.shape != images.shape[1:]:
            raise UserError(
                f"data.size=null needs images of one size, but {shown(paths[at])} has {found.shape[2]} x {found.shape[1]} "
                f"pixels and others have {images.shape[3]} x {images.shape[2]}; set data.size, e.g. data.size=64"
            )
        images[count] = found
        count += 1
    return (
        torch.empty(0, channels, 1, 1, dtype=torch.uint8) if images is None else images[:count]
    ), bad


def _said(bad: dict[int, str], count: int) -> str:
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return f"{len(bad)} of {count} images cannot be read: {', '.join(list(bad.values())[:NAMED])}{more}"
