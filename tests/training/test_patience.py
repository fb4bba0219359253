"""trainer.patience: training ends after so many looks without a lower loss on held-out inliers,
killed or not.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noveltylab.training import checkpoints as selection
from tests.conftest import TINY, killed

Run = Callable[..., dict[str, Any]]
#: An auto-encoder of seconds; a look after each of 8 epochs.
SHORT = (
    "method=ae",
    "method.channels=4",
    *TINY[3:],
    "trainer.max_epochs=8",
    "trainer.select_from=0",
)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """losses(3, 2, ...): what the looks after epochs 1, 2, ... find; counted by iterations, as a
    resumed run goes on.
    """

    def look(*values: float) -> None:
        def loss(method: Any, *_: Any) -> float:
            if method._trainer is None:
                return 0.0  # the estimate's
            return values[method.current_epoch]

        monkeypatch.setattr(selection, "validation_loss", loss)

    return look


FALLING = (8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
CASES: list[tuple[tuple[float, ...], tuple[str, ...], int, int]] = [
    (FALLING, (), 8, 8),
    ((3, 1, 2, 2, 2, 2, 2, 2), (), 2, 4),
    ((3, 1, 1, 2, 2, 2, 2, 2), (), 2, 4),  # as low is no lower
    ((3, 2, 4, 1, 2, 2, 0, 0), (), 4, 6),
    ((1, 2, 3, 4, 5, 6, 7, 8), ("trainer.select_from=0.5",), 5, 7),
    ((1, 9, 3, 9, 4, 9, 5, 9), ("trainer.val_every=2",), 2, 6),  # looks after 2, 4, 6
    ((1, 2, 3, 4, 5, 6, 7, 8), ("trainer.patience=7",), 1, 8),
    ((1, 2, 3, 4, 5, 6, 7, 8), ("trainer.patience=0",), 1, 8),
    ((1, 2, 3, 4, 5, 6, 7, 8), ("select=oracle",), 1, 3),
]


@pytest.mark.parametrize(("values", "options", "selected", "trained"), CASES)
def test_training_ends_after_so_many_looks_without_a_lower_loss(
    run_here: Run,
    losses: Callable[..., None],
    values: tuple[float, ...],
    options: tuple[str, ...],
    selected: int,
    trained: int,
) -> None:
    losses(*values)
    result = run_here(*SHORT, "trainer.patience=2", *options)
    assert result["selected"]["epoch"] == selected
    assert result["epochs"] == {"planned": 8, "trained": trained}


@pytest.mark.parametrize("whole", ["true", "false"])
def test_patience_begins_with_the_whole_method(
    run_here: Run, losses: Callable[..., None], whole: str
) -> None:
    """Mining begins in epoch 5, and schedules keep to the planned epochs.

    That holds whichever weights may be chosen.
    """
    losses(1, 2, 3, 4, 9, 9, 9, 9)
    options = (
        *TINY,
        "trainer.max_epochs=8",
        "method.mining_start=0.5",
        "trainer.select_from=0",
        "trainer.patience=2",
    )
    result = run_here(*options, f"trainer.select_whole={whole}")
    assert result["selected"]["epoch"] == (5 if whole == "true" else 1)
    assert result["epochs"]["trained"] == (7 if whole == "true" else 6)


@pytest.mark.parametrize("epoch", [2, 4])
@pytest.mark.parametrize("option", ["trainer.average_epochs=0", "trainer.average_epochs=1.5"])
def test_a_killed_run_stops_where_it_would_have(
    run_here: Run,
    tmp_path: Path,
    losses: Callable[..., None],
    epoch: int,
    option: str,
) -> None:
    """Killed in the second look without a lower loss, or when all training is over: the result is
    the same.
    """
    losses(3, 1, 2, 2, 2, 2, 2, 2)
    arguments = (*SHORT, "trainer.patience=2", "trainer.checkpoint_seconds=0", option)
    whole = run_here(f"output={tmp_path / 'outputs' / 'whole'}", *arguments)
    # no fifth epoch begins: training ends before
    with killed(epoch, before_scoring=epoch == 4):
        run_here(*arguments)
    resumed = run_here(*arguments)
    assert resumed["epochs"] == whole["epochs"] == {"planned": 8, "trained": 4}
    assert (resumed["selected"], resumed["scores"]) == (whole["selected"], whole["scores"])
    first, second = ((tmp_path / "outputs" / part).rglob("metrics.csv") for part in ("whole", "p1"))
    assert next(first).read_bytes() == next(second).read_bytes()


def test_the_first_process_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper whose own looks would go on stops with it, and the other way round."""
    from types import SimpleNamespace

    checkpoints = selection.Checkpoints.__new__(selection.Checkpoints)
    checkpoints.settings = SimpleNamespace(patience=2)  # type: ignore[assignment]  # all it reads
    for first, waited in ((True, 0), (False, 5)):
        checkpoints.waited = waited
        trainer = SimpleNamespace(
            strategy=SimpleNamespace(broadcast=lambda _, decided=first: decided)
        )
        assert checkpoints._impatient(trainer, 3, 8) is first  # type: ignore[arg-type]  # a stand-in


def test_the_estimate_and_the_screen_say_so(
    run_here: Run, losses: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    losses(3, 1, 2, 2, 2, 2, 2, 2)
    run_here(*SHORT, "trainer.patience=2")
    assert (
        "epoch 2, lowest loss on held-out inliers (1), stopped after 4 of 8; no outlier used"
        in capsys.readouterr().out
    )
    (text,) = [path.read_text() for path in tmp_path.rglob("run.log")]
    assert "stopped after epoch 4 of 8: 2 looks without a lower loss on held-out inliers" in text
