"""Samples in memory and the batches made of them.

A dataset is one uint8 tensor. The loader hands out positions only; the images are gathered,
converted and scaled where they lie, a chunk of several iterations at a time.
"""

import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import noveltylab.data
from noveltylab.data.preprocess import Preprocess, resize
from noveltylab.data.protocols import Split
from noveltylab.data.wholes import Wholes, aggregate
from noveltylab.errors import UserError, nearest
from noveltylab.results.scores import Scores

_NOT_READERS = {
    "base",
    "cache",
    "decode",
    "layout",
    "preprocess",
    "protocols",
    "stored",
    "wholes",
}
_BLOCK = 1024  # images resized at once


@dataclass(frozen=True, eq=False)
class Units:
    """What the samples are pieces of, in order of time: the frames of videos, whole videos, or
    sound files.

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


class Chunk(NamedTuple):
    """K training batches at once: x float32 (K, B, C, H, W) preprocessed; rows int64 (K, B),
    positions in the train part.
    """

    x: Tensor
    rows: Tensor


def resolve_root(root: str | Path | None) -> Path:
    """The data folder: option data.root, else environment NOVELTYLAB_DATA, else ``data`` in the
    working directory.
    """
    chosen = Path(root or os.environ.get("NOVELTYLAB_DATA") or "data")
    try:
        return chosen.expanduser()
    except RuntimeError:
        raise UserError(f"data.root={chosen}: there is no such home folder") from None


def missing(what: str, folder: Path, remedy: str) -> UserError:
    """The one error for absent files: what was looked for, all places looked at, what to do."""
    environment = os.environ.get("NOVELTYLAB_DATA")
    return UserError(
        f"{what} not found in {folder}{'' if folder.is_dir() else ' (no such folder)'}. The data folder is the option "
        f"data.root, else the environment variable NOVELTYLAB_DATA ({environment or 'not set'}), else "
        f"{Path('data').absolute()}. {remedy}"
    )


def fetch(download: Callable[[], object], what: str, remedy: str, folder: Path) -> None:
    """Run a library's downloader; whatever goes wrong becomes one UserError that says how to do it
    by hand.

    folder: where the files go. It and its parents are removed again if they were made for nothing.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        download()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"Downloading {what} failed ({reason}). {remedy}") from error
    finally:
        for path in made:
            with suppress(OSError):  # it holds something, or is gone
                path.rmdir()


def load(
    name: str, root: str | Path | None, verify: bool, download: bool, **options: Any
) -> Samples:
    """Read dataset `name` with ``noveltylab.data.<name>.read``. UserError for an unknown name or
    unusable files.

    options: what only some readers take (`features`, `cache`, `inlier`, `size`, `on_error`); a
    reader gets those that it has a parameter for.
    """
    readers = {
        module.name for module in pkgutil.iter_modules(noveltylab.data.__path__)
    } - _NOT_READERS
    if name not in readers:
        raise UserError(f"There is no dataset '{name}': {nearest(name, readers)}")
    reader = importlib.import_module(f"noveltylab.data.{name}")
    wanted = {
        key: options[key]
        for key in inspect.signature(reader.read).parameters.keys() & options.keys()
    }
    return cast(
        Samples, reader.read(resolve_root(root), verify=verify, download=download, **wanted)
    )


class Positions(Dataset[int]):
    """The positions 0..n-1; a batch of them is one int64 tensor."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return index

    def __getitems__(self, indices: list[int]) -> Tensor:
        return torch.tensor(indices, dtype=torch.int64)


class EpochSampler(DistributedSampler[int]):
    """A permutation of 0..n-1 that is a pure function of (seed, epoch), truncated to a multiple of
    batch_size.

    So a resumed run sees the order that it would have seen. Several processes take turns in the
    same permutation.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int, *, rank: int = 0, replicas: int = 1
    ) -> None:
        super().__init__(Positions(n), num_replicas=replicas, rank=rank, seed=seed)
        self.n = n
        self.num_samples = n // replicas // batch_size * batch_size
        if self.num_samples == 0:
            raise UserError(
                f"{n} training samples over {replicas} devices are fewer than data.batch_size={batch_size} each. "
                "Lower data.batch_size or use fewer devices."
            )

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
        return iter(order[self.rank :: self.num_replicas][: self.num_samples].tolist())


