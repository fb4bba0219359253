"""A run folder in three lines: README's example, executed."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.formats import write_images
from tests.test_predict import trained

README = Path(__file__).parents[1] / "README.md"


def test_the_example_of_the_readme(
    run_here: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pandas")
    monkeypatch.setattr("noveltylab.run.draw", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    write_images(Path("parts"), {"train/good": 60, "test/good": 3, "test/odd": 3})
    folder = trained(run_here, Path("outputs"), "ca_entropy", "data=folder", "data.root=parts")
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert str(folder) in example and len([line for line in example.splitlines() if line]) == 3
    names: dict[str, Any] = {}
    exec(example, names)
    table = names["table"]
    assert list(table.columns) == ["file", "score", "p_value", "novel", "error"]
    assert len(table) == 6 and table.score.notna().all() and table.error.isna().all()
