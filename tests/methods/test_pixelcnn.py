"""PixelCNN against its paper: what each value may depend on, a likelihood that sums to one, gated
layers against NumPy, and the score.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torch import Tensor

from noveltylab.methods.base import Batch
from noveltylab.methods.pixelcnn import (
    GatedLayer,
    LeftConv,
    Network,
    UpperConv,
    colours_of,
    gate,
)
from tests.methods.conftest import blobs, settings, sigmoid, spied_update

Make = Callable[..., Any]


def batch(count: int = 16) -> Batch:
    return Batch(blobs(count), torch.arange(count))


def with_large_weights(network: torch.nn.Module) -> torch.nn.Module:
    """Logits that differ, in double precision."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return network.double()


def dependence(network: torch.nn.Module, shape: tuple[int, int, int]) -> np.ndarray:
    """Whether the logits of each value (first) change with each value (second), both in the order
    rows, columns, colours.
    """
    colours, height, width = shape
    x = torch.rand(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    before = network(x)
    count = colours * height * width
    changes = np.zeros((count, count), bool)
    places = list(product(range(height), range(width), range(colours)))
    for place, (row, column, colour) in enumerate(places):
        moved = x.clone()
        moved[0, colour, row, column] += 0.5
        difference = (network(moved) != before).any(2)[0]  # (C, H, W)
        changes[:, place] = difference.permute(1, 2, 0).reshape(-1).numpy()
    return changes


# What a value may depend on.


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("width", [24, 25])
def test_a_value_depends_on_all_before_it_and_on_none_after(colours: int, width: int) -> None:
    """Exactly: no logit changes by a bit. And there is no blind spot."""
    network = with_large_weights(Network(colours, 3, width, 3))
    changes = dependence(network, (colours, 3, 4))
    count = len(changes)
    earlier = np.tril(np.ones((count, count), bool), -1)
    assert not changes[~earlier].any()
    assert changes[earlier].all()


def test_mask_a_hides_what_mask_b_shows() -> None:
    before, after = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2])
    hidden = LeftConv(before, after, 3, "A").mask[:, :, 0]
    shown = LeftConv(before, after, 3, "B").mask[:, :, 0]
    # out colour first; the pixel itself is the last column
    np.testing.assert_array_equal(hidden[:, :, -1], np.tril(np.ones((3, 3)), -1))
    np.testing.assert_array_equal(shown[:, :, -1], np.tril(np.ones((3, 3))))
    assert hidden[:, :, 0].all() and shown[:, :, 0].all()


