"""A run folder in three lines: README's example, executed."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from noveltylab.detector import fold_batch_norm
from noveltylab.methods.base import find_method
from tests.formats import write_images
from tests.methods.conftest import METHODS, SMALL, blobs, method_config
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


@pytest.mark.parametrize("name", [name for name in METHODS if name != "pyod"])
def test_folded_batch_norm_gives_the_same_scores(name: str) -> None:
    config = method_config(name)
    method_class = find_method(config.pop("_target_"))
    arguments = {key: value for key, value in config.items() if key not in ("name", "primary")}
    torch.manual_seed(0)
    method = method_class((1, 32, 32), **{**arguments, **SMALL.get(name, {})})
    x = blobs(64)
    method.prepare(x)
    for module in method.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    method.eval()
    with torch.inference_mode():
        expected = method.novelty_score(x[:5])
    fold_batch_norm(method)
    with torch.inference_mode():
        found = method.novelty_score(x[:5])
    for key, column in expected.items():
        torch.testing.assert_close(found[key], column, rtol=1e-3, atol=1e-4)
