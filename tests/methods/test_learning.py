"""Training helps, on real images: the bundled digits, each method against its own untrained
network.
"""

from collections.abc import Callable

import pytest
import torch

from noveltylab.data.datamodule import NoveltyData
from noveltylab.data.load import load
from noveltylab.data.protocols import split
from noveltylab.methods.base import Batch, Method, find_method
from noveltylab.scoring.apply import novelty_scores
from noveltylab.scoring.metrics import evaluate
from tests.methods.conftest import METHODS, method_config

#: gain in AUROC that every seed must show; distances from a centre score 0.9 untrained, and ALOCC's
#: score of D swings
MARGIN = {"deep_svdd": 0.02, "alocc": 0.1}
#: on every run of the tests; the baselines with the slow ones (that each tells discs from bars is
#: in the contract)
QUICK = {"ocgan", "ca_entropy", "oled", "nda", "ae"}
ITERATIVE = [name for name in METHODS if find_method(method_config(name)["_target_"]).iterative]


def digits(inlier: int, seed: int) -> NoveltyData:
    samples = load("digits", None, True, False)
    parts = split("p1", samples.labels, None, inlier, seed=seed, val_fraction=0.1)
    return NoveltyData(
        samples,
        parts,
        inlier,
        size=32,
        contrast="none",
        subtract_mean=False,
        batch_size=16,
        seed=seed,
        chunk=1,
    )


def auroc(method: Method, data: NoveltyData, score: str) -> float:
    scores = novelty_scores(method, data.preprocess, data.test, 128, data.val)[score]
    return float(evaluate(scores, data.test_is_outlier)["auroc"])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ITERATIVE],
)
def test_training_helps(make: Callable[..., Method], name: str) -> None:
    check_gain(make, name, seeds=range(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ITERATIVE)
def test_training_helps_with_every_seed(make: Callable[..., Method], name: str) -> None:
    check_gain(make, name, seeds=range(3))


def check_gain(make: Callable[..., Method], name: str, seeds: range) -> None:
    gains = []
    for seed in seeds:
        data = digits(3, seed)
        method = make(name)
        method.prepare(data.preprocess(data.train))
        score = method_config(name)["primary"]
        before = auroc(method, data, score)
        torch.manual_seed(seed)
        after = []
        for epoch in range(12):
            method.train()
            method.progress = epoch / 12
            for positions in data.train_dataloader():
                chunk = data.on_after_batch_transfer(positions, 0)
                method.update(Batch(chunk.x[0], chunk.rows[0]))
            if epoch >= 8:
                after.append(auroc(method, data, score))
        gains.append(sum(after) / len(after) - before)
    assert min(gains) > MARGIN.get(name, 0.25), gains
