"""AnoGAN against its paper: losses against NumPy, who learns, the search, its independence of the
batch, switches.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from noveltylab.methods.anogan import AnoGAN, absolute_error
from noveltylab.methods.base import Batch
from noveltylab.nets.losses import bce
from tests.methods.conftest import blobs, changed, sigmoid, states

Make = Callable[..., Any]
NETWORKS = ("generator", "discriminator")


def batch(count: int = 16) -> Batch:
    return Batch(blobs(count), torch.arange(count))


def trained(make: Make, **changes: Any) -> Any:
    method = make("anogan", **changes).train()
    for _ in range(8):
        method.update(batch())
    return method.eval()


# Losses and training.


def test_bce_is_binary_cross_entropy_of_the_sigmoid() -> None:
    z = np.linspace(-8, 8, 33)
    for label, probability in ((1, sigmoid(z)), (0, 1 - sigmoid(z))):
        np.testing.assert_allclose(
            bce(torch.tensor(z), label).numpy(), -np.log(probability), rtol=1e-9
        )


def test_errors_are_sums() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 5, 3, 4, 4))
    expected = np.abs(x - y).reshape(5, -1).sum(1)
    np.testing.assert_allclose(
        absolute_error(torch.tensor(x), torch.tensor(y)).numpy(), expected, rtol=1e-9
    )


def test_reported_and_minimised_losses_equal_numpy(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("anogan").train()
    logits: list[np.ndarray] = []
    inputs: list[Tensor] = []
    points: list[Tensor] = []
    method.discriminator.register_forward_hook(
        lambda m, i, output: logits.append(output.detach().double().numpy())
    )
    method.discriminator.register_forward_pre_hook(
        lambda m, i: inputs.append(i[0].detach().clone())
    )
    method.generator.register_forward_pre_hook(lambda m, i: points.append(i[0].clone()))
    minimised: dict[str, float] = {}
    monkeypatch.setattr(
        method, "minimise", lambda loss, name: minimised.update({name: loss.item()})
    )
    step = batch(64)
    losses = {name: value.item() for name, value in method.update(step).items()}
    real, fake, fooling = logits
    expected = {
        "discriminator": -np.log(sigmoid(real)).mean() - np.log(1 - sigmoid(fake)).mean(),
        "generator": -np.log(sigmoid(fooling)).mean(),
    }
    assert losses == pytest.approx(expected, rel=1e-5)
    assert minimised == pytest.approx(expected, rel=1e-5)
    assert torch.equal(inputs[0], step.x)
    assert torch.equal(inputs[1], inputs[2])  # the same fakes for both steps, from one pass
    (z,) = points
    assert z.shape == (64, 8) and z.min() < -0.9 and z.max() > 0.9 and z.abs().max() <= 1
    assert z.mean().item() == pytest.approx(0, abs=0.1) and z.var().item() == pytest.approx(
        1 / 3, abs=0.05
    )


def test_discriminator_step_changes_the_discriminator_alone(make: Make) -> None:
    method = make("anogan").train()
    fake = method.generator(torch.zeros(16, 8))
    before = states(method, NETWORKS)
    method._update_discriminator(blobs(16), fake.detach())
    assert changed(before, method) == {"discriminator"}
    assert all(p.grad is None for p in method.generator.parameters())


def test_generator_step_changes_the_generator_alone(make: Make) -> None:
    method = make("anogan").train()
    fake = method.generator(torch.rand(16, 8))
    before = states(method, NETWORKS)
    method._update_generator(fake)
    assert changed(before, method) == {"generator"}
    assert all(p.grad is None for p in method.discriminator.parameters())
    assert all(p.requires_grad for p in method.parameters())


# The search.


@pytest.mark.parametrize("lam", [0.0, 0.1, 1.0])
def test_mapping_loss_is_eq_5(make: Make, lam: float) -> None:
    method = trained(make, lam=lam)
    x, z = blobs(4, seed=3), torch.rand(4, 8)
    with torch.no_grad():
        f, x_hat = method.discriminator.features(x), method.generator(z)
        f_hat = method.discriminator.features(x_hat)
        loss = method.mapping_loss(x, f, z)
    residual = np.abs((x - x_hat).double().numpy()).reshape(4, -1).sum(1)
    discrimination = np.abs((f - f_hat).double().numpy()).sum(1)
    np.testing.assert_allclose(loss.numpy(), (1 - lam) * residual + lam * discrimination, rtol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.1, 1.0])
def test_the_search_lowers_its_loss(make: Make, lam: float) -> None:
    method = trained(make, lam=lam, start_candidates=1, search_lr=0.02)
    x = blobs(6, seed=3)
    f = method.discriminator.features(x)
    with torch.no_grad():
        losses = [method.mapping_loss(x, f, method.search(x, steps)) for steps in (0, 10, 40)]
    assert (losses[1] < losses[0]).all()
    assert losses[2].mean() < losses[1].mean()


def test_the_search_finds_an_image_that_the_generator_made(make: Make) -> None:
    method = trained(make, start_candidates=1)
    z = 0.8 * (2 * torch.rand(4, 8, generator=torch.Generator().manual_seed(1)) - 1)
    with torch.inference_mode():
        x = method.generator(z)
        start, image = (method.generator(method.search(x, steps)) for steps in (0, 150))
    assert (absolute_error(x, image) < 0.3 * absolute_error(x, start)).all()


def test_the_search_is_adam_on_each_point_by_itself(make: Make) -> None:
    """Adam's rule written out in float64, one image at a time, the point kept in the cube."""
    method = trained(make, lam=0.1, search_lr=0.3, start_candidates=1).double()
    x = blobs(3, seed=3).double()
    points = method.search(x, 6)
    for image in range(3):
        one = x[image : image + 1]
        f = method.discriminator.features(one).detach()
        z, m, v = method.starts.clone(), 0.0, 0.0
        for step in range(1, 7):
            z.requires_grad_()
            (gradient,) = torch.autograd.grad(method.mapping_loss(one, f, z).sum(), z)
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            move = 0.3 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            z = (z - move).detach().clamp(-1, 1)
        torch.testing.assert_close(points[image : image + 1], z, rtol=1e-6, atol=1e-8)
    assert (points.abs() == 1).any()  # the cube's walls were met


