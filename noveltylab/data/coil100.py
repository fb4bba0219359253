"""COIL-100: 100 objects on a turntable, 72 views of each, 128 x 128 colour pixels (Nene, Nayar and Murase, 1996).

One file per view, ``obj<k>__<angle>.png``, in ``<root>/coil-100``. Also reads COIL-20 (coil20.py), named alike. Copies
in any square size, grey or colour, will do; the result says so.
"""

import io
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from noveltylab.data.base import Samples, missing, resolve_root
from noveltylab.errors import UserError

VIEWS = 72
DEGREES = 5

#: side in pixels and size in bytes up to which a picture is read: the whole set has to fit into memory
MAX_SIDE = 512
MAX_BYTES = 4 << 20
#: Pillow's name of a picture's pixels -> ours
MODES = {"L": "grey", "RGB": "colour"}

_NAME = re.compile(r"obj([1-9][0-9]{0,2})__(0|[1-9][0-9]{0,2})\.png")


@dataclass(frozen=True)
class Layout:
    """How a set is stored: files obj<k>__<n>.png with k = 1..objects and n = 0, step, ..., 71 * step."""

    title: str
    option: str
    objects: int
    step: int
    pixels: str
    archive: str
    folders: tuple[str, ...]

    @property
    def total(self) -> int:
        """How many views the whole set has."""
        return self.objects * VIEWS

    def parse(self, name: str) -> tuple[int, int] | None:
        """(k, n) of a file name; None for any other name."""
        if not (match := _NAME.fullmatch(name)):
            return None
        k, n = int(match[1]), int(match[2])
        return (k, n) if k <= self.objects and n < VIEWS * self.step and n % self.step == 0 else None


COIL100 = Layout(
    title="COIL-100",
    option="data=coil100",
    objects=100,
    step=DEGREES,  # n is the angle
    pixels="128 x 128 colour",
    archive="coil-100.zip",
    folders=("coil-100", "coil-100/coil-100", "COIL-100", "COIL-100/coil-100"),
)
COIL20 = Layout(
    title="COIL-20",
    option="data=coil20",
    objects=20,
    step=1,  # n counts the views
    pixels="128 x 128 grey",
    archive="coil-20-proc.zip",
    folders=tuple(f"{above}coil-20-{kind}" for kind in ("proc", "32x32") for above in ("", "coil-20/", "COIL-20/")),
)


def read(root: Path | None, *, verify: bool, download: bool) -> Samples:
    """Samples with images (7200, C, H, H), sorted by object and angle. UserError for unusable files.

    verify: all 7,200 views must be there; without it any part of them will do. No checksums of the files were
    published, so the result is not verified. facts: "view", the angle in degrees.
    """
    return read_layout(COIL100, root, verify=verify, download=download)


