"""What a machine runs out of, and what breaks under way: one clear error, nothing half-written,
nothing lost.
"""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from noveltylab.command.signals import SIGNALS
from noveltylab.errors import RunFailed, UserError
from noveltylab.methods.base import Diverged
from noveltylab.methods.ocgan import OCGAN
from noveltylab.sweep.status import stand
from noveltylab.training import fit as train
from tests.conftest import TINY

Run = Callable[..., dict[str, Any]]


def folder_of(tmp_path: Path, seed: int = 0) -> Path:
    return tmp_path / "outputs" / "p1" / "ocgan" / "digits" / "inlier8" / f"seed{seed}"


@pytest.mark.parametrize("call", [1, 2, 5, 9])
def test_a_full_disk_is_one_error_and_the_same_command_goes_on(
    run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    arguments = (*TINY, "trainer.checkpoint_seconds=0")
    whole = run_here(f"output={tmp_path / 'whole'}", *arguments)
    calls = 0

    def full(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        RunFailed, match="No space left on device; what was finished before is intact"
    ):
        run_here(*arguments)
    monkeypatch.undo()
    assert not list(folder_of(tmp_path).rglob("*.tmp"))
    assert not (folder_of(tmp_path) / "result.json").exists()
    again = run_here(*arguments)
    assert again["scores"] == whole["scores"]


@pytest.mark.posix
def test_a_file_that_may_not_grow_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    """A real limit of the system, in a process of its own."""
    command = [sys.executable, "-m", "noveltylab", "method=pca", f"output={tmp_path / 'outputs'}"]

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = subprocess.run(
        command, preexec_fn=limit, capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert "error: cannot read or write" in process.stderr
    assert not list(tmp_path.rglob("result.json"))


def test_out_of_memory_names_the_options(run_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def update(self: OCGAN, batch: object) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(OCGAN, "update", update)
    with pytest.raises(
        RunFailed, match=r"out of memory .*data\.batch_size=16.*trainer\.score_batch_size=512"
    ):
        run_here(*TINY)


def test_broken_weights_are_never_kept(
    run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that turn NaN while the losses are still finite: the last good checkpoint stays."""
    step = train.Method.training_step

    def poison(self: Any, chunk: Any, index: int) -> None:
        step(self, chunk, index)
        if self.current_epoch == 2:
            with torch.no_grad():
                next(self.encoder.parameters()).fill_(float("nan"))

    monkeypatch.setattr(train.Method, "training_step", poison)
    with pytest.raises(
        Diverged,
        match=r"weights not finite after epoch 2: losses .*networks with such weights: encoder",
    ):
        run_here(*TINY, "trainer.checkpoint_seconds=0")
    monkeypatch.undo()
    checkpoint = torch.load(folder_of(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 1
    assert all(
        value.isfinite().all()
        for value in checkpoint["state_dict"].values()
        if value.is_floating_point()
    )
    assert run_here(*TINY, "trainer.checkpoint_seconds=0")["scores"]


def test_damaged_selected_weights_restart_the_training(run_here: Run, tmp_path: Path) -> None:
    whole = run_here(*TINY)
    folder = folder_of(tmp_path)
    (folder / "result.json").unlink()
    best = folder / "checkpoints" / "val_loss.pt"
    best.write_bytes(best.read_bytes()[:-100])
    assert run_here(*TINY)["scores"] == whole["scores"]
    assert "training starts again" in (folder / "run.log").read_text()


class Opened:
    """Unpickling this runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["last.ckpt", "val_loss.pt"])
def test_a_hostile_checkpoint_is_set_aside_and_never_run(
    run_here: Run, tmp_path: Path, name: str
) -> None:
    whole = run_here(*TINY)
    folder = folder_of(tmp_path)
    (folder / "result.json").unlink()
    torch.save(
        {"iteration": 4, "method": Opened(tmp_path / "pwned")}, folder / "checkpoints" / name
    )
    assert run_here(*TINY)["scores"] == whole["scores"]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.posix
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_epoch_with_a_checkpoint(tmp_path: Path, number: int) -> None:
    """The checkpoint is newer than the last timed one would be; a second run goes on from it."""
    options = [
        "method=ocgan",
        *TINY,
        "trainer.max_epochs=400",
        f"output={tmp_path / 'outputs'}",
        "trainer.val_every=100",
    ]
    command = [sys.executable, "-m", "noveltylab", *options, "trainer.checkpoint_seconds=1000"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        metrics = folder_of(tmp_path) / "metrics.csv"
        deadline = time.monotonic() + 240
        while not metrics.is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        output = process.communicate(timeout=240)[0]
    assert process.returncode == 128 + number, output
    assert "stopping with a checkpoint" in output
    assert "the same command goes on" in output
    assert "Traceback" not in output
    last = torch.load(folder_of(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert 0 < last["iteration"] < 400 * 8
    standing = stand(folder_of(tmp_path))
    assert standing.state == "left"
    assert standing.words.startswith("interrupted, epoch ")


def test_a_vanished_output_is_one_error(
    run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise OSError(
            errno.ESTALE, os.strerror(errno.ESTALE), str(folder_of(tmp_path) / "scores.csv")
        )

    monkeypatch.setattr("noveltylab.run.score.write_scores", gone)
    with pytest.raises(RunFailed, match=r"cannot read or write .*scores\.csv: Stale file handle"):
        run_here("method=pca")


def test_a_read_only_output_is_refused_before_anything(run_here: Run, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot create"):
        run_here(f"output={tmp_path / 'locked' / 'outputs'}", "method=pca")


@pytest.mark.parametrize("name", ["result.json", "scores.csv", "split.npz", "config.yaml"])
@pytest.mark.parametrize("cut", [0, 0.5, None])
def test_a_damaged_file_of_a_finished_run_is_named_and_made_again(
    run_here: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, cut: float | None
) -> None:
    whole = run_here("method=pca")
    folder = tmp_path / "outputs" / "p1" / "pca" / "digits" / "inlier8" / "seed0"
    before = (folder / "scores.csv").read_bytes()
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(
        content + b"#" if cut is None else content[: int(cut * len(content))]
    )
    if name == "config.yaml" and cut is not None:
        with pytest.raises(UserError, match="other options|config.yaml: damaged"):
            run_here("method=pca")
        return
    again = run_here("method=pca")
    assert f"{name} damaged or changed" in capsys.readouterr().err
    assert (folder / "result.damaged.json").is_file()
    assert again["scores"] == whole["scores"]
    assert (folder / "scores.csv").read_bytes() == before


def test_a_hostile_config_in_a_run_folder_is_refused(run_here: Run, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "p1" / "pca" / "digits" / "inlier8" / "seed0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"method: !!python/object/apply:os.system ['touch {tmp_path / 'pwned'}']\n"
    )
    with pytest.raises(UserError, match=r"config\.yaml: damaged"):
        run_here("method=pca")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("where", ["run.log", "config.yaml", "checkpoints"])
def test_a_folder_in_the_place_of_a_file_is_one_error(
    run_here: Run, tmp_path: Path, where: str
) -> None:
    path = folder_of(tmp_path) / where
    path.parent.mkdir(parents=True)
    path.mkdir() if where != "checkpoints" else path.write_text("a file")
    with pytest.raises((RunFailed, UserError), match=rf"{where}"):
        run_here(*TINY)


def test_an_empty_config_is_damaged_and_no_other_options(run_here: Run, tmp_path: Path) -> None:
    """As a power loss may leave it."""
    folder = folder_of(tmp_path)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    with pytest.raises(UserError, match=r"config\.yaml") as refusal:
        run_here(*TINY)
    assert "absent" not in str(refusal.value)


def test_after_an_out_of_memory_in_scoring_the_advice_works_and_goes_on(
    run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_here(f"output={tmp_path / 'whole'}", *TINY)
    real = torch.split

    def short(images: torch.Tensor, size: int, *arguments: Any) -> Any:
        if size > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(images, size, *arguments)

    monkeypatch.setattr(
        "noveltylab.run.score.novelty_scores", lambda *a, **k: short(torch.zeros(1), 512)
    )
    with pytest.raises(RunFailed, match=r"trainer\.score_batch_size=512 if it was scoring"):
        run_here(*TINY)
    monkeypatch.undo()
    monkeypatch.setenv("NOVELTYLAB_CACHE", str(tmp_path / "cache"))
    again = run_here(*TINY, "trainer.score_batch_size=16")
    assert "resuming" in (folder_of(tmp_path) / "run.log").read_text()
    assert again["selected"] == whole["selected"]
    for name, scores in whole["scores"].items():
        assert again["scores"][name]["auroc"] == pytest.approx(scores["auroc"], abs=1e-3)


def test_after_an_out_of_memory_in_training_the_advice_works(
    run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update(self: OCGAN, batch: object) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(OCGAN, "update", update)
    with pytest.raises(RunFailed, match="out of memory"):
        run_here(*TINY)
    monkeypatch.undo()
    assert not folder_of(tmp_path).exists()
    assert run_here(*TINY, "data.batch_size=8")["scores"]
