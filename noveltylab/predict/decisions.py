"""Decisions on scores: p-values by one set of held-out inliers, or by one for each group."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noveltylab.errors import UserError
from noveltylab.predict.groups import Groups
from noveltylab.predict.request import Request
from noveltylab.scoring.conformal import Calibration, Decision, decide, percent

#: the group of every file where there are no groups
ALL = ""


@dataclass(frozen=True)
class Members:
    """Groups of files, and the calibration of each group."""

    groups: Groups
    calibrations: dict[str, Calibration]

    def decide(
        self,
        members: list[str],
        scores: NDArray[np.float64],
        fpr: float,
        confidence: float | None,
    ) -> tuple[NDArray[np.float64], list[bool | None], str]:
        """As `decide_all`, of scores (N,) each within its group (N,)."""
        p_values = np.full(len(scores), np.nan)
        novel = np.full(len(scores), None, object)
        reason = ""
        for group in dict.fromkeys(members):
            rows = np.array([member == group for member in members])
            calibration = self.calibrations[group]
            p_values[rows], decisions, reason = decide_all(
                calibration, scores[rows], fpr, None, confidence
            )
            novel[rows] = np.array(decisions, object)
        return p_values, novel.tolist(), reason


def decide_all(
    calibration: Calibration | None,
    scores: NDArray[np.float64],
    fpr: float,
    fdr: float | None,
    confidence: float | None,
) -> tuple[NDArray[np.float64], list[bool | None], str]:
    """p-values (N,) and decisions of scores (N,), and why nothing could be decided.

    The reason is "" if something could. A score that is NaN has the p-value NaN and the decision
    None.
    """
    finite = np.isfinite(scores)
    p_values = np.full(len(scores), np.nan)
    novel = np.full(len(scores), None, object)
    if calibration is None:
        return p_values, novel.tolist(), decide(None, (), fpr, fdr, confidence).reason
    # the rank of each score among the held-out inliers
    ranks = calibration.ranks(scores[finite])
    p_values[finite] = ranks / (len(calibration) + 1)
    # the largest rank that is novel
    counts = np.bincount(ranks - 1, minlength=len(calibration) + 1)
    decision = decide(calibration, counts, fpr, fdr, confidence)
    if decision.rank_threshold is not None:
        novel[finite] = (ranks <= decision.rank_threshold).astype(object)
    return p_values, novel.tolist(), decision.reason


@dataclass
class Tally:
    """How many scores of a stream have each rank within their group, and what a rule decides.

    Attributes:
        calibrations: Group -> its calibration; of ALL alone without groups, then None if the run
            held out no inliers.
        groups: Which file is of which group; None without groups.
        counts: Group -> how many scores have rank 1, 2, ..., n + 1.
        decisions: Group -> what the rule decides, once all scores are counted.
    """

    calibrations: Mapping[str, Calibration | None]
    groups: Groups | None = None
    counts: dict[str, NDArray[np.int64]] = field(init=False)
    decisions: dict[str, Decision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.counts = {}
        for group, calibration in self.calibrations.items():
            ranks = 0 if calibration is None else len(calibration) + 1
            self.counts[group] = np.zeros(ranks, np.int64)

    def group_of(self, path: Path) -> str:
        """The group of a file; UserError for one that came after the files were looked through."""
        if self.groups is None:
            return ALL
        group = self.groups.of_file(path)
        if group is None or group not in self.calibrations:
            raise UserError(f"{self.groups.source}: {path} came in the meantime and has no group")
        return group

    def add(self, score: float, group: str) -> int:
        """Counts a score; its rank, 0 without held-out inliers."""
        rank = self.rank(score, group)
        if rank:
            self.counts[group][rank - 1] += 1
        return rank

    def rank(self, score: float, group: str) -> int:
        """The rank of a score in its group, 0 without held-out inliers."""
        calibration = self.calibrations[group]
        if calibration is None:
            return 0
        return int(calibration.ranks([score])[0])

    def decide(self, request: Request) -> None:
        """Applies the rule of the command line to what was counted."""
        for group, calibration in self.calibrations.items():
            self.decisions[group] = decide(
                calibration, self.counts[group], request.fpr, request.fdr, request.confidence
            )

    @property
    def reason(self) -> str:
        """Why nothing is decided; "" if something is."""
        reasons = [self.decisions[group].reason for group in self._used]
        return next(filter(None, reasons), "")

    @property
    def novel(self) -> int | None:
        """How many are called novel; None where the rule cannot decide."""
        if self.reason:
            return None
        number = 0
        for group in self._used:
            rank = self.decisions[group].rank_threshold
            assert rank is not None  # there would be a reason
            number += int(self.counts[group][:rank].sum())
        return number

    @property
    def column(self) -> str:
        """What the groups are, such as "camera"; "" without groups."""
        return "" if self.groups is None else self.groups.column

    @property
    def basis(self) -> str:
        """How many held-out inliers the p-values are from, in words."""
        sizes = [max(len(self.counts[group]) - 1, 0) for group in self._used]
        if self.groups is None:
            return f"{sum(sizes)} held-out inliers"
        return f"{sum(sizes)} held-out inliers, each within its {self.column}"

    @property
    def _used(self) -> list[str]:
        """The groups that some file is of; all without groups."""
        if self.groups is None:
            return [ALL]
        return [group for group, counts in self.counts.items() if counts.any()]

    def p_value(self, rank: int, group: str) -> float | None:
        """The p-value of a rank; None without held-out inliers."""
        if not rank:
            return None
        return rank / len(self.counts[group])

    def word(self, rank: int, group: str) -> str:
        """The decision on a rank: "novel", "inlier", or "" where nothing is decided."""
        rank_threshold = self.decisions[group].rank_threshold
        if rank_threshold is None:
            return ""
        return "novel" if rank <= rank_threshold else "inlier"

    def promise(self, request: Request, exact: bool) -> str:
        """What the decision rule promises, in a sentence; "" without held-out inliers."""
        if request.fdr is not None:
            return f"Of what is called novel, at most {request.fdr:.2g} is expected to be inliers."
        used = [self.calibrations[group] for group in self._used]
        calibrations = [calibration for calibration in used if calibration is not None]
        if not calibrations:
            return ""
        about = "At most"
        if not exact:
            about = "As the held-out inliers chose the epoch or the contrast too, about"
        if self.groups is not None:
            about += f" {request.fpr:.2g} of inliers of each {self.groups.column} are called novel"
            if request.confidence is None:
                return f"{about} on average."
            return f"{about}, for each with {percent(request.confidence)} confidence."
        return _promise(calibrations[0], about, request)


def _promise(calibration: Calibration, about: str, request: Request) -> str:
    level = calibration.expected(request.fpr)
    if request.confidence is not None:
        rank = calibration.allowed(request.fpr, request.confidence)
        mean = rank / (len(calibration) + 1)
        return (
            f"{about} {request.fpr:.2g} of inliers are called novel, with "
            f"{percent(request.confidence)} confidence over the draw of the held-out ones; "
            f"{mean:.2g} on average over such draws."
        )
    first = f"{about} {level:.2g} of inliers are called novel on average"
    upper = calibration.upper(request.fpr)
    if upper is not None:
        return f"{first}; with these held-out ones under {upper:.2g}, with 95 % confidence."
    bound = calibration.bound(request.fpr)
    if bound > level:
        return f"About {level:.2g} of inliers are called novel on average, at most {bound:.2g} in the worst case."
    return f"{first}."
