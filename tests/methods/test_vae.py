"""The VAE against its paper: both terms of the bound against NumPy and by integration, draws,
switches.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from noveltylab.methods.base import Batch
from noveltylab.methods.vae import divergence, gaussian_nll
from noveltylab.nets.losses import bernoulli_nll
from tests.methods.conftest import blobs, changed, sigmoid, states

Make = Callable[..., Any]
NETWORKS = ("encoder", "decoder")


def batch(count: int = 16) -> Batch:
    return Batch(blobs(count), torch.arange(count))


def numpy_terms(
    x: np.ndarray, mean: np.ndarray, log_var: np.ndarray, logits: np.ndarray, std: float
) -> dict[str, Any]:
    """Means over the batch for the Gaussian likelihood."""
    kl = -0.5 * (1 + log_var - mean**2 - np.exp(log_var)).sum(1)  # appendix B
    log_density = -0.5 * ((x - np.tanh(logits)) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
    recon = -log_density.reshape(len(x), -1).sum(1)
    return {"kl": kl.mean(), "recon": recon.mean(), "elbo": (recon + kl).mean()}


# The terms.


def test_divergence_is_appendix_b_and_torchs_own() -> None:
    mean, log_var = np.random.default_rng(0).normal(size=(2, 6, 9))
    expected = -0.5 * (1 + log_var - mean**2 - np.exp(log_var)).sum(1)
    divergences = divergence(torch.tensor(mean), torch.tensor(log_var))
    np.testing.assert_allclose(divergences, expected, rtol=1e-9)
    q = Normal(torch.tensor(mean), torch.tensor(np.exp(log_var / 2)))
    prior = Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    np.testing.assert_allclose(divergences, kl_divergence(q, prior).sum(1), rtol=1e-9)
    assert divergence(torch.zeros(2, 4), torch.zeros(2, 4)).tolist() == [0, 0]


def test_gaussian_likelihood_is_a_density() -> None:
    x, logits = np.random.default_rng(0).normal(size=(2, 4, 3, 5, 5))
    log_density = -0.5 * ((x - np.tanh(logits)) / 0.3) ** 2 - np.log(0.3 * np.sqrt(2 * np.pi))
    nll = gaussian_nll(torch.tensor(x), torch.tensor(logits), 0.3)
    np.testing.assert_allclose(nll, -log_density.reshape(4, -1).sum(1), rtol=1e-9)
    grid = torch.linspace(-4, 4, 20001, dtype=torch.float64).view(-1, 1, 1, 1)
    total = (-gaussian_nll(grid, torch.full_like(grid, 0.7), 0.3)).exp().sum() * (8 / 20000)
    assert total.item() == pytest.approx(1, abs=1e-6)


def test_bernoulli_likelihood_is_the_cross_entropy_of_grey_values() -> None:
    rng = np.random.default_rng(0)
    x, logits = rng.uniform(-1, 1, size=(4, 3, 5, 5)), 3 * rng.normal(size=(4, 3, 5, 5))
    grey, p = (x + 1) / 2, sigmoid(logits)
    expected = -(grey * np.log(p) + (1 - grey) * np.log(1 - p)).reshape(4, -1).sum(1)
    np.testing.assert_allclose(
        bernoulli_nll(torch.tensor(x), torch.tensor(logits)), expected, rtol=1e-9
    )
    beyond = torch.full((1, 1, 1, 1), 7.0)  # a test image may leave [-1, 1]
    assert bernoulli_nll(beyond, torch.zeros_like(beyond)).item() == pytest.approx(
        np.log(2), rel=1e-6
    )


def test_the_bound_holds_and_is_tight_for_a_linear_gaussian_model() -> None:
    """x = z + 0.5 e has log p(x) in closed form.

    The expected bound is below it, and equals it for the true posterior.
    """
    std, x = 0.5, 0.8
    log_p = -0.5 * x**2 / (1 + std**2) - 0.5 * np.log(2 * np.pi * (1 + std**2))
    noise = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def bound(mean: float, var: float) -> float:
        z = mean + np.sqrt(var) * noise
        recon = 0.5 * ((x - z) / std) ** 2 + np.log(std * np.sqrt(2 * np.pi))
        kl = divergence(torch.full((1, 1), mean), torch.full((1, 1), np.log(var)))
        return -(recon.mean() + kl).item()

    posterior = (x / (1 + std**2), std**2 / (1 + std**2))
    assert bound(*posterior) == pytest.approx(log_p, abs=3e-3)
    assert bound(0.0, 1.0) < log_p - 0.1
    assert bound(posterior[0], 0.01) < log_p - 0.1


# One iteration.


def test_reported_losses_equal_numpy(make: Make) -> None:
    method = make("vae", decoder_std=0.7).train()
    outputs: dict[str, np.ndarray] = {}
    for name in NETWORKS:
        getattr(method, name).register_forward_hook(
            lambda m, i, o, n=name: outputs.update({n: o.detach().double().numpy().copy()})
        )
    step = batch()
    losses = {name: value.item() for name, value in method.update(step).items()}
    mean, log_var = np.split(outputs["encoder"], 2, axis=1)
    expected = numpy_terms(step.x.double().numpy(), mean, log_var, outputs["decoder"], 0.7)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name] == pytest.approx(value, rel=1e-5), name


def test_the_code_is_drawn_with_the_mean_and_deviation_that_the_encoder_gives(make: Make) -> None:
    """Section 2.4, the reparameterisation: recorded codes minus the mean, over the deviation, are
    standard normal.
    """
    method = make("vae", latent_size=64).train()
    method.minimise = lambda loss, name: None
    recorded: dict[str, list[Tensor]] = {"encoder": [], "decoder": []}
    method.encoder.register_forward_hook(lambda m, i, o: recorded["encoder"].append(o.detach()))
    method.decoder.register_forward_pre_hook(lambda m, i: recorded["decoder"].append(i[0].detach()))
    torch.nn.init.normal_(method.encoder[-1].bias, std=1.0)  # deviations that differ from 1
    for _ in range(10):
        method.update(batch(32))
    mean, log_var = torch.cat(recorded["encoder"]).chunk(2, 1)
    noise = (torch.cat(recorded["decoder"]) - mean) / (0.5 * log_var).exp()
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, rel=0.02)
    assert not torch.equal(noise[:32], noise[32:64])


def test_gradients_reach_mean_and_deviation_through_the_draw(make: Make) -> None:
    method = make("vae", beta=0.0).train()  # the divergence gives none
    method.minimise = lambda loss, name: loss.backward()
    method.update(batch())
    for half in method.encoder[-1].bias.grad.chunk(2):
        assert half.any()


def test_an_update_changes_both_networks_and_every_parameter(make: Make) -> None:
    method = make("vae").train()
    before = states(method, NETWORKS)
    parameters = {name: p.clone() for name, p in method.named_parameters()}
    method.update(batch())
    assert changed(before, method) == set(NETWORKS)
    assert [name for name, p in method.named_parameters() if torch.equal(parameters[name], p)] == []


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_minus_the_bound_falls(make: Make, likelihood: str) -> None:
    method = make("vae", likelihood=likelihood).train()
    values = [method.update(batch(32))["elbo"].item() for _ in range(25)]
    assert values[-1] < 0.8 * values[0]


# Switches and scores.


def test_beta_weighs_the_divergence_in_loss_and_score(make: Make) -> None:
    method = make("vae", beta=3.0).train()
    losses = method.update(batch())
    assert losses["elbo"].item() == pytest.approx(
        (losses["recon"] + 3 * losses["kl"]).item(), rel=1e-5
    )
    scores = method.eval().novelty_score(blobs(4))
    torch.testing.assert_close(scores["elbo"], scores["recon"] + 3 * scores["kl"])


def test_likelihoods_use_the_decoders_output_their_own_way(make: Make) -> None:
    x = blobs(3)
    for likelihood, link in (
        ("gaussian", torch.tanh),
        ("bernoulli", lambda o: 2 * torch.sigmoid(o) - 1),
    ):
        method = make("vae", likelihood=likelihood).eval()
        mean, log_var = method.encode(x)
        logits = method.decoder(mean)
        expected = (
            gaussian_nll(x, logits, 0.5) if likelihood == "gaussian" else bernoulli_nll(x, logits)
        )
        torch.testing.assert_close(method.novelty_score(x)["recon"], expected)
        torch.testing.assert_close(method.novelty_score(x)["kl"], divergence(mean, log_var))
        torch.testing.assert_close(method.reconstruct(x), link(logits))
        torch.testing.assert_close(method.embed(x), mean)


def test_without_draws_the_score_is_taken_at_the_mean_code(make: Make) -> None:
    method = make("vae", decoder_std=0.4).train()
    for _ in range(3):
        method.update(batch())
    method.eval()
    x = blobs(5, seed=2)
    with torch.inference_mode():
        mean, log_var = (part.double().numpy() for part in method.encode(x))
        logits = method.decoder(method.embed(x)).double().numpy()
        scores = {name: column.mean().item() for name, column in method.novelty_score(x).items()}
        validation = method.validation_loss(x).mean().item()
    expected = numpy_terms(x.double().numpy(), mean, log_var, logits, 0.4)
    assert scores == pytest.approx(expected, rel=1e-4)
    assert validation == pytest.approx(expected["elbo"], rel=1e-5)


def test_draws_are_averaged_and_the_same_for_every_image_and_call(make: Make) -> None:
    method = make("vae", score_draws=3).eval()
    assert method.draws.shape == (3, 32) and method.draws.std() > 0.5
    x = blobs(2).repeat(2, 1, 1, 1)
    scores = method.novelty_score(x)
    mean, log_var = method.encode(x)
    by_hand = [
        gaussian_nll(x, method.decoder(mean + (0.5 * log_var).exp() * noise), 0.5)
        for noise in method.draws
    ]
    torch.testing.assert_close(scores["recon"], sum(by_hand) / 3)
    for column in scores.values():
        torch.testing.assert_close(column[:2], column[2:])
    assert torch.equal(scores["elbo"], method.novelty_score(x)["elbo"])
    assert torch.equal(method.validation_loss(x), scores["elbo"])


@pytest.mark.parametrize("side", [8, 28, 30, 33])
def test_every_size_comes_back(make: Make, side: int) -> None:
    method = make("vae", (3, side, side)).eval()
    x = torch.rand(2, 3, side, side)
    x_hat = method.reconstruct(x)
    assert x_hat.shape == x.shape and x_hat.abs().max() < 1


# Precision.


def test_bfloat16_autocast_stays_close_to_float32(make: Make) -> None:
    losses_by_precision = []
    for enabled in (False, True):
        method = make("vae").train()
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = method.update(batch())
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        losses_by_precision.append({name: loss.item() for name, loss in losses.items()})
    assert losses_by_precision[1] == pytest.approx(losses_by_precision[0], rel=0.02, abs=0.05)


def test_double_precision_stays_double(make: Make) -> None:
    method = make("vae").double().eval()
    assert method.novelty_score(blobs(2).double())["elbo"].dtype == torch.float64
