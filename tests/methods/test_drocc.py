"""DROCC: the search, the shell and the loss by hand; the network layer by layer."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from noveltylab.command.recipes import recipe_options
from noveltylab.data.digits import read
from noveltylab.data.preprocess import resize
from noveltylab.methods.base import Batch
from noveltylab.methods.drocc import DROCC, project
from tests.methods.conftest import blobs, changed, layers, sigmoid, spied_update, states

Make = Callable[..., Any]
SHAPE = (1, 8, 8)


def batch(count: int = 16, shape: tuple[int, int, int] = SHAPE) -> Batch:
    return Batch(blobs(count, shape), torch.arange(count))


class Plane(nn.Module):
    """Logits w x + b, whose gradient is the same everywhere."""

    def __init__(self, size: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.line = nn.Linear(size, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.line(x.flatten(1))
        return logits


# The shell.


@pytest.mark.parametrize(("radius", "gamma"), [(2.0, 3.0), (5.0, 1.0)])
def test_projection_into_the_shell(radius: float, gamma: float) -> None:
    directions = np.random.default_rng(0).normal(size=(4, 2, 3, 3))
    directions /= np.linalg.norm(directions.reshape(4, -1), axis=1)[:, None, None, None]
    norms = np.array([0.1, 3.0, 5.5, 40.0])
    h = torch.tensor(directions * norms[:, None, None, None])
    lengths = [
        radius if norm < radius else gamma * radius if norm > gamma * radius else norm
        for norm in norms
    ]
    expected = directions * np.array(lengths)[:, None, None, None]
    np.testing.assert_allclose(project(h, radius, gamma).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(("radius", "gamma", "step"), [(1.0, 2.0, 0.3), (3.0, 1.0, 0.3)])
def test_found_points_lie_in_the_shell(
    make: Make, radius: float, gamma: float, step: float
) -> None:
    method = make("drocc", SHAPE, radius=radius, gamma=gamma, step_size=step).train()
    x = blobs(8, SHAPE)
    norms = (method.search(x) - x).flatten(1).norm(dim=1)
    assert (norms > radius * 0.9999).all() and (norms < gamma * radius * 1.0001).all()


# The shell of the recipe, chosen without outliers.


def test_the_shell_of_the_digits_begins_at_the_distance_of_nearest_neighbours() -> None:
    samples = read(None, verify=True, download=False)
    images = resize(samples.images, 32).float() / 127.5 - 1
    medians = []
    for digit in range(10):
        flat = images[samples.labels == digit].flatten(1)
        distances = torch.cdist(flat, flat)
        distances.fill_diagonal_(torch.inf)
        medians.append(distances.amin(1).median().item())
    radius = recipe_options("drocc", "default", "digits")["method"]["radius"]
    assert radius == round(np.mean(medians)) == 6


@pytest.mark.parametrize("data", ["mnist", "fmnist", "digits", "ucsd"])
def test_the_steps_of_a_search_are_together_as_long_as_the_shell_is_thick(data: str) -> None:
    method = recipe_options("drocc", "default", data)["method"]
    thickness = (method["gamma"] - 1) * method["radius"]
    assert method["steps"] * method["step_size"] == pytest.approx(thickness)


# The search.


def test_a_search_equals_numpy(make: Make) -> None:
    """Steps of fixed length along the gradient of -log(1 - p), each followed by a projection."""
    method = make("drocc", SHAPE, radius=3.0, gamma=2.0, steps=4, step_size=0.7, start=0.5)
    method.network = Plane(64)
    x = blobs(5, SHAPE)
    torch.manual_seed(7)
    points = method.search(x)
    torch.manual_seed(7)
    h = 0.5 * torch.randn_like(x).double().numpy().reshape(5, 64)
    w = method.network.line.weight.detach().double().numpy()[0]
    b = method.network.line.bias.item()
    for _ in range(4):
        p = sigmoid((x.double().numpy().reshape(5, 64) + h) @ w + b)
        gradient = p[:, None] * w  # of -log(1 - p)
        h = h + 0.7 * gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
        norms = np.linalg.norm(h, axis=1, keepdims=True)
        h = h * np.clip(norms, 3.0, 6.0) / norms
    np.testing.assert_allclose(
        points.numpy().reshape(5, 64) - x.numpy().reshape(5, 64), h, rtol=1e-4, atol=1e-5
    )


def test_a_search_finds_what_passes_more_for_inliers(make: Make) -> None:
    method = make("drocc", SHAPE, radius=2.0, gamma=2.0, step_size=0.5).train()
    for _ in range(5):
        method.update(batch())
    x = blobs(8, SHAPE, seed=3)
    method.eval()
    logits = []
    for steps in (1, 20):
        method.steps = steps
        torch.manual_seed(0)
        points = method.search(x)
        with torch.no_grad():
            logits.append(method.network(points).flatten())
    assert (logits[1] > logits[0]).all()


def test_a_search_changes_nothing_of_the_network(make: Make) -> None:
    method = make("drocc", SHAPE).train()
    before = states(method, ["network"])
    points = method.search(blobs(4, SHAPE))
    assert not points.requires_grad
    assert changed(before, method) == set()
    assert method.network.training
    assert all(p.requires_grad and p.grad is None for p in method.parameters())


def test_a_point_does_not_depend_on_the_others_of_its_batch(make: Make) -> None:
    method = make("drocc", SHAPE, step_size=0.5).train()
    x = blobs(4, SHAPE)
    torch.manual_seed(1)
    together = method.search(x)
    torch.manual_seed(1)
    other = method.search(torch.cat([x[:1], -x[1:]]))
    torch.testing.assert_close(together[0], other[0], rtol=1e-4, atol=1e-5)


# The loss.


@pytest.mark.parametrize("mu", [1.0, 0.25])
def test_reported_and_minimised_loss_equal_numpy(
    make: Make, mu: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("drocc", SHAPE, mu=mu).train()
    points = -blobs(16, SHAPE, seed=9)
    monkeypatch.setattr(method, "search", lambda x: points)
    seen: list[tuple[Tensor, Tensor]] = []
    method.network.register_forward_hook(lambda m, i, output: seen.append((i[0], output.detach())))
    minimised, losses = spied_update(method, batch(), monkeypatch)
    ((shown, logits),) = seen  # one pass for both
    assert torch.equal(shown, torch.cat([batch().x, points]))
    p = sigmoid(logits.double().numpy().ravel())
    inliers, found = -np.log(p[:16]).mean(), -np.log(1 - p[16:]).mean()
    assert losses == pytest.approx({"inliers": inliers, "found": found}, rel=1e-5)
    assert minimised == {"network": pytest.approx(inliers + mu * found, rel=1e-5)}


def test_warm_up_has_the_inliers_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make("drocc", SHAPE, warm_up=0.5).train()
    searches: list[int] = []
    original = method.search
    monkeypatch.setattr(method, "search", lambda x: [searches.append(len(x)), original(x)][1])
    keys = {}
    for progress in (0.0, 0.49, 0.5, 0.9):
        method.progress = progress
        keys[progress] = set(method.update(batch()))
    assert keys[0.0] == keys[0.49] == {"inliers"}
    assert keys[0.5] == keys[0.9] == {"inliers", "found"}
    assert searches == [16, 16]
    assert [phase.start for phase in method.phases] == [0.0, 0.5]
    assert make("drocc", SHAPE).phases == []


def test_scores_by_hand(make: Make) -> None:
    method = make("drocc", SHAPE).train()
    for _ in range(3):
        method.update(batch())
    method.eval()
    x = blobs(6, SHAPE, seed=4)
    with torch.inference_mode():
        scores, loss, embedding = (
            method.novelty_score(x),
            method.validation_loss(x),
            method.embed(x),
        )
        logits = method.network(x).double().numpy().ravel()
        assert torch.equal(method.network[-1](embedding), method.network(x))
    np.testing.assert_allclose(scores["logit"].numpy(), -logits, rtol=1e-5)
    np.testing.assert_allclose(loss.numpy(), -np.log(sigmoid(logits)), rtol=1e-4, atol=1e-6)


# Network and options.


def test_the_network_is_the_authors() -> None:
    network = DROCC((3, 32, 32)).network
    blocks = []
    for before, after in ((3, 32), (32, 64), (64, 128)):
        blocks += [
            f"down {before}>{after} k5 s1 p2 bias=False",
            f"norm {after} eps0.0001 fixed",
            "leaky 0.01",
            "maxpool2d",
        ]
    assert layers(network) == [
        *blocks,
        "flatten",
        *("linear 2048>128 bias=False", "leaky 0.01"),
        *("linear 128>64 bias=False", "leaky 0.01"),
        "linear 64>1 bias=False",
    ]
    pool = network[3]
    assert isinstance(pool, nn.MaxPool2d) and (pool.kernel_size, pool.stride) == (2, 2)


def test_width_narrows_every_layer() -> None:
    network = DROCC((1, 32, 32), width=0.25).network
    assert [m.out_channels for m in network if isinstance(m, nn.Conv2d)] == [8, 16, 32]
    assert [m.out_features for m in network if isinstance(m, nn.Linear)] == [32, 16, 1]


def test_impossible_options_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"data\.size=28: DROCC takes a multiple of 8"):
        make("drocc", (1, 28, 28))


def test_optimizer_takes_its_options(make: Make) -> None:
    method = make("drocc", lr=0.3, weight_decay=0.2)
    (group,) = method.build_optimizers()["network"].param_groups
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.2)


def test_bfloat16_autocast_keeps_weights_and_losses_in_float32(make: Make) -> None:
    method = make("drocc", SHAPE).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = method.update(batch())
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in method.parameters())
