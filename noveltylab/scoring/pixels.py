"""How well maps of novelty find defects, pixel by pixel: AUROC and AUPRO.

AUPRO is the area under the per-region overlap (Bergmann et al., MVTec AD, CVPR 2019 and IJCV 2021):
at every threshold the share of each connected defect that is found, averaged over all defects,
against the share of good pixels that is called a defect; up to a share of 0.3, and divided by 0.3.
Pixels are neighbours at their corners, too, as in the authors' code.

Memory is bounded: up to EXACT pixels every score is a threshold; of more pixels BINS quantiles of
the maps are. Each point of both curves is exact then, but there are straight lines between them,
so that an area is off by no more than half of the rectangles that the lines cross (`error`).
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noveltylab.errors import UserError

Scores = NDArray[np.float32]
Flags = NDArray[np.bool_]
Array = NDArray[np.float64]
#: gives the scores (H, W) and the mask (H, W) of each image, from the first one on
Images = Callable[[], Iterable[tuple[Scores, Flags]]]

#: share of good pixels up to which AUPRO looks
LIMIT = 0.3
#: pixels up to which every score is a threshold; thresholds where there are more
EXACT, BINS = 1 << 23, 1 << 16


def measure_pixels(images: Images, pixels: int, maps: Scores) -> dict[str, Any]:
    """`auroc` and `aupro` of maps with masks, how many `defects` there are, and the largest `error`.

    Args:
        images: Scores, larger is more novel, and where the defects are; gone through twice.
        pixels: How many these have in all.
        maps: Scores from which the thresholds are taken where there are too many pixels.

    Raises:
        UserError: There is no pixel of a defect, or none without, or a score is not finite.
    """
    if pixels <= EXACT:
        thresholds = np.unique(np.concatenate([scores.ravel() for scores, _ in images()]))
    else:
        thresholds = np.unique(np.quantile(maps, np.linspace(0, 1, BINS)).astype(np.float32))
    if not np.isfinite(thresholds).all():
        raise UserError("pixels cannot be measured: the map of an image is not finite")
    false, true, overlap, defects = count_pixels(images, thresholds)
    if not true.sum() or not false.sum():
        kind = "are a defect" if not false.sum() else "are good"
        raise UserError(f"pixels cannot be measured: by the masks all of them {kind}")
    # curves from the highest threshold down
    fpr, tpr = shares(false), shares(true)
    pro = np.concatenate([[0.0], np.cumsum(overlap[::-1])]) / defects
    error = 0.0
    if pixels > EXACT:
        error = max(largest_error(fpr, tpr), largest_error(fpr, pro) / LIMIT)
    return {
        "auroc": min(area(fpr, tpr, 1.0), 1.0),
        "aupro": min(area(fpr, pro, LIMIT) / LIMIT, 1.0),
        "defects": defects,
        "error": error,
    }


def count_pixels(images: Images, thresholds: Scores) -> tuple[Array, Array, Array, int]:
    """How many pixels reach each of K rising thresholds, and not the next one.

    Returns:
        Good pixels (K + 1,), those of defects, and these as shares of their own defect, the first
        below all thresholds; and how many defects there are.
    """
    from scipy.ndimage import label

    size = len(thresholds) + 1
    false, true, overlap = np.zeros(size), np.zeros(size), np.zeros(size)
    defects = 0
    for scores, mask in images():
        place = np.searchsorted(thresholds, scores, side="right")
        false += np.bincount(place[~mask], minlength=size)
        if not mask.any():
            continue
        regions, count = label(mask, np.ones((3, 3)))
        areas = np.bincount(regions.ravel())
        inside = place[mask]
        true += np.bincount(inside, minlength=size)
        overlap += np.bincount(inside, 1 / areas[regions[mask]], minlength=size)
        defects += count
    return false, true, overlap, defects


def shares(counts: Array) -> Array:
    """The share of pixels that the k highest places hold, k = 0 .. K + 1."""
    falling = np.cumsum(counts[::-1])
    return np.concatenate([[0.0], falling / falling[-1]])


def area(x: Array, y: Array, limit: float) -> float:
    """The area under the line through points that rise from (0, 0), up to x = limit."""
    inside = x <= limit
    xs, ys = x[inside], y[inside]
    if xs[-1] < limit:
        xs = np.append(xs, limit)
        ys = np.append(ys, np.interp(limit, x, y))
    return float((np.diff(xs) * (ys[1:] + ys[:-1])).sum() / 2)


def largest_error(x: Array, y: Array) -> float:
    """How far the area under a rising curve may be from that under lines through its points."""
    return float((np.diff(x) * np.diff(y)).sum() / 2)
