"""From the scores of pieces (patches of a frame, images of a video, segments of a recording) to the
score of the whole.
"""

import numpy as np
from numpy.typing import NDArray

from noveltylab.data.wholes import Wholes, aggregate
from noveltylab.results.scores import Scores

Array = NDArray[np.float64]

#: frames that the common video code drops at the start of each clip
#: (StevenLiuWen/ano_pred_cvpr2018)
DROPPED = 4


def scale_groups(
    scores: Array, groups: NDArray[np.str_], drop: int = DROPPED
) -> tuple[Array, NDArray[np.int64]]:
    """The video papers' convention: each clip scaled to [0, 1] by itself, without its first `drop`
    frames.

    Args:
        scores: (n,), of the frames, in order of time.
        groups: (n,), the clip of each.
        drop: Frames left out at the start of each clip; a clip that is not longer keeps all.

    Returns:
        Scores (m,) and the positions (m,) of the frames kept. A clip of one constant score becomes
        0.
    """
    scaled, kept = [], []
    for name in dict.fromkeys(groups.tolist()):
        rows = np.flatnonzero(groups == name)
        rows = rows[drop:] if len(rows) > drop else rows
        low, high = scores[rows].min(), scores[rows].max()
        scaled.append((scores[rows] - low) / (high - low if high > low else 1.0))
        kept.append(rows)
    return np.concatenate(scaled), np.concatenate(kept)


def judge(pieces: Scores, wholes: Wholes | None) -> tuple[Scores, dict[str, Scores]]:
    """What the run's number is measured on, and what is reported apart.

    Apart: "patches" (labelled as their frames), "patches_by_mask" (labelled by masks of pixels,
    where there are some) and "clips" (frames under `scale_groups`); "images" of videos; or "files".
    """
    if wholes is None:
        return pieces, {}
    count = len(wholes.ids)
    columns = {
        name: aggregate(column, wholes.of, count, wholes.how)
        for name, column in pieces.columns.items()
    }
    whole = Scores(wholes.ids.tolist(), wholes.labels, wholes.is_outlier, columns)
    if not wholes.main:
        return pieces, {f"{wholes.kind}s": whole}
    if wholes.kind == "video":
        return whole, {"images": pieces}
    scaled = {name: scale_groups(column, wholes.groups) for name, column in columns.items()}
    kept = next(iter(scaled.values()))[1]
    clips = Scores(
        wholes.ids[kept].tolist(),
        wholes.labels[kept],
        wholes.is_outlier[kept],
        {name: values for name, (values, _) in scaled.items()},
    )
    if wholes.masked is None:
        return whole, {"patches": pieces, "clips": clips}
    by_mask = Scores(pieces.ids, wholes.masked.astype(np.int64), wholes.masked, pieces.columns)
    return whole, {"patches": pieces, "patches_by_mask": by_mask, "clips": clips}
