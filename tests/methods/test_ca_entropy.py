"""CA-Entropy against its paper: equations against NumPy, who learns from what, switches, scores."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noveltylab.command.recipes import recipe_options
from noveltylab.methods.base import Batch
from noveltylab.methods.ca_entropy import (
    CAEntropy,
    ChannelAttention,
    largest_probability,
    latent_entropy,
)
from noveltylab.nets.losses import discriminator_loss
from noveltylab.scoring.apply import deployed
from tests.methods.conftest import (
    assert_initialised_as_dcgan,
    blobs,
    changed,
    layers,
    sigmoid,
    spied_update,
    states,
    train_until_images_differ,
)

Make = Callable[..., Any]
NETWORKS = ("encoder", "decoder", "discriminator")
#: The paper's own code and learning rate at the tests' size; the suite's SMALL has others.
PLAIN = {"latent_bound": "none", "lr": 1e-3, "lam": 0.9}


@pytest.fixture
def method(make: Make) -> Any:
    return make("ca_entropy", **PLAIN).train()


def batch(count: int = 16) -> Batch:
    return Batch(blobs(count), torch.arange(count))


def softmax(h: np.ndarray) -> np.ndarray:
    powers = np.exp(h - h.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def entropy(h: np.ndarray) -> np.ndarray:
    p = softmax(h)
    return -(p * np.log(p)).sum(1)


# Equations 1 to 5.


def test_discriminator_learns_label_1_for_the_first_and_0_for_the_second() -> None:
    real, fake = np.random.default_rng(0).normal(size=(2, 11))
    expected = -np.log(sigmoid(real)).mean() - np.log(1 - sigmoid(fake)).mean()
    np.testing.assert_allclose(
        discriminator_loss(torch.tensor(real), torch.tensor(fake)).item(), expected, rtol=1e-9
    )


def test_entropy_is_eq_4_of_the_softmax() -> None:
    h = 3 * np.random.default_rng(0).normal(size=(6, 10))
    np.testing.assert_allclose(latent_entropy(torch.tensor(h)), entropy(h), rtol=1e-9)
    uniform, one_hot = torch.zeros(1, 100), torch.eye(100)[:1] * 1e4
    assert latent_entropy(uniform).item() == pytest.approx(np.log(100), rel=1e-6)
    assert latent_entropy(one_hot).item() == 0  # no NaN of 0 log 0


def test_a_temperature_divides_the_code_before_the_softmax() -> None:
    h = 3 * np.random.default_rng(0).normal(size=(6, 10))
    np.testing.assert_allclose(latent_entropy(torch.tensor(h), 0.5), entropy(2 * h), rtol=1e-9)
    largest = softmax(h / 4).max(1)
    np.testing.assert_allclose(largest_probability(torch.tensor(h), 4.0), largest, rtol=1e-9)


def test_attention_is_eq_5() -> None:
    torch.manual_seed(0)
    attention = ChannelAttention(32, 8)
    x = torch.randn(3, 32, 5, 6)
    (w1, b1), (w2, b2) = [
        (m.weight.detach().numpy(), m.bias.detach().numpy()) for m in (*attention.mlp[::2],)
    ]
    assert w1.shape == (4, 32) and w2.shape == (32, 4)  # R = 8

    def mlp(pooled: np.ndarray) -> np.ndarray:
        return np.maximum(pooled @ w1.T + b1, 0) @ w2.T + b2

    maps = x.numpy()
    weight = sigmoid(mlp(maps.mean((2, 3))) + mlp(maps.max((2, 3))))
    np.testing.assert_allclose(
        attention(x).detach().numpy(), maps * weight[:, :, None, None], rtol=1e-5, atol=1e-6
    )


def test_attention_keeps_four_hidden_units() -> None:
    assert ChannelAttention(16, 16).mlp[0].out_features == 4
    assert ChannelAttention(256, 16).mlp[0].out_features == 16


def feature_difference(f: np.ndarray, f_hat: np.ndarray, norm: str) -> np.ndarray:
    """Eq. 3 as it is written (l2), and as the code of its ancestor has it."""
    difference = f.astype(np.float64) - f_hat
    return np.sqrt((difference**2).sum(1)) if norm == "l2" else (difference**2).mean(1)


@pytest.mark.parametrize(("norm", "temperature"), [("mean_square", 1.0), ("l2", 0.5)])
def test_reported_losses_equal_numpy(make: Make, norm: str, temperature: float) -> None:
    """One whole iteration: each reported loss from recorded network outputs."""
    method = make("ca_entropy", **PLAIN, feature_norm=norm, temperature=temperature).train()
    outputs: dict[str, list[Any]] = {
        "encoder": [],
        "decoder": [],
        "discriminator": [],
        "features": [],
    }

    def record(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            parts = output if isinstance(output, tuple) else (output,)
            outputs[name].append(
                [p.detach().double().numpy().copy() for p in parts if isinstance(p, Tensor)]
            )

        return hook

    for name in NETWORKS:
        getattr(method, name).register_forward_hook(record(name))
    method.discriminator.features.register_forward_hook(record("features"))
    step = batch()
    losses = {k: v.item() for k, v in method.update(step).items()}
    ((h,),), ((x_hat,),) = outputs["encoder"], outputs["decoder"]  # one pass through G
    (real, _), (fake, _), (fooling, f_hat) = outputs["discriminator"]
    f = outputs["features"][-1][0]
    expected = {
        "discriminator": -np.log(sigmoid(real)).mean() - np.log(1 - sigmoid(fake)).mean(),
        "context": np.abs(step.x.double().numpy() - x_hat).mean(),
        "entropy": entropy(h / temperature).mean(),
        "generator": -np.log(sigmoid(fooling)).mean(),
        "feature": feature_difference(f, f_hat, norm).mean(),
        "p_max": softmax(h / temperature).max(1).mean(),
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name] == pytest.approx(value, rel=1e-4), name


def test_weights_scale_their_own_terms(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq. 6."""
    method = make("ca_entropy", w_adv=2.0, w_con=3.0, w_fea=5.0, w_inf=7.0).train()
    minimised, losses = spied_update(method, batch(), monkeypatch)
    expected = (
        2 * losses["generator"]
        + 3 * losses["context"]
        + 5 * losses["feature"]
        + 7 * losses["entropy"]
    )
    assert minimised["generator"] == pytest.approx(expected, rel=1e-5)
    assert minimised["discriminator"] == pytest.approx(losses["discriminator"], rel=1e-6)


