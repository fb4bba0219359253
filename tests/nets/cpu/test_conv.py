"""The CPU's layers against torch's own: same values, same gradients, same parameters."""

import pytest
import torch
from torch import nn

from noveltylab.nets.cpu import layers

GEOMETRIES = [(5, 2, 8), (4, 1, 8), (5, 0, 13), (5, 2, 16), (3, 1, 8)]  # kernel, padding, side


def compare(ours: nn.Module, theirs: nn.Module, x: torch.Tensor, rtol: float = 1e-5) -> None:
    theirs.load_state_dict(ours.state_dict())
    results = []
    for layer in (ours, theirs):
        image = x.detach().clone().requires_grad_()
        y = layer(image)
        weights = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
        gradients = torch.autograd.grad((y * weights).sum(), [image, *layer.parameters()])
        results.append([y, *gradients])
    for actual, expected in zip(*results, strict=True):
        assert actual.shape == expected.shape and actual.dtype == expected.dtype
        scale = expected.detach().abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=0, atol=rtol * scale)


@pytest.mark.parametrize("channels", [(3, 8), (6, 8)])
@pytest.mark.parametrize(("kernel", "padding", "side"), GEOMETRIES)
@pytest.mark.parametrize("bias", [False, True])
def test_convolutions_equal_torchs(channels, kernel, padding, side, bias, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    if channels[0] > layers.MAX_IMAGE_CHANNELS:
        monkeypatch.setitem(layers.WORTHWHILE, torch.float32, 0)
    torch.manual_seed(0)
    settings = {"kernel_size": kernel, "stride": 2, "padding": padding, "bias": bias}
    ours, theirs = layers.Conv2d(*channels, **settings), nn.Conv2d(*channels, **settings)
    x = torch.randn(3, channels[0], side, side)
    compare(ours, theirs, x)
    small = torch.randn(3, channels[1], *theirs(x).shape[2:])
    for output_padding in (0, 1):
        ours, theirs = (
            kind(channels[1], channels[0], output_padding=output_padding, **settings)
            for kind in (layers.ConvTranspose2d, nn.ConvTranspose2d)
        )
        compare(ours, theirs, small)


@pytest.mark.parametrize("channels", [(3, 8), (6, 8)])
def test_autocast_is_followed(channels, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(
        layers.WORTHWHILE, torch.bfloat16, 0 if channels[0] > layers.MAX_IMAGE_CHANNELS else 10**9
    )
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        for x, kinds in (
            (torch.randn(3, channels[0], 8, 8), (layers.Conv2d, nn.Conv2d)),
            (torch.randn(3, channels[0], 4, 4), (layers.ConvTranspose2d, nn.ConvTranspose2d)),
        ):
            ours, theirs = (kind(*channels, 4, 2, 1) for kind in kinds)
            compare(ours, theirs, x, rtol=2e-2)


def test_products_ask_for_no_gradient_that_nobody_wants(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(layers.WORTHWHILE, torch.float32, 0)
    layer = layers.Conv2d(6, 8, 4, 2, 1).requires_grad_(False)
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5])
def test_dropout_keeps_the_share_and_the_mean(p: float) -> None:
    torch.manual_seed(0)
    layer, x = layers.Dropout(p), torch.ones(8, 5, 31, 33, requires_grad=True)
    y = layer(x)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.01)
    assert y.unique().tolist() == pytest.approx(sorted({0.0, 1 / (1 - p)} if p else {1.0}))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y.detach())
    assert torch.equal(layer(x), y) == (p == 0)
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize(
    "layer", [layers.Conv2d(8, 16, 5, 2, 2), layers.ConvTranspose2d(8, 16, 5, 2, 2)]
)
def test_an_exported_graph_has_torchs_own(
    layer: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For other machines, and any batch."""
    monkeypatch.setitem(layers.WORTHWHILE, torch.float32, 0)
    x, batch = torch.randn(4, 8, 6, 6), torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},), strict=False)
        called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert len(called) == 1 and "conv" in called.pop()
        batch_of_7 = torch.randn(7, 8, 6, 6)
        torch.testing.assert_close(program.module()(batch_of_7), layer(batch_of_7))
