"""How the threads of a run wait is settled before torch is loaded, and never against the user."""

import os
from pathlib import Path

import pytest

from noveltylab.nets.cpu import threads


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*threads.SETTINGS, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that what is set here is taken back
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("share", "idle", "set_already", "spins"),
    [
        (None, True, {}, None),
        (None, False, {}, threads.SHORT),
        (2, True, {}, threads.SHORT),
        (None, False, {"OMP_WAIT_POLICY": "ACTIVE"}, None),
        (2, False, {"GOMP_SPINCOUNT": "7"}, "7"),
        (None, False, {"OMP_NUM_THREADS": "1"}, None),
    ],
)
def test_threads_spin_long_only_on_an_idle_machine(
    unset: pytest.MonkeyPatch,
    share: int | None,
    idle: bool,
    set_already: dict[str, str],
    spins: str | None,
) -> None:
    for name, value in set_already.items():
        unset.setenv(name, value)
    unset.setattr(threads, "idle", lambda: idle)
    threads.settle_waiting(share)
    assert os.environ.get("GOMP_SPINCOUNT") == spins


@pytest.mark.posix
@pytest.mark.parametrize(("busy", "idle"), [(0, True), (2, True), (3, False), (10, False)])
def test_idle_looks_at_the_cores_of_this_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: int, idle: bool
) -> None:
    stat = tmp_path / "stat"
    lines = "cpu  {all} 0 0 0 0 0 0 0 0 0\ncpu0 900 0 0 {other} 0 0 0 0 0 0\ncpu3 {busy} 0 0 {idle} 0 0 0 0 0 0\nintr 5\n"
    stat.write_text(lines.format(all=0, other=0, busy=100, idle=5000))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)

    def later(seconds: float) -> None:
        stat.write_text(lines.format(all=50, other=0, busy=100 + busy, idle=5010 - busy))

    monkeypatch.setattr("time.sleep", later)
    assert threads.idle(stat) is idle


def test_a_system_that_does_not_say_counts_as_idle(tmp_path: Path) -> None:
    assert threads.idle(tmp_path / "none")
