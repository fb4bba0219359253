"""Skip-GANomaly against its paper and the authors' layers: losses against NumPy, who learns,
switches, scores.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from noveltylab.methods.base import Batch
from noveltylab.methods.skip_ganomaly import SkipBlock, SkipGANomaly, unet
from tests.methods.conftest import blobs, changed, sigmoid, spied_update, states

Make = Callable[..., Any]
NETWORKS = ("generator", "discriminator")


@pytest.fixture
def method(make: Make) -> Any:
    return make("skip_ganomaly").train()


def batch(count: int = 16) -> Batch:
    return Batch(blobs(count), torch.arange(count))


# Losses.


def test_reported_losses_equal_numpy(method: Any) -> None:
    """One whole iteration: each reported loss from recorded network outputs."""
    images: list[np.ndarray] = []
    judged: list[tuple[np.ndarray, np.ndarray]] = []
    features: list[np.ndarray] = []
    method.generator.register_forward_hook(
        lambda m, i, output: images.append(output.detach().double().numpy())
    )
    method.discriminator.register_forward_hook(
        lambda m, i, output: judged.append(tuple(part.detach().double().numpy() for part in output))
    )
    method.discriminator.features.register_forward_hook(
        lambda m, i, output: features.append(output.detach().double().numpy())
    )
    step = batch()
    losses = {name: value.item() for name, value in method.update(step).items()}
    (x_hat,) = images  # one pass through G
    (real, _), (fake, _), (fooling, f_hat) = judged
    f = features[2]  # of x by the D just updated: after the two of D's own step
    expected = {
        "discriminator": -np.log(sigmoid(real)).mean() - np.log(1 - sigmoid(fake)).mean(),
        "generator": -np.log(sigmoid(fooling)).mean(),
        "context": np.abs(step.x.double().numpy() - x_hat).mean(),
        "latent": ((f - f_hat) ** 2).mean(),
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name] == pytest.approx(value, rel=1e-4), name


def test_weights_scale_their_own_terms(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make("skip_ganomaly", w_adv=2.0, w_con=3.0, w_lat=5.0).train()
    minimised, losses = spied_update(method, batch(), monkeypatch)
    expected = 2 * losses["generator"] + 3 * losses["context"] + 5 * losses["latent"]
    assert minimised["generator"] == pytest.approx(expected, rel=1e-5)
    assert minimised["discriminator"] == pytest.approx(losses["discriminator"], rel=1e-6)


def test_d_latent_loss_adds_the_gap_to_the_discriminators_loss(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("skip_ganomaly", d_latent_loss=True, w_lat=3.0).train()
    minimised, losses = spied_update(method, batch(), monkeypatch)
    # D was not updated in between, so both steps see the same gap.
    assert minimised["discriminator"] == pytest.approx(
        losses["discriminator"] + 3 * losses["latent"], rel=1e-4
    )


# Who changes when.


def test_discriminator_step_changes_the_discriminator_alone(method: Any) -> None:
    x = blobs(16)
    x_hat = method.generator(x)
    before = states(method, NETWORKS)
    method._update_discriminator(x, x_hat.detach())
    assert changed(before, method) == {"discriminator"}
    assert all(p.grad is None for p in method.generator.parameters())


def test_generator_step_changes_the_generator_alone(method: Any) -> None:
    x = blobs(16)
    x_hat = method.generator(x)
    before = states(method, NETWORKS)
    method._update_generator(x, x_hat)
    assert changed(before, method) == {"generator"}
    assert all(p.grad is None for p in method.discriminator.parameters())
    assert all(p.requires_grad for p in method.parameters())


def test_the_generator_step_meets_the_discriminator_just_updated(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for step in ("_update_discriminator", "_update_generator"):
        inner = getattr(method, step)
        monkeypatch.setattr(method, step, lambda *a, s=step, f=inner: (calls.append(s), f(*a))[1])
    before = {name: p.clone() for name, p in method.named_parameters()}
    method.update(batch())
    assert calls == ["_update_discriminator", "_update_generator"]
    assert [name for name, p in method.named_parameters() if torch.equal(before[name], p)] == []


def test_features_of_x_are_a_constant_for_the_generator(make: Make) -> None:
    method = make("skip_ganomaly", w_adv=0.0, w_con=0.0).train()
    x = blobs(8).requires_grad_()
    x_hat = method.generator(x.detach())
    method.minimise = lambda loss, name: loss.backward()
    method._update_generator(x, x_hat)
    # The context's weight is 0, so whatever reached x came through f(x).
    assert x.grad is None or not x.grad.any()
    assert all(p.grad is not None for p in method.generator.parameters())


# Networks.


def convolutions(network: nn.Module) -> list[tuple[int, int]]:
    """(channels in, channels out) in the order of the forward pass at 32 pixels."""
    sizes: list[tuple[int, int]] = []
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    hooks = [
        m.register_forward_hook(lambda m, i, o: sizes.append((m.in_channels, m.out_channels)))
        for m in network.modules()
        if isinstance(m, kinds)
    ]
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    network.eval()(torch.zeros(1, first.in_channels, 32, 32))
    for hook in hooks:
        hook.remove()
    return sizes


def test_the_authors_unet_at_32_pixels() -> None:
    down = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 512)]
    up = [(512, 512), (1024, 256), (512, 128), (256, 64), (128, 3)]
    assert convolutions(SkipGANomaly((3, 32, 32)).generator) == down + up
    network = unet(1, 4, 6).eval()
    assert network(torch.zeros(2, 1, 64, 64)).shape == (2, 1, 64, 64)
    norms = [
        m.num_features
        for m in SkipGANomaly((3, 32, 32)).generator.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    # none on the first, the last and the bottom layer
    assert sorted(norms) == [64, 128, 128, 256, 256, 512, 512]


def test_skips_carry_every_map_past_what_is_inside() -> None:
    torch.manual_seed(0)
    block = SkipBlock(3, 5, SkipBlock(5, 7, None)).eval()
    x = torch.randn(2, 3, 8, 8)
    out = block(x)
    assert out.shape == (2, 6, 8, 8)
    assert torch.equal(out[:, :3], x)
    assert torch.equal(out[:, 3:], block.body(x))


def test_discriminator_is_dcgans() -> None:
    discriminator = SkipGANomaly((3, 32, 32)).discriminator
    assert [m.out_channels for m in discriminator.modules() if isinstance(m, nn.Conv2d)] == [
        64,
        128,
        256,
    ]
    logits, f = discriminator(torch.randn(4, 3, 32, 32))
    assert logits.shape == (4,) and f.shape == (4, 100)
    torch.testing.assert_close(logits, f @ discriminator.logit.weight[0])


@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 64, 64), (1, 32, 40)])
def test_geometry(make: Make, shape: tuple[int, int, int]) -> None:
    method = make("skip_ganomaly", shape, channels=2).train()
    method.update(Batch(blobs(4, shape), torch.arange(4)))
    method.eval()
    assert method.reconstruct(blobs(2, shape)).shape == (2, *shape)
    assert method.embed(blobs(2, shape)).shape == (2, 16)


def test_impossible_sizes_are_refused(make: Make) -> None:
    for shape in ((1, 30, 32), (1, 32, 28)):
        with pytest.raises(ValueError, match=r"data\.size=\d+.*multiple of 8"):
            make("skip_ganomaly", shape)


def test_defaults_are_the_authors() -> None:
    method = SkipGANomaly((1, 32, 32))
    assert (method.w_adv, method.w_con, method.w_lat, method.lam, method.score_norm) == (
        1,
        50,
        1,
        0.9,
        "l2",
    )
    for optimizer in method.build_optimizers().values():
        assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]) == (
            2e-4,
            (0.5, 0.999),
        )


# Scores.


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_scores_by_hand(make: Make, norm: str) -> None:
    method = make("skip_ganomaly", lam=0.7, score_norm=norm).train()
    for _ in range(3):
        method.update(batch())
    method.eval()
    x = blobs(6, seed=4)
    with torch.inference_mode():
        scores = {name: column.double().numpy() for name, column in method.novelty_score(x).items()}
        x_hat, loss = method.generator(x), method.validation_loss(x).double().numpy()
        f, f_hat = (
            method.discriminator(x)[1].double().numpy(),
            method.discriminator(x_hat)[1].double().numpy(),
        )
        assert torch.equal(method.reconstruct(x), x_hat)
    gap = (x.double() - x_hat.double()).flatten(1).numpy()
    context = np.abs(gap).mean(1) if norm == "l1" else (gap**2).mean(1)
    latent = ((f - f_hat) ** 2).mean(1)
    np.testing.assert_allclose(scores["context"], context, rtol=1e-5)
    np.testing.assert_allclose(scores["latent"], latent, rtol=1e-4)
    np.testing.assert_allclose(scores["novelty"], 0.7 * context + 0.3 * latent, rtol=1e-4)
    # L1, whatever the score's norm
    np.testing.assert_allclose(loss, np.abs(gap).mean(1), rtol=1e-5)


def test_bfloat16_autocast_stays_close_to_float32(make: Make) -> None:
    losses_by_precision = []
    for enabled in (False, True):
        method = make("skip_ganomaly").train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = method.update(batch())
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in method.parameters())
        losses_by_precision.append({name: loss.item() for name, loss in losses.items()})
    assert losses_by_precision[1] == pytest.approx(losses_by_precision[0], rel=0.05, abs=5e-3)
