"""trainer.batch_norm=anew: looks and scores use statistics of clean training inliers, and training
none of it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.batch_norm import compare
from noveltylab.data.preprocess import Preprocess
from noveltylab.errors import UserError
from noveltylab.methods.base import Method
from noveltylab.nets.batch_norm import batch_norms, statistics_of
from noveltylab.options import read_options
from noveltylab.run.build import build
from noveltylab.run.read import read_and_split
from noveltylab.run.summary import print_summary
from noveltylab.scoring.apply import (
    fresh_batch_norm,
    novelty_scores,
    renew_batch_norm,
    validation_loss,
)
from noveltylab.scoring.metrics import evaluate
from noveltylab.training.checkpoints import load_weights
from tests.conftest import TINY, run_in
from tests.methods.conftest import METHODS, make

Run = Callable[..., dict[str, Any]]
__all__ = ["make"]  # the fixture


def images(count: int = 70, seed: int = 0) -> Tensor:
    """Images (N, 1, 32, 32), uint8."""
    return torch.randint(
        0, 256, (count, 1, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def with_statistics(name: str, make: Callable[..., Method]) -> Method | None:
    """The method with odd statistics in every batch norm, None where it has no such layer."""
    method = make(name)
    for layer in batch_norms(method):
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.fill_(3.0)
        layer.running_var.fill_(5.0)
    return method.train() if batch_norms(method) else None


@pytest.mark.parametrize("name", METHODS)
def test_statistics_are_taken_anew_and_nothing_else_changes(
    name: str, make: Callable[..., Method]
) -> None:
    """For every method: statistics of images alone, in whatever state the method and the random
    numbers are.
    """
    method = with_statistics(name, make)
    if method is None:
        return
    images_seen = images()
    method.prepare(Preprocess()(images_seen))
    before = {key: value.clone() for key, value in method.state_dict().items()}
    odd = {
        key
        for key in before
        if key.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
    }
    random = torch.get_rng_state()
    # a network trained elsewhere stays in evaluation mode
    modes = [layer.training for layer in batch_norms(method)]
    renew_batch_norm(method, Preprocess(), images_seen, 16)
    after = {key: value.clone() for key, value in method.state_dict().items()}
    assert torch.equal(torch.get_rng_state(), random) and method.training
    assert {key for key in before if not torch.equal(before[key], after[key])} <= odd
    # 70 // 16
    renewed = [layer for layer in batch_norms(method) if int(layer.num_batches_tracked or 0) >= 4]
    kept = [layer for layer in batch_norms(method) if layer not in renewed]
    assert renewed and all(layer.momentum is not None for layer in batch_norms(method))
    assert [layer.training for layer in batch_norms(method)] == modes
    assert all(
        not bool((layer.running_mean == 3.0).all())
        for layer in renewed
        if layer.running_mean is not None
    )
    assert all(
        bool((layer.running_mean == 3.0).all()) for layer in kept if layer.running_mean is not None
    )
    method.eval()
    # the same again, now from evaluation mode
    renew_batch_norm(method, Preprocess(), images_seen, 16)
    assert not method.training
    assert all(torch.equal(value, after[key]) for key, value in method.state_dict().items())


def test_statistics_are_the_means_over_batches(make: Callable[..., Method]) -> None:
    """Of OCGAN's first batch norm by hand: what its convolutions give of 64 of 70 images, in
    batches of 16.
    """
    method = with_statistics("ocgan", make)
    assert method is not None
    encoder: Any = method.encoder
    renew_batch_norm(method, Preprocess(), images(), 16)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))[:64]
    with torch.no_grad():
        features = encoder[:3](Preprocess()(images()[order]))
    batches = features.unflatten(0, (4, 16))
    torch.testing.assert_close(
        encoder[3].running_mean, batches.mean((0, 1, 3, 4)), rtol=1e-4, atol=1e-5
    )
    variances = torch.stack([batch.var((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(encoder[3].running_var, variances, rtol=1e-4, atol=1e-6)


def test_afterwards_the_statistics_are_those_of_training(make: Callable[..., Method]) -> None:
    method = with_statistics("ocgan", make)
    assert method is not None
    before = [statistics_of(layer) for layer in batch_norms(method)]
    places = [id(layer.running_mean) for layer in batch_norms(method)]
    with fresh_batch_norm(method, Preprocess(), images(), 16):
        assert not torch.equal(
            statistics_of(batch_norms(method)[0])["running_mean"], before[0]["running_mean"]
        )
    for layer, old in zip(batch_norms(method), before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in statistics_of(layer).items())
    # as a recorded graph needs them
    assert [id(layer.running_mean) for layer in batch_norms(method)] == places


OPTIONS = (*TINY, "method.mining_start=0.5", "trainer.average_epochs=0.5")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """OCGAN with running statistics and with new ones, and the latter by its last epoch, averaged:
    folder and result.
    """
    made = {}
    for name, changes in {
        "running": (),
        "anew": ("trainer.batch_norm=anew",),
        "last": ("trainer.batch_norm=anew", "select=last"),
    }.items():
        folder = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NOVELTYLAB_CACHE", str(folder / "cache"))
            result = run_in(folder)(*OPTIONS, *changes)
        (place,) = [path.parent for path in folder.rglob("result.json")]
        made[name] = place, result
    return made


def test_training_goes_on_as_if_nobody_had_looked(
    runs: dict[str, tuple[Path, dict[str, Any]]],
) -> None:
    logs = [(folder / "metrics.csv").read_text().splitlines() for folder, _ in runs.values()]
    train = [[line for line in lines if ",train/" in line] for lines in logs]
    assert train[0] and train[0] == train[1] == train[2]


@pytest.mark.parametrize("name", ["anew", "last", "running"])
def test_the_kept_weights_have_the_statistics_that_were_looked_at(
    runs: dict[str, tuple[Path, dict[str, Any]]], name: str
) -> None:
    """Taken once more from the kept weights they are the same, and the loss by which they were
    chosen is.
    """
    folder, result = runs[name]
    options = read_options(result["config"])
    data, method = build(options, *read_and_split(options))
    load_weights(folder / result["weights"]["file"], method)
    kept = {key: value.clone() for key, value in method.state_dict().items()}
    if result["selected"]["value"] is not None:
        loss = validation_loss(method, data.preprocess, data.val, options.trainer.score_batch_size)
        assert loss == pytest.approx(result["selected"]["value"], rel=1e-5)
    renew_batch_norm(method, data.preprocess, data.train, data.batch_size)
    means = [
        key
        for key in kept
        if key.startswith(("encoder", "decoder")) and key.endswith("running_mean")
    ]
    same = [
        torch.allclose(method.state_dict()[key], kept[key], rtol=1e-4, atol=1e-5) for key in means
    ]
    assert all(same) if name != "running" else not any(same)


def test_new_statistics_are_said(
    runs: dict[str, tuple[Path, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, said in (("running", False), ("anew", True), ("last", True)):
        folder, result = runs[name]
        print_summary(result, folder)
        assert ("batch norm by clean training inliers" in capsys.readouterr().out) is said
        assert np.isfinite(result["scores"]["mse"]["auroc"])


def test_both_statistics_are_compared_on_one_training(
    runs: dict[str, tuple[Path, dict[str, Any]]],
) -> None:
    """Of the averaged last weights; the running statistics are no others where these are asked for."""
    folder, result = runs["last"]
    running, anew = compare(folder)
    assert anew == result["scores"]["mse"]["auroc"]
    options = read_options(result["config"])
    data, method = build(options, *read_and_split(options))
    load_weights(folder / result["weights"]["file"], method)
    renewed = novelty_scores(method, data.preprocess, data.test, 512)["mse"]
    assert (
        anew == pytest.approx(evaluate(renewed, data.test_is_outlier)["auroc"])
        and 0 <= running <= 1
    )
    with pytest.raises(UserError, match="batch_norm=anew select=last"):
        compare(runs["running"][0])
