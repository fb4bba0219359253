"""The exported graph gives the run's own scores, for any batch; a method that cannot be exported says why."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from noveltylab import export
from noveltylab.data.folder import read
from noveltylab.errors import UserError
from noveltylab.methods.base import find_method
from noveltylab.scores import read_scores
from tests.formats import write_images
from tests.methods.conftest import METHODS, method_config
from tests.test_predict import trained

#: exported on every run of the tests; the others, with seconds each, by the slow ones
QUICK = {("pca", "onnx"), ("pca", "torch_export"), ("knn", "torch_export")}
CASES = [
    pytest.param(method, form, marks=() if (method, form) in QUICK else pytest.mark.slow)
    for method in METHODS
    for form in export.SUFFIXES
    if not find_method(method_config(method)["_target_"]).not_exportable
]
CANNOT = [method for method in METHODS if find_method(method_config(method)["_target_"]).not_exportable]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr("noveltylab.run.draw", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return write_images(tmp_path / "own", {"": 60}, channels=3)


def run_of(go: Callable[..., dict[str, Any]], method: str, *options: str) -> Path:
    common = ("data=folder", "data.root=own", "data.batch_size=16", "data.subtract_mean=true", *options)
    return trained(go, Path("outputs").absolute(), method, *common)


@pytest.mark.parametrize(("method", "form"), CASES)
def test_exported_scores_are_those_of_the_run(run_here: Callable[..., dict[str, Any]], method: str, form: str) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    folder = run_of(run_here, method)
    primary = json.loads((folder / "result.json").read_text())["primary"]
    assert export.main([f"run={folder}", f"format={form}", "output=there/graph.bin"]) == 0
    samples = read(Path("own"), verify=False, download=False, inlier=0, size=32, on_error="fail")
    for name in ("calibration.csv", "scores.csv"):
        scores = read_scores(folder / name)
        rows = [samples.ids.tolist().index(sample) for sample in scores.ids]
        images = samples.images[rows]  # 9 or 12 of them: no batch that the graph was made with
        if form == "onnx":
            session = export.onnx_session(Path("there/graph.bin"))
            names = [output.name for output in session.get_outputs()]
            found = dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))
        else:
            graph = torch.export.load("there/graph.bin").module()
            found = {primary: graph(images)[0].detach().numpy()}
            names = [primary]
        assert names[0] == primary
        for column, values in found.items():
            assert values.dtype == np.float32 and values.shape == (len(rows),)
            expected = scores.columns[column]
            assert (np.abs(values - expected) <= 1e-4 * np.maximum(np.abs(expected), 1)).all(), column


@pytest.mark.parametrize("method", CANNOT)
def test_a_method_that_cannot_says_why(
    run_here: Callable[..., dict[str, Any]], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_of(run_here, method)
    capsys.readouterr()
    assert export.main([f"run={folder}", "format=torch_export"]) == 1
    error = capsys.readouterr().err
    assert f"{method} cannot be exported: " in error and len(error.splitlines()) == 1
    assert not list(Path().glob("*.pt2"))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install 'noveltylab\[onnx\]'"):
        export.export(Path("nowhere"), "onnx")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run=x", "format=onn"], "format=onn: no such format; did you mean 'onnx'"),
        (["run=x"], "format= is missing"),
        (["format=torch_export"], "run= is missing"),
        (["run=x", "form=onnx"], "form=onnx: no such option; did you mean 'format='"),
        (["run=nowhere", "format=torch_export"], "run=nowhere: no such folder, so no run is there"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_the_run_folder_is_not_written_to(
    run_here: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_of(run_here, "pca")
    assert export.main([f"run={folder}", "format=torch_export", f"output={folder}/x.pt2"]) == 2
    assert "not changed" in capsys.readouterr().err
