"""Which phases of a method the scored weights have seen.

Selection asks for the whole method.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from noveltylab.options import flat_options
from noveltylab.results.phases import (
    Phase,
    Seen,
    begins,
    in_words,
    lacking,
    seen_after,
    seen_by,
    selects_nothing_else,
)
from noveltylab.results.record import read_result
from noveltylab.run.rerun import fresh_options
from noveltylab.training import checkpoints as selection
from noveltylab.training import fit as train
from noveltylab.training.fit import unseen
from tests.conftest import TINY, run_in
from tests.methods.conftest import method_config

Run = Callable[..., dict[str, Any]]
MINING = [Phase("without mining", 0.0), Phase("with mining", 0.75)]


@pytest.mark.parametrize(
    ("start", "epochs", "first"),
    [
        (0.0, 10, 1),
        (0.75, 10, 9),
        (0.75, 25, 20),
        (0.75, 4, 4),
        (0.75, 1, 2),
        (0.3, 10, 4),
        (1.0, 10, 11),
        (0.999, 10, 11),
    ],
)
def test_a_phase_begins_with_the_epoch_before_which_its_share_is_over(
    start: float, epochs: int, first: int
) -> None:
    assert begins(start, epochs) == first
    assert begins(start, epochs) == next(
        (e for e in range(1, epochs + 1) if (e - 1) / epochs >= start), epochs + 1
    )


def test_the_first_epoch_is_exact_for_every_share_of_two_digits() -> None:
    for epochs in range(1, 60):
        for percent in range(101):
            start = percent / 100
            expected = next(
                (e for e in range(1, epochs + 1) if (e - 1) / epochs >= start), epochs + 1
            )
            assert begins(start, epochs) == expected, (start, epochs)


def test_epochs_are_counted_phase_by_phase() -> None:
    assert seen_after(MINING, 20, 25) == [Seen("without mining", 19), Seen("with mining", 1)]
    assert seen_after(MINING, 19, 25) == [Seen("without mining", 19), Seen("with mining", 0)]
    assert seen_after(MINING, 1, 1) == [Seen("without mining", 1), Seen("with mining", 0)]
    assert seen_after([Phase("a", 0.0), Phase("b", 0.5), Phase("c", 0.5)], 4, 4) == [
        Seen("a", 2),
        Seen("b", 0),
        Seen("c", 2),
    ]
    assert seen_after([], 7, 10) == []
    assert in_words(seen_after(MINING, 20, 25)) == "19 without mining, 1 with mining"
    assert in_words(seen_after(MINING, 3, 25)) == "3 without mining, none with mining"


def test_weights_lack_the_whole_method_before_its_last_phase() -> None:
    assert lacking(seen_after(MINING, 19, 25)) == "without mining"
    assert lacking(seen_after(MINING, 20, 25)) == ""
    assert lacking([]) == ""
    assert "not the whole method" in unseen(seen_after(MINING, 1, 1), 1)


def test_old_results_are_judged_by_their_options() -> None:
    old = {"rule": "val_loss", "epoch": 8, "value": 0.1}
    config = {"method": method_config("ocgan"), "trainer": {"max_epochs": 10}}
    assert seen_by(old, config) == [Seen("without mining", 8), Seen("with mining", 0)]
    assert seen_by({**old, "epoch": 9}, config)[-1].epochs == 1
    recorded = {**old, "phases": [{"name": "with mining", "epochs": 8}]}
    assert seen_by(recorded, config) == [Seen("with mining", 8)]
    assert seen_by({**old, "phases": []}, config) == []
    assert seen_by({**old, "epoch": 0}, config) == []


def repr_of(value: Any) -> str:
    return f"{value!r:.6}"


@pytest.mark.parametrize("epochs", [10**310, "10", None, 0, -3, 2.5, math.nan, [1]], ids=repr_of)
@pytest.mark.parametrize("start", [10**310, "x", None, math.nan, math.inf, [1]], ids=repr_of)
def test_a_configuration_that_somebody_else_wrote_is_no_trouble(epochs: Any, start: Any) -> None:
    method = {**method_config("ocgan"), "mining_start": start}
    assert seen_by({"epoch": 8}, {"method": method, "trainer": {"max_epochs": epochs}}) is not None
    assert seen_by({"epoch": 8}, {"method": method}) is not None
    selects_nothing_else(
        {
            "method._target_": method["_target_"],
            "method.use_mining": True,
            "method.mining_start": start,
        }
    )


@pytest.mark.parametrize(
    ("changes", "nothing"),
    [
        ({}, False),
        ({"method.use_mining": False}, True),
        ({"method.mining_start": 0.0}, True),
        ({"select": "last"}, True),
        ({"select": "last", "trainer.average_epochs": 1.0}, False),
    ],
)
def test_an_option_that_changes_nothing_tells_no_runs_apart(
    changes: dict[str, Any], nothing: bool
) -> None:
    config = {"method": method_config("ocgan"), "trainer": {}, "select": "val_loss"}
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        (config[group] if group else config)[name] = value
    assert flat_options(config).get("trainer.select_whole") is (None if nothing else False)
    config["trainer"]["select_whole"] = True
    assert flat_options(config).get("trainer.select_whole") is (None if nothing else True)


# Selection. Mining begins in the last of TINY's 4 epochs.


@pytest.fixture
def rising(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look is worse than the one before: mining raises the loss that selects."""
    looks = iter(range(1000))
    monkeypatch.setattr(selection, "validation_loss", lambda *_: float(next(looks)))


