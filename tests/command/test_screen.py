"""What anybody's text may do to a terminal: nothing."""

import io
import logging
import os
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from noveltylab.command.screen import (
    LogLines,
    console,
    plain,
    plain_lines,
    say,
    say_error,
    terminal,
)

HOSTILE = "a\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08\u202egpj.exe\u2066\ud800"


def obeyed(text: str) -> set[str]:
    """The signs of a text that are no plain ones."""
    return {sign for sign in text if not sign.isprintable() and sign != "\n"}


@pytest.mark.parametrize(
    "text",
    [
        "零件",
        "Teile_Größe",
        "é\u00a0x",
        "می\u200cخواهم",
        "a b",
        "[bold]x[/x]",
        ":smile:",
        "👩\u200d🔬",
    ],
)
def test_text_of_ordinary_people_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


def test_control_characters_are_seen() -> None:
    assert plain("a\x1b[2Jb\n\t\x7f\x9b\u202e\udcff") == "a\\x1b[2Jb\\n\\t\\x7f\\x9b\\u202e\\udcff"
    assert not obeyed(plain(HOSTILE))
    assert plain_lines("a\x1b\nb") == "a\\x1b\nb"


def written(encoding: str = "utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="\n")


def text_of(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_shows_names_as_they_are(terminal: bool) -> None:
    stream = written()
    screen = console(file=stream, width=200, force_terminal=terminal, color_system=None)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row("x[/x] [bold]y[/] :smile:")
    table.add_row(Text(HOSTILE))
    screen.print("x[/x]", HOSTILE)
    screen.print(table)
    text = text_of(stream)
    assert not obeyed(text)
    assert "x[/x] [bold]y[/] :smile:" in text and "\\x1b]0;owned" in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_the_encoding_lacks_is_replaced(encoding: str) -> None:
    stream = written(encoding)
    console(file=stream, width=80).print("Größe 零件 ·")
    say("零件", stream)
    assert "\\u96f6\\u4ef6" in text_of(stream)


def test_say_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say_error("a\nerror: b\x1b[2J")
    assert capsys.readouterr().err == "error: a error: b\\x1b[2J\n"


def test_a_log_keeps_its_lines_and_nothing_else() -> None:
    record = logging.LogRecord("n", logging.INFO, "", 0, "a\nb\x1b%s", ("\x07",), None)
    assert LogLines("%(message)s").format(record) == "a\nb\\x1b\\x07"


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_leaves_ends_nothing(monkeypatch: pytest.MonkeyPatch, lines: int) -> None:
    """As `| head` does; whether the first line is refused or what is left at the end."""
    reading, writing = os.pipe()
    os.close(reading)
    steps = []
    with open(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with terminal():
            print("line\n" * lines)
            steps.append("print")
        with terminal():
            console(file=stream).print("line")
            say("line", stream)
            steps.append("work")
        print("still written, and lost")
    assert steps[-1] == "work"


def test_another_pipe_that_breaks_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with open(tmp_path / "screen", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(BrokenPipeError), terminal():
            raise BrokenPipeError
