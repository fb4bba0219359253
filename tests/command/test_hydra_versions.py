"""Hydra 1.3, which is installed, and 1.4, which names the classes that it may make."""

import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import hydra
import pytest
from packaging.version import Version

from noveltylab.command import hydra_versions
from noveltylab.command.hydra_versions import BASE, allowed

NEW = Version(hydra.__version__) >= Version("1.4.0rc1")


def test_the_behaviour_of_1_3_is_asked_for_where_there_is_a_choice() -> None:
    assert ({} if NEW else {"version_base": "1.3"}) == BASE


def test_classes_are_named_where_hydra_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[list[str]] = []

    def whitelist(targets: list[str]) -> nullcontext[None]:
        named.append(targets)
        return nullcontext()

    monkeypatch.setattr(hydra_versions, "_WHITELIST", whitelist)
    with allowed("a.B", "c.D"):
        assert named == [["a.B", "c.D"]]
    monkeypatch.setattr(hydra_versions, "_WHITELIST", None)
    with allowed("a.B"):
        assert len(named) == 1


@pytest.mark.skipif(not NEW, reason="needs Hydra 1.4")
def test_a_sweep_of_four_cells_runs_under_hydra_1_4(
    cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    process = cli("-m", "method=pca", "trainer.accelerator=cpu", "inlier=0,1", "seed=0,1")
    assert process.returncode == 0, process.stderr
    assert "MigrationWarning" not in process.stderr
    assert len(list((tmp_path / "elsewhere").rglob("result.json"))) == 4
