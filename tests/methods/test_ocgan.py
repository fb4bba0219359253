"""OCGAN against its paper: Algorithm 1 step by step, losses against NumPy, geometry, switches."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn

from noveltylab.command.recipes import recipe_options
from noveltylab.methods.base import Batch
from noveltylab.methods.ocgan import (
    OCGAN,
    accuracy,
    distance_from_uniform,
    informative_negative_loss,
    latent_discriminator,
)
from noveltylab.nets.losses import bce, squared_error
from tests.methods.conftest import (
    assert_initialised_as_dcgan,
    assert_normal,
    blobs,
    changed,
    layers,
    owners,
    settings,
    sigmoid,
    states,
    train_until_images_differ,
)

NETWORKS = ("encoder", "decoder", "latent_discriminator", "image_discriminator", "classifier")


@pytest.fixture
def ocgan(make: Callable[..., Any]) -> Any:
    return make("ocgan").train()


# Losses.


def test_squared_error_averages_or_sums_the_pixels() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 2, 4, 4))
    total = ((x - y) ** 2).reshape(3, -1)
    np.testing.assert_allclose(
        squared_error(torch.tensor(x), torch.tensor(y)).numpy(), total.mean(1), rtol=1e-9
    )
    np.testing.assert_allclose(
        squared_error(torch.tensor(x), torch.tensor(y), "sum").numpy(), total.sum(1), rtol=1e-9
    )


def test_reported_losses_equal_numpy(ocgan: Any) -> None:
    """One whole iteration: each reported loss from recorded network outputs."""
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in NETWORKS}
    for name in NETWORKS:
        getattr(ocgan, name).register_forward_hook(
            lambda m, i, o, n=name: outputs[n].append(o.detach().double().numpy().copy())
        )
    x = blobs(16)
    losses = {k: v.item() for k, v in ocgan.update(Batch(x, torch.arange(16))).items()}
    c_real, c_fake = outputs["classifier"]
    l_real, l_code, l_generator = outputs["latent_discriminator"]
    v_real, v_fake, v_generator = outputs["image_discriminator"]
    x_hat, _ = outputs["decoder"]
    real, fake = (lambda z: -np.log(sigmoid(z)).mean()), (lambda z: -np.log(1 - sigmoid(z)).mean())

    def share(real_logits: np.ndarray, fake_logits: np.ndarray) -> float:
        return float(((real_logits > 0).mean() + (fake_logits < 0).mean()) / 2)

    expected = {
        "classifier": real(c_real) + fake(c_fake),
        "latent_discriminator": real(l_real) + fake(l_code),
        "image_discriminator": real(v_real) + fake(v_fake),
        "mse": ((x.double().numpy() - x_hat) ** 2).mean(),
        "generator_latent": real(l_generator),
        "generator_image": real(v_generator),
        "accuracy_classifier": share(c_real, c_fake),
        "accuracy_latent_discriminator": share(l_real, l_code),
        "accuracy_image_discriminator": share(v_real, v_fake),
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name] == pytest.approx(value, rel=1e-5), name


# Algorithm 1: who changes when.


def test_classifier_step_changes_the_classifier_alone(ocgan: Any) -> None:
    before = states(ocgan, NETWORKS)
    ocgan._update_classifier(blobs(16), blobs(16, bars=True))
    assert changed(before, ocgan) == {"classifier"}


def test_discriminator_step_changes_both_discriminators_alone(ocgan: Any) -> None:
    before = states(ocgan, NETWORKS)
    l1, l2 = ocgan.sample_latents(16), ocgan.sample_latents(16)
    ocgan._update_discriminators(blobs(16), l1, l2, blobs(16, bars=True))
    assert changed(before, ocgan) == {"latent_discriminator", "image_discriminator"}


def test_mining_changes_no_network_at_all(ocgan: Any) -> None:
    before = states(ocgan, NETWORKS)
    ocgan._mine_latents(ocgan.sample_latents(16))
    assert changed(before, ocgan) == set()
    assert all(p.requires_grad for p in ocgan.parameters())


def test_generator_step_changes_encoder_and_decoder_alone(ocgan: Any) -> None:
    x = blobs(16)
    l1 = ocgan.encoder(x)
    x_hat, fake = ocgan.decoder(l1), ocgan.decoder(ocgan.sample_latents(16))
    before = states(ocgan, NETWORKS)
    ocgan._update_generator(x, l1, x_hat, fake)
    assert changed(before, ocgan) == {"encoder", "decoder"}
    assert all(p.grad is None for p in ocgan.image_discriminator.parameters())


def test_order_is_classifier_discriminators_mining_generator(
    ocgan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for step in (
        "_update_classifier",
        "_update_discriminators",
        "_mine_latents",
        "_update_generator",
    ):
        inner = getattr(ocgan, step)
        monkeypatch.setattr(ocgan, step, lambda *a, s=step, f=inner: (calls.append(s), f(*a))[1])
    x = blobs(16)
    ocgan.progress = 0.74
    ocgan.update(Batch(x, torch.arange(16)))
    assert calls == ["_update_classifier", "_update_discriminators", "_update_generator"]
    calls.clear()
    ocgan.progress = 0.75
    ocgan.update(Batch(x, torch.arange(16)))
    assert calls == [
        "_update_classifier",
        "_update_discriminators",
        "_mine_latents",
        "_update_generator",
    ]


def test_image_term_trains_the_decoder_not_the_encoder(make: Callable[..., Any]) -> None:
    """The generator's D_v term has its gradient in De only: with it alone, En stays as it is."""
    method = make("ocgan", w_lat=0.0, w_mse=0.0).train()
    x = blobs(16)
    l1 = method.encoder(x)
    x_hat, fake = method.decoder(l1), method.decoder(method.sample_latents(16))
    before = states(method, NETWORKS)
    method._update_generator(x, l1, x_hat, fake)
    weights = {name for name, _ in method.encoder.named_parameters()}
    assert all(torch.equal(before["encoder"][k], method.encoder.state_dict()[k]) for k in weights)
    assert changed(before, method) == {"decoder"}


