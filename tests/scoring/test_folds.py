"""Folds: the rate that they promise against the realised one, and a run that has its threshold from
few images.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from noveltylab.errors import UserError
from noveltylab.methods.base import Method
from noveltylab.methods.kde import KDE
from noveltylab.methods.knn import KNN
from noveltylab.methods.pca import PCA
from noveltylab.predict import __main__ as predict
from noveltylab.predict.load import load_detector
from noveltylab.results.record import read_result
from noveltylab.results.scores import read_scores
from noveltylab.scoring.conformal import Calibration
from noveltylab.scoring.folds import Folds, fold_of, in_folds
from tests.formats import write_images
from tests.predict.test_predict import rows_of

SHAPE = (1, 2, 3)


def draw(count: int, generator: torch.Generator) -> Tensor:
    """Inliers of a skewed law, so that no method has an easy job."""
    return torch.randn(count, *SHAPE, generator=generator).exp()


def scores_of(method: Folds, train: Tensor) -> np.ndarray[Any, Any]:
    """The held-out score of each training image that lies in a fold, by its definition."""
    fold = fold_of(len(train), len(method.members))
    (name,) = method.score_names
    inside = np.flatnonzero(fold >= 0)
    rows = [
        method.member(int(fold[row])).novelty_score(train[row : row + 1])[name] for row in inside
    ]
    return torch.cat(rows).numpy()


METHODS: list[tuple[type[Method], dict[str, Any]]] = [
    (KNN, {"k": 1}),
    (PCA, {"components": 2}),
    (KDE, {"bandwidth": 0.5}),
]


@pytest.mark.parametrize(("count", "folds", "fpr"), [(19, 19, 0.05), (19, 5, 0.125), (9, 9, 0.2)])
@pytest.mark.parametrize(("method_class", "arguments"), METHODS)
def test_of_fresh_inliers_no_more_are_called_novel_than_promised(
    method_class: type[Method], arguments: dict[str, Any], count: int, folds: int, fpr: float
) -> None:
    """One fresh inlier for each draw of training images, so that the false positives are binomial."""
    generator, trials = torch.Generator().manual_seed(0), 300
    wrong = 0
    for _ in range(trials):
        train, fresh = draw(count, generator), draw(1, generator)
        method = in_folds(method_class, SHAPE, arguments, folds, count)
        method.prepare(train)
        calibration = Calibration(scores_of(method, train), folds)
        (score,) = method.novelty_score(fresh).values()
        wrong += bool(calibration.p_values(score.numpy())[0] <= fpr)
    assert wrong <= binom.ppf(0.999, trials, calibration.bound(fpr))
    # stable methods have about the level itself
    assert binom.ppf(0.001, trials, calibration.expected(fpr) / 2) <= wrong
    assert wrong <= binom.ppf(0.999, trials, calibration.expected(fpr))


def test_the_bound_is_the_theorem_s() -> None:
    """Worked by hand from theorems 3 and 4 of Barber et al.; leave-one-out has the level itself."""
    scores = np.arange(60.0)
    assert Calibration(scores, 60).bound(0.05) == Calibration(scores, 60).expected(0.05) == 3 / 61
    assert Calibration(scores, 5).bound(0.05) == pytest.approx(3 / 61 + (58 / 61) * 11 / 72)
    assert Calibration(scores[:60], 2).bound(0.02) == pytest.approx(2 / 61 + 1 / 31)
    assert Calibration(scores, 5).upper(0.05) is None and Calibration(scores).bound(0.05) == 3 / 61


@pytest.mark.parametrize(("count", "folds"), [(6, 6), (20, 5), (23, 5), (7, 3)])
def test_every_image_is_scored_by_the_copy_that_has_not_seen_it(count: int, folds: int) -> None:
    train = draw(count, torch.Generator().manual_seed(1))
    method = in_folds(KNN, SHAPE, {"k": 1}, folds, count)
    method.prepare(train)
    fold = fold_of(count, folds)
    sizes = np.bincount(fold[fold >= 0])
    assert set(sizes) == {count // folds} and (fold < 0).sum() == count % folds
    for number in range(folds):
        seen = {tuple(row) for row in method.member(number).train_set.tolist()}  # type: ignore[union-attr]  # of KNN
        flat = [tuple(row) for row in train.flatten(1).tolist()]
        assert seen == {row for row, row_fold in zip(flat, fold, strict=True) if row_fold != number}
    assert (scores_of(method, train) > 0).all()
    lowest = [method.member(number).novelty_score(train)["distance"] for number in range(folds)]
    assert torch.equal(method.novelty_score(train)["distance"], torch.stack(lowest).amin(0))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 good images, and a few broken ones."""
    monkeypatch.chdir(tmp_path)
    return write_images(
        tmp_path / "parts", {"train/good": 60, "test/good": 20, "test/odd": 5}, channels=3
    )