def test_the_search_touches_no_network_and_works_under_inference_mode(make: Make) -> None:
    method = trained(make)
    x = blobs(4, seed=3)
    before = states(method, NETWORKS)
    method.zero_grad()
    expected = method.search(x, 5)
    assert not expected.requires_grad
    with torch.inference_mode():
        assert torch.equal(method.search(x, 5), expected)
        assert torch.equal(method.search(x.clone(), 5), expected)  # an inference tensor
    with torch.no_grad():
        assert torch.equal(method.search(x, 5), expected)
    assert changed(before, method) == set()
    assert all(p.grad is None and p.requires_grad for p in method.parameters())


def test_a_point_depends_neither_on_its_batch_nor_on_its_place(make: Make) -> None:
    """In float64, where rounding has no room to grow, after many steps."""
    method = trained(make, lam=0.1).double()
    x = blobs(8, seed=3).double()
    together = method.search(x, 60)
    torch.testing.assert_close(method.search(x.flip(0), 60).flip(0), together, rtol=0, atol=1e-6)
    torch.testing.assert_close(method.search(x[5:6], 60), together[5:6], rtol=0, atol=1e-6)


def test_scores_repeat_and_draw_nothing(make: Make) -> None:
    method = trained(make)
    x = blobs(4, seed=3)
    state = torch.get_rng_state()
    with torch.inference_mode():
        first, second = method.novelty_score(x), method.novelty_score(x)
    assert torch.equal(torch.get_rng_state(), state)
    for name in first:
        assert torch.equal(first[name], second[name])