def plain_sgd(method: Any) -> dict[str, torch.optim.Optimizer]:
    """In place of Adam, whose first steps hide the size of a gradient."""
    networks = {
        "generator": (method.encoder, method.decoder),
        "discriminators": (method.latent_discriminator, method.image_discriminator),
        "classifier": (method.classifier,),
    }
    return {
        name: torch.optim.SGD([p for m in parts for p in m.parameters()], 0.05)
        for name, parts in networks.items()
    }


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def algorithm_1(
    method: Any, optimizers: Any, x: Tensor, noise: Tensor, uniform: Tensor, mines: bool
) -> None:
    """One iteration written plainly; what must stay as it is works as a copy."""
    bce_logits = nn.functional.binary_cross_entropy_with_logits
    one, zero = torch.ones(len(x)), torch.zeros(len(x))
    codes = method.encoder(x + noise)
    x_hat, fake = method.decoder(codes), method.decoder(uniform)
    told = bce_logits(method.classifier(x_hat.detach()), one) + bce_logits(
        method.classifier(fake.detach()), zero
    )
    descend(told, optimizers["classifier"])
    latent = method.latent_discriminator
    spread = bce_logits(latent(uniform), one) + bce_logits(latent(codes.detach()), zero)
    image = method.image_discriminator
    seen = bce_logits(image(x), one) + bce_logits(image(fake.detach()), zero)
    descend(spread + seen, optimizers["discriminators"])
    if mines:
        decoder, classifier = copy.deepcopy((method.decoder, method.classifier))
        latents = uniform
        for _ in range(2):
            latents = latents.detach().requires_grad_()
            loss = bce_logits(classifier(decoder(latents)), zero, reduction="sum")
            latents = (latents - 0.1 * torch.autograd.grad(loss, latents)[0]).clamp(-1, 1)
        fake = method.decoder(latents.detach())
    latent, image = copy.deepcopy((latent, image))
    fools = bce_logits(latent(codes), one) + bce_logits(image(fake), one)
    descend(250 * (x - x_hat).square().mean() + fools, optimizers["generator"])


