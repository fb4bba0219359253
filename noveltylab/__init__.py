"""noveltylab: one-class novelty detection with papers' methods and named protocols."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noveltylab.methods.base import Method
    from noveltylab.predict.load import load_detector

__version__ = "0.1.0"
__all__ = ["Method", "__version__", "load_detector"]

#: Public name -> the module that defines it, imported when the name is first used.
_HOMES = {"Method": "noveltylab.methods.base", "load_detector": "noveltylab.predict.load"}


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
