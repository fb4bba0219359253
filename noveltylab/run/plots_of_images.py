"""Pictures that show images: the best and worst cases of a run, rows of images, error maps.

Pages of images are put together by Pillow: matplotlib takes five times as long for their captions.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from noveltylab.results.files import write_atomic
from noveltylab.run.plots import INLIER, OUTLIER, Array, shortened

#: Pixels that an image has across on a page: at least so many, and at most twice as many.
WIDE = 100
#: The colour of words beside the images.
GREY = "#666666"
#: Groups of cases: title -> whether they are outliers, whether their scores are the highest.
GROUPS = {
    "inliers, lowest scores (most typical)": (False, False),
    "inliers, highest scores (false alarms)": (False, True),
    "outliers, highest scores (best found)": (True, True),
    "outliers, lowest scores (missed)": (True, False),
}


def extreme_cases(
    scores: Array, is_outlier: NDArray[np.bool_], cases: int = 10
) -> dict[str, NDArray[np.int64]]:
    """What `plot_reconstructions` shows: title -> at most `cases` indices, the extreme ones first.

    The indices are into (N,). The cases of a subset that holds all of these are the same, so only
    they need to be read and reconstructed.
    """
    order = np.argsort(scores, kind="stable")
    groups = {}
    for title, (kind, highest) in GROUPS.items():
        members = order[is_outlier[order] == kind]
        if highest:
            members = members[::-1]
        groups[title] = members[:cases]
    return groups


def plot_reconstructions(
    path: str | Path,
    originals: NDArray[Any],
    explanations: Mapping[str, NDArray[Any]],
    scores: Array,
    is_outlier: NDArray[np.bool_],
    labels: Sequence[object] | NDArray[Any] | None = None,
    *,
    errors: NDArray[Any] | None = None,
    kinds: Sequence[str] | None = None,
    cases: int = 10,
) -> None:
    """Draws the best and worst cases of both kinds, each input above what explains its score.

    The score stands above all.

    Args:
        path: Of a PNG file.
        originals: (N, C, H, W), uint8, or floats in [0, 1] (clipped); C of 3 is shown in colour,
            any other as grey.
        explanations: Title -> images as `originals` (any C), such as reconstructions; one row each,
            {} for none.
        scores: (N,), finite.
        is_outlier: bool (N,).
        labels: N categories or names, written above each case.
        errors: (N, H, W), where the reconstruction is off; coloured by one scale for all cases.
        kinds: N names of classes, written above the labels.
        cases: Most cases shown for each kind.
    """
    # what is shown
    all_groups = extreme_cases(scores, is_outlier, cases)
    groups = {title: members for title, members in all_groups.items() if len(members)}
    stacks = {"input": originals, **explanations}
    if errors is not None:
        stacks["error"] = colour_errors(errors).transpose(0, 3, 1, 2)
    captions: dict[str, list[str]] = {}
    if kinds is not None:
        captions["kind"] = [shortened(str(kind)) for kind in kinds]
    if labels is not None:
        captions["sample"] = [shortened(str(label)) for label in labels]
    captions["score"] = [f"{value:.3g}" for value in scores]

    # the page, from top to bottom
    columns = max(6, *map(len, groups.values()))
    page = Page.of(originals, [*stacks, *captions], columns)
    strips = []
    for title, members in groups.items():
        is_of_outliers, _ = GROUPS[title]
        strips.append(page.heading(title, OUTLIER if is_of_outliers else INLIER))
        for name, words in captions.items():
            strips.append(page.words(name, [words[case] for case in members]))
        for name, stack in stacks.items():
            strips.append(page.images(name, stack[members]))
    save_strips(strips, path)


def plot_rows(path: str | Path, rows: Sequence[tuple[str, NDArray[Any]]]) -> None:
    """Draws titled rows of images as a grid.

    Args:
        path: Of a PNG file.
        rows: Title and images (N, C, H, W) of each row, as `plot_reconstructions` takes them; all
            of one height and width.
    """
    titles = [title for title, _ in rows]
    columns = max(len(images) for _, images in rows)
    page = Page.of(rows[0][1], titles, columns)
    save_strips([page.images(title, images) for title, images in rows], path)


@dataclass(frozen=True)
class Page:
    """A page of images of one size in columns, made of strips; lengths are in pixels.

    Attributes:
        width, height: Of one image.
        margin: Left of the images, for the titles of their rows.
        columns: How many images stand side by side.
    """

    width: int
    height: int
    margin: int
    columns: int

    @classmethod
    def of(cls, images: NDArray[Any], titles: Sequence[str], columns: int) -> "Page":
        """A page for images (N, C, H, W), with room for the titles of its rows.

        Small images are enlarged by a whole number, large ones are made smaller.
        """
        high, wide = images.shape[2:]
        width = wide * -(-WIDE // wide) if wide < WIDE else min(wide, 2 * WIDE)
        height = max(1, round(high * width / wide))
        page = cls(width, height, 0, columns)
        longest = max(page.font().getlength(title) for title in titles)
        return cls(width, height, round(longest) + 3 * page.gap, columns)

    @property
    def gap(self) -> int:
        """Between two images."""
        return round(0.06 * self.width)

    def font(self, bold: bool = False) -> ImageFont.FreeTypeFont:
        """So large that a shortened name is as wide as an image."""
        return read_font("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf", self.width // 7)

    def strip(self, height: int) -> Image.Image:
        """A white strip as wide as the page."""
        across = self.margin + self.columns * (self.width + self.gap)
        return Image.new("RGB", (across, height), "white")

    def left(self, column: int) -> int:
        """Where the images of a column begin."""
        return self.margin + column * (self.width + self.gap)

    def heading(self, text: str, colour: str) -> Image.Image:
        """A strip with the title of a group of rows."""
        strip = self.strip(self.width // 2)
        place = (self.margin, strip.height - self.gap)
        ImageDraw.Draw(strip).text(place, text, colour, self.font(bold=True), anchor="ld")
        return strip

    def words(self, title: str, words: Sequence[str]) -> Image.Image:
        """A strip with a word above each image."""
        strip = self.strip(round(1.25 * self.font().size))
        draw = ImageDraw.Draw(strip)
        draw.text((self.margin - self.gap, 0), title, GREY, self.font(), anchor="ra")
        for column, word in enumerate(words):
            middle = self.left(column) + self.width // 2
            draw.text((middle, 0), word, "black", self.font(), anchor="ma")
        return strip

    def images(self, title: str, images: NDArray[Any]) -> Image.Image:
        """A strip of images (N, C, H, W) side by side."""
        strip = self.strip(self.height + self.gap)
        place = (self.margin - self.gap, self.height // 2)
        ImageDraw.Draw(strip).text(place, title, "black", self.font(), anchor="rm")
        for column, pixels in enumerate(as_bytes(images)):
            image = Image.fromarray(pixels)
            is_smaller = image.width < self.width
            filter_of_size = Image.Resampling.NEAREST if is_smaller else Image.Resampling.BOX
            image = image.resize((self.width, self.height), filter_of_size)
            strip.paste(image, (self.left(column), 0))
        return strip


@cache
def read_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of those that matplotlib brings, `size` pixels high."""
    from matplotlib import get_data_path

    path = Path(get_data_path(), "fonts", "ttf", name)
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def save_strips(strips: Sequence[Image.Image], path: str | Path) -> None:
    """The strips below each other as a PNG file."""
    height = sum(strip.height for strip in strips)
    page = Image.new("RGB", (strips[0].width, height), "white")
    top = 0
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height
    buffer = io.BytesIO()
    page.save(buffer, "png", compress_level=3)
    write_atomic(path, buffer.getvalue())


