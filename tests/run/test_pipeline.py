"""A whole run: what it leaves behind, that it repeats itself, resumes to the same numbers and
refuses to mix.
"""

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

from noveltylab.data.split import load_split
from noveltylab.errors import UserError
from noveltylab.results.files import sha256_file
from noveltylab.results.scores import read_scores
from noveltylab.training import fit as train
from tests.conftest import TINY, killed
from tests.methods.conftest import METHODS

Run = Callable[..., dict[str, Any]]


def folder_of(tmp_path: Path) -> Path:
    (result,) = (tmp_path / "outputs").rglob("result.json")
    return result.parent


def test_no_pictures_if_none_are_asked_for(
    run_here: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here("method=pca", "pictures=false")
    assert (
        not (folder_of(tmp_path) / "figures").exists() and "figures" not in capsys.readouterr().out
    )
    run_here("method=pca", "pictures=true")  # the same numbers: complete already
    assert "complete already" in capsys.readouterr().out
    run_here("method=pca", "trainer.score_batch_size=7", "trainer.checkpoint_seconds=1")
    assert "complete already" in capsys.readouterr().out


def test_the_folder_holds_everything(run_here: Run, tmp_path: Path, small_data: Path) -> None:
    result = run_here("data=mnist", "data.verify=false", "inlier=3", *TINY, "pictures=true")
    folder = folder_of(tmp_path)
    assert folder == tmp_path / "outputs" / "p2" / "ocgan" / "mnist" / "inlier3" / "seed0"
    names = {
        "config.yaml",
        "split.npz",
        "scores.csv",
        "calibration.csv",
        "floors.csv",
        "result.json",
        "run.log",
        "metrics.csv",
    }
    assert names <= {path.name for path in folder.iterdir()}
    always = {"roc.png", "scores.png", "cases.png", "reconstructions.npz"}
    method_figures = {"random_latents.png", "latent_paths.png", "mined_latents.png"}
    assert {path.name for path in (folder / "figures").iterdir()} == {*always, *method_figures}
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))

    scores = read_scores(folder / "scores.csv")
    assert len(scores) == 200
    assert set(scores.columns) == {"mse", "dv_x", "dv_recon", "dv_recon_noisy"}
    assert np.array_equal(scores.is_outlier, scores.labels != 3)
    for name, column in scores.columns.items():
        assert result["scores"][name]["auroc"] == pytest.approx(
            roc_auc_score(scores.is_outlier, column), abs=1e-12
        )

    split = load_split(folder / "split.npz")
    assert result["n"] == {
        "train": len(split.train),
        "val": len(split.val),
        "test_inliers": int((~split.is_outlier).sum()),
        "test_outliers": int(split.is_outlier.sum()),
    }
    recorded = ("split.npz", "scores.csv", "config.yaml", "floors.csv", "calibration.csv")
    assert result["files"] == {name: sha256_file(folder / name) for name in recorded}
    assert result["weights"] == {
        "file": "checkpoints/val_loss.pt",
        "sha256": sha256_file(folder / "checkpoints" / "val_loss.pt"),
    }
    assert set(read_scores(folder / "calibration.csv").columns) == set(scores.columns)
    assert result["data_verified"] is False
    assert any("were not checked" in warning for warning in result["warnings"])
    assert result["select"] == result["selected"]["rule"] == "val_loss"
    assert {"pca", "knn", "norm"} == set(result["floor"])
    assert {"versions", "commit", "hardware", "command", "time"} <= set(result["provenance"])
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config == result["config"]
    assert config["method"]["channels"] == 4


