"""The number by which options are chosen, and what a search for them leaves behind.

No label of an outlier reaches it: it follows from held-out inliers alone. What choosing by the test
set would have added stands beside the choice, and chooses nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError

from noveltylab.errors import UserError
from noveltylab.results.files import read_json, write_atomic

FILE = "search.json"
#: Bytes that a search's file may have.
MAX_BYTES = 16 << 20
#: What a criterion is, in words: of a method that trains, and of one that is fitted once.
LOSS, SCORE = "loss of held-out inliers", "mean novelty score of held-out inliers"

Text = Annotated[str, Field(max_length=1000)]


def criterion(result: dict[str, Any], folder: Path) -> tuple[float, str] | None:
    """What a finished run hands to a search, lower is better, and what it is.

    The loss of held-out inliers at the epoch that is scored. For a method that is fitted once, and
    under select=last, the mean primary score of the held-out inliers. None without any.

    Args:
        result: The content of the run's result.json.
        folder: The run's folder.
    """
    from noveltylab.results.scores import read_scores  # numpy, which the command does without

    selected = result["selected"]
    if selected["rule"] == "val_loss" and selected["value"] is not None:
        return float(selected["value"]), LOSS
    path = folder / "calibration.csv"
    if not path.is_file():
        return None
    held_out = read_scores(path).columns[result["primary"]]
    return (float(held_out.mean()), SCORE) if len(held_out) else None


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Trial(_Model):
    """One choice of options.

    Attributes:
        number: From 0 on, in the order of asking.
        options: Option -> value as it is typed.
        value: Mean criterion over the runs; None where one of them failed.
        auroc: Mean AUROC of the test sets; None without labelled outliers. It chooses nothing.
        folders: Of the runs, within the search's folder.
    """

    number: NonNegativeInt
    options: dict[Text, Text]
    value: FiniteFloat | None
    auroc: Annotated[float, Field(ge=0, le=1)] | None
    folders: list[Text]


class Search(_Model):
    """A search: what was tried, by which number, and what came of it.

    Attributes:
        method: As in method=...
        data: As results call it.
        criterion: What the trials' values are, in words.
        fixed: Options that all trials have.
        space: Option -> what it was chosen from, as it was typed.
        asked: Trials that were asked for.
        trials: Those that ended.
    """

    version: Literal[1] = 1
    method: Text
    data: Text
    criterion: Text
    fixed: list[Text]
    space: dict[Text, Text]
    asked: NonNegativeInt
    trials: list[Trial]

    @property
    def chosen(self) -> Trial | None:
        """The trial of the lowest value, the first of several; None if all failed."""
        measured = [trial for trial in self.trials if trial.value is not None]
        return min(measured, key=lambda trial: trial.value or 0.0, default=None)

    @property
    def best_by_test(self) -> Trial | None:
        """The trial that the labels of the test set would have chosen; None without any."""
        measured = [trial for trial in self.trials if trial.auroc is not None]
        return max(measured, key=lambda trial: trial.auroc or 0.0, default=None)

    @property
    def added_by_test(self) -> float | None:
        """What choosing by the test would have added to the mean AUROC; None if unknown."""
        chosen, best = self.chosen, self.best_by_test
        if chosen is None or best is None or chosen.auroc is None or best.auroc is None:
            return None
        return best.auroc - chosen.auroc


def sentences(search: Search) -> list[str]:
    """What was chosen and by what; what choosing by the test would have added."""
    chosen, best, added = search.chosen, search.best_by_test, search.added_by_test
    failed = sum(trial.value is None for trial in search.trials)
    count = f"{len(search.trials)} of {search.asked} trials"
    if failed:
        count += f", {failed} failed"
    if chosen is None:
        return [f"nothing chosen: {count}"]
    lines = [f"chosen by the {search.criterion}: {in_words(chosen)} ({count}; no outlier used)"]
    if best is not None and chosen.auroc is not None and added is not None:
        lines.append(
            f"its AUROC is {chosen.auroc:.4f}; the test's labels would have chosen "
            f"{in_words(best)} with {best.auroc:.4f}, which adds {added:.4f} and is no result"
        )
    return lines


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """The trials by their value, those that failed last."""
    return sorted(trials, key=lambda trial: (trial.value is None, trial.value or 0.0))


def in_words(trial: Trial) -> str:
    """The options of a trial and its number."""
    options = " ".join(f"{option}={value}" for option, value in trial.options.items())
    return f"{options} (trial {trial.number})"


def mean(values: list[float | None]) -> float | None:
    """The mean; None if a value is missing, or there are none."""
    present = [value for value in values if value is not None]
    if not present or len(present) != len(values):
        return None
    return fmean(present)


def write_search(folder: Path, search: Search) -> Path:
    """Writes the search into its folder; returns the file."""
    path = folder / FILE
    write_atomic(path, search.model_dump_json(indent=1) + "\n")
    return path


def read_search(path: Path) -> Search:
    """The search of a file that somebody else may have written.

    Raises:
        UserError: It is damaged or no search's.
    """
    try:
        return Search.model_validate(read_json(path, MAX_BYTES))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{where}: {first['msg']}"
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
    raise UserError(f"{path}: damaged ({reason}); the same search writes it anew")
