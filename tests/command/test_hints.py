"""What somebody meant by an option that does not exist."""

import pytest

from noveltylab.__main__ import CONF
from noveltylab.command.hints import HABITS, meant, option_hint
from noveltylab.errors import nearest
from noveltylab.help import compose_choices, config_names, flat_keys


@pytest.fixture(scope="module")
def names() -> list[str]:
    return flat_keys(compose_choices(CONF, []))


@pytest.mark.parametrize(
    ("typed", "options"),
    {
        "lr": ["method.lr"],
        "trainer.lr": ["method.lr"],
        "LR": ["method.lr"],
        "learning_rate": ["method.lr"],
        "model.learning-rate": ["method.lr"],
        "epochs": ["trainer.max_epochs"],
        "trainer.epochs": ["trainer.max_epochs"],
        "max_epochs": ["trainer.max_epochs"],
        "batch_size": ["data.batch_size"],
        "bs": ["data.batch_size"],
        "gpus": ["trainer.accelerator", "trainer.devices"],
        "device": ["trainer.accelerator"],
        "root": ["data.root"],
        "data_dir": ["data.root"],
        "class": ["inlier"],
        "normal_class": ["inlier"],
        "dataset": ["data"],
        "model": ["method"],
        "methd": ["method"],
        "out_dir": ["output"],
        "val_split": ["protocol.val_fraction"],
        "num_workers": ["resources.num_cpus"],
        "latent_dim": ["method.latent_size"],
        "method.latent_sise": ["method.latent_size"],
        "trainer.max_epoch": ["trainer.max_epochs"],
        "bach_size": ["data.batch_size"],
        "overwrite": ["force"],
        "verbose": [],
        "foo": [],
        "method.foo": [],
        "weight_decay": [],
    }.items(),
)
def test_the_option_that_is_meant(names: list[str], typed: str, options: list[str]) -> None:
    assert meant(typed, names) == options


def test_a_hint_names_only_options_that_exist(names: list[str]) -> None:
    assert option_hint("lr", ["method.k", "seed"]) == ""
    assert option_hint("gpus", names) == "did you mean 'trainer.accelerator' or 'trainer.devices'? "


def test_every_habit_belongs_to_an_option_of_some_method() -> None:
    every = {"experiment", "hydra/launcher"}
    for method in config_names(CONF / "method"):
        keys = flat_keys(compose_choices(CONF, [f"method={method}", "logger=wandb"]))
        every |= {*keys, *(key.rpartition(".")[0] for key in keys)}
    assert HABITS.keys() <= every
    assert not every & set(" ".join(HABITS.values()).split()), (
        "the name of an option needs no habit"
    )


def test_a_name_is_near_or_not_said() -> None:
    assert nearest("svdd", ["deep_svdd", "pca"]).startswith("did you mean 'deep_svdd'?")
    assert nearest("ocgn", ["ocgan", "pca"]).startswith("did you mean 'ocgan'?")
    assert nearest("lr", ["logger", "pca"]) == "Choose from: logger, pca"
