"""Go through nested containers, and change them in one place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of nested containers."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inner in pairs:
        yield (*at, key)
        yield from places(inner, (*at, key))


def put(tree: Any, place: tuple[Any, ...], value: Any) -> None:
    """Put a value at such a place."""
    for key in place[:-1]:
        tree = tree[key]
    tree[place[-1]] = value
