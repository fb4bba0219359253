"""Held-out scores of every training inlier, for methods that are fitted once.

60 images become 60 held-out inliers.

The n inliers are cut into K folds of m images; K copies of the method are fitted, each without one fold, and an image's
score is the lowest that any of them gives. A held-out inlier's score is that of the copy which has not seen it. So a
p-value, (1 + how many held-out scores are as high) / (n + 1), comes from one score, and a threshold does, too.

This is the jackknife-minmax of Barber, Candès, Ramdas and Tibshirani (Predictive inference with the jackknife+, Annals of
Statistics 2021), for scores of novelty instead of residuals. Its p-values are never below those of the jackknife+, of CV+
and of Vovk's cross-conformal predictors (2015), which count each held-out score against the score of its own copy. For an
inlier exchangeable with the n, P(p <= a) is at most

    a                                                       with as many folds as images (theorem 3 there),
    min(a + (1 - a)(m - 1) / (n + m), 2a + 2(1 - 1/K) / (m + 1))    with fewer: the second is theorem 4, for CV+; the first
                                                            follows as theorem 3 does, with m - 1 further images imagined
                                                            beside the new one, which make it one more fold.

Where the images do not fill K equal folds the last few train every copy and are not scored. Copies are fitted on images in
an order of their own, so that they treat all alike.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from noveltylab.data.preprocess import Preprocess
from noveltylab.errors import UserError
from noveltylab.methods.base import Method, Row
from noveltylab.scoring.apply import held_out_scores

Array = NDArray[np.float64]

#: bytes that all copies together may keep of the training images
MAX_BYTES = 2 << 30
#: images whose features are computed at once
BATCH = 32


def fold_of(count: int, folds: int) -> NDArray[np.int64]:
    """The fold of each of `count` images, int64 (count,); -1 for those that are left over."""
    positions = np.arange(count)
    return np.where(positions < count // folds * folds, positions % folds, -1)


class Folds(Method):
    """Copies of one method, each fitted without one fold; `novelty_score` is the lowest of theirs."""

    iterative = False

    def __init__(self, members: list[Method]) -> None:
        super().__init__(members[0].image_shape)
        self.members = nn.ModuleList(members)
        self.seed = int(torch.randint(2**31, ()))  # of the run, as initial weights are
        self.trained_on = members[0].trained_on  # type: ignore[misc]  # that of its class
        self.gives_map = members[0].gives_map  # type: ignore[misc]  # that of its class
        self.not_exportable = members[0].not_exportable  # type: ignore[misc]  # that of its class

    @property
    def first(self) -> Method:
        return self.member(0)

    def member(self, fold: int) -> Method:
        member = self.members[fold]
        assert isinstance(member, Method)
        return member

    def prepare(self, train: Tensor) -> None:
        """Fits each copy on train (N, C, H, W) without its fold."""
        if self.first.gives_features:
            with torch.no_grad():
                parts = [self.features(part) for part in torch.split(train, BATCH)]
            self.prepare_features(torch.cat(parts))
            return
        for member, rows in self._rows(len(train)):
            member.prepare(train[rows.to(train.device)])

    def _rows(self, count: int) -> Iterator[tuple[Method, Tensor]]:
        """Each copy and the positions (n,) of the images that it is fitted on."""
        fold = fold_of(count, len(self.members))
        generator = torch.Generator().manual_seed(self.seed)
        for number in range(len(self.members)):
            rows = torch.from_numpy(np.flatnonzero(fold != number))
            order = torch.randperm(len(rows), generator=generator)
            yield self.member(number), rows[order]

    # With a frozen network, which all copies share.

    def take_pretrained(self) -> None:
        self.first.take_pretrained()
        self.pretrained = self.first.pretrained
        for number in range(1, len(self.members)):
            self.member(number).share(self.first)

    @property
    def features_key(self) -> str:
        return self.first.features_key

    def features(self, x: Tensor) -> Tensor:
        return self.first.features(x)

    def prepare_features(self, features: Tensor) -> None:
        for member, rows in self._rows(len(features)):
            member.prepare_features(features[rows.to(features.device)])

    def score_features(self, features: Tensor) -> dict[str, Tensor]:
        members = range(len(self.members))
        return lowest([self.member(number).score_features(features) for number in members])

    def held_out(
        self, preprocess: Preprocess, train: Tensor
    ) -> tuple[NDArray[np.int64], dict[str, Array]]:
        """Scores the training images that lie in a fold by the copy without it.

        Returns:
            Positions (n,) of these images, and their scores, (n,) each.
        """
        fold = fold_of(len(train), len(self.members))
        columns = {name: np.zeros(len(train)) for name in self.score_names}
        for number in range(len(self.members)):
            rows = np.flatnonzero(fold == number)
            images = train[torch.from_numpy(rows).to(train.device)]
            fold_scores = held_out_scores(self.member(number), preprocess, images)
            for name in columns:
                columns[name][rows] = fold_scores[name]
        inside = np.flatnonzero(fold >= 0)
        return inside, {name: column[inside] for name, column in columns.items()}

    @property
    def score_names(self) -> tuple[str, ...]:
        return self.first.score_names

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        if self.first.gives_features:
            return self.score_features(self.features(x))
        members = range(len(self.members))
        return lowest([self.member(number).novelty_score(x) for number in members])

    def validation_loss(self, x: Tensor) -> Tensor:
        members = range(len(self.members))
        losses = [self.member(number).validation_loss(x) for number in members]
        return torch.stack(losses).amin(0)

    def reconstruct(self, x: Tensor) -> Tensor | None:
        """That of the first copy."""
        return self.first.reconstruct(x)

    def explain(self, x: Tensor) -> list[Row]:
        """What the first copy compares images with."""
        return self.first.explain(x)

    def novelty_map(self, x: Tensor) -> Tensor | None:
        """That of the first copy."""
        return self.first.novelty_map(x)


def lowest(scores: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The lowest of each score, name -> (B,), over the copies' scores."""
    columns = {}
    for name in scores[0]:
        columns[name] = torch.stack([member_scores[name] for member_scores in scores]).amin(0)
    return columns


def in_folds(
    method_class: type[Method],
    shape: tuple[int, int, int],
    arguments: dict[str, Any],
    folds: int,
    images: int,
) -> Folds:
    """The copies for a run; as many folds as images where there are fewer of these.

    Raises:
        UserError: The method trains in epochs, or the copies would take too much memory.
        ValueError: As the method itself.
    """
    if method_class.iterative:
        raise UserError(
            f"protocol.folds={folds}: this method trains in epochs, and would train {folds} times; folds are for methods that "
            "are fitted once (pca, knn, kde, ocsvm, lof, iforest, gmm, pyod, features, patchcore)"
        )
    folds = min(folds, images)
    channels, height, width = shape
    members = [method_class(shape, **arguments)]
    size = members[0].fitted_bytes(images)
    if folds * size > MAX_BYTES:
        raise UserError(
            f"protocol.folds={folds}: so many copies of {images} images of {channels} x {height} x {width} take too much "
            f"memory; take protocol.folds={max(MAX_BYTES // size, 2)} or fewer, or a smaller data.size"
        )
    for _ in range(folds - 1):
        member = method_class(shape, **arguments)
        member.share(members[0])
        members.append(member)
    return Folds(members)
