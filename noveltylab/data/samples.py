"""What a reader returns: images with labels, and the frames or recordings that they belong to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Units:
    """The U frames, videos or recordings, in order of time, that the n images are parts of.

    kind "frame" (of patches), "video" (of images) or "file" (of segments); of int64 (n,), the unit
    of each image; ids, labels int64 and groups (a frame's clip), each (U,).
    """

    kind: str
    of: NDArray[np.int64]
    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_]


@dataclass(frozen=True, eq=False, kw_only=True)
class ReadUnits(Units):
    """The units that a reader found.

    of: rising; test bool (U,): whether they belong to the test part; grid: rows and columns of the
    patches of a frame; border: of each clip, the frames at its start and at its end that are left
    out where clips are scaled by themselves, None for what the common video code leaves out.
    """

    test: NDArray[np.bool_]
    grid: tuple[int, int] | None = None
    border: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoredUnits(Units):
    """The units of a test split, which get their scores from those of their parts.

    is_outlier bool (U,); how: see `aggregate`; main: the run's number is theirs, not that of their
    parts; masked bool (n,): patches with an abnormal pixel, None where no masks say so; border: as
    of `ReadUnits`.
    """

    is_outlier: NDArray[np.bool_]
    how: str
    main: bool
    masked: NDArray[np.bool_] | None = None
    border: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Samples:
    """What a reader returns.

    images uint8 (or int16: waves, differences) (N, C, H, W) at native size; labels int64 (N,);
    official_test bool (N,), None without such a split; ids (N,) such as "train/00012"; verified:
    the files were compared with the official checksums, None where there are none to compare with;
    facts: name -> (N,), for protocols; units: what the images are parts of; notes: sentences for
    the run's result; skipped: files that could not be read; missing: files (or images) of the
    official set that are not there; names: of the classes by label, where kinds of outliers are
    told apart; scale: of log-mel images, the decibels of 0 and of 255.
    """

    images: "Tensor"
    labels: NDArray[np.int64]
    official_test: NDArray[np.bool_] | None
    ids: NDArray[np.str_]
    verified: bool | None
    facts: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    units: ReadUnits | None = None
    notes: tuple[str, ...] = ()
    skipped: int = 0
    missing: int = 0
    names: tuple[str, ...] = ()
    scale: tuple[float, float] | None = None


def unchecked(verify: bool) -> bool | None:
    """`Samples.verified` of a set without checksums: None, and False if `verify` was not asked."""
    return None if verify else False


def aggregate(
    scores: NDArray[np.float64], unit: NDArray[np.int64], count: int, how: str
) -> NDArray[np.float64]:
    """The score of each unit: frame, video or recording.

    Args:
        scores: (n,), of the patches, images or segments.
        unit: (n,), which unit each of them belongs to, in 0 .. count - 1.
        count: Number of units.
        how: "max"; "top3mean", the mean of the three highest (of all, where there are fewer);
            "mean".

    Returns:
        (count,). A unit without scores gets the lowest score of those that have some: nothing
        moved in that frame.

    Raises:
        ValueError: `how` is none of the three, or there are no scores.
    """
    if not len(scores):
        raise ValueError("no scores to aggregate")
    if how not in ("max", "top3mean", "mean"):
        raise ValueError(f"aggregate by max, top3mean or mean, not {how}")
    order = np.lexsort((-scores, unit))
    scores, unit = scores[order], unit[order]
    # 0 for the highest score of each unit
    rank = np.arange(len(unit)) - np.searchsorted(unit, unit)
    is_used = rank < {"max": 1, "top3mean": 3, "mean": len(scores)}[how]
    sums = np.bincount(unit[is_used], scores[is_used], count)
    counts = np.bincount(unit[is_used], minlength=count)
    has_scores = counts > 0
    result = np.empty(count)
    result[has_scores] = sums[has_scores] / counts[has_scores]
    result[~has_scores] = result[has_scores].min()
    return result
