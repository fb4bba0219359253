"""The cells that a full table needs, and which of them are missing."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from noveltylab.report.published import PaperTable
from noveltylab.report.rows import Row
from noveltylab.report.stats import Cells
from noveltylab.results.schema import Result

#: A number of ours is a mean over at least these seeds.
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Expected:
    """The cells that a full table needs.

    Attributes:
        labels: The inlier labels that are known to belong to it.
        count: How many inliers it needs, which may be more.
        seeds: Which seeds.
    """

    labels: tuple[int, ...]
    count: int
    seeds: tuple[int, ...]

    @property
    def cells(self) -> int:
        return self.count * len(self.seeds)

    def covers(self, labels: Iterable[int]) -> bool:
        """Whether these inliers are all that are needed."""
        inliers = set(labels)
        return len(inliers) >= self.count and inliers >= set(self.labels)

    def note(self, classes: Mapping[int, float]) -> str:
        """`(3 of 10)` behind a mean of some classes, "" behind that of all."""
        if self.covers(classes):
            return ""
        return f"({len(classes)} of {self.count})"

    def missing(self, cells: Cells) -> str:
        """The missing cells in words, "" if none: `inlier 1, 3-9: seeds 0-2; inlier 0: seed 2`."""
        labels_by_seeds: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for label in self.labels:
            seeds = tuple(seed for seed in self.seeds if (label, seed) not in cells)
            labels_by_seeds[seeds].append(label)
        # nothing is missing of the labels that lack no seed
        labels_by_seeds.pop((), None)
        sentences = []
        for seeds, labels in labels_by_seeds.items():
            word = "seeds" if len(seeds) > 1 else "seed"
            sentences.append(f"inlier {_ranges(labels)}: {word} {_ranges(seeds)}")
        unknown = self.count - len(self.labels)
        if unknown:
            sentences.append(f"{unknown} more inlier classes: every seed")
        return "; ".join(sentences)


def _ranges(numbers: Sequence[int]) -> str:
    """`0-2, 5` for [0, 1, 2, 5]."""
    ranges: list[list[int]] = []
    for value in numbers:
        if ranges and value == ranges[-1][1] + 1:
            ranges[-1][1] = value
        else:
            ranges.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def expect(rows: Sequence[Row], table: PaperTable | None) -> Expected:
    """The cells that a full table of these rows needs.

    From the table's own count, else from the classes that the data lists, else from the inliers
    that were run.
    """
    results = [run.result for row in rows for run in row.runs]
    run_labels = sorted({result.inlier for result in results})
    seeds = tuple(sorted({*SEEDS, *(result.seed for result in results)}))
    count = table.expected if table else None
    if isinstance(count, tuple):
        return Expected(count, len(count), seeds)
    if isinstance(count, int):
        return Expected(tuple(run_labels), max(count, len(run_labels)), seeds)
    if table and table.by_class:
        labels = tuple(column.inlier for column in table.columns if column.inlier is not None)
        return Expected(labels, len(labels), seeds)
    class_count = max((_class_count(result) for result in results), default=0)
    labels = tuple(range(class_count) if class_count else run_labels)
    return Expected(labels, len(labels), seeds)


def _class_count(result: Result) -> int:
    """How many classes the data lists, 0 where it lists none."""
    data = result.config.get("data")
    classes = data.get("classes") if isinstance(data, dict) else None
    return len(classes) if isinstance(classes, list) else 0