# Who changes when, and from what.


def test_discriminator_step_changes_the_discriminator_alone(method: Any) -> None:
    x = blobs(16)
    x_hat, _ = method.generate(x)
    before = states(method, NETWORKS)
    method._update_discriminator(method.discriminator, x, x_hat.detach())
    assert changed(before, method) == {"discriminator"}
    assert all(p.grad is None for p in (*method.encoder.parameters(), *method.decoder.parameters()))


def test_generator_step_changes_encoder_and_decoder_alone(method: Any) -> None:
    x = blobs(16)
    x_hat, h = method.generate(x)
    before = states(method, NETWORKS)
    method._update_generator(x, x_hat, h)
    assert changed(before, method) == {"encoder", "decoder"}
    assert all(p.grad is None for p in method.discriminator.parameters())
    assert all(p.requires_grad for p in method.parameters())


def test_batch_statistics_move_once_for_g_and_twice_for_d(method: Any) -> None:
    method.update(batch())
    counts = {
        name: value.item()
        for name, value in method.named_buffers()
        if name.endswith("num_batches_tracked")
    }
    assert {counts[name] for name in counts if not name.startswith("discriminator")} == {1}
    # x and x_hat of its own step
    assert {counts[name] for name in counts if name.startswith("discriminator")} == {2}