@pytest.mark.parametrize("mines", [False, True])
def test_two_iterations_are_algorithm_1(make: Callable[..., Any], mines: bool) -> None:
    """Weights and running statistics of all networks, from the same draws."""
    method = make("ocgan", dropout=0.0, mining_steps=2, mining_step_size=0.1).train()
    plain = copy.deepcopy(method)
    method.build_optimizers = lambda: plain_sgd(method)
    method.progress = 0.9 if mines else 0.0
    optimizers = plain_sgd(plain)
    for seed in range(2):
        x = blobs(16, seed=seed)
        torch.manual_seed(seed)
        noise, uniform = 0.2 * torch.randn_like(x), 2 * torch.rand(16, 16, 1, 1) - 1
        algorithm_1(plain, optimizers, x, noise, uniform, mines)
        torch.manual_seed(seed)
        method.update(Batch(x, torch.arange(16)))
    expected = dict(plain.named_parameters()) | dict(plain.named_buffers())
    for name, value in (*method.named_parameters(), *method.named_buffers()):
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_every_network_sees_what_algorithm_1_gives_it(ocgan: Any) -> None:
    """The inputs of all networks in one iteration, and in evaluation none of the noise."""
    inputs: dict[str, list[Tensor]] = {name: [] for name in NETWORKS}
    outputs: dict[str, list[Tensor]] = {name: [] for name in NETWORKS}

    def record(module: nn.Module, arguments: Any, output: Tensor, name: str) -> None:
        inputs[name].append(arguments[0].detach().clone())
        outputs[name].append(output.detach().clone())

    for name in NETWORKS:
        getattr(ocgan, name).register_forward_hook(lambda m, i, o, name=name: record(m, i, o, name))
    x = blobs(16)
    ocgan.update(Batch(x, torch.arange(16)))
    (noisy,), (l1,), (x_hat, fake) = inputs["encoder"], outputs["encoder"], outputs["decoder"]
    l2 = inputs["decoder"][1]
    assert torch.equal(inputs["decoder"][0], l1)
    assert all(map(torch.equal, inputs["classifier"], (x_hat, fake)))
    assert all(map(torch.equal, inputs["latent_discriminator"], (l2, l1, l1)))
    assert all(map(torch.equal, inputs["image_discriminator"], (x, fake, fake)))
    assert (noisy - x).abs().max() > 0


def test_discriminators_minimise_the_sum_of_their_losses(
    ocgan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    minimised: dict[str, float] = {}
    monkeypatch.setattr(ocgan, "minimise", lambda loss, name: minimised.update({name: loss.item()}))
    losses = {
        name: loss.item() for name, loss in ocgan.update(Batch(blobs(16), torch.arange(16))).items()
    }
    total = losses["latent_discriminator"] + losses["image_discriminator"]
    assert minimised["discriminators"] == pytest.approx(total, rel=1e-6)
    assert minimised["classifier"] == pytest.approx(losses["classifier"], rel=1e-6)


def test_optimizers_are_plain_adam(make: Callable[..., Any]) -> None:
    method = make("ocgan", lr=3e-4, beta1=0.4)
    optimizers = method.build_optimizers()
    assert {name: owners(method, optimizer) for name, optimizer in optimizers.items()} == {
        "generator": {"encoder", "decoder"},
        "discriminators": {"latent_discriminator", "image_discriminator"},
        "classifier": {"classifier"},
    }
    for optimizer in optimizers.values():
        assert settings(optimizer) == {"kind": "Adam", "lr": 3e-4, "betas": (0.4, 0.999)}


# Mining.


def out_of_class_loss(method: Any, latents: Tensor) -> float:
    """BCE(C(De(l)), 0) as the step sees it: batch statistics, no dropout, nothing updated."""
    return bce(method.classifier(method.decoder(latents)), 0).mean().item()


def train_classifier(method: Any, steps: int = 20) -> None:
    for _ in range(steps):
        method.update(Batch(blobs(32), torch.arange(32)))


def test_mining_moves_towards_what_the_classifier_calls_out_of_class(
    make: Callable[..., Any],
) -> None:
    method = make("ocgan", dropout=0.0, mining_start=1.0).train()
    train_classifier(method)
    latents = method.sample_latents(32)
    with torch.no_grad():
        before = out_of_class_loss(method, latents)
        method.mining_step_size = 0.5
        mined = out_of_class_loss(method, method._mine_latents(latents))
        method.mining_step_size = -0.5  # the opposite sign must fail the first inequality
        opposite = out_of_class_loss(method, method._mine_latents(latents))
    assert mined < before < opposite


def test_one_mining_step_is_gradient_descent_on_each_latents_own_loss(
    make: Callable[..., Any],
) -> None:
    method = make("ocgan", dropout=0.0, mining_steps=1, mining_step_size=0.1).train()
    train_classifier(method, 3)
    latents = method.sample_latents(8).requires_grad_()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        method.classifier(method.decoder(latents)), torch.zeros(8), reduction="sum"
    )
    (gradient,) = torch.autograd.grad(loss, latents)
    expected = (latents - 0.1 * gradient).clamp(-1, 1)
    torch.testing.assert_close(
        method._mine_latents(latents.detach()), expected.detach(), rtol=1e-4, atol=1e-6
    )


def slopes(function: Callable[[Tensor], Tensor], logits: np.ndarray) -> np.ndarray:
    """The derivative of each value by its own logit."""
    a = torch.tensor(logits, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(a).sum(), a)
    return gradient.numpy()


