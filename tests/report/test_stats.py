from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import t, wilcoxon

from noveltylab.report.compare import Paired, compare, correct
from noveltylab.report.stats import LEVEL, Cells, Spread, add, rank, summarise, tie_reasons
from noveltylab.scoring.auroc import place

VALUES = st.dictionaries(
    st.tuples(st.integers(0, 4), st.integers(0, 3)),
    st.floats(0, 1).map(lambda x: round(x, 3)),
    min_size=1,
)


def cells(values: dict[tuple[int, int], float], error: float | None = 0.01) -> Cells:
    return {cell: (value, error) for cell, value in values.items()}


def test_summary_of_a_full_table() -> None:
    values = {
        (label, seed): 0.1 * label + 0.01 * seed**2 for label in range(5) for seed in range(3)
    }
    summary = summarise(cells(values, 0.02))
    assert summary is not None
    table = np.array([[values[label, seed] for seed in range(3)] for label in range(5)])
    np.testing.assert_allclose(list(summary.classes.values()), table.mean(1))
    assert summary.mean == pytest.approx(table.mean())
    assert summary.seed_std == pytest.approx(table.mean(0).std(ddof=1)) and summary.seeds == 3
    assert summary.error == pytest.approx(0.02 / np.sqrt(5))  # seeds share their test images
    assert summary.cells == 15


def test_a_class_with_more_seeds_does_not_count_more() -> None:
    summary = summarise(cells({(0, 0): 0.2, (0, 1): 0.4, (0, 2): 0.6, (1, 0): 1.0}))
    assert summary is not None
    assert summary.mean == pytest.approx(0.7)
    assert (summary.seeds, summary.seed_std) == (1, None)  # only seed 0 has both classes


def test_interval_is_students_over_the_class_means() -> None:
    values = np.random.default_rng(1).normal(0.7, 0.05, (10, 4))
    summary = summarise(
        cells({(i, s): float(values[i, s]) for i in range(10) for s in range(4)}, 0.001)
    )
    assert summary is not None and summary.interval is not None
    half = t.ppf(0.975, 9) * values.mean(1).std(ddof=1) / np.sqrt(10)
    np.testing.assert_allclose(summary.interval, (values.mean() - half, values.mean() + half))


def test_interval_is_no_narrower_than_the_test_images_make_it_and_stays_within_0_and_1() -> None:
    perfect = summarise(cells({(i, 0): 1.0 for i in range(4)}, 0.02))
    assert perfect is not None and perfect.interval == (
        pytest.approx(1 - 1.96 * 0.02 / 2, abs=1e-4),
        1.0,
    )


def test_interval_of_one_class_is_over_its_seeds_and_the_test_images() -> None:
    summary = summarise(cells({(0, s): value for s, value in enumerate((0.7, 0.72, 0.74))}, 0.01))
    assert summary is not None and summary.interval is not None
    seeds, images = 0.02**2 / 3, 0.01**2
    degrees = (seeds + images) ** 2 / (seeds**2 / 2)
    half = t.ppf(0.975, degrees) * np.sqrt(seeds + images)
    np.testing.assert_allclose(summary.interval, (0.72 - half, 0.72 + half))
    for alone in (cells({(0, 0): 0.7}), cells({(0, 0): 0.7, (0, 1): 0.8}, None)):
        summary = summarise(alone)
        assert summary is not None and summary.interval is None


@settings(deadline=None)
@given(VALUES)
def test_summary_lies_within_its_cells(values: dict[tuple[int, int], float]) -> None:
    summary = summarise(cells(values))
    assert summary is not None
    assert min(values.values()) - 1e-9 <= summary.mean <= max(values.values()) + 1e-9
    assert (summary.interval is None) == (len(values) < 2)
    if summary.interval is not None:
        low, high = summary.interval
        assert (
            0 <= low <= summary.mean + 1e-9
            and summary.mean - 1e-9 <= high <= 1
            and high - low > 0.001
        )


