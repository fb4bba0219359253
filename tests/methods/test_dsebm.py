"""DSEBM against its paper: the energy against NumPy, its gradient against autograd and finite
differences, score matching and both scores.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d

from noveltylab.methods.base import Batch
from noveltylab.methods.dsebm import Energy
from tests.methods.conftest import blobs, settings, spied_update

Make = Callable[..., Any]


def batch(count: int = 16) -> Batch:
    return Batch(blobs(count), torch.arange(count))


def random_energy(side: tuple[int, int] = (6, 6), channels: int = 2) -> Energy:
    """One convolution and a dense layer, in double precision, with weights of a size that shows."""
    torch.manual_seed(0)
    small = ((side[0] + 1) // 2, (side[1] + 1) // 2)
    energy = Energy([channels, 3], [side, small], 4).double()
    for parameter in energy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return energy


def softplus(a: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(a))


def numpy_energy(energy: Energy, image: np.ndarray) -> float:
    """Of one image (C, H, W)."""
    weights = {name: value.detach().numpy() for name, value in energy.named_parameters()}
    kernels, biases = weights["convolutions.0.weight"], weights["convolutions.0.bias"]
    maps = []
    for kernel, bias in zip(kernels, biases, strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        parts = [correlate2d(padded[c], kernel[c], "valid")[::2, ::2] for c in range(len(image))]
        maps.append(softplus(sum(parts) + bias))
    h = np.stack(maps).ravel()
    last = softplus(weights["dense.weight"] @ h + weights["dense.bias"])
    return float(((image - weights["prior"]) ** 2).sum() / 2 - last.sum())


# The energy.


def test_the_energy_is_half_the_squared_distance_less_the_last_layer() -> None:
    energy = random_energy()
    images = np.random.default_rng(0).normal(size=(3, 2, 6, 6))
    expected = [numpy_energy(energy, image) for image in images]
    np.testing.assert_allclose(energy(torch.tensor(images)).detach(), expected, rtol=1e-9)


def test_the_prior_alone_is_a_gaussian() -> None:
    energy = random_energy()
    torch.nn.init.zeros_(energy.dense.weight)
    torch.nn.init.constant_(energy.dense.bias, -50)
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    expected = (x - energy.prior).square().sum((1, 2, 3)) / 2
    torch.testing.assert_close(energy(x), expected)
    torch.testing.assert_close(energy.gradient(x), x - energy.prior)


@pytest.mark.parametrize("side", [(6, 6), (7, 7), (8, 5)])
def test_the_gradient_is_that_of_finite_differences(side: tuple[int, int]) -> None:
    energy = random_energy(side)
    x = torch.randn(1, 2, *side, dtype=torch.float64)
    gradient = energy.gradient(x)[0].flatten()
    step = 1e-5
    for place in range(0, gradient.numel(), 7):
        moved = torch.zeros(x.numel(), dtype=torch.float64)
        moved[place] = step
        moved = moved.view_as(x)
        slope = (energy(x + moved) - energy(x - moved)) / (2 * step)
        assert gradient[place].item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("side", [8, 28, 30, 33])
def test_the_gradient_is_autograds_at_every_size(make: Make, side: int) -> None:
    method = make("dsebm", (3, side, side)).double()
    x = torch.randn(2, 3, side, side, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(method.energy(x).sum(), x)
    torch.testing.assert_close(method.energy.gradient(x), expected)


def test_one_layer_is_an_auto_encoder_with_tied_weights() -> None:
    """Section 4: f(x) = W^T sigmoid(W x + b) + b'."""
    energy = Energy([2], [(3, 3)], 5).double()
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    weight, bias = energy.dense.weight.detach().numpy(), energy.dense.bias.detach().numpy()
    flat = x.flatten(1).numpy()
    hidden = 1 / (1 + np.exp(-(flat @ weight.T + bias)))
    expected = hidden @ weight + energy.prior.detach().numpy().ravel()
    f = (x - energy.gradient(x)).detach().flatten(1)
    np.testing.assert_allclose(f, expected, rtol=1e-9)


# Score matching.


