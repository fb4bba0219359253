"""`make test` and `make test-long` run every test that is not slow, each once, and CI runs both."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import LONG_TESTS, without_group

ROOT = Path(__file__).parents[1]


def test_every_long_test_is_a_test() -> None:
    """A renamed test leaves its old name behind: `make test-times` writes the list anew."""
    names = LONG_TESTS.read_text().splitlines()
    assert names == sorted(set(names))
    for name in names:
        file, _, function = name.partition("::")
        assert f"def {function.partition('[')[0]}(" in (ROOT / file).read_text(), name


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("tests/a.py::test_it", "tests/a.py::test_it"),
        ("tests/a.py::test_it@audio", "tests/a.py::test_it"),
        ("tests/a.py::test_it[one]@docs/start.md", "tests/a.py::test_it[one]"),
        ("tests/a.py::test_it[you@home]", "tests/a.py::test_it[you@home]"),
    ],
)
def test_a_test_is_named_without_its_group(test: str, expected: str) -> None:
    assert without_group(test) == expected


def test_ci_runs_both() -> None:
    selections = {"test": "not slow and not long", "test-long": "long and not slow"}
    for target, selection in selections.items():
        assert f'-m "{selection}"' in printed_by("make", "-n", target)
    assert "make test LONG=1" in (ROOT / ".ci" / "run").read_text().splitlines()
    assert '-m "not slow"' in printed_by("make", "-n", "test", "LONG=1")


def printed_by(*command: str) -> str:
    # without the options and variables of the make that may run these tests
    environment = {"PATH": os.environ["PATH"]}
    process = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return process.stdout