def colour_errors(errors: NDArray[Any]) -> NDArray[np.uint8]:
    """Errors (N, H, W), not negative, as colours (N, H, W, 3).

    The 99.5th percentile of all of them is the brightest.
    """
    from matplotlib import colormaps

    finite = np.nan_to_num(errors)
    scale = max(float(np.quantile(finite, 0.995)), 1e-9)
    coloured = colormaps["inferno"](np.clip(finite / scale, 0, 1))[..., :3]
    return np.asarray((coloured * 255).round(), dtype=np.uint8)


def overlay(images: NDArray[Any], maps: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Maps (N, H, W) glowing on grey images, uint8 (N, H, W, 3) each.

    Nothing up to `low`, brightest from `high` on.
    """
    from matplotlib import colormaps

    glow = np.clip((np.nan_to_num(maps) - low) / max(high - low, 1e-9), 0, 1)[..., None]
    grey = images.astype(np.float32).mean(-1, keepdims=True) / 255
    colours = colormaps["inferno"](0.25 + 0.75 * glow[..., 0])[..., :3]
    mixed = (1 - 0.75 * glow) * grey + 0.75 * glow * colours
    return np.asarray((mixed * 255).round(), dtype=np.uint8)


def limits_of(maps: NDArray[Any]) -> tuple[float, float]:
    """From where to where maps (N, H, W) glow: the middle of all pixels, and nearly the highest."""
    finite = np.nan_to_num(maps)
    low, high = np.quantile(finite, [0.5, 0.998])
    return float(low), float(high)


def as_bytes(images: NDArray[Any]) -> NDArray[np.uint8]:
    """(N, C, H, W) of any kind as RGB (N, H, W, 3); int16 is sound, its silence grey."""
    if images.dtype == np.int16:
        images = images / 65536 + 0.5
    scale = 255 if images.dtype == np.uint8 else 1
    unit: NDArray[np.float32] = np.nan_to_num(np.clip(images.astype(np.float32) / scale, 0, 1))
    if unit.shape[1] != 3:
        unit = unit.mean(axis=1, keepdims=True).repeat(3, axis=1)
    pixels = np.ascontiguousarray(unit.transpose(0, 2, 3, 1))
    return (pixels * 255).round().astype(np.uint8)
