"""The findings of kept studies follow from their results by one rule, and stand on the page as it
gives them.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from experiments import entropy, mask
from experiments.claims import PAGE
from experiments.rule import cells, interval, verdict


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ([0.010, 0.011, 0.012], "ahead"),
        ([-0.010, -0.011, -0.012], "behind"),
        ([0.003, -0.002, 0.009], "no difference shown"),
        ([0.001, 0.050, 0.001], "no difference shown"),  # in every seed, but not steadily
    ],
)
def test_the_rule(differences: list[float], word: str) -> None:
    assert verdict(differences) == word


def test_the_interval_is_students() -> None:
    low, high = interval([1.0, 2.0, 4.0])
    centre, error = 7 / 3, np.std([1, 2, 4], ddof=1) / 3**0.5
    half = 4.30265 * error
    assert (low, high) == (
        pytest.approx(centre - half, rel=1e-4),
        pytest.approx(centre + half, rel=1e-4),
    )


@pytest.mark.parametrize(
    "sentences",
    [mask.sentences, *(partial(entropy.sentences, plan) for plan in entropy.PLANS)],
    ids=["mask", *entropy.PLANS],
)
def test_the_page_has_what_the_kept_results_say(sentences: Callable[[], list[str]]) -> None:
    page = " ".join(PAGE.read_text().split())
    for line in sentences():
        assert line in page


def test_the_printed_digits_of_table_5_are_those_of_the_kept_run() -> None:
    page = (PAGE.parents[1] / "results.md").read_text()
    (digits,) = cells("mnist_two_thirds").values()
    extra = digits[8, 0].extra
    ours = ", ".join(
        f"{extra[f'segmentation_auroc_{kind}']:.3f}" for kind in ("inliers", "outliers")
    )
    assert f"| 0.850, 0.847 | {ours} |" in page
