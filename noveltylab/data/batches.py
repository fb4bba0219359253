"""The order of the training images, and chunks of their batches."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from noveltylab.errors import UserError


class Chunk(NamedTuple):
    """K training batches at once.

    x: float32 (K, B, C, H, W), preprocessed; rows: int64 (K, B), positions in the train part.
    """

    x: Tensor
    rows: Tensor


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
    """A permutation of 0..n-1 that depends on (seed, epoch) alone, cut to whole batches.

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
                f"{n} training samples over {replicas} devices are fewer than "
                f"data.batch_size={batch_size} each. Lower data.batch_size or use fewer devices."
            )

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
        return iter(order[self.rank :: self.num_replicas][: self.num_samples].tolist())
