"""The exported graph gives the run's own scores, for any batch.

A method that cannot be exported says why.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noveltylab.data.images import read
from noveltylab.errors import UserError
from noveltylab.methods.base import find_method
from noveltylab.predict import __main__ as predict
from noveltylab.predict import export, graph
from noveltylab.results.scores import read_scores
from tests.formats import write_images
from tests.methods.conftest import METHODS, method_config
from tests.predict.test_predict import rows_of, trained

PAGE = Path(__file__).parents[2] / "docs" / "own_images.md"

#: Methods whose network was trained elsewhere, on plain pixels.
ON_PLAIN_PIXELS = ("features", "msad", "panda", "patchcore")
#: exported on every run of the tests; the others, with seconds each, by the slow ones
QUICK = {("pca", "onnx"), ("pca", "torch_export"), ("knn", "torch_export")}
CASES = [
    pytest.param(method, form, marks=() if (method, form) in QUICK else pytest.mark.slow)
    for method in METHODS
    for form in export.SUFFIXES
    if not find_method(method_config(method)["_target_"]).not_exportable
]
CANNOT = [
    method for method in METHODS if find_method(method_config(method)["_target_"]).not_exportable
]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr("noveltylab.run.pipeline.draw", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return write_images(tmp_path / "own", {"": 60}, channels=3)


def run_of(go: Callable[..., dict[str, Any]], method: str, *options: str) -> Path:
    common = (
        "data=images",
        "data.root=own",
        "data.size=32",
        "data.batch_size=16",
        f"data.subtract_mean={method not in ON_PLAIN_PIXELS}".lower(),
        *options,
    )
    return trained(go, Path("outputs").absolute(), method, *common)


@pytest.mark.parametrize(("method", "form"), CASES)
def test_exported_scores_are_those_of_the_run(
    run_here: Callable[..., dict[str, Any]], method: str, form: str
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    contrast = "gcn_image" if (method, form) == ("pca", "onnx") else "none"
    folder = run_of(run_here, method, f"data.contrast={contrast}")
    primary = json.loads((folder / "result.json").read_text())["primary"]
    assert export.main([f"run={folder}", f"format={form}", "output=there/graph.bin"]) == 0
    samples = read(Path("own"), verify=False, download=False, inlier=0, size=32, on_error="fail")
    for name in ("calibration.csv", "scores.csv"):
        scores = read_scores(folder / name)
        rows = [samples.ids.tolist().index(sample) for sample in scores.ids]
        images = samples.images[rows]  # 9 or 12 of them: no batch that the graph was made with
        if form == "onnx":
            session = graph.onnx_session(Path("there/graph.bin"))
            names = [output.name for output in session.get_outputs()]
            columns = dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))
        else:
            program = torch.export.load("there/graph.bin").module()
            columns = {primary: program(images)[0].detach().numpy()}
            names = [primary]
        assert names[0] == primary
        for column, values in columns.items():
            assert values.dtype == np.float32 and values.shape == (len(rows),)
            expected = scores.columns[column]
            assert (np.abs(values - expected) <= 1e-4 * np.maximum(np.abs(expected), 1)).all(), (
                column
            )


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


def test_a_missing_extra_is_named(
    run_here: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    folder = run_of(run_here, "pca")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install 'noveltylab\[onnx\]'"):
        export.export(folder, "onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=x", "format=onn"], "format=onn: no such format; did you mean 'onnx'"),
        (["run=x"], "format= is missing"),
        (["format=torch_export"], "run= is missing"),
        (["run=x", "form=onnx"], "form=onnx: no such option; did you mean 'format='"),
        (["run=nowhere", "format=torch_export"], "run=nowhere: no such folder, so no run is there"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_the_run_folder_is_not_written_to(
    run_here: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_of(run_here, "pca")
    assert export.main([f"run={folder}", "format=torch_export", f"output={folder}/x.pt2"]) == 2
    assert "not changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("held_out", "options"),
    [
        pytest.param(12, (), marks=pytest.mark.slow),
        (24, ("protocol.val_fraction=0.5",)),
        pytest.param(40, ("protocol.folds=40",), marks=pytest.mark.slow),
    ],
)
def test_the_lines_of_the_docs_decide_as_predict_does(
    run_here: Callable[..., dict[str, Any]],
    held_out: int,
    options: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The example of docs/own_images.md, run from its text; with 12 held-out inliers neither decides."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    write_images(Path("new"), {"": 12}, channels=3, seed=5)
    write_images(Path("odd"), {"bar": 6}, channels=3)
    for path in Path("odd/bar").iterdir():
        path.rename(f"new/odd{path.name}")
    folder = run_of(
        run_here, "pca", *(options or ("protocol.val_fraction=0.25",)), "data.limit_train=40"
    )
    assert len(read_scores(folder / "calibration.csv")) == held_out
    assert export.main([f"run={folder}", "format=onnx", "output=ca_entropy.onnx"]) == 0
    assert predict.main([f"run={folder}", "input=new"]) == 0
    (example,) = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.S)
    names: dict[str, Any] = {}
    exec(example, names)
    rows = rows_of(Path("scores.csv"))
    assert len(rows) == len(names["paths"]) == 18
    decided = {True: "novel", False: "inlier", None: ""}
    for path, p_value, novel in zip(names["paths"], names["p_values"], names["novel"], strict=True):
        assert rows[str(path)]["decision"] == decided[None if novel is None else bool(novel)]
        assert float(rows[str(path)]["p_value"]) == pytest.approx(p_value, abs=1e-12)
    assert {row["decision"] for row in rows.values()} == (
        {"novel", "inlier"} if held_out > 18 else {""}
    )
    result = json.loads((folder / "result.json").read_text())
    note = names["run"]
    thresholds = {f"{row['fpr']:g}": row["threshold"] for row in result["thresholds"]["at"]}
    assert (
        note["thresholds"] == thresholds and note["weights_sha256"] == result["weights"]["sha256"]
    )
    confident = {"0.01": None, "0.05": None, "0.1": None}
    assert (note["confidence"], note["confident_thresholds"]) == (0.95, confident)
    assert note["run"] == "folders/pca/images/inlier0/seed0" and note["folds"] == result.get(
        "folds", 0
    )
    # again over its own file, not over another's
    assert export.main([f"run={folder}", "format=onnx", "output=ca_entropy.onnx"]) == 0
    Path("mine.onnx").write_bytes(b"mine")
    assert export.main([f"run={folder}", "format=onnx", "output=mine.onnx"]) == 2
    assert (
        "was not written by export" in capsys.readouterr().err
        and Path("mine.onnx").read_bytes() == b"mine"
    )


def test_a_torch_export_carries_the_decision(run_here: Callable[..., dict[str, Any]]) -> None:
    folder = run_of(run_here, "knn", "protocol.val_fraction=0", "select=last")
    for _ in range(2):  # the second time over its own file
        assert export.main([f"run={folder}", "format=torch_export"]) == 0
    extra = {"noveltylab.json": ""}
    torch.export.load("knn.pt2", extra_files=extra)
    note = json.loads(extra["noveltylab.json"])
    assert note["score"] == "distance" and (note["size"], note["channels"]) == (32, 3)
    assert note["held_out"] == [] and set(note["thresholds"].values()) == {None}
    Path("mine.pt2").write_bytes(b"mine")
    assert export.main([f"run={folder}", "format=torch_export", "output=mine.pt2"]) == 2


def test_distances_are_exported_for_any_batch_and_nothing_else_is_changed() -> None:
    rows = torch.randn(70, 5, generator=torch.Generator().manual_seed(0))
    images, references = rows.split((40, 30))

    class Distances(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return torch.cdist(x, references), torch.cdist(x, references, p=1)

    original = torch.cdist
    expected = Distances()(images)
    elsewhere: list[torch.Tensor] = []
    with graph.any_batch():
        assert torch.cdist is original
        thread = Thread(target=lambda: elsewhere.extend(Distances()(images)))
        thread.start()
        thread.join()
        program = graph._program(Distances(), images[:2]).module()
    assert all(map(torch.equal, elsewhere, expected))
    for count in (1, 25, 26, 40):
        for distances, exact in zip(program(images[:count]), expected, strict=True):
            torch.testing.assert_close(distances, exact[:count], atol=1e-4, rtol=0)


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=60), st.integers(1, 20), st.floats(-9, 9))
def test_quantiles_make_no_p_value_too_small(scores: list[float], count: int, score: float) -> None:
    quantiles = export.quantiles(sorted(scores), count)
    share = sum(value >= score for value in quantiles) / len(quantiles)
    exact = sum(value >= score for value in scores) / len(scores)
    assert len(quantiles) == min(count, len(scores)) and share >= exact - 1e-12
    assert share <= exact + 1 / len(quantiles)
