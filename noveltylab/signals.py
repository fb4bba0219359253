"""Signals that end a run with a checkpoint: Ctrl-C, SIGTERM, and SIGHUP of a closed terminal."""

import os
import signal
from collections.abc import Callable

#: A closed terminal; None where there is no such signal (Windows).
HANGUP: int | None = getattr(signal, "SIGHUP", None)
#: Signals that end a training with a checkpoint.
SIGNALS = tuple(number for number in (signal.SIGINT, signal.SIGTERM, HANGUP) if number is not None)


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
