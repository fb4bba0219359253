"""What differs between the versions of Hydra that noveltylab runs under, 1.3 and 1.4."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import hydra.utils

#: From 1.4 on Hydra makes only classes that the program names; None before.
_WHITELIST: Any = getattr(hydra.utils, "execution_whitelist", None)
#: How `hydra.main` and `initialize_config_dir` are called; 1.4 has no older behaviour to choose.
BASE: dict[str, Any] = {} if _WHITELIST else {"version_base": "1.3"}


@contextmanager
def allowed(*targets: str) -> Iterator[None]:
    """Inside, Hydra may make these classes.

    Args:
        targets: Full names, as `noveltylab.sweep.sweeper.Sweeper`.
    """
    with _WHITELIST(list(targets)) if _WHITELIST else nullcontext():
        yield
