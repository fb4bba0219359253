"""`report --check`: every number that the files of a run determine, edited by hand."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from noveltylab.report.__main__ import main
from noveltylab.report.check import recompute
from noveltylab.report.collect import collect
from noveltylab.results.files import sha256_file
from noveltylab.scoring.metrics import evaluate
from tests.conftest import TINY, run_in
from tests.report.conftest import WriteRun

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with every kind of number: thresholds, floors and columns by labels of outliers."""
    folder = tmp_path_factory.mktemp("checked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOVELTYLAB_CACHE", str(folder / "cache"))
        run_in(folder)("data=digits", "select=oracle", "protocol.val_fraction=0.3", *TINY)
    return folder / "outputs"


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of its folder, to be edited."""
    shutil.copytree(finished_run, tmp_path / "outputs")
    return next((tmp_path / "outputs").rglob("result.json")).parent


def damage(folder: Path) -> str:
    """The reason for which --check leaves the run out, "" if it does not."""
    runs = collect(folder, check=True)
    assert len(runs.damaged) == 1 - runs.checked and not runs.unchecked
    return runs.damaged[0][1] if runs.damaged else ""


def edit(folder: Path, change: Edit) -> None:
    path = folder / "result.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))


def put(*keys: Any) -> Edit:
    """Sets the value at a path of keys: put("scores", "mse", "auroc", 0.999)."""

    def change(result: dict[str, Any]) -> None:
        *way, last, value = keys
        for key in way:
            result = result[key]
        assert result[last] != value
        result[last] = value

    return change


def test_a_run_as_it_was_made_is_sound(run: Path) -> None:
    assert damage(run) == ""


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (
            put("scores", "mse", "auroc", 0.999),
            "scores.mse.auroc is 0.999, but scores.csv gives 0.",
        ),
        (put("scores", "mse", "average_precision", 0.999), "scores.mse.average_precision"),
        (put("scores", "dv_x", "eer", 0.001), "scores.dv_x.eer"),
        (put("scores", "dv_recon", "fpr95", 0.0), "scores.dv_recon.fpr95"),
        (put("scores", "mse", "auroc_ci", [0.0, 0.01]), "scores.mse.auroc_ci"),
        (
            put("scores", "mse", "auroc_ci", [0.0, 1.0]),
            "scores.mse.auroc_ci, low is 0, but scores.csv gives 0.",
        ),
        (put("floor", "pca", "auroc", 0.5), "floor.pca.auroc is 0.5, but floors.csv"),
        (put("floor", "knn", "eer", 0.5), "floor.knn.eer"),
        (put("labelled", "oracle", "mse", "auroc", 0.999), "labelled.oracle.mse.auroc"),
        (put("thresholds", "at", 2, "threshold", 9.0), "thresholds.at, fpr 0.1: threshold is 9"),
        (put("thresholds", "at", 1, "expected", 0.001), "thresholds.at, fpr 0.05: expected"),
        (put("thresholds", "held_out", 400), "thresholds.held_out is 400"),
        (put("thresholds", "exact", True), "thresholds.exact"),
        (put("n", "train", 5000), "n.train is 5000"),
        (put("n", "val", 5000), "n.val is 5000"),
        (put("n", "test_outliers", 5000), "n.test_outliers is 5000"),
        (put("split_sha256", "0" * 64), "split_sha256"),
        (put("primary", "dv_x"), "primary"),
        (
            put("config", "trainer", "max_epochs", 400),
            "config.trainer.max_epochs is 400, but config.yaml has 4",
        ),
        (put("config", "data", "limit_train", 10), "config.data.limit_train"),
        (put("weights", "sha256", "0" * 64), "checkpoints/val_loss.pt: is not the file"),
        (lambda result: result["scores"].pop("dv_recon"), "'dv_recon' stands in scores.csv alone"),
        (lambda result: result["files"].pop("scores.csv"), "files does not name scores.csv"),
        (lambda result: result["files"].pop("calibration.csv"), "names no calibration.csv"),
        (lambda result: result["files"].pop("scores_oracle.csv"), "names no scores_oracle.csv"),
    ],
)
def test_a_number_edited_by_hand_is_named(run: Path, change: Edit, number: str) -> None:
    edit(run, change)
    assert number in damage(run)


def rewrite(folder: Path, name: str, change: Callable[[list[dict[str, str]]], None]) -> None:
    """Edits the lines of a CSV file, and the checksum that the result holds of it."""
    with open(folder / name, newline="") as file:
        lines = list(csv.DictReader(file))
    change(lines)
    with open(folder / name, "w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    edit(folder, put("files", name, sha256_file(folder / name)))


@pytest.mark.parametrize(
    "name", ["scores.csv", "scores_oracle.csv", "calibration.csv", "floors.csv"]
)
def test_scores_edited_together_with_their_checksum_are_named(run: Path, name: str) -> None:
    column = "pca" if name == "floors.csv" else "mse"

    def lift(lines: list[dict[str, str]]) -> None:
        for line in lines[:3]:
            line[column] = "1e3"

    rewrite(run, name, lift)
    assert f"but {name} gives" in damage(run)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("id", "another", "does not hold the test samples"),
        ("label", "77", "other labels than split.npz"),
    ],
)
def test_scores_of_other_samples_are_named(run: Path, key: str, value: str, message: str) -> None:
    rewrite(run, "scores.csv", lambda lines: lines[0].update({key: value}))
    assert message in damage(run)


def test_flags_edited_in_scores_are_named(run: Path) -> None:
    """An inlier called outlier, and another the other way round, so that the counts stay."""

    def swap(lines: list[dict[str, str]]) -> None:
        first = next(line for line in lines if line["is_outlier"] == "0")
        last = next(line for line in lines if line["is_outlier"] == "1")
        first["is_outlier"], last["is_outlier"] = "1", "0"

    rewrite(run, "scores.csv", swap)
    assert "calls other samples outliers than split.npz" in damage(run)


def test_deleted_weights_are_no_damage(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    assert damage(run) == ""


def test_thresholds_of_earlier_versions_are_the_held_out_scores_themselves(run: Path) -> None:
    with open(run / "calibration.csv", newline="") as file:
        scores = sorted(float(line["mse"]) for line in csv.DictReader(file))
    rank = int(0.1 * (len(scores) + 1))
    edit(run, lambda result: result["thresholds"]["at"][2].update(threshold=scores[-rank]))
    assert damage(run) == ""


def test_results_without_scores_are_counted_as_not_checkable(
    outputs: Path, write_run: WriteRun, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        (write_run(seed=seed, auroc=0.9) / "config.yaml").unlink()
    main([str(outputs), "--check"])
    output = " ".join(capsys.readouterr().out.split())
    assert "checked 1" in output and "cannot be checked 3" in output
    text = (outputs / "report" / "report.md").read_text()
    assert "3 runs cannot be checked" in text and "- 3 runs: only its result.json was kept" in text


def test_a_run_that_lost_its_scores_is_damaged(run: Path) -> None:
    (run / "scores.csv").unlink()
    assert "scores.csv: cannot be read" in damage(run)


def test_a_damaged_run_ends_the_check_with_1(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run, put("scores", "mse", "auroc", 0.999))
    with pytest.raises(SystemExit) as stop:
        main([str(run.parents[4]), "--check"])
    assert stop.value.code == 1
    assert "scores.mse.auroc is 0.999" in " ".join(capsys.readouterr().out.split())
    main([str(run.parents[4])])  # without --check it is believed


@pytest.mark.parametrize("count", [2, 5, 40, 300])
def test_the_second_computation_agrees_with_the_first_and_with_sklearn(count: int) -> None:
    rng = np.random.default_rng(count)
    flags = np.arange(count) % 3 == 0
    for scores in (
        rng.normal(size=count) + flags,
        rng.integers(0, 3, count).astype(float),
        np.zeros(count),
    ):
        again = recompute(scores, flags)
        first = evaluate(scores, flags)
        assert again == pytest.approx({name: first[name] for name in again}, abs=1e-12)
        assert again["auroc"] == pytest.approx(roc_auc_score(flags, scores), abs=1e-12)
        assert again["average_precision"] == pytest.approx(
            average_precision_score(flags, scores), abs=1e-12
        )