class NoveltyData(L.LightningDataModule):
    """One split of one dataset, resident as uint8 tensors.

    Attributes: train, val, test, val_outliers uint8 (n, C, H, W); train_ids (n_train,); val_ids
    (n_val,); test_labels, test_ids, test_is_outlier (n_test,); wholes, the frames, videos or files
    of the test; source, what places the threshold under `cross`: val and the source's outliers,
    None under another protocol; preprocess, fitted on train; batch_size, the effective one;
    warnings, sentences for the result.
    Arguments: size, pixels to resize to, None keeps the native size; chunk, iterations per loader
    batch; on_device, keep train and val on the trainer's device if they fit. UserError for bad
    values or a split that does not hold.
    """

    def __init__(
        self,
        samples: Samples,
        split: Split,
        inlier: int,
        *,
        size: int | None,
        contrast: str,
        subtract_mean: bool,
        batch_size: int,
        seed: int,
        chunk: int,
        on_device: bool = True,
    ) -> None:
        super().__init__()
        for option, value in (
            ("data.size", size),
            ("data.batch_size", batch_size),
            ("chunk", chunk),
        ):
            if value is not None and value < 1:
                raise UserError(f"{option} must be at least 1, got {value}.")
        split.check(samples.labels, inlier)
        self.train = _take(samples.images, split.train, size)
        self.val = _take(samples.images, split.val, size)
        self.train_ids = samples.ids[split.train]
        self.val_ids = samples.ids[split.val]
        self.test = _take(samples.images, split.test, size)
        self.val_outliers = _take(samples.images, split.val_outliers, size)
        self.test_labels = samples.labels[split.test]
        self.test_ids = samples.ids[split.test]
        self.test_is_outlier = split.is_outlier
        self.names = samples.names
        self.wholes = _wholes(samples, split, inlier)
        self.source: Tensor | None = None
        if self.wholes is not None and self.wholes.kind == "video":
            index = np.concatenate([split.val, split.source_outliers])
            self.source = _take(samples.images, index, size)
            self._source = _units_of(samples, index)
        self.inlier = inlier
        self._held_out = _held_out(samples, split)
        self.preprocess = Preprocess(contrast, subtract_mean).fit(self.train)
        self.batch_size, self.seed, self.chunk, self.on_device = batch_size, seed, chunk, on_device
        self.warnings: list[str] = []
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        if len(self.train) < batch_size:
            self.batch_size = n = len(self.train)
            self.warnings.append(f"only {n} training samples: batch size {batch_size} became {n}")
        if len(self.train) > 1 and bool((self.train == self.train[:1]).all()):
            self.warnings.append(
                f"all {len(self.train)} training images are one and the same: the scores will collapse"
            )
        self.warnings += samples.notes
        if samples.verified is False:
            self.warnings.append("data.verify=false: the data files were not checked")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image, after resizing."""
        channels, height, width = self.train.shape[1:]
        return channels, height, width

    def pieces(self, columns: dict[str, NDArray[np.float64]]) -> Scores:
        """The test samples with their scores, name -> (n_test,)."""
        classes = [self.names[label] for label in self.test_labels] if self.names else None
        return Scores(
            self.test_ids.tolist(), self.test_labels, self.test_is_outlier, columns, classes
        )

    def held_out(self, columns: dict[str, NDArray[np.float64]]) -> Scores | None:
        """Held-out inliers as new files will be scored: scores of val, name -> (n_val,), those of
        whole recordings under `scenes`. None where there are none, and under `frames`: a frame
        alone does not show which of its patches move.
        """
        ids = self.val_ids
        if self.wholes is not None:
            if self._held_out is None or self.wholes.kind == "frame":
                return None
            ids, of = self._held_out
            known = of >= 0
            of, count = of[known], len(ids)
            columns = {
                name: aggregate(column[known], of, count, self.wholes.how)
                for name, column in columns.items()
            }
        if not len(ids):
            return None
        return Scores(
            ids.tolist(), np.full(len(ids), self.inlier), np.zeros(len(ids), np.bool_), columns
        )

    def source_scores(self, columns: dict[str, NDArray[np.float64]]) -> Scores:
        """The videos that place the threshold under `cross`, from the scores of the images of
        `source`, name -> (n,).
        """
        assert self.wholes is not None
        ids, labels, of = self._source
        whole = {
            name: aggregate(column, of, len(ids), self.wholes.how)
            for name, column in columns.items()
        }
        return Scores(ids.tolist(), labels, labels != self.inlier, whole)

    def train_dataloader(self) -> DataLoader[int]:
        """Positions of the training inliers, chunk * batch_size at a time; the last batch may hold
        fewer iterations.
        """
        rank, replicas = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        sampler = EpochSampler(
            len(self.train), self.batch_size, self.seed, rank=rank, replicas=replicas
        )
        return DataLoader(
            Positions(len(self.train)),
            self.chunk * self.batch_size,
            sampler=sampler,
            num_workers=0,
            collate_fn=_as_is,
            # its own: otherwise each new epoch of the loader draws from, and so shifts, the global
            # random state
            generator=torch.Generator().manual_seed(0),
        )

    def transfer_batch_to_device(
        self, batch: Tensor, device: torch.device, dataloader_idx: int
    ) -> Tensor:
        """Positions go where the images lie; the images themselves move once, when they fit."""
        if device != self.device or device != self.preprocess.lo.device:
            self.place(device)
        return batch.to(self.train.device)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Chunk:
        """Positions (K*B,) -> the chunk of their images, made where they lie."""
        return self.gather(batch.view(-1, self.batch_size))

    def place(self, device: torch.device) -> None:
        """Make batches on `device`; with on_device, move train and val there if half its free
        memory holds them.
        """
        self.device = device
        self.preprocess.to(device)
        if self.on_device and _fits(self.train.nbytes + self.val.nbytes, device):
            self.train, self.val = self.train.to(device), self.val.to(device)

    def gather(self, rows: Tensor) -> Chunk:
        """The chunk of training images at rows, int64 (K, B), on self.device."""
        x = self.preprocess(self.train.index_select(0, rows.flatten()).to(self.device)).to(
            self.dtype
        )
        return Chunk(x.view(*rows.shape, *x.shape[1:]), rows.to(self.device))


def _wholes(samples: Samples, split: Split, inlier: int) -> Wholes | None:
    """The test split's frames or files, if the protocol aggregates."""
    units = samples.units
    if units is None or split.aggregate is None:
        return None
    at = np.flatnonzero(units.test)
    of = np.searchsorted(at, units.of[split.test])
    labels = units.labels[at]
    arrays = (units.ids[at], labels, labels != inlier, units.groups[at], of)
    masked = samples.facts["masked"][split.test] if "masked" in samples.facts else None
    return Wholes(units.kind, *arrays, how=split.aggregate, main=split.whole, masked=masked)


