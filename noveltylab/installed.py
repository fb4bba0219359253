"""Methods and data sets of other installed packages, by their entry points.

A package offers `method=mean_image` by the entry point `mean_image` of the group
`noveltylab.methods`, whose value is the class, and `data=letters` by one of the group
`noveltylab.data`, whose value is the reader. Their options stand in `<name>.yaml` beside the
module. What is installed is trusted; what a run's folder names is not.

Nothing of such a package is imported here before it is chosen, save for a method without options
in a file: its class is imported for them.
"""

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from noveltylab.errors import UserError

#: Group of entry points -> group of Hydra's choices.
GROUPS = {"noveltylab.methods": "method", "noveltylab.data": "data"}


@dataclass(frozen=True)
class Offer:
    """A method or a data set that an installed package offers.

    group: "method" or "data".
    name: As in method=..., data=...
    value: Of the entry point, such as `my_methods.mean_image:MeanImage`.
    package, version: Of the distribution.
    """

    group: str
    name: str
    value: str
    package: str
    version: str

    @property
    def module(self) -> str:
        """The module that the entry point names."""
        return self.value.partition(":")[0].strip()

    @property
    def target(self) -> str:
        """The dotted name of the class or reader, as a run records that of its method."""
        attribute = self.value.partition(":")[2].strip() or "read"
        return f"{self.module}.{attribute}"

    @property
    def title(self) -> str:
        """The choice and who offers it, for messages."""
        return f"{self.group}={self.name} of {self.package} {self.version}"

    @property
    def file(self) -> Path | None:
        """The file of its options, beside the module; None where its package cannot be found."""
        folder = folder_of(self.module)
        return None if folder is None else folder / f"{self.name}.yaml"

    def load(self) -> Any:
        """The class or the reader.

        Raises:
            UserError: It cannot be imported.
        """
        module, _, attribute = self.target.rpartition(".")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:  # whatever somebody else's module does when it is imported
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{self.title}: {self.value} cannot be imported ({reason})") from None

    def options(self) -> dict[str, Any]:
        """The options with their defaults, as in conf/<group>/<name>.yaml.

        Raises:
            UserError: There is no such file where one is needed, or it cannot be read.
        """
        if self.file is not None and self.file.is_file():
            options = read_options_file(self.file, self.title)
        elif self.group == "method":
            options = {"primary": None, **defaults_of(self.load())}
        else:
            raise UserError(f"{self.title}: looked for its options in {self.file}; there are none")
        options["name"] = self.name
        if self.group == "method":
            options["_target_"] = self.target
        return options


def folder_of(module: str) -> Path | None:
    """The folder in which a module lies, without importing it; None if its package is not found."""
    top, *parts = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not spec.submodule_search_locations:
        return Path(spec.origin).parent if spec.origin else None
    folder = Path(next(iter(spec.submodule_search_locations)))
    for part in parts:
        if not (folder / part).is_dir():
            break
        folder /= part
    return folder


def read_options_file(path: Path, title: str) -> dict[str, Any]:
    """A file of options as plain values, with `defaults` for Hydra if it has them.

    Raises:
        UserError: It cannot be read, or is no mapping.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        options = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{title}: {path} cannot be read ({reason})") from None
    if not isinstance(options, dict):
        raise UserError(f"{title}: {path} holds no options, but {type(options).__name__}")
    return {str(key): value for key, value in options.items()}


def defaults_of(method_class: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only arguments of a class that have a default, with it."""
    defaults = {}
    for name, parameter in inspect.signature(method_class).parameters.items():
        is_option = parameter.kind is parameter.KEYWORD_ONLY
        if is_option and parameter.default is not parameter.empty:
            defaults[name] = parameter.default
    return defaults


@cache
def offers() -> tuple[Offer, ...]:
    """All that installed packages offer, by group and name."""
    by_place: dict[tuple[str, str, str], Offer] = {}
    for distribution in metadata.distributions(path=places()):
        for entry in distribution.entry_points:
            if entry.group in GROUPS and re.fullmatch(r"\w+", entry.name, re.ASCII):
                package, version = distribution.metadata["Name"], distribution.version
                offer = Offer(GROUPS[entry.group], entry.name, entry.value, package, version)
                # of a package that is there twice Python imports the first
                by_place.setdefault((offer.group, offer.name, package), offer)
    return tuple(by_place[place] for place in sorted(by_place))


def places() -> list[str]:
    """Where installed packages are: Python's path without the working directory.

    `python -m` puts that first, and it may be anybody's.
    """
    working_folder = os.getcwd()
    return [folder for folder in sys.path if folder and os.path.abspath(folder) != working_folder]


def offered_names(group: str) -> list[str]:
    """The names of a group, "method" or "data", that installed packages offer."""
    return sorted({offer.name for offer in offers() if offer.group == group})


def find_offer(group: str, name: str) -> Offer | None:
    """The offer of that name; None where no installed package has one.

    Raises:
        UserError: Two packages offer it.
    """
    matches = [offer for offer in offers() if (offer.group, offer.name) == (group, name)]
    if len(matches) > 1:
        packages = " and ".join(offer.package for offer in matches)
        raise UserError(f"{group}={name}: {packages} offer it; uninstall all but one")
    return matches[0] if matches else None


def offer_of_target(target: str) -> Offer | None:
    """The offered method whose class has this dotted name; None if there is none."""
    for offer in offers():
        if offer.group == "method" and offer.target == target:
            return offer
    return None


def packages_of(target: str, data: str) -> list[str]:
    """The packages that offer a method, by its dotted name, and a data set."""
    both = (offer_of_target(target), find_offer("data", data))
    return sorted({offer.package for offer in both if offer is not None})
