"""What is printed: shown as it is, never obeyed, whatever the terminal knows."""

import io
import sys

import pytest

from noveltylab.screen import console, plain, say


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("零件 Größe", "零件 Größe"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\u202eb\u200b", "a\\u202eb\\u200b"),
        ("one\ntwo\r", "one\\ntwo\\r"),
        ("[bold]x[/x]", "[bold]x[/x]"),
        ("\udcff", "\\udcff"),
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    console().print("output x[/x] :smile:")
    assert capsys.readouterr().out == "output x[/x] :smile:\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_terminal_that_lacks_a_character_shows_its_number(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stderr", stream)
    say("a name: 零件")
    stream.flush()
    text = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert text.startswith("a name: ")
    assert ("零件" in text) == (encoding == "utf-8")