def _units_of(
    samples: Samples, index: NDArray[np.int64]
) -> tuple[NDArray[np.str_], NDArray[np.int64], NDArray[np.int64]]:
    """Ids and labels (U,) of the units that samples (n,) are pieces of, and the position of each
    one's unit (n,).
    """
    units = samples.units
    assert units is not None
    positions, of = np.unique(units.of[index], return_inverse=True)
    return units.ids[positions], units.labels[positions], of


def _held_out(samples: Samples, split: Split) -> tuple[NDArray[np.str_], NDArray[np.int64]] | None:
    """Ids (U,) of the units that lie in val with all their pieces, and which of them each of val is
    in, -1 for none.
    """
    if samples.units is None or not len(split.val):
        return None
    units = samples.units.of[split.val]
    found, of, pieces = np.unique(units, return_inverse=True, return_counts=True)
    whole = pieces == np.bincount(samples.units.of, minlength=len(samples.units.ids))[found]
    if not whole.any():
        return None
    return samples.units.ids[found[whole]], np.where(whole, np.cumsum(whole) - 1, -1)[of]


def _take(images: Tensor, index: NDArray[np.int64], size: int | None) -> Tensor:
    """The images at index, int64 (n,), resized, (n, C, size, size); a large part in one piece is a
    view, not a copy.
    """
    if size is None or len(index) == 0 or images.shape[-2:] == (size, size):
        in_one_piece = len(index) > len(images) // 4 and bool((np.diff(index) == 1).all())
        return (
            images[index[0] : index[-1] + 1]
            if in_one_piece
            else images.index_select(0, torch.from_numpy(index))
        )
    blocks = [
        torch.from_numpy(index[start : start + _BLOCK]) for start in range(0, len(index), _BLOCK)
    ]
    first = resize(images.index_select(0, blocks[0]), size)
    part = torch.empty((len(index), *first.shape[1:]), dtype=first.dtype)
    for start, block in zip(range(0, len(index), _BLOCK), blocks, strict=True):
        part[start : start + len(block)] = resize(images.index_select(0, block), size)
    return part


def _fits(nbytes: int, device: torch.device) -> bool:
    return device.type != "cuda" or nbytes < torch.cuda.mem_get_info(device)[0] // 2


def _as_is(batch: list[int]) -> list[int]:
    return batch
