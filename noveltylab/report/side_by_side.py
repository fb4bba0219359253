"""Methods side by side on the same data and inlier.

Their losses (NDA's figure 6) and reconstructions (OLED's figure 3).

Drawn as one SVG picture from what the runs kept: metrics.csv, and the images of
figures/reconstructions.npz. Losses of methods have definitions and scales of their own, so that
each method has a panel of its own, and each line is divided by its largest value: what can be read
off is when a loss settles and how much it swings, not which one is lower.
"""

import base64
import io
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noveltylab.errors import UserError
from noveltylab.report.blocks import Picture
from noveltylab.report.collect import Run
from noveltylab.report.ours import class_names
from noveltylab.report.plots import COLOURS, line_class, line_parts, loss_curves
from noveltylab.report.rows import Row
from noveltylab.results.files import open_regular

#: Bytes that the arrays of a run's reconstructions may have, and how many images are shown.
MAX_BYTES, MAX_IMAGES = 64 << 20, 40
ARRAYS = ("id", "is_outlier", "image", "reconstruction")
#: Sizes in the picture: a panel of losses, its legend's lines, an image, the gap between inliers
#: and outliers.
PANEL, LINE, SIDE, GAP = (300, 130), 15, 36, 12
LABEL = 190
COLUMNS = 3

Lines = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Reconstructions:
    """Test images of a run and their reconstructions, uint8 (n, C, H, W).

    ids (n,), is_outlier bool (n,).
    """

    ids: list[str]
    is_outlier: NDArray[np.bool_]
    images: NDArray[np.uint8]
    made: NDArray[np.uint8]


def side_by_side(rows: Sequence[Row]) -> Iterator[Picture]:
    """One picture for each inlier of which two rows or more have losses or reconstructions.

    Args:
        rows: All of one (protocol, data).
    """
    for inlier, name in class_names(rows).items():
        runs = _runs_of(rows, inlier)
        losses = {row: lines for row, run in runs.items() if (lines := _relative(loss_curves(run)))}
        images = {
            row: reconstructions
            for row, run in runs.items()
            if (reconstructions := read_reconstructions(run.folder))
        }
        if len(runs) < 2 or max(len(losses), len(images)) < 2:
            continue
        shared, outsiders = _of_the_same_images(images)
        result = next(iter(runs.values())).result
        missing = [
            f"{row}: no losses (no metrics.csv, or fitted once)"
            for row in runs
            if row not in losses
        ]
        missing += [
            f"{row}: no reconstructions (none kept, or the method makes none)"
            for row in runs
            if row not in images
        ]
        missing += [f"{row}: its reconstructions are of other test images" for row in outsiders]
        seeds = ", ".join(sorted({str(run.result.seed) for run in runs.values()}))
        yield Picture(
            name=f"{result.protocol}_{result.data}_inlier{inlier}",
            caption=f"Side by side, inlier {name}, seed {seeds}: losses, each line by its largest value, and reconstructions",
            svg=draw(losses if len(losses) > 1 else {}, shared if len(shared) > 1 else {}),
            missing=tuple(missing),
        )


def _relative(curves: Lines) -> Lines:
    """Each line that is not constant, divided by its largest absolute value."""
    relative = {}
    for name, points in curves.items():
        values = [value for _, value in points]
        if min(values) < max(values):
            largest = max(map(abs, values))
            relative[name] = [(iteration, value / largest) for iteration, value in points]
    return relative


def _runs_of(rows: Sequence[Row], inlier: int) -> dict[str, Run]:
    """Row name -> its run of an inlier, of the seed that most rows have."""
    seeds = Counter(
        run.result.seed for row in rows for run in row.runs if run.result.inlier == inlier
    )
    order = sorted(seeds, key=lambda seed: (-seeds[seed], seed))
    runs: dict[str, Run] = {}
    for row in rows:
        by_seed = {run.result.seed: run for run in row.runs if run.result.inlier == inlier}
        if by_seed:
            runs[row.name] = by_seed[next(seed for seed in order if seed in by_seed)]
    return runs


def _of_the_same_images(
    images: Mapping[str, Reconstructions],
) -> tuple[dict[str, Reconstructions], list[str]]:
    """Those of the images that most rows have, and the names of the others."""
    if not images:
        return {}, []
    counts = Counter(tuple(reconstructions.ids) for reconstructions in images.values())
    common = counts.most_common(1)[0][0]
    same = {
        row: reconstructions
        for row, reconstructions in images.items()
        if tuple(reconstructions.ids) == common
    }
    return same, [row for row in images if row not in same]


