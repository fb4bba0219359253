"""claims.md says what its command prints."""

import pytest
from scipy.stats import rankdata

from experiments.claims import KEPT, TABLE, context_beside_score, correlations, entropy_range, floors
from noveltylab.report.published import read_tables


def test_the_page_has_the_correlations_and_the_floors_that_are_printed() -> None:
    page, level = (KEPT.parents[1] / "claims.md").read_text(), floors()
    rank = correlations(level)
    ours = rank["Ours"]
    assert f"Spearman {ours[0]:.2f} with PCA's residual and {ours[1]:.2f} with nearest neighbours" in page
    assert f"neighbours have {rank['Neighbour'][1]:.2f} with ours" in page
    assert f"OCGAN {rank['OCGAN'][1]:.2f}, RotNet {rank['RotNet'][1]:.2f}" in page
    means = [sum(floor.values()) / len(floor) for floor in level.values()]
    assert f"mean AUROC {means[0]:.3f} and {means[1]:.3f}" in page


def test_the_page_has_what_holds_of_ca_entropy() -> None:
    page = " ".join((KEPT.parents[1] / "claims.md").read_text().split())
    (low, high), (lowest, highest) = entropy_range(100), entropy_range(16)
    assert f"the entropy of 100 values (here) lies between {low:.3f} and {high:.3f}" in page
    assert f"of 16 values (digit 2) between {lowest:.3f} and {highest:.3f}" in page
    above, context, score = context_beside_score()
    assert (
        f"above the paper's score in {above} of ten classes, with a mean of {context:.3f} against {score:.3f}" in page
    )


def test_a_correlation_is_that_of_the_ranks() -> None:
    table, level = read_tables()[TABLE], floors()
    line = next(line for line in table.rows if line.row == "DualGAN")
    printed = rankdata([line.number(at) or 0 for at in range(10)])
    pca = rankdata([level["pca"][inlier] for inlier in range(10)])
    centred = [ranks - ranks.mean() for ranks in (printed, pca)]
    expected = (centred[0] @ centred[1]) / (centred[0] @ centred[0] * (centred[1] @ centred[1])) ** 0.5
    assert correlations(level)["DualGAN"][0] == pytest.approx(expected)
