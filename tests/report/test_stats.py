from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from noveltylab.report.stats import Cells, compare, rank, summarise, tie_reasons

VALUES = st.dictionaries(
    st.tuples(st.integers(0, 4), st.integers(0, 3)), st.floats(0, 1).map(lambda x: round(x, 3)), min_size=1
)


def cells(values: dict[tuple[int, int], float], error: float | None = 0.01) -> Cells:
    return {cell: (value, error) for cell, value in values.items()}


def test_summary_of_a_full_table() -> None:
    values = {(label, seed): 0.1 * label + 0.01 * seed**2 for label in range(5) for seed in range(3)}
    found = summarise(cells(values, 0.02))
    assert found is not None
    table = np.array([[values[label, seed] for seed in range(3)] for label in range(5)])
    np.testing.assert_allclose(list(found.classes.values()), table.mean(1))
    assert found.mean == pytest.approx(table.mean())
    assert found.seed_std == pytest.approx(table.mean(0).std(ddof=1)) and found.seeds == 3
    assert found.error == pytest.approx(0.02 / np.sqrt(5))  # seeds share their test images
    assert found.cells == 15


def test_a_class_with_more_seeds_does_not_count_more() -> None:
    found = summarise(cells({(0, 0): 0.2, (0, 1): 0.4, (0, 2): 0.6, (1, 0): 1.0}))
    assert found is not None
    assert found.mean == pytest.approx(0.7)
    assert (found.seeds, found.seed_std) == (1, None)  # only seed 0 has both classes


def test_interval_is_close_to_the_normal_one_for_many_cells() -> None:
    values = np.random.default_rng(1).normal(0.7, 0.1, (10, 20))
    found = summarise(cells({(i, s): float(values[i, s]) for i in range(10) for s in range(20)}))
    assert found is not None and found.interval is not None
    half = 1.96 * values.std() / np.sqrt(200)
    np.testing.assert_allclose(found.interval, (values.mean() - half, values.mean() + half), atol=0.15 * half)


@settings(deadline=None)
@given(VALUES)
def test_summary_lies_within_its_cells(values: dict[tuple[int, int], float]) -> None:
    found = summarise(cells(values))
    assert found is not None
    low, high = min(values.values()) - 1e-9, max(values.values()) + 1e-9
    assert low <= found.mean <= high
    if found.interval is not None:
        assert low <= found.interval[0] <= found.interval[1] <= high
    assert (found.interval is None) == (len(values) < 2)


def test_no_cells_no_summary() -> None:
    assert summarise({}) is None and compare({}, cells({(0, 0): 0.5})) is None
    assert compare(cells({(1, 0): 0.5}), cells({(0, 0): 0.5})) is None


def signed_rank_p(gaps: list[float]) -> float:
    """Two-sided exact p by trying every sign of the ranks."""
    sizes = np.round(np.abs(gaps), 9)
    order = np.array([(sizes < size).sum() + ((sizes == size).sum() + 1) / 2 for size in sizes])
    total = order.sum()
    statistic = min(order[np.array(gaps) > 0].sum(), order[np.array(gaps) < 0].sum())
    sums = [
        min(s, total - s) for s in (order[np.array(signs)].sum() for signs in product([False, True], repeat=len(gaps)))
    ]
    return float(np.mean(np.array(sums) <= statistic))


@pytest.mark.parametrize(
    "gaps",
    [
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        [0.1, -0.2, 0.3, 0.4, -0.55, 0.6, 0.7],
        [-0.01, 0.02, -0.03, 0.05, -0.08, 0.13],
        [0.25, 0.25, 0.25, -0.25, 0.5, 0.5, 0.75],
    ],
)
def test_p_is_that_of_all_sign_changes(gaps: list[float]) -> None:
    first = cells({(i, 0): 0.125 + gap for i, gap in enumerate(gaps)}, 0.0)
    found = compare(first, cells({(i, 0): 0.125 for i in range(len(gaps))}, 0.0))
    assert found is not None
    assert found.p == pytest.approx(signed_rank_p(gaps))
    assert found.mean == pytest.approx(np.mean(gaps)) and found.pairs == len(gaps)