def test_the_generator_step_meets_the_discriminator_just_updated(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for step in ("_update_discriminator", "_update_generator"):
        inner = getattr(method, step)
        monkeypatch.setattr(method, step, lambda *a, s=step, f=inner: (calls.append(s), f(*a))[1])
    method.update(batch())
    assert calls == ["_update_discriminator", "_update_generator"]


def plain_iteration(method: Any, optimizers: Any, x: Tensor, noise: Tensor) -> None:
    """Eqs. 1 to 6 written plainly, D's step first; in G's step D is a copy."""
    bce_logits = F.binary_cross_entropy_with_logits
    one, zero = torch.ones(len(x)), torch.zeros(len(x))
    x_hat, h = method.generate(x + noise)
    told = bce_logits(method.discriminator(x)[0], one) + bce_logits(
        method.discriminator(x_hat.detach())[0], zero
    )
    for loss, name in ((told, "discriminator"), (None, "generator")):
        if loss is None:
            discriminator = copy.deepcopy(method.discriminator)
            logits, f_hat = discriminator(x_hat)
            f = discriminator(x)[1].detach()
            p = h.softmax(1)
            loss = bce_logits(logits, one) + 50 * F.l1_loss(x_hat, x) + F.mse_loss(f_hat, f)
            loss = loss - (p * p.log()).sum(1).mean()
        optimizers[name].zero_grad()
        loss.backward()
        optimizers[name].step()


def test_two_iterations_are_those_of_the_equations(make: Make) -> None:
    """Weights and running statistics of all networks, from the same draws.

    SGD shows the size of a gradient.
    """
    method = make("ca_entropy", **PLAIN).train()
    plain = copy.deepcopy(method)

    def plain_sgd(networks: Any) -> dict[str, torch.optim.Optimizer]:
        generator = [*networks.encoder.parameters(), *networks.decoder.parameters()]
        parameters = {"generator": generator, "discriminator": networks.discriminator.parameters()}
        return {name: torch.optim.SGD(group, 0.05) for name, group in parameters.items()}

    method.build_optimizers = lambda: plain_sgd(method)
    optimizers = plain_sgd(plain)
    for seed in range(2):
        x = blobs(16, seed=seed)
        torch.manual_seed(seed)
        plain_iteration(plain, optimizers, x, 0.2 * torch.randn_like(x))
        torch.manual_seed(seed)
        method.update(Batch(x, torch.arange(16)))
    expected = dict(plain.named_parameters()) | dict(plain.named_buffers())
    for name, value in (*method.named_parameters(), *method.named_buffers()):
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def generator_gradients(method: Any, x: Tensor) -> dict[str, Tensor]:
    x_hat, h = method.generate(x)
    method.minimise = lambda loss, name: loss.backward()
    method._update_generator(x, x_hat, h)
    parameters = dict(method.named_parameters())
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    method.zero_grad()
    del method.minimise
    return gradients


def test_features_of_x_are_a_constant_for_the_generator(make: Make) -> None:
    """With L_fea alone: the gradient in G is the one of a target without a graph, even where x
    carries one.
    """
    method = make("ca_entropy", **PLAIN, w_adv=0.0, w_con=0.0, w_inf=0.0).train()
    x = blobs(8).requires_grad_()
    x_hat, h = method.generate(x.detach())
    method.minimise = lambda loss, name: loss.backward()
    method._update_generator(x, x_hat, h)
    # The context's weight is 0, so whatever reached x came through f(x).
    assert x.grad is None or not x.grad.any()
    gradient = method.decoder.image[0].weight.grad.clone()

    method.zero_grad()
    target = method.discriminator.features(x.detach()).detach()
    x_hat, _ = method.generate(x.detach())
    F.mse_loss(method.discriminator.features(x_hat), target).backward()
    assert gradient.abs().max() > 0
    torch.testing.assert_close(gradient, method.decoder.image[0].weight.grad, rtol=1e-4, atol=1e-9)


def test_entropy_reaches_the_encoder_alone_and_falls(make: Make) -> None:
    method = make("ca_entropy", **PLAIN, w_adv=0.0, w_con=0.0, w_fea=0.0).train()
    gradients = generator_gradients(method, blobs(16))
    reached = {name.split(".")[0] for name, gradient in gradients.items() if gradient.any()}
    assert reached == {"encoder"}
    values = [method.update(batch())["entropy"].item() for _ in range(15)]
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("term", ["w_adv", "w_con", "w_fea"])
def test_each_image_term_trains_encoder_decoder_and_attention(make: Make, term: str) -> None:
    weights = dict.fromkeys({"w_adv", "w_con", "w_fea", "w_inf"} - {term}, 0.0)
    method = make("ca_entropy", **PLAIN, **weights).train()
    gradients = generator_gradients(method, blobs(16))
    for part in (
        "encoder.blocks.0",
        "decoder.blocks.0",
        "encoder.blocks.0.3.mlp.2",
        "decoder.blocks.2.3.mlp.2",
    ):
        assert any(
            gradient.any() for name, gradient in gradients.items() if name.startswith(part)
        ), part


@pytest.mark.parametrize(
    ("term", "loss"), [("w_adv", "generator"), ("w_con", "context"), ("w_fea", "feature")]
)
def test_each_term_falls_when_it_is_all_that_g_minimises(make: Make, term: str, loss: str) -> None:
    weights = dict.fromkeys({"w_adv", "w_con", "w_fea", "w_inf"} - {term}, 0.0)
    method = make("ca_entropy", **PLAIN, **weights, noise_std=0.0).train()
    for _ in range(5):
        method.update(batch())
    x = blobs(16)
    values = []
    for _ in range(12):  # D stands still
        x_hat, h = method.generate(x)
        values.append(method._update_generator(x, x_hat, h)[loss].item())
    assert values[-1] < values[0]


def test_the_discriminator_comes_to_tell_images_from_reconstructions(method: Any) -> None:
    for _ in range(10):
        x_hat, _ = method.generate(blobs(16))
        method._update_discriminator(method.discriminator, blobs(16), x_hat.detach())
    real, fake = method.discriminator(blobs(16))[0], method.discriminator(x_hat.detach())[0]
    assert real.mean() > 1 > -1 > fake.mean()


# Networks.


@pytest.mark.parametrize(
    ("shape", "switches"),
    [
        ((1, 32, 32), {}),
        ((3, 32, 32), {"skip": True}),
        ((1, 64, 64), {}),
        ((3, 16, 24), {"skip": True, "latent_bound": "none"}),
    ],
)
def test_geometry(make: Make, shape: Any, switches: Any) -> None:
    method = make("ca_entropy", shape, **switches).eval()
    x = torch.rand(4, *shape)
    x_hat, h = method.generate(x)
    logits, f = method.discriminator(x)
    assert x_hat.shape == x.shape and x_hat.abs().max() <= 1
    assert h.shape == method.embed(x).shape == f.shape == (4, 16)
    assert logits.shape == (4,)


def test_the_tables_of_the_specification_are_the_defaults() -> None:
    shapes: dict[str, list[tuple[int, ...]]] = {"encoder": [], "decoder": [], "discriminator": []}
    method = CAEntropy((1, 32, 32))
    for part in method.encoder.blocks:
        part.register_forward_hook(lambda m, i, o: shapes["encoder"].append(tuple(o.shape[1:])))
    for part in method.decoder.blocks:
        part.register_forward_hook(lambda m, i, o: shapes["decoder"].append(tuple(o.shape[1:])))
    assert method.discriminator is not None
    for layer in method.discriminator.features:
        if isinstance(layer, nn.LeakyReLU):
            layer.register_forward_hook(
                lambda m, i, o: shapes["discriminator"].append(tuple(o.shape[1:]))
            )
    x_hat, h = method.generate(torch.rand(2, 1, 32, 32))
    _, f = method.discriminator(x_hat)
    down = [(64, 16, 16), (128, 8, 8), (256, 4, 4)]
    assert shapes == {"encoder": down, "decoder": down[::-1], "discriminator": down}
    assert h.shape == f.shape == (2, 100)
    attentions = [m for m in method.modules() if isinstance(m, ChannelAttention)]
    assert [m.mlp[0].in_features for m in attentions] == [64, 128, 256, 256, 128, 64]
    assert not any(isinstance(m, ChannelAttention) for m in method.discriminator.modules())
    for part in (*method.encoder.blocks, *method.decoder.blocks):
        assert isinstance(part[1], nn.BatchNorm2d) and isinstance(part[-1], ChannelAttention)
    assert isinstance(method.encoder.blocks[0][2], nn.LeakyReLU) and isinstance(
        method.decoder.blocks[0][2], nn.ReLU
    )
    spread = [
        m.weight.std().item()
        for m in method.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    ]
    assert spread == pytest.approx([0.02] * len(spread), rel=0.15)


def attention(channels: int, hidden: int) -> list[str]:
    return [
        f"linear {channels}>{hidden} bias=True",
        "relu",
        f"linear {hidden}>{channels} bias=True",
    ]


#: What the method's docstring says of the layers, one by one, for grey images of 32 pixels.
LAYERS = {
    "encoder": [
        *["down 1>64 k4 s2 p1 bias=False", "norm 64", "leaky 0.2", *attention(64, 4)],
        *["down 64>128 k4 s2 p1 bias=False", "norm 128", "leaky 0.2", *attention(128, 8)],
        *["down 128>256 k4 s2 p1 bias=False", "norm 256", "leaky 0.2", *attention(256, 16)],
        *["flatten", "linear 4096>100 bias=False"],
    ],
    "decoder": [
        *["linear 100>4096 bias=False", "unflatten", "norm 256", "relu", *attention(256, 16)],
        *["up 256>128 k4 s2 p1 bias=False", "norm 128", "relu", *attention(128, 8)],
        *["up 128>64 k4 s2 p1 bias=False", "norm 64", "relu", *attention(64, 4)],
        *["up 64>1 k4 s2 p1 bias=False", "tanh"],
    ],
    "discriminator": [
        *["down 1>64 k4 s2 p1 bias=False", "leaky 0.2"],
        *["down 64>128 k4 s2 p1 bias=False", "norm 128", "leaky 0.2"],
        *["down 128>256 k4 s2 p1 bias=False", "norm 256", "leaky 0.2"],
        *["flatten", "linear 4096>100 bias=False", "linear 100>1 bias=False"],
    ],
}


@pytest.mark.parametrize("network", NETWORKS)
def test_layers_are_the_ones_that_the_docstring_names(network: str) -> None:
    assert layers(getattr(CAEntropy((1, 32, 32)), network)) == LAYERS[network]


BOUNDS = [("none", []), ("batch_norm", ["norm 16 fixed"]), ("tanh", ["norm 16", "tanh"])]


@pytest.mark.parametrize(("bound", "expected"), BOUNDS)
def test_a_bound_follows_the_whole_map(bound: Any, expected: list[str]) -> None:
    code = CAEntropy((1, 32, 32), latent_size=16, latent_bound=bound).encoder.code
    assert layers(code) == ["flatten", "linear 4096>16 bias=False", *expected]


def test_the_entropy_moves_under_batch_norm_alone_not_under_tanh(make: Make) -> None:
    """What the bound decides: the entropy's own gradient can lower it, or cannot."""
    falls = {}
    for bound in ("batch_norm", "tanh"):
        method = make("ca_entropy", **PLAIN | {"latent_bound": bound}, w_inf=20.0).train()
        entropies = [method.update(batch(64))["entropy"].item() for _ in range(40)]
        falls[bound] = entropies[0] - entropies[-1]
    assert falls["batch_norm"] > 0.5 > 0.3 > falls["tanh"]


def test_a_norm_without_scale_is_scored_alike_when_deployed(make: Make) -> None:
    method = make("ca_entropy", **PLAIN | {"latent_bound": "batch_norm"}).train()
    method.update(batch())
    method.eval()
    x = blobs(4, seed=1)
    with torch.no_grad():
        expected, scores = method.novelty_score(x), deployed(method).novelty_score(x)
    for name, column in expected.items():
        torch.testing.assert_close(scores[name], column, rtol=1e-4, atol=1e-6)


def test_initial_weights_are_dcgans() -> None:
    torch.manual_seed(0)
    assert_initialised_as_dcgan(CAEntropy((1, 32, 32), latent_bound="tanh"))


#: What stands at the top of the method's file, by option.
DEFAULTS = {
    "lr": 1e-3, "beta1": 0.5, "latent_size": 100, "latent_bound": "none",
    "temperature": 1.0,
    "latent_to_decoder": "raw", "channels": 64, "feature_size": 100, "skip": False, "R": 16, "noise_std": 0.2,
    "entropy": True, "channel_attention": True, "adversarial": True, "feature_loss": True,
    "d_feature_loss": False, "w_adv": 1.0, "w_con": 50.0, "w_fea": 1.0, "w_inf": 1.0,
    "feature_norm": "mean_square", "lam": 0.9, "score_norm": "l1",
}  # fmt: skip


def test_defaults_are_those_that_the_docstring_names() -> None:
    keywords = inspect.signature(CAEntropy).parameters.values()
    assert {
        option.name: option.default for option in keywords if option.name != "image_shape"
    } == DEFAULTS


def test_the_recipe_paper_is_the_papers() -> None:
    paper = recipe_options("ca_entropy", "paper", "mnist")
    of_the_paper = {"lr": 1e-3, "latent_bound": "none", "feature_norm": "l2", "score_norm": "l1"}
    of_the_code = {
        "latent_size": 100,
        "w_adv": 1.0,
        "w_con": 50.0,
        "w_fea": 1.0,
        "lam": 0.9,
        "beta1": 0.5,
        "R": 16,
    }
    expected = {**of_the_paper, **of_the_code, "channels": 64, "noise_std": 0.2, "w_inf": 1.0}
    assert {name: paper["method"][name] for name in expected} == expected
    assert (paper["data"]["batch_size"], paper["protocol"]["val_fraction"]) == (64, 0.15)


def test_the_score_weighs_with_its_default_lambda() -> None:
    torch.manual_seed(0)
    method = CAEntropy((1, 32, 32), channels=8).eval()
    method.discriminator.features[-1].weight.data.mul_(1e3)  # untrained features are all alike
    with torch.no_grad():
        scores = method.novelty_score(blobs(4, seed=1))
    assert (scores["feature"] > 0.1 * scores["context"]).all()
    torch.testing.assert_close(scores["novelty"], 0.9 * scores["context"] + 0.1 * scores["feature"])


def test_both_optimizers_are_plain_adam_of_their_own_networks(make: Make) -> None:
    method = make("ca_entropy", lr=3e-4, beta1=0.4)
    optimizers = method.build_optimizers()
    owned = {
        "generator": (method.encoder, method.decoder),
        "discriminator": (method.discriminator,),
    }
    assert optimizers.keys() == owned.keys()
    for name, networks in owned.items():
        assert type(optimizers[name]) is torch.optim.Adam
        (group,) = optimizers[name].param_groups
        parameters = [parameter for network in networks for parameter in network.parameters()]
        assert list(map(id, group["params"])) == list(map(id, parameters))
        assert (group["lr"], group["betas"], group["eps"]) == (3e-4, (0.4, 0.999), 1e-8)
        assert not any(group[option] for option in ("weight_decay", "amsgrad", "maximize"))


def test_whole_map_products_are_the_convolutions_of_the_specification() -> None:
    method = CAEntropy((1, 32, 32), channels=4, latent_size=6, channel_attention=False)
    maps, h = torch.randn(3, 16, 4, 4), torch.randn(3, 6)
    down, up = method.encoder.code[1].weight, method.decoder.blocks[0][0][0].weight
    torch.testing.assert_close(
        method.encoder.code(maps), F.conv2d(maps, down.view(6, 16, 4, 4)).flatten(1)
    )
    expected = F.conv_transpose2d(h[:, :, None, None], up.T.reshape(6, 16, 4, 4))
    torch.testing.assert_close(method.decoder.blocks[0][0](h), expected)


# Switches.


@pytest.mark.parametrize(
    ("switches", "uses_entropy", "uses_attention"),
    [
        ({}, True, True),
        ({"entropy": False}, False, True),
        ({"channel_attention": False}, True, False),
        ({"entropy": False, "channel_attention": False}, False, False),
    ],
)
def test_rows_of_table_4(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    switches: Any,
    uses_entropy: bool,
    uses_attention: bool,
) -> None:
    method = make("ca_entropy", **switches).train()
    assert any(isinstance(m, ChannelAttention) for m in method.modules()) == uses_attention
    minimised, losses = spied_update(method, batch(), monkeypatch)
    expected = (
        losses["generator"]
        + 50 * losses["context"]
        + losses["feature"]
        + uses_entropy * losses["entropy"]
    )
    assert minimised["generator"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("switches", "judged", "absent"),
    [
        ({"adversarial": False}, True, {"generator"}),
        ({"feature_loss": False}, True, {"feature"}),
        (
            {"adversarial": False, "feature_loss": False},
            False,
            {"generator", "feature", "discriminator"},
        ),
    ],
)
def test_loss_switches(
    make: Make, monkeypatch: pytest.MonkeyPatch, switches: Any, judged: bool, absent: set[str]
) -> None:
    method = make("ca_entropy", **switches).train()
    assert (method.discriminator is not None) == judged
    minimised, losses = spied_update(method, batch(), monkeypatch)
    assert (
        set(losses)
        == {"discriminator", "context", "entropy", "generator", "feature", "p_max"} - absent
    )
    terms = (
        50 * losses["context"]
        + losses["entropy"]
        + losses.get("generator", 0)
        + losses.get("feature", 0)
    )
    assert minimised["generator"] == pytest.approx(terms, rel=1e-5)
    assert method.score_names == (
        ("novelty", "context", "feature", "novelty_val") if judged else ("novelty", "context")
    )


@pytest.mark.parametrize("norm", ["mean_square", "l2"])
def test_d_feature_loss_adds_the_feature_gap_to_the_discriminators_loss(
    make: Make, monkeypatch: pytest.MonkeyPatch, norm: str
) -> None:
    method = make("ca_entropy", d_feature_loss=True, w_fea=3.0, feature_norm=norm).train()
    minimised, losses = spied_update(method, batch(), monkeypatch)
    # D was not updated in between, so both steps see the same gap.
    assert minimised["discriminator"] == pytest.approx(
        losses["discriminator"] + 3 * losses["feature"], rel=1e-4
    )


def test_without_its_switches_no_network_is_made_and_the_score_is_the_context(make: Make) -> None:
    method = make("ca_entropy", adversarial=False, feature_loss=False, lam=0.5).eval()
    x = blobs(4)
    with torch.inference_mode():
        scores = method.novelty_score(x)
    torch.testing.assert_close(scores["novelty"], 0.5 * scores["context"])
    assert method.combine_scores(scores, scores) == {}
    assert set(method.build_optimizers()) == {"generator"}


def test_skip_lets_the_encoders_maps_into_the_decoder(make: Make) -> None:
    x = blobs(4)
    for skip in (False, True):
        method = make("ca_entropy", skip=skip).eval()
        h, maps = method.encoder(x)
        with torch.no_grad():
            same = torch.equal(
                method.decoder(h, maps), method.decoder(h, [torch.zeros_like(m) for m in maps])
            )
        assert same == (not skip)
    assert method.decoder.image[0].in_channels == 16


def test_what_the_decoder_gets(make: Make) -> None:
    for choice in ("raw", "softmax"):
        method = make("ca_entropy", **PLAIN, latent_to_decoder=choice, temperature=0.5).eval()
        seen: list[Tensor] = []
        method.decoder.register_forward_pre_hook(
            lambda m, inputs, seen=seen: seen.append(inputs[0])
        )
        with torch.no_grad():
            _, h = method.generate(blobs(4))
        assert torch.equal(seen[0], h if choice == "raw" else F.softmax(2 * h, 1))


def test_a_code_bounded_by_tanh_cannot_become_one_hot(make: Make) -> None:
    x = blobs(16)
    bounded, free = (
        make("ca_entropy", **PLAIN | {"latent_bound": "tanh"}),
        make("ca_entropy", **PLAIN),
    )
    for method in (bounded, free):
        method.encoder.code[1].weight.data.mul_(1e6)
    h = bounded.train().embed(x)
    assert h.abs().max() <= 1
    assert F.softmax(h, 1).max() <= np.e / (np.e + 15 / np.e) + 1e-6
    assert F.softmax(free.train().embed(x), 1).amax(1).mean() > 0.99


def test_r_sets_the_hidden_width(make: Make) -> None:
    method = make("ca_entropy", channels=32, R=4)
    hidden = [m.mlp[0].out_features for m in method.modules() if isinstance(m, ChannelAttention)]
    assert hidden == [8, 16, 32, 32, 16, 8]


def test_noise_has_the_configured_deviation_and_is_fresh(make: Make) -> None:
    method = make("ca_entropy", noise_std=0.3).train()
    seen: list[Tensor] = []
    method.encoder.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].clone()))
    x = torch.zeros(64, 1, 32, 32)
    for _ in range(2):
        method.update(Batch(x, torch.arange(64)))
    assert seen[0].std().item() == pytest.approx(0.3, rel=0.02)
    assert seen[0].mean().item() == pytest.approx(0, abs=0.01)
    # Gaussian: beyond 2 deviations
    assert (seen[0].abs() > 0.6).float().mean().item() == pytest.approx(0.0455, rel=0.1)
    assert not torch.equal(seen[0], seen[1])


