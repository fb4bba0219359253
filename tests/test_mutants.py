"""The lists of `make mutants` fit the package, and their runner tests what it has changed."""

import ast
import signal
from pathlib import Path

import pytest
import yaml

from tests.mutants import (
    ROOT,
    SECONDS,
    Mutant,
    Outcome,
    first_failure,
    list_names,
    main,
    read_mutants,
    too_many_survive,
)

ALL = [mutant for name in list_names(ROOT) for mutant in read_mutants(ROOT, name)]

SOURCE = """
def double(x):
    return 2 * x
"""
TEST = """
from noveltylab.methods.toy import double


def test_double():
    assert double(3) == 6
"""
SHARED = """
import pytest


@pytest.mark.parametrize("name", ["toy", "other"])
def test_name(name):
    assert name == "toy"
"""


def test_every_change_applies() -> None:
    assert [fault for mutant in ALL if (fault := mutant.fault(ROOT))] == []


@pytest.mark.parametrize("name", list_names(ROOT))
def test_every_change_is_one_of_its_own_and_leaves_code_that_can_be_read(name: str) -> None:
    changes = [mutant for mutant in ALL if mutant.name == name]
    assert len({mutant.description for mutant in changes}) == len(changes)
    sources = {file: (ROOT / file).read_text() for file in {mutant.file for mutant in changes}}
    codes = []
    for mutant in changes:
        code = mutant.changed(sources[mutant.file])
        assert code != sources[mutant.file], mutant.description
        if mutant.file.suffix == ".py":
            ast.parse(code)
        codes.append(code)
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("name", ["ocgan", "ca_entropy", "oled", "nda"])
def test_each_paper_has_twenty_changes(name: str) -> None:
    assert len([mutant for mutant in ALL if mutant.name == name]) >= 20


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A package of the same layout with one function, its test and a shared suite."""
    root = tmp_path / "toy"
    files = {
        "noveltylab/__init__.py": "",
        "noveltylab/methods/__init__.py": "",
        "noveltylab/methods/toy.py": SOURCE,
        "tests/methods/test_toy.py": TEST,
        "tests/methods/test_contract.py": SHARED,
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '--import-mode=importlib -p no:cacheprovider'\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def write_changes(root: Path, *changes: tuple[str, str, str]) -> None:
    entries = [{"change": words, "old": old, "new": new} for words, old, new in changes]
    path = root / "tests/mutations/toy.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({"noveltylab/methods/toy.py": entries}))


NOTHING = ("nothing changes", "return 2 * x", "return x * 2")
WRONG = ("triples", "return 2 * x", "return 3 * x")
BROKEN = ("cannot be imported", "def double(x):", "import nowhere\ndef double(x):")


def test_what_breaks_is_noticed_and_what_changes_nothing_survives(
    toy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_changes(toy, NOTHING, WRONG, BROKEN)
    before = {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()}
    assert main(toy, ["toy"], 2) == 1
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert ["toy", "SURVIVED", "nothing", "changes"] in lines
    assert ["toy", "noticed", "triples", "test_double"] in lines
    assert [
        "toy",
        "noticed",
        "cannot",
        "be",
        "imported",
        "import",
        "of",
        "tests/methods/test_toy.py",
    ] in lines
    assert lines[-1] == ["toy", "3", "2", "1"]
    assert {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("count", "survived", "bad"), [(20, 1, False), (19, 1, True), (44, 2, False), (44, 3, True)]
)
def test_one_survivor_in_twenty_is_allowed(count: int, survived: int, bad: bool) -> None:
    names = ["few"] * count + ["many"] * 100
    changes = [Mutant(name, Path("file"), str(number), "", "") for number, name in enumerate(names)]
    outcomes = [
        Outcome(change, "" if number < survived else "a test")
        for number, change in enumerate(changes)
    ]
    assert too_many_survive(outcomes) is bad


def test_a_stale_change_and_an_unknown_list_are_named(
    toy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_changes(toy, WRONG, ("gone", "return 4 * x", "return 5 * x"), ("twice", "x", "y"))
    assert main(toy, ["toy"], 1) == 2
    stale = capfd.readouterr().out.splitlines()
    assert stale == [
        "tests/mutations/toy.yaml: 'gone' is stale: its old text occurs 0 times in noveltylab/methods/toy.py, not once",
        "tests/mutations/toy.yaml: 'twice' is stale: its old text occurs 2 times in noveltylab/methods/toy.py, not once",
    ]
    assert main(toy, ["zzz"], 1) == 2
    assert "no list of changes for zzz; there are toy" in capfd.readouterr().out


def test_tests_that_fail_without_a_change_end_the_run(toy: Path) -> None:
    write_changes(toy, WRONG)
    (toy / "noveltylab/methods/toy.py").write_text(SOURCE.replace("2 * x", "2 * x + 0 * nowhere"))
    with pytest.raises(SystemExit, match="without any change the tests of toy fail: test_double"):
        main(toy, ["toy"], 1)


def test_a_process_that_is_stopped_has_noticed(tmp_path: Path) -> None:
    assert first_failure(tmp_path, signal.SIGALRM) == f"out of time ({SECONDS} s)"
    assert first_failure(tmp_path, signal.SIGSEGV) == "the process was ended by signal 11"
