"""The verdicts of docs/results.md follow from kept numbers by the rule of experiments/verdicts.py."""

import pytest

from experiments import verdicts
from experiments.pages import with_tables
from experiments.verdicts import (
    PAGE,
    TABLES,
    Compared,
    Entry,
    compare,
    numbers_text,
    place_of,
    read_entries,
    reproduces,
    verdict,
)
from noveltylab.report.collect import Run
from noveltylab.report.published import read_tables

ENTRY = Entry(name="row", printed=("ocgan/table2_mnist", "OCGAN"), runs=("learn/mnist", "ocgan"))


def compared(
    printed: tuple[float, ...],
    ours: tuple[float, ...],
    error: float = 0.0,
    obstacle: str | None = None,
) -> Compared:
    return Compared(
        classes=("digit 0",),
        printed=printed,
        ours=ours,
        error=error,
        floors=(),
        schedule="full: 25 epochs",
        full=True,
        obstacle=obstacle,
    )


def test_the_page_is_what_the_command_writes() -> None:
    text = PAGE.read_text()
    assert with_tables(text, TABLES) == text


@pytest.mark.parametrize(
    ("printed", "ours", "error", "holds"),
    [
        ([0.924], [0.9227], 0.0, True),
        ([0.975], [0.968], 0.0, False),
        ([0.975], [0.970], 0.0, True),  # 0.005 itself, whatever its last bit
        ([0.657], [0.650], 0.0, False),
        ([0.657], [0.650], 0.008, True),  # within the standard error
        ([0.980, 0.900], [0.961, 0.919], 0.0, True),
        ([0.980, 0.900], [0.955, 0.925], 0.0, False),  # the mean alone is right
        ([0.980, 0.900], [0.955, 0.925], 0.05, False),  # nor does the error excuse a class
    ],
)
def test_a_row_reproduces_by_its_mean_and_its_classes(
    printed: list[float], ours: list[float], error: float, holds: bool
) -> None:
    assert reproduces(printed, ours, error) is holds


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (compared((0.975,), (0.974,)), "**reproduces**"),
        (compared((0.975,), (0.955,)), "below by 0.020"),
        (compared((0.9, 0.8), (0.95, 0.95)), "above by 0.100"),
        (compared((0.9, 0.8), (0.95, 0.75)), "the mean is that printed, not each class"),
        (compared((0.975,), (0.975,), obstacle="P2 here"), "cannot be compared: P2 here"),
    ],
)
def test_a_verdict_follows_from_the_numbers(row: Compared, words: str) -> None:
    assert verdict(row) == words


def test_numbers_are_those_of_the_kept_runs_and_of_the_printed_table() -> None:
    row = compare(ENTRY)
    assert row is not None
    printed = read_tables()["ocgan/table2_mnist"]
    line = next(line for line in printed.rows if line.row == "OCGAN")
    assert row.printed == tuple(line.number(index) for index in range(10))
    assert row.classes == tuple(f"digit {digit}" for digit in range(10))
    assert len(row.ours) == 10 and all(0.8 < auroc < 1 for auroc in row.ours)
    assert 0 < row.error < 0.005
    assert numbers_text(row.ours) == f"{sum(row.ours) / 10:.4f}"


def test_a_schedule_is_full_from_the_papers_epochs_on() -> None:
    shortened = compare(ENTRY.model_copy(update={"epochs": 11}))
    full = compare(ENTRY.model_copy(update={"epochs": 10, "width": {"channels": 64}}))
    assert shortened is not None and full is not None
    assert (shortened.full, shortened.schedule) == (False, "shortened: 10 of 11 epochs")
    assert (full.full, full.schedule) == (True, "full: 10 epochs, half the channels")


def test_another_protocol_is_not_compared() -> None:
    row = compare(ENTRY.model_copy(update={"printed": ("ocgan/table1_mnist", "OCGAN")}))
    assert row is not None
    assert verdict(row) == "cannot be compared: P2 here, P1 there"


def test_a_printed_mean_is_not_compared_with_a_few_classes() -> None:
    entry = ENTRY.model_copy(
        update={
            "printed": ("ocgan/table4_mnist", "Two Discriminators + Classifier"),
            "classes": (0, 3),
        }
    )
    row = compare(entry)
    assert row is not None
    assert verdict(row) == "cannot be compared: 2 classes were run, the printed mean is over all"


def test_runs_whose_weights_lack_a_part_have_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "lacks", "are from before mining")
    row = compare(ENTRY)
    assert row is not None
    assert row.obstacle == "the scored weights of 10 of 10 runs are from before mining"


def test_entries_name_rows_that_are_printed() -> None:
    tables = read_tables()
    for entry in read_entries():
        table, line = entry.printed
        assert line in [printed.row for printed in tables[table].rows], entry.name


def test_an_entry_without_runs_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ENTRY.model_copy(update={"runs": ("learn/nowhere", "ocgan")})
    monkeypatch.setattr(verdicts, "read_entries", lambda: [absent])
    assert list(verdicts.absent_lines()) == ["Not run yet: row."]
    assert len(list(verdicts.verdict_table())) == 2


def test_a_row_on_other_samples_has_the_runs_of_its_counterpart() -> None:
    """MemAE's Ped2 is run on stacks, and its printed number is of clips scaled by themselves."""
    entries = [entry for entry in read_entries() if entry.printed[1] == "MemAE"]
    entry = next(entry for entry in entries if entry.score == "mse")
    assert place_of(entry) == ("ucsd_clips", "whole_frames")
    assert place_of(ENTRY) == ("mnist", "p2")
    row = compare(entry)
    assert row is not None
    (run,) = verdicts.runs_of(entry)
    metrics = run.result.apart["clips"]["mse"]
    assert metrics is not None and row.ours == (metrics.auroc,)
    assert (row.printed, row.floors, row.obstacle) == ((0.941,), (), None)
    whole = compare(entry.model_copy(update={"apart": None}))
    own = run.result.scores["mse"]
    assert whole is not None and own is not None and whole.ours == (own.auroc,)