def test_the_discriminator_and_the_context_see_the_clean_image(make: Make) -> None:
    method = make("ca_entropy", noise_std=5.0).train()
    seen: list[Tensor] = []
    method.discriminator.features.register_forward_pre_hook(
        lambda m, inputs: seen.append(inputs[0].clone())
    )
    step = batch()
    method.update(step)
    assert sum(torch.equal(image, step.x) for image in seen) == 2  # D's step, and f(x) of G's


def test_impossible_options_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"data\.size=30.*multiple of 8"):
        make("ca_entropy", (1, 30, 30))
    neither = {"adversarial": False, "feature_loss": False}
    with pytest.raises(ValueError, match=r"method\.d_feature_loss=true needs method\.adversarial"):
        make("ca_entropy", **neither, d_feature_loss=True)
    with pytest.raises(ValueError, match=r"method\.lam=0 needs method\.adversarial"):
        make("ca_entropy", **neither, lam=0.0)


# Scores.


@pytest.mark.parametrize(("norm", "feature_norm"), [("l1", "l2"), ("l2", "mean_square")])
def test_published_score_is_eq_7(make: Make, norm: str, feature_norm: str) -> None:
    method = make("ca_entropy", lam=0.7, score_norm=norm, feature_norm=feature_norm).train()
    train_until_images_differ(method, batch())
    method.eval()
    x = blobs(6, seed=4)
    with torch.inference_mode():
        scores = {name: column.double().numpy() for name, column in method.novelty_score(x).items()}
        x_hat, _ = method.generate(x)  # no noise
        assert (method.generate(x + 0.2 * torch.randn_like(x))[0] - x_hat).abs().mean() > 1e-3
        f, f_hat = (
            method.discriminator(x)[1].double().numpy(),
            method.discriminator(x_hat)[1].double().numpy(),
        )
        validation = method.validation_loss(x).double().numpy()
    difference = (x.double() - x_hat.double()).flatten(1).numpy()
    context = np.abs(difference).mean(1) if norm == "l1" else (difference**2).mean(1)
    feature = feature_difference(f, f_hat, feature_norm)
    np.testing.assert_allclose(scores["context"], context, rtol=1e-5)
    np.testing.assert_allclose(scores["feature"], feature, rtol=1e-4)
    np.testing.assert_allclose(scores["novelty"], 0.7 * context + 0.3 * feature, rtol=1e-4)
    # eq. 2, whatever the score's norm
    np.testing.assert_allclose(validation, np.abs(difference).mean(1), rtol=1e-5)


