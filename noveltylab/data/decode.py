"""One image file, by anybody, to uint8 pixels: whatever is wrong with it becomes one line of text.

By Pillow, and by its decoders of plain image formats alone: none that starts a program (EPS) or
follows links to other files. The rules, the same for training and prediction: the first picture of
several; EXIF's orientation is applied; what is transparent lies on white; 16 bit become 8 by
dropping the lower ones, of which a camera's 10 or 12 bits may be said to be all there are; colour
becomes grey by ITU-R 601-2; another size is stretched to the run's (see preprocess.resize:
bilinear, antialiased where it shrinks, the aspect ratio is not kept).
"""

import io
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from noveltylab.data.preprocess import resize
from noveltylab.errors import in_one_line
from noveltylab.results.files import open_regular
from noveltylab.results.provenance import cores

T = TypeVar("T")
R = TypeVar("R")

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
#: bytes of a file that are looked at
MAX_BYTES = 1 << 30
#: bytes of a file that is read as it may be
SMALL = 1 << 18
#: EXIF's tag, and the first of its values that turn an image by a quarter
ORIENTATION, QUARTER_TURNS = 0x0112, 5
_GREY = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}


class Unreadable(Exception):
    """A file that is no image we can read; the message says why, in one line, without its name."""


def decode(path: Path, channels: int, side: int | None, bits: int | None = None) -> Tensor:
    """The image in a file: uint8 (channels, side, side), contiguous.

    Args:
        path: The file.
        channels: 1 or 3.
        side: Pixels of a side; None keeps the image's own (H, W).
        bits: How many of 16 a pixel really has, 8 to 16; None: all.

    Raises:
        Unreadable: The file is missing, no regular file, empty, damaged, of another kind or larger
            than Pillow's limit, or a pixel has more bits.
    """

    def fitted(image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(_pixels(image, channels, bits)).permute(2, 0, 1).contiguous()
        return pixels if side is None else stretch(pixels, side)

    return _read(path, fitted)


def stretch(pixels: Tensor, side: int) -> Tensor:
    """uint8 (C, H, W) -> (C, side, side); the aspect ratio is not kept."""
    if pixels.shape[-2:] == (side, side):
        return pixels
    return resize(pixels[None], side)[0]


def in_order(
    function: Callable[[T], R], items: Iterable[T], ahead: int = 64, threads: int | None = None
) -> Iterator[R]:
    """function(item) for each item, in order, by `threads` threads (one for each core).

    About `ahead` results wait at most.
    """
    # handing one item at a time to a thread would cost half of what a small image does
    size = max(1, ahead // 32)
    iterator = iter(items)

    def work(batch: list[T]) -> list[R]:
        return [function(item) for item in batch]

    with ThreadPoolExecutor(threads or cores()) as pool:
        waiting: deque[Future[list[R]]] = deque()
        try:
            while True:
                batch = list(islice(iterator, size))
                if not batch:
                    break
                waiting.append(pool.submit(work, batch))
                if len(waiting) > ahead // size:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def read_pixels(path: Path, channels: int, bits: int | None = None) -> NDArray[np.uint8]:
    """uint8 (H, W, channels) at native size; Unreadable as `decode`."""
    return _read(path, lambda image: _pixels(image, channels, bits))


def _read(path: Path, work: Callable[[Image.Image], R]) -> R:
    """What `work` makes of the image, its pixels included; Unreadable as `decode`."""
    try:
        with _open(path) as image, MEMORY.hold(image.width * image.height * BYTES_PER_PIXEL):
            return work(image)
    except Unreadable:
        raise
    except Exception as error:  # what a damaged file makes a decoder raise is not documented
        raise Unreadable(reason(error)) from None


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as `decode` sees it, by its header.

    Raises:
        Unreadable: as `decode`, for what the header shows.
    """
    try:
        with _open(path) as image:
            width, height = image.size
            is_turned = image.getexif().get(ORIENTATION, 1) >= QUARTER_TURNS
    except Unreadable:
        raise
    except Exception as error:  # as above
        raise Unreadable(reason(error)) from None
    return (width, height) if is_turned else (height, width)


def is_colour(path: Path) -> bool:
    """Whether an image has colour, by its header and palette.

    Raises:
        Unreadable: as `decode`, for what the header shows.
    """
    try:
        with _open(path) as image:
            return has_colour(image)
    except Unreadable:
        raise
    except Exception as error:  # as above
        raise Unreadable(reason(error)) from None


def is_deep(path: Path) -> bool:
    """Whether an image has pixels of more than 8 bits, by its header.

    Raises:
        Unreadable: as `decode`, for what the header shows.
    """
    try:
        with _open(path) as image:
            return image.mode.startswith("I") or _deep_colour(image)
    except Unreadable:
        raise
    except Exception as error:  # as above
        raise Unreadable(reason(error)) from None


def brightest(path: Path) -> int:
    """The largest value of a pixel of 16 bits; Unreadable as `decode`.

    Of a picture in colour, whose lower bits Pillow drops, it is nearly the largest.
    """

    def maximum(image: Image.Image) -> int:
        dropped = 8 if _deep_colour(image) else 0  # asked before the pixels are read
        return int(np.asarray(image).max()) << dropped

    return _read(path, maximum)


def _deep_colour(image: Image.Image) -> bool:
    tiles = getattr(image, "tile", [])
    return any("16" in str(tile[3]) for tile in tiles) and not image.mode.startswith("I")


def has_colour(image: Image.Image) -> bool:
    """By the mode; of a palette, whether any of its colours is none of the greys."""
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette("RGB") or [], np.int64).reshape(-1, 3)
        return bool((palette != palette[:, :1]).any())
    return image.mode not in _GREY


def reason(error: BaseException) -> str:
    """An exception in one printable line."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"too many pixels: more than {Image.MAX_IMAGE_PIXELS or 0:,}"
    return in_one_line(error)


def check_file(path: Path) -> int:
    """The size of a regular file in bytes.

    Raises:
        Unreadable: It is missing, a folder, a pipe, a device, empty, or beyond MAX_BYTES.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise Unreadable(reason(error)) from None
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise Unreadable("is no regular file")
    if not status.st_size:
        raise Unreadable("is empty")
    if status.st_size > MAX_BYTES:
        raise Unreadable(f"is larger than {MAX_BYTES >> 30} GiB")
    return status.st_size


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """The image with its header read."""
    size = check_file(path)
    file = open_regular(path, MAX_BYTES)
    with _Metered(file.detach(), size) if size > SMALL else file as stream:
        try:
            image = Image.open(stream, formats=FORMATS)  # reads the header only
        except UnidentifiedImageError:
            raise Unreadable(f"is no image of a known format ({', '.join(FORMATS)})") from None
        with image:
            limit = Image.MAX_IMAGE_PIXELS or 0
            if image.width * image.height > limit:
                raise Unreadable(
                    f"too many pixels: {image.width} x {image.height}, more than {limit:,}"
                )
            yield image


class _Metered(io.BufferedReader):
    """A file that ends a decoder which takes it in crumbs.

    Such as one that reads a comment of 200 MB letter by letter.
    """

    def __init__(self, raw: io.RawIOBase, size: int) -> None:
        super().__init__(raw)
        self.reads_left = 100_000 + size // 256

    def read(self, count: int | None = -1, /) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise Unreadable("its header or comments have no end")
        return super().read(count)


class Memory:
    """What threads may use at once, in bytes.

    A thread that asks for more than is free waits; one that asks for more than all is alone.
    """

    def __init__(self, total: int) -> None:
        self.total, self.used = total, 0
        self.changed = threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Inside, `size` bytes are taken."""
        share = min(size, self.total)
        with self.changed:
            self.changed.wait_for(lambda: self.used + share <= self.total)
            self.used += share
        try:
            yield
        finally:
            with self.changed:
                self.used -= share
                self.changed.notify_all()


#: Bytes that a pixel takes while it is decoded, laid on white and stretched.
BYTES_PER_PIXEL = 32
#: Of all threads that decode.
MEMORY = Memory(1 << 30)


def _pixels(image: Image.Image, channels: int, bits: int | None) -> NDArray[np.uint8]:
    if bits not in (None, 16) and _deep_colour(image):
        raise Unreadable(
            f"has 16 bits in colour, of which data.bits={bits} cannot be taken; "
            "save it with 8 bits, or grey"
        )
    if image.format in ("JPEG", "MPO", "TIFF", "WEBP") or "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise Unreadable("has floating-point pixels; save it with 8 or 16 bit")
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise Unreadable("has 32-bit pixels; save it with 8 or 16 bit")
        bits = bits or 16
        maximum = int(wide.max())
        if maximum >= 1 << bits:
            raise Unreadable(f"has a pixel of {maximum:,}, more than data.bits={bits} can hold")
        image = Image.fromarray((wide >> (bits - 8)).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "RGB" if channels == 3 else "L"
    image = image.convert(mode)
    return np.array(image).reshape(image.height, image.width, channels)


def thumbnail(path: Path, side: int, bits: int | None = None) -> NDArray[np.uint8]:
    """The image, its longer side at most `side` pixels, uint8 (H, W, 3).

    Raises:
        Unreadable: as `decode`.
    """
    picture = Image.fromarray(read_pixels(path, 3, bits))
    picture.thumbnail((side, side))
    return np.asarray(picture)


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 (H, W) or (H, W, 3) as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
