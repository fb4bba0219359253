"""Which samples train, select and test a detector: pure, seeded index arrays.

Positions index the pooled sample list of a reader. Validation is always cut from training inliers;
no outlier is ever seen before the test. The same (protocol, labels, inlier, seed, options) gives
the same split on every machine.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from noveltylab.data.split import Aggregate, Facts, Flags, Index, Labels, Split
from noveltylab.errors import UserError, nearest

#: more images than these need no folds: a share of them is enough
MAX_FOLDS = 200

#: Labelled images of each kind for select=outlier_val (OLED, section 4.1).
VAL_LABELLED = 150


def split(
    name: str,
    labels: Labels,
    official_test: Flags | None,
    inlier: int,
    *,
    seed: int,
    val_fraction: float,
    facts: Facts | None = None,
    **options: Any,
) -> Split:
    """The checked split of one run.

    Args:
        name: A key of PROTOCOLS.
        labels: (N,).
        official_test: (N,), or None.
        inlier: The label that trains.
        seed: Of every draw.
        val_fraction: In [0, 1): share of the training inliers held out as val.
        facts: What the reader knows of each sample besides.
        options: Keyword arguments of the protocol's own function.

    Raises:
        UserError: an argument does not fit the protocol or the samples.
    """
    if name not in PROTOCOLS:
        raise UserError(f"There is no protocol '{name}': {nearest(name, PROTOCOLS)}")
    parameters = inspect.signature(PROTOCOLS[name]).parameters.keys()
    own_options = parameters - inspect.signature(split).parameters.keys()
    unknown = sorted(options.keys() - own_options)
    if unknown:
        hint = "It has no options of its own."
        if own_options:
            hint = nearest(unknown[0], own_options)
        raise UserError(f"Protocol {name} has no option '{unknown[0]}': {hint}")
    if not 0 <= val_fraction < 1:
        raise UserError(f"protocol.val_fraction must lie in [0, 1), got {val_fraction}.")
    if seed < 0:
        raise UserError(f"seed must not be negative, got {seed}.")
    if not (labels == inlier).any():
        listed = ", ".join(map(str, np.unique(labels)[:20].tolist()))
        raise UserError(f"No sample has the label inlier={inlier}; labels found: {listed}.")

    # a protocol is handed what it has a parameter for
    inputs: dict[str, Any] = {"labels": labels, "inlier": inlier, "facts": facts or {}}
    inputs |= {"official_test": official_test, "seed": seed, "val_fraction": val_fraction}
    for key in inputs.keys() & parameters:
        options[key] = inputs[key]
    result = PROTOCOLS[name](**options)
    result.check(labels, inlier)
    return result


def p1(
    labels: Labels,
    inlier: int,
    facts: Facts,
    *,
    seed: int,
    val_fraction: float,
    train_share: float = 0.8,
    views: Literal["random", "contiguous"] = "random",
    folds: int = 0,
) -> Split:
    """Protocol 1: all parts pooled, inliers cut 80/20, as many test outliers as test inliers.

    The outliers are drawn uniformly. views "contiguous" cuts the circle of an object's views into
    arcs (train, then val, then test) from a drawn start and leaves out the view at either end of
    the test arc: under "random", views 5 degrees from the training ones are tested.
    """
    if folds and views == "contiguous":
        raise UserError(
            "protocol.folds would train on neighbours of the views that it holds out; "
            "use views=random"
        )
    rng = np.random.default_rng(seed)
    inliers = np.flatnonzero(labels == inlier)
    if views == "random":
        pool = rng.permutation(inliers)
    else:
        angles = _fact(facts, "view", "protocol.views=contiguous")[inliers]
        circle = inliers[np.argsort(angles, kind="stable")]
        pool = np.roll(circle, -int(rng.integers(len(circle))))
    train, test = _cut(pool, _share("train_share", train_share))
    if views == "contiguous":
        train = train[1:-1]  # both are neighbours of a test view
    outliers = _draw(rng, labels, inlier, len(test), "p1")
    test = np.concatenate([test, outliers])
    return _assemble(train, test, labels, inlier, _held_out_share(val_fraction, folds))


def p2(
    labels: Labels,
    official_test: Flags | None,
    inlier: int,
    *,
    seed: int,
    val_fraction: float,
    folds: int = 0,
) -> Split:
    """Protocol 2: inliers of the official training part, the whole official test part in order."""
    if official_test is None:
        raise UserError(
            "This dataset (digits, for one) has no official split, as protocol p2 needs; "
            "use protocol=p1."
        )
    rng = np.random.default_rng(seed)
    train = rng.permutation(np.flatnonzero((labels == inlier) & ~official_test))
    test = np.flatnonzero(official_test)
    return _assemble(train, test, labels, inlier, _held_out_share(val_fraction, folds))


def two_thirds(
    labels: Labels,
    inlier: int,
    *,
    seed: int,
    val_fraction: float,
    train_share: float = 0.6667,
    outlier_ratio: float = 0.3,
    anomaly_ratio_of: str = "inliers",
    folds: int = 0,
) -> Split:
    """Two thirds of the inliers train, as in MemAE: parts pooled, fewer outliers than test inliers.

    anomaly_ratio_of says of what: of the test inliers, or of the test's total.
    """
    if anomaly_ratio_of not in ("inliers", "total"):
        hint = nearest(anomaly_ratio_of, ("inliers", "total"))
        raise UserError(f"protocol.anomaly_ratio_of cannot be '{anomaly_ratio_of}': {hint}")
    ratio = _share("outlier_ratio", outlier_ratio)
    rng = np.random.default_rng(seed)
    inliers = rng.permutation(np.flatnonzero(labels == inlier))
    train, test = _cut(inliers, _share("train_share", train_share))
    count = ratio * len(test)
    if anomaly_ratio_of == "total":
        # 1e-9 keeps an exact quotient such as 0.3 * 7 / 0.7 from being floored to the integer below
        count = ratio * len(test) / (1 - ratio) + 1e-9
    outliers = _draw(rng, labels, inlier, int(count), "two_thirds")
    test = np.concatenate([test, outliers])
    return _assemble(train, test, labels, inlier, _held_out_share(val_fraction, folds))


def frames(
    labels: Labels,
    official_test: Flags | None,
    inlier: int,
    facts: Facts,
    *,
    seed: int,
    val_fraction: float,
    motion_filter: float = 0.75,
    agg: Aggregate = "max",
) -> Split:
    """UCSD: patches of training clips against those of test clips; the last clips are held out.

    Patches that move less than the share `motion_filter` of the training patches are left out
    everywhere; a test frame without any left gets the lowest score. `agg` makes a frame's score of
    those of its patches.
    """
    if not 0 <= motion_filter < 1:
        raise UserError(f"protocol.motion_filter must lie in [0, 1), got {motion_filter}.")
    clip = _fact(facts, "clip", "protocol=frames")
    motion = _fact(facts, "motion", "protocol=frames")
    assert official_test is not None  # readers that know clips know the official parts
    is_train, is_val = _by_clips(clip, ~official_test & (labels == inlier), val_fraction)
    # leave out what does not move
    least_motion = -math.inf
    if motion_filter:
        least_motion = np.quantile(motion[is_train], motion_filter)
    moves = motion >= least_motion

    rng = np.random.default_rng(seed)
    train = rng.permutation(np.flatnonzero(is_train & moves))
    val = np.flatnonzero(is_val & moves)
    test = np.flatnonzero(official_test & moves)
    return Split(train, val, test, labels[test] != inlier, aggregate=agg, whole=True)


def whole_frames(
    labels: Labels,
    official_test: Flags | None,
    inlier: int,
    facts: Facts,
    *,
    seed: int,
    val_fraction: float,
) -> Split:
    """UCSD's whole frames, or stacks of them: as `frames` without patches and motion filter."""
    clip = _fact(facts, "clip", "protocol=whole_frames")
    own = _fact(facts, "own", "protocol=whole_frames")
    assert official_test is not None  # readers that know clips know the official parts
    is_train, is_val = _by_clips(clip, ~official_test & (labels == inlier), val_fraction)
    rng = np.random.default_rng(seed)
    train = rng.permutation(np.flatnonzero(is_train & own))
    val = np.flatnonzero(is_val & own)
    test = np.flatnonzero(official_test)
    clips = np.concatenate([np.unique(clip[index]) for index in (train, val, test)])
    assert len(np.unique(clips)) == len(clips), "a clip lies in two parts"
    return Split(train, val, test, labels[test] != inlier, aggregate="max", whole=True)


