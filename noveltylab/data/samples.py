"""What a reader returns: images with labels, and what they are pieces of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Units:
    """What the samples are pieces of, in order of time: frames, whole videos, or sound files.

    kind "frame", "video" or "file"; of int64 (N,), the unit of each sample, rising; ids, labels
    int64, groups (the clip or file) and test bool, each (U,); grid: rows and columns of the patches
    of a frame.
    """

    kind: str
    of: NDArray[np.int64]
    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_]
    test: NDArray[np.bool_]
    grid: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Samples:
    """What a reader returns.

    images uint8 (or int16, sound waves) (N, C, H, W) at native size; labels int64 (N,);
    official_test bool (N,), None without such a split; ids (N,) such as "train/00012"; verified:
    the files were compared with the official checksums, None where there are none to compare with;
    facts: name -> (N,), for protocols; units: what the samples are pieces of; notes: sentences for
    the run's result; skipped: files that could not be read; missing: files (or images) of the
    official set that are not there; names: of the classes by label, where kinds of outliers are
    told apart; scale: of log-mel images, the decibels of 0 and of 255.
    """

    images: Tensor
    labels: NDArray[np.int64]
    official_test: NDArray[np.bool_] | None
    ids: NDArray[np.str_]
    verified: bool | None
    facts: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    units: Units | None = None
    notes: tuple[str, ...] = ()
    skipped: int = 0
    missing: int = 0
    names: tuple[str, ...] = ()
    scale: tuple[float, float] | None = None
