"""Any image file to pixels, or one line that says why not."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from noveltylab.data import decode
from noveltylab.data.decode import Unreadable, brightest, in_order, is_colour, is_deep
from noveltylab.data.preprocess import resize

RAMP = np.arange(96, dtype=np.uint8).reshape(8, 12)


def saved(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "pgm", "gif", "webp"])
def test_grey_comes_back_exactly(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"x.{suffix}", RAMP, **({"lossless": True} if suffix == "webp" else {}))
    pixels = decode.decode(path, 1, None)
    assert pixels.dtype == torch.uint8 and pixels.shape == (1, 8, 12)
    assert np.array_equal(pixels[0].numpy(), RAMP)


def test_another_size_is_stretched_as_a_run_does(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", np.repeat(RAMP[..., None], 3, 2))
    expected = resize(torch.from_numpy(RAMP)[None, None], 32)[0, 0]
    pixels = decode.decode(path, 3, 32)
    assert pixels.shape == (3, 32, 32)
    for channel in pixels:
        assert torch.equal(channel, expected)


def test_sixteen_bits_lose_the_lower_ones(tmp_path: Path) -> None:
    wide = (RAMP.astype(np.uint16) << 8) + 37
    for suffix in ("png", "tif"):
        path = saved(tmp_path / f"x.{suffix}", wide)
        assert not is_colour(path)
        assert np.array_equal(decode.decode(path, 1, None)[0].numpy(), RAMP)


def test_transparent_lies_on_white(tmp_path: Path) -> None:
    glyph = np.zeros((8, 8, 4), np.uint8)
    glyph[2:4, 2:4, 3] = 255  # black strokes on nothing: all black without its alpha
    Image.fromarray(glyph).save(tmp_path / "x.png")
    pixels = decode.decode(tmp_path / "x.png", 1, None)[0]
    assert pixels[0, 0] == 255 and pixels[2, 2] == 0


def test_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(tmp_path / "x.jpg", RAMP, exif=exif)
    assert decode.decode(tmp_path / "x.jpg", 1, None).shape == (1, 12, 8)


@pytest.mark.parametrize(
    ("mode", "colour"), [("L", False), ("1", False), ("RGB", True), ("P", False), ("LA", False)]
)
def test_colour_is_known_from_the_header(tmp_path: Path, mode: str, colour: bool) -> None:
    assert is_colour(saved(tmp_path / "x.png", RAMP, mode)) is colour


def png(width: int, height: int) -> bytes:
    """A PNG file whose header promises so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def hostile(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Kind -> (a file that is no good image, what is said of it)."""
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(
        whole, "PNG"
    )
    content = whole.getvalue()
    files = {
        "empty": (b"", "is empty"),
        "text": (b"no image\x1b[31m", "no image of a known format"),
        "truncated": (content[: len(content) // 2], ""),
        "flipped": (content[:200] + bytes([content[200] ^ 255]) + content[201:], ""),
        "bomb": (png(60_000, 60_000), "too many pixels"),
        "lie": (png(4000, 4000), ""),
        "eps": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nsystemdict /quit get exec\n",
            "no image of a known format",
        ),
        "nothing": (png(0, 0), ""),
    }
    paths = {}
    for name, (data, message) in files.items():
        (tmp_path / f"{name}.png").write_bytes(data)
        paths[name] = (tmp_path / f"{name}.png", message)
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    paths |= {name: (tmp_path / f"{name}.png", "no regular file") for name in ("folder", "pipe")}
    return paths | {
        "dangling": (tmp_path / "dangling.png", "No such file"),
        "loop": (tmp_path / "loop.png", ""),
    }


@pytest.mark.posix
@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "text",
        "truncated",
        "flipped",
        "bomb",
        "lie",
        "eps",
        "nothing",
        "folder",
        "pipe",
        "dangling",
        "loop",
    ],
)
def test_hostile_files_are_one_line(tmp_path: Path, kind: str) -> None:
    path, message = hostile(tmp_path)[kind]
    with pytest.raises(Unreadable) as error:
        decode.decode(path, 3, 32)
    assert message in str(error.value)
    assert str(error.value).isprintable() and 0 < len(str(error.value)) < 300


def test_results_come_in_order_and_few_wait() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        return -item

    results = in_order(work, iter(range(1000)), ahead=8)
    assert [next(results) for _ in range(5)] == [0, -1, -2, -3, -4]
    assert len(begun) <= 20
    assert list(results) == [-item for item in range(5, 1000)]


def test_colour_of_16_bits_cannot_be_cut_to_a_camera_s(tmp_path: Path) -> None:
    """Pillow drops the lower 8 bits of such a picture itself."""
    row = b"\0" + bytes(range(2, 14)) * 4
    header = struct.pack(">IIBBBBB", 8, 2, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * 2)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    path = tmp_path / "colour.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert is_deep(path) and brightest(path) == 12 << 8
    assert decode.decode(path, 3, None).max() == 12
    with pytest.raises(
        Unreadable, match="16 bits in colour, of which data.bits=12 cannot be taken"
    ):
        decode.decode(path, 3, None, bits=12)
