"""A few of the kill points of `make chaos`: every method, SIGKILL at random moments, the same bytes
in the end.
"""

import subprocess
import sys
from pathlib import Path

import pytest

#: runs are forked, and killed by SIGKILL
pytestmark = pytest.mark.posix


def go(points: int, seed: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", str(points), str(tmp_path), str(seed)]
    process = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.count("the same") == points


def test_killed_runs_end_with_the_same_bytes(tmp_path: Path) -> None:
    go(2, 0, tmp_path)


@pytest.mark.slow
def test_many_more(tmp_path: Path) -> None:
    go(100, 1, tmp_path)
