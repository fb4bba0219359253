"""Names, paths and folders of strangers, through whole commands: shown as text, read by one schema, never waited for."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """A test that waits for a pipe ends the whole run instead of hanging it."""
    alarm = threading.Timer(120, os._exit, [70])
    alarm.start()
    yield
    alarm.cancel()


@pytest.mark.parametrize("sweep", [False, True])
def test_markup_in_a_path_is_a_path_also_the_second_time(command: Command, sweep: bool) -> None:
    arguments = ["method=pca", "pictures=false", 'output="x[/x][bold]"', *(["-m"] if sweep else [])]
    first, second = command(*arguments), command(*arguments)
    assert first.returncode == second.returncode == 0, second.stderr
    assert ("complete" if sweep else "complete already: x[/x][bold]/p1") in second.stdout
    assert sweep or "x[/x][bold]/p1" in first.stdout


def test_escapes_in_a_path_reach_neither_terminal_nor_log(command: Command, tmp_path: Path) -> None:
    output = tmp_path / "a\x1b[2J\u202eb"
    done = command("method=pca", "pictures=false", f'output="{output}"')
    assert done.returncode == 0, done.stderr
    again = command("method=pca", "pictures=false", f'output="{output}"')
    (log,) = output.rglob("run.log")
    for text in (done.stdout, done.stderr, again.stdout, log.read_text()):
        assert not {sign for sign in text if not sign.isprintable() and sign != "\n"}
    assert "a\\x1b[2J\\u202eb" in done.stdout and "a\\x1b[2J\\u202eb" in again.stdout
