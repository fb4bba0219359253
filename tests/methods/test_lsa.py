"""LSA against its paper and code: masked layers, a density that sums to one, the loss and the scaled
score, against NumPy.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from noveltylab.methods.base import Batch
from noveltylab.methods.lsa import LSA, MaskedLinear, code_nll, estimator
from tests.methods.conftest import blobs, changed, layers, settings, spied_update, states

Make = Callable[..., Any]
NETWORKS = ("encoder", "decoder", "estimator")


def batch(count: int = 16) -> Batch:
    return Batch(blobs(count), torch.arange(count))


def with_large_weights(network: nn.Module) -> nn.Module:
    """Logits that differ, in double precision."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network.double()


# The density of the code.


@pytest.mark.parametrize("own", [False, True])
def test_a_masked_layer_sums_over_earlier_values(own: bool) -> None:
    layer = MaskedLinear(4, 2, 3, own).double()
    h = np.random.default_rng(0).normal(size=(5, 4, 2))
    weight = layer.weight.detach().numpy().reshape(4, 3, 4, 2)
    bias = layer.bias.detach().numpy().reshape(4, 3)
    expected = np.zeros((5, 4, 3))
    for after in range(4):
        expected[:, after] = bias[after]
        for before in range(after + own):
            expected[:, after] += h[:, before] @ weight[after, :, before].T
    np.testing.assert_allclose(layer(torch.tensor(h)).detach(), expected, rtol=1e-9)


def test_a_value_depends_on_all_before_it_and_on_none_after() -> None:
    network = with_large_weights(estimator(5, 4, 3, 6))
    z = torch.rand(1, 5, 1, dtype=torch.float64)
    before = network(z)
    assert before.shape == (1, 5, 6)
    for place in range(5):
        moved = z.clone()
        moved[0, place] += 0.3
        changes = (network(moved) != before).any(2)[0].tolist()
        assert changes == [later > place for later in range(5)]


def test_the_estimator_has_its_layers_and_leaky_units_between_them() -> None:
    network = estimator(3, 8, 4, 20)
    assert layers(network) == [
        "linear 3>24 bias=True",
        "leaky 0.01",
        *["linear 24>24 bias=True", "leaky 0.01"] * 3,
        "linear 24>60 bias=True",
    ]
    first, *others = [module for module in network if isinstance(module, MaskedLinear)]
    assert not first.mask[0].any()
    assert all(module.mask[0, 0] == 1 for module in others)


def test_the_density_of_all_codes_sums_to_one() -> None:
    network = with_large_weights(estimator(3, 4, 2, 4))
    centres = (np.arange(4) + 0.5) / 4
    z = torch.tensor(list(product(centres, repeat=3)))
    q = (-code_nll(z, network(z.unsqueeze(2)))).exp()
    assert len(q) == 64
    assert q.sum().item() == pytest.approx(1, abs=1e-9)
    assert q.max() > 3 * q.min()


def test_the_nll_is_that_of_the_bins_in_which_the_code_lies() -> None:
    rng = np.random.default_rng(0)
    z, logits = rng.uniform(size=(6, 4)), rng.normal(size=(6, 4, 10))
    z[0] = [0.0, 1.0, 0.0999, 0.1001]
    p = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    bins = np.minimum(np.floor(z * 10).astype(int), 9)
    assert bins[0].tolist() == [0, 9, 0, 1]
    expected = [-sum(np.log(p[i, j, bins[i, j]]) for j in range(4)) for i in range(6)]
    np.testing.assert_allclose(code_nll(torch.tensor(z), torch.tensor(logits)), expected)


def test_the_density_reaches_the_encoder_through_the_estimators_input(make: Make) -> None:
    method = make("lsa").train()
    _, nll = method.terms(blobs(8))
    nll.sum().backward()
    assert method.encoder[-2].weight.grad.any()
    assert all(parameter.grad is None for parameter in method.decoder.parameters())


# Networks (code).


def test_the_layers_for_grey_images_are_those_of_the_code() -> None:
    method = LSA((1, 28, 28))
    norms = ["norm {0}", "leaky 0.01", "down {0}>{0} k3 s1 p1 bias=False", "norm {0}"]

    def block(kind: str, before: int, after: int, kernel: str, beside: str) -> list[str]:
        half = [line.format(after) for line in norms]
        first = f"{kind} {before}>{after} {kernel} bias=False"
        return [first, *half, f"{kind} {before}>{after} {beside} bias=False", f"norm {after}"]

    assert layers(method.encoder) == [
        *block("down", 1, 32, "k3 s2 p1", "k1 s2 p0"),
        *block("down", 32, 64, "k3 s2 p1", "k1 s2 p0"),
        "flatten",
        "linear 3136>64 bias=True",
        "norm 64",
        "leaky 0.01",
        "linear 64>64 bias=True",
        "sigmoid",
    ]
    assert layers(method.decoder) == [
        "linear 64>64 bias=True",
        "norm 64",
        "leaky 0.01",
        "linear 64>3136 bias=True",
        "norm 3136",
        "leaky 0.01",
        "unflatten",
        *block("up", 64, 32, "k5 s2 p2 more1", "k1 s2 p0 more1"),
        *block("up", 32, 16, "k5 s2 p2 more1", "k1 s2 p0 more1"),
        "down 16>1 k1 s1 p0 bias=False",
    ]
    assert method.estimator[-1].shape == (64, 100)


