"""Fast CPU layers compute what torch's own do; methods train and score alike without them."""

import ast
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noveltylab.job import PACKAGE
from noveltylab.methods.base import Batch, Method
from noveltylab.nets.cpu import conv, layers, winograd
from noveltylab.scoring.batches import default_dtype
from tests.methods.conftest import ITERATIVE, blobs
from tests.methods.conftest import make as make  # a fixture

Make = Callable[..., Method]
#: Methods whose networks have layers from behind the door.
FAST = {"ca_entropy", "nda", "ocgan", "skip_ganomaly"}
#: Weights from which a layer of these small networks counts as wide: all but those at an image.
WIDE = 512
#: What the fast layers compute with.
ALGORITHMS = {
    "image": conv.FromImage,
    "product": conv.Convolution,
    "transposed product": conv.Transposed,
    "winograd": winograd.Convolution,
    "transposed winograd": winograd.Transposed,
}
GEOMETRIES = [(5, 2, 8), (4, 1, 8), (5, 0, 13), (5, 2, 16), (3, 1, 8)]  # kernel, padding, side


# Layer by layer against torch: the same values, gradients and parameters.


def assert_layers_agree(
    ours: nn.Module, theirs: nn.Module, x: torch.Tensor, rtol: float = 1e-5
) -> None:
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
    assert_layers_agree(ours, theirs, x)
    small = torch.randn(3, channels[1], *theirs(x).shape[2:])
    for output_padding in (0, 1):
        ours, theirs = (
            kind(channels[1], channels[0], output_padding=output_padding, **settings)
            for kind in (layers.ConvTranspose2d, nn.ConvTranspose2d)
        )
        assert_layers_agree(ours, theirs, small)


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
            assert_layers_agree(ours, theirs, x, rtol=2e-2)


def test_products_ask_for_no_gradient_that_nobody_wants(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(layers.WORTHWHILE, torch.float32, 0)
    layer = layers.Conv2d(6, 8, 4, 2, 1).requires_grad_(False)
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None


@pytest.mark.parametrize("by_winograd", [False, True])
@pytest.mark.parametrize("channels", [(3, 8), (6, 8)])
@pytest.mark.parametrize("kind", [layers.Conv2d, layers.ConvTranspose2d])
def test_a_layer_without_bias_stands_before_an_activation_in_place(
    kind: type[nn.Conv2d | nn.ConvTranspose2d],
    channels: tuple[int, int],
    by_winograd: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(layers.WORTHWHILE, torch.float32, 0)
    monkeypatch.setitem(layers.WINOGRAD_WORTHWHILE, torch.float32, 0)
    monkeypatch.setattr(layers, "WINOGRAD_TILES", 0)
    torch.manual_seed(0)
    layer = kind(*channels, 4, 2, 1, bias=False)
    layers.use_winograd(layer, by_winograd)
    x = torch.randn(2, channels[0], 16, 16, requires_grad=True)
    gradients = []
    for inplace in (True, False):
        network = nn.Sequential(layer, nn.LeakyReLU(0.2, inplace=inplace))
        gradients.append(torch.autograd.grad(network(x).square().sum(), [x, layer.weight]))
    for in_place, copied in zip(*gradients, strict=True):
        assert torch.equal(in_place, copied)


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


# Whole methods with the door to the fast layers open and shut.


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the algorithms that have computed something."""
    names: set[str] = set()
    for name, function in ALGORITHMS.items():

        def apply(*arguments: Any, name: str = name, plain: Any = function.apply) -> Any:
            names.add(name)
            return plain(*arguments)

        monkeypatch.setattr(function, "apply", apply)
    return names


def train_and_score(make: Make, name: str, by_winograd: bool) -> dict[str, Tensor]:
    """Losses and weights of two updates and the scores after them, in float64."""
    changes = {"dropout": 0.0} if name == "ocgan" else {}  # its draws differ behind the door
    method = make(name, **changes).double()
    layers.use_winograd(method, by_winograd)
    images = blobs(24).double()
    method.prepare(images)
    method.train()
    values: dict[str, Tensor] = {}
    for step in range(2):
        torch.manual_seed(step)
        method.progress = 0.99 * step  # the last phase too
        losses = method.update(Batch(images[:8], torch.arange(8)))
        values |= {f"{loss} of update {step}": value for loss, value in losses.items()}
    values |= {key: value.detach().clone() for key, value in method.state_dict().items()}
    method.eval()
    with torch.inference_mode():
        return values | method.novelty_score(images[16:])


def assert_alike(make: Make, name: str, by_winograd: bool) -> None:
    with default_dtype(torch.float64):  # that of latents drawn in an update
        fast = train_and_score(make, name, by_winograd)
        with layers.torchs_own():
            plain = train_and_score(make, name, by_winograd)
    assert fast.keys() == plain.keys()
    for key, value in fast.items():
        torch.testing.assert_close(value, plain[key], rtol=1e-5, atol=1e-7, msg=key)


@pytest.fixture
def always_worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast layers compute whatever they can, also images as small as a test's."""
    monkeypatch.setitem(layers.WORTHWHILE, torch.float64, WIDE)
    monkeypatch.setitem(layers.WINOGRAD_WORTHWHILE, torch.float64, WIDE)
    monkeypatch.setattr(layers, "WINOGRAD_TILES", 0)


@pytest.mark.usefixtures("always_worthwhile")
@pytest.mark.parametrize("name", sorted(FAST))
@pytest.mark.parametrize("algorithm", ["products", "winograd"])
def test_a_method_trains_and_scores_alike_without_the_fast_layers(
    make: Make, used: set[str], name: str, algorithm: str
) -> None:
    by_winograd = algorithm == "winograd"
    assert_alike(make, name, by_winograd)
    assert used
    assert ("winograd" in used) == by_winograd


@pytest.mark.usefixtures("always_worthwhile")
@pytest.mark.parametrize("name", [name for name in ITERATIVE if name not in FAST])
def test_other_methods_are_alike_and_compute_nothing_by_the_fast_layers(
    make: Make, used: set[str], name: str
) -> None:
    assert_alike(make, name, True)
    assert not used


@pytest.mark.parametrize("name", sorted(FAST))
def test_a_method_trains_and_scores_alike_with_the_layers_as_they_are_chosen(
    make: Make, name: str
) -> None:
    assert_alike(make, name, True)


def test_behind_a_shut_door_nothing_is_computed_but_torchs_own(
    make: Make, monkeypatch: pytest.MonkeyPatch, used: set[str]
) -> None:
    monkeypatch.setitem(layers.WORTHWHILE, torch.float64, WIDE)
    with default_dtype(torch.float64):
        with layers.torchs_own():
            with layers.torchs_own():
                train_and_score(make, "ocgan", False)
            train_and_score(make, "ocgan", False)
        assert not used
        train_and_score(make, "ocgan", False)
    assert used == {"image", "product", "transposed product"}


def test_dropout_behind_a_shut_door_is_torchs() -> None:
    x = torch.ones(4, 3, 5, 7)
    torch.manual_seed(0)
    expected = nn.Dropout(0.5)(x)
    torch.manual_seed(0)
    with layers.torchs_own():
        assert torch.equal(layers.Dropout(0.5)(x), expected)


def test_the_package_enters_by_the_door_alone() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "cpu":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and "nets.cpu" in (node.module or ""):
                modules = ("noveltylab.nets.cpu.layers", "noveltylab.nets.cpu.threads")
                assert node.module in modules, path