def read_reconstructions(folder: Path) -> Reconstructions | None:
    """What a run kept in figures/reconstructions.npz; None where there is none, or it is damaged."""
    path = folder / "figures" / "reconstructions.npz"
    try:
        with open_regular(path, MAX_BYTES, within=folder) as file:
            with zipfile.ZipFile(file) as archive:
                if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                    return None
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                ids, is_outlier, images, outputs = (arrays[name] for name in ARRAYS)
    except (OSError, EOFError, KeyError, ValueError, UserError, zipfile.BadZipFile):
        return None
    return _checked(ids, is_outlier, images, outputs)


def _checked(ids: Any, is_outlier: Any, images: Any, outputs: Any) -> Reconstructions | None:
    count = len(ids) if ids.ndim == 1 else 0
    shapes = [
        array.ndim == 4 and len(array) == count and array.dtype == np.uint8
        for array in (images, outputs)
    ]
    sizes = [
        array.shape[1] in (1, 3) and min(array.shape) > 0
        for array in (images, outputs)
        if array.ndim == 4
    ]
    if not (
        0 < count <= MAX_IMAGES and all(shapes) and all(sizes) and is_outlier.shape == (count,)
    ):
        return None
    return Reconstructions(
        [str(name) for name in ids.tolist()], is_outlier.astype(np.bool_), images, outputs
    )


# Drawing.


def draw(losses: Mapping[str, Lines], reconstructions: Mapping[str, Reconstructions]) -> str:
    """The picture as SVG text.

    A panel of losses for each method, then the input above each method's reconstructions.
    """
    parts, top = _loss_panels(losses)
    width = min(len(losses), COLUMNS) * PANEL[0]
    if reconstructions:
        rows, wide, deep = _image_rows(reconstructions, top)
        parts += rows
        width, top = max(width, wide), deep
    size = f'viewBox="0 0 {width} {top}" width="{width}" height="{top}"'
    return f'<svg {size} role="img" aria-label="methods side by side">{"".join(parts)}</svg>'


def _loss_panels(losses: Mapping[str, Lines]) -> tuple[list[str], int]:
    """The panels, COLUMNS in a row, each above the names of its lines; and where they end."""
    parts: list[str] = []
    longest = max((min(len(lines), COLOURS) for lines in losses.values()), default=0)
    height = PANEL[1] + LINE * longest + LINE
    for index, (name, lines) in enumerate(losses.items()):
        x, y = index % COLUMNS * PANEL[0], index // COLUMNS * height
        curves = dict(list(lines.items())[:COLOURS])
        order = list(curves)
        panel = [
            *line_parts(name, curves, order),
            *(_legend_line(name_of_line, place) for place, name_of_line in enumerate(order)),
        ]
        parts.append(f'<g transform="translate({x} {y})">{"".join(panel)}</g>')
    return parts, -(-len(losses) // COLUMNS) * height


def _legend_line(name: str, place: int) -> str:
    y = PANEL[1] + LINE * place + 8
    line = f'<line class="{line_class(place)}" x1="8" x2="30" y1="{y}" y2="{y}"/>'
    return f'{line}<text x="36" y="{y + 4}">{escape(name)}</text>'


def _image_rows(
    reconstructions: Mapping[str, Reconstructions], top: int
) -> tuple[list[str], int, int]:
    """The rows of images below `top`, and how wide and how deep they reach."""
    first = next(iter(reconstructions.values()))
    order = np.argsort(first.is_outlier, kind="stable")
    flags = first.is_outlier[order]
    columns = [LABEL + place * (SIDE + 2) + GAP * int(flag) for place, flag in enumerate(flags)]
    parts = [f'<text x="{LABEL}" y="{top + 12}">inliers</text>'] if not flags.all() else []
    if flags.any():
        parts.append(f'<text x="{columns[int(flags.argmax())]}" y="{top + 12}">outliers</text>')
    rows = {"input": first.images} | {name: run.made for name, run in reconstructions.items()}
    for line, (name, images) in enumerate(rows.items()):
        y = top + 18 + line * (SIDE + 2)
        parts.append(
            f'<text class="title" x="{LABEL - 8}" y="{y + SIDE // 2 + 4}" text-anchor="end">{escape(name)}</text>'
        )
        for x, image in zip(columns, images[order], strict=True):
            parts.append(
                f'<image x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" href="{_data_address(image)}"/>'
            )
    return parts, columns[-1] + SIDE + 8, top + 18 + len(rows) * (SIDE + 2) + 8


def _data_address(image: NDArray[np.uint8]) -> str:
    """A picture (C, H, W) as a PNG inside the page."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def standalone(svg: str, style: str) -> str:
    """The picture as a file of its own: with the page's colours and letters inside."""
    namespace = 'xmlns="http://www.w3.org/2000/svg"'
    svg = svg.replace("<svg", f"<svg {namespace}", 1)
    start = svg.index(">") + 1
    letters = "text { font-family: system-ui, sans-serif; }"
    return f"{svg[:start]}<style><![CDATA[{style}\n{letters}]]></style>{svg[start:]}"
