"""What differs between the versions of Hydra that noveltylab runs under, 1.3 and 1.4.

Also what is too slow in both of them where there are hundreds of choices.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import hydra.utils
from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import OmegaConf

#: From 1.4 on Hydra makes only classes that the program names; None before.
_WHITELIST: Any = getattr(hydra.utils, "execution_whitelist", None)
#: How `hydra.main` and `initialize_config_dir` are called; 1.4 has no older behaviour to choose.
BASE: dict[str, Any] = {} if _WHITELIST else {"version_base": "1.3"}


def share_store() -> None:
    """Makes a copy of Hydra's store of choices the store itself.

    Hydra copies it whole for each composition, our hundreds of recipes with it, and changes nothing
    in it: a third of the time that the command takes to answer.
    """

    def itself(store: ConfigStore, _: object) -> ConfigStore:
        return store

    ConfigStore.__deepcopy__ = itself  # type: ignore[attr-defined]  # a class takes new methods


class LateNode(ConfigNode):
    """A choice of Hydra's whose options become OmegaConf's once it is chosen: most never are."""

    def __init__(self, name: str, content: dict[str, Any], group: str, provider: str) -> None:
        self.name = f"{name}.yaml"
        self.content = content
        self.group = group
        self.package = "_global_"
        self.provider = provider

    def __getattr__(self, name: str) -> Any:
        if name != "node":
            raise AttributeError(name)
        return OmegaConf.create(self.content)


def store_late(name: str, content: dict[str, Any], group: str, provider: str) -> None:
    """Makes `<group>=<name>` a choice of Hydra's, which sets options from the top on.

    Args:
        name: Of the choice.
        content: Its options.
        group: Of the choice, such as "recipe/ocgan/paper".
        provider: Where it is from, for `--info`.
    """
    choices = ConfigStore.instance().repo
    for part in group.split("/"):
        choices = choices.setdefault(part, {})
    choices[f"{name}.yaml"] = LateNode(name, content, group, provider)


@contextmanager
def allowed(*targets: str) -> Iterator[None]:
    """Inside, Hydra may make these classes.

    Args:
        targets: Full names, as `noveltylab.sweep.sweeper.Sweeper`.
    """
    with _WHITELIST(list(targets)) if _WHITELIST else nullcontext():
        yield
