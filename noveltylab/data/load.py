"""Read a data set by its name."""

import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import noveltylab.data
from noveltylab.data.root import resolve_root
from noveltylab.data.samples import Samples
from noveltylab.errors import UserError, nearest


def load(
    name: str, root: str | Path | None, verify: bool, download: bool, **options: Any
) -> Samples:
    """Read data set `name` with `noveltylab.data.<name>.read`.

    Args:
        name: A module of this folder that has a function `read`.
        root: The data folder; see `resolve_root`.
        verify: Compare the files with the official ones.
        download: Fetch absent files where that is possible.
        options: What only some readers take (`features`, `cache`, `inlier`, `size`, `on_error`).
            A reader gets those that it has a parameter for.

    Raises:
        UserError: The name is unknown, or the files cannot be used.
    """
    modules = _module_names()
    if name not in modules or not _is_reader(_module(name)):
        readers = [module for module in modules if _is_reader(_module(module))]
        raise UserError(f"There is no dataset '{name}': {nearest(name, readers)}")
    read = _module(name).read
    accepted = inspect.signature(read).parameters.keys() & options.keys()
    reader_options = {key: options[key] for key in accepted}
    samples = read(resolve_root(root), verify=verify, download=download, **reader_options)
    return cast(Samples, samples)


def _module_names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(noveltylab.data.__path__)]


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"noveltylab.data.{name}")


def _is_reader(module: ModuleType) -> bool:
    return hasattr(module, "read")