def run_with(
    go: Callable[..., dict[str, Any]], images: Path, method: str, *options: str
) -> tuple[Path, dict[str, Any]]:
    result = go(
        f"method={method}",
        "data=images",
        f"data.root={images}",
        "trainer.accelerator=cpu",
        *options,
    )
    (path,) = images.parent.joinpath("outputs").rglob(f"{method}/**/result.json")
    return path.parent, result


@pytest.mark.parametrize(
    ("method", "folds", "held_out"), [("pca", 100, 60), ("knn", 60, 60), ("iforest", 7, 56)]
)
def test_sixty_images_give_a_threshold_that_predict_uses(
    run_here: Callable[..., dict[str, Any]], small: Path, method: str, folds: int, held_out: int
) -> None:
    """The same scores in the run, in predict and by a repeated run; the broken parts are novel."""
    options = [f"protocol.folds={folds}", *(["method.trees=10"] if method == "iforest" else [])]
    folder, result = run_with(run_here, small, method, *options)
    calibration = read_scores(folder / "calibration.csv")
    assert (
        len(calibration) == result["thresholds"]["held_out"] == held_out and result["n"]["val"] == 0
    )
    assert result["folds"] == result["thresholds"]["folds"] == min(folds, 60)
    assert predict.main([f"run={folder}", f"input={small / 'test'}"]) == 0
    rows, run = rows_of(Path("scores.csv")), read_scores(folder / "scores.csv")
    threshold = next(row["threshold"] for row in result["thresholds"]["at"] if row["fpr"] == 0.05)
    for name, score in zip(run.ids, run.columns[result["primary"]], strict=True):
        row = rows[str(small / name)]
        assert float(row["score"]) == pytest.approx(score, rel=1e-5)
        assert row["decision"] == ("novel" if float(row["score"]) > threshold else "inlier")
    if method != "iforest":
        assert {row["decision"] for name, row in rows.items() if "odd" in name} == {"novel"}
    before = {
        name: (folder / name).read_bytes()
        for name in ("scores.csv", "calibration.csv", "split.npz")
    }
    (folder / "result.json").unlink()  # as an interrupted run
    run_with(run_here, small, method, *options)
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_the_number_of_folds_in_a_foreign_folder_is_checked(
    run_here: Callable[..., dict[str, Any]], small: Path
) -> None:
    folder, _ = run_with(run_here, small, "pca", "protocol.folds=4")
    assert load_detector(folder).folds == 4
    content = json.loads((folder / "result.json").read_text())
    for folds in (10**9, -1, "4", 3):
        (folder / "result.json").write_text(json.dumps({**content, "folds": folds}))
        with pytest.raises(UserError):
            load_detector(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("method=ocgan", "protocol.folds=5"), "protocol.folds=5: this method trains in epochs"),
        (("method=pca", "protocol.folds=1"), "protocol.folds=1: 0 for none, else 2 to 200"),
        (("method=pca", "protocol.folds=201"), "protocol.folds=201: 0 for none, else 2 to 200"),
        (
            ("method=pca", "protocol.folds=60", "data.size=512"),
            "take too much memory; take protocol.folds=11 or fewer",
        ),
    ],
)
def test_what_cannot_be_folded_is_refused(
    run_here: Callable[..., dict[str, Any]], small: Path, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_here("data=images", f"data.root={small}", *options)
    assert not list(small.parent.rglob("config.yaml"))


def test_a_run_with_too_few_says_what_helps(
    run_here: Callable[..., dict[str, Any]], small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """35 more images: a fifth of 95 is 19; each of the remedies is tried."""
    _, result = run_with(run_here, small, "pca")
    screen = capsys.readouterr().out
    assert "5% needs 19 held-out inliers, this run has 12: 35 more training images or" in screen
    assert "protocol.val_fraction=0.32 or protocol.folds=60; fpr=0.077 has a threshold" in screen
    assert [row.get("more_images") for row in result["thresholds"]["at"]] == [435, 35, None]
    for remedy in ("protocol.val_fraction=0.32", "protocol.folds=60"):
        run_here(
            "method=pca", "data=images", f"data.root={small}", remedy, "output=other", "force=true"
        )
        (path,) = Path("other").rglob("seed0/result.json")
        rows = {
            row["fpr"]: row["threshold"] for row in read_result(path.parent)["thresholds"]["at"]
        }
        assert rows[0.05] is not None