def test_no_cells_no_summary() -> None:
    assert summarise({}) is None and compare({}, cells({(0, 0): 0.5})) is None
    assert compare(cells({(1, 0): 0.5}), cells({(0, 0): 0.5})) is None


def signed_rank_p(gaps: list[float]) -> float:
    """Two-sided exact p by trying every sign of the ranks."""
    sizes = np.round(np.abs(gaps), 9)
    order = np.array([(sizes < size).sum() + ((sizes == size).sum() + 1) / 2 for size in sizes])
    total = order.sum()
    statistic = min(order[np.array(gaps) > 0].sum(), order[np.array(gaps) < 0].sum())
    sums = []
    for signs in product([False, True], repeat=len(gaps)):
        positive = order[np.array(signs)].sum()
        sums.append(min(positive, total - positive))
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
    comparison = compare(first, cells({(i, 0): 0.125 for i in range(len(gaps))}, 0.0))
    assert comparison is not None
    assert comparison.p == pytest.approx(signed_rank_p(gaps))
    assert comparison.mean == pytest.approx(
        np.mean(gaps)
    ) and comparison.classes == comparison.pairs == len(gaps)


def test_p_of_many_classes_is_scipys() -> None:
    gaps = np.random.default_rng(3).normal(0.02, 0.1, 40)
    comparison = compare(
        cells({(i, 0): float(gap) for i, gap in enumerate(gaps)}),
        cells({(i, 0): 0.0 for i in range(40)}),
    )
    assert comparison is not None
    assert comparison.p == pytest.approx(float(wilcoxon(gaps, method="exact").pvalue))


def test_five_classes_are_too_few_for_a_test() -> None:
    first, second = (cells({(i, 0): base + 0.01 * i for i in range(5)}) for base in (0.9, 0.5))
    comparison = compare(first, second)
    assert comparison is not None and comparison.p is None and comparison.wins == 5
    assert signed_rank_p([0.4 + 0.01 * i for i in range(5)]) > 0.05  # nothing was missed


def test_a_row_against_itself_is_all_ties() -> None:
    row = cells({(i, 0): 0.1 * i for i in range(8)}, 0.0)
    comparison = compare(row, row)
    assert comparison is not None
    assert (comparison.p, comparison.wins, comparison.ties, comparison.losses, comparison.mean) == (
        1.0,
        0,
        8,
        0,
        0.0,
    )


def test_wins_ties_and_losses_go_by_the_standard_error() -> None:
    first = {(0, 0): (0.90, 0.02), (1, 0): (0.80, 0.01), (2, 0): (0.70, 0.01)}
    second = {(0, 0): (0.89, 0.01), (1, 0): (0.70, 0.01), (2, 0): (0.71, 0.005), (3, 0): (0.1, 0.1)}
    comparison = compare(dict(first), dict(second))
    assert comparison is not None
    # 0.01 under 0.02: tie; 0.1: win; 0.01 is not under 0.01: loss (floats: 0.71 - 0.70 is a bit
    # more)
    assert (comparison.wins, comparison.ties, comparison.losses, comparison.pairs) == (1, 1, 1, 3)


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


def test_seeds_of_a_class_are_one_difference() -> None:
    """Three seeds that agree are no three witnesses."""
    first = {(i, s): 0.8 + 0.01 * (i + 1) * (-1) ** i for i in range(8) for s in range(3)}
    second = {(i, s): 0.8 for i in range(8) for s in range(5)}
    three_seeds = compare(cells(first), cells(second))
    one_seed = compare(
        cells({cell: value for cell, value in first.items() if cell[1] == 0}),
        cells({cell: value for cell, value in second.items() if cell[1] == 0}),
    )
    assert three_seeds is not None and one_seed is not None
    assert (three_seeds.classes, three_seeds.pairs, one_seed.pairs) == (8, 24, 8)
    assert three_seeds.p == one_seed.p and three_seeds.interval == pytest.approx(one_seed.interval)
    assert three_seeds.wins + three_seeds.ties + three_seeds.losses == 8


