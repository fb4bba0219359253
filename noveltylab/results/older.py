"""Recorded configurations of older versions, in the options of today.

The one place that knows what options of methods and protocols once were, and which protocols and
data sets had another name. Once a method had its own `preset`, and null stood for a number of the
code; `preset=ours` was what `recipe=ours` is.
"""

from collections.abc import Sequence
from typing import Any

#: Protocols that had another name: their old name and that of today.
PROTOCOLS = {"memae": "two_thirds", "folder": "folders"}
#: The same for data sets.
DATA_SETS = {"folder": "images"}
#: Options of protocols that came later, with the value that reproduces runs from before them.
PROTOCOL_VALUES: dict[str, Any] = {"protocol.folds": 0}
#: The same for the options of a method, by its `_target_`.
METHOD_VALUES: dict[str, dict[str, Any]] = {
    "noveltylab.methods.ca_entropy.CAEntropy": {
        "method.latent_bound": "none",
        "method.temperature": 1.0,
        "method.feature_norm": "mean_square",
    },
    "noveltylab.methods.ocgan.OCGAN": {
        "method.double_sigmoid": False,
        "method.mining_loss": "saturated",
    },
    "noveltylab.methods.deep_svdd.DeepSVDD": {
        "method.batch_norm": "fixed",
        "method.first_filters": "random",
        "method.glorot_gain": "all",
        "method.decoder": "mirror",
    },
    "noveltylab.methods.oled.OLED": {
        "method.norm": "encoder",
        "method.mm_turn": None,
        "method.validation": "rec_mask",
    },
    "noveltylab.methods.nda.NDA": {
        "method.encoder": "dim",
        "method.crop_min": 0.08,
        "method.crop_max": 1.0,
        "method.mirror": 0.5,
        "method.turn": 0.5,
        "method.jitter": 0.4,
        "method.grey": 0.2,
    },
}
#: method.preset of OCGAN.
OCGAN = {
    "choice": {
        "w_lat": 1.0,
        "w_vis": 1.0,
        "w_mse": 250.0,
        "mse_reduction": "mean",
        "noise_std": 0.2,
    },
    "paper_sum": {
        "w_lat": 1.0,
        "w_vis": 1.0,
        "w_mse": 10.0,
        "mse_reduction": "sum",
        "noise_std": 0.447,
    },
    "readme": {
        "w_lat": 10.0,
        "w_vis": 1.0,
        "w_mse": 5.0,
        "mse_reduction": "mean",
        "noise_std": 0.2,
    },
    "release": {
        "w_lat": 10.0,
        "w_vis": 1.0,
        "w_mse": 250.0,
        "mse_reduction": "mean",
        "noise_std": 0.02,
    },
}
#: method.preset of NDA.
NDA = {
    "sgd": {"optimizer": "sgd", "lr": 0.002, "momentum": 0.9, "weight_decay": 0.005},
    "adam": {"optimizer": "adam", "lr": 0.001, "momentum": 0.9, "weight_decay": 0.0},
}
#: The rate of trained codes was 10 by default once, also where no code is trained.
NDA_LATENT_LR = 100.0
#: method.preset of OLED, by architecture, and the length of the bottleneck.
OLED = {
    "mnist": {"gamma": 12.5, "mm_every": 3, "mask_objective": "mask_cont", "mask_norm": "second"},
    "cifar10": {"gamma": 30.0, "mm_every": 4, "mask_objective": "mask", "mask_norm": "second"},
    "ucsd": {"gamma": 50.0, "mm_every": 3, "mask_objective": "mask_cont", "mask_norm": "second"},
}
OLED_PAPER = {"gamma": 50.0, "mm_every": 1, "mask_objective": "mask_cont", "mask_norm": "all"}
OLED_LATENT = {"mnist": 64, "cifar10": 256, "ucsd": 128}
#: method.ablation of CA-Entropy.
CA_ENTROPY = {
    "full": {"entropy": True, "channel_attention": True},
    "entropy": {"entropy": True, "channel_attention": False},
    "attention": {"entropy": False, "channel_attention": True},
    "gan": {"entropy": False, "channel_attention": False},
}
#: method.slots of MemAE.
MEMAE_SLOTS = {"mnist": 100, "cifar10": 500}
#: Data sets in colour; of somebody's own images the result says it.
COLOUR = ("cifar10", "coil100")
#: Endings of method.name that were a `preset=`.
PRESETS = ("ours", "first_code")