def test_combined_score_divides_by_the_held_out_inliers(make: Make) -> None:
    method = make("ca_entropy", lam=0.25)
    test = {"context": torch.tensor([1.0, 4.0]), "feature": torch.tensor([30.0, 60.0])}
    val = {"context": torch.tensor([1.0, 3.0]), "feature": torch.tensor([10.0, 10.0, 10.0])}
    combined = method.combine_scores(test, val)
    assert combined["novelty_val"].tolist() == pytest.approx(
        [0.25 * 0.5 + 0.75 * 3, 0.25 * 2 + 0.75 * 6]
    )
    assert method.combine_scores(test, {name: column[:0] for name, column in val.items()}) == {}
    assert method.combine_scores(test, {}) == {}


def test_the_effect_of_the_entropy_is_measured_on_clean_images(make: Make) -> None:
    method = make("ca_entropy", **PLAIN | {"lam": 0.6}, temperature=0.5).train()
    for _ in range(2):
        method.update(batch())
    method.eval()
    inliers, outliers = blobs(520, seed=1), blobs(3, seed=2, bars=True)
    with torch.no_grad():
        h, h_out = (method.embed(x).double().numpy() for x in (inliers, outliers))
        scores = {
            name: column.double().numpy() for name, column in method.novelty_score(inliers).items()
        }
    expected = {
        "entropy_inliers": entropy(2 * h).mean(),
        "p_max_inliers": softmax(2 * h).max(1).mean(),
        "entropy_outliers": entropy(2 * h_out).mean(),
        "p_max_outliers": softmax(2 * h_out).max(1).mean(),
        "context_share_inliers": 0.6 * scores["context"].mean() / scores["novelty"].mean(),
    }
    assert method.extra_metrics(inliers, outliers) == pytest.approx(expected, rel=1e-4)
    alone = make("ca_entropy", adversarial=False, feature_loss=False).eval()
    assert alone.extra_metrics(inliers, outliers).keys() == expected.keys() - {
        "context_share_inliers"
    }


