"""Which methods trainer.precision=auto may train in bf16: those for which the rule holds over kept pairs."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from experiments.pages import with_tables
from experiments.precision import PAGE, TABLES, Pair, is_same, pairs, same_in_bf16
from noveltylab.options import flat_options
from noveltylab.training.precision import SAME_IN_BF16


@dataclass
class Scored:
    auroc: float


@dataclass
class Kept:
    """Of a result what the rule reads."""

    auroc: float
    primary: str = "mse"
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 2.0})

    @property
    def scores(self) -> dict[str, Scored]:
        return {"other": Scored(0.0), "mse": Scored(self.auroc)}


def pair(float32: float, bf16: float) -> Pair:
    first: Any = Kept(float32)
    second: Any = Kept(bf16, seconds={"train": 1.0})
    return Pair(first, second)


def test_a_pair_has_a_difference_and_a_share_of_time() -> None:
    one = pair(0.90, 0.92)
    assert one.aurocs == (0.90, 0.92)
    assert one.difference == pytest.approx(0.02)
    assert one.share_of_time == 0.5


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.0] * 12, True),
        ([0.0] * 11, False),  # too few
        ([0.05, -0.05] * 6, True),  # the mean counts
        ([0.009] * 12, True),
        ([0.011] * 12, False),
        ([-0.011] * 12, False),  # better is another number as well
        ([], False),
    ],
)
def test_the_rule(differences: list[float], expected: bool) -> None:
    assert is_same([pair(0.8, 0.8 + difference) for difference in differences]) is expected


def test_auto_takes_bf16_for_these_methods_alone() -> None:
    assert same_in_bf16() == SAME_IN_BF16


def test_pairs_differ_in_their_precision_alone() -> None:
    for kept in pairs().values():
        for one in kept:
            float32, bf16 = flat_options(one.float32.config), flat_options(one.bf16.config)
            differing = {key for key in float32 if float32[key] != bf16[key]}
            assert differing <= {"trainer.precision", "method.name", "output"}
            assert float32["trainer.precision"] == "32-true"
            assert bf16["trainer.precision"] == "bf16-mixed"
            assert one.float32.split_sha256 == one.bf16.split_sha256


def test_the_page_is_what_the_command_writes() -> None:
    text = PAGE.read_text()
    assert with_tables(text, TABLES) == text
