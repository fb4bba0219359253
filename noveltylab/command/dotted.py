"""Nested options by dotted keys, as the command line has them."""

from typing import Any


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one of dotted keys: {"data": {"size": 32}} -> {"data.size": 32}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
