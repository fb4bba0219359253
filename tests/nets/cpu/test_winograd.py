"""Winograd's algorithm against the definition of a convolution: values, gradients, rounding, and
where it is used.
"""

from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import open_dict
from torch import Tensor, nn
from torch.nn import functional as F

from noveltylab.command.hydra_versions import BASE
from noveltylab.job import CONF
from noveltylab.nets.cpu import layers as cpu_layers
from noveltylab.nets.cpu import winograd
from noveltylab.options import check_options
from noveltylab.run.build import build
from noveltylab.run.read import read_and_split

KERNELS = [(4, 1), (5, 2)]  # and padding
SIZES = [(8, 8), (16, 16), (8, 24)]


def maps(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise.to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("taps", [2, 3])
def test_the_matrices_convolve(taps: int) -> None:
    """Eq. 5 of the paper, one row: A^T((G g) * (B^T d)) is the correlation of d with g."""
    forward, weights, inputs = winograd.matrices(taps, torch.float64)
    g, d = (
        torch.arange(1.0, taps + 1).double(),
        torch.arange(winograd.TILE + taps - 1).double() ** 2,
    )
    expected = [float(g @ d[start : start + taps]) for start in range(winograd.TILE)]
    assert (forward @ ((weights @ g) * (inputs @ d))).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kernel", "padding"), KERNELS)
@pytest.mark.parametrize("batch", [1, 3])
def test_convolutions_and_their_gradients_are_torchs(
    kernel: int, padding: int, size: tuple[int, int], batch: int
) -> None:
    x, weight = (
        maps(batch, 3, *size).requires_grad_(),
        maps(5, 3, kernel, kernel, seed=1).requires_grad_(),
    )
    ours, theirs = (
        winograd.Convolution.apply(x, weight, padding),
        F.conv2d(x, weight, None, 2, padding),
    )
    compare(ours, theirs, x, weight)
    small = maps(batch, 5, size[0] // 2, size[1] // 2, seed=2).requires_grad_()
    ours = winograd.Transposed.apply(small, weight, padding)
    compare(ours, F.conv_transpose2d(small, weight, None, 2, padding, kernel - 4), small, weight)


def compare(ours: Tensor, theirs: Tensor, *leaves: Tensor) -> None:
    pull = maps(*theirs.shape, seed=3)
    results = [(y, *torch.autograd.grad(y, leaves, pull)) for y in (ours, theirs)]
    for actual, expected in zip(*results, strict=True):
        assert actual.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
@pytest.mark.parametrize("layer", [winograd.Convolution, winograd.Transposed])
def test_a_frozen_side_gets_no_gradient(layer: Any, needed: tuple[bool, bool]) -> None:
    x, weight = maps(2, 4, 8, 8), maps(4, 4, 4, 4, seed=1)
    both = [part.clone().requires_grad_() for part in (x, weight)]
    expected = torch.autograd.grad(layer.apply(*both, 1).sum(), both)
    x.requires_grad_(needed[0]), weight.requires_grad_(needed[1])
    layer.apply(x, weight, 1).sum().backward()
    for part, gradient, needs_gradient in zip((x, weight), expected, needed, strict=True):
        assert (
            torch.equal(part.grad, gradient)
            if needs_gradient and part.grad is not None
            else part.grad is None
        )


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(KERNELS),
    st.sampled_from(SIZES),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 1000),
)
def test_the_transforms_and_their_adjoints_are_transposes(
    kernel: tuple[int, int], size: tuple[int, int], batch: int, channels: int, seed: int
) -> None:
    geometry = winograd.Geometry(torch.Size((batch, channels, *size)), *kernel)
    torch.manual_seed(seed)
    big, small = (
        torch.randn(batch, channels, *size).double(),
        torch.randn(batch, 3, size[0] // 2, size[1] // 2).double(),
    )
    weight = torch.randn(3, channels, kernel[0], kernel[0]).double()
    squares = geometry.side**2
    for transform, adjoint, x, shape in (
        (geometry.inputs, geometry.inputs_adjoint, big, (squares, geometry.tiles, 4 * channels)),
        (geometry.weights, geometry.weights_adjoint, weight, (squares, 3, 4 * channels)),
        (geometry.outputs_adjoint, geometry.outputs, small, (squares, geometry.tiles, 3)),
    ):
        y = torch.randn(shape).double()
        assert transform(x).shape == shape
        assert float((transform(x) * y).sum()) == pytest.approx(
            float((x * adjoint(y)).sum()), rel=1e-9, abs=1e-9
        )


@pytest.mark.parametrize("size", [(8, 8), (16, 16)])
@pytest.mark.parametrize("batch", [1, 2])
def test_no_result_lies_in_memory_that_the_next_layer_writes_over(
    size: tuple[int, int], batch: int
) -> None:
    results: list[Tensor] = []
    for seed in (0, 1):
        for channels in (1, 4):
            x, weight = (
                maps(batch, channels, *size, seed=seed),
                maps(channels, channels, 5, 5, seed=seed + 2),
            )
            x, weight = x.requires_grad_(), weight.requires_grad_()
            for layer in (winograd.Convolution, winograd.Transposed):
                y = layer.apply(x, weight, 2)
                results += [y, *torch.autograd.grad(y, (x, weight), torch.ones_like(y))]
    copies = [result.detach().clone() for result in results]
    for slot in winograd._scratch.flat.values():
        slot.fill_(float("nan"))
    assert all(torch.equal(result, copy) for result, copy in zip(results, copies, strict=True))


@pytest.mark.parametrize(("kernel", "padding"), KERNELS)
def test_float32_rounds_to_a_hundred_thousandth_of_the_largest_value(
    kernel: int, padding: int
) -> None:
    """Larger than the definition's 1e-6, as the paper's section 5.3 has it.

    Far below what a step of Adam sees.
    """
    x, weight = maps(64, 64, 16, 16), maps(128, 64, kernel, kernel, seed=1)
    leaves = [part.float().requires_grad_() for part in (x, weight)]
    y = winograd.Convolution.apply(*leaves, padding)
    x.requires_grad_(), weight.requires_grad_()
    exact = F.conv2d(x, weight, None, 2, padding)
    pull = maps(*exact.shape, seed=3)
    results = (y, *torch.autograd.grad(y, leaves, pull.float()))
    for actual, expected in zip(
        results, (exact, *torch.autograd.grad(exact, (x, weight), pull)), strict=True
    ):
        error = float((actual - expected).detach().abs().max() / expected.detach().abs().max())
        assert 0 < error < 1e-5


def layers(**changes: Any) -> list[nn.Module]:
    """A convolution and a transposed one of many channels, in training, that may use it."""
    network = nn.ModuleList(
        [cpu_layers.Conv2d(64, 128, 4, 2, 1), cpu_layers.ConvTranspose2d(128, 64, 4, 2, 1)]
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack this call
    cpu_layers.use_winograd(network, changes.get("wanted", True))
    return [layer.train(changes.get("training", True)) for layer in network]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was computed by Winograd's algorithm, in order."""
    calls: list[str] = []
    for function in (winograd.Convolution, winograd.Transposed):

        def apply(
            *arguments: Any, name: str = function.__name__, plain: Any = function.apply
        ) -> Any:
            calls.append(name)
            return plain(*arguments)

        monkeypatch.setattr(function, "apply", apply)
    return calls


def run(
    both: list[nn.Module], batch: int = 64, dtype: torch.dtype = torch.float32, size: int = 16
) -> None:
    for layer, channels, side in zip(both, (64, 128), (size, size // 2), strict=True):
        layer.to(dtype)(maps(batch, channels, side, side, dtype=dtype))


def test_layers_train_by_it_and_give_torchs_values(used: list[str]) -> None:
    torch.manual_seed(0)
    both = layers()
    for layer, channels, side in zip(both, (64, 128), (16, 8), strict=True):
        x = maps(64, channels, side, side, dtype=torch.float32)
        plain = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.ConvTranspose2d
        expected = plain.forward(layer, x)  # type: ignore[arg-type]  # `plain` is this very layer's base class
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=2e-5)
    assert used == ["Convolution", "Transposed"]


def test_small_layers_small_batches_other_sizes_and_types_do_not(used: list[str]) -> None:
    run(layers(), batch=15)
    run(layers(), size=12)
    run(layers(), dtype=torch.float64)
    for layer, channels in zip(
        (cpu_layers.Conv2d(8, 16, 4, 2, 1), cpu_layers.ConvTranspose2d(16, 8, 4, 2, 1)),
        (8, 16),
        strict=True,
    ):
        cpu_layers.use_winograd(layer, True)
        layer(maps(64, channels, 8, 8, dtype=torch.float32))
    # enough weights, but a kernel that it hardly helps
    small = cpu_layers.Conv2d(128, 128, 3, 2, 1)
    cpu_layers.use_winograd(small, True)
    small(maps(64, 128, 8, 8, dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        run(layers())
    assert used == []


def test_scores_never_come_from_it(used: list[str]) -> None:
    run(layers(training=False))
    with torch.no_grad():
        run(layers())
    assert used == []


def test_it_can_be_turned_off(used: list[str]) -> None:
    run(layers(wanted=False))
    assert used == []


@pytest.mark.parametrize(("recorded", "expected"), [(True, True), (False, False), (None, False)])
def test_runs_use_it_except_those_recorded_before_there_was_such_an_option(
    recorded: bool | None, expected: bool
) -> None:
    with initialize_config_dir(str(CONF), **BASE):
        composed = compose(
            "train",
            ["method=ocgan", "data=digits", "method.channels=4", "method.classifier_channels=4"],
        )
    assert composed.trainer.winograd is True
    with open_dict(composed):
        if recorded is None:
            del composed.trainer.winograd
        else:
            composed.trainer.winograd = recorded
    options = check_options(composed)
    _, method = build(options, *read_and_split(options))
    strided = [
        layer
        for layer in method.modules()
        if isinstance(layer, (cpu_layers.Conv2d, cpu_layers.ConvTranspose2d))
    ]
    assert strided and all(layer.winograd is expected for layer in strided)
