"""OLED against its paper: losses against NumPy, who is trained by what, the threshold unit, layer
tables, scores, switches.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from noveltylab.command.recipes import recipe_options
from noveltylab.methods.base import Batch
from noveltylab.methods.oled import (
    ARCHITECTURES,
    OLED,
    UpsampledConv,
    choose_architecture,
    context_error,
    crop_mask,
    rank_auroc,
    squared_error,
    threshold,
)
from tests.methods.conftest import NoSync, blobs, method_config

Make = Callable[..., Any]
NETWORKS = ("encoder", "decoder", "mask_generator")
INDEX = torch.arange(16)


@pytest.fixture
def oled(make: Make) -> Any:
    """Trains both networks at every update, with masks that hide what they should."""
    return make("oled", mask_grad="ste", gamma=12.5).train()


def textured(count: int = 16, shape: tuple[int, int, int] = (1, 32, 32)) -> Tensor:
    """Images without flat regions: activation maps of flat regions tie."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def set_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    monkeypatch.setattr(OLED, "current_epoch", property(lambda self: epoch))


def states(method: Any, buffers: bool = True) -> dict[str, dict[str, Tensor]]:
    values = {}
    for name in NETWORKS:
        network = getattr(method, name)
        items = network.state_dict().items() if buffers else network.named_parameters()
        values[name] = {key: value.detach().clone() for key, value in items}
    return values


def changed(before: dict[str, dict[str, Tensor]], method: Any, buffers: bool = True) -> set[str]:
    after = states(method, buffers)
    return {
        n for n in NETWORKS if any(not torch.equal(before[n][k], after[n][k]) for k in before[n])
    }


