"""The one way to the terminal: text is shown, never obeyed.

A terminal's encoding never ends a run.
Names, paths and messages may be anybody's: no markup is read in them, control characters and signs
that reverse or hide others are made visible, and what the terminal's encoding lacks is replaced.
"""

import logging
import os
import select
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

#: Joiners that words of some languages need, and that hide nothing.
_JOINERS = {"\u200c", "\u200d"}


def plain(text: object) -> str:
    """A text as one line without any sign that a terminal would obey.

    Each such sign is shown as its escape, e.g. \\x1b.
    """
    line = str(text)
    if line.isascii() and line.isprintable():
        return line
    return "".join(map(_visible, line))


def plain_lines(text: object) -> str:
    """As `plain`, with its line breaks kept."""
    return "\n".join(map(plain, str(text).split("\n")))


def _visible(sign: str) -> str:
    if sign.isprintable() or sign in _JOINERS or unicodedata.category(sign) == "Zs":
        return sign
    return sign.encode("unicode_escape").decode()


class _Screen(Console):
    def on_broken_pipe(self) -> None:
        """The reader has gone (`| head`): the console falls silent, the work goes on."""
        self.quiet = True
        _silence(self.file)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Every piece of text on its way to the terminal."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(plain_lines(segment.text), segment.style)


def console(**settings: Any) -> Console:
    """A console for anybody's text.

    Args:
        settings: As rich's Console takes them, e.g. stderr=True.
    """
    screen = _Screen(markup=False, highlight=False, emoji=False, **settings)
    tolerate_encoding(screen.file)
    return screen


def say(text: object, file: IO[str] | None = None) -> None:
    """One line on standard error, or in another stream."""
    _write(plain(" ".join(str(text).split())), file)


def show(text: object, file: IO[str] | None = None) -> None:
    """Lines with their spaces, on standard error or in another stream."""
    _write(plain_lines(text), file)


def _write(text: str, file: IO[str] | None) -> None:
    file = file or sys.stderr
    if file is None:  # a process without a terminal
        return
    tolerate_encoding(file)
    try:
        print(text, file=file, flush=True)
    except BrokenPipeError:
        _silence(file)


def say_error(error: object) -> None:
    """`error: ...`, one line on standard error."""
    say(f"error: {error}")


def tolerate_encoding(stream: Any) -> None:
    """Lets a stream write an escape such as \\u96f6 for a sign that its encoding lacks, not fail."""
    if getattr(stream, "errors", None) != "backslashreplace" and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


class LogLines(logging.Formatter):
    """Lines of a log that a terminal can show as they are."""

    def format(self, record: logging.LogRecord) -> str:
        return plain_lines(super().format(record))


@contextmanager
def terminal() -> Iterator[None]:
    """Around a whole command: neither a poor encoding nor a broken pipe ends it with an error.

    A pipe breaks when its reader leaves (`| head`).
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    for stream in streams:
        tolerate_encoding(stream)
    try:
        yield
    except BrokenPipeError:
        if not any(map(_abandoned, streams)):
            raise  # some other pipe broke
    finally:
        for stream in streams:
            _flush(stream)


def _abandoned(stream: IO[str]) -> bool:
    """Whether the stream is a pipe that nobody reads any more."""
    with suppress(OSError, ValueError):  # no file, as in a notebook or a test
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLOUT)
            for _, event in poll.poll(0):
                if event & select.POLLERR:
                    return True
    return False


def _flush(stream: IO[str]) -> None:
    try:
        stream.flush()
    except (BrokenPipeError, ValueError):
        _silence(stream)


def _silence(stream: IO[str]) -> None:
    """Lets everything that is still written to the stream vanish."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
