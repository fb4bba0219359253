"""Isolation forest on raw pixels: novel images are split off after few random cuts.

Liu, Ting and Zhou, 2008.

scikit-learn grows the trees; they are kept as arrays and walked here. Defaults are the paper's, as
in Deep SVDD's table.
"""

import math
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
        depths[[left[node], right[node]]] = depths[node] + 1
    return depths


class IForest(Method):
    """`trees` trees, each grown on `samples` training images (all of them if fewer) to depth
    log2(samples).
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
        for name, shape in (("threshold", (0, 0)), ("length", (0, 0)), ("expected", ())):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
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
        grown = [estimator.tree_ for estimator in forest.estimators_]
        shape = (len(grown), max(tree.node_count for tree in grown))
        successor = np.zeros((2, *shape), np.int64)
        pixel = np.zeros(shape, np.int64)
        threshold = np.zeros(shape)
        length = np.zeros(shape)
        for row, tree in enumerate(grown):
            nodes = slice(tree.node_count)
            positions = np.arange(tree.node_count)
            leaf = tree.children_left < 0
            # a leaf leads to itself, so that all walks take the same number of steps
            for side, child in enumerate((tree.children_left, tree.children_right)):
                successor[side, row, nodes] = np.where(leaf, positions, child)
            pixel[row, nodes] = np.where(leaf, 0, tree.feature)
            threshold[row, nodes] = tree.threshold
            depths = node_depths(tree.children_left, tree.children_right)
            length[row, nodes] = depths + expected_path(tree.n_node_samples)
        arrays = (successor, pixel, threshold, length, expected_path(np.array(samples)))
        self.successor, self.pixel, self.threshold, self.length, self.expected = (
            torch.as_tensor(array).to(train.device) for array in arrays
        )

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("isolation",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`isolation`: 2^(-mean h(x) / c(samples)) of Eq. 2, in (0, 1), (B,)."""
        flat = x.flatten(1).double()
        tree = torch.arange(len(self.pixel), device=x.device)
        node = torch.zeros(flat.shape[0], len(tree), dtype=torch.long, device=x.device)
        for _ in range(math.ceil(math.log2(self.samples))):
            goes_right = flat.gather(1, self.pixel[tree, node]) > self.threshold[tree, node]
            node = self.successor[goes_right.long(), tree, node]
        return {"isolation": torch.exp2(-self.length[tree, node].mean(1) / self.expected)}

    def validation_loss(self, x: Tensor) -> Tensor:
        return self.novelty_score(x)["isolation"]
