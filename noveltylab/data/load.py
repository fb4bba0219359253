"""Read a data set by its name.

Data set `name` is read by `noveltylab.data.<name>.read`, but for those that READ_BY lists and those
that another installed package offers.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import noveltylab.data
from noveltylab.data.samples import Samples
from noveltylab.data.stored import resolve_root
from noveltylab.errors import UserError, nearest
from noveltylab.installed import find_offer, offered_names

#: Modules that find their files without torch.
FOUND_AT_ONCE = ("mnist", "cifar10", "coil100")
#: Data sets that the module of another one reads.
READ_BY = {"coil20": "coil100", "dcase_waveform": "dcase", "fmnist": "mnist"}


def load(
    name: str, root: str | Path | None, verify: bool, download: bool, **options: Any
) -> Samples:
    """Read data set `name`.

    Args:
        name: As in data=...
        root: The data folder; see `resolve_root`.
        verify: Compare the files with the official ones.
        download: Fetch absent files where that is possible.
        options: What only some readers take (`features`, `cache`, `inlier`, `size`, `frames`).
            A reader gets those that it has a parameter for, `name` among them.

    Raises:
        UserError: The name is unknown, or the files cannot be used.
    """
    read = find_reader(name)
    options["name"] = name
    for option in options.keys() - inspect.signature(read).parameters.keys():
        del options[option]
    return read(resolve_root(root), verify=verify, download=download, **options)


def check_files(name: str, root: str | Path | None, verify: bool, download: bool) -> None:
    """UserError where the files of a published data set are absent, as its reader would say it.

    Only of sets whose module tells so without importing torch; of files that are there nothing is
    read.
    """
    module = READ_BY.get(name, name)
    if download or module not in FOUND_AT_ONCE:
        return
    check = _module(module).check_files
    options = {"verify": verify, "name": name}
    for option in options.keys() - inspect.signature(check).parameters.keys():
        del options[option]
    check(resolve_root(root), **options)


def find_reader(name: str) -> Callable[..., Samples]:
    """The function that reads data set `name`; UserError if there is none."""
    modules = {module.name for module in pkgutil.iter_modules(noveltylab.data.__path__)}
    module = READ_BY.get(name, name)
    if module in modules and hasattr(_module(module), "read"):
        return cast(Callable[..., Samples], _module(module).read)
    offer = find_offer("data", name)
    if offer is not None:
        return cast(Callable[..., Samples], offer.load())
    readers = [module for module in modules if hasattr(_module(module), "read")]
    names = [*readers, *READ_BY, *offered_names("data")]
    raise UserError(f"There is no dataset '{name}': {nearest(name, names)}")


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"noveltylab.data.{name}")