def test_p_of_many_pairs_is_scipys() -> None:
    gaps = np.random.default_rng(3).normal(0.02, 0.1, 40)
    found = compare(cells({(i, 0): float(gap) for i, gap in enumerate(gaps)}), cells({(i, 0): 0.0 for i in range(40)}))
    assert found is not None
    assert found.p == pytest.approx(float(wilcoxon(gaps, method="exact").pvalue))


def test_five_pairs_are_too_few_for_a_test() -> None:
    first, second = (cells({(i, 0): base + 0.01 * i for i in range(5)}) for base in (0.9, 0.5))
    found = compare(first, second)
    assert found is not None and found.p is None and found.wins == 5
    assert signed_rank_p([0.4 + 0.01 * i for i in range(5)]) > 0.05  # nothing was missed


def test_a_row_against_itself_is_all_ties() -> None:
    row = cells({(i, 0): 0.1 * i for i in range(8)}, 0.0)
    found = compare(row, row)
    assert found is not None
    assert (found.p, found.wins, found.ties, found.losses, found.mean) == (1.0, 0, 8, 0, 0.0)


def test_wins_ties_and_losses_go_by_the_standard_error() -> None:
    first = {(0, 0): (0.90, 0.02), (1, 0): (0.80, 0.01), (2, 0): (0.70, 0.01)}
    second = {(0, 0): (0.89, 0.01), (1, 0): (0.70, 0.01), (2, 0): (0.71, 0.005), (3, 0): (0.1, 0.1)}
    found = compare(dict(first), dict(second))
    assert found is not None
    # 0.01 under 0.02: tie; 0.1: win; 0.01 is not under 0.01: loss (floats: 0.71 - 0.70 is a bit more)
    assert (found.wins, found.ties, found.losses, found.pairs) == (1, 1, 1, 3)


@settings(deadline=None)
@given(VALUES, VALUES)
def test_a_comparison_turned_round_has_the_other_sign(
    first: dict[tuple[int, int], float], second: dict[tuple[int, int], float]
) -> None:
    one, two = compare(cells(first), cells(second)), compare(cells(second), cells(first))
    assert (one is None) == (two is None)
    if one is not None and two is not None:
        assert one.mean == pytest.approx(-two.mean)
        assert (one.wins, one.ties, one.losses) == (two.losses, two.ties, two.wins)
        assert one.p == (None if two.p is None else pytest.approx(two.p))


@pytest.mark.parametrize(
    ("gap", "data", "error", "seed_std", "count"),
    [
        (0.004, "cifar10", 0.001, None, 1),
        (-0.004, "cifar10", 0.0041, 0.02, 3),
        (0.004, "mnist", 0.001, None, 0),
        (0.004, "mnist", None, 0.005, 1),
        (0.005, "cifar10", None, None, 0),
    ],
)
def test_tie_reasons(gap: float, data: str, error: float | None, seed_std: float | None, count: int) -> None:
    assert len(tie_reasons(gap, data, error, seed_std)) == count


def test_critical_difference_of_demsar() -> None:
    """Demsar 2006, section 3.2.4: four classifiers on 14 data sets, CD = 2.569 sqrt(4 5 / (6 14)) = 1.25."""
    found = rank({name: {i: 0.1 * k + i for i in range(14)} for k, name in enumerate("abcd")})
    assert found is not None
    assert found.critical == pytest.approx(1.25, abs=0.005)
    assert found.mean == {"d": 1, "c": 2, "b": 3, "a": 4} and found.classes == 14


def test_ranks_take_the_classes_that_all_rows_have_and_share_ties() -> None:
    found = rank({"a": {0: 0.9, 1: 0.8, 2: 0.5}, "b": {0: 0.9, 1: 0.7}, "c": {0: 0.1, 1: 0.75, 2: 0.9}})
    assert found is not None
    assert found.mean == {"a": 1.25, "b": 2.25, "c": 2.5} and found.classes == 2
    assert rank({"a": {0: 0.9}, "b": {0: 0.9}}) is None and rank({"a": {0: 0.9, 1: 0.8}}) is None and rank({}) is None
