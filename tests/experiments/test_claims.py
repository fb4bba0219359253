"""docs/notes/claims.md says what its command prints."""

import pytest
from scipy.stats import rankdata

from experiments.claims import (
    METHOD_PAGES,
    METHOD_TABLES,
    PAGE,
    SCORED,
    TABLE,
    TABLES,
    bounds_compared,
    context_beside_score,
    correlations,
    diagnosed,
    diagnosed_runs,
    distance,
    entropy_range,
    floors,
    rank_correlation,
    verdict,
)
from experiments.keep import archive
from experiments.pages import with_tables
from noveltylab.report.collect import collect
from noveltylab.report.published import read_tables
from noveltylab.results.phases import lacking, seen_by

RESULTS = PAGE.parents[1] / "results.md"


def test_the_page_has_the_correlations_and_the_floors_that_are_printed() -> None:
    page, level = PAGE.read_text(), floors()
    rank = correlations(level)
    ours = rank["Ours"]
    assert (
        f"Spearman {ours[0]:.2f} with PCA's residual and {ours[1]:.2f} with nearest neighbours"
        in page
    )
    assert f"neighbours have {rank['Neighbour'][1]:.2f} with ours" in page
    assert f"OCGAN {rank['OCGAN'][1]:.2f}, RotNet {rank['RotNet'][1]:.2f}" in page
    means = [sum(floor.values()) / len(floor) for floor in level.values()]
    assert f"mean AUROC {means[0]:.3f} and {means[1]:.3f}" in page


def test_the_page_has_what_holds_of_ca_entropy() -> None:
    page = " ".join(PAGE.read_text().split())
    (low, high), (lowest, highest) = entropy_range(100), entropy_range(16)
    assert f"the entropy of 100 values (here) lies between {low:.3f} and {high:.3f}" in page
    assert f"of 16 values (digit 2) between {lowest:.3f} and {highest:.3f}" in page
    above, context, score = context_beside_score()
    assert (
        f"above the paper's score in {above} of ten classes, with a mean of {context:.3f} against {score:.3f}"
        in page
    )


def test_a_correlation_is_that_of_the_ranks() -> None:
    table, level = read_tables()[TABLE], floors()
    line = next(line for line in table.rows if line.row == "DualGAN")
    printed = rankdata([line.number(at) or 0 for at in range(10)])
    pca = rankdata([level["pca"][inlier] for inlier in range(10)])
    centred = [ranks - ranks.mean() for ranks in (printed, pca)]
    expected = (centred[0] @ centred[1]) / (
        centred[0] @ centred[0] * (centred[1] @ centred[1])
    ) ** 0.5
    assert correlations(level)["DualGAN"][0] == pytest.approx(expected)


def test_the_tables_on_the_page_are_those_that_the_command_makes() -> None:
    page = PAGE.read_text()
    for name in TABLES:
        assert f"<!-- {name} -->\n| " in page
    assert with_tables(page, TABLES) == page
    assert with_tables(page.replace("| mean |", "| other |"), TABLES) == page


@pytest.mark.parametrize("method", METHOD_TABLES)
def test_the_tables_on_the_page_of_a_method_are_those_of_the_kept_runs(method: str) -> None:
    page = (METHOD_PAGES / f"{method}.md").read_text()
    for name in METHOD_TABLES[method]:
        assert f"<!-- {name} -->\n| " in page
    assert with_tables(page, METHOD_TABLES[method]) == page


def test_a_diagnosis_stands_beside_the_runs_own_number() -> None:
    runs = diagnosed_runs("cifar10")["nda"]
    columns = diagnosed(runs)
    assert columns.keys() == SCORED.keys()
    assert [*columns["evaluation"]] == list(range(10))
    first = runs[0].result
    assert columns["evaluation"][first.inlier] == first.scores["mse"].auroc
    assert (
        columns["apart"][first.inlier] == first.diagnosis["batch_statistics"]["apart"]["mse"].auroc
    )


def test_distance_and_rank_correlation_are_over_the_classes_that_were_run() -> None:
    printed = {0: 0.9, 1: 0.8, 2: 0.7}
    assert distance(printed, {0: 0.8, 2: 0.9}) == pytest.approx(0.15)
    assert rank_correlation(printed, {0: 0.3, 1: 0.2, 2: 0.1}) == pytest.approx(1)
    assert rank_correlation(printed, {0: 0.1, 1: 0.2}) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (0.019, "no difference shown"),
        (-0.019, "no difference shown"),
        (0.021, "higher"),
        (-0.021, "lower"),
    ],
)
def test_a_difference_is_said_from_twice_its_error_on(gap: float, words: str) -> None:
    assert verdict(gap, 0.01) == words


def test_ocgans_fashion_mnist_is_that_of_the_whole_method() -> None:
    runs = collect(archive("learn/fmnist") / "p1" / "ocgan").runs
    assert len(runs) == 10
    for run in runs:
        assert not lacking(seen_by(run.result.selected.model_dump(), run.result.config))


def test_the_page_says_how_the_bounds_compare() -> None:
    page = " ".join(PAGE.read_text().split())
    assert bounds_compared() in page