def test_the_loss_is_the_error_of_an_image_that_was_moved_down_the_energy(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("dsebm", noise_std=0.3).train()
    for parameter in method.parameters():  # a fresh network hardly looks at its input
        torch.nn.init.normal_(parameter, std=0.1)
    step = batch()
    torch.manual_seed(5)
    minimised, losses = spied_update(method, step, monkeypatch)
    torch.manual_seed(5)
    noisy = (step.x + 0.3 * torch.randn_like(step.x)).requires_grad_()
    (gradient,) = torch.autograd.grad(method.energy(noisy).sum(), noisy)
    error = (step.x - (noisy - gradient)).detach().numpy()
    expected = (error**2).mean()
    assert losses == pytest.approx({"denoising": expected}, rel=1e-4)
    assert minimised == pytest.approx({"energy": expected}, rel=1e-4)


def test_of_gaussian_data_score_matching_finds_the_mean_and_the_shrinkage() -> None:
    """Of x ~ N(m, s^2) the best f is linear: f(x) = m + s^2 / (s^2 + n^2) (x - m).

    One softplus layer can come near it, and its steepest gradient is then 1 minus that share.
    """
    torch.manual_seed(0)
    energy = Energy([1], [(1, 1)], 16).double()
    optimizer = torch.optim.Adam(energy.parameters(), 1e-2)
    for _ in range(1500):
        x = 0.7 + 0.5 * torch.randn(256, 1, 1, 1, dtype=torch.float64)
        noisy = x + 0.5 * torch.randn_like(x)
        loss = (x - (noisy - energy.gradient(noisy))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    points = torch.tensor([0.2, 0.7, 1.2], dtype=torch.float64).view(-1, 1, 1, 1)
    f = (points - energy.gradient(points)).detach().flatten()
    np.testing.assert_allclose(f, [0.45, 0.7, 0.95], atol=0.06)
    assert energy(points)[1] < energy(points)[[0, 2]].min()


def test_an_update_changes_every_parameter(make: Make) -> None:
    method = make("dsebm").train()
    before = {name: p.clone() for name, p in method.named_parameters()}
    method.update(batch())
    assert [name for name, p in method.named_parameters() if torch.equal(before[name], p)] == []


def test_the_optimizer_is_adam_over_all_parameters(make: Make) -> None:
    method = make("dsebm", lr=3e-4)
    (optimizer,) = method.build_optimizers().values()
    assert settings(optimizer) == {"kind": "Adam", "lr": 3e-4}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in method.parameters()}


def test_the_denoising_error_falls(make: Make) -> None:
    method = make("dsebm").train()
    method.prepare(blobs(32))
    values = [method.update(batch(32))["denoising"].item() for _ in range(30)]
    assert values[-1] < 0.8 * values[0]


def test_the_prior_begins_as_the_mean_inlier(make: Make) -> None:
    method = make("dsebm")
    assert not method.energy.prior.any()
    train = blobs(9)
    method.prepare(train)
    np.testing.assert_allclose(
        method.energy.prior.detach(), train.numpy().mean(0), rtol=1e-5, atol=1e-6
    )
    assert method.energy.prior.requires_grad


def test_held_out_inliers_all_meet_the_same_noise(make: Make) -> None:
    method = make("dsebm", noise_std=0.4).eval()
    x = blobs(3).repeat(2, 1, 1, 1)
    loss = method.validation_loss(x)
    torch.testing.assert_close(loss[:3], loss[3:])
    noise = method.noise
    assert noise.shape == x.shape[1:] and noise.std().item() == pytest.approx(0.4, rel=0.1)
    by_hand = (x - method.reconstruct(x + noise)).square().mean((1, 2, 3))
    torch.testing.assert_close(loss, by_hand)
    assert torch.equal(make("dsebm", noise_std=0.4).noise, noise)


# The scores.


def test_scores_are_the_energy_and_its_squared_slope(make: Make) -> None:
    method = make("dsebm").train()
    for _ in range(3):
        method.update(batch())
    method.eval()
    x = blobs(5, seed=2).requires_grad_()
    energy = method.energy(x)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    scores = method.novelty_score(x.detach())
    torch.testing.assert_close(scores["energy"], energy)
    np.testing.assert_allclose(
        scores["recon"].detach(), (gradient.numpy() ** 2).sum((1, 2, 3)), rtol=1e-4
    )
    torch.testing.assert_close(method.reconstruct(x), x - gradient)


def test_the_embedding_is_what_lowers_the_energy(make: Make) -> None:
    method = make("dsebm", features=6).eval()
    x = blobs(4)
    z = method.embed(x)
    assert z.shape == (4, 6) and (z > 0).all()
    distance = (x - method.energy.prior).square().sum((1, 2, 3)) / 2
    torch.testing.assert_close(method.energy(x), distance - z.sum(1))


def test_bfloat16_autocast_stays_close_to_float32(make: Make) -> None:
    method = make("dsebm").eval()
    x = blobs(4)
    expected = method.novelty_score(x)
    with torch.autocast("cpu", torch.bfloat16):
        scores = method.novelty_score(x)
    for name, column in scores.items():
        assert column.dtype == torch.float32
        torch.testing.assert_close(column, expected[name], rtol=0.02, atol=0.5)