CHOICES: list[tuple[tuple[str, ...], int]] = [
    (("trainer.select_whole=false", "trainer.select_from=0"), 1),
    (("method.mining_start=0.5",), 3),
    (("trainer.val_every=3",), 4),  # no look but that of the last epoch
    (("method.mining_start=0.25", "trainer.select_from=0.5"), 3),
    (("method.mining_start=1.0",), 4),
    (("method.use_mining=false", "trainer.select_from=0"), 1),
]


@pytest.mark.parametrize(("options", "epoch"), CHOICES)
def test_selection_starts_where_the_weights_are_the_whole_method(
    run_here: Run, rising: None, options: tuple[str, ...], epoch: int
) -> None:
    result = run_here(*TINY, *options)
    assert result["selected"]["epoch"] == epoch


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The result of one run of each rule that chooses weights, made once."""
    results: dict[str, dict[str, Any]] = {}

    def of(rule: str) -> dict[str, Any]:
        if rule not in results:
            with pytest.MonkeyPatch.context() as patch:
                folder = tmp_path_factory.mktemp(rule)
                patch.setenv("NOVELTYLAB_CACHE", str(folder / "cache"))
                results[rule] = run_in(folder)(*TINY, "method.mining_start=0.5", f"select={rule}")
        return results[rule]

    return of


@pytest.mark.parametrize("rule", ["val_loss", "last", "oracle"])
def test_a_result_says_which_phases_its_weights_have_seen(
    mined: Callable[[str], dict[str, Any]], rule: str
) -> None:
    selected = mined(rule)["selected"]
    assert selected["phases"] == [
        {"name": "without mining", "epochs": 2},
        {"name": "with mining", "epochs": selected["epoch"] - 2},
    ]
    assert not [text for text in mined(rule)["warnings"] if "whole method" in text]


def test_rules_that_use_labels_choose_among_the_same_epochs(
    mined: Callable[[str], dict[str, Any]],
) -> None:
    assert all(metrics["epoch"] >= 3 for metrics in mined("oracle")["labelled"]["oracle"].values())


def test_a_run_too_short_for_the_whole_method_warns(run_here: Run) -> None:
    result = run_here(*TINY, "trainer.max_epochs=1")
    assert result["selected"]["phases"][-1] == {"name": "with mining", "epochs": 0}
    (warning,) = [text for text in result["warnings"] if "whole method" in text]
    assert "1 without mining, none with mining of 1 epochs" in warning


def test_an_average_begins_with_the_whole_method(
    run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as long an average as can be, one chunk an epoch: the first mined epoch's weights are
    copied.
    """
    ends: list[dict[str, torch.Tensor]] = []
    step = train.Method.training_step

    def watched(self: Any, chunk: Any, index: int) -> None:
        step(self, chunk, index)
        ends.append({name: value.detach().clone() for name, value in self.state_dict().items()})

    monkeypatch.setattr(train.Method, "training_step", watched)
    options = (*TINY, "select=last", "trainer.average_epochs=1000")
    run_here(*options)
    (path,) = tmp_path.rglob("last.pt")
    assert len(ends) == 4
    weights = torch.load(path, weights_only=True)["method"]
    assert all(torch.equal(weights[name], value) for name, value in ends[-1].items())
    ends.clear()
    run_here(*options, "trainer.select_whole=false", "force=true")
    weights = torch.load(path, weights_only=True)["method"]
    name = next(name for name in weights if name.endswith("weight"))
    assert not torch.equal(weights[name], ends[-1][name])


def test_a_kept_run_is_repeated_by_the_selection_that_it_had() -> None:
    """OCGAN's weights were chosen among all epochs once, and `rerun` does so again."""
    folder = (
        Path(__file__).parents[2]
        / "experiments/results/learn/questions.jsonl/p2/ocgan/mnist/inlier2/seed0"
    )
    result = read_result(folder)
    for later in ("select_whole", "patience", "batch_norm"):
        result["config"]["trainer"].pop(later, None)  # as a result of before
    trainer = fresh_options(folder, result, [])[0].trainer
    assert (trainer.select_whole, trainer.patience, trainer.batch_norm) == (False, 0, "running")