@pytest.mark.parametrize("lam", [0.0, 0.1])
def test_the_start_is_the_candidate_with_the_lowest_loss(make: Make, lam: float) -> None:
    method = trained(make, lam=lam, start_candidates=20).double()  # no ties by rounding
    x = blobs(5, seed=3).double()
    assert method.starts.shape == (20, 8) and method.starts.abs().max() <= 1
    with torch.no_grad():
        f = method.discriminator.features(x)
        columns = [method.mapping_loss(x, f, start.expand(5, -1)) for start in method.starts]
        expected = method.starts[torch.stack(columns, 1).argmin(1)]
        assert torch.equal(method.search(x, 0), expected)
    assert len({tuple(start) for start in expected.tolist()}) > 1
    lone = make("anogan", start_candidates=1)
    assert torch.equal(lone.search(x.float(), 0), lone.starts.expand(5, -1))
    torch.manual_seed(99)
    # no seed of a run moves it
    assert torch.equal(AnoGAN((1, 32, 32), latent_size=8).starts, lone.starts)


# Scores, networks, options.


def test_scores_are_eq_6_at_the_point_found(make: Make) -> None:
    method = trained(make, lam=0.25, search_steps=7, validation_steps=3)
    x = blobs(5, seed=4)
    with torch.inference_mode():
        scores, loss = method.novelty_score(x), method.validation_loss(x)
        x_hat, early = method.generator(method.search(x, 7)), method.generator(method.search(x, 3))
        f, f_hat = method.discriminator.features(x), method.discriminator.features(x_hat)
        logits = method.discriminator(x)
        assert torch.equal(method.reconstruct(x), x_hat)
    residual = np.abs((x - x_hat).double().numpy()).reshape(5, -1).sum(1)
    discrimination = np.abs((f - f_hat).double().numpy()).sum(1)
    np.testing.assert_allclose(scores["residual"].numpy(), residual, rtol=1e-5)
    np.testing.assert_allclose(scores["discrimination"].numpy(), discrimination, rtol=1e-5)
    np.testing.assert_allclose(
        scores["novelty"].numpy(), 0.75 * residual + 0.25 * discrimination, rtol=1e-5
    )
    torch.testing.assert_close(scores["discriminator"], -logits)
    np.testing.assert_allclose(
        loss.numpy(), np.abs((x - early).numpy()).reshape(5, -1).sum(1), rtol=1e-5
    )


def test_sizes(make: Make) -> None:
    method = AnoGAN((3, 32, 32))
    widths = [m.out_channels for m in method.generator if isinstance(m, nn.ConvTranspose2d)]
    assert widths == [128, 64, 3]
    assert [m.out_channels for m in method.discriminator.features if isinstance(m, nn.Conv2d)] == [
        64,
        128,
        256,
    ]
    assert method.discriminator.features(torch.zeros(2, 3, 32, 32)).shape == (2, 256 * 4 * 4)
    assert (method.lam, method.search_steps, method.starts.shape) == (0.1, 500, (1, 100))


@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 32, 40)])
def test_geometry(make: Make, shape: tuple[int, int, int]) -> None:
    method = make("anogan", shape)
    method.update(Batch(blobs(8, shape), torch.arange(8)))
    assert method.eval().reconstruct(blobs(2, shape)).shape == (2, *shape)


def test_impossible_sizes_are_refused(make: Make) -> None:
    for shape in ((1, 30, 32), (1, 32, 28)):
        with pytest.raises(ValueError, match=r"data\.size=\d+.*multiple of 8"):
            make("anogan", shape)


def test_optimizers_take_their_options(make: Make) -> None:
    optimizers = make("anogan", lr=0.3, beta1=0.4).build_optimizers()
    assert set(optimizers) == set(NETWORKS)
    for optimizer in optimizers.values():
        assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]) == (
            0.3,
            (0.4, 0.999),
        )


def test_bfloat16_autocast_stays_close_to_float32(make: Make) -> None:
    losses_by_precision = []
    for enabled in (False, True):
        method = make("anogan").train()
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = method.update(batch())
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in method.parameters())
        losses_by_precision.append({name: loss.item() for name, loss in losses.items()})
    assert losses_by_precision[1] == pytest.approx(losses_by_precision[0], rel=0.05)