def record(method: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What R is given, what it returns and which masks are made, as the next update goes on."""
    images: list[Tensor] = []
    returned: list[Tensor] = []
    masks: list[Tensor] = []
    method.encoder.register_forward_pre_hook(
        lambda module, inputs: images.append(inputs[0].detach().clone())
    )
    method.decoder.register_forward_hook(
        lambda module, inputs, out: returned.append(out.detach().clone())
    )
    inner = method.masks
    method.masks = lambda x: (masks.append(inner(x)), masks[-1])[1]
    return images, returned, masks


def gradients(method: Any, x: Tensor) -> dict[str, dict[str, Tensor]]:
    """The gradients of one update by network, without any step."""
    method.build_optimizers = lambda: {}
    method.minimise = lambda loss, name: loss.backward()
    method.update(Batch(x, INDEX))
    return {n: {k: p.grad for k, p in getattr(method, n).named_parameters()} for n in NETWORKS}


def mean_of_absolute(x: np.ndarray) -> float:
    return float(np.abs(x).mean())


# Losses (section 3.5).


def test_squared_and_context_error_equal_numpy() -> None:
    rng = np.random.default_rng(0)
    x, x_hat = rng.normal(size=(2, 5, 3, 4, 4))
    masked = (rng.random((5, 1, 4, 4)) < 0.3).astype(float)
    np.testing.assert_allclose(
        squared_error(torch.tensor(x), torch.tensor(x_hat)).numpy(),
        ((x - x_hat) ** 2).mean((1, 2, 3)),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        context_error(torch.tensor(x), torch.tensor(x_hat), torch.tensor(masked)).numpy(),
        np.abs(masked * x - masked * x_hat).sum((1, 2, 3))
        / 48,  # over ALL values, not the hidden ones
        rtol=1e-12,
    )


@pytest.mark.parametrize("mask", ["learned", "frozen", "random10", "half", "none"])
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32)])
def test_reported_losses_equal_numpy(make: Make, mask: str, shape: Any) -> None:
    method = make("oled", shape, mask=mask, mask_grad="ste").train()
    images, returned, masks = record(method)
    x = textured(shape=shape)
    losses = method.update(Batch(x, INDEX))
    image, m = x.double().numpy(), masks[0].detach().double().numpy()
    x_hat, x_hat_m = (out.double().numpy() for out in (returned[0], returned[-1]))
    masked = (m == 0).astype(float)
    assert losses["rec"].item() == pytest.approx(((image - x_hat) ** 2).mean(), rel=1e-5)
    assert losses["mask"].item() == pytest.approx(((image - x_hat_m) ** 2).mean(), rel=1e-5)
    expected = mean_of_absolute(masked * image - masked * x_hat_m)
    assert losses["cont"].item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(images[0], x)
    torch.testing.assert_close(images[-1].double().numpy(), image * m, rtol=1e-6, atol=1e-7)
    assert len(returned) == (1 if mask == "none" else 2)
    if mask in ("learned", "frozen"):
        assert losses["mask_count"].item() == 129
        assert losses["mask_soft_share"].item() == 0
    else:
        assert set(losses) == {"rec", "mask", "cont"}
        assert losses["cont"].item() > 0 or mask != "random10"


def test_weights_scale_their_own_terms(make: Make) -> None:
    method = make("oled", mask_grad="ste", gamma=3.0, lam=5.0).train()
    minimised: dict[str, float] = {}
    method.minimise = lambda loss, name: minimised.update({name: loss.item()})
    losses = method.update(Batch(textured(), INDEX))
    expected = losses["mask"] + 3 * losses["cont"] + 5 * losses["rec"]
    assert minimised["reconstructor"] == pytest.approx(expected.item(), rel=1e-5)
    assert list(minimised) == ["mask_module", "reconstructor"]


# Adversarial training: who gets which gradient (Eq. 8).


def separate_gradients(method: Any, x: Tensor, cont_weight: float) -> dict[str, dict[str, Tensor]]:
    """The same gradients written plainly, each from its own forward pass on copies of the networks."""
    copies = copy.deepcopy(method)
    m = threshold(
        copies.mask_generator(x), copies.t, copies.mask_eps, copies.mask_grad, copies.mask_tau
    )
    masked = (m == 0).to(x)
    x_hat_m = copies.decoder(copies.encoder(x * m))
    climbs = (x - x_hat_m).pow(2).mean() + cont_weight * (
        masked * x - masked * x_hat_m
    ).abs().mean()
    up = torch.autograd.grad(-climbs, list(copies.mask_generator.parameters()))
    x_hat = copies.decoder(copies.encoder(x))
    x_hat_m = copies.decoder(copies.encoder((x * m).detach()))
    descends = (
        (x - x_hat_m).pow(2).mean()
        + method.gamma * (masked * x - masked * x_hat_m).abs().mean()
        + method.lam * (x - x_hat).pow(2).mean()
    )
    reconstructor = [*copies.encoder.parameters(), *copies.decoder.parameters()]
    down = iter(torch.autograd.grad(descends, reconstructor))
    gradient_by_network = {
        "mask_generator": dict(zip(dict(method.mask_generator.named_parameters()), up, strict=True))
    }
    for name in ("encoder", "decoder"):
        gradient_by_network[name] = {
            key: next(down) for key, _ in getattr(method, name).named_parameters()
        }
    return gradient_by_network


@pytest.mark.parametrize("mask_grad", ["eps", "ste"])
@pytest.mark.parametrize(("objective", "weight"), [("mask", 0.0), ("mask_cont", 7.0)])
def test_gradients_are_those_of_eq_8(
    make: Make, mask_grad: str, objective: str, weight: float
) -> None:
    # float64, and an eps that gives more than near-ties a gradient
    options = {
        "mask_grad": mask_grad,
        "mask_objective": objective,
        "mask_eps": 1e-3,
        "gamma": 7.0,
        "lam": 2.0,
    }
    method = make("oled", **options).train().double()
    x = textured().double()
    expected = separate_gradients(method, x, weight)
    computed = gradients(method, x)
    for name in NETWORKS:
        assert max(g.abs().max() for g in expected[name].values()) > 1e-6
        for key, gradient in expected[name].items():
            torch.testing.assert_close(computed[name][key], gradient, rtol=1e-7, atol=1e-12)


def test_rec_and_its_weight_give_the_mask_module_nothing(make: Make) -> None:
    after = []
    for lam in (0.0, 100.0):
        method = make("oled", mask_grad="ste", lam=lam).train()
        before = states(method)
        method.update(Batch(textured(), INDEX))
        assert changed(before, method) == set(NETWORKS)
        after.append(states(method)["mask_generator"])
    assert all(torch.equal(after[0][key], after[1][key]) for key in after[0])


@pytest.mark.parametrize("objective", ["mask", "mask_cont"])
def test_the_mask_module_climbs_while_r_stands_still(make: Make, objective: str) -> None:
    method = make("oled", (1, 16, 16), mask_grad="ste", mask_objective=objective).train()
    x = blobs(16, (1, 16, 16))
    for _ in range(30):  # R needs something to lose
        method.update(Batch(x, INDEX))
    inner = method.minimise
    method.minimise = lambda loss, name: inner(loss, name) if name == "mask_module" else None
    before = states(method, buffers=False)
    course = []
    for _ in range(30):
        losses = method.update(Batch(x, INDEX))
        course.append(
            losses["mask"].item()
            + (method.gamma * losses["cont"].item() if objective == "mask_cont" else 0)
        )
    assert changed(before, method, buffers=False) == {"mask_generator"}
    assert np.mean(course[-5:]) > 1.05 * np.mean(course[:5])


def test_the_mask_modules_step_changes_it_alone(oled: Any) -> None:
    x = textured()
    m = oled.masks(x)
    x_m = (x * m).detach().requires_grad_()
    x_hat_m = oled.decoder(oled.encoder(x_m))
    losses = {
        "mask": squared_error(x, x_hat_m).mean(),
        "cont": context_error(x, x_hat_m, (m == 0).to(x)).mean(),
    }
    before = states(oled)
    norm = oled._update_mask_module(x, m, x_m, losses)
    assert changed(before, oled) == {"mask_generator"}
    assert all(p.grad is None for p in (*oled.encoder.parameters(), *oled.decoder.parameters()))
    squares = sum(p.grad.double().square().sum() for p in oled.mask_generator.parameters())
    assert norm.item() == pytest.approx(math.sqrt(squares), rel=1e-5)
    assert norm > 0


def test_the_mask_module_moves_in_every_nth_epoch(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("oled", mask_grad="ste", mm_every=3).train()
    assert method.current_epoch == 0  # without a Trainer
    for epoch in range(7):
        set_epoch(monkeypatch, epoch)
        before = states(method, buffers=False)
        losses = method.update(Batch(textured(), INDEX))
        moves = epoch % 3 == 0
        assert changed(before, method, buffers=False) == (
            {*NETWORKS} if moves else {"encoder", "decoder"}
        )
        assert ("mask_gradient" in losses) == moves


def test_a_turn_of_the_mask_module_may_be_counted_in_iterations(make: Make) -> None:
    """The authors' schedule on MNIST: 5 of every 15 iterations."""
    method = make("oled", mask_grad="ste", mm_every=3, mm_turn=5).train()
    moves = []
    for method.iteration in range(31):
        moves.append(method.phase)
    assert moves == [iteration % 15 < 5 for iteration in range(31)]
    method.iteration = 5
    before = states(method, buffers=False)
    method.update(Batch(textured(), INDEX))
    assert changed(before, method, buffers=False) == {"encoder", "decoder"}


def test_a_chunk_counts_its_iterations_one_by_one_and_means_are_of_those_that_have_a_value(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("oled", (1, 16, 16), mm_every=2, mm_turn=1).train()
    monkeypatch.setattr(OLED, "loggers", [])
    iterations = []

    def update(batch: Batch) -> dict[str, Tensor]:
        iterations.append(method.iteration)
        return {
            "always": torch.tensor(2.0),
            **({"mask_gradient": torch.tensor(3.0)} if method.phase else {}),
        }

    method.update = update
    x = torch.zeros(3, 4, 1, 16, 16)
    method.training_step((x, torch.zeros(3, 4, dtype=torch.long)), 0)
    assert iterations == [0, 1, 2]
    assert method.iteration == 3
    assert method.losses == {"always": 2.0, "mask_gradient": 3.0}


def test_a_frozen_mask_generator_masks_and_is_never_trained(make: Make) -> None:
    learned, frozen = (
        make("oled", mask=mask, mask_grad="ste").train() for mask in ("learned", "frozen")
    )
    x = textured()
    assert torch.equal(learned.masks(x), frozen.masks(x))
    assert set(frozen.build_optimizers()) == {"reconstructor"}
    assert not frozen.phase
    before = states(frozen, buffers=False)
    losses = frozen.update(Batch(x, INDEX))
    assert changed(before, frozen, buffers=False) == {"encoder", "decoder"}
    assert losses["mask_count"] == 129
    assert "mask_gradient" not in losses


def test_no_gradient_is_made_where_the_mask_module_rests(
    oled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_epoch(monkeypatch, 1)
    needed: list[bool] = []
    oled.mask_generator.register_forward_hook(
        lambda module, inputs, out: needed.append(out.requires_grad)
    )
    oled.encoder.register_forward_pre_hook(
        lambda module, inputs: needed.append(inputs[0].requires_grad)
    )
    oled.update(Batch(textured(), INDEX))
    assert needed == [False, False, False]


def test_one_forward_of_each_serves_both(oled: Any) -> None:
    """Batch-norm statistics mix intact and masked images: two passes of R, one of MG, for both
    updates together.
    """
    oled.update(Batch(textured(), INDEX))
    seen = {
        n: {int(b) for k, b in getattr(oled, n).named_buffers() if "tracked" in k} for n in NETWORKS
    }
    assert seen == {"encoder": {2}, "decoder": set(), "mask_generator": {1}}


def test_adam_has_the_papers_numbers() -> None:
    optimizers = OLED((1, 28, 28), width=0.1).build_optimizers()
    assert set(optimizers) == {"reconstructor", "mask_module"}
    for optimizer in optimizers.values():
        assert isinstance(optimizer, torch.optim.Adam)
        settings = {key: optimizer.defaults[key] for key in ("lr", "betas", "eps", "fused")}
        assert settings == {"lr": 5e-4, "betas": (0.5, 0.9), "eps": 1e-7, "fused": True}


# Threshold unit (section 3.4.2).


@pytest.mark.parametrize(("side", "count"), [(28, 99), (30, 114), (32, 129)])
@pytest.mark.parametrize("mask_grad", ["eps", "ste"])
def test_threshold_hides_the_top_of_each_map(side: int, count: int, mask_grad: str) -> None:
    activation = torch.rand(
        6, 1, side, side, generator=torch.Generator().manual_seed(2)
    ) * torch.arange(1, 7).view(-1, 1, 1, 1)
    m = threshold(activation, 87.5, 1e-12, mask_grad, 0.1)
    assert m.shape == activation.shape
    assert ((m == 0).flatten(1).sum(1) == count).all()
    np.testing.assert_allclose(m[m != 0].numpy(), 1, atol=1e-6)
    for image, mask in zip(activation, m, strict=True):
        assert image[mask == 0].min() > image[mask != 0].max()
    flat = activation.flatten(1).numpy()
    s = np.percentile(flat, 87.5, axis=1, method="lower")
    np.testing.assert_array_equal((m == 0).flatten(1).numpy(), flat >= s[:, None])


def test_t_is_the_percentage_that_is_kept() -> None:
    activation = torch.rand(2, 1, 20, 20, generator=torch.Generator().manual_seed(2))
    for t, count in ((50.0, 201), (75.0, 101), (99.9, 2)):
        assert (threshold(activation, t, 1e-12, "eps", 0.1) == 0).flatten(1).sum(1).tolist() == [
            count,
            count,
        ]


def test_a_dead_map_halves_the_image() -> None:
    activation = torch.zeros(2, 1, 28, 28)
    activation[1, 0, :3, :3] = 1.0  # alive in less than 12.5 percent: s is 0 all the same
    m = threshold(activation, 87.5, 1e-12, "eps", 0.1)
    assert (m[0] == 0.5).all()
    assert (m[1, 0, :3, :3] == 0).all()
    assert (m[1] == 0.5).sum() == 784 - 9
    hard = threshold(activation, 87.5, 1e-12, "ste", 0.1)
    assert (hard[0] == 1).all()
    assert (hard[1] == 0).sum() == 9


def maps_with_margins(margins: list[float], dtype: torch.dtype) -> Tensor:
    """One map of 28 x 28 with s = 1, 98 pixels above it, and pixels at the given margins below.

    The rest 0.5 below.
    """
    flat = torch.full((784,), 0.5, dtype=dtype)
    flat[:98], flat[98] = 2.0, 1.0
    flat[99 : 99 + len(margins)] = 1 - torch.tensor(margins, dtype=dtype)
    return flat.view(1, 1, 28, 28).requires_grad_()


def test_gradient_of_eq_2() -> None:
    """dm/dr = eps / (r + eps)^2 at each pixel below s, nothing above.

    At the pixel that s is, it is the negative sum of these.
    """
    margins, eps = [1e-6, 1e-4, 1e-2, 0.1], 1e-5
    activation = maps_with_margins(margins, torch.float64)
    threshold(activation, 87.5, eps, "eps", 0.1).sum().backward()
    gradient = activation.grad.flatten().numpy()
    r = np.array([*margins, *[0.5] * (784 - 103)]) + eps  # eps is added to s too
    slope = eps / (r + eps) ** 2
    np.testing.assert_allclose(gradient[99:], -slope, rtol=1e-6)
    assert (gradient[:98] == 0).all()
    # the pixel that s is lies at r = eps itself: its two shares cancel
    np.testing.assert_allclose(gradient[98], slope.sum(), rtol=1e-6)


def test_gradient_of_eq_2_in_float32() -> None:
    """No cancellation: about 1 at r = 1e-6, and 1e-8 (neither 0 nor noise) at r = 1e-2."""
    activation = maps_with_margins([2**-20, 2**-7, 2**-4], torch.float32)
    m = threshold(activation, 87.5, 1e-12, "eps", 0.1)
    m.sum().backward()
    r = np.array([2.0**-20, 2.0**-7, 2.0**-4])
    np.testing.assert_allclose(
        activation.grad.flatten()[99:102].numpy(), -1e-12 / (r + 1e-12) ** 2, rtol=1e-5
    )
    assert (m.flatten()[:99] == 0).all()
    np.testing.assert_allclose(m.detach().flatten()[99:].numpy(), 1, atol=2e-6)


def test_gradient_of_the_straight_through_mask() -> None:
    """Exactly 0 and 1 forward, backward sigmoid((s - A) / tau).

    The share at s itself is the negative sum.
    """
    tau = 0.2
    activation = maps_with_margins([0.01, 0.1, 0.3], torch.float64)
    m = threshold(activation, 87.5, 1e-12, "ste", tau)
    assert set(m.detach().unique().tolist()) == {0.0, 1.0}
    m.sum().backward()
    gate = 1 / (1 + np.exp(-(1 - activation.detach().flatten().numpy()) / tau))
    slope = gate * (1 - gate) / tau
    expected = -slope
    expected[98] += slope.sum()
    np.testing.assert_allclose(activation.grad.flatten().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_float32_under_mixed_precision(make: Make) -> None:
    x = textured()
    full, half = (make("oled", gamma=12.5).train() for _ in range(2))
    losses = full.update(Batch(x, INDEX))
    dtypes: dict[str, torch.dtype] = {}
    for name in ("encoder", "mask_generator"):
        getattr(half, name).register_forward_hook(
            lambda m, i, o, n=name: dtypes.update({n: o.dtype})
        )
    _, _, masks = record(half)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        mixed = half.update(Batch(x, INDEX))
    assert dtypes == {"encoder": torch.bfloat16, "mask_generator": torch.float32}
    assert torch.equal(
        masks[0], threshold(make("oled").train().mask_generator(x), 87.5, 1e-12, "eps", 0.1)
    )
    assert set(mixed) == set(losses)
    for name in ("rec", "mask", "cont"):
        assert mixed[name].item() == pytest.approx(losses[name].item(), rel=0.03), name
    assert mixed["mask_count"] == losses["mask_count"]


# Networks.


@pytest.mark.parametrize("width", [3, 4])
def test_upsampled_convolution_is_the_convolution_of_the_upsampled(width: int) -> None:
    torch.manual_seed(0)
    folded = UpsampledConv(width, 5, 5, 1, 2).double()
    plain = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, 5, 5, 1, 2)).double()
    plain[1].load_state_dict(folded.state_dict())
    x = torch.randn(2, width, 7, 6, dtype=torch.float64, requires_grad=True)
    towards = torch.randn(2, 5, 14, 12, dtype=torch.float64)
    torch.testing.assert_close(folded(x), plain(x))
    computed = torch.autograd.grad((folded(x) * towards).sum(), [x, folded.weight, folded.bias])
    expected = torch.autograd.grad((plain(x) * towards).sum(), [x, plain[1].weight, plain[1].bias])
    for gradient, reference in zip(computed, expected, strict=True):
        torch.testing.assert_close(gradient, reference)


def layers(network: nn.Module, x: Tensor) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Output and the shapes (without B) after each convolution and dense layer."""
    shapes: list[tuple[int, ...]] = []
    hooks = [
        module.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:])))
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    out = network(x)
    for hook in hooks:
        hook.remove()
    return out, shapes


@pytest.mark.parametrize(
    ("shape", "encoder", "decoder", "mask_generator"),
    [
        (
            (1, 28, 28),
            [(64, 14, 14), (96, 7, 7), (128, 7, 7), (64,)],
            [(6272,), (128, 7, 7), (96, 14, 14), (64, 28, 28), (1, 28, 28)],
            [(32, 14, 14), (48, 7, 7), (48, 7, 7), (32, 14, 14), (1, 28, 28)],
        ),
        (
            (3, 32, 32),
            [(128, 16, 16), (256, 8, 8), (512, 4, 4), (768, 4, 4), (256,)],
            [(2048,), (768, 4, 4), (512, 8, 8), (256, 16, 16), (128, 32, 32), (3, 32, 32)],
            [
                (32, 16, 16),
                (48, 8, 8),
                (64, 4, 4),
                (64, 4, 4),
                (48, 8, 8),
                (32, 16, 16),
                (1, 32, 32),
            ],
        ),
        (
            (1, 30, 30),
            [(32, 15, 15), (64, 15, 15), (128, 15, 15), (128,)],
            [(7200,), (256, 15, 15), (128, 15, 15), (64, 30, 30), (1, 30, 30)],
            [(32, 15, 15), (48, 15, 15), (48, 15, 15), (32, 15, 15), (1, 30, 30)],
        ),
    ],
)
def test_layer_tables(shape: Any, encoder: Any, decoder: Any, mask_generator: Any) -> None:
    """The tables of the authors' code.

    An upsampling there follows a convolution, here it is part of the next one.
    """
    method = OLED(shape, latent_size=encoder[-1][0]).eval()
    x = textured(2, shape)
    with torch.no_grad():
        z, sizes = layers(method.encoder, x)
        assert sizes == encoder
        x_hat, sizes = layers(method.decoder, z)
        assert sizes == decoder
        activation, sizes = layers(method.mask_generator, x)
        assert sizes == mask_generator
    assert x_hat.shape == x.shape
    assert activation.shape == (2, 1, *shape[1:])
    assert activation.min() >= 0
    assert all(m.kernel_size == (5, 5) for m in method.modules() if isinstance(m, nn.Conv2d))


def test_batch_norms_and_slopes() -> None:
    method = OLED((3, 32, 32), width=0.1)
    kinds = {n: [type(m) for m in getattr(method, n).modules()] for n in NETWORKS}
    assert {n: kind.count(nn.BatchNorm2d) for n, kind in kinds.items()} == {
        "encoder": 4,
        "decoder": 0,
        "mask_generator": 1,
    }
    slopes: dict[str, set[float]] = {name: set() for name in NETWORKS}
    for name in NETWORKS:
        for module in getattr(method, name).modules():
            if isinstance(module, nn.LeakyReLU):
                slopes[name].add(module.negative_slope)
    assert slopes == {"encoder": {0.2}, "decoder": {0.2}, "mask_generator": {0.3}}
    # second block
    assert kinds["mask_generator"].index(nn.BatchNorm2d) > kinds["mask_generator"].index(
        nn.LeakyReLU
    )
    everywhere = OLED((3, 32, 32), width=0.1, mask_norm="all").mask_generator
    assert sum(isinstance(m, nn.BatchNorm2d) for m in everywhere.modules()) == 6
    assert not isinstance(everywhere[-2], nn.Sequential)  # the last convolution stands bare
    decoder = OLED((3, 32, 32), width=0.1, norm="all").decoder
    assert [[type(layer) for layer in block] for block in decoder[2:-2]] == [
        [layer, nn.BatchNorm2d, nn.LeakyReLU]
        for layer in (nn.Conv2d, UpsampledConv, UpsampledConv, UpsampledConv)
    ]
    assert type(decoder[-2]) is nn.Conv2d


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 30, 30)])
def test_each_layer_in_its_order(shape: Any) -> None:
    """Convolution, batch norm where there is one, activation.

    The last convolution of R is bare, that of MG has ReLU.
    """
    method = OLED(shape, width=0.1)
    shrink, slope, clipped = [nn.Conv2d, nn.BatchNorm2d], nn.LeakyReLU, nn.Identity
    blocks = {
        name: [block for block in getattr(method, name) if isinstance(block, nn.Sequential)]
        for name in NETWORKS
    }
    assert all([type(layer) for layer in block] == [*shrink, slope] for block in blocks["encoder"])
    assert [type(layer) for layer in method.encoder[len(blocks["encoder"]) :]] == [
        nn.Flatten,
        nn.Linear,
    ]
    assert [type(layer) for layer in method.decoder[:2]] == [nn.Linear, nn.Unflatten]
    assert all(
        isinstance(block[0], nn.Conv2d) and type(block[1]) is slope for block in blocks["decoder"]
    )
    assert isinstance(method.decoder[-2], nn.Conv2d) and type(method.decoder[-1]) is clipped
    normed = [index for index, block in enumerate(blocks["mask_generator"]) if len(block) == 3]
    assert normed == [1]
    assert [type(layer) for layer in blocks["mask_generator"][1]] == [*shrink, slope]
    for layer in method.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.padding == (2, 2) and layer.bias is not None
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.momentum, layer.eps, layer.affine) == (0.1, 1e-5, True)


def test_the_activation_map_is_a_relu_of_the_last_convolution(make: Make) -> None:
    method = make("oled").eval()
    before: list[Tensor] = []
    method.mask_generator[-2].register_forward_hook(lambda module, inputs, out: before.append(out))
    activation = method.mask_generator(textured(4))
    assert (before[0] < 0).any() and (before[0] > 0).any()
    np.testing.assert_array_equal(
        activation.detach().numpy(), np.maximum(before[0].detach().numpy(), 0)
    )


def test_defaults_are_the_papers_and_the_codes() -> None:
    method = OLED((1, 28, 28), width=0.1)
    assert (method.t, method.lam, method.mask, method.mask_grad) == (87.5, 1.0, "learned", "eps")
    assert (method.mask_eps, method.mask_tau, method.average, method.out_act) == (
        1e-12,
        0.1,
        "minmax",
        "linear_clip",
    )
    assert (method.mm_turn, method.validation) == (None, "rec_mask")


def test_each_optimizer_has_the_weights_of_its_networks_and_no_decay() -> None:
    method = OLED((1, 28, 28), width=0.1)
    networks = {
        "reconstructor": [method.encoder, method.decoder],
        "mask_module": [method.mask_generator],
    }
    for name, optimizer in method.build_optimizers().items():
        (group,) = optimizer.param_groups
        assert [id(p) for p in group["params"]] == [
            id(p) for network in networks[name] for p in network.parameters()
        ]
        assert not (group["weight_decay"] or group["amsgrad"] or group["maximize"])


def test_initial_weights_are_glorot() -> None:
    normal, uniform = OLED((1, 28, 28)).decoder[2][0].weight, OLED((1, 30, 30)).decoder[3][0].weight
    for weight in (normal, uniform):
        out, into = weight.shape[:2]
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (25 * (out + into))), rel=0.02)
    limit = math.sqrt(3) * uniform.std()
    assert uniform.abs().max() < 1.02 * limit < normal.abs().max() * limit / normal.std()
    assert normal.abs().max() > 3 * normal.std()
    method = OLED((1, 28, 28), width=0.5)
    for layer in method.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert (layer.bias == 0).all()
            fan_in, fan_out = layer.weight[0].numel(), layer.weight[:, 0].numel()
            if fan_in * fan_out > 10_000:
                assert layer.weight.std().item() == pytest.approx(
                    math.sqrt(2 / (fan_in + fan_out)), rel=0.06
                )
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all() and (layer.bias == 0).all()


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((1, 28, 28), "mnist"),
        ((1, 32, 32), "mnist"),
        ((3, 32, 32), "cifar10"),
        ((1, 30, 30), "ucsd"),
        ((3, 28, 28), "mnist"),
        ((3, 30, 30), "ucsd"),
        ((1, 16, 24), "mnist"),
    ],
)
def test_auto_chooses_by_side_and_colour(make: Make, shape: Any, name: str) -> None:
    assert choose_architecture(shape) == name
    method = make("oled", shape)
    assert method.architecture == name
    x = textured(2, shape)
    assert method.reconstruct(x).shape == x.shape
    assert method.masks(x).shape == (2, 1, *shape[1:])


def test_what_cannot_work_is_refused(make: Make) -> None:
    with pytest.raises(
        ValueError, match=r"data\.size=30: method\.architecture=mnist takes a multiple of 4"
    ):
        make("oled", (1, 30, 30), architecture="mnist")
    with pytest.raises(ValueError, match=r"data\.size=31: .*ucsd takes a multiple of 2"):
        make("oled", (1, 31, 31))
    with pytest.raises(
        ValueError, match=r"method\.mask=random10 needs data\.size of at least 10, not 8"
    ):
        make("oled", (1, 8, 8), mask="random10")


# Switches.


def test_recipes_are_the_codes_and_the_papers() -> None:
    official = {
        "mnist": (12.5, 3, "mask_cont", "second", "encoder"),
        "cifar10": (30.0, 4, "mask", "second", "encoder"),
        "ucsd": (50.0, 3, "mask_cont", "second", "encoder"),
    }
    names = ("gamma", "mm_every", "mask_objective", "mask_norm", "norm")
    assert set(ARCHITECTURES) == set(official)
    for data, numbers in official.items():
        for recipe, expected in (
            ("default", numbers),
            ("paper", (50.0, 1, "mask_cont", "all", "all")),
        ):
            options = method_config("oled") | recipe_options("oled", recipe, data)["method"]
            assert tuple(options[name] for name in names) == expected
    sizes = {
        data: recipe_options("oled", "paper", data)["method"]["latent_size"] for data in official
    }
    assert sizes == {"mnist": 64, "cifar10": 256, "ucsd": 128}
    assert [
        recipe_options("oled", "default", data)["method"]["latent_size"]
        for data in ("cifar10", "ucsd")
    ] == [
        256,
        128,
    ]
    shared = {
        "lr": 5e-4,
        "beta1": 0.5,
        "beta2": 0.9,
        "t": 87.5,
        "lam": 1.0,
        "mask_grad": "eps",
        "width": 1.0,
    }
    paper = recipe_options("oled", "paper", "mnist")["method"]
    assert {name: paper[name] for name in shared} == shared


def test_last_activation(make: Make) -> None:
    x = 3 * textured(4)
    outs = {}
    for name in ("linear_clip", "leaky", "tanh"):
        method = make("oled", out_act=name).eval()
        with torch.no_grad():
            method.decoder[-2].weight.mul_(20)
            outs[name] = (method.decoder(method.encoder(x)), method.reconstruct(x))
    linear, clipped = outs["linear_clip"]
    assert linear.abs().max() > 1.5  # no clip in the losses
    assert torch.equal(clipped, linear.clamp(-1, 1))
    leaky = torch.where(linear < 0, 0.2 * linear, linear)
    torch.testing.assert_close(outs["leaky"][0], leaky)
    torch.testing.assert_close(outs["leaky"][1], leaky)
    torch.testing.assert_close(outs["tanh"][1], linear.tanh())


def test_sizes_of_networks(make: Make) -> None:
    assert make("oled", latent_size=7).embed(textured(3)).shape == (3, 7)
    assert make("oled").embed(textured(3)).shape == (3, 64)
    widths = [make("oled", width=width).encoder[0][0].out_channels for width in (0.5, 2.0)]
    assert widths == [32, 128]


def test_half_and_none_are_constant_masks(make: Make) -> None:
    x = textured(4)
    assert (make("oled", mask="half").masks(x) == 0.5).all()
    assert (make("oled", mask="none").masks(x) == 1).all()
    for mask in ("half", "none", "random10"):
        method = make("oled", mask=mask)
        assert method.mask_generator is None
        assert set(method.build_optimizers()) == {"reconstructor"}
    method = make("oled", mask="none").eval()
    with torch.inference_mode():
        scores = method.novelty_score(x)
    assert torch.equal(scores["s_mask"], scores["s_rec"])
    assert (scores["s_cont"] == 0).all()


def test_t_and_the_threshold_options_reach_the_mask(make: Make) -> None:
    x = textured(4)
    assert ((make("oled", t=80.0).masks(x) == 0).flatten(1).sum(1) == 1024 - 818).all()
    assert make("oled", mask_eps=0.1).masks(x).flatten(1).amax(1).max() < 0.999
    slopes = [make("oled", mask_grad="ste", mask_tau=tau).train() for tau in (0.1, 10.0)]
    norms = [method.update(Batch(textured(), INDEX))["mask_gradient"].item() for method in slopes]
    assert norms[0] > 10 * norms[1] > 0


def test_mask_share_and_count_show_a_dead_mask_generator(make: Make) -> None:
    method = make("oled").train()
    with torch.no_grad():
        method.mask_generator[-2].bias.fill_(-100.0)
    losses = method.update(Batch(textured(), INDEX))
    assert losses["mask_soft_share"] == 1
    assert losses["mask_count"] == 0
    assert losses["mask_gradient"] == 0


# The context auto-encoder's crops (section 4.6).


def test_crops_are_squares_of_10_at_every_place() -> None:
    place = torch.arange(21 * 19)
    masks = crop_mask(place, 30, 28)
    assert masks.shape == (21 * 19, 1, 30, 28)
    for index in (0, 18, 19, 200, 21 * 19 - 1):
        expected = torch.ones(30, 28)
        expected[index // 19 : index // 19 + 10, index % 19 : index % 19 + 10] = 0
        assert torch.equal(masks[index, 0], expected)
    assert (masks == 0).flatten(1).sum(1).unique().tolist() == [100]


def test_crops_are_random_in_training_and_fixed_by_the_image_in_evaluation(make: Make) -> None:
    method = make("oled", mask="random10").train()
    x = blobs(64, seed=3)
    assert not torch.equal(method.masks(x), method.masks(x))
    method.eval()
    masks = method.masks(x)
    assert torch.equal(masks, method.masks(x))
    assert torch.equal(masks[5:6], method.masks(x[5:6]))
    # no seed in it
    assert torch.equal(masks, make("oled", mask="random10", lr=0.1).eval().masks(x))
    distinct = len(x.flatten(1).unique(dim=0))
    assert len(masks.flatten(1).unique(dim=0)) > 0.8 * distinct
    average = method.masks(textured(2000)).mean((0, 1))
    assert average.min() > 0.6 and average.max() > 0.99  # all over the image, least in the corners
    with NoSync():
        method.train().update(Batch(x[:16], INDEX))


# Scores (section 3.6) and segmentation (section 4.5).


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32)])
@pytest.mark.parametrize("mask", ["learned", "random10"])
def test_scores_by_hand(make: Make, shape: Any, mask: str) -> None:
    method = make("oled", shape, mask=mask).eval()
    x = textured(5, shape)
    with torch.inference_mode():
        scores = method.novelty_score(x)
        loss = method.validation_loss(x)
        m = method.masks(x)
        x_hat, x_hat_m = (
            method.decoder(method.encoder(image)).double().clamp(-1, 1).numpy()
            for image in (x, x * m)
        )
    image, masked = x.double().numpy(), (m == 0).numpy()
    rec, err = ((image - x_hat) ** 2).sum((1, 2, 3)), ((image - x_hat_m) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(scores["s_rec"].numpy(), rec, rtol=1e-4)
    np.testing.assert_allclose(scores["s_mask"].numpy(), err, rtol=1e-4)
    cont = [
        np.abs(a - b)[np.broadcast_to(c, a.shape)].sum()
        for a, b, c in zip(image, x_hat_m, masked, strict=True)
    ]
    np.testing.assert_allclose(scores["s_cont"].numpy(), cont, rtol=1e-4)
    np.testing.assert_allclose(loss.numpy(), (rec + err) / x[0].numel(), rtol=1e-4)
    method.validation = "rec"
    with torch.inference_mode():
        np.testing.assert_allclose(method.validation_loss(x).numpy(), rec / x[0].numel(), rtol=1e-4)
    assert min(cont) > 0


COLUMNS = ("s_rec", "s_mask", "s_cont")


def columns(*values: list[float]) -> dict[str, Tensor]:
    return {name: torch.tensor(column) for name, column in zip(COLUMNS, values, strict=True)}


def test_averages_by_hand(make: Make) -> None:
    method = make("oled")
    test = columns([0.0, 1.0, 4.0], [10.0, 30.0, 20.0], [3.0, 1.0, 2.0])
    val = columns([1.0, 3.0], [10.0, 15.0], [2.0, 1.0])
    combined = method.combine_scores(test, val)
    assert list(combined) == ["s_avg", "s_avg_val"]
    np.testing.assert_allclose(
        combined["s_avg"], [(0 + 0 + 1) / 3, (0.25 + 1 + 0) / 3, (1 + 0.5 + 0.5) / 3]
    )
    np.testing.assert_allclose(
        combined["s_avg_val"], [(-0.5 + 0 + 2) / 3, (0 + 4 + 0) / 3, (1.5 + 2 + 1) / 3], rtol=1e-6
    )
    assert method.transductive == {"s_avg"}
    assert method.score_names == (*COLUMNS, *combined)
    alone = method.combine_scores({name: column[1:2] for name, column in test.items()}, val)
    assert alone["s_avg_val"] == combined["s_avg_val"][1]  # one sample alone is scored the same


def test_z_scores_by_hand(make: Make) -> None:
    rng = np.random.default_rng(0)
    test, val = (columns(*rng.gamma(2.0, size=(3, n)).tolist()) for n in (9, 6))
    combined = make("oled", average="zscore").combine_scores(test, val)
    for name, reference in (("s_avg", test), ("s_avg_val", val)):
        parts = [
            (test[c].numpy() - reference[c].numpy().mean()) / reference[c].numpy().std()
            for c in COLUMNS
        ]
        np.testing.assert_allclose(
            combined[name].numpy(), np.mean(parts, axis=0), rtol=1e-4, atol=1e-6
        )


def test_averages_without_held_out_inliers_or_without_spread(make: Make) -> None:
    method = make("oled")
    test = columns([1.0, 2.0], [0.0, 5.0], [7.0, 7.0])  # as mask=none: one column is constant
    assert list(method.combine_scores(test, {})) == ["s_avg"]
    assert list(method.combine_scores(test, columns([], [], []))) == ["s_avg"]
    np.testing.assert_allclose(method.combine_scores(test, {})["s_avg"], [0, 2 / 3], rtol=1e-6)
    assert method.combine_scores(test, columns([1.0], [1.0], [1.0]))["s_avg_val"].isfinite().all()


def test_rank_auroc_counts_pairs_and_ties() -> None:
    rng = np.random.default_rng(0)
    values, positive = rng.integers(0, 6, 80).astype(np.float32), rng.random(80) < 0.4
    pairs = values[positive][:, None] - values[~positive][None]
    expected = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    assert rank_auroc(torch.tensor(values), torch.tensor(positive)) == pytest.approx(
        expected, abs=1e-12
    )
    assert math.isnan(rank_auroc(torch.rand(3), torch.ones(3, dtype=torch.bool)))


def segmentation(method: Any, inliers: Tensor, outliers: Tensor) -> dict[str, float]:
    metrics = method.extra_metrics(inliers, outliers)
    return {name: value for name, value in metrics.items() if name.startswith("segmentation")}


def test_segmentation_compares_the_activation_map_with_the_digit(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("oled").eval()
    inliers, outliers = blobs(600, seed=1), blobs(30, seed=2, bars=True)

    method.mask_generator = nn.Identity()
    assert segmentation(method, inliers, outliers) == {
        "segmentation_auroc_inliers": 1.0,
        "segmentation_auroc_outliers": 1.0,
    }
    # grey values count as digit too
    images = torch.where(inliers > 0, inliers * torch.rand(inliers.shape), inliers)
    monkeypatch.setattr(method.mask_generator, "forward", lambda x: -x)
    assert segmentation(method, images, outliers) == {
        "segmentation_auroc_inliers": 0.0,
        "segmentation_auroc_outliers": 0.0,
    }
    assert make("oled", mask="random10").extra_metrics(inliers, outliers) == {}
    assert (
        make("oled", (3, 32, 32)).extra_metrics(blobs(4, (3, 32, 32)), blobs(4, (3, 32, 32))) == {}
    )
    plain = make("oled").eval().extra_metrics(inliers, -torch.ones_like(outliers))
    assert set(plain) == {"segmentation_auroc_inliers", "hidden_share_inliers"}


def test_the_share_of_the_digit_that_is_hidden_by_hand(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("oled").eval()
    images = -torch.ones(2, 1, 32, 32)
    images[:, :, :4] = 1.0
    mask = torch.ones(2, 1, 32, 32)
    mask[0, :, :1] = 0.0  # a quarter of the first digit, and half of the background
    mask[1, :, 18:] = 0.0
    monkeypatch.setattr(method, "masks", lambda x: mask)
    metrics = method.extra_metrics(images, images)
    assert metrics["hidden_share_inliers"] == metrics["hidden_share_outliers"] == 0.125


@pytest.mark.parametrize(("auroc", "count"), [(0.35, 1), (0.5, 1), (0.599, 1), (0.6, 0), (0.9, 0)])
def test_a_segmentation_near_chance_is_a_warning(make: Make, auroc: float, count: int) -> None:
    method = make("oled")
    doubts = method.doubts(
        {"segmentation_auroc_inliers": auroc, "segmentation_auroc_outliers": 0.5}
    )
    assert len(doubts) == count
    assert all(f"AUROC {auroc:.3f} is near chance or below" in doubt for doubt in doubts)
    assert method.doubts({}) == []


# Pictures (the paper's figure 2).


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32)])
def test_pictures_show_what_s_mask_is_about(make: Make, shape: Any) -> None:
    method = make("oled", shape).eval()
    x = textured(4, shape)
    with torch.inference_mode():
        rows = {row.title: row for row in method.explain(x)}
        scores = method.novelty_score(x)
        activation = method.mask_generator(x)
        m = method.masks(x)
    assert list(rows) == ["masked image", "reconstruction", "activation map"]
    assert torch.equal(rows["masked image"].images, x * m)
    error = (rows["reconstruction"].images - x).square().flatten(1).sum(1)
    torch.testing.assert_close(error, scores["s_mask"])
    assert not torch.allclose(error, scores["s_rec"])
    map_row = rows["activation map"]
    assert map_row.unit
    assert torch.equal(map_row.images.flatten(1).argmax(1), activation.flatten(1).argmax(1))
    assert map_row.images.flatten(1).amin(1).tolist() == [0.0] * 4
    assert map_row.images.flatten(1).amax(1).tolist() == [1.0] * 4


def test_without_a_mask_generator_there_is_no_activation_map(make: Make) -> None:
    rows = make("oled", mask="half").eval().explain(textured(2))
    assert [row.title for row in rows] == ["masked image", "reconstruction"]