def test_a_class_with_more_shared_seeds_does_not_count_more_in_a_difference() -> None:
    first = cells({(0, 0): 0.6, (0, 1): 0.6, (0, 2): 0.6, (1, 0): 0.9})
    second = cells({(0, 0): 0.5, (0, 1): 0.5, (0, 2): 0.5, (1, 0): 0.5})
    paired = compare(first, second)
    assert paired is not None and paired.mean == pytest.approx(0.25)


def test_a_perfect_run_does_not_win_over_one_that_is_as_good() -> None:
    """What the interval of 1.0 over 35 and 35 images leaves open."""
    paired = compare({(0, 0): (1.0, 0.028)}, {(0, 0): (0.9999, 0.028)})
    assert paired is not None and (paired.wins, paired.ties, paired.losses) == (0, 1, 0)


def test_the_same_difference_in_every_class_has_an_interval_from_the_test_images() -> None:
    first, second = (cells({(i, 0): value for i in range(8)}, 0.01) for value in (0.9, 0.8))
    paired = compare(first, second)
    assert paired is not None
    half = 1.96 * 0.01 * np.sqrt(2 / 8)
    assert paired.interval == pytest.approx((0.1 - half, 0.1 + half), abs=1e-5)
    assert correct([paired])[0].verdict == "first is higher"


def test_holms_correction_by_hand() -> None:
    pair = Paired(10, 10, 0.1, (0.05, 0.15), None, 10, 0, 0)
    pairs = [Paired(10, 10, 0.1, (0.05, 0.15), p, 10, 0, 0) for p in (0.04, 0.01, 0.02)]
    corrected = correct([pair, *pairs])
    assert [paired.holm for paired in corrected] == [
        None,
        pytest.approx(0.04),
        pytest.approx(0.03),
        pytest.approx(0.04),
    ]
    assert {paired.tests for paired in corrected} == {3}
    assert correct([]) == []


ONE_RUN = "on these images; one seed says nothing of others"


@pytest.mark.parametrize(
    ("paired", "verdict"),
    [
        (Paired(10, 10, 0.1, (0.05, 0.15), 0.01, 10, 0, 0, 1, 0.01), "first is higher"),
        (Paired(10, 30, -0.1, (-0.15, -0.05), 0.01, 0, 0, 10, 2, 0.02), "second is higher"),
        (Paired(10, 10, 0.1, (0.05, 0.15), 0.01, 10, 0, 0, 6, 0.06), "no clear difference"),
        (Paired(10, 10, 0.1, (-0.05, 0.15), 0.01, 10, 0, 0, 1, 0.01), "no clear difference"),
        (Paired(10, 10, 0.1, (0.05, 0.15), 0.002, 10, 0, 0, 26, 0.052), "no test: 26 comparisons are too many for 10 classes"),
        (Paired(5, 15, 0.1, (0.05, 0.15), None, 5, 0, 0), "no test: 5 classes, at least 6 are needed"),
        (Paired(1, 3, 0.1, None, None, 1, 0, 0), "no test of one class without the scores of both"),
        (Paired(1, 3, 0.1, (0.05, 0.15), 0.01, 1, 0, 0, 1, 0.01), "first is higher on this class"),
        (Paired(1, 1, 0.1, (0.05, 0.15), 0.01, 1, 0, 0, 30, 0.01), f"first is higher {ONE_RUN}"),
    ],
)  # fmt: skip
def test_verdicts_in_words(paired: Paired, verdict: str) -> None:
    assert paired.verdict == verdict


#: As between methods of the kept results: from class to class, and of a class from seed to seed.
CLASS_SPREAD, SEED_SPREAD = 0.02, 0.01
REPEATS = 300


