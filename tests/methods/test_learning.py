"""Training helps, on real images: the bundled digits, three seeds, each method against its own untrained network."""

from collections.abc import Callable

import pytest
import torch

from noveltylab.data.base import NoveltyData, load
from noveltylab.data.protocols import split
from noveltylab.evaluate import novelty_scores
from noveltylab.methods.base import Batch, Method
from noveltylab.metrics import evaluate
from tests.methods.conftest import METHODS, method_config

#: gain in AUROC that every seed must show
MARGIN = 0.25


def digits(inlier: int, seed: int) -> NoveltyData:
    samples = load("digits", None, True, False)
    parts = split("p1", samples.labels, None, inlier, seed=seed, val_fraction=0.1)
    return NoveltyData(
        samples, parts, inlier, size=32, contrast="none", subtract_mean=False, batch_size=16, seed=seed, chunk=1
    )


def auroc(method: Method, data: NoveltyData, primary: str) -> float:
    scores = novelty_scores(method, data.preprocess, data.test, 128, data.val)[primary]
    return float(evaluate(scores, data.test_is_outlier, resamples=1)["auroc"])


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("pca", "knn")])
def test_training_helps(make: Callable[..., Method], name: str) -> None:
    gains = []
    for seed in range(3):
        data = digits(3, seed)
        method = make(name)
        method.prepare(data.preprocess(data.train))
        primary = method_config(name)["primary"]
        before = auroc(method, data, primary)
        method.train()
        torch.manual_seed(seed)
        for epoch in range(12):
            method.progress = epoch / 12
            for positions in data.train_dataloader():
                chunk = data.on_after_batch_transfer(positions, 0)
                method.update(Batch(chunk.x[0], chunk.rows[0]))
        gains.append(auroc(method, data, primary) - before)
    assert min(gains) > MARGIN, gains
