"""What is compared and ranked with what, and a single class by the scores files of both runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noveltylab.report.collect import collect
from noveltylab.report.compare import Paired, class_means, compare_all, ranked
from noveltylab.report.grouping import group
from noveltylab.report.rows import Row
from noveltylab.results.files import sha256_file
from noveltylab.results.scores import Scores, read_scores, write_scores
from noveltylab.scoring.metrics import evaluate
from tests.report.conftest import WriteRun, edit, flat_metrics


def grouped(outputs: Path) -> list[Row]:
    (rows,) = group(collect(outputs).runs).values()
    return rows


def compared(outputs: Path) -> dict[tuple[str, str], Paired]:
    return {(first, second): paired for first, second, paired in compare_all(grouped(outputs))}


def rescore(folder: Path, gap: float, seed: int = 0, ids: str = "test") -> None:
    """Gives a run scores of 40 inliers and 60 outliers, noise of its own on what all runs share."""
    is_outlier = np.arange(100) >= 40
    shared, noise = (
        np.random.default_rng(7).normal(size=100),
        np.random.default_rng(seed).normal(size=100),
    )
    column = shared + 0.3 * noise + gap * is_outlier
    names = [f"{ids}/{i}" for i in range(100)]
    write_scores(
        folder / "scores.csv", Scores(names, is_outlier.astype(int), is_outlier, {"mse": column})
    )
    edit(
        folder,
        scores={"mse": evaluate(column, is_outlier)},
        files={"scores.csv": sha256_file(folder / "scores.csv")},
    )


def test_one_class_is_compared_by_its_scores_files(outputs: Path, write_run: WriteRun) -> None:
    rescore(write_run("ocgan", auroc=0.9), 2.0, 1)
    rescore(write_run("oled", auroc=0.9), 1.0, 2)
    paired = compared(outputs)["ocgan", "oled"]
    assert paired.verdict == "first is higher on these images; one seed says nothing of others"
    assert paired.interval is not None and 0 < paired.interval[0] < paired.mean < paired.interval[1]
    rescore(write_run("oled", seed=1, auroc=0.9), 1.0, 3)
    rescore(write_run("ocgan", seed=1, auroc=0.9), 2.0, 4)
    assert compared(outputs)["ocgan", "oled"].verdict == "first is higher on this class"


def test_one_class_is_compared_with_a_floor_whose_scores_were_kept(
    outputs: Path, write_run: WriteRun
) -> None:
    folder = write_run("ocgan", auroc=0.9)
    rescore(folder, 2.0)
    assert (
        compared(outputs)["ocgan", "floor: pca"].verdict
        == "no test of one class without the scores of both"
    )
    scores = read_scores(folder / "scores.csv")
    floor = np.random.default_rng(5).normal(size=100)
    write_scores(folder / "floors.csv", replace(scores, columns={"pca": floor}))
    files = {name: sha256_file(folder / name) for name in ("scores.csv", "floors.csv")}
    edit(folder, files=files, floor={"pca": evaluate(floor, scores.is_outlier)})
    assert compared(outputs)["ocgan", "floor: pca"].verdict.startswith(
        "first is higher on these images"
    )


def test_the_same_scores_are_no_difference(outputs: Path, write_run: WriteRun) -> None:
    rescore(write_run("ocgan", auroc=0.9), 1.0)
    rescore(write_run("oled", auroc=0.9), 1.0)
    paired = compared(outputs)["ocgan", "oled"]
    assert (paired.mean, paired.p, paired.verdict) == (0.0, 1.0, "no clear difference")


@pytest.mark.parametrize("damage", ["edited", "missing", "other images", "not recorded"])
def test_one_class_without_both_scores_files_has_no_test(
    outputs: Path, write_run: WriteRun, damage: str
) -> None:
    rescore(write_run("ocgan", auroc=0.9), 2.0, 1)
    folder = write_run("oled", auroc=0.9)
    rescore(folder, 1.0, 2, ids="other" if damage == "other images" else "test")
    if damage == "edited":
        path = folder / "scores.csv"
        path.write_text(path.read_text().replace("test/0,0", "test/0,1"))
    if damage == "missing":
        (folder / "scores.csv").unlink()
    if damage == "not recorded":
        edit(folder, files={})
    paired = compared(outputs)["ocgan", "oled"]
    assert paired.verdict == "no test of one class without the scores of both"


def test_a_floor_is_not_compared_or_ranked_with_its_own_method(
    outputs: Path, write_run: WriteRun
) -> None:
    for label in range(7):
        write_run("pca", inlier=label, auroc=0.8 + 0.01 * label, floor=0.8 + 0.01 * label)
        write_run("oled", inlier=label, auroc=0.9 + 0.001 * label, floor=0.8 + 0.01 * label)
    assert set(compared(outputs)) == {
        ("oled", "pca"),
        ("oled", "floor: knn"),
        ("pca", "floor: knn"),
    }
    assert set(ranked(grouped(outputs))) == {"oled", "pca", "floor: knn"}
    write_run("oled", inlier=8, auroc=0.9)
    assert ("oled", "floor: pca") in compared(outputs)  # the row of pca lacks that class
    assert "floor: pca" not in ranked(grouped(outputs))


def test_all_comparisons_of_a_table_are_corrected_together(
    outputs: Path, write_run: WriteRun
) -> None:
    for label in range(10):
        for index, method in enumerate(("ae", "ocgan", "oled", "vae")):
            write_run(method, inlier=label, auroc=0.9 - 0.01 * index - 0.001 * label * index)
    pairs = compared(outputs)
    assert len(pairs) == 6 + 8
    assert pairs["ae", "ocgan"].p == pytest.approx(2 / 2**10)
    assert pairs["ae", "ocgan"].holm == pytest.approx(14 * 2 / 2**10)
    assert pairs["ae", "ocgan"].verdict == "first is higher"


def test_a_bootstrap_interval_of_an_older_result_gets_a_width(
    outputs: Path, write_run: WriteRun
) -> None:
    for method, auroc in (("ocgan", 1.0), ("oled", 0.9999)):
        metrics = {
            "mse": {
                "auroc": auroc,
                "auroc_ci": [auroc, auroc],
                "average_precision": 1.0,
                "eer": 0.0,
                "fpr95": 0.0,
            }
        }
        folder = write_run(method, auroc=auroc)
        counts = {"train": 10, "val": 10, "test_inliers": 35, "test_outliers": 35}
        edit(folder, scores=metrics, n=counts, auroc_ci_method=None)
    paired = compared(outputs)["ocgan", "oled"]
    assert (paired.wins, paired.ties, paired.losses) == (0, 1, 0)
    (perfect,) = [row.runs[0] for row in grouped(outputs) if row.method == "ocgan"]
    interval = perfect.interval(perfect.result.scores["mse"])
    assert 0.93 < interval[0] < 0.96 and interval[1] == 1.0


def test_a_row_is_compared_with_every_floor_of_what_its_method_sees(
    outputs: Path, write_run: WriteRun
) -> None:
    """A row above the floors of raw pixels and below |x|^2 of what it sees.

    Its own method's floor is left out.
    """

    def with_seen(result: dict[str, Any]) -> None:
        values = {"pca_seen": 0.55, "knn_seen": 0.6, "norm_seen": 0.9}
        result["floor"] |= {name: flat_metrics(value) for name, value in values.items()}

    for label in range(8):
        shift = 0.001 * label
        write_run("ocgan", inlier=label, auroc=0.8 + shift, floor=0.5, change=with_seen)
        write_run("pca", inlier=label, auroc=0.55 + shift, floor=0.5, change=with_seen)
        write_run("oled", inlier=label, auroc=0.7 + shift, floor=0.5)
    pairs = compared(outputs)
    assert pairs["ocgan", "floor: norm_seen"].mean == pytest.approx(-0.0965)
    assert pairs["ocgan", "floor: pca_seen"].mean == pytest.approx(0.2535)
    assert ("pca", "floor: pca_seen") not in pairs and ("pca", "floor: knn_seen") in pairs
    assert not any(first == "oled" and "seen" in second for first, second in pairs)
    assert not any("seen" in name for name in ranked(grouped(outputs)))
    assert class_means(grouped(outputs))["floor: norm_seen of ocgan"] == dict.fromkeys(
        range(8), 0.9
    )
