"""Signals that end a run with a checkpoint: Ctrl-C, SIGTERM, and that of a closed terminal."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from noveltylab.command.screen import say, say_error
from noveltylab.errors import Interrupted, UserError

#: A closed terminal; None where there is no such signal (Windows).
HANGUP: int | None = getattr(signal, "SIGHUP", None)


def signals_of(system: Any) -> tuple[int, ...]:
    """The signals that end a command, of those that a system's `signal` module has.

    A closed terminal is SIGHUP on POSIX; a closed window and Ctrl-Break are SIGBREAK on Windows.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    return tuple(getattr(system, name) for name in names if hasattr(system, name))


#: Signals that end a training with a checkpoint.
SIGNALS: tuple[int, ...] = signals_of(signal)


def handle(number: int, handler: Callable[[int, object], None]) -> None:
    """Calls the handler on a signal, unless whoever started this process has it ignored (nohup)."""
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, handler)


def leave_terminal() -> None:
    """Sends what would be printed nowhere: writing to a terminal that is closed is an error."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if os.isatty(descriptor) or not _writable(descriptor):
            os.dup2(devnull, descriptor)
    os.close(devnull)


def _writable(descriptor: int) -> bool:
    try:
        os.write(descriptor, b"")
    except OSError:
        return False
    return True


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, a signal to end raises Interrupted, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {}
    for number in SIGNALS:
        if number != signal.SIGINT:
            handlers[number] = signal.getsignal(number)
            handle(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    if number == HANGUP:
        leave_terminal()
    raise Interrupted(number)


def exit_code(error: KeyboardInterrupt) -> int:
    """128 + the signal, as a shell has it."""
    if isinstance(error, Interrupted):
        return 128 + error.signal
    return 128 + int(signal.SIGINT)


def end_command(error: Exception | KeyboardInterrupt, interrupted: str) -> int:
    """Says why a command ends early, and returns its exit code.

    It is 2 for bad input, 1 for a failure, 128 + the signal for an interruption.

    Args:
        error: What ended it.
        interrupted: What to say of an interruption.
    """
    if isinstance(error, KeyboardInterrupt):
        say(interrupted)
        return exit_code(error)
    say_error(error)
    return 2 if isinstance(error, UserError) else 1
