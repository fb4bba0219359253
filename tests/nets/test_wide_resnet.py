"""The wide residual network: its layers, its shortcuts and its initial weights."""

import pytest
import torch
from torch import nn

from noveltylab.nets.wide_resnet import Residual, initialise, wide_residual_network
from tests.methods.conftest import assert_normal


def convolutions(network: nn.Module, side: int) -> list[nn.Conv2d]:
    return [
        m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (side, side)
    ]


def test_depth_10_and_width_4() -> None:
    network = wide_residual_network(3, 10, 4.0, 4)
    assert [(m.out_channels, m.stride[0]) for m in convolutions(network, 3)] == [
        (16, 1),
        *((64, 1), (64, 1)),
        *((128, 2), (128, 1)),
        *((256, 2), (256, 1)),
    ]
    shortcuts = convolutions(network, 1)
    assert [(m.in_channels, m.out_channels) for m in shortcuts] == [(16, 64), (64, 128), (128, 256)]
    assert (network[-1].in_features, network[-1].out_features) == (256, 4)


@pytest.mark.parametrize(("depth", "width", "count"), [(10, 1.0, 7), (16, 0.5, 13), (22, 2.0, 19)])
def test_depth_and_width(depth: int, width: float, count: int) -> None:
    network = wide_residual_network(1, depth, width, 72)
    layers = convolutions(network, 3)
    assert len(layers) == count
    assert layers[0].out_channels == 16 * min(width, 1)
    assert layers[-1].out_channels == 64 * width
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 72)


def test_another_depth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.depth=12: .*6 n \+ 4"):
        wide_residual_network(1, 12, 1.0, 4)


def test_a_residual_block_adds_its_input_where_shapes_allow() -> None:
    torch.manual_seed(0)
    narrow, strided_block = Residual(4, 4, 1).eval(), Residual(4, 6, 2).eval()
    x = torch.randn(2, 4, 8, 8)
    for block in (narrow, strided_block):
        nn.init.zeros_(block.body[-1].weight)
    assert torch.equal(narrow(x), x)
    # the paper's shortcut
    assert strided_block.shortcut is not None
    strided = nn.functional.conv2d(strided_block.enter(x), strided_block.shortcut.weight, None, 2)
    torch.testing.assert_close(strided_block(x), strided)


def test_initial_weights_have_hes_deviation_by_the_outputs() -> None:
    torch.manual_seed(0)
    network = wide_residual_network(3, 10, 4.0, 4).apply(initialise)
    for layer in convolutions(network, 3)[1:]:
        deviation = (2 / (9 * layer.out_channels)) ** 0.5
        assert_normal(layer.weight.detach().flatten(), 0.0, deviation)
