"""What the samples of a split are pieces of, and one score for each of these wholes.

Wholes are frames, videos or recordings.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Wholes:
    """The U wholes of a test split: frames of clips, videos, or sound files.

    kind "frame", "video" or "file"; ids, labels, is_outlier, groups (a frame's clip), each (U,); of
    int64 (n_test,), the whole of each test sample; how: see `aggregate`; main: the run's number is
    theirs, not that of their pieces; masked bool (n_test,): pieces with an abnormal pixel, None
    where no masks say so.
    """

    kind: str
    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    is_outlier: NDArray[np.bool_]
    groups: NDArray[np.str_]
    of: NDArray[np.int64]
    how: str
    main: bool
    masked: NDArray[np.bool_] | None = None


def aggregate(scores: Array, whole: NDArray[np.int64], count: int, how: str) -> Array:
    """The score of each whole.

    Args:
        scores: (n,), of the pieces.
        whole: (n,), which whole each piece belongs to, in 0 .. count - 1.
        count: Number of wholes.
        how: "max"; "top3mean", the mean of the three highest (of all, where there are fewer);
            "mean".

    Returns:
        (count,). A whole without pieces gets the lowest score of those that have some: nothing
        moved in that frame.

    Raises:
        ValueError: `how` is none of the three, or there are no pieces.
    """
    if not len(scores):
        raise ValueError("no pieces to aggregate")
    order = np.lexsort((-scores, whole))
    scores, whole = scores[order], whole[order]
    # 0 for the highest piece of each whole
    rank = np.arange(len(whole)) - np.searchsorted(whole, whole)
    if how not in ("max", "top3mean", "mean"):
        raise ValueError(f"aggregate by max, top3mean or mean, not {how}")
    used = rank < {"max": 1, "top3mean": 3, "mean": len(scores)}[how]
    sums = np.bincount(whole[used], scores[used], count)
    pieces = np.bincount(whole[used], minlength=count)
    filled = pieces > 0
    result = np.empty(count)
    result[filled] = sums[filled] / pieces[filled]
    result[~filled] = result[filled].min()
    return result