def test_both_forms_of_mining_push_the_logit_down_and_one_keeps_its_slope() -> None:
    """By central differences of the two probabilities' logarithms in float64."""
    logits, step = np.array([-9.0, -3.0, 0.0, 2.0]), 1e-4
    forms = {
        "saturated": lambda a: -np.log(1 - sigmoid(a)),
        "unsaturated": lambda a: np.log(sigmoid(a)),
    }
    slope = {}
    for form, value in forms.items():
        losses = informative_negative_loss(torch.tensor(logits), form)
        np.testing.assert_allclose(losses.numpy(), value(logits), rtol=1e-6, atol=1e-9)
        slope[form] = slopes(lambda a, form=form: informative_negative_loss(a, form), logits)
        np.testing.assert_allclose(
            slope[form],
            (value(logits + step) - value(logits - step)) / (2 * step),
            rtol=1e-5,
            atol=1e-7,
        )
        assert (slope[form] > 0).all()
    assert slope["saturated"][0] < 2e-4
    assert slope["unsaturated"][0] > 0.999


@pytest.mark.parametrize("form", ["saturated", "unsaturated"])
def test_the_configured_form_is_descended(make: Callable[..., Any], form: str) -> None:
    method = make(
        "ocgan", dropout=0.0, mining_steps=1, mining_step_size=0.05, mining_loss=form
    ).train()
    train_classifier(method, 3)
    latents = method.sample_latents(8).requires_grad_()
    probability = torch.sigmoid(method.classifier(method.decoder(latents)))
    loss = -torch.log(1 - probability) if form == "saturated" else torch.log(probability)
    (gradient,) = torch.autograd.grad(loss.sum(), latents)
    expected = (latents - 0.05 * gradient).clamp(-1, 1)
    torch.testing.assert_close(
        method._mine_latents(latents.detach()), expected.detach(), rtol=1e-3, atol=1e-6
    )


def test_the_log_says_how_far_mining_moves_and_what_the_classifier_says(
    make: Callable[..., Any],
) -> None:
    """Distance and probabilities against NumPy, from recorded latents and logits.

    Nothing is logged before mining.
    """
    method = make("ocgan", mining_start=0.5).train()
    train_classifier(method, 3)
    logged = {"mining_distance", "classifier_before_mining", "classifier_after_mining"}
    assert not logged & set(method.update(Batch(blobs(16), torch.arange(16))))
    decoded: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    method.decoder.register_forward_hook(
        lambda m, inputs, out: decoded.append(inputs[0].detach().numpy().copy())
    )
    method.classifier.register_forward_hook(
        lambda m, i, out: logits.append(out.detach().double().numpy().copy())
    )
    method.progress = 0.5
    losses = {
        name: value.item()
        for name, value in method.update(Batch(blobs(16), torch.arange(16))).items()
    }
    moved = (decoded[-1] - decoded[1]).reshape(16, -1)
    assert losses["mining_distance"] == pytest.approx(np.sqrt((moved**2).sum(1)).mean(), rel=1e-5)
    assert losses["mining_distance"] > 0
    assert losses["classifier_before_mining"] == pytest.approx(sigmoid(logits[-2]).mean(), rel=1e-5)
    assert losses["classifier_after_mining"] == pytest.approx(sigmoid(logits[-1]).mean(), rel=1e-5)
    assert losses["classifier_after_mining"] < losses["classifier_before_mining"]