def read_layout(layout: Layout, root: Path | None, *, verify: bool, download: bool) -> Samples:
    """Read one of the two sets, as `read` does. Of several folders the fullest is taken, ids are `obj<k>/<n>`."""
    root = resolve_root(root)
    folder, views = _find(layout, root, download)
    if verify and len(views) < layout.total:
        raise _incomplete(layout, folder, views)
    images = _read_images([folder / _file(k, n) for k, n in views])
    table = np.array(views, dtype=np.int64)
    return Samples(
        images=images,
        labels=table[:, 0] - 1,
        official_test=None,
        ids=np.array([f"obj{k}/{n:03d}" for k, n in views]),
        verified=False,
        facts={"view": table[:, 1] // layout.step * DEGREES},
        notes=(_note(layout, folder, images),),
    )


def _file(k: int, n: int) -> str:
    return f"obj{k}__{n}.png"


def _find(layout: Layout, root: Path, download: bool) -> tuple[Path, list[tuple[int, int]]]:
    """The folder with the most views of the set, and these (k, n), sorted; every picture in it is one of them."""
    found = {folder: names for part in layout.folders if (names := _pictures(folder := root / part))}
    if not found and any(map(layout.parse, names := _pictures(root))):  # data.root is the folder itself
        found = {root: names}
    other = COIL20 if layout.option == COIL100.option else COIL100
    if not found:
        raise _absent(layout, other, root, download)
    parsed = {folder: [layout.parse(name) for name in names] for folder, names in found.items()}
    folder = max(parsed, key=lambda folder: sum(view is not None for view in parsed[folder]))
    views = [view for view in parsed[folder] if view is not None]
    if len(views) < len(found[folder]):
        strange = next(name for name in found[folder] if layout.parse(name) is None)
        if all(map(other.parse, found[folder])):
            raise UserError(
                f"{folder} holds views of {other.title}, such as {strange}, not of {layout.title}: use {other.option}."
            )
        raise UserError(
            f"{folder / strange} is no view of {layout.title}: expected names obj<k>__<n>.png with k from 1 to "
            f"{layout.objects} and n = 0, {layout.step}, ..., {(VIEWS - 1) * layout.step}. Rename it or move it away."
        )
    return folder, sorted(views)


def _pictures(folder: Path) -> list[str]:
    """Sorted names of the pictures in a folder, without hidden files; none where there is no such folder.

    The official archive holds a script beside them.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"Cannot look into {folder}: {error.strerror}.") from error
    return sorted(name for name in names if name.lower().endswith(".png") and not name.startswith("."))


def _absent(layout: Layout, other: Layout, root: Path, download: bool) -> UserError:
    first = next((folder for part in layout.folders if (folder := root / part).is_dir()), root)
    remedy = (
        f"Get {layout.archive} from the page of COIL (Columbia Object Image Library) of the CAVE laboratory at "
        f"Columbia University and unpack it into {root}, so that {root / layout.folders[0] / _file(1, 0)} is there"
        f"{'; data.download=true cannot fetch it' if download else ''}."
    )
    if there := next((root / part for part in other.folders if _pictures(root / part)), None):
        remedy = f"{there} looks like {other.title}: for it use {other.option}. {remedy}"
    return missing(f"{layout.title} (files obj<k>__<n>.png in a folder {layout.folders[0]})", first, remedy)


def _incomplete(layout: Layout, folder: Path, views: list[tuple[int, int]]) -> UserError:
    every = {(k, n * layout.step) for k in range(1, layout.objects + 1) for n in range(VIEWS)}
    lacking = [_file(k, n) for k, n in sorted(every - set(views))]
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    return UserError(
        f"{folder} is incomplete: expected {layout.total} views of {layout.title} ({layout.objects} objects, {VIEWS} "
        f"each), found {len(views)}; missing: {', '.join(lacking[:3])}{more}. Add them, or accept what is there with "
        "data.verify=false."
    )


def _note(layout: Layout, folder: Path, images: Tensor) -> str:
    """What is known of the files instead of their checksums."""
    count, channels, side, _ = images.shape
    pixels = f"{side} x {side} {'grey' if channels == 1 else 'colour'}"
    views = f"all {count} views counted" if count == layout.total else f"only {count} of {layout.total} views there"
    copy = "" if pixels == layout.pixels else f", {pixels} pixels in place of the original {layout.pixels}"
    return f"{layout.title} has no published checksums; in {folder.absolute().name}: {views}{copy}"


def _read_images(paths: list[Path]) -> Tensor:
    """uint8 (N, C, H, H). UserError naming the first file that cannot be read or differs from the first."""
    first = read_png(paths[0])
    images = torch.empty((len(paths), *first.shape), dtype=torch.uint8)
    into = images.numpy()
    for i, path in enumerate(paths):
        pixels = read_png(path)
        if pixels.shape != first.shape:
            raise UserError(
                f"{path} differs from the others: it has {pixels.shape[-1]} x {pixels.shape[-2]} pixels in "
                f"{len(pixels)} channels, {paths[0].name} has {first.shape[-1]} x {first.shape[-2]} in {len(first)}."
            )
        into[i] = pixels
    return images


def read_png(path: Path) -> NDArray[np.uint8]:
    """uint8 (C, H, H) of a square grey (C = 1) or colour (C = 3) PNG file, its checksums compared.

    UserError naming the file if it is damaged, of another kind, or larger than MAX_SIDE; nothing that large is decoded.
    """
    if not path.is_file():  # a folder, a dangling link, or a pipe that would be waited for
        raise UserError(f"{path} is no regular file. Replace it by a picture.")
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is too large: expected a picture of at most {MAX_BYTES} bytes.")
    try:
        with warnings.catch_warnings(action="error", category=UserWarning):
            return _decode(content, path)
    except UserError:
        raise
    except Exception as error:  # what a damaged file makes the decoder raise is not documented
        raise UserError(
            f"{path} is truncated or corrupt: {len(content)} bytes do not make a PNG image ({error}). Replace it."
        ) from error


def _decode(content: bytes, path: Path) -> NDArray[np.uint8]:
    image = PngImageFile(io.BytesIO(content))  # reads the header only
    (width, height), mode = image.size, image.mode
    if width != height or width > MAX_SIDE or mode not in MODES:
        raise UserError(
            f"{path}: expected a square picture of at most {MAX_SIDE} pixels a side, 8-bit grey or colour, found "
            f"{width} x {height} in Pillow's mode {mode}."
        )
    image.verify()  # the checksum of each chunk; the image cannot be used afterwards
    pixels = np.asarray(PngImageFile(io.BytesIO(content)))
    return pixels.reshape(height, width, -1).transpose(2, 0, 1)
