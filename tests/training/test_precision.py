"""trainer.precision=auto: bf16 only where it is faster and its AUROC is known, and the run says which."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from noveltylab.api import compose
from noveltylab.errors import UserError
from noveltylab.run.build import build
from noveltylab.run.read import read_and_split
from noveltylab.run.recording import OutOfMemory
from noveltylab.training import precision
from noveltylab.training.precision import BF16, FLOAT32
from tests.conftest import TINY, killed
from tests.methods.conftest import SMALL

Run = Callable[..., dict[str, Any]]
#: A run of seconds.
SHORT = ("data=digits", "data.limit_train=48", *TINY[3:])
AUTO = "trainer.precision=auto"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """speed(0.5): an iteration in bf16 takes half the time of one in float32; ae may use it."""
    monkeypatch.setattr(precision, "SAME_IN_BF16", frozenset({"ae"}))

    def take(share: float) -> None:
        monkeypatch.setattr(precision, "time_both", lambda *_: {FLOAT32: 1.0, BF16: share})

    return take


def scores_of(folder: Path) -> bytes:
    (path,) = folder.rglob("scores.csv")
    return path.read_bytes()


def log_of(folder: Path) -> str:
    (path,) = folder.rglob("run.log")
    return path.read_text()


def recorded(folder: Path) -> str:
    (path,) = folder.rglob("result.json")
    taken: str = json.loads(path.read_text())["config"]["trainer"]["precision"]
    return taken


@pytest.mark.parametrize(
    ("share", "taken"), [(0.5, BF16), (0.89, BF16), (0.95, FLOAT32), (2.0, FLOAT32)]
)
def test_the_run_is_that_of_the_precision_taken(
    run_here: Run,
    tmp_path: Path,
    speed: Callable[[float], None],
    capsys: pytest.CaptureFixture[str],
    share: float,
    taken: str,
) -> None:
    speed(share)
    run_here("method=ae", AUTO, f"output={tmp_path / 'auto'}", *SHORT)
    line = f"trainer.precision=auto: {taken}; an iteration in bf16 takes {share:.2f} times"
    assert capsys.readouterr().err.count(line) == 1
    assert log_of(tmp_path / "auto").count(line) == 1
    run_here("method=ae", f"trainer.precision={taken}", f"output={tmp_path / 'named'}", *SHORT)
    assert recorded(tmp_path / "auto") == taken
    assert scores_of(tmp_path / "auto") == scores_of(tmp_path / "named")


def test_a_killed_run_goes_on_in_the_precision_that_it_began_with(
    run_here: Run,
    tmp_path: Path,
    speed: Callable[[float], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = (
        "method=ae",
        f"output={tmp_path / 'killed'}",
        *SHORT,
        "trainer.checkpoint_seconds=0",
    )
    speed(0.5)
    with killed(2):
        run_here(*arguments, AUTO)
    speed(2.0)  # the machine is another one now
    run_here(*arguments, AUTO)
    assert log_of(tmp_path / "killed").count("trainer.precision=auto: ") == 1
    run_here("method=ae", "trainer.precision=bf16-mixed", f"output={tmp_path / 'whole'}", *SHORT)
    assert recorded(tmp_path / "killed") == BF16
    assert scores_of(tmp_path / "killed") == scores_of(tmp_path / "whole")
    capsys.readouterr()
    run_here(*arguments, AUTO)
    assert "complete already" in capsys.readouterr().out
    with pytest.raises(UserError, match="trainer.precision: bf16-mixed there, 32-true here"):
        run_here(*arguments, "trainer.precision=32-true")


def test_force_times_anew(run_here: Run, tmp_path: Path, speed: Callable[[float], None]) -> None:
    speed(0.5)
    run_here("method=ae", AUTO, *SHORT)
    speed(2.0)
    run_here("method=ae", AUTO, "force=true", *SHORT)
    (now,) = (
        path for path in (tmp_path / "outputs").rglob("result.json") if path.parent.name == "seed0"
    )
    assert json.loads(now.read_text())["config"]["trainer"]["precision"] == FLOAT32


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("vae", "no kept runs show that vae has the same AUROC in bf16"),
        ("pca", "it is fitted once, in float32"),
    ],
)
def test_no_other_method_trains_in_bf16(
    run_here: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, reason: str
) -> None:
    run_here(f"method={method}", AUTO, *SHORT)
    assert f"trainer.precision=auto: 32-true; {reason}" in capsys.readouterr().err
    assert recorded(tmp_path / "outputs") == FLOAT32


def test_several_devices_are_refused(run_here: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="times one device, and trainer.devices=2; use"):
        run_here("method=ae", AUTO, "trainer.devices=2", *SHORT)
    assert not (tmp_path / "outputs").exists()


def test_images_too_few_for_the_method_are_one_error(
    run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "SAME_IN_BF16", frozenset({"nda"}))
    with pytest.raises(UserError, match="48 training images of 1024 values have 47 principal"):
        run_here("method=nda", AUTO, "method.latent_size=60", *SHORT)
    assert not (tmp_path / "outputs").exists()


def test_no_memory_for_the_trial_is_one_error(
    run_here: Run, tmp_path: Path, speed: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")

    speed(0.5)
    monkeypatch.setattr(precision, "time_both", fail)
    with pytest.raises(OutOfMemory, match="out of memory .* lower data.batch_size=64"):
        run_here("method=ae", AUTO, "data=digits", "trainer.accelerator=cpu")
    assert not (tmp_path / "outputs").exists() or not any((tmp_path / "outputs").rglob("*.yaml"))


@pytest.mark.parametrize("name", ["ocgan", "ca_entropy", "oled", "nda"])
def test_both_are_timed_on_copies(name: str) -> None:
    small = [f"method.{key}={value}" for key, value in SMALL[name].items()]
    options = compose(f"method={name}", *SHORT, "data.batch_size=8", *small)
    data, method = build(options, *read_and_split(options))
    weights = {key: value.clone() for key, value in method.state_dict().items()}
    images = data.train.clone()
    state = torch.get_rng_state()
    dtypes = []
    inner = type(method).update

    def update(self: Any, batch: Any) -> Any:
        dtypes.append(torch.is_autocast_enabled("cpu"))
        return inner(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(method), "update", update)
        seconds = precision.time_both(method, data, torch.device("cpu"))
    assert dtypes == [False, True] * (1 + precision.ITERATIONS)
    assert set(seconds) == {FLOAT32, BF16}
    assert all(value > 0 for value in seconds.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(data.train, images)
    for key, value in method.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_the_shortest_of_the_turns_counts_without_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([0.1, 0.1, 3.0, 9.0, 2.0, 4.0, 5.0, 6.0])
    nothing = dict.fromkeys((FLOAT32, BF16), lambda: None)
    monkeypatch.setattr(precision, "build_updates", lambda *_: nothing)
    monkeypatch.setattr(precision, "timed", lambda *_: next(times))
    seconds = precision.time_both(None, None, torch.device("cpu"))  # type: ignore[arg-type]  # neither is looked at
    assert seconds == {FLOAT32: 2.0, BF16: 4.0}