def equal_rows(rng: np.random.Generator, rows: int, seeds: Sequence[int]) -> list[Cells]:
    """Rows whose differences are 0 on average; of class i the first `seeds[i]` seeds were run."""
    effects = rng.normal(0, CLASS_SPREAD / np.sqrt(2), (rows, len(seeds)))
    tables = []
    for of_row in effects:
        values = {}
        for label, (effect, count) in enumerate(zip(of_row, seeds, strict=True)):
            for seed in range(count):
                values[label, seed] = 0.8 + effect + float(rng.normal(0, SEED_SPREAD))
        tables.append(cells(values, 0.005))
    return tables


def at_most(share: float) -> float:
    """What a share that is `share` on average exceeds once in a thousand simulations."""
    return share + 3.1 * (share * (1 - share) / REPEATS) ** 0.5


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize(
    "seeds",
    [[1] * 10, [3] * 10, [5] * 10, [1] * 5 + [5] * 5, [3] * 3, [3] * 6],
    ids=lambda seeds: f"{seeds}",
)
def test_equal_methods_are_told_apart_no_more_often_than_the_level(
    rows: int, seeds: list[int]
) -> None:
    rng = np.random.default_rng(0)
    wrong, missed = 0, 0
    for _ in range(REPEATS):
        pairs = [compare(*both) for both in combinations(equal_rows(rng, rows, seeds), 2)]
        corrected = correct([pair for pair in pairs if pair is not None])
        wrong += any("higher" in pair.verdict for pair in corrected)
        for pair in corrected[:1]:
            assert pair.interval is not None
            missed += not pair.interval[0] <= 0 <= pair.interval[1]
    assert wrong / REPEATS <= at_most(LEVEL)
    assert missed / REPEATS <= at_most(0.05)


@pytest.mark.parametrize("seeds", [1, 3, 5])
@pytest.mark.parametrize("classes", [3, 10])
def test_the_interval_of_a_mean_covers_it(classes: int, seeds: int) -> None:
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(REPEATS):
        (row,) = equal_rows(rng, 1, [seeds] * classes)
        summary = summarise(row)
        assert summary is not None and summary.interval is not None
        missed += not summary.interval[0] <= 0.8 <= summary.interval[1]
    assert missed / REPEATS <= at_most(0.05)


def test_a_real_difference_is_seen() -> None:
    rng = np.random.default_rng(0)
    better = 0
    for _ in range(100):
        first, second = equal_rows(rng, 2, [3] * 10)
        higher = {cell: (value + 0.03, error) for cell, (value, error) in first.items()}
        pair = compare(higher, second)
        assert pair is not None
        better += correct([pair])[0].verdict == "first is higher"
    assert better > 85


def one_class(
    rng: np.random.Generator, seeds: int, seed_spread: float
) -> tuple[Cells, Cells, dict[tuple[int, int], Spread]]:
    """Two detectors that are equal on average on one class, over the same images.

    Beside them, what DeLong says of each seed.
    """
    is_outlier = np.arange(120) >= 50
    common = rng.normal(size=120)
    first, second, spreads = Cells(), Cells(), {}
    for seed in range(seeds):
        placements = []
        for row in (first, second):
            shift = 1.2 + rng.normal(0, seed_spread)
            scores: NDArray[np.float64] = common + rng.normal(size=120) + shift * is_outlier
            placements.append(place(scores, is_outlier))
            row[0, seed] = placements[-1].auroc, 0.03
        difference = placements[0].minus(placements[1])
        parts = zip(difference.variances, (50, 70), strict=True)
        spreads[0, seed] = add(Spread(variance, count - 1) for variance, count in parts)
    return first, second, spreads


