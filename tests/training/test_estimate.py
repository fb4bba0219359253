"""How long a run will take: the arithmetic by a clock of our own, and that measuring changes no
number.
"""

import logging
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from noveltylab.command.durations import exactly, in_words
from noveltylab.methods.anogan import TIMED_STEPS
from noveltylab.methods.base import Method
from noveltylab.training import estimate
from noveltylab.training.estimate import Cost, Estimate, measure_cost, random_state_kept
from tests.conftest import TINY
from tests.methods.conftest import blobs, make

Run = Callable[..., dict[str, Any]]
__all__ = ["make"]  # the fixture


class Clock:
    """Stands in for `time`: it stands still but where a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake_clock = Clock()
    monkeypatch.setattr(estimate, "time", fake_clock)
    return fake_clock


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (2400, "40 min"),
        (9000, "2.5 h"),
        (21 * 3600 + 60, "21 h"),
        (35820, "10 h"),
    ],
)
def test_lengths_of_time_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.123, "0.12 s"), (9.6, "9.6 s"), (75, "75 s"), (180, "3 min")]
)
def test_a_short_time_has_two_digits(seconds: float, words: str) -> None:
    assert exactly(seconds) == words


@pytest.mark.parametrize(
    ("batch", "image"), [(0.02, 0.001), (0.0, 0.05), (0.03, 0.0), (1e-4, 1e-5)]
)
def test_what_a_batch_and_what_an_image_costs_are_told_apart(
    clock: Clock, batch: float, image: float
) -> None:
    counts: list[int] = []

    def run(count: int) -> None:
        counts.append(count)
        clock.now += batch + image * count

    cost = measure_cost(run, 512)
    assert (cost.batch, cost.image) == pytest.approx((batch, image), abs=1e-9)
    assert clock.now - 100 < 2 * estimate.PROBE_SECONDS and max(counts) <= 512
    assert cost.of(1000, 512) == pytest.approx(2 * batch + 1000 * image)
    assert cost.of(0, 512) == 0
    assert cost.divided(0.1).of(10, 5) == pytest.approx(10 * (2 * batch + 10 * image))


def test_an_image_that_takes_long_is_run_twice_and_no_more(clock: Clock) -> None:
    counts: list[int] = []

    def run(count: int) -> None:
        counts.append(count)
        clock.now += 3 * count

    assert measure_cost(run, 512) == Cost(0.0, 3.0)
    assert counts == [1, 1]


def test_no_random_number_is_taken_away() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), float(np.random.rand()), random.random()  # noqa: NPY002

    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    expected = draw()
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])
    with random_state_kept([]):
        draw()
    assert draw() == expected


def trained(
    clock: Clock, chunk_seconds: list[float], spent: float = 0.0, epoch: int = 0, patience: int = 0
) -> Estimate:
    """An estimate after chunks of 8 iterations: 10 epochs of 800 images in batches of 10, a look
    after every second.
    """
    settings: Any = SimpleNamespace(val_every=2, patience=patience)
    method_options = {"channels": 64, "search_steps": 500, "width": None}
    data: Any = SimpleNamespace(train=range(800), val=range(50), test=range(950), batch_size=10)
    forecast = Estimate(settings, method_options, data, lambda: {"train": spent, "labelled": 0.0})
    forecast.look = {"train": 5.0, "labelled": 2.0}
    forecast.seconds = {"score": 30.0}
    trainer: Any = SimpleNamespace(max_epochs=10, world_size=1, current_epoch=epoch)
    method = Method((1, 8, 8))
    method.iteration = epoch * 80
    forecast.on_train_start(trainer, method)
    forecast.on_train_epoch_start(trainer, method)
    for seconds in chunk_seconds:
        clock.now += seconds
        method.iteration += 8
        forecast.on_train_batch_end(trainer, method)
    forecast.on_train_end(trainer, method)
    return forecast


def test_training_is_estimated_by_the_chunks_after_the_first(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="noveltylab")
    forecast = trained(clock, [4.0, 0.6, 0.6, 9.0], spent=5.2)
    # 800 iterations, 24 done, at 1.2 s for 16; five looks
    assert forecast.seconds["train"] == pytest.approx(5.2 + 776 * 1.2 / 16 + 5 * 5.0)
    assert forecast.seconds["labelled"] == pytest.approx(5 * 2.0)
    assert [record.message for record in caplog.records] == [
        "about 2 min of training (10 more epochs, 9.6 s each), 30 s of scoring at this rate"
    ]


def test_a_training_that_may_stop_early_takes_at_most_so_long(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="noveltylab")
    trained(clock, [4.0, 0.6, 0.6], patience=3)
    assert [record.message for record in caplog.records] == [
        "at most 2 min of training (10 more epochs, 9.6 s each), 30 s of scoring at this rate"
    ]


def test_a_resumed_run_counts_what_was_spent_and_is_told_what_is_left(clock: Clock) -> None:
    forecast = trained(clock, [1.0, 2.0], spent=70.0, epoch=6)
    assert forecast.seconds["train"] == pytest.approx(70 + (800 - 496) * 2 / 8 + 2 * 5.0)


def test_one_long_chunk_is_enough_and_a_training_that_is_over_says_nothing(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="noveltylab")
    forecast = trained(clock, [40.0])
    assert forecast.seconds["train"] == pytest.approx((800 - 8) * 40 / 8 + 25)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith("WARNING: about 67 min of training")
    for advice in (
        "data.limit_train (now 800 images)",
        "method.search_steps (now 500)",
        "method.channels (now 64)",
    ):
        assert advice in record.message
    assert "width" not in record.message
    caplog.clear()
    forecast = trained(clock, [0.1, 0.1])
    assert (
        forecast.seconds["train"] == pytest.approx((800 - 16) * 0.1 / 8 + 25) and not caplog.records
    )


@pytest.mark.parametrize(
    "arguments",
    [
        TINY,
        ("method=anogan", "method.channels=4", "method.search_steps=30", *TINY[3:]),
        ("method=pca",),
    ],
)
def test_an_estimate_changes_no_byte_and_stands_beside_what_it_took(
    run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    with_estimate = run_here(f"output={tmp_path / 'a'}", *arguments)
    monkeypatch.setattr(Estimate, "probe", lambda *_: None)
    monkeypatch.setattr(Estimate, "on_train_batch_end", lambda *_: None)
    without = run_here(f"output={tmp_path / 'b'}", *arguments)
    assert with_estimate["files"]["scores.csv"] == without["files"]["scores.csv"]
    assert with_estimate["scores"] == without["scores"]
    assert with_estimate["estimated"].keys() == (
        {"score"} if "method=pca" in arguments else {"train", "score"}
    )
    assert with_estimate["estimated"]["score"] >= 0


def test_a_long_run_is_warned_of_before_training_with_what_would_shorten_it(
    run_here: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate, "LONG", 0.0)
    monkeypatch.setattr(estimate, "TRAIN_SECONDS", 0.0)
    run_here("method=anogan", "method.channels=4", "method.search_steps=30", *TINY[3:])
    output = capsys.readouterr().err
    scoring = output.index("WARNING: scoring 83 images will take about")
    training = output.index("of training (")
    assert scoring < training
    assert "method.search_steps (now 30)" in output[scoring:training]
    assert "data.limit_train (now 126 images), fewer trainer.max_epochs" in output[training:]


def test_rules_that_use_labels_are_counted(run_here: Run) -> None:
    estimated = run_here(*TINY, "select=oracle")["estimated"]
    assert estimated["labelled"] > 0


def test_a_search_is_timed_by_a_few_of_its_steps(make: Callable[..., Any]) -> None:
    method = make("anogan", search_steps=500, validation_steps=3, start_candidates=128).eval()
    starts, x = method.starts, blobs(2)
    method.search_steps = 4
    before = method.novelty_score(x)["novelty"]
    method.search_steps = 500
    with method.shortened() as (score, loss):
        assert (method.search_steps, method.validation_steps) == (TIMED_STEPS, 3)
        assert len(method.starts) == 1
        assert (score, loss) == pytest.approx(((TIMED_STEPS + 1) / 501, 1.0))
    assert method.search_steps == 500 and method.starts is starts
    method.search_steps = 4
    assert torch.equal(method.novelty_score(x)["novelty"], before)