def test_features_are_shared_out_among_the_colours() -> None:
    assert colours_of(6, 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert colours_of(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert colours_of(4, 1).tolist() == [0, 0, 0, 0]


def test_fewer_features_than_colours_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"method\.width=2: each of 3 colours"):
        make("pixelcnn", (3, 8, 8), width=2)


# Layers, against whole kernels that are masked.


def masked(x: np.ndarray, kernels: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Odd square kernels (after, before, k, k) over x (before, H, W), zeros around it."""
    side = kernels.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (side, side), (side, side)))
    rows = []
    for kernel, offset in zip(kernels, bias, strict=True):
        parts = [correlate2d(padded[c], kernel[c], "valid") for c in range(len(x))]
        rows.append(sum(parts) + offset)
    return np.stack(rows)


def whole_kernel(layer: LeftConv | UpperConv, side: int) -> np.ndarray:
    """The layer's weights in a kernel side x side, zero where the paper's mask is."""
    weight = layer.weight.detach().numpy()
    kernels = np.zeros((*weight.shape[:2], side, side))
    if isinstance(layer, LeftConv):
        kernels[:, :, side // 2, : side // 2 + 1] = (weight * layer.mask.numpy())[:, :, 0]
    else:
        kernels[:, :, : weight.shape[2]] = weight
    return kernels


def numpy_layer(
    layer: GatedLayer, side: int, v: np.ndarray, h: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    def applied(part: Any, x: np.ndarray, kernel_side: int) -> np.ndarray:
        kernels = (
            part.weight.detach().numpy() if part is layer.link else whole_kernel(part, kernel_side)
        )
        return masked(x, kernels, part.bias.detach().numpy())

    def gated(x: np.ndarray) -> np.ndarray:
        half = len(x) // 2
        return np.tanh(x[:half]) * sigmoid(x[half:])

    above = applied(layer.vertical, v, side)
    beside = applied(layer.horizontal, h, side) + applied(layer.link, above, 1)
    step = applied(layer.output, gated(beside), 1)
    return gated(above), step if layer.first else h + step


@pytest.mark.parametrize("mask", ["A", "B"])
def test_a_gated_layer_is_figure_2(mask: Any) -> None:
    features = colours_of(4, 2)
    before = torch.arange(2) if mask == "A" else features
    layer = GatedLayer(before, features, 5, mask)
    with_large_weights(layer)
    v, h = np.random.default_rng(0).normal(size=(2, len(before), 6, 5))
    outputs = layer(torch.tensor(v)[None], torch.tensor(h)[None])
    for output, expected in zip(outputs, numpy_layer(layer, 5, v, h), strict=True):
        np.testing.assert_allclose(output[0].detach(), expected, rtol=1e-9, atol=1e-12)


def test_the_gate_is_eq_2() -> None:
    x = np.random.default_rng(0).normal(size=(2, 6, 3, 3))
    expected = np.tanh(x[:, :3]) * sigmoid(x[:, 3:])
    np.testing.assert_allclose(gate(torch.tensor(x)), expected, rtol=1e-9)


def test_the_stacks_begin_wide_and_masked_and_go_on_narrow(make: Make) -> None:
    first, *others = make("pixelcnn", (3, 8, 8), layers=3, width=6).network.layers
    assert first.first and not any(layer.first for layer in others)
    assert first.horizontal.kernel_size == (1, 4) and first.vertical.kernel_size == (3, 7)
    for layer in others:
        assert layer.horizontal.kernel_size == (1, 2) and layer.vertical.kernel_size == (2, 3)
    assert len(others) == 2


# The likelihood (eq. 1).


@pytest.mark.parametrize(
    ("shape", "levels"), [((1, 2, 2), 3), ((3, 1, 2), 2), ((1, 3, 2), 2), ((2, 2, 1), 3)]
)
def test_the_likelihood_of_all_images_sums_to_one(
    make: Make, shape: tuple[int, int, int], levels: int
) -> None:
    method = make("pixelcnn", shape, levels=levels, width=24).eval()
    with_large_weights(method.network)
    count = int(np.prod(shape))
    values = np.linspace(-1, 1, levels)
    images = torch.tensor(np.array(list(product(values, repeat=count)))).view(-1, *shape)
    assert len(images) == levels**count
    p = 2.0 ** (-count * method.novelty_score(images)["nll"])
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    # not because all are equally likely
    assert p.max() > 3 * p.min()


def test_the_score_is_the_mean_of_the_chosen_levels_in_bits(make: Make) -> None:
    method = make("pixelcnn", (3, 5, 4), levels=4, width=6).eval()
    with_large_weights(method.network)
    x = torch.rand(3, 3, 5, 4, dtype=torch.float64) * 2 - 1
    grey = (x.numpy() + 1) / 2
    index = np.abs(grey[..., None] - np.linspace(0, 1, 4)).argmin(-1)
    rounded = torch.tensor(2 * index / 3 - 1)
    logits = method.network(rounded).detach().numpy()
    expected = []
    for image, chosen in zip(logits, index, strict=True):
        terms = []
        for place in product(range(3), range(5), range(4)):
            colour, row, column = place
            scores = image[colour, :, row, column]
            p = np.exp(scores) / np.exp(scores).sum()
            terms.append(-np.log2(p[chosen[place]]))
        expected.append(np.mean(terms))
    np.testing.assert_allclose(method.novelty_score(x)["nll"].detach(), expected, rtol=1e-9)
    torch.testing.assert_close(method.validation_loss(x), method.novelty_score(x)["nll"])
    # the map: nats of a pixel, its colours together
    pixels = method.novelty_map(x)
    assert pixels.shape == (3, 5, 4) and (pixels >= 0).all()
    np.testing.assert_allclose(
        pixels.sum((1, 2)).detach(), np.array(expected) * 60 * np.log(2), rtol=1e-9
    )


def test_stored_grey_values_are_the_levels(make: Make) -> None:
    method = make("pixelcnn", levels=256)
    grey = torch.arange(256)
    x = (grey / 127.5 - 1).view(1, 1, 16, 16)
    assert torch.equal(method.level(x).flatten(), grey)
    beyond = torch.tensor([-3.0, 5.0]).view(1, 1, 1, 2)
    assert method.level(beyond).flatten().tolist() == [0, 255]
    few = make("pixelcnn", levels=2)
    assert few.level(torch.tensor([-1.0, -0.1, 0.1, 1.0]).view(1, 1, 2, 2)).flatten().tolist() == [
        0,
        0,
        1,
        1,
    ]


def test_an_image_costs_the_same_as_the_levels_that_it_is_rounded_to(make: Make) -> None:
    method = make("pixelcnn", levels=3, width=4).eval()
    with_large_weights(method.network)
    x = torch.tensor([-1.0, 0.0, 1.0]).double().repeat(3).view(1, 1, 3, 3)
    near = x + 0.2 * torch.tensor([1.0, -1.0, -1.0]).repeat(3).view(1, 1, 3, 3)
    assert torch.equal(method.bits(x), method.bits(near))


# Training.


def test_the_loss_is_the_score_and_it_alone_is_minimised(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("pixelcnn").train()
    step = batch()
    expected = method.bits(step.x).mean().item()
    minimised, losses = spied_update(method, step, monkeypatch)
    assert losses == pytest.approx({"nll": expected}, rel=1e-6)
    assert minimised == pytest.approx({"network": expected}, rel=1e-6)


def test_the_optimizer_is_adam_over_all_parameters(make: Make) -> None:
    method = make("pixelcnn", lr=3e-4)
    (optimizer,) = method.build_optimizers().values()
    assert settings(optimizer) == {"kind": "Adam", "lr": 3e-4}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in method.parameters()}


def test_it_learns_the_entropy_of_pixels_that_repeat_their_neighbour(make: Make) -> None:
    """Columns of one coin toss each: an image of 6 x 6 holds 6 bits, 1/6 of a bit a pixel."""
    method = make("pixelcnn", (1, 6, 6), levels=2, width=8, layers=2, lr=1e-2).train()
    generator = torch.Generator().manual_seed(0)

    def columns(count: int) -> Tensor:
        tosses = torch.randint(2, (count, 1, 1, 6), generator=generator).float()
        return (2 * tosses - 1).expand(-1, -1, 6, -1).contiguous()

    for _ in range(150):
        method.update(Batch(columns(32), torch.arange(32)))
    assert method.bits(columns(256)).mean().item() == pytest.approx(1 / 6, abs=0.02)


def test_bfloat16_autocast_stays_close_to_float32(make: Make) -> None:
    method = make("pixelcnn").eval()
    x = blobs(4)
    expected = method.novelty_score(x)["nll"]
    with torch.autocast("cpu", torch.bfloat16):
        nll = method.novelty_score(x)["nll"]
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, expected, rtol=0.02, atol=0.02)
