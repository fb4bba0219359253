"""What docs/results.md says of the length of a training follows from kept curves by a rule."""

from pathlib import Path

import pytest

from experiments import curves
from experiments.curves import PAGE, TABLES, Curve, draw, read_curve, read_curves, sentences
from experiments.keep import archive
from experiments.pages import with_tables
from noveltylab.report.collect import collect


def curve(*aurocs: float, chosen: int = 1) -> Curve:
    losses = tuple(1.0 / epoch for epoch in range(1, len(aurocs) + 1))
    return Curve("learn/mnist", "ocgan", "8", aurocs, losses, chosen)


def test_the_page_is_what_the_command_writes() -> None:
    text = PAGE.read_text()
    assert with_tables(text, TABLES) == text


@pytest.mark.parametrize(
    ("aurocs", "effect"),
    [
        ((0.70, 0.80, 0.80, 0.80, 0.80, 0.82), "helps"),
        ((0.70, 0.80, 0.95, 0.80, 0.80, 0.78), "harms"),
        ((0.70, 0.80, 0.95, 0.99, 0.80, 0.805), "no difference"),
    ],
)
def test_training_is_judged_by_its_last_two_thirds(aurocs: tuple[float, ...], effect: str) -> None:
    assert curve(*aurocs).third == 2
    assert curve(*aurocs).effect == effect


def test_the_chosen_epoch_is_compared_with_the_best() -> None:
    chosen_late = curve(0.7, 0.9, 0.8, chosen=3)
    assert chosen_late.best == 2
    assert chosen_late.cost == pytest.approx(0.1)
    assert curve(0.7, 0.9, 0.8, chosen=2).cost == 0


def test_a_kept_curve_ends_where_its_run_says() -> None:
    """The scored epoch's AUROC in the curve is the AUROC of the run's result."""
    runs = [
        run
        for run in collect(archive("learn/mnist")).runs
        if run.result.method == "ocgan" and run.result.inlier == 8
    ]
    kept = read_curve(runs[0], "learn/mnist")
    assert kept is not None
    result = runs[0].result
    assert kept.epochs == result.config["trainer"]["max_epochs"]
    assert kept.at(kept.chosen) == pytest.approx(result.scores["mse"].auroc, abs=1e-4)
    assert kept.losses[kept.chosen - 1] == pytest.approx(result.selected.value)


def test_a_run_that_logged_none_has_no_curve() -> None:
    runs = collect(archive("learn/mnist")).runs
    without = next(run for run in runs if run.result.select == "val_loss")
    assert read_curve(without, "learn/mnist") is None
    classical = collect(archive("classical")).runs[0]
    assert read_curve(classical, "classical") is None


def test_the_sentence_counts_the_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {
        "ocgan": [curve(0.7, 0.8, 0.9, chosen=3), curve(0.9, 0.9, 0.7, chosen=3)],
        "nda": [],
    }
    monkeypatch.setattr(curves, "read_curves", lambda: kept)
    assert list(sentences()) == [
        "- **OCGAN**, 3 epochs: more training helps on 1, harms on 1 and changes nothing on 0 of 2 "
        "digits; the inlier-only rule stops within 0.01 of the best epoch on 1 of 2, at worst 0.200 "
        "below it.",
        "- **NDA**: no curve is kept.",
    ]


def test_curves_are_drawn(tmp_path: Path) -> None:
    draw(tmp_path / "epochs.png")
    assert (tmp_path / "epochs.png").read_bytes().startswith(b"\x89PNG")
    assert all(read_curves().values())
