"""Whether bf16 reaches the AUROC of float32: the table of docs/speed.md, from the kept pairs of learn/precision.

python -m experiments.precision           # prints it
python -m experiments.precision --write   # and writes it between the markers of the page

The rule: a method may train in bf16 under trainer.precision=auto if twelve pairs or more are kept and their mean AUROC differs
by less than 0.01. Those are the methods of SAME_IN_BF16 in noveltylab/training/precision.py; a test compares the two.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from experiments.pages import header, row, write_if_asked
from experiments.rule import auroc, cells, compared
from noveltylab.results.schema import Result

PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
PLAN = "precision"
#: The rows in float32 and their methods' names; each has a row `<row>_bf16`.
METHODS = {"ocgan": "OCGAN", "nda": "NDA"}
#: The rule.
FEWEST_PAIRS = 12
TOLERANCE = 0.01


@dataclass(frozen=True)
class Pair:
    """One class and seed, trained in both."""

    float32: Result
    bf16: Result

    @property
    def aurocs(self) -> tuple[float, float]:
        """Of the run's own score, float32 first."""
        return auroc(self.float32), auroc(self.bf16)

    @property
    def difference(self) -> float:
        """How much bf16 is above float32."""
        float32, bf16 = self.aurocs
        return bf16 - float32

    @property
    def share_of_time(self) -> float:
        """Training in bf16, as a share of the seconds in float32."""
        return self.bf16.seconds["train"] / self.float32.seconds["train"]


def pairs() -> dict[str, list[Pair]]:
    """Method -> its kept pairs, by class and seed."""
    rows = cells(PLAN)
    pairs_of: dict[str, list[Pair]] = {}
    for method in METHODS:
        float32, bf16 = rows[method], rows[f"{method}_bf16"]
        pairs_of[method] = [Pair(float32[cell], bf16[cell]) for cell in float32 if cell in bf16]
    return pairs_of


def is_same(runs: list[Pair]) -> bool:
    """What the rule says of the pairs of a method."""
    if len(runs) < FEWEST_PAIRS:
        return False
    return abs(mean(pair.difference for pair in runs)) < TOLERANCE


def same_in_bf16() -> frozenset[str]:
    """The methods for which the rule holds."""
    return frozenset(method for method, runs in pairs().items() if is_same(runs))


def precision_table() -> Iterator[str]:
    """A line for each method."""
    yield from header(
        "method", "pairs", "float32", "bf16", "bf16 above float32", "time", "`auto` may take it"
    )
    for method, runs in pairs().items():
        float32, bf16 = zip(*(pair.aurocs for pair in runs), strict=True)
        yield row(
            METHODS[method],
            str(len(runs)),
            f"{mean(float32):.3f}",
            f"{mean(bf16):.3f}",
            compared([pair.difference for pair in runs]),
            f"{median(pair.share_of_time for pair in runs):.2f}",
            "yes" if is_same(runs) else "no",
        )


#: Marker of the page -> the lines between it and its end.
TABLES = {"precision": precision_table}


def main() -> None:
    write_if_asked("experiments.precision", PAGE, TABLES)
    print("\n".join(precision_table()))


if __name__ == "__main__":
    main()