def test_the_log_of_mining_changes_nothing(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    for measured in (True, False):
        method = make("ocgan", mining_start=0.0).train()
        if not measured:
            monkeypatch.setattr(method, "_measure_mining", lambda *_: {})
        torch.manual_seed(1)
        for _ in range(2):
            method.update(Batch(blobs(16), torch.arange(16)))
        trained.append(states(method, NETWORKS))
    for name in NETWORKS:
        for key, value in trained[0][name].items():
            assert torch.equal(value, trained[1][name][key]), (name, key)


def test_a_logit_squashed_twice_has_5_to_43_times_less_gradient() -> None:
    """The factor between one and two sigmoids, from the probabilities alone.

    It is compared with the network's own last layer.
    """
    logits = np.array([-3.0, 0.0])
    single = 1 - sigmoid(logits)
    double = (1 - sigmoid(sigmoid(logits))) * sigmoid(logits) * (1 - sigmoid(logits))
    np.testing.assert_allclose(single / double, [43.2, 5.3], rtol=2e-3)
    for double_sigmoid, expected in ((False, single), (True, double)):
        layers = list(latent_discriminator(16, double_sigmoid))
        last = next(
            i
            for i, layer in enumerate(layers)
            if isinstance(layer, nn.Linear) and layer.out_features == 1
        )
        after_logit = nn.Sequential(*layers[last + 1 :])

        def loss(a: Tensor, tail: nn.Module = after_logit) -> Tensor:
            return bce(tail(a[:, None]), 1)

        np.testing.assert_allclose(-slopes(loss, logits), expected, rtol=1e-6)


def test_double_sigmoid_is_of_the_latent_discriminator_alone(make: Callable[..., Any]) -> None:
    method = make("ocgan", double_sigmoid=True).eval()
    with torch.no_grad():
        squashed = method.latent_discriminator(method.sample_latents(32))
    assert ((squashed > 0) & (squashed < 1)).all()
    for network in (method.image_discriminator, method.classifier):
        assert not any(isinstance(layer, nn.Sigmoid) for layer in network)


def test_mining_takes_as_many_steps_as_it_is_told(make: Callable[..., Any]) -> None:
    method = make("ocgan", dropout=0.0, mining_steps=4, mining_step_size=0.1).train()
    train_classifier(method, 3)
    start = method.sample_latents(8)
    at_once = method._mine_latents(start)
    method.mining_steps = 1
    step_by_step = start
    for _ in range(4):
        step_by_step = method._mine_latents(step_by_step)
    torch.testing.assert_close(at_once, step_by_step)
    assert not torch.allclose(at_once, method._mine_latents(start))


def test_latents_are_uniform_over_the_cube(ocgan: Any) -> None:
    latents = ocgan.sample_latents(2000).flatten()
    shares = torch.histc(latents, 10, -1, 1) / len(latents)
    np.testing.assert_allclose(shares.numpy(), 0.1, atol=0.01)


def test_latents_stay_in_the_cube(make: Callable[..., Any]) -> None:
    method = make("ocgan", mining_step_size=1e6).train()
    train_classifier(method, 2)
    latents = method.sample_latents(256)
    assert latents.abs().max() <= 1
    assert latents.abs().max() > 0.9  # the whole cube, not a shrunk one
    mined = method._mine_latents(latents)
    assert mined.abs().max() <= 1
    assert not torch.equal(mined, latents)
    assert method.encoder(blobs(8)).abs().max() <= 1


def test_discriminators_never_see_mined_latents(
    ocgan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = torch.full((16, *ocgan.latent_shape), 0.123)
    monkeypatch.setattr(ocgan, "_mine_latents", lambda latents: marker)
    seen: dict[str, Any] = {}
    inner = ocgan._update_discriminators

    def spy(x: Tensor, l1: Tensor, l2: Tensor, fake: Tensor) -> Any:
        seen.update(l2=l2.clone(), fake=fake.clone())
        return inner(x, l1, l2, fake)

    monkeypatch.setattr(ocgan, "_update_discriminators", spy)
    decoded: list[Tensor] = []
    ocgan.decoder.register_forward_hook(
        lambda m, inputs, out: decoded.append(inputs[0].detach().clone())
    )
    ocgan.progress = 0.9
    ocgan.update(Batch(blobs(16), torch.arange(16)))
    assert not torch.equal(seen["l2"], marker)
    # the fakes of steps 1 and 2 come from fresh latents ...
    assert torch.equal(decoded[1], seen["l2"])
    assert torch.equal(decoded[-1], marker)  # ... and the generator's from the mined ones
    assert not seen["fake"].requires_grad


# Networks, switches.


@pytest.mark.parametrize(
    ("shape", "layout", "latent"),
    [
        ((1, 32, 32), "vector", (16, 1, 1)),
        ((3, 32, 32), "map", (32, 4, 4)),
        ((1, 40, 40), "vector", (16, 1, 1)),
        ((3, 61, 61), "vector", (16, 1, 1)),
        ((3, 61, 61), "map", (32, 5, 5)),
    ],
)
def test_geometry(make: Callable[..., Any], shape: Any, layout: str, latent: Any) -> None:
    method = make("ocgan", shape, latent_layout=layout)
    x = torch.rand(4, *shape)
    code = method.encoder(x)
    assert code.shape == (4, *latent)
    assert method.decoder(code).shape == x.shape
    assert (
        method.image_discriminator(x).shape
        == method.classifier(x).shape
        == method.latent_discriminator(code).shape
        == (4,)
    )


def test_official_geometry_is_29_13_5(make: Callable[..., Any]) -> None:
    sides: list[int] = []
    method = make("ocgan", (3, 61, 61))
    for layer in method.encoder:
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda m, i, o: sides.append(o.shape[-1]))
    method.encoder(torch.rand(2, 3, 61, 61))
    assert sides == [29, 13, 5, 1]


#: The layers that the method's docstring names, one by one, for grey images of 32 pixels.
LAYERS = {
    "encoder": [
        *["down 1>64 k5 s2 p2 bias=True", "leaky 0.2"],
        *["down 64>128 k5 s2 p2 bias=False", "norm 128", "leaky 0.2"],
        *["down 128>256 k5 s2 p2 bias=False", "norm 256", "leaky 0.2"],
        *["down 256>16 k4 s1 p0 bias=False", "norm 16", "tanh"],
    ],
    "decoder": [
        *["up 16>256 k4 s1 p0 bias=False", "norm 256", "relu"],
        *["up 256>128 k5 s2 p2 more1 bias=False", "norm 128", "relu"],
        *["up 128>64 k5 s2 p2 more1 bias=False", "norm 64", "dropout 0.5", "relu"],
        *["up 64>1 k5 s2 p2 more1 bias=True", "tanh"],
    ],
    "latent_discriminator": [
        "flatten",
        *["linear 16>128 bias=False", "norm 128", "relu"],
        *["linear 128>64 bias=False", "norm 64", "relu"],
        *["linear 64>32 bias=False", "norm 32", "relu"],
        *["linear 32>16 bias=False", "norm 16", "relu"],
        *["linear 16>1 bias=True", "flatten"],
    ],
    "image_discriminator": [
        *["down 1>12 k5 s2 p2 bias=True", "leaky 0.2"],
        *["down 12>24 k5 s2 p2 bias=False", "norm 24", "leaky 0.2"],
        *["down 24>48 k5 s2 p2 bias=False", "norm 48", "leaky 0.2"],
        *["down 48>1 k4 s1 p0 bias=True", "flatten"],
    ],
    "classifier": [
        *["down 1>64 k5 s2 p2 bias=True", "leaky 0.2"],
        *["down 64>128 k5 s2 p2 bias=False", "norm 128", "leaky 0.2"],
        *["down 128>256 k5 s2 p2 bias=False", "norm 256", "leaky 0.2"],
        *["down 256>1 k4 s1 p0 bias=True", "flatten"],
    ],
}


@pytest.mark.parametrize("network", NETWORKS)
def test_layers_are_the_ones_that_the_docstring_names(network: str) -> None:
    assert layers(getattr(OCGAN((1, 32, 32)), network)) == LAYERS[network]


def test_a_map_latent_is_the_paper_read_strictly() -> None:
    """Tanh straight after the third convolution's batch norm."""
    method = OCGAN((1, 32, 32), latent_layout="map")
    assert layers(method.encoder) == [*LAYERS["encoder"][:7], "tanh"]
    assert layers(method.decoder) == LAYERS["decoder"][3:]


def test_initial_weights_are_dcgans() -> None:
    torch.manual_seed(0)
    assert_initialised_as_dcgan(OCGAN((1, 32, 32)))


def test_defaults_are_those_of_the_docstring() -> None:
    method = OCGAN((1, 32, 32))
    assert (method.w_lat, method.w_vis, method.w_mse, method.mse_reduction) == (1, 1, 250, "mean")
    assert (method.noise_std, method.score_noise) == (0.2, False)
    assert (method.lr, method.beta1) == (2e-4, 0.5)
    assert (method.mining_steps, method.mining_step_size, method.mining_start) == (5, 2.0, 0.75)


#: Loss weights and noise: the paper read literally, and the two settings of the authors' code.
RECIPES = {
    "paper": {
        "w_lat": 1.0,
        "w_vis": 1.0,
        "w_mse": 10.0,
        "mse_reduction": "sum",
        "noise_std": 0.447,
        "dropout": 0.0,
    },
    "readme": {
        "w_lat": 10.0,
        "w_vis": 1.0,
        "w_mse": 5.0,
        "mse_reduction": "mean",
        "noise_std": 0.2,
        "dropout": 0.5,
    },
    "release": {
        "w_lat": 10.0,
        "w_vis": 1.0,
        "w_mse": 250.0,
        "mse_reduction": "mean",
        "noise_std": 0.02,
        "dropout": 0.5,
    },
}
LITERAL = {
    "paper": {
        "latent_layout": "map",
        "mining_loss": "unsaturated",
        "mining_steps": 5,
        "mining_step_size": 0.1,
        "score_noise": False,
    },
    "readme": {"double_sigmoid": True, "mining_steps": 1, "mining_step_size": 2.0},
    "release": {"double_sigmoid": True, "mining_steps": 1, "mining_step_size": 2.0},
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("data", ["mnist", "cifar10"])
def test_recipes_are_the_papers_and_the_codes(recipe: str, data: str) -> None:
    options = recipe_options("ocgan", recipe, data)
    start = 0.6 if data == "cifar10" else 0.75
    expected = {**RECIPES[recipe], **LITERAL[recipe], "lr": 2e-4, "mining_start": start}
    assert {name: options["method"][name] for name in expected} == expected


@pytest.mark.parametrize("recipe", RECIPES)
def test_on_cifar10_recipes_have_the_schedule_that_the_authors_ran(recipe: str) -> None:
    options = recipe_options("ocgan", recipe, "cifar10")
    assert (options["trainer"]["max_epochs"], options["trainer"]["select_from"]) == (251, 0.4)
    assert options["data"]["subtract_mean"] is True
    assert options["data"]["contrast"] == ("gcn" if recipe == "paper" else "gcn_image")


def test_a_size_that_does_not_fit_is_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"data\.size=30.*multiple of 8, or 61"):
        make("ocgan", (1, 30, 30))
    with pytest.raises(ValueError, match="use_mining=true needs method.use_image_discriminator"):
        make("ocgan", use_image_discriminator=False)


@pytest.mark.parametrize(
    ("switches", "losses"),
    [
        (
            {
                "use_latent_discriminator": False,
                "use_image_discriminator": False,
                "use_mining": False,
            },
            {"mse"},
        ),
        (
            {"use_image_discriminator": False, "use_mining": False},
            {"mse", "latent_discriminator", "generator_latent"},
        ),
        (
            {"use_mining": False},
            {
                "mse",
                "latent_discriminator",
                "generator_latent",
                "image_discriminator",
                "generator_image",
            },
        ),
    ],
)
def test_ablation_switches_remove_networks_and_losses(
    make: Callable[..., Any], switches: Any, losses: set[str]
) -> None:
    method = make("ocgan", **switches).train()
    method.progress = 0.9
    discriminators = losses & {"classifier", "latent_discriminator", "image_discriminator"}
    accuracies = {f"accuracy_{name}" for name in discriminators}
    assert set(method.update(Batch(blobs(16), torch.arange(16)))) == losses | accuracies
    if not switches.get("use_image_discriminator", True):
        assert method.score_names == ("mse",)


def test_weights_scale_their_own_terms(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("ocgan", w_lat=2.0, w_vis=3.0, w_mse=5.0).train()
    minimised: dict[str, float] = {}
    monkeypatch.setattr(
        method, "minimise", lambda loss, name: minimised.update({name: loss.item()})
    )
    losses = method.update(Batch(blobs(16), torch.arange(16)))
    expected = 5 * losses["mse"] + 2 * losses["generator_latent"] + 3 * losses["generator_image"]
    assert minimised["generator"] == pytest.approx(expected.item(), rel=1e-5)


def test_noise_has_the_configured_deviation_and_is_fresh(make: Callable[..., Any]) -> None:
    method = make("ocgan", noise_std=0.3).train()
    seen: list[Tensor] = []
    method.encoder.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].clone()))
    x = torch.zeros(64, 1, 32, 32)
    for _ in range(2):
        method.update(Batch(x, torch.arange(64)))
    assert_normal(seen[0], 0.0, 0.3)
    assert not torch.equal(seen[0][0], seen[0][1])
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("score_noise", [False, True])
@pytest.mark.parametrize("use_image_discriminator", [False, True])
def test_the_squared_error_alone_takes_one_reconstruction(
    make: Callable[..., Any], use_image_discriminator: bool, score_noise: bool
) -> None:
    method = make(
        "ocgan",
        use_image_discriminator=use_image_discriminator,
        use_mining=use_image_discriminator,
        score_noise=score_noise,
    ).eval()
    calls: list[str] = []
    method.decoder.register_forward_hook(lambda *_: calls.append("decoder"))
    x = blobs(3)
    with torch.no_grad():
        alone = method.single_score(x, "mse")
        assert calls == ["decoder"]
        every = method.novelty_score(x)
    assert torch.equal(alone, every["mse"])
    assert len(calls) == 1 + (2 if use_image_discriminator else 1)


