"""Pictures that show images: the best and worst cases of a run, rows of images, error maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noveltylab.run.plots import INLIER, OUTLIER, Array, new_figure, save_figure, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Pixels that a picture has across in a row, about as many as on the page.
WIDE = 100
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
        path: The picture's; its suffix gives the format.
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

    # the page; lengths are in widths of one picture, from the top
    grid = Grid(height=originals.shape[2] / originals.shape[3])
    head = 0.2 + 0.17 * (len(captions) - 1)
    columns = max(6, *map(len, groups.values()))
    inch, margin, title_inches = 0.85, 1.15, 0.35
    wide = columns * grid.step
    deep = head + len(stacks) * grid.line
    group_inches = title_inches + deep * inch
    across = margin + wide * inch + 0.1
    down = len(groups) * group_inches + 0.1
    figure = new_figure(across, down, layout=None)

    # each group
    for row, (title, members) in enumerate(groups.items()):
        bottom = down - (row + 1) * group_inches
        box = (margin / across, bottom / down, wide * inch / across, deep * inch / down)
        axes = figure.add_axes(box)
        axes.axis("off")
        _draw_head(axes, title, captions, members, head, grid)
        for line, (name, stack) in enumerate(stacks.items()):
            _draw_row(axes, name, stack[members], head + line * grid.line, grid)
        # each imshow moved these
        axes.set(xlim=(0, wide), ylim=(deep, 0), aspect="auto")
    save_figure(figure, path)


def _draw_head(
    axes: "Axes",
    title: str,
    captions: Mapping[str, Sequence[str]],
    members: NDArray[np.int64],
    bottom: float,
    grid: "Grid",
) -> None:
    """The title of a group of cases, and the captions of each case above `bottom`."""
    colour = OUTLIER if GROUPS[title][0] else INLIER
    axes.text(0, -0.02, title, color=colour, fontsize=11, fontweight="bold", va="bottom")
    style: dict[str, Any] = {"fontsize": 8, "va": "bottom", "linespacing": 1.05}
    y = bottom - 0.02
    axes.text(-0.1, y, "\n".join(captions), ha="right", color="0.4", **style)
    for column, case in enumerate(members):
        middle = column * grid.step + 0.5
        caption = "\n".join(words[case] for words in captions.values())
        axes.text(middle, y, caption, ha="center", **style)


def plot_rows(path: str | Path, rows: Sequence[tuple[str, NDArray[Any]]]) -> None:
    """Draws titled rows of images as a grid.

    Args:
        path: The picture's; its suffix gives the format.
        rows: Title and images (N, C, H, W) of each row, as `plot_reconstructions` takes them; all
            of one height and width.
    """
    _, _, height, width = rows[0][1].shape
    grid = Grid(height / width)
    wide = max(len(images) for _, images in rows) * grid.step
    deep = len(rows) * grid.line
    inch, margin = 0.75, 1.6
    across, down = margin + wide * inch + 0.1, deep * inch + 0.2
    figure = new_figure(across, down, layout=None)
    axes = figure.add_axes((margin / across, 0.1 / down, wide * inch / across, deep * inch / down))
    axes.axis("off")
    for line, (title, images) in enumerate(rows):
        _draw_row(axes, title, images, line * grid.line, grid)
    # each imshow moved these
    axes.set(xlim=(0, wide), ylim=(deep, 0), aspect="auto")
    save_figure(figure, path)


class Grid(NamedTuple):
    """Where images of one size stand, in widths of one of them."""

    height: float
    gap: float = 0.06

    @property
    def step(self) -> float:
        """From the left edge of an image to that of the next one."""
        return 1 + self.gap

    @property
    def line(self) -> float:
        """From the upper edge of a row to that of the next one."""
        return self.height + self.gap


def _draw_row(axes: "Axes", title: str, images: NDArray[Any], top: float, grid: Grid) -> None:
    """Images (N, C, H, W) side by side below `top`, their title left of them."""
    bottom = top + grid.height
    axes.text(-0.1, top + grid.height / 2, title, fontsize=9, ha="right", va="center")
    right = len(images) * grid.step - grid.gap
    # one picture of all: matplotlib takes milliseconds for each
    row = side_by_side(_pictures(images), grid)
    axes.imshow(row, extent=(0, right, bottom, top), interpolation="nearest")


def side_by_side(pictures: NDArray[np.float32], grid: Grid) -> NDArray[np.uint8]:
    """RGB pictures (N, H, W, 3) in [0, 1] as one, uint8, with white gaps between them.

    Each of their pixels is repeated until a picture has at least WIDE pixels across.
    """
    repeats = -(-WIDE // pictures.shape[2])
    tiles = (pictures * 255).round().astype(np.uint8)
    tiles = tiles.repeat(repeats, axis=1).repeat(repeats, axis=2)
    count, height, width, _ = tiles.shape
    gap = round(width * grid.gap)
    row = np.full((height, count * (width + gap) - gap, 3), 255, np.uint8)
    for position, tile in enumerate(tiles):
        left = position * (width + gap)
        row[:, left : left + width] = tile
    return row


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


def _pictures(images: NDArray[Any]) -> NDArray[np.float32]:
    """(N, C, H, W) of any kind to RGB (N, H, W, 3) in [0, 1]; int16 is sound, its silence grey."""
    if images.dtype == np.int16:
        images = images / 65536 + 0.5
    scale = 255 if images.dtype == np.uint8 else 1
    unit: NDArray[np.float32] = np.nan_to_num(np.clip(images.astype(np.float32) / scale, 0, 1))
    if unit.shape[1] != 3:
        unit = unit.mean(axis=1, keepdims=True).repeat(3, axis=1)
    return unit.transpose(0, 2, 3, 1)
