"""Methods from their config files, at sizes that fit a test."""

from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from noveltylab.methods.base import Batch, Method, find_method

#: layers whose weights `initialise` draws
WEIGHTED = nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d | nn.ConvTranspose3d | nn.Linear

CONF = Path(__file__).parents[2] / "conf" / "method"
# an extra
METHODS = sorted(
    path.stem for path in CONF.glob("*.yaml") if path.stem != "pyod" or find_spec("pyod")
)

#: Smaller networks where the defaults are slow; a method that is not listed runs with its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "ocgan": {
        "channels": 8,
        "classifier_channels": 8,
        "image_discriminator_channels": 4,
        "lr": 2e-3,
    },
    "nda": {"lr": 2e-3, "channels": 16, "estimator_channels": 32},
    "ca_entropy": {
        "channels": 8,
        "latent_size": 16,
        "feature_size": 16,
        "latent_bound": "tanh",
        "lr": 5e-3,
        "lam": 1.0,
    },
    "oled": {"width": 0.125, "lr": 2e-3},
    "ae": {"channels": 8, "lr": 5e-3},
    "vae": {"channels": 8, "lr": 5e-3},
    "deep_svdd": {"lr": 1e-3, "ae_lr": 1e-3},
    "drocc": {
        "width": 0.25,
        "steps": 5,
        "lr": 3e-4,
        "radius": 8.0,
        "gamma": 2.0,
        "step_size": 1.0,
    },
    "alocc": {"channels": 8, "r_steps": 3},
    "gpnd": {"channels": 8, "latent_size": 8},
    "lsa": {"width": 0.5, "latent_size": 16, "features": 8, "bins": 20, "lr": 5e-3},
    "memae": {"width": 0.5, "lr": 5e-3},
    "pixelcnn": {"levels": 8, "width": 8, "layers": 2, "lr": 1e-2},
    "panda": {"input_size": 32, "clip": 1e-2},
    "msad": {"input_size": 32, "lr": 1e-3},
    "rotnet": {"width": 0.25, "lr": 1e-2},
    "geometric": {"width": 0.25, "lr": 1e-2, "fit_images": 32},
    "wavenet": {"filters": 8, "skip_filters": 16, "layers": 6, "stacks": 1, "lr": 1e-2},
    "skip_ganomaly": {"channels": 8, "feature_size": 16, "lr": 2e-3, "lam": 1.0},
    "anogan": {
        "channels": 8,
        "latent_size": 8,
        "lr": 1e-3,
        "lam": 0.0,
        "search_steps": 10,
        "start_candidates": 128,
        "validation_steps": 5,
    },
}


@cache
def read_config(name: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), resolve=True)


def method_config(name: str) -> dict[str, Any]:
    return dict(read_config(name))


#: Those that train by updates.
ITERATIVE = [name for name in METHODS if find_method(method_config(name)["_target_"]).iterative]


def small(name: str, shape: tuple[int, int, int] = (1, 32, 32), **changes: Any) -> Method:
    """The method as configured, with small networks and changes."""
    config = method_config(name)
    target = config.pop("_target_")
    for common in ("name", "primary"):
        config.pop(common)
    torch.manual_seed(0)
    return find_method(target)(shape, **{**config, **SMALL.get(name, {}), **changes})


@pytest.fixture
def make() -> Callable[..., Method]:
    """make("ocgan", shape=(1, 32, 32), use_mining=False): `small`."""
    return small


