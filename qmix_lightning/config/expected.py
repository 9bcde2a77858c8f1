"""Say in words what a setting may be, and write values as YAML and the command line do."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

__all__ = ["describe", "describe_range", "options_of", "parts_of", "typed"]

_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    Sequence: "a list",
    dict: "a mapping {key: value}",
    Mapping: "a mapping {key: value}",
    type(None): "null",
}


def describe(hint: object) -> str:
    """Return what a value of a type is: ``an integer or null``."""
    if len(parts := parts_of(hint)) > 1:
        options = dict.fromkeys(_plain(option) for part in parts for option in options_of(part))
        others = [describe(part) for part in parts if not options_of(part)]
        return " or ".join([*([f"one of {', '.join(options)}"] if options else []), *others])
    if options := options_of(hint):
        return "one of " + ", ".join(map(_plain, options))
    kind = get_origin(bare := _bare(hint)) or bare
    return _WORDS[dict] if is_dataclass(kind) else _WORDS.get(kind) or getattr(kind, "__name__", str(hint))


def describe_range(hint: Any, value: Any) -> str:
    """Return what range a number must be in, and that ``value`` is not: ``at least 1, not 0``."""
    ranged = next(part for part in parts_of(hint) if get_origin(part) is Annotated)
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    rules = ranged.__metadata__
    limits = {name: getattr(rule, name) for rule in rules for name in words if hasattr(rule, name)}
    value = float(value) if _bare(ranged) is float else value
    if {"ge", "le"} <= limits.keys():
        return f"between {limits['ge']} and {limits['le']}, not {value}"
    return " and ".join(f"{words[name]} {limit}" for name, limit in limits.items()) + f", not {value}"


def options_of(hint: object) -> tuple[Any, ...]:
    """Return the values of a literal type, none of another type."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def parts_of(hint: object) -> tuple[Any, ...]:
    """Return the members of a union, any other type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _bare(hint: object) -> object:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _plain(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def typed(value: object) -> str:
    """Return a value as YAML and the command line write it, texts in quotes."""
    return repr(value) if isinstance(value, str) else _plain(value)
