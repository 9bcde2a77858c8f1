"""Flatten nested dictionaries to dotted keys, and read the key that an override sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["flatten", "key_of"]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries: ``{"a": {"b": 1}}`` to ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def key_of(override: str) -> str:
    """Return the dotted key of what was typed: ``++env.task=x`` and ``~env.task`` are about ``env.task``."""
    return override.lstrip("+~").partition("=")[0]
