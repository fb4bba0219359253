"""From the scores of patches, images or segments to those of frames, videos or recordings."""

import numpy as np
from numpy.typing import NDArray

from noveltylab.data.samples import ScoredUnits, aggregate
from noveltylab.results.scores import Scores

Array = NDArray[np.float64]
#: Kind of sample -> scores.
Kinds = dict[str, Scores]

#: frames that the common video code leaves out at the start and at the end of each clip
#: (StevenLiuWen/ano_pred_cvpr2018)
BORDER = (4, 0)


def scale_groups(
    scores: Array, groups: NDArray[np.str_], border: tuple[int, int] = BORDER
) -> tuple[Array, NDArray[np.int64]]:
    """Scales each clip to [0, 1] by itself, without its border frames, as video papers do.

    Args:
        scores: (n,), of the frames, in order of time.
        groups: (n,), the clip of each.
        border: Frames left out at the start and at the end of each clip; a clip that is not longer
            than both keeps all.

    Returns:
        Scores (m,) and the positions (m,) of the remaining frames. A clip of one constant score
        becomes 0.
    """
    scaled: list[Array] = []
    positions: list[NDArray[np.int64]] = []
    for name in dict.fromkeys(groups.tolist()):
        rows = np.flatnonzero(groups == name)
        if len(rows) > sum(border):
            rows = rows[border[0] : len(rows) - border[1]]
        clip = scores[rows]
        low = clip.min()
        span = clip.max() - low
        if not span > 0:
            span = 1.0
        scaled.append((clip - low) / span)
        positions.append(rows)
    return np.concatenate(scaled), np.concatenate(positions)


def measured_scores(pieces: Scores, wholes: ScoredUnits | None) -> tuple[Scores, Kinds]:
    """The scores that the run's number is measured on, and those that are reported apart.

    Apart: "patches" (labelled as their frames), "patches_by_mask" (labelled by masks of pixels,
    where there are some) and "clips" (frames under `scale_groups`); "images" of videos; or "files".
    Whole frames have no patches.
    """
    if wholes is None:
        return pieces, {}
    ids = wholes.ids.tolist()
    columns: dict[str, Array] = {}
    for name, column in pieces.columns.items():
        columns[name] = aggregate(column, wholes.of, len(ids), wholes.how)
    whole = Scores(ids, wholes.labels, wholes.is_outlier, columns)
    if not wholes.main:
        return pieces, {f"{wholes.kind}s": whole}
    if wholes.kind == "video":
        return whole, {"images": pieces}
    # frames of clips
    apart = {}
    if pieces.ids != ids:
        apart["patches"] = pieces
    if wholes.masked is not None:
        labels = wholes.masked.astype(np.int64)
        apart["patches_by_mask"] = Scores(pieces.ids, labels, wholes.masked, pieces.columns)
    apart["clips"] = _scaled_clips(columns, wholes)
    return whole, apart


def _scaled_clips(columns: dict[str, Array], wholes: ScoredUnits) -> Scores:
    """The frames under `scale_groups`, from the columns of all frames."""
    scaled_columns: dict[str, Array] = {}
    for name, column in columns.items():
        border = BORDER if wholes.border is None else wholes.border
        scaled_columns[name], rows = scale_groups(column, wholes.groups, border)
    ids = wholes.ids[rows].tolist()
    return Scores(ids, wholes.labels[rows], wholes.is_outlier[rows], scaled_columns)
