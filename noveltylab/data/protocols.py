"""Which samples train, select and test a detector: pure, seeded index arrays, written to disk with
every run.

Positions index the pooled sample list of a reader. Validation is always cut from training inliers;
no outlier is ever seen before the test. The same (protocol, labels, inlier, seed, options) gives
the same split on every machine.
"""

import hashlib
import inspect
import io
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from noveltylab.errors import UserError, nearest
from noveltylab.results.files import open_regular, write_atomic

Index = NDArray[np.int64]
Labels = NDArray[np.int64]
Flags = NDArray[np.bool_]
Names = NDArray[np.str_]
#: name -> (N,), what else a protocol may need to know of each sample: its view, clip, motion or
#: official part
Facts = Mapping[str, NDArray[Any]]
#: how the scores of a frame's patches (a recording's segments) become one
Aggregate = Literal["max", "top3mean", "mean"]
#: more images than these need no folds: a share of them is enough
MAX_FOLDS = 200


#: Labelled images of each kind for select=outlier_val (OLED, section 4.1).
VAL_LABELLED = 150

#: the parts of a split, in the order of its file and hash
PARTS = ("train", "val", "test", "val_outliers", "source_outliers")


@dataclass(frozen=True, eq=False)
class Split:
    """Index arrays (int64) into the sample list, in the order in which they are used.

    train (n_train,) and val (n_val,) hold inliers only; test (n_test,) holds both, is_outlier
    (n_test,) says which.
    """

    train: Index
    val: Index
    test: Index
    is_outlier: Flags
    #: labelled outliers outside the test part, for select=outlier_val alone; empty otherwise
    val_outliers: Index = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    #: labelled outliers of the set that trains, which place its threshold under `cross` and do
    #: nothing else; empty otherwise
    source_outliers: Index = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    #: how scores of samples become those of the frames or recordings that they are pieces of; None:
    #: they stay apart
    aggregate: Aggregate | None = None
    #: the run's number is that of whole frames, not of their patches
    whole: bool = False
    #: may do without outliers in the test: scores and thresholds, but no AUROC
    unlabelled: bool = False

    def check(self, labels: Labels, inlier: int) -> None:
        """Raise UserError unless the parts are disjoint, train and val are inliers and the test can
        be scored.
        """
        parts = self.index
        if len(parts) and not 0 <= parts.min() <= parts.max() < len(labels):
            raise UserError(
                f"The split points outside the {len(labels)} samples ({parts.min()} to {parts.max()})."
            )
        if len(np.unique(parts)) != len(parts):
            raise UserError(
                "The split uses a sample twice: train, val and test must be disjoint and without repeats."
            )
        for name, index in (("train", self.train), ("val", self.val)):
            if outliers := int((labels[index] != inlier).sum()):
                raise UserError(
                    f"The {name} part holds {outliers} outliers; it may hold label {inlier} only."
                )
        for name, index in (("validation", self.val_outliers), ("source", self.source_outliers)):
            if (labels[index] == inlier).any():
                raise UserError(f"The labelled {name} outliers hold an inlier.")
        if not np.array_equal(self.is_outlier, labels[self.test] != inlier):
            raise UserError(
                f"is_outlier of the split does not agree with the labels and inlier={inlier}."
            )
        inliers, outliers = int((~self.is_outlier).sum()), int(self.is_outlier.sum())
        if not (len(self.train) and inliers and (outliers or self.unlabelled)):
            raise UserError(
                f"Too few samples for inlier={inlier}: the split has {len(self.train)} to train on, {inliers} test "
                f"inliers and {outliers} test outliers, and needs one of each{' but outliers' * self.unlabelled}. That takes "
                "two inliers at least, three where one is held out (select=val_loss). Use more data or another protocol."
            )

    @property
    def index(self) -> Index:
        """The positions of all its samples, part by part."""
        return np.concatenate([getattr(self, part) for part in PARTS])

    def limit(self, n: int | None) -> "Split":
        """The split with only its first n training inliers (for trials); None keeps all. UserError
        if n < 1.
        """
        if n is not None and n < 1:
            raise UserError(f"data.limit_train must be at least 1 (or null for all), got {n}.")
        return replace(self, train=self.train[:n])


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

    name: a key of PROTOCOLS; labels (N,); official_test (N,) or None; val_fraction in [0, 1): share
    of the training inliers held out as val; facts: of the reader; options: keyword arguments of the
    protocol's own function. UserError for what does not fit.
    """
    if name not in PROTOCOLS:
        raise UserError(f"There is no protocol '{name}': {nearest(name, PROTOCOLS)}")
    known = set(inspect.signature(PROTOCOLS[name]).parameters) - set(
        inspect.signature(split).parameters
    )
    if unknown := sorted(set(options) - known):
        hint = nearest(unknown[0], known) if known else "It has no options of its own."
        raise UserError(f"Protocol {name} has no option '{unknown[0]}': {hint}")
    if not 0 <= val_fraction < 1:
        raise UserError(f"protocol.val_fraction must lie in [0, 1), got {val_fraction}.")
    if seed < 0:
        raise UserError(f"seed must not be negative, got {seed}.")
    if not (labels == inlier).any():
        found = ", ".join(str(label) for label in np.unique(labels)[:20])
        raise UserError(f"No sample has the label inlier={inlier}; labels found: {found}.")
    arguments = {"seed": seed, "val_fraction": val_fraction, **options}
    result = PROTOCOLS[name](labels, official_test, inlier, facts or {}, **arguments)
    result.check(labels, inlier)
    return result


def p1(
    labels: Labels,
    official_test: Flags | None,
    inlier: int,
    facts: Facts,
    *,
    seed: int,
    val_fraction: float,
    train_share: float = 0.8,
    views: Literal["random", "contiguous"] = "random",
    folds: int = 0,
) -> Split:
    """Protocol 1: official parts pooled, inliers cut 80/20, as many test outliers as test inliers,
    drawn uniformly.

    views "contiguous" cuts the circle of an object's views into arcs (train, then val, then test)
    from a drawn start and leaves out the view at either end of the test arc: under "random", views
    5 degrees from the training ones are tested.
    """
    if folds and views == "contiguous":
        raise UserError(
            "protocol.folds would train on neighbours of the views that it holds out; use views=random"
        )
    rng = np.random.default_rng(seed)
    if views == "random":
        pool = rng.permutation(np.flatnonzero(labels == inlier))
    else:
        pool = np.flatnonzero(labels == inlier)
        circle = pool[
            np.argsort(_fact(facts, "view", "protocol.views=contiguous")[pool], kind="stable")
        ]
        pool = np.roll(circle, -int(rng.integers(len(circle))))
    train, test = _cut(pool, _share("train_share", train_share))
    if views == "contiguous":
        train = train[1:-1]  # both are neighbours of a test view
    outliers = _draw(rng, labels, inlier, len(test), "p1")
    return _assemble(
        train,
        np.concatenate([test, outliers]),
        labels,
        inlier,
        _held_out_share(val_fraction, folds),
    )


def p2(
    labels: Labels,
    official_test: Flags | None,
    inlier: int,
    facts: Facts,
    *,
    seed: int,
    val_fraction: float,
    folds: int = 0,
) -> Split:
    """Protocol 2: inliers of the official training part, the whole official test part in its own
    order.
    """
    if official_test is None:
        raise UserError(
            "This dataset (digits, for one) has no official split, as protocol p2 needs; use protocol=p1."
        )
    rng = np.random.default_rng(seed)
    train = rng.permutation(np.flatnonzero((labels == inlier) & ~official_test))
    return _assemble(
        train, np.flatnonzero(official_test), labels, inlier, _held_out_share(val_fraction, folds)
    )


def memae(
    labels: Labels,
    official_test: Flags | None,
    inlier: int,
    facts: Facts,
    *,
    seed: int,
    val_fraction: float,
    train_share: float = 0.6667,
    outlier_ratio: float = 0.3,
    anomaly_ratio_of: str = "inliers",
    folds: int = 0,
) -> Split:
    """MemAE protocol: parts pooled, inliers cut 2:1, test outliers a ratio of the test inliers or
    of the test total.
    """
    if anomaly_ratio_of not in ("inliers", "total"):
        hint = nearest(anomaly_ratio_of, ("inliers", "total"))
        raise UserError(f"protocol.anomaly_ratio_of cannot be '{anomaly_ratio_of}': {hint}")
    ratio = _share("outlier_ratio", outlier_ratio)
    rng = np.random.default_rng(seed)
    train, test = _cut(
        rng.permutation(np.flatnonzero(labels == inlier)), _share("train_share", train_share)
    )
    # 1e-9 keeps an exact quotient such as 0.3 * 7 / 0.7 from being floored to the integer below
    wanted = (
        ratio * len(test)
        if anomaly_ratio_of == "inliers"
        else ratio * len(test) / (1 - ratio) + 1e-9
    )
    outliers = _draw(rng, labels, inlier, int(wanted), "memae")
    return _assemble(
        train,
        np.concatenate([test, outliers]),
        labels,
        inlier,
        _held_out_share(val_fraction, folds),
    )


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
    """UCSD: patches of training clips against those of test clips; the last training clips are held
    out.

    Patches that move less than the share `motion_filter` of the training patches are left out
    everywhere; a test frame without any left gets the lowest score. `agg` makes a frame's score of
    those of its patches.
    """
    if not 0 <= motion_filter < 1:
        raise UserError(f"protocol.motion_filter must lie in [0, 1), got {motion_filter}.")
    clip, motion = (_fact(facts, name, "protocol=frames") for name in ("clip", "motion"))
    assert official_test is not None  # readers that know clips know the official parts
    inliers = ~official_test & (labels == inlier)
    clips = np.unique(clip[inliers])
    held_out = np.isin(clip, clips[len(clips) - math.ceil(val_fraction * len(clips)) :])
    moves = motion >= (
        np.quantile(motion[inliers & ~held_out], motion_filter) if motion_filter else -math.inf
    )
    rng = np.random.default_rng(seed)
    train = rng.permutation(np.flatnonzero(inliers & ~held_out & moves))
    val = np.flatnonzero(inliers & held_out & moves)
    test = np.flatnonzero(official_test & moves)
    return Split(train, val, test, labels[test] != inlier, aggregate=agg, whole=True)


def scenes(
    labels: Labels,
    official_test: Flags | None,
    inlier: int,
    facts: Facts,
    *,
    seed: int,
    val_fraction: float,
    agg: Aggregate = "max",
) -> Split:
    """DCASE: event-free segments of one scene's devtrain and devtest train and validate; evaltest
    is tested whole.

    val_fraction above 0 keeps devtest as it comes, 0 leaves validation out. `agg` makes a file's
    score, reported apart.
    """
    part = _fact(facts, "part", "protocol=scenes")
    rng = np.random.default_rng(seed)
    train = rng.permutation(np.flatnonzero((part == "devtrain") & (labels == inlier)))
    val = np.flatnonzero((part == "devtest") & (labels == inlier)) if val_fraction else train[:0]
    test = np.flatnonzero(part == "evaltest")
    return Split(train, val, test, labels[test] != inlier, aggregate=agg)


def folder(
    labels: Labels,
    official_test: Flags | None,
    inlier: int,
    facts: Facts,
    *,
    seed: int,
    val_fraction: float,
    train_share: float = 0.8,
    folds: int = 0,
) -> Split:
    """One's own images: the whole test part, where there is one, else all that is no inlier; there
    may be no outlier.

    Where no inlier is in it, a share 1 - train_share of the training inliers, drawn at random, is
    tested instead of trained on, so that the rate of false positives can be seen.
    """
    rng = np.random.default_rng(seed)
    own = labels == inlier
    tested = ~own if official_test is None else official_test
    train, test = rng.permutation(np.flatnonzero(own & ~tested)), np.flatnonzero(tested)
    if not (own & tested).any():
        train, held = _cut(train, _share("train_share", train_share))
        test = np.concatenate([held, test])
    return replace(
        _assemble(train, test, labels, inlier, _held_out_share(val_fraction, folds)),
        unlabelled=True,
    )


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
    """Across data sets: inliers of the source set train, the whole test part of the target set is
    tested, by videos.

    Held out are the inliers of the source's development part or, without one, a share of its
    training videos. They choose the epoch and, with the outliers of the development (else of the
    training) part, place the threshold under "equal_error"; a share rejects so many of them, and no
    outlier of the source is looked at.
    """
    part, video = (_fact(facts, name, "protocol=cross") for name in ("part", "video"))
    assert official_test is not None  # readers that know parts know the official ones
    if threshold != "equal_error":
        _share("threshold", threshold)
    rng = np.random.default_rng(seed)
    inliers = labels == inlier
    train = np.flatnonzero((part == "train") & inliers)
    val = np.flatnonzero((part == "devel") & inliers)
    if not len(val):
        videos = rng.permutation(np.unique(video[train]))
        is_held_out = np.isin(video[train], videos[: math.ceil(val_fraction * len(videos))])
        train, val = train[~is_held_out], train[is_held_out]
    if not len(val):
        raise UserError(
            "protocol=cross takes its threshold from held-out videos: set protocol.val_fraction above 0."
        )
    outliers = np.flatnonzero((part == "devel") & ~inliers)
    if not len(outliers):
        outliers = np.flatnonzero((part == "train") & ~inliers)
    if threshold != "equal_error":
        outliers = outliers[:0]
    elif not len(outliers):
        raise UserError(
            "protocol.threshold=equal_error needs attacks in the development or training part of the source set, and there "
            "are none; protocol.threshold=0.05 rejects that share of its held-out genuine videos and needs none"
        )
    test = np.flatnonzero(official_test)
    by_part = [set(video[index].tolist()) for index in (train, val, test, outliers)]
    assert len(set().union(*by_part)) == sum(map(len, by_part)), "a video lies in two parts"
    result = Split(
        rng.permutation(train), val, test, labels[test] != inlier, source_outliers=outliers
    )
    return replace(result, aggregate=agg, whole=True)


PROTOCOLS: dict[str, Callable[..., Split]] = {
    "p1": p1, "p2": p2, "memae": memae, "frames": frames, "scenes": scenes, "folder": folder, "cross": cross,
}  # fmt: skip


def _fact(facts: Facts, name: str, asked: str) -> NDArray[Any]:
    if name not in facts:
        raise UserError(
            f"{asked} needs to know each sample's {name}, which this dataset does not tell."
        )
    return facts[name]


def _share(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise UserError(f"protocol.{name} must lie strictly between 0 and 1, got {value}.")
    return value


def _cut(index: Index, share: float) -> tuple[Index, Index]:
    at = int(share * len(index))
    return index[:at], index[at:]


def _draw(rng: np.random.Generator, labels: Labels, inlier: int, n: int, protocol: str) -> Index:
    others = np.flatnonzero(labels != inlier)
    if len(others) < n:
        raise UserError(
            f"Protocol {protocol} needs {n} test outliers for inlier={inlier}, but only {len(others)} samples have "
            "another label. Use more data or another protocol."
        )
    return rng.choice(others, size=n, replace=False)


def _held_out_share(val_fraction: float, folds: int) -> float:
    """With folds every training inlier is held out once (noveltylab/scoring/folds.py), and none
    apart.
    """
    if folds and not 2 <= folds <= MAX_FOLDS:
        raise UserError(f"protocol.folds={folds}: 0 for none, else 2 to {MAX_FOLDS}")
    return 0.0 if folds else val_fraction


def _assemble(train: Index, test: Index, labels: Labels, inlier: int, val_fraction: float) -> Split:
    at = len(train) - int(val_fraction * len(train))
    return Split(train[:at], train[at:], test, labels[test] != inlier)


def draw_val_outliers(
    split: Split, labels: Labels, official_test: Flags | None, inlier: int, n: int, seed: int
) -> Split:
    """The split with n labelled outliers (OLED: 150) from outside its test part, or fewer if there
    are fewer.

    From the official training part under p2, where the whole official test part is tested.
    """
    free = labels != inlier
    free[split.test] = False
    free[split.source_outliers] = False
    if official_test is not None and official_test[split.test].all():
        free &= ~official_test
    candidates = np.flatnonzero(free)
    if not len(candidates):
        raise UserError(
            "select=outlier_val needs outliers outside the test part and there are none; use select=val_loss"
        )
    drawn = np.random.default_rng([seed, 1]).choice(
        candidates, size=min(n, len(candidates)), replace=False
    )
    result = replace(split, val_outliers=drawn)
    result.check(labels, inlier)
    return result


def split_sha256(split: Split, ids: Names, labels: Labels) -> str:
    """Canonical hash of a split: part, id, label and is_outlier of each sample in order. ids and
    labels are (N,).
    """
    return _digest(*_table(split, ids, labels))


def save_split(
    path: Path, split: Split, ids: Names, labels: Labels, images: NDArray[np.uint64] | None = None
) -> str:
    """Write the split with ids, labels and hash as one npz, atomically; return the hash.

    images: a hash of each image, which is kept with the ids and labels of all samples (see
        identity.py).
    """
    part, name, label, is_outlier = _table(split, ids, labels)
    digest = _digest(part, name, label, is_outlier)
    buffer = io.BytesIO()
    arrays: dict[str, NDArray[Any]] = {
        "part": part,
        "id": name,
        "label": label,
        "is_outlier": is_outlier,
    }
    arrays["index"] = split.index
    if images is not None:
        arrays |= {"pool_id": ids, "pool_label": labels, "pool_image": images}
    arrays["sha256"] = np.array(digest)
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # typed for a keyword that NumPy 1 would store
    write_atomic(path, buffer.getvalue())
    return digest


def load_split(path: Path) -> Split:
    """Read what save_split wrote, never unpickling. UserError if missing, unreadable or not
    matching its hash.
    """
    try:
        with open_regular(path) as raw, np.load(raw, allow_pickle=False) as file:
            stored = {
                name: file[name]
                for name in ("part", "id", "label", "is_outlier", "index", "sha256")
            }
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"Cannot read the split {path} ({error}). Delete it and run again with force=true."
        ) from error
    part, index, is_outlier = stored["part"], stored["index"], stored["is_outlier"]
    if _digest(part, stored["id"], stored["label"], is_outlier) != str(stored["sha256"]):
        raise UserError(
            f"The split {path} does not match the hash inside it. Delete it and run again with force=true."
        )
    return Split(
        **{name: index[part == name] for name in PARTS}, is_outlier=is_outlier[part == "test"]
    )


def _table(split: Split, ids: Names, labels: Labels) -> tuple[Names, Names, Labels, Flags]:
    parts = {name: getattr(split, name) for name in PARTS}
    index = np.concatenate(list(parts.values()))
    part = np.repeat(np.array(list(parts)), [len(value) for value in parts.values()])
    is_outlier = np.zeros(len(index), dtype=np.bool_)
    is_outlier[part == "test"] = split.is_outlier
    is_outlier[np.isin(part, ("val_outliers", "source_outliers"))] = True
    return part, ids[index], labels[index], is_outlier


def _digest(part: Names, ids: Names, labels: Labels, is_outlier: Flags) -> str:
    rows = zip(
        part.tolist(), ids.tolist(), labels.tolist(), is_outlier.astype(int).tolist(), strict=True
    )
    return hashlib.sha256(
        "".join(f"{p},{i},{label},{flag}\n" for p, i, label, flag in rows).encode()
    ).hexdigest()
