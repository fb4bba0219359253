"""A split of the samples into parts, its hash, and the file in which a run keeps it."""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noveltylab.errors import UserError
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

#: the parts of a split, in the order of its file and hash
PARTS = ("train", "val", "test", "val_outliers", "source_outliers")


def _no_samples() -> Index:
    return np.zeros(0, dtype=np.int64)


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
    val_outliers: Index = field(default_factory=_no_samples)
    #: labelled outliers of the set that trains, which place its threshold under `cross` and do
    #: nothing else; empty otherwise
    source_outliers: Index = field(default_factory=_no_samples)
    #: how scores of samples become those of the frames or recordings that they are pieces of; None:
    #: they stay apart
    aggregate: Aggregate | None = None
    #: the run's number is that of whole frames, not of their patches
    whole: bool = False
    #: may do without outliers in the test: scores and thresholds, but no AUROC
    unlabelled: bool = False

    def check(self, labels: Labels, inlier: int) -> None:
        """Check that parts are disjoint, train and val are inliers and the test can be scored.

        Raises:
            UserError: one of these does not hold.
        """
        self._check_positions(len(labels))
        for name, index in (("train", self.train), ("val", self.val)):
            outliers = int((labels[index] != inlier).sum())
            if outliers:
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
        self._check_counts(inlier)

    def _check_positions(self, samples: int) -> None:
        positions = self.index
        if len(positions) and not 0 <= positions.min() <= positions.max() < samples:
            raise UserError(
                f"The split points outside the {samples} samples "
                f"({positions.min()} to {positions.max()})."
            )
        if len(np.unique(positions)) != len(positions):
            raise UserError(
                "The split uses a sample twice: "
                "train, val and test must be disjoint and without repeats."
            )

    def _check_counts(self, inlier: int) -> None:
        inliers = int((~self.is_outlier).sum())
        outliers = int(self.is_outlier.sum())
        if len(self.train) and inliers and (outliers or self.unlabelled):
            return
        exception = ""
        if self.unlabelled:
            exception = " but outliers"
        raise UserError(
            f"Too few samples for inlier={inlier}: the split has {len(self.train)} to train on, "
            f"{inliers} test inliers and {outliers} test outliers, and needs one of each"
            f"{exception}. That takes two inliers at least, three where one is held out "
            "(select=val_loss). Use more data or another protocol."
        )

    @property
    def index(self) -> Index:
        """The positions of all its samples, part by part."""
        return np.concatenate([getattr(self, part) for part in PARTS])

    def limit(self, n: int | None) -> "Split":
        """The split with only its first n training inliers, for trials; None keeps all.

        Raises:
            UserError: n is less than 1.
        """
        if n is not None and n < 1:
            raise UserError(f"data.limit_train must be at least 1 (or null for all), got {n}.")
        return replace(self, train=self.train[:n])


def draw_val_outliers(
    split: Split, labels: Labels, official_test: Flags | None, inlier: int, n: int, seed: int
) -> Split:
    """The split with n labelled outliers (OLED: 150) from outside its test part, or all if fewer.

    They come from the official training part under p2, where the whole official test part is
    tested.

    Raises:
        UserError: there are no outliers outside the test part.
    """
    is_free = labels != inlier
    is_free[split.test] = False
    is_free[split.source_outliers] = False
    if official_test is not None and official_test[split.test].all():
        is_free &= ~official_test
    candidates = np.flatnonzero(is_free)
    if not len(candidates):
        raise UserError(
            "select=outlier_val needs outliers outside the test part and there are none; "
            "use select=val_loss"
        )
    rng = np.random.default_rng([seed, 1])
    outliers = rng.choice(candidates, size=min(n, len(candidates)), replace=False)
    result = replace(split, val_outliers=outliers)
    result.check(labels, inlier)
    return result


def split_sha256(split: Split, ids: Names, labels: Labels) -> str:
    """The hash of a split: part, id, label and is_outlier of each sample in order.

    Args:
        split: The split to hash.
        ids: (N,), of all samples.
        labels: (N,), of all samples.
    """
    return _hash(_table(split, ids, labels))


def save_split(
    path: Path, split: Split, ids: Names, labels: Labels, images: NDArray[np.uint64] | None = None
) -> str:
    """Write the split with ids, labels and hash as one npz, atomically; return the hash.

    Args:
        path: The file to write.
        split: The split to write.
        ids: (N,), of all samples.
        labels: (N,), of all samples.
        images: (N,), a hash of each image, kept with the ids and labels of all samples (see
            run/read.py).
    """
    table = _table(split, ids, labels)
    sha256 = _hash(table)
    arrays: dict[str, NDArray[Any]] = {
        "part": table.part,
        "id": table.id,
        "label": table.label,
        "is_outlier": table.is_outlier,
        "index": split.index,
    }
    if images is not None:
        arrays |= {"pool_id": ids, "pool_label": labels, "pool_image": images}
    arrays["sha256"] = np.array(sha256)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # NumPy 1 has a keyword here
    write_atomic(path, buffer.getvalue())
    return sha256


def load_split(path: Path) -> Split:
    """Read what save_split wrote, never unpickling.

    Raises:
        UserError: the file is missing, unreadable or does not match its hash.
    """
    try:
        with open_regular(path) as stream, np.load(stream, allow_pickle=False) as file:
            table = _Table(file["part"], file["id"], file["label"], file["is_outlier"])
            index, sha256 = file["index"], str(file["sha256"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"Cannot read the split {path} ({error}). Delete it and run again with force=true."
        ) from error
    if _hash(table) != sha256:
        raise UserError(
            f"The split {path} does not match the hash inside it. "
            "Delete it and run again with force=true."
        )
    parts = {name: index[table.part == name] for name in PARTS}
    return Split(**parts, is_outlier=table.is_outlier[table.part == "test"])


class _Table(NamedTuple):
    """The columns of a split's file, one row a sample, part by part."""

    part: Names
    id: Names
    label: Labels
    is_outlier: Flags


def _table(split: Split, ids: Names, labels: Labels) -> _Table:
    index = split.index
    part = np.repeat(np.array(PARTS), [len(getattr(split, name)) for name in PARTS])
    is_outlier = np.zeros(len(index), dtype=np.bool_)
    is_outlier[part == "test"] = split.is_outlier
    is_outlier[np.isin(part, ("val_outliers", "source_outliers"))] = True
    return _Table(part, ids[index], labels[index], is_outlier)


def _hash(table: _Table) -> str:
    digest = hashlib.sha256()
    columns = (table.part.tolist(), table.id.tolist(), table.label.tolist())
    flags = table.is_outlier.astype(int).tolist()
    for part, name, label, flag in zip(*columns, flags, strict=True):
        digest.update(f"{part},{name},{label},{flag}\n".encode())
    return digest.hexdigest()