def test_the_layers_for_colour_go_from_32_channels_to_256_and_back() -> None:
    method = LSA((3, 32, 32))
    encoder, decoder = layers(method.encoder), layers(method.decoder)
    assert encoder[0] == "down 3>32 k3 s1 p1 bias=False"
    # the block of one size: two convolutions and nothing beside them
    assert [line for line in encoder if line == "down 32>32 k3 s1 p1 bias=False"] == [
        encoder[2]
    ] * 2
    firsts = [line for line in encoder if " k3 s2 " in line]
    assert firsts == [
        f"down {before}>{after} k3 s2 p1 bias=False"
        for before, after in ((32, 64), (64, 128), (128, 256))
    ]
    assert "linear 4096>256 bias=True" in encoder and "linear 256>64 bias=True" in encoder
    assert [line for line in decoder if " k5 " in line] == [
        f"up {before}>{after} k5 s2 p2 more1 bias=False"
        for before, after in ((256, 128), (128, 64), (64, 32))
    ]
    assert decoder[-1] == "down 32>3 k1 s1 p0 bias=False"


def test_a_block_is_the_sum_of_both_ways(make: Make) -> None:
    block = make("lsa").encoder[0].eval()
    x = torch.randn(2, 1, 8, 8)
    total = (block.path(x) + block.shortcut(x)).detach().numpy()
    np.testing.assert_allclose(
        block(x).detach(), np.where(total > 0, total, 0.01 * total), rtol=1e-5
    )


@pytest.mark.parametrize(("colours", "side"), [(1, 8), (1, 30), (3, 32), (3, 33)])
def test_every_size_comes_back(make: Make, colours: int, side: int) -> None:
    method = make("lsa", (colours, side, side), width=0.25).eval()
    x = torch.rand(2, colours, side, side)
    assert method.reconstruct(x).shape == x.shape
    z = method.embed(x)
    assert z.shape == (2, 16) and (z > 0).all() and (z < 1).all()


def test_one_feature_a_value_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"method\.features=1"):
        make("lsa", features=1)


# The loss.


def numpy_terms(method: Any, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both terms from the networks' outputs."""
    z = method.encoder(x)
    x_hat = method.decoder(z).detach().double().numpy()
    logits = method.estimator(z.unsqueeze(2)).detach().double().numpy()
    z = z.detach().double().numpy()
    grey, grey_hat = (x.double().numpy() + 1) / 2, (x_hat + 1) / 2
    recon = ((grey - grey_hat) ** 2).reshape(len(x), -1).sum(1)
    log_q = logits - np.log(np.exp(logits).sum(2, keepdims=True))
    bins = np.minimum(np.floor(z * logits.shape[2]).astype(int), logits.shape[2] - 1)
    nll = -np.take_along_axis(log_q, bins[:, :, None], 2).sum((1, 2))
    return recon, nll


def test_the_loss_is_the_squared_error_and_lambda_times_the_nll(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("lsa", lam=0.3).train()
    step = batch()
    recon, nll = numpy_terms(method, step.x)
    minimised, losses = spied_update(method, step, monkeypatch)
    assert losses == pytest.approx({"recon": recon.mean(), "nll": nll.mean()}, rel=1e-4)
    assert minimised == pytest.approx({"networks": (recon + 0.3 * nll).mean()}, rel=1e-4)


def test_held_out_inliers_have_the_same_loss(make: Make) -> None:
    method = make("lsa", lam=0.3).eval()
    x = blobs(5)
    recon, nll = numpy_terms(method, x)
    np.testing.assert_allclose(method.validation_loss(x).detach(), recon + 0.3 * nll, rtol=1e-4)


def test_an_update_changes_all_networks_by_adam(make: Make) -> None:
    method = make("lsa", lr=3e-3).train()
    (optimizer,) = method.build_optimizers().values()
    assert settings(optimizer) == {"kind": "Adam", "lr": 3e-3}
    before = states(method, NETWORKS)
    method.update(batch())
    assert changed(before, method) == set(NETWORKS)


def test_the_loss_falls(make: Make) -> None:
    method = make("lsa").train()
    values = [sum(method.update(batch(32)).values()).item() for _ in range(25)]
    assert values[-1] < 0.7 * values[0]


# The score.


def test_the_score_is_the_sum_of_both_terms_between_their_extremes(make: Make) -> None:
    method = make("lsa").train()
    for _ in range(5):
        method.update(batch())
    method.eval()
    train, x = blobs(70), blobs(6, seed=3)
    with torch.no_grad():
        method.prepare_score(train)
        scores = {name: column.numpy() for name, column in method.novelty_score(x).items()}
    expected = np.zeros(6)
    terms = zip(("recon", "nll"), numpy_terms(method, train), numpy_terms(method, x), strict=True)
    for name, inliers, values in terms:
        np.testing.assert_allclose(scores[name], values, rtol=1e-4)
        expected += (values - inliers.min()) / (inliers.max() - inliers.min())
    np.testing.assert_allclose(scores["novelty"], expected, rtol=1e-3)


def test_inliers_all_alike_divide_by_no_zero(make: Make) -> None:
    method = make("lsa").eval()
    with torch.no_grad():
        method.prepare_score(blobs(1).repeat(3, 1, 1, 1))
        assert method.novelty_score(blobs(2))["novelty"].isfinite().all()


def test_bfloat16_autocast_stays_close_to_float32(make: Make) -> None:
    torch.manual_seed(0)
    method = make("lsa").eval()
    x = blobs(4)
    expected = method.novelty_score(x)
    with torch.autocast("cpu", torch.bfloat16):
        scores = method.novelty_score(x)
    for name in ("recon", "nll"):
        assert scores[name].dtype == torch.float32
        torch.testing.assert_close(scores[name], expected[name], rtol=0.05, atol=1.0)
