"""Batch norm in training mode at test: beside a run's number, never in it, and nothing of the
method changes.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from noveltylab.data.preprocess import Preprocess
from noveltylab.errors import UserError
from noveltylab.methods.base import Batch, Method
from noveltylab.methods.nda import NDA
from noveltylab.report.__main__ import report
from noveltylab.report.collect import collect
from noveltylab.results.files import sha256_file
from noveltylab.results.record import read_result
from noveltylab.run.diagnose import main, parse
from noveltylab.scoring import diagnosis
from noveltylab.scoring.apply import batch_norms, novelty_scores
from noveltylab.scoring.diagnosis import (
    ORDERS,
    batch_statistics,
    check,
    score_in_order,
    split_evenly,
)
from noveltylab.scoring.metrics import evaluate
from tests.conftest import run_in

Run = Callable[..., dict[str, Any]]
NDA_RUN = (
    "method=nda", "data=digits", "method.channels=4", "method.estimator_channels=4", "method.latent_size=4",
    "trainer.max_epochs=2", "trainer.accelerator=cpu",
)  # fmt: skip
PLACE = Path("outputs", "p1", "nda", "digits", "inlier8", "seed0")


class Shifted(Method):
    """Scores an image by how far one batch norm, fitted to inliers, moves it."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape)
        self.norm = nn.BatchNorm2d(1, affine=False)
        self.norm.running_mean.zero_()
        self.norm.running_var.fill_(0.04)

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("move",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        return {"move": (x - 0.2 * self.norm(x)).square().mean((1, 2, 3))}


def synthetic() -> Any:
    """Inliers of mean 0 and outliers of means -0.1 and 0.1, each value with deviation 0.2."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 512)
    means = np.array([-0.1, 0.0, 0.1])[labels][:, None, None, None]
    images = (
        (127.5 * (rng.normal(means, 0.2, (len(labels), 1, 2, 2)) + 1))
        .round()
        .clip(0, 255)
        .astype(np.uint8)
    )
    shuffled = rng.permutation(len(labels))
    return SimpleNamespace(
        test=torch.from_numpy(images[shuffled]),
        val=torch.zeros(0, 1, 2, 2, dtype=torch.uint8),
        test_labels=labels[shuffled],
        test_is_outlier=labels[shuffled] != 1,
        preprocess=Preprocess(),
    )


def auroc(columns: dict[str, np.ndarray], data: Any) -> float:
    return float(evaluate(columns["move"], data.test_is_outlier)["auroc"])


def test_class_order_alone_tells_classes_apart_that_evaluation_mode_cannot() -> None:
    data, method = synthetic(), Shifted((1, 2, 2))
    evaluated = auroc(novelty_scores(method, data.preprocess, data.test, 500), data)
    by_order = {}
    for order, batches in ORDERS.items():
        rows = batches(data.test_labels, data.test_is_outlier, 0)
        by_order[order] = auroc(score_in_order(method, data, rows), data)
    assert evaluated < 0.65
    assert by_order["random_order"] < 0.75
    assert by_order["class_order"] > 0.95
    assert by_order["apart"] > 0.95


def test_a_score_stands_where_its_image_stands() -> None:
    data, method = synthetic(), Shifted((1, 2, 2))
    rows = np.random.default_rng(1).permutation(len(data.test))
    batches = split_evenly(rows)
    column = score_in_order(method, data, batches)["move"]
    x = data.preprocess(data.test[torch.from_numpy(batches[3])])
    by_hand = (
        (x - 0.2 * (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()).square().mean((1, 2, 3))
    )
    np.testing.assert_allclose(column[batches[3]], by_hand.numpy(), rtol=1e-4)


@pytest.mark.parametrize("count", [1, 5, 128, 129, 256, 257, 300])
def test_no_image_is_alone_in_its_batch_unless_it_is_the_only_one(count: int) -> None:
    batches = split_evenly(np.arange(count))
    assert np.array_equal(np.concatenate(batches), np.arange(count))
    assert min(map(len, batches)) > 1 or count == 1
    assert max(map(len, batches)) <= 129


@pytest.mark.parametrize("order", ORDERS)
def test_every_test_image_is_scored_once_in_each_order(order: str) -> None:
    data = synthetic()
    batches = ORDERS[order](data.test_labels, data.test_is_outlier, 3)
    rows = np.concatenate(batches)
    assert sorted(rows.tolist()) == list(range(len(data.test)))
    kinds = [set(data.test_is_outlier[batch].tolist()) for batch in batches]
    classes = [set(data.test_labels[batch].tolist()) for batch in batches]
    if order == "class_order":
        assert np.all(np.diff(data.test_labels[rows]) >= 0)
    elif order == "apart":
        assert all(len(kind) == 1 for kind in kinds)
        assert any(len(names) == 2 for names in classes)
    else:
        assert all(len(names) == 3 for names in classes)
    again = ORDERS[order](data.test_labels, data.test_is_outlier, 3)
    assert np.array_equal(rows, np.concatenate(again))


def test_modes_weights_and_buffers_are_unchanged_afterwards() -> None:
    method = NDA((1, 32, 32), channels=4, estimator_channels=4, latent_size=4)
    images = torch.randint(
        0, 256, (40, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    method.prepare(Preprocess()(images))
    method.train()
    method.update(Batch(Preprocess()(images[:16]), torch.arange(16)))
    method.eval()
    method.encoder.local.train()  # a part in another mode stays in it
    state = {name: value.clone() for name, value in method.state_dict().items()}
    modes = [module.training for module in method.modules()]
    tracked = [norm.track_running_stats for norm in batch_norms(method)]
    with torch.inference_mode(), batch_statistics(method):
        assert all(norm.training for norm in batch_norms(method))
        assert not method.generator.training
        method.novelty_score(Preprocess()(images))
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())
    assert [module.training for module in method.modules()] == modes
    assert [norm.track_running_stats for norm in batch_norms(method)] == tracked
    with pytest.raises(RuntimeError), batch_statistics(method):
        raise RuntimeError
    assert [module.training for module in method.modules()] == modes


@pytest.fixture(scope="module")
def diagnosed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same small run twice: diagnosed, and in plain/ without."""
    folder = tmp_path_factory.mktemp("diagnosed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOVELTYLAB_CACHE", str(folder / "cache"))
        run_in(folder)(*NDA_RUN, "diagnose=batch_statistics")
        run_in(folder / "plain")(*NDA_RUN)
    return folder


def test_the_runs_own_numbers_stay_as_they_are(diagnosed_run: Path) -> None:
    diagnosed, plain = (
        read_result(folder / PLACE) for folder in (diagnosed_run, diagnosed_run / "plain")
    )
    assert diagnosed["scores"] == plain["scores"]
    assert diagnosed["files"]["scores.csv"] == plain["files"]["scores.csv"]
    assert "diagnosis" not in plain
    assert diagnosed["diagnosis"].keys() == {"batch_statistics"}
    by_order = diagnosed["diagnosis"]["batch_statistics"]
    assert by_order.keys() == ORDERS.keys()
    assert all(scores.keys() == diagnosed["scores"].keys() for scores in by_order.values())
    assert by_order["random_order"]["mse"] != diagnosed["scores"]["mse"]


def test_a_finished_run_is_diagnosed_without_training_to_the_same_numbers(
    diagnosed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(diagnosed_run / "plain", tmp_path / "copy")
    folder = tmp_path / "copy" / PLACE
    before = {
        path: sha256_file(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "result.json"
    }
    assert main([f"run={folder}"]) == 0
    output = capsys.readouterr().out
    result = read_result(folder)
    assert result["diagnosis"] == read_result(diagnosed_run / PLACE)["diagnosis"]
    assert {path: sha256_file(path) for path in before} == before
    number = result["diagnosis"]["batch_statistics"]["class_order"]["mse"]["auroc"]
    assert "no numbers of this run" in output
    assert f"mse: in class order {number:.4f}" in output
    assert collect(tmp_path / "copy", check=True).checked == 1


@pytest.mark.parametrize("edit", ["number", "file", "unnamed"])
def test_an_edited_diagnosis_is_found(diagnosed_run: Path, tmp_path: Path, edit: str) -> None:
    shutil.copytree(diagnosed_run / "outputs", tmp_path / "outputs")
    folder = tmp_path / PLACE
    result = json.loads((folder / "result.json").read_text())
    if edit == "number":
        result["diagnosis"]["batch_statistics"]["class_order"]["mse"]["auroc"] = 0.999
    elif edit == "file":
        (folder / diagnosis.FILE).write_text("edited")
    else:
        del result["files"][diagnosis.FILE]
    (folder / "result.json").write_text(json.dumps(result))
    ((_, reason),) = collect(tmp_path / "outputs", check=True).damaged
    assert {"number": "class_order.mse", "file": "SHA-256", "unnamed": "names no"}[edit] in reason


def test_the_report_has_a_section_of_its_own_for_it(diagnosed_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    report(diagnosed_run / "outputs", markdown=page)
    result = read_result(diagnosed_run / PLACE)
    by_order = result["diagnosis"]["batch_statistics"]
    numbers = [
        result["scores"]["mse"]["auroc"],
        *(by_order[order]["mse"]["auroc"] for order in ORDERS),
    ]
    text = page.read_text()
    assert "Diagnosis, no numbers of these methods" in text
    assert f"| mse | {' | '.join(f'{number:.4f}' for number in numbers)} | 1 |" in text
    report(diagnosed_run / "plain" / "outputs", markdown=page)
    assert "Diagnosis" not in page.read_text()


def test_a_complete_run_names_the_command_that_diagnoses_it(
    diagnosed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(diagnosed_run / "plain", tmp_path / "copy")
    run_in(tmp_path / "copy")(*NDA_RUN, "diagnose=batch_statistics")
    assert (
        f"python -m noveltylab diagnose run={tmp_path / 'copy' / PLACE}" in capsys.readouterr().err
    )


def test_methods_without_batch_norm_are_refused_and_nothing_is_created(
    run_here: Run, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"diagnose=batch_statistics: method=pca is fitted once"):
        run_here("method=pca", "data=digits", "diagnose=batch_statistics")
    assert not (tmp_path / "outputs").exists()
    method = Shifted((1, 2, 2))
    method.norm = nn.Identity()  # type: ignore[assignment]  # takes the layer away
    both = np.array([False, False, True, True])
    with pytest.raises(UserError, match=r"method=shifted has no batch norm"):
        check("batch_statistics", "shifted", method, both)
    check("none", "shifted", method, both)
    method = Shifted((1, 2, 2))
    check("batch_statistics", "shifted", method, both)
    with pytest.raises(UserError, match=r"all 3 test images are inliers"):
        check("batch_statistics", "shifted", method, np.zeros(3, bool))
    with pytest.raises(UserError, match=r"two test images of each kind"):
        check("batch_statistics", "shifted", method, np.array([False, False, True]))


def test_a_run_that_cannot_be_diagnosed_is_refused(
    diagnosed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(diagnosed_run / "plain", tmp_path / "copy")
    folder = tmp_path / "copy" / PLACE
    before = (folder / "result.json").read_bytes()
    for arguments, words in (
        ([f"run={tmp_path}/nowhere"], "no such folder"),
        (["data.root=/data"], "name one run folder"),
        ([f"run={folder}", "diagnose=none"], "choose from batch_statistics"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    weights = folder / read_result(folder)["weights"]["file"]
    weights.write_bytes(b"other")
    assert main([f"run={folder}"]) == 2
    assert "SHA-256 differs" in capsys.readouterr().err
    weights.unlink()
    assert main([f"run={folder}"]) == 2
    assert "weights are not there" in capsys.readouterr().err
    assert (folder / "result.json").read_bytes() == before


def test_the_command_takes_a_run_and_the_callers_options() -> None:
    assert parse(["run=a/b", "data.root=/data", "diagnose=batch_statistics"]) == (
        Path("a/b"),
        ["data.root=/data"],
    )
