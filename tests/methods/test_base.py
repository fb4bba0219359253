"""What methods have in common: one loop in any precision, phases, and that training helps."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from noveltylab.data.datamodule import NoveltyData
from noveltylab.data.load import load
from noveltylab.data.protocols import split
from noveltylab.methods.base import Batch, Method
from noveltylab.results.phases import begins, configured_phases
from noveltylab.scoring.apply import novelty_scores
from noveltylab.scoring.metrics import evaluate
from tests.methods.conftest import ITERATIVE, METHODS, SMALL, blobs, method_config

Make = Callable[..., Method]


@pytest.mark.parametrize("name", ["ocgan", "ca_entropy", "oled", "nda"])
def test_mixed_precision_sees_the_weights_as_they_are_now(make: Make, name: str) -> None:
    """Many iterations inside one autocast end where as many autocasts of one iteration each end."""
    states = []
    for together in (True, False):
        method = make(name).train()
        method.prepare(blobs(32))
        torch.manual_seed(1)
        batch = Batch(blobs(32), torch.arange(32))
        with torch.autocast("cpu", torch.bfloat16) if together else nullcontext():
            for _ in range(3):
                with torch.autocast("cpu", torch.bfloat16):
                    method.update(batch)
        states.append(method.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=0, atol=0, msg=key)


# The phases that a method says it has are those of its recorded options, and those that its updates
# go by.

PHASE_OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_mining": False},
    {"mining_start": 0.0},
    {"mining_start": 1.0},
    {"pretrain": 0.0},
    {"objective": "soft-boundary"},
    {"objective": "soft-boundary", "warm_up": 0.0},
    {"objective": "soft-boundary", "pretrain": 0.0, "warm_up": 0.2},
    {"warm_up": 0.3},
]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_phases_that_its_recorded_options_say(name: str, make: Make) -> None:
    """For every combination in PHASE_OPTIONS that the method takes."""
    config = method_config(name)
    for changes in PHASE_OPTIONS:
        if changes.keys() <= config.keys():
            method = make(name, **changes)
            assert method.phases == configured_phases(
                {**config, **SMALL.get(name, {}), **changes}
            ), changes
            starts = [phase.start for phase in method.phases]
            assert starts == sorted(starts) and all(0 <= start <= 1 for start in starts)
            assert method.whole_from == (starts[-1] if starts else 0.0)
            assert not starts or starts[0] == 0


@pytest.mark.parametrize("epochs", [1, 3, 4, 10, 15, 150])
def test_phases_are_those_that_update_goes_by(make: Make, epochs: int) -> None:
    """Against the switches that decide what an iteration does, at the beginning of each epoch."""
    ocgan = make("ocgan", mining_start=0.7)
    soft = make("deep_svdd", objective="soft-boundary", pretrain=0.4, warm_up=0.1)
    assert isinstance(soft.warm_up, float)
    for epoch in range(1, epochs + 1):
        ocgan.progress = soft.progress = (epoch - 1) / epochs
        assert (epoch >= begins(ocgan.whole_from, epochs)) == ocgan.phase
        network, over = soft.phase  # type: ignore[misc]  # a pair, declared as Hashable
        moves = network == "encoder" and over >= soft.warm_up
        assert (epoch >= begins(soft.whole_from, epochs)) == moves


# Training helps on the bundled digits, each method against its own untrained network.

#: gain in AUROC that every seed must show; distances from a centre score 0.9 untrained, DROCC's
#: logit 0.74, ALOCC's score of D swings, and the rows of an image are no sound to WaveNet
MARGIN = {"deep_svdd": 0.02, "alocc": 0.1, "drocc": 0.05, "wavenet": 0.01}
#: on every run of the tests; the baselines with the slow ones (that each tells discs from bars is
#: in the contract)
QUICK = {"ocgan", "ca_entropy", "oled", "nda", "ae"}


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
def test_training_helps(make: Make, name: str) -> None:
    check_gain(make, name, seeds=range(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ITERATIVE)
def test_training_helps_with_every_seed(make: Make, name: str) -> None:
    check_gain(make, name, seeds=range(3))


def check_gain(make: Make, name: str, seeds: range) -> None:
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