def _by_clips(clip: Index, inliers: Flags, val_fraction: float) -> tuple[Flags, Flags]:
    """Which inliers train and which are held out: those of the last clips, that share of them."""
    clips = np.unique(clip[inliers])
    first_held_out = len(clips) - math.ceil(val_fraction * len(clips))
    is_held_out = np.isin(clip, clips[first_held_out:])
    return inliers & ~is_held_out, inliers & is_held_out


def scenes(
    labels: Labels,
    inlier: int,
    facts: Facts,
    *,
    seed: int,
    val_fraction: float,
    agg: Aggregate = "max",
) -> Split:
    """DCASE: event-free segments of one scene train and validate; evaltest is tested whole.

    devtrain trains and devtest validates: val_fraction above 0 keeps devtest as it comes, 0 leaves
    validation out. `agg` makes a file's score, reported apart.
    """
    part = _fact(facts, "part", "protocol=scenes")
    rng = np.random.default_rng(seed)
    train = rng.permutation(np.flatnonzero((part == "devtrain") & (labels == inlier)))
    val = train[:0]
    if val_fraction:
        val = np.flatnonzero((part == "devtest") & (labels == inlier))
    test = np.flatnonzero(part == "evaltest")
    return Split(train, val, test, labels[test] != inlier, aggregate=agg)


