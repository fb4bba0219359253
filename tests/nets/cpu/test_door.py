"""Every method trains and scores alike with the door to the fast layers open and shut."""

import ast
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from noveltylab.__main__ import PACKAGE
from noveltylab.methods.base import Batch, Method, find_method
from noveltylab.nets.cpu import conv, layers, winograd
from noveltylab.scoring.apply import default_dtype
from tests.methods.conftest import METHODS, blobs, method_config
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


def compare(make: Make, name: str, by_winograd: bool) -> None:
    with default_dtype(torch.float64):  # that of latents drawn in an update
        fast = train_and_score(make, name, by_winograd)
        with layers.torchs_own():
            plain = train_and_score(make, name, by_winograd)
    assert fast.keys() == plain.keys()
    for key, value in fast.items():
        torch.testing.assert_close(value, plain[key], rtol=1e-5, atol=1e-7, msg=key)


def is_iterative(name: str) -> bool:
    return find_method(method_config(name)["_target_"]).iterative


@pytest.mark.parametrize("name", [name for name in METHODS if is_iterative(name)])
@pytest.mark.parametrize("algorithm", ["products", "winograd"])
def test_a_method_trains_and_scores_alike_without_the_fast_layers(
    make: Make, monkeypatch: pytest.MonkeyPatch, used: set[str], name: str, algorithm: str
) -> None:
    by_winograd = algorithm == "winograd"
    monkeypatch.setitem(layers.WORTHWHILE, torch.float64, WIDE)
    monkeypatch.setitem(layers.WINOGRAD_WORTHWHILE, torch.float64, WIDE)
    monkeypatch.setattr(layers, "WINOGRAD_TILES", 0)
    compare(make, name, by_winograd)
    assert bool(used) == (name in FAST)
    assert ("winograd" in used) == (by_winograd and name in FAST)


@pytest.mark.parametrize("name", sorted(FAST))
def test_a_method_trains_and_scores_alike_with_the_layers_as_they_are_chosen(
    make: Make, name: str
) -> None:
    compare(make, name, True)


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
    expected = torch.nn.Dropout(0.5)(x)
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