# Precision.


def test_bfloat16_autocast_stays_close_to_float32(make: Make) -> None:
    losses_by_precision = []
    for enabled in (False, True):
        method = make("ca_entropy", **PLAIN).train()
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = [method.update(batch()) for _ in range(4)]
        assert all(loss.dtype == torch.float32 for loss in losses[-1].values())
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in method.parameters())
        losses_by_precision.append(
            {name: loss.item() for name, loss in losses[0].items()}
            | {"last": losses[-1]["context"].item()}
        )
    for name, value in losses_by_precision[0].items():
        assert losses_by_precision[1][name] == pytest.approx(value, rel=0.05, abs=1e-3), name


def test_entropy_of_half_precision_codes_is_computed_in_float32() -> None:
    h = torch.randn(8, 100, generator=torch.Generator().manual_seed(0)).bfloat16()
    np.testing.assert_allclose(latent_entropy(h), entropy(h.double().numpy()), rtol=1e-5)


def test_channels_last_changes_nothing(make: Make) -> None:
    losses_by_layout = []
    for layout in (torch.contiguous_format, torch.channels_last):
        method = make("ca_entropy", (3, 32, 32), **PLAIN).train().to(memory_format=layout)
        torch.manual_seed(5)
        x = blobs(16, (3, 32, 32))
        noise = torch.randn_like(x)
        x_hat, h = method.generate((x + noise).contiguous(memory_format=layout))
        losses_by_layout.append(
            method._update_generator(x.contiguous(memory_format=layout), x_hat, h)
        )
    for name, loss in losses_by_layout[0].items():
        torch.testing.assert_close(losses_by_layout[1][name], loss, rtol=1e-4, atol=1e-5)