def folders(
    labels: Labels,
    official_test: Flags | None,
    inlier: int,
    *,
    seed: int,
    val_fraction: float,
    train_share: float = 0.8,
    folds: int = 0,
) -> Split:
    """One's own images: the whole test part if there is one, else all that is no inlier.

    There may be no outlier. Where no inlier is in the test, a share 1 - train_share of the training
    inliers, drawn at random, is tested instead of trained on, so that the rate of false positives
    can be seen.
    """
    rng = np.random.default_rng(seed)
    inliers = labels == inlier
    is_test = ~inliers if official_test is None else official_test
    train = rng.permutation(np.flatnonzero(inliers & ~is_test))
    test = np.flatnonzero(is_test)
    if not (inliers & is_test).any():
        train, test_inliers = _cut(train, _share("train_share", train_share))
        test = np.concatenate([test_inliers, test])
    result = _assemble(train, test, labels, inlier, _held_out_share(val_fraction, folds))
    return replace(result, unlabelled=True)


def cross(
    labels: Labels,
    official_test: Flags | None,
    inlier: int,
    facts: Facts,
    *,
    seed: int,
    val_fraction: float,
    threshold: Literal["equal_error"] | float = "equal_error",
    agg: Aggregate = "mean",
) -> Split:
    """Across data sets: inliers of the source set train, the target's test part is tested by video.

    Held out are the inliers of the source's development part or, without one, a share of its
    training videos. They choose the epoch and, with the outliers of the development (else of the
    training) part, place the threshold under "equal_error"; a share rejects so many of them, and no
    outlier of the source is looked at.
    """
    part = _fact(facts, "part", "protocol=cross")
    video = _fact(facts, "video", "protocol=cross")
    assert official_test is not None  # readers that know parts know the official ones
    if threshold != "equal_error":
        _share("threshold", threshold)
    rng = np.random.default_rng(seed)
    inliers = labels == inlier
    # training and held-out inliers
    train = np.flatnonzero((part == "train") & inliers)
    val = np.flatnonzero((part == "devel") & inliers)
    if not len(val):
        videos = rng.permutation(np.unique(video[train]))
        is_held_out = np.isin(video[train], videos[: math.ceil(val_fraction * len(videos))])
        train, val = train[~is_held_out], train[is_held_out]
    if not len(val):
        raise UserError(
            "protocol=cross takes its threshold from held-out videos: "
            "set protocol.val_fraction above 0."
        )
    # the source's outliers, for the threshold alone
    outliers = np.flatnonzero((part == "devel") & ~inliers)
    if not len(outliers):
        outliers = np.flatnonzero((part == "train") & ~inliers)
    if threshold != "equal_error":
        outliers = outliers[:0]
    elif not len(outliers):
        raise UserError(
            "protocol.threshold=equal_error needs attacks in the development or training part of "
            "the source set, and there are none; protocol.threshold=0.05 rejects that share of its "
            "held-out genuine videos and needs none"
        )
    test = np.flatnonzero(official_test)
    videos = np.concatenate([np.unique(video[index]) for index in (train, val, test, outliers)])
    assert len(np.unique(videos)) == len(videos), "a video lies in two parts"
    return Split(
        rng.permutation(train),
        val,
        test,
        labels[test] != inlier,
        source_outliers=outliers,
        aggregate=agg,
        whole=True,
    )


_FUNCTIONS = (p1, p2, two_thirds, frames, whole_frames, scenes, folders, cross)
PROTOCOLS: dict[str, Callable[..., Split]] = {
    protocol.__name__: protocol for protocol in _FUNCTIONS
}


def _fact(facts: Facts, name: str, option: str) -> NDArray[Any]:
    if name not in facts:
        raise UserError(
            f"{option} needs to know each sample's {name}, which this dataset does not tell."
        )
    return facts[name]


def _share(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise UserError(f"protocol.{name} must lie strictly between 0 and 1, got {value}.")
    return value


def _cut(index: Index, share: float) -> tuple[Index, Index]:
    length = int(share * len(index))
    return index[:length], index[length:]


def _draw(rng: np.random.Generator, labels: Labels, inlier: int, n: int, protocol: str) -> Index:
    outliers = np.flatnonzero(labels != inlier)
    if len(outliers) < n:
        raise UserError(
            f"Protocol {protocol} needs {n} test outliers for inlier={inlier}, but only "
            f"{len(outliers)} samples have another label. Use more data or another protocol."
        )
    return rng.choice(outliers, size=n, replace=False)


def _held_out_share(val_fraction: float, folds: int) -> float:
    """The share to hold out: with folds (scoring/folds.py) none, as each inlier is once."""
    if folds and not 2 <= folds <= MAX_FOLDS:
        raise UserError(f"protocol.folds={folds}: 0 for none, else 2 to {MAX_FOLDS}")
    return 0.0 if folds else val_fraction


def _assemble(train: Index, test: Index, labels: Labels, inlier: int, val_fraction: float) -> Split:
    length = len(train) - int(val_fraction * len(train))
    return Split(train[:length], train[length:], test, labels[test] != inlier)