def in_options_of_today(
    config: dict[str, Any], shape: Sequence[int] | None = None
) -> dict[str, Any]:
    """A recorded configuration as it would be recorded today; one of today as it is.

    Args:
        config: Of a config.yaml or a result.json.
        shape: Of the run's images (C, H, W), where it is known.
    """
    method, data, protocol = config.get("method"), config.get("data"), config.get("protocol")
    if not isinstance(method, dict) or not isinstance(data, dict):
        return config  # damaged, which its reader says
    module = str(method.get("_target_")).rpartition(".")[0]
    translate = TRANSLATIONS.get(module.removeprefix("noveltylab.methods."))
    if translate is not None:
        method = translate(method, data, shape)
    recipe = config.get("recipe", _preset(str(method.get("name"))))
    today = {**config, "method": method, "data": _renamed_data(data), "recipe": recipe}
    if isinstance(protocol, dict):
        today["protocol"] = _renamed(protocol, PROTOCOLS)
    return today


def place_of_today(place: Sequence[str]) -> tuple[str, ...]:
    """The parts of a run's place in the names of today.

    Args:
        place: <protocol>, <method>, <data>, inlier<k>, seed<s>.
    """
    parts = list(place)
    for level, names in ((0, PROTOCOLS), (2, DATA_SETS)):
        if level < len(parts):
            parts[level] = names.get(parts[level], parts[level])
    return tuple(parts)


def _renamed(group: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The options of a protocol or a data set under its name of today."""
    name = str(group.get("name"))
    return {**group, "name": names[name]} if name in names else group


def _renamed_data(data: dict[str, Any]) -> dict[str, Any]:
    """The options of a data set, with the names of today for it and the protocols that fit it."""
    protocols = data.get("protocols")
    if isinstance(protocols, list):
        data = {**data, "protocols": [PROTOCOLS.get(str(name), name) for name in protocols]}
    return _renamed(data, DATA_SETS)


def _preset(name: str) -> str:
    for preset in PRESETS:
        if name.endswith(f"_{preset}"):
            return preset
    return "default"


Options = dict[str, Any]
Shape = Sequence[int] | None


def _numbers(method: Options, option: str, tables: dict[str, Options]) -> Options:
    """The method's options without `option`, an old one that stood for several numbers.

    These numbers take its place where they are null.
    """
    numbers = tables.get(str(method.get(option)))
    if numbers is None:
        return method
    options = {key: value for key, value in method.items() if key != option}
    for key, number in numbers.items():
        if options.get(key) is None:
            options[key] = number
    return options


def _ocgan(method: Options, data: Options, shape: Shape) -> Options:
    return _numbers(method, "preset", OCGAN)


def _nda(method: Options, data: Options, shape: Shape) -> Options:
    options = _numbers(method, "preset", NDA)
    if not method.get("train_z", True) and "latent_lr" in method:
        return {**options, "latent_lr": NDA_LATENT_LR}
    return options


def _ca_entropy(method: Options, data: Options, shape: Shape) -> Options:
    method = _numbers(method, "ablation", CA_ENTROPY)
    if "bounded_latent" not in method:
        return method
    bound = method.get("latent_bound", "none")
    if method["bounded_latent"]:
        bound = "tanh"
    options = {key: value for key, value in method.items() if key != "bounded_latent"}
    return options | {"latent_bound": bound}


def _oled(method: Options, data: Options, shape: Shape) -> Options:
    layers = _oled_layers(method, data, shape)
    if layers not in OLED:
        return method  # the images are not known, so nobody knows
    latent = {"latent_size": OLED_LATENT[layers]}
    presets = {"official": OLED[layers] | latent, "paper": OLED_PAPER | latent}
    return _numbers(method, "preset", presets)


def _memae(method: Options, data: Options, shape: Shape) -> Options:
    layers = str(method.get("architecture", "auto"))
    colour = _in_colour(data, shape)
    if layers == "auto" and colour is not None:
        layers = "cifar10" if colour else "mnist"
    if method.get("slots", 0) is not None or layers not in MEMAE_SLOTS:
        return method
    return {**method, "slots": MEMAE_SLOTS[layers]}


def _oled_layers(method: Options, data: Options, shape: Shape) -> str:
    """OLED's architecture, as it chooses it; "auto" where the images are not known."""
    layers = str(method.get("architecture", "auto"))
    colour = _in_colour(data, shape)
    side = shape[1] if shape else data.get("size")
    if layers != "auto" or colour is None or not isinstance(side, int):
        return layers
    if colour and side % 8 == 0:
        return "cifar10"
    return "mnist" if side % 4 == 0 else "ucsd"


def _in_colour(data: Options, shape: Shape) -> bool | None:
    if shape:
        return shape[0] > 1
    if data.get("classes") == "folders":
        return None
    return str(data.get("name")) in COLOUR


TRANSLATIONS = {
    "ocgan": _ocgan,
    "nda": _nda,
    "oled": _oled,
    "ca_entropy": _ca_entropy,
    "memae": _memae,
}
