"""ALOCC against its paper: losses against NumPy, who learns from what and when, layers, signs of
the scores.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from noveltylab.methods.alocc import ALOCC
from noveltylab.methods.base import Batch
from noveltylab.nets.losses import discriminator_loss
from tests.methods.conftest import NoSync, blobs, changed, sigmoid, states

Make = Callable[..., Any]
NETWORKS = ("reconstructor", "discriminator")


@pytest.fixture
def method(make: Make) -> Any:
    return make("alocc", r_steps=1).train()


def batch(count: int = 16) -> Batch:
    return Batch(blobs(count), torch.arange(count))


def recorded(method: Any) -> dict[str, list[np.ndarray]]:
    """Fills with the outputs of both networks."""
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in NETWORKS}
    for name in NETWORKS:
        getattr(method, name).register_forward_hook(
            lambda m, i, o, n=name: outputs[n].append(o.detach().double().numpy().copy())
        )
    return outputs


# Losses.


def test_discriminator_learns_label_1_for_images_and_0_for_reconstructions() -> None:
    real, fake = np.random.default_rng(0).normal(size=(2, 11))
    expected = -np.log(sigmoid(real)).mean() - np.log(1 - sigmoid(fake)).mean()
    loss = discriminator_loss(torch.tensor(real), torch.tensor(fake)).item()
    assert loss == pytest.approx(expected, rel=1e-9)


def test_reported_losses_equal_numpy(method: Any) -> None:
    outputs, step = recorded(method), batch()
    losses = {name: value.item() for name, value in method.update(step).items()}
    (x_hat,), (real, fake, fooling) = outputs["reconstructor"], outputs["discriminator"]
    expected = {
        "discriminator": -np.log(sigmoid(real)).mean() - np.log(1 - sigmoid(fake)).mean(),
        "mse": ((step.x.double().numpy() - x_hat) ** 2).mean(),  # of the clean image
        "reconstructor": -np.log(sigmoid(fooling)).mean(),
    }
    assert losses == pytest.approx(expected, rel=1e-4)


def test_lambda_weighs_the_reconstruction(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make("alocc", w_rec=3.0, r_steps=1).train()
    minimised: dict[str, float] = {}
    monkeypatch.setattr(
        method, "minimise", lambda loss, name: minimised.update({name: loss.item()})
    )
    losses = {name: value.item() for name, value in method.update(batch()).items()}
    assert minimised["reconstructor"] == pytest.approx(
        losses["reconstructor"] + 3 * losses["mse"], rel=1e-5
    )
    assert minimised["discriminator"] == pytest.approx(losses["discriminator"], rel=1e-6)


# Who changes when, and from what.


def test_discriminator_step_changes_the_discriminator_alone(method: Any) -> None:
    x = blobs(16)
    x_hat = method.reconstruct(x)
    before = states(method, NETWORKS)
    method._update_discriminator(x, x_hat.detach())
    assert changed(before, method) == {"discriminator"}
    assert all(p.grad is None for p in method.reconstructor.parameters())


def test_reconstructor_step_changes_the_reconstructor_alone(method: Any) -> None:
    x = blobs(16)
    x_hat = method.reconstruct(x)
    before = states(method, NETWORKS)
    method._update_reconstructor(x, x_hat)
    assert changed(before, method) == {"reconstructor"}
    assert all(p.grad is None for p in method.discriminator.parameters())
    assert all(p.requires_grad for p in method.parameters())


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_discriminator_goes_first_then_as_many_reconstructor_steps_as_asked(
    make: Make, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    method = make("alocc", r_steps=steps).train()
    outputs, calls = recorded(method), []
    inner = method.minimise
    monkeypatch.setattr(
        method, "minimise", lambda loss, name: (calls.append(name), inner(loss, name))
    )
    method.update(batch())
    assert calls == ["discriminator"] + steps * ["reconstructor"]
    reconstructions = outputs["reconstructor"]
    assert len(reconstructions) == steps  # one pass serves D's step and R's first
    assert all(not np.array_equal(a, b) for a, b in pairwise(reconstructions))
    counts = {
        name: value.item()
        for name, value in method.named_buffers()
        if name.endswith("num_batches_tracked")
    }
    # R's steps leave D's alone
    assert {counts[name] for name in counts if name.startswith("discriminator")} == {2}
    assert {counts[name] for name in counts if name.startswith("reconstructor")} == {steps}


def test_the_reconstructor_sees_noise_and_the_discriminator_the_clean_image(make: Make) -> None:
    method = make("alocc", noise_std=0.3, r_steps=2).train()
    seen: dict[str, list[Tensor]] = {name: [] for name in NETWORKS}
    for name in NETWORKS:
        getattr(method, name).register_forward_pre_hook(
            lambda m, inputs, n=name: seen[n].append(inputs[0].clone())
        )
    step = batch(64)
    for _ in range(2):
        method.update(step)
    noise = [image - step.x for image in seen["reconstructor"]]
    # anew for each iteration
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
    assert noise[0].std().item() == pytest.approx(0.3, rel=0.02)
    assert torch.equal(seen["discriminator"][0], step.x)


def test_each_term_falls_when_it_is_all_that_r_minimises(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for weight, name in ((0.0, "reconstructor"), (1e6, "mse")):
        method = make("alocc", w_rec=weight, lr=1e-3).train()
        for _ in range(3):
            method.update(batch())
        x = blobs(16)
        values = [
            method._update_reconstructor(x, method.reconstruct(x))[name].item() for _ in range(15)
        ]
        assert values[-1] < 0.9 * values[0], name


def test_the_discriminator_comes_to_tell_images_from_reconstructions(method: Any) -> None:
    x, x_hat = blobs(16), method.reconstruct(blobs(16)).detach()
    for _ in range(20):
        method._update_discriminator(x, x_hat)
    assert method.discriminator(x).mean() > 1 > -1 > method.discriminator(x_hat).mean()


def test_no_number_of_steps_waits_for_the_device(make: Make) -> None:
    method = make("alocc", r_steps=2).train()
    method.update(batch())
    with NoSync():
        method.update(batch())


# Networks.


def test_layers_are_the_authors(make: Make) -> None:
    method = ALOCC((1, 28, 28))
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in NETWORKS}
    for name in NETWORKS:
        for layer in getattr(method, name):
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                assert layer.kernel_size == (5, 5) and layer.stride == (2, 2)
                layer.register_forward_hook(
                    lambda m, i, o, n=name: shapes[n].append(tuple(o.shape[1:]))
                )
    logits = method.discriminator(method.reconstruct(torch.rand(2, 1, 28, 28)))
    down, up = [(32, 14, 14), (64, 7, 7), (128, 4, 4)], [(32, 7, 7), (16, 14, 14), (1, 28, 28)]
    assert shapes["reconstructor"] == down + up
    assert shapes["discriminator"] == [(16, 14, 14), (32, 7, 7), (64, 4, 4), (128, 2, 2)]
    assert logits.shape == (2,)
    spread = [
        m.weight.std().item()
        for m in method.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    ]
    assert spread == pytest.approx([0.02] * len(spread), rel=0.15)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 30, 30), (3, 32, 45), (1, 33, 28)])
def test_every_size_comes_back(make: Make, shape: tuple[int, int, int]) -> None:
    method = make("alocc", shape).eval()
    x = torch.rand(3, *shape)
    x_hat = method.reconstruct(x)
    assert x_hat.shape == x.shape and x_hat.abs().max() < 1
    assert {tuple(column.shape) for column in method.novelty_score(x).values()} == {(3,)}


# Scores.


def test_scores_are_minus_the_logits_and_the_clean_images_error(method: Any) -> None:
    for name, weight in method.named_parameters():
        if name.endswith("weight"):
            weight.data.mul_(3)  # so that images get scores of their own
    method.eval()
    x = torch.cat([blobs(3, seed=4), blobs(3, bars=True)])
    with torch.inference_mode():
        scores, validation = method.novelty_score(x), method.validation_loss(x)
        x_hat = method.reconstructor(x)
        probability = sigmoid(method.discriminator(x_hat).double().numpy())
        of_image = sigmoid(method.discriminator(x).double().numpy())
    assert np.ptp(probability) > 1e-3 and np.ptp(of_image) > 1e-3
    error = ((x - x_hat).double().numpy() ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(
        scores["d_recon"], -np.log(probability / (1 - probability)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        scores["d_x"], -np.log(of_image / (1 - of_image)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(scores["mse"], error, rtol=1e-5)
    np.testing.assert_allclose(validation, error, rtol=1e-5)
