"""A finished run as something that scores new images.

    from noveltylab import load_detector
    detector = load_detector("outputs/folders/ca_entropy/images/inlier0/seed0")
    table = detector.frame(["new/0001.png", "new/0002.png"])        # a pandas data frame

`load.py` makes a detector of a run folder.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noveltylab.command.screen import say
from noveltylab.data.decode import in_order
from noveltylab.data.preprocess import Preprocess
from noveltylab.errors import UserError
from noveltylab.methods.base import Method
from noveltylab.options import Options
from noveltylab.predict.decisions import Members, decide_all
from noveltylab.predict.groups import Groups, as_groups, calibrations, check_files
from noveltylab.predict.inputs import Item, Reader, in_jobs, read_item, stack_images
from noveltylab.predict.paths import expand
from noveltylab.scoring.apply import (
    explanations,
    reconstructions,
    score_alike,
    score_in_threads,
    to_float64,
)
from noveltylab.scoring.batches import alike_batch, single_threads
from noveltylab.scoring.conformal import Calibration, checked_rate
from noveltylab.scoring.folds import Folds

if TYPE_CHECKING:
    import pandas as pd

#: images that a thread reads and scores before it takes the next ones
JOB = 256
Columns = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Scored:
    """The score of a file, or of a frame of a video; NaN with an error if it cannot be read.

    Attributes:
        name: The file, as it is shown; of a frame with its number.
        images: The images as scored (n, C, H, W), None if there are none.
        score: Novelty score, larger is more novel.
        error: Why there is no score.
        path: The file.
    """

    name: str
    images: Tensor | None
    score: float
    error: str | None
    path: Path


@dataclass(eq=False)
class Detector:
    """A trained method that scores images as its run did.

    Attributes:
        folder: Run folder.
        options: Its checked options.
        method: In evaluation mode, on its device.
        preprocess: Fitted on the run's training inliers.
        primary: The score that decides.
        shape: (C, H, W) of the images that the method sees.
        held_out: Score name -> scores of held-out inliers (n,); {} for a run without.
        reader: How a file becomes such images.
        held_out_ids: Ids of the held-out inliers (n,).
    """

    folder: Path
    options: Options
    method: Method
    preprocess: Preprocess
    primary: str
    shape: tuple[int, int, int]
    held_out: Columns
    reader: Reader
    held_out_ids: list[str] = field(default_factory=list)

    @property
    def calibration(self) -> Calibration | None:
        """Calibration of the primary score; None if the run held out no inliers."""
        if self.primary not in self.held_out:
            return None
        return Calibration(self.held_out[self.primary], self.folds)

    @property
    def exact(self) -> bool:
        """Whether nothing of the method was chosen by the held-out inliers.

        If something was, the guarantee is approximate.
        """
        if self.folds and self.options.data.fitted_on_training:
            return False
        return self.options.main_rule == "last" or not self.method.iterative

    @property
    def folds(self) -> int:
        """Number of folds that held out each training inlier once; 0 if a part was held out."""
        return len(self.method.members) if isinstance(self.method, Folds) else 0

    def calibrations(self, groups: Groups) -> dict[str, Calibration]:
        """Calibrations of the primary score, one for each group of held-out inliers.

        Raises:
            UserError: There are no held-out inliers, each was held out in folds, or one of them has
                no group.
        """
        if self.folds:
            raise UserError(
                f"{groups.source}: groups need inliers that nothing was fitted on, and this run "
                "held each out in folds; train with protocol.val_fraction instead"
            )
        if self.primary not in self.held_out:
            raise UserError(
                f"{groups.source}: this run held out no inliers; raise protocol.val_fraction"
            )
        root = self.options.data.root
        scores = self.held_out[self.primary]
        return calibrations(groups, self.held_out_ids, scores, None if root is None else Path(root))

    def scores(self, images: Tensor) -> Columns:
        """Every score of images of the run's shape: name -> (N,).

        Images are uint8 (int16 for sound waves), (N, C, H, W), N >= 1. Scores are raw, larger is
        more novel, without those that need the whole test set. The same bits as `stream` has.
        """
        return self._combined(score_in_threads(self.method, self.preprocess, images))

    def _combined(self, columns: dict[str, Tensor]) -> Columns:
        # scores that are made of others, by those of held-out inliers
        held_out = {}
        for name, column in self.held_out.items():
            if name in columns:
                held_out[name] = torch.from_numpy(column).float()
        if held_out and self.reader.kind == "image":
            columns |= self.method.combine_scores(columns, held_out)
        # all but those of a whole test set
        for name in self.method.transductive:
            columns.pop(name, None)
        return to_float64(columns)

    def novelty(self, images: Tensor) -> NDArray[np.float64]:
        """The primary score (N,) of images as `scores` takes them."""
        columns = score_in_threads(self.method, self.preprocess, images, self.primary)
        return self._combined(columns)[self.primary]

    def reconstruct(self, images: Tensor) -> NDArray[np.float32] | None:
        """Reconstructions in [0, 1] of images as `scores` takes them; None if there are none."""
        return reconstructions(self.method, self.preprocess, images)

    def explain(self, images: Tensor) -> dict[str, NDArray[np.float32]]:
        """What the method compares images with: title -> (N, C, H, W) in [0, 1].

        Images are as `scores` takes them.
        """
        return explanations(self.method, self.preprocess, images)

    def fit(self, images: Tensor | NDArray[Any]) -> Tensor:
        """Anybody's images as `scores` takes them: uint8 (N, C, H, W), the sizes of the run.

        Args:
            images: uint8 in 0..255, or floats in [0, 1]: (N, C, H, W) or grey (N, H, W); C is 1 or
                3. Grey and colour are turned into each other as those of files are, other sizes
                stretched.

        Raises:
            UserError: Another shape or range, a shape that can be read in two ways, or a run that
                does not take images.
        """
        if self.reader.kind != "image":
            raise UserError(f"this run takes {self.reader.words}, not images")
        return stack_images(images, self.shape)

    def frame(
        self,
        inputs: "Tensor | NDArray[Any] | str | Path | Iterable[str | Path]",
        *,
        fpr: float = 0.05,
        fdr: float | None = None,
        confidence: float | None = None,
        groups: "str | Path | Mapping[str, str] | None" = None,
        group: str | None = None,
    ) -> "pd.DataFrame":
        """Scores, p-values and decisions as a pandas data frame, one row for each image in order.

        Args:
            inputs: Images as `fit` takes them; or an image file, a folder, a pattern such as
                "new/*.png", or several of these.
            fpr: Novel is what has p <= fpr: on average at most that share of inliers, in (0, 1).
            fdr: Instead: Benjamini and Hochberg over all rows, at most that expected share of
                inliers among the novel.
            confidence: With `fpr`: the share is at most that for the inliers that were held out,
                with this confidence over their draw (59 decide 0.05 at 0.95).
            groups: A CSV file, or a mapping of files to groups, of held-out and new images; each
                is compared with held-out inliers of its own group. For files only.
            group: The column of that CSV file that says the group.

        Returns:
            Columns ``file`` (not for images given as arrays), ``group`` (where there are any),
            ``score``, ``p_value``, ``novel``
            (bool; None for a file that cannot be read, and for all where the held-out inliers are
            too few for the rule) and ``error`` (None where all went well). Why nothing could be
            decided is said on stderr and kept as ``attrs["undecided"]``.

        Raises:
            UserError: No such file, images of another kind, groups that are too small, or pandas
                is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise UserError(
                "a data frame needs pandas; install it with: pip install 'noveltylab[pandas]'"
            ) from None
        checked_rate(fpr, fdr, confidence)
        # the scores, of an array or of files
        columns: dict[str, Any] = {}
        errors: list[str | None] | None = None
        members = None
        if isinstance(inputs, Tensor | np.ndarray):
            if groups is not None:
                raise UserError("groups= tells files apart, and an array has none")
            scores = self.novelty(self.fit(inputs))
        else:
            names = [str(name) for name in _names(inputs)]
            if groups is not None:
                members = self._members(names, as_groups(groups, group), fpr, fdr, confidence)
            rows = list(self.stream(self._expand(names)))
            columns["file"] = [row.name for row in rows]
            scores = np.array([row.score for row in rows], float)
            errors = [row.error for row in rows]
        # the decisions
        if members is None:
            p_values, novel, reason = self.decide(scores, fpr, fdr, confidence)
        else:
            columns["group"] = [members.groups.of_file(row.path) for row in rows]
            p_values, novel, reason = members.decide(columns["group"], scores, fpr, confidence)
        columns["score"] = scores
        columns["p_value"] = p_values
        columns["novel"] = pd.Series(novel, dtype=object)
        if errors is not None:
            columns["error"] = errors
        table = pd.DataFrame(columns)
        if reason:
            table.attrs["undecided"] = reason
            say(f"not decided: {reason}")
        return table

    def _expand(self, names: list[str]) -> Iterable[Path]:
        return chain.from_iterable([expand(name, self.reader) for name in names])

    def _members(
        self,
        names: list[str],
        groups: Groups,
        fpr: float,
        fdr: float | None,
        confidence: float | None,
    ) -> Members:
        """What decides within groups; UserError for a file without one, or groups too small."""
        if fdr is not None:
            raise UserError("groups= goes with fpr=, not with fdr=, which is about the whole batch")
        members = Members(groups, self.calibrations(groups))
        check_files(groups, self._expand(names), members.calibrations, fpr, confidence)
        return members

    def rows(self, paths: Iterable[Path]) -> Iterable[tuple[str, float, str | None]]:
        """(name, score, error) of each file, NaN where it cannot be read; bounded memory."""
        for row in self.stream(paths):
            yield row.name, row.score, row.error

    def stream(self, paths: Iterable[Path]) -> Iterable[Scored]:
        """The score of each file in order, with a few hundred images in memory at a time.

        A recording's score is made of those of its segments as the run's protocol says. Each thread
        reads and scores files of its own.
        """
        with single_threads() as threads:
            # whole batches
            batch = alike_batch(self.method.device)
            size = max(batch, 2 * JOB // threads // batch * batch)
            jobs = in_jobs(paths, self.reader, size)
            for rows in in_order(self._score, jobs, ahead=threads, threads=threads):
                yield from rows

    def _score(self, job: list[Path | Item]) -> list[Scored]:
        # read the files that are paths still
        items = [self._as_item(entry) for entry in job]
        # score all images at once
        stacks = [item.images for item in items if item.images is not None]
        scores = np.zeros(0)
        if stacks:
            scores = self._novelty_in_thread(torch.cat(stacks))
        # give every item the score of its images
        rows: list[Scored] = []
        start = 0
        for item in items:
            if item.images is None:
                rows.append(Scored(item.name, None, float("nan"), item.error, item.path))
                continue
            item_scores = scores[start : start + len(item.images)]
            start += len(item_scores)
            score = self.reader.whole(item_scores)
            error = None
            if not np.isfinite(score):
                score = float("nan")
                error = "its score is not finite"
            rows.append(Scored(item.name, item.images, score, error, item.path))
        return rows

    def _as_item(self, entry: Path | Item) -> Item:
        if isinstance(entry, Item):
            return entry
        return read_item(entry, self.reader)

    def _novelty_in_thread(self, images: Tensor) -> NDArray[np.float64]:
        """As `novelty`, by the thread that asks for it."""
        columns = score_alike(self.method, self.preprocess, images, self.primary)
        return self._combined(columns)[self.primary]

    def decide(
        self,
        scores: NDArray[np.float64],
        fpr: float,
        fdr: float | None = None,
        confidence: float | None = None,
    ) -> tuple[NDArray[np.float64], list[bool | None], str]:
        """p-values (N,) and decisions of scores (N,), and why nothing could be decided.

        The reason is "" if something could.
        A score that is NaN has the p-value NaN and the decision None.
        """
        return decide_all(self.calibration, scores, fpr, fdr, confidence)


def _names(inputs: Any) -> list[str | Path]:
    """One name, or several. UserError for anything else, such as a list of arrays."""
    names = [inputs]
    if isinstance(inputs, Iterable) and not isinstance(inputs, str | Path):
        names = list(inputs)
    for name in names:
        if not isinstance(name, str | Path):
            raise UserError(
                f"images are given as files or as one array (N, C, H, W), not as {type(name).__name__}; np.stack makes one "
                "array of several of one size"
            )
    return names
