"""Which signals end a command, on every system."""

import signal
from types import SimpleNamespace

import pytest

from noveltylab.command import signals
from noveltylab.command.signals import SIGNALS, interruptible, signals_of
from noveltylab.errors import Interrupted


def test_each_system_has_its_own_signals() -> None:
    windows = SimpleNamespace(SIGINT=2, SIGTERM=15, SIGBREAK=21, CTRL_C_EVENT=0)
    assert signals_of(windows) == (2, 15, 21)
    posix = SimpleNamespace(SIGINT=2, SIGTERM=15, SIGHUP=1, SIGUSR1=10)
    assert signals_of(posix) == (2, 15, 1)
    assert {signal.SIGINT, signal.SIGTERM} < set(SIGNALS)


def test_without_a_hangup_the_others_end_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows; and the handlers of before are put back."""
    monkeypatch.setattr(signals, "SIGNALS", (signal.SIGINT, signal.SIGTERM))
    monkeypatch.setattr(signals, "HANGUP", None)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught, interruptible():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