def test_published_scores(make: Callable[..., Any]) -> None:
    method = make("ocgan", lr=1e-2).train()
    train_until_images_differ(method, Batch(blobs(32), torch.arange(32)))
    method.eval()
    x = blobs(6)
    with torch.inference_mode():
        scores = method.novelty_score(x)
        clean_loss = method.validation_loss(x)
        x_hat = method.decoder(method.encoder(x))
        noisy = method.decoder(method.encoder(x + method.score_noise_image))
        assert (noisy - x_hat).abs().mean() > 1e-3
        assert scores["mse"].numpy() == pytest.approx(
            ((x - x_hat) ** 2).mean((1, 2, 3)).numpy(), rel=1e-5
        )
        assert scores["mse"].numpy() != pytest.approx(
            ((x - noisy) ** 2).mean((1, 2, 3)).numpy(), rel=1e-4
        )
        assert torch.equal(clean_loss, scores["mse"])
        assert_normal(method.score_noise_image, 0.0, method.noise_std)
        for name, image in (("dv_x", x), ("dv_recon", x_hat), ("dv_recon_noisy", noisy)):
            assert torch.equal(scores[name], -method.image_discriminator(image))
        method.score_noise = True
        assert method.novelty_score(x)["mse"].numpy() == pytest.approx(
            ((x - noisy) ** 2).mean((1, 2, 3)).numpy(), rel=1e-5
        )


