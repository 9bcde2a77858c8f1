"""Flatten nested dictionaries to dotted keys, and read and write overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["flatten", "key_of", "literal"]


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


def literal(value: object) -> str:
    """Return a value as Hydra's grammar writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str | Path):
        text = str(value)
        if re.fullmatch(r"[\w./%-]+", text, re.ASCII):
            return text
        text = re.sub(r"(\\+)(?='|\Z)", r"\1\1", text)  # Hydra takes a backslash for itself but before a quote
        return "'" + text.replace("'", "\\'") + "'"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(literal, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{literal(key)}:{literal(inner)}" for key, inner in value.items()) + "}"
    return str(value)
