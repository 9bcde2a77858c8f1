"""Check settings against the literal types that they are declared with, so that their values are written once."""

from __future__ import annotations

from typing import Literal, get_args, get_origin, get_type_hints

__all__ = ["check_choices"]


def check_choices(settings: object) -> None:
    """Check that the fields of a dataclass which have a literal type hold one of its values.

    Raises:
        ValueError: names the first that does not, and what it may be.
    """
    for name, hint in get_type_hints(type(settings)).items():
        if get_origin(hint) is Literal and getattr(settings, name) not in get_args(hint):
            *first, last = map(repr, get_args(hint))
            raise ValueError(f"{name} must be {', '.join(first)} or {last}, not {getattr(settings, name)!r}")
