"""Every option of conf/ is of one kind: it makes the numbers, names the cell, or changes nothing."""

from functools import cache

import pytest

from noveltylab.help import compose_choices, flat_keys
from noveltylab.job import CONF
from noveltylab.options import KINDS as DECLARED
from noveltylab.options import OLD_VALUES, flat_options, kind_of_option

#: All options outside `method.`, `protocol.` and `logger.`; a new one has to be decided on here.
KINDS = {
    "numbers": {
        "data.name", "data.size", "data.contrast", "data.subtract_mean", "data.batch_size",
        "data.limit_train", "data.features", "data.bits", "data.source", "data.target",
        "trainer.max_epochs", "trainer.devices", "trainer.precision",
        "trainer.lr_decay_from", "trainer.average_epochs", "trainer.val_every", "trainer.select_from",
        "trainer.select_whole", "trainer.patience", "trainer.batch_norm",
        "data.frames", "data.difference",
        "select",
    },
    "noted": {
        "data.verify", "data.classes", "data.protocols", "data.label", "data.on_error", "trainer.strategy",
        "trainer.cuda_graph", "deterministic", "debug",
    },
    "cell": {"inlier", "seed", "method.name"},
    "free": {
        "recipe", "output", "force", "pictures", "diagnose", "floor_features", "tags", "notes",
        "data.root", "data.download", "data.cache", "data.inlier",
        "trainer.accelerator", "trainer.checkpoint_seconds", "trainer.score_batch_size",
        "trainer.winograd", "resources.num_cpus", "resources.num_gpus",
    },
}  # fmt: skip
DATA = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


#: What holds in runs that were recorded before there was the option.
OLD = {
    "trainer.cuda_graph": "off", "trainer.winograd": False, "trainer.lr_decay_from": 1.0,
    "trainer.average_epochs": 0.0, "trainer.select_whole": False, "trainer.patience": 0,
    "trainer.batch_norm": "running", "data.bits": None, "data.label": None, "data.source": None,
    "data.frames": None, "data.difference": False,
    "data.target": None, "data.features": None, "data.cache": False, "data.on_error": "fail",
    "protocol.folds": 0, "diagnose": "none", "recipe": "default", "pictures": True, "floor_features": "off",
    "tags": [], "notes": None, "debug": None,
}  # fmt: skip


@cache
def options() -> set[str]:
    choices = [[f"data={name}"] for name in DATA] + [[f"method={name}"] for name in METHODS]
    choices += [["logger=[csv,wandb,tensorboard,mlflow]"], ["recipe=ours"]]
    return {key for choice in choices for key in flat_keys(compose_choices(CONF, choice))}


def test_every_option_is_of_the_kind_that_is_decided() -> None:
    undecided = set()
    for key in options():
        kind = kind_of_option(key)
        if key.startswith("logger."):
            assert kind == "free", key
        elif key.startswith(("method.", "protocol.")) and key != "method.name":
            assert kind == "numbers", key
        elif key not in KINDS[kind]:
            undecided.add(key)
    assert not undecided


def test_the_decided_options_exist_and_are_declared() -> None:
    decided = set().union(*KINDS.values())
    assert decided <= options()
    assert decided - {"method.name"} == DECLARED.keys() - {"method", "protocol", "logger"}


def test_options_that_came_later_have_the_value_of_runs_before_them() -> None:
    assert OLD_VALUES == OLD
    options = flat_options({"seed": 1})
    assert {key: options.get(key) for key in OLD} == OLD | {"trainer.select_whole": None}


@pytest.mark.parametrize(("own_images", "kind"), [(False, "free"), (True, "numbers")])
def test_another_folder_of_ones_own_images_is_other_data(own_images: bool, kind: str) -> None:
    assert kind_of_option("data.root", own_images) == kind
