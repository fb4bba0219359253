"""noveltylab: one-class novelty detection with papers' methods and named protocols."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noveltylab.api import compose, train
    from noveltylab.errors import RunFailed, UserError
    from noveltylab.methods.base import Method
    from noveltylab.predict.detector import Detector
    from noveltylab.predict.load import load_detector

__version__ = "0.1.0"
__all__ = [
    "Detector",
    "Method",
    "RunFailed",
    "UserError",
    "__version__",
    "compose",
    "load_detector",
    "train",
]

#: Public name -> the module that defines it, imported when the name is first used.
_HOMES = {
    "Detector": "noveltylab.predict.detector",
    "Method": "noveltylab.methods.base",
    "RunFailed": "noveltylab.errors",
    "UserError": "noveltylab.errors",
    "compose": "noveltylab.api",
    "load_detector": "noveltylab.predict.load",
    "train": "noveltylab.api",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import noveltylab` loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'noveltylab' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# While Python imports this package for `python -m noveltylab.<module>`, sys.argv[0] is "-m".
if sys.argv[:1] == ["-m"]:
    from noveltylab.command.words import refuse_other_modules

    refuse_other_modules(sys.orig_argv)