def test_variance_rebuilt_equals_numpy(make: Callable[..., Any]) -> None:
    method = make("ocgan").eval()
    x = blobs(12)
    with torch.no_grad():
        x_hat = method.reconstruct(x).double().numpy()
    images = x.double().numpy()
    expected = 1 - ((images - x_hat) ** 2).sum() / ((images - images.mean(0)) ** 2).sum()
    assert method.extra_metrics(x, x)["variance_rebuilt"] == pytest.approx(expected, rel=1e-4)


# Pictures (the paper's figures 2 to 4), and how evenly the cube is filled.


def test_a_path_leads_from_one_inlier_to_the_other(make: Callable[..., Any]) -> None:
    method = make("ocgan").eval()
    inliers = blobs(5)
    with torch.no_grad():
        rows = method.image_rows(blobs(2), inliers, blobs(2, bars=True))["latent_paths"]
        codes = method.encoder(inliers)
        middle = method.decoder((codes[2:3] + codes[3:4]) / 2)
    # the fifth has no partner
    assert [row.title for row in rows] == ["inliers 1 to 2", "inliers 3 to 4"]
    path = rows[1].images
    assert torch.equal(path[[0, -1]], inliers[2:4])
    torch.testing.assert_close(path[[1, -2]], method.reconstruct(inliers[2:4]))
    torch.testing.assert_close(path[len(path) // 2], middle[0])


def test_pictures_of_latents_before_and_after_mining(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("ocgan").eval()
    latents = torch.linspace(-1, 1, 44 * 16).view(44, 16, 1, 1)
    monkeypatch.setattr(method, "sample_latents", lambda count: latents[:count])
    monkeypatch.setattr(method, "_mine_latents", lambda few: 0.5 * few)
    with torch.no_grad():
        pictures = method.image_rows(blobs(2), blobs(1), blobs(2, bars=True))
        before, after = method.decoder(latents[:11]), method.decoder(0.5 * latents[:11])
    assert set(pictures) == {"random_latents", "mined_latents"}
    assert [len(row.images) for row in pictures["random_latents"]] == [11] * 4
    mined = [row.images for row in pictures["mined_latents"]]
    assert torch.equal(pictures["random_latents"][0].images, mined[0])
    torch.testing.assert_close(mined, [before, after])
    assert "mined_latents" not in make("ocgan", use_mining=False).eval().image_rows(
        blobs(2), blobs(2), blobs(2)
    )


def test_the_distance_from_uniform_is_scipys(make: Callable[..., Any]) -> None:
    codes = torch.tanh(
        torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        * torch.tensor([0.1, 1.0, 3.0])
    )
    expected = [
        kstest(column, "uniform", args=(-1, 2)).statistic for column in codes.double().T.numpy()
    ]
    np.testing.assert_allclose(distance_from_uniform(codes.double()).numpy(), expected, rtol=1e-6)
    even = torch.linspace(-1, 1, 101).view(-1, 1)
    assert distance_from_uniform(even).item() < 0.011
    method = make("ocgan").eval()
    distance = distance_from_uniform(method.encoder(blobs(30)).flatten(1))
    metrics = method.extra_metrics(blobs(30), blobs(3, bars=True))
    assert metrics["latent_ks_mean"] == pytest.approx(distance.mean().item())
    assert metrics["latent_ks_max"] == pytest.approx(distance.max().item())


def test_accuracies_are_shares_of_right_logits(make: Callable[..., Any]) -> None:
    real, fake = torch.tensor([1.0, -1.0, 2.0, 3.0]), torch.tensor([-1.0, -2.0, 3.0, 0.5])
    assert accuracy(real, fake) == (0.75 + 0.5) / 2
    assert accuracy(torch.zeros(4), torch.zeros(4)) == 0
    losses = make("ocgan").train().update(Batch(blobs(16), torch.arange(16)))
    names = {name for name in losses if name.startswith("accuracy")}
    assert names == {
        f"accuracy_{network}"
        for network in ("classifier", "latent_discriminator", "image_discriminator")
    }