@pytest.mark.parametrize(
    ("seeds", "seed_spread"), [(1, 0.0), (2, 0.3), (3, 0.0), (3, 0.3), (5, 0.3)]
)
def test_equal_methods_are_not_told_apart_on_one_class(seeds: int, seed_spread: float) -> None:
    rng = np.random.default_rng(0)
    wrong, missed = 0, 0
    for _ in range(REPEATS):
        pair = compare(*one_class(rng, seeds, seed_spread))
        assert pair is not None and pair.interval is not None
        wrong += "higher" in correct([pair])[0].verdict
        missed += not pair.interval[0] <= 0 <= pair.interval[1]
    assert wrong / REPEATS <= at_most(LEVEL)
    assert missed / REPEATS <= at_most(0.05)


def test_one_class_without_scores_of_every_shared_seed_has_no_test() -> None:
    first, second, spreads = one_class(np.random.default_rng(0), 3, 0.1)
    del spreads[0, 1]
    for images in (None, {}, spreads):
        pair = compare(first, second, images)
        assert pair is not None and (pair.p, pair.interval) == (None, None)


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
def test_tie_reasons(
    gap: float, data: str, error: float | None, seed_std: float | None, count: int
) -> None:
    assert len(tie_reasons(gap, data, error, seed_std)) == count


def test_critical_difference_of_demsar() -> None:
    """Demsar 2006, section 3.2.4: four classifiers on 14 data sets, CD = 2.569 sqrt(4 5 / (6 14)) =
    1.25.
    """
    ranks = rank({name: {i: 0.1 * k + i for i in range(14)} for k, name in enumerate("abcd")})
    assert ranks is not None
    assert ranks.critical == pytest.approx(1.25, abs=0.005)
    assert ranks.mean == {"d": 1, "c": 2, "b": 3, "a": 4} and ranks.classes == 14


def test_ranks_take_the_classes_that_all_rows_have_and_share_ties() -> None:
    ranks = rank(
        {"a": {0: 0.9, 1: 0.8, 2: 0.5}, "b": {0: 0.9, 1: 0.7}, "c": {0: 0.1, 1: 0.75, 2: 0.9}}
    )
    assert ranks is not None
    assert ranks.mean == {"a": 1.25, "b": 2.25, "c": 2.5} and ranks.classes == 2
    assert ranks.critical is None  # two classes: nothing could be told
    assert (
        rank({"a": {0: 0.9}, "b": {0: 0.9}}) is None
        and rank({"a": {0: 0.9, 1: 0.8}}) is None
        and rank({}) is None
    )


def test_rows_that_differ_in_their_last_bit_share_their_ranks() -> None:
    values = np.random.default_rng(0).random(8)
    rows = [
        {i: float(value * (1 + shift * 2e-16)) for i, value in enumerate(values)}
        for shift in (-2, 0, 1)
    ]
    ranks = rank(
        {
            "a": rows[0],
            "b": rows[1],
            "c": rows[2],
            "lower": {i: value - 1e-6 for i, value in rows[1].items()},
        }
    )
    assert ranks is not None and ranks.mean == {"a": 2, "b": 2, "c": 2, "lower": 4}
    first, third = (
        cells({(i, 0): value for i, value in row.items()}, 0.0) for row in (rows[0], rows[2])
    )
    pair = compare(first, third)
    assert pair is not None and (pair.p, pair.wins, pair.ties, pair.losses) == (1.0, 0, 8, 0)


@pytest.mark.parametrize("classes", [2, 4, 5, 6, 8, 10])
@pytest.mark.parametrize("rows", [2, 4])
def test_ranks_of_equal_methods_differ_no_more_often_than_the_level(
    rows: int, classes: int
) -> None:
    rng = np.random.default_rng(0)
    apart = 0
    for _ in range(REPEATS):
        values = rng.random((rows, classes))
        ranks = rank(
            {str(row): dict(enumerate(of_row.tolist())) for row, of_row in enumerate(values)}
        )
        assert ranks is not None
        apart += (
            ranks.critical is not None
            and max(ranks.mean.values()) - min(ranks.mean.values()) > ranks.critical
        )
    assert apart / REPEATS <= at_most(LEVEL)