def blobs(
    count: int, shape: tuple[int, int, int] = (1, 32, 32), seed: int = 0, bars: bool = False
) -> Tensor:
    """Inliers (a bright disc at a random place) or outliers (bars) in [-1, 1], (N, C, H, W).

    The disc stands on a flat base: it can be told which side is up.
    """
    rng = torch.Generator().manual_seed(seed)
    _, height, width = shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = torch.randint(height // 4, 3 * height // 4, (count, 2, 1, 1), generator=rng)
    if bars:
        image = ((rows // 3) % 2 == 0).float().expand(count, -1, -1) * (columns > centre[:, 0])
    else:
        below, beside = rows - centre[:, 0], columns - centre[:, 1]
        image = ((below**2 + beside**2 < (height // 5) ** 2) & (below <= height // 16)).float()
    return (2 * image - 1)[:, None].expand(-1, shape[0], -1, -1).contiguous()


def states(method: Any, networks: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """Copies of all parameters and buffers of the named networks."""
    return {
        name: {k: v.clone() for k, v in getattr(method, name).state_dict().items()}
        for name in networks
    }


def changed(before: dict[str, dict[str, Tensor]], method: Any) -> set[str]:
    """Networks of `before` with any parameter or buffer that is not bit-identical now."""
    after = states(method, before)
    return {
        name
        for name, old in before.items()
        if any(not torch.equal(old[k], after[name][k]) for k in old)
    }


def spied_update(
    method: Any, step: Batch, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, float], dict[str, float]]:
    """One update without the optimizers' steps: the loss that each would have minimised, and the
    reported losses.
    """
    minimised: dict[str, float] = {}
    monkeypatch.setattr(
        method, "minimise", lambda loss, name: minimised.update({name: loss.item()})
    )
    return minimised, {name: loss.item() for name, loss in method.update(step).items()}


def layer(module: nn.Module) -> str:
    """A layer and every setting of it that changes what it computes."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        kind = {"Conv2d": "down", "ConvTranspose2d": "up"}.get(
            type(module).__name__, type(module).__name__.lower()
        )
        sizes = {
            "k": module.kernel_size,
            "s": module.stride,
            "p": module.padding,
            "more": module.output_padding,
        }
        assert all(height == width for height, width in sizes.values())
        setting = " ".join(
            f"{name}{side}" for name, (side, _) in sizes.items() if name != "more" or side
        )
        return f"{kind} {module.in_channels}>{module.out_channels} {setting} bias={module.bias is not None}"
    if isinstance(module, nn.Linear):
        return f"linear {module.in_features}>{module.out_features} bias={module.bias is not None}"
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        assert (module.momentum, module.track_running_stats) == (0.1, True)
        eps = "" if module.eps == 1e-5 else f" eps{module.eps}"
        return f"norm {module.num_features}{eps}" + ("" if module.affine else " fixed")
    if isinstance(module, nn.LeakyReLU):
        return f"leaky {module.negative_slope}"
    return (
        f"dropout {module.p}" if isinstance(module, nn.Dropout) else type(module).__name__.lower()
    )


def layers(network: nn.Module) -> list[str]:
    """The layers of a network in their order."""
    return [layer(module) for module in network.modules() if not list(module.children())]


def assert_normal(values: Tensor, mean: float, deviation: float) -> None:
    """Values (at least a few thousand) of a normal distribution: moments, and the share beyond two
    deviations.
    """
    assert values.mean().item() == pytest.approx(mean, abs=0.1 * deviation)
    assert values.std().item() == pytest.approx(deviation, rel=0.05)
    assert ((values - mean).abs() > 2 * deviation).float().mean().item() == pytest.approx(
        0.0455, rel=0.3
    )


def assert_initialised_as_dcgan(method: nn.Module) -> None:
    """Weights N(0, 0.02), scales of batch norm N(1, 0.02), biases 0."""
    weights, scales = [], []
    for module in method.modules():
        if isinstance(module, WEIGHTED):
            weights.append(module.weight.detach().flatten())
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            scales.append(module.weight.detach().flatten())
        assert not isinstance(getattr(module, "bias", None), Tensor) or not module.bias.any()
    for weight in weights:
        if weight.numel() > 3000:
            assert_normal(weight, 0.0, 0.02)
    assert_normal(torch.cat(weights), 0.0, 0.02)
    assert_normal(torch.cat(scales), 1.0, 0.02)


def settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's kind and rate, and what else it was told that differs from torch's defaults."""
    (group,) = optimizer.param_groups
    plain = type(optimizer)([torch.zeros(1)]).defaults
    implementations = ("params", "fused", "foreach", "capturable", "differentiable")
    changes = {
        name: value
        for name, value in group.items()
        if name not in implementations and value != plain[name]
    }
    return {"kind": type(optimizer).__name__, "lr": group["lr"], **changes}


def owners(method: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    """Networks all of whose parameters an optimizer holds; it must hold no others."""
    parameters = {
        id(parameter) for group in optimizer.param_groups for parameter in group["params"]
    }
    names = {
        name
        for name, network in method.named_children()
        if parameters >= {id(p) for p in network.parameters()}
    }
    owned = {id(p) for name in names for p in getattr(method, name).parameters()}
    assert parameters == owned
    return {name for name in names if list(getattr(method, name).parameters())}


def train_until_images_differ(method: Any, step: Batch) -> None:
    """Twenty updates: the images of an untrained network are all alike in evaluation mode, whatever
    it is shown.
    """
    for module in method.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 0.5  # its running statistics keep up
    for _ in range(20):
        method.update(step)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


class NoSync(TorchDispatchMode):
    """Fails where a value is asked of the device: `.item()`, `float(t)`, `if t:`, a mask index,
    `.nonzero()`.
    """

    FORBIDDEN = (
        "_local_scalar_dense",
        "nonzero",
        "is_nonzero",
        "masked_select",
        "_unique2",
        "equal",
    )

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name.removeprefix("aten::")
        # torch 2.11's quantile looks so at the share that it is asked for, on a CPU alone
        if name == "equal" and all(tensor.numel() == 1 for tensor in args):
            name = "quantile's own"
        assert name not in self.FORBIDDEN, f"{name} makes the host wait for the device"
        return function(*args, **(kwargs or {}))
