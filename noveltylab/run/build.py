"""Builds the data module and the method of a run, and refuses options that do not go together."""

from typing import Any

import lightning as L
import torch

from noveltylab.command.validate import check_arguments
from noveltylab.data.datamodule import EpochSampler, NoveltyData
from noveltylab.data.samples import Samples
from noveltylab.data.split import Split
from noveltylab.errors import UserError, nearest
from noveltylab.methods.base import Method, find_method
from noveltylab.nets.batch_norm import batch_norms
from noveltylab.nets.cpu.layers import use_winograd
from noveltylab.options import Options, TrainerOptions
from noveltylab.results.record import read_config
from noveltylab.scoring import diagnosis
from noveltylab.scoring.folds import in_folds
from noveltylab.training.cuda_graph import graphed
from noveltylab.training.fit import CHUNK_IMAGES, CHUNK_VALUES
from noveltylab.training.precision import choose_precision


def check_count(options: Options, split: Split, least: int) -> None:
    """Checks that the split has enough images to train on and holds out what selection needs.

    Raises:
        UserError: fewer than `least` training images, or no held-out inliers; says what suffices.
    """
    fraction = float(options.protocol.get("val_fraction", 0))
    images = len(split.train) + len(split.val)
    held_out = 0 if options.select == "last" or options.folds else 1
    if len(split.train) >= least and len(split.val) >= held_out:
        return

    def suffices(count: int, share: float) -> bool:
        return int(share * count) >= held_out and count - int(share * count) >= least

    plural = "s" if least > 1 else ""
    needs = f"method={options.method['name']} needs {least} training image{plural} at least"
    if not len(split.val) and held_out:
        needs += f" and select={options.select} needs held-out inliers"
    state = (
        f"the split has {len(split.train)} and {len(split.val)} held out "
        f"(protocol.val_fraction={fraction:g})"
    )
    remedy = " or select=last" if held_out and images >= least else ""
    # another share of the same images
    for percent in range(100):
        if suffices(images, percent / 100):
            share = f"protocol.val_fraction={percent / 100:g}"
            raise UserError(f"{needs}; {state}: take {share}{remedy}")
    # more images at the same share
    with_share = ""
    for count in range(1, 10_000):
        if suffices(count, fraction):
            with_share = f", {count} with this protocol.val_fraction"
            break
    raise UserError(
        f"{needs}; {state}: that takes {least + held_out} images{with_share}; add some{remedy}"
    )


def build(options: Options, samples: Samples, split: Split) -> tuple[NoveltyData, Method]:
    """The data module and the method, with the seed set for its initial weights."""
    arguments = dict(options.method)
    arguments.pop("name")
    primary = arguments.pop("primary", None)
    method_class = find_method(str(arguments.pop("_target_", None)))
    arguments = check_arguments(method_class, arguments, "method")
    check_count(options, split, method_class.least_images)
    check_training_options(options, method_class)
    data = build_data(options, samples, split)
    if method_class.iterative:
        # refuses fewer images than the devices take
        devices = options.trainer.devices
        EpochSampler(len(data.train), data.batch_size, options.seed, replicas=devices)
    L.seed_everything(options.seed, verbose=False)
    try:
        method: Method
        if options.folds:
            images = len(split.train)
            method = in_folds(method_class, data.image_shape, arguments, options.folds, images)
        else:
            method = method_class(data.image_shape, **arguments)
    except ValueError as error:
        raise UserError(str(error)) from None
    method.take_pretrained()
    check_method(options, method, primary)
    diagnosis.check(options.diagnose, options.method["name"], method, data.test_is_outlier)
    use_winograd(method, options.trainer.winograd)
    if method.iterative and options.trainer.cuda_graph == "on":
        # what is known to be impossible is refused before any folder is made
        graphed(method, "on", device_of(options.trainer), options.trainer.precision)
    return data, method


def settle_precision(
    options: Options, config: dict[str, Any], data: NoveltyData, method: Method
) -> tuple[Options, dict[str, Any], str]:
    """The options and the plain config with what trainer.precision=auto stands for here, and why.

    A run that goes on keeps the precision that it began with; then, and where the precision was
    named, there is no reason to give.
    """
    settings = options.trainer
    reason = ""
    if settings.precision != "auto":
        return options, config, reason
    if not options.force and (options.folder / "config.yaml").is_file():
        precision = read_config(options.folder)["trainer"]["precision"]
    else:
        device = device_of(settings)
        precision, reason = choose_precision(options.method["name"], method, data, device)
    settings = settings.model_copy(update={"precision": precision})
    options = options.model_copy(update={"trainer": settings})
    config = {**config, "trainer": {**config["trainer"], "precision": precision}}
    return options, config, reason


def build_data(options: Options, samples: Samples, split: Split) -> NoveltyData:
    """The data module: batches of the split's images, preprocessed as the options say."""
    settings = options.data
    return NoveltyData(
        samples,
        split,
        options.inlier_index,
        size=settings.size,
        contrast=settings.contrast,
        subtract_mean=settings.subtract_mean,
        batch_size=settings.batch_size,
        seed=options.seed,
        chunk=iterations_at_once(samples, settings.size, settings.batch_size),
    )


def iterations_at_once(samples: Samples, size: int | None, batch_size: int) -> int:
    """Training iterations whose images are made at once: fewer where images are large."""
    channels, height, width = samples.images.shape[1:]
    values = channels * (height * width if size is None else size**2)
    images = min(CHUNK_IMAGES, CHUNK_VALUES // values)
    return max(1, images // batch_size)


def device_of(settings: TrainerOptions) -> torch.device:
    """Where the method is to train, as Lightning chooses."""
    if settings.accelerator != "cpu":
        if torch.cuda.is_available() and settings.accelerator != "mps":
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
    return torch.device("cpu")


def check_training_options(options: Options, method_class: type[Method]) -> None:
    """Raises UserError for options of the trainer that this kind of method cannot follow."""
    name = options.method["name"]
    settings = options.trainer
    if not method_class.iterative and settings.devices > 1:
        raise UserError(
            f"trainer.devices={settings.devices}: method={name} is fitted once, on one device"
        )
    if not method_class.iterative and settings.patience:
        raise UserError(
            f"trainer.patience={settings.patience}: method={name} is fitted once, without epochs"
        )
    if method_class.own_schedule and settings.lr_decay_from < 1:
        raise UserError(
            f"trainer.lr_decay_from={settings.lr_decay_from}: method={name} sets its learning "
            f"rates itself ({method_class.own_schedule})"
        )


def check_method(options: Options, method: Method, primary: object) -> None:
    """Raises UserError if the method lacks the batch norm or the score that the options name.

    Also for a network trained elsewhere with other images than plain pixels.
    """
    if method.pretrained and (options.data.contrast != "none" or options.data.subtract_mean):
        raise UserError(
            f"method={options.method['name']}: its network was trained on plain pixels; take "
            "data.contrast=none data.subtract_mean=false"
        )
    if options.trainer.batch_norm == "anew" and not batch_norms(method):
        raise UserError(
            f"trainer.batch_norm=anew: method={options.method['name']} has no batch norm "
            "with these options"
        )
    if primary not in method.score_names:
        remedy = nearest(str(primary), method.score_names)
        raise UserError(f"method.primary={primary}: no such score; {remedy}")
