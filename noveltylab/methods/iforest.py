"""Isolation forest on raw pixels: novel images are split off after few random cuts.

Liu, Ting and Zhou, 2008.

scikit-learn grows the trees; they are kept as arrays and walked here. Defaults are the paper's, as
in Deep SVDD's table.
"""

import math
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from sklearn.ensemble import IsolationForest
from torch import Tensor

from noveltylab.methods.base import Method


def expected_path(count: NDArray[np.int64]) -> NDArray[np.float64]:
    """c(n), Eq. 1: mean length of an unsuccessful search in a binary tree of n images.

    0 for 1, 1 for 2.
    """
    n = np.maximum(count, 2).astype(float)
    length = 2 * (np.log(n - 1) + np.euler_gamma) - 2 * (n - 1) / n
    return np.select([count <= 1, count == 2], [0.0, 1.0], length)


def node_depths(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    """Edges from the root to each node; children come after their parents and are -1 below leaves."""
    depths = np.zeros(len(left))
    for node in np.flatnonzero(left >= 0):
        children = [left[node], right[node]]
        depths[children] = depths[node] + 1
    return depths


class IForest(Method):
    """`trees` trees, each grown on `samples` training images to depth log2(samples).

    On all of them if there are fewer.
    """

    iterative: ClassVar[bool] = False

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        trees: PositiveInt = 100,
        samples: Annotated[int, Field(ge=2)] = 256,
    ) -> None:
        super().__init__(image_shape)
        self.trees = trees
        self.samples = samples
        self.seed = int(torch.randint(2**31, ()))  # of the run, as initial weights are
        self.register_buffer("successor", torch.zeros(2, 0, 0, dtype=torch.long))
        self.register_buffer("pixel", torch.zeros(0, 0, dtype=torch.long))
        self.register_buffer("threshold", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("length", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("expected", torch.zeros((), dtype=torch.float64))
        self.successor: Tensor
        self.pixel: Tensor
        self.threshold: Tensor
        self.length: Tensor
        self.expected: Tensor

    def prepare(self, train: Tensor) -> None:
        """Grows the trees on train (N, C, H, W).

        Arrays (T, nodes), `length` is h(x) of Eq. 2 for who ends at a leaf.
        """
        samples = min(self.samples, len(train))
        forest: Any = IsolationForest(
            n_estimators=self.trees, max_samples=samples, random_state=self.seed
        )
        forest.fit(train.flatten(1).cpu().numpy())
        trees = [estimator.tree_ for estimator in forest.estimators_]
        most = max(tree.node_count for tree in trees)
        # rows of equal length, the ends of short ones unused
        shape = (len(trees), most)
        successor = np.zeros((2, *shape), np.int64)
        pixel = np.zeros(shape, np.int64)
        threshold = np.zeros(shape)
        length = np.zeros(shape)
        for row, tree in enumerate(trees):
            nodes = slice(tree.node_count)
            positions = np.arange(tree.node_count)
            is_leaf = tree.children_left < 0
            # a leaf leads to itself, so that all walks take the same number of steps
            successor[0, row, nodes] = np.where(is_leaf, positions, tree.children_left)
            successor[1, row, nodes] = np.where(is_leaf, positions, tree.children_right)
            pixel[row, nodes] = np.where(is_leaf, 0, tree.feature)
            threshold[row, nodes] = tree.threshold
            depths = node_depths(tree.children_left, tree.children_right)
            length[row, nodes] = depths + expected_path(tree.n_node_samples)
        as_tensor = partial(torch.as_tensor, device=train.device)
        self.successor = as_tensor(successor)
        self.pixel = as_tensor(pixel)
        self.threshold = as_tensor(threshold)
        self.length = as_tensor(length)
        self.expected = as_tensor(expected_path(np.array(samples)))

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("isolation",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`isolation`: 2^(-mean h(x) / c(samples)) of Eq. 2, in (0, 1), (B,)."""
        flat = x.flatten(1).double()
        tree = torch.arange(len(self.pixel), device=x.device)
        node = torch.zeros(flat.shape[0], len(tree), dtype=torch.long, device=x.device)
        for _ in range(math.ceil(math.log2(self.samples))):
            values = flat.gather(1, self.pixel[tree, node])
            goes_right = values > self.threshold[tree, node]
            node = self.successor[goes_right.long(), tree, node]
        mean_length = self.length[tree, node].mean(1)
        return {"isolation": torch.exp2(-mean_length / self.expected)}

    def validation_loss(self, x: Tensor) -> Tensor:
        return self.novelty_score(x)["isolation"]
