"""One split of a data set in memory, and the batches made of it.

A data set is one uint8 tensor. The loader hands out positions only; the images are gathered,
converted and scaled where they lie, a chunk of several iterations at a time.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from noveltylab.data.preprocess import Preprocess, resize
from noveltylab.data.samples import Samples, ScoredUnits, aggregate
from noveltylab.data.split import Split
from noveltylab.errors import UserError
from noveltylab.results.scores import Scores

_BLOCK = 1024  # images resized at once


class Chunk(NamedTuple):
    """K training batches at once.

    x: float32 (K, B, C, H, W), preprocessed; rows: int64 (K, B), positions in the train part.
    """

    x: Tensor
    rows: Tensor


class EpochSampler(DistributedSampler[int]):
    """A permutation of 0..n-1 that depends on (seed, epoch) alone, cut to whole batches.

    So a resumed run sees the order that it would have seen. Several processes take turns in the
    same permutation.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int, *, rank: int = 0, replicas: int = 1
    ) -> None:
        positions: Any = range(n)  # a data set for torch, though of no class of its own
        super().__init__(positions, num_replicas=replicas, rank=rank, seed=seed)
        self.n = n
        self.num_samples = n // replicas // batch_size * batch_size
        if self.num_samples == 0:
            raise UserError(
                f"{n} training samples over {replicas} devices are fewer than "
                f"data.batch_size={batch_size} each. Lower data.batch_size or use fewer devices."
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
        counts = {"data.size": size, "data.batch_size": batch_size, "chunk": chunk}
        for option, count in counts.items():
            if count is not None and count < 1:
                raise UserError(f"{option} must be at least 1, got {count}.")
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
        self.wholes = _test_units(samples, split, inlier)
        self.source: Tensor | None = None
        if self.wholes is not None and self.wholes.kind == "video":
            index = np.concatenate([split.val, split.source_outliers])
            self.source = _take(samples.images, index, size)
            self._source = _units_of(samples, index)
        self.inlier = inlier
        self._held_out = _held_out(samples, split)
        self.preprocess = Preprocess(contrast, subtract_mean).fit(self.train)
        self.batch_size = batch_size
        self.seed = seed
        self.chunk = chunk
        self.on_device = on_device
        self.warnings: list[str] = []
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        if len(self.train) < batch_size:
            n = len(self.train)
            self.batch_size = n
            self.warnings.append(f"only {n} training samples: batch size {batch_size} became {n}")
        if len(self.train) > 1 and bool((self.train == self.train[:1]).all()):
            self.warnings.append(
                f"all {len(self.train)} training images are one and the same: "
                "the scores will collapse"
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
        classes = None
        if self.names:
            classes = [self.names[label] for label in self.test_labels]
        return Scores(
            self.test_ids.tolist(), self.test_labels, self.test_is_outlier, columns, classes
        )

    def held_out(self, columns: dict[str, NDArray[np.float64]]) -> Scores | None:
        """Held-out inliers as new files will be scored, from the scores of val, name -> (n_val,).

        Under `scenes` these are whole recordings. None if there are none, and under `frames`: a
        frame alone does not show which of its patches move.
        """
        ids = self.val_ids
        if self.wholes is not None:
            if self._held_out is None or self.wholes.kind == "frame":
                return None
            ids, units = self._held_out
            in_unit = units >= 0
            columns = {name: column[in_unit] for name, column in columns.items()}
            columns = _aggregated(columns, units[in_unit], len(ids), self.wholes.how)
        if not len(ids):
            return None
        labels = np.full(len(ids), self.inlier)
        return Scores(ids.tolist(), labels, np.zeros(len(ids), np.bool_), columns)

    def source_scores(self, columns: dict[str, NDArray[np.float64]]) -> Scores:
        """The videos that place the threshold under `cross`.

        columns: the scores of the images of `source`, name -> (n,).
        """
        assert self.wholes is not None
        ids, labels, units = self._source
        video_columns = _aggregated(columns, units, len(ids), self.wholes.how)
        return Scores(ids.tolist(), labels, labels != self.inlier, video_columns)

    def train_dataloader(self) -> DataLoader[int]:
        """Positions of the training inliers, chunk * batch_size at a time.

        The last batch may hold fewer iterations.
        """
        rank, replicas = 0, 1
        if self.trainer:
            rank, replicas = self.trainer.global_rank, self.trainer.world_size
        n = len(self.train)
        sampler = EpochSampler(n, self.batch_size, self.seed, rank=rank, replicas=replicas)
        # its own generator: otherwise each new epoch of the loader draws from, and so shifts, the
        # global random state
        generator = torch.Generator().manual_seed(0)
        positions: Any = range(n)
        return DataLoader(
            positions,
            self.chunk * self.batch_size,
            sampler=sampler,
            num_workers=0,
            collate_fn=torch.tensor,
            generator=generator,
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
        """Make batches on `device`.

        With on_device, train and val move there if half its free memory holds them.
        """
        self.device = device
        self.preprocess.to(device)
        if self.on_device and _fits(self.train.nbytes + self.val.nbytes, device):
            self.train, self.val = self.train.to(device), self.val.to(device)

    def gather(self, rows: Tensor) -> Chunk:
        """The chunk of training images at rows, int64 (K, B), on self.device."""
        images = self.train.index_select(0, rows.flatten()).to(self.device)
        x = self.preprocess(images).to(self.dtype)
        return Chunk(x.view(*rows.shape, *x.shape[1:]), rows.to(self.device))


def _test_units(samples: Samples, split: Split, inlier: int) -> ScoredUnits | None:
    """The test split's frames or files, if the protocol aggregates."""
    units = samples.units
    if units is None or split.aggregate is None:
        return None
    positions = np.flatnonzero(units.test)
    labels = units.labels[positions]
    masked = None
    if "masked" in samples.facts:
        masked = samples.facts["masked"][split.test]
    return ScoredUnits(
        kind=units.kind,
        ids=units.ids[positions],
        labels=labels,
        is_outlier=labels != inlier,
        groups=units.groups[positions],
        of=np.searchsorted(positions, units.of[split.test]),
        how=split.aggregate,
        main=split.whole,
        masked=masked,
        border=units.border,
    )


def _aggregated(
    columns: dict[str, NDArray[np.float64]], units: NDArray[np.int64], count: int, how: str
) -> dict[str, NDArray[np.float64]]:
    """The scores of `count` units, name -> (count,), from those of their pieces."""
    return {name: aggregate(column, units, count, how) for name, column in columns.items()}


def _units_of(
    samples: Samples, index: NDArray[np.int64]
) -> tuple[NDArray[np.str_], NDArray[np.int64], NDArray[np.int64]]:
    """Ids and labels (U,) of the units of the samples at index (n,), and each one's unit (n,)."""
    units = samples.units
    assert units is not None
    positions, unit_of_sample = np.unique(units.of[index], return_inverse=True)
    return units.ids[positions], units.labels[positions], unit_of_sample


def _held_out(samples: Samples, split: Split) -> tuple[NDArray[np.str_], NDArray[np.int64]] | None:
    """Units that lie in val with all their pieces, and the unit of each sample of val.

    Ids (U,), and positions among them (n_val,), -1 for none.
    """
    units = samples.units
    if units is None or not len(split.val):
        return None
    val_units = units.of[split.val]
    positions, inverse, counts = np.unique(val_units, return_inverse=True, return_counts=True)
    is_whole = counts == np.bincount(units.of, minlength=len(units.ids))[positions]
    if not is_whole.any():
        return None
    numbers = np.where(is_whole, np.cumsum(is_whole) - 1, -1)
    return units.ids[positions[is_whole]], numbers[inverse]


def _take(images: Tensor, index: NDArray[np.int64], size: int | None) -> Tensor:
    """The images at index, int64 (n,), resized, (n, C, size, size).

    A large part in one piece is a view, not a copy.
    """
    if size is None or len(index) == 0 or images.shape[-2:] == (size, size):
        if len(index) > len(images) // 4 and bool((np.diff(index) == 1).all()):
            return images[index[0] : index[-1] + 1]
        return images.index_select(0, torch.from_numpy(index))
    blocks = torch.split(torch.from_numpy(index), _BLOCK)
    first = resize(images.index_select(0, blocks[0]), size)
    part = torch.empty((len(index), *first.shape[1:]), dtype=first.dtype)
    for target, block in zip(torch.split(part, _BLOCK), blocks, strict=True):
        target.copy_(resize(images.index_select(0, block), size))
    return part


def _fits(nbytes: int, device: torch.device) -> bool:
    return device.type != "cuda" or nbytes < torch.cuda.mem_get_info(device)[0] // 2