def test_losses_are_logged_on_our_own_axis(run_here: Run, tmp_path: Path) -> None:
    run_here("inlier=1", *TINY)
    with open(folder_of(tmp_path) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    iterations = sorted({int(row["iteration"]) for row in rows})
    batches = iterations[0]
    assert iterations == [batches * epoch for epoch in (1, 2, 3, 4)]
    assert {row["name"] for row in rows} >= {"train/mse", "train/classifier", "val/loss"}


#: Methods whose smallest run takes many seconds: the slow tests run them.
LONG = {"anogan", "geometric", "msad", "panda", "pixelcnn", "wavenet"}


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in METHODS],
)
def test_every_method_runs_from_the_command_line_to_a_result(run_here: Run, method: str) -> None:
    small = TINY if method == "ocgan" else TINY[3:]
    result = run_here(f"method={method}", "data.limit_train=40", *small, "pictures=true")
    assert 0 <= result["scores"][result["primary"]]["auroc"] <= 1


def test_same_seed_same_scores_and_another_seed_others(run_here: Run, tmp_path: Path) -> None:
    texts = []
    for output, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_here(f"output={tmp_path / 'outputs' / output}", f"seed={seed}", *TINY)
        (path,) = (tmp_path / "outputs" / output).rglob("scores.csv")
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@pytest.mark.parametrize(
    ("epoch", "option"),
    [
        (2, "trainer.lr_decay_from=0.25"),
        (4, "trainer.average_epochs=1.5"),
        pytest.param(1, "trainer.lr_decay_from=0.25", marks=pytest.mark.slow),
        pytest.param(4, "trainer.lr_decay_from=0.25", marks=pytest.mark.slow),
        pytest.param(1, "trainer.average_epochs=1.5", marks=pytest.mark.slow),
        pytest.param(2, "trainer.average_epochs=1.5", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(
    run_here: Run, tmp_path: Path, epoch: int, option: str
) -> None:
    """Killed after `epoch` of 4 epochs, in the middle of the next one (or before scoring): mining
    starts in the last.
    """
    arguments = (*TINY, "trainer.checkpoint_seconds=0", option)
    whole = run_here(f"output={tmp_path / 'outputs' / 'whole'}", *arguments)
    torch.rand(7)
    with killed(epoch, before_scoring=epoch == 4):
        run_here(*arguments)
    assert not list((tmp_path / "outputs" / "p1").rglob("result.json"))
    resumed = run_here(*arguments)
    assert resumed["scores"] == whole["scores"]
    assert resumed["selected"]["epoch"] == whole["selected"]["epoch"]
    for name in ("scores.csv", "metrics.csv"):
        first, second = ((tmp_path / "outputs" / part).rglob(name) for part in ("whole", "p1"))
        assert next(first).read_bytes() == next(second).read_bytes()


def test_learning_rates_fall_linearly_after_their_share(
    run_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4 epochs with a decay from the first quarter on: all, all, 2/3, 1/3; without, all."""
    seen: list[set[float]] = []
    monkeypatch.setattr(
        train.Method,
        "on_train_epoch_end",
        lambda self: seen.append(
            {g["lr"] for o in self.trainer.optimizers for g in o.param_groups}
        ),
    )
    run_here(*TINY, "method.lr=3e-3", "trainer.lr_decay_from=0.25")
    assert [next(iter(rates)) for rates in seen] == pytest.approx([3e-3, 3e-3, 2e-3, 1e-3])
    assert all(len(rates) == 1 for rates in seen)  # every optimizer's
    seen.clear()
    run_here(*TINY, "method.lr=3e-3", "force=true")
    assert seen == [{3e-3}] * 4


@pytest.mark.parametrize("method", ["ae", "nda"])
def test_the_kept_weights_are_the_average(
    run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Against w + (now - w) / n by hand, n chunks in 1.5 epochs; what trains never sees it."""
    seen: list[dict[str, torch.Tensor]] = []
    step = train.Method.training_step

    def watched(self: Any, chunk: Any, index: int) -> None:
        step(self, chunk, index)
        seen.append(
            {name: value.detach().double().clone() for name, value in self.state_dict().items()}
        )

    monkeypatch.setattr(train.Method, "training_step", watched)
    monkeypatch.setattr("noveltylab.run.build.CHUNK_IMAGES", 32)
    arguments = (
        f"method={method}",
        "method.channels=4",
        *TINY[3:],
        "select=last",
        "trainer.max_epochs=3",
    )
    run_here(*arguments, "trainer.average_epochs=1.5")
    trained = list(seen)
    chunks = 1.5 * len(trained) / 3
    assert chunks > 3
    expected = dict(trained[0])
    for now in trained[1:]:
        expected = {name: w + (now[name] - w) / chunks for name, w in expected.items()}
    path = next((tmp_path / "outputs").rglob("last.pt"))
    for name, value in torch.load(path, weights_only=True)["method"].items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-6)
    assert any(
        not torch.allclose(trained[-1][name], expected[name], atol=1e-4) for name in expected
    )
    seen.clear()
    run_here(*arguments, "force=true")
    assert all(torch.equal(seen[-1][name], trained[-1][name]) for name in expected)
    plain = torch.load(path, weights_only=True)["method"]
    assert all(torch.equal(plain[name].double(), trained[-1][name]) for name in expected)


def test_a_damaged_checkpoint_is_set_aside(run_here: Run, tmp_path: Path) -> None:
    whole = run_here(*TINY)
    folder = folder_of(tmp_path)
    (folder / "result.json").unlink()
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    again = run_here(*TINY)
    assert again["scores"] == whole["scores"]
    assert (folder / "checkpoints" / "last.damaged").is_file()
    assert "cannot be read" in (folder / "run.log").read_text()


def test_an_output_that_cannot_be_made_is_one_clear_error(run_here: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot create .*file.*choose another output"):
        run_here(f"output={tmp_path / 'file'}", "method=pca")


def test_force_over_missing_data_leaves_the_old_run_alone(
    run_here: Run, tmp_path: Path, small_data: Path
) -> None:
    arguments = ("data=mnist", "data.verify=false", "inlier=3", "method=pca")
    run_here(*arguments)
    folder = folder_of(tmp_path)
    with pytest.raises(UserError, match="not found"):
        run_here(*arguments, "force=true", f"data.root={tmp_path / 'nowhere'}")
    assert (folder / "result.json").is_file()


def test_a_complete_run_is_not_run_again(
    run_here: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here("method=pca")
    folder = folder_of(tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}
    again = run_here("method=pca", "trainer.accelerator=cpu")
    assert {
        path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")
    } == before
    assert "complete already" in capsys.readouterr().out
    assert again["method"] == "pca"


def test_other_hyperparameters_in_the_same_folder_are_refused(
    run_here: Run, tmp_path: Path
) -> None:
    run_here("method=pca")
    before = (folder_of(tmp_path) / "result.json").read_bytes()
    with pytest.raises(
        UserError, match=r"method\.components: 32 there, 8 here.*output=.*force=true"
    ):
        run_here("method=pca", "method.components=8")
    assert (folder_of(tmp_path) / "result.json").read_bytes() == before


def test_force_runs_again_and_keeps_the_old_folder(run_here: Run, tmp_path: Path) -> None:
    run_here("method=pca")
    old = (folder_of(tmp_path) / "result.json").read_bytes()
    run_here("method=pca", "method.components=8", "force=true")
    paths = [
        path for path in (tmp_path / "outputs").rglob("result.json") if path.parent.name != "seed0"
    ]
    assert [path.read_bytes() for path in paths] == [old]


def test_outliers_never_reach_training_or_selection(
    run_here: Run, small_data: Path, tmp_path: Path
) -> None:
    """Destroying every outlier image changes neither weights nor selection nor preprocessing."""
    arguments = (
        "data=mnist",
        "data.verify=false",
        "inlier=3",
        "data.contrast=gcn",
        "data.subtract_mean=true",
        *TINY,
    )
    first = run_here(f"output={tmp_path / 'outputs' / 'a'}", *arguments)
    raw = small_data / "MNIST" / "raw"
    for stem in ("train", "t10k"):
        for compressed in raw.glob("*.gz"):
            compressed.unlink()
        labels = np.fromfile(raw / f"{stem}-labels-idx1-ubyte", np.uint8)[8:]
        images = bytearray((raw / f"{stem}-images-idx3-ubyte").read_bytes())
        for index in np.flatnonzero(labels != 3):
            images[16 + 784 * index : 16 + 784 * (index + 1)] = bytes([255 - index % 7]) * 784
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(images)
    second = run_here(f"output={tmp_path / 'outputs' / 'b'}", *arguments)
    assert second["selected"] == {**first["selected"]}
    weights = [
        next((tmp_path / "outputs" / part).rglob("val_loss.pt")).read_bytes() for part in "ab"
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("rule", ["oracle", "outlier_val"])
def test_rules_with_outlier_labels_are_reported_apart(
    run_here: Run, tmp_path: Path, small_data: Path, rule: str
) -> None:
    """The run's number stays that of val_loss.

    The labelled rule has its own columns, weights and file.
    """
    arguments = ("data=mnist", "data.verify=false", "inlier=3", *TINY)
    plain = run_here(f"output={tmp_path / 'outputs' / 'plain'}", *arguments)
    result = run_here(f"output={tmp_path / 'outputs' / rule}", f"select={rule}", *arguments)
    assert plain["labelled"] == {}
    assert result["scores"] == plain["scores"]
    assert result["selected"] == plain["selected"]
    assert set(result["labelled"]) == {rule}
    (folder,) = (path.parent for path in (tmp_path / "outputs" / rule).rglob("result.json"))
    columns = read_scores(folder / f"scores_{rule}.csv")
    for name, metrics in result["labelled"][rule].items():
        assert metrics["auroc"] == pytest.approx(
            roc_auc_score(columns.is_outlier, columns.columns[name]), abs=1e-12
        )
        if rule == "oracle":
            assert metrics["auroc"] >= result["scores"][name]["auroc"]
    split = load_split(folder / "split.npz")
    if rule == "outlier_val":
        assert len(split.val_outliers) == 150
        assert not set(split.val_outliers) & set(split.test)
    else:
        assert len(split.val_outliers) == 0
        assert result["split_sha256"] == plain["split_sha256"]


def test_collapse_is_said_loudly(
    run_here: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from noveltylab.methods.pca import PCA

    monkeypatch.setattr(PCA, "novelty_score", lambda self, x: {"residual": torch.ones(len(x))})
    result = run_here("method=pca")
    assert any("distinct" in warning for warning in result["warnings"])
    assert "distinct" in capsys.readouterr().out


def test_what_a_methods_own_metrics_put_in_doubt_is_said(
    run_here: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from noveltylab.methods.pca import PCA

    monkeypatch.setattr(
        PCA, "extra_metrics", lambda self, inliers, outliers: {"share": len(inliers) / 100}
    )
    monkeypatch.setattr(PCA, "doubts", lambda self, metrics: [f"a share of {metrics['share']:.2f}"])
    result = run_here("method=pca")
    assert result["extra"] == {"share": 0.35}
    assert "a share of 0.35" in result["warnings"]
    assert "a share of 0.35" in capsys.readouterr().out


def test_a_diverging_loss_stops_the_run_and_names_it(run_here: Run, tmp_path: Path) -> None:
    from noveltylab.methods.base import Diverged

    with pytest.raises(Diverged, match="not finite in epoch 0"):
        run_here(*TINY, "method.w_mse=1e38", "method.lr=1e30")
    assert "Diverged" in next((tmp_path / "outputs").rglob("run.log")).read_text()
    assert not list((tmp_path / "outputs").rglob("result.json"))


def test_a_run_leaves_the_logging_of_its_process_as_it_was(run_here: Run) -> None:
    logger = logging.getLogger("noveltylab")
    before = (logger.level, logger.propagate, list(logger.handlers), logging.raiseExceptions)
    run_here("method=pca")
    assert (
        logger.level,
        logger.propagate,
        list(logger.handlers),
        logging.raiseExceptions,
    ) == before
