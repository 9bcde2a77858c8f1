"""Format short texts for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["did_you_mean", "one_line", "printable", "shortened", "shown_path"]


_MOST_SHOWN = 24
"""Choices that a message lists."""


def shown_path(folder: Path) -> str:
    """Return a folder as people write it: relative when it is below the working folder."""
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)


def did_you_mean(name: str, choices: Iterable[str], prefix: str = "") -> str:
    """Return ``". Did you mean 'x'?"`` for the closest choice, with ``prefix`` before it, otherwise a list of all."""
    choices = sorted(choices)
    lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    if close:
        return f". Did you mean '{prefix}{lower[close[0]]}'?"
    more = f", ... ({len(choices)} in all)" if len(choices) > _MOST_SHOWN else ""
    return f"; known: {', '.join(choices[:_MOST_SHOWN])}{more}" if choices else ""


def one_line(error: BaseException) -> str:
    """Return an exception as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def shortened(value: Any, width: int = 120) -> str:
    """Return ``value`` as one line of at most ``width`` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= width else text[: width - 3] + "..."


def printable(value: Any, width: int = 80) -> str:
    """Return ``value`` as one short line without control characters, which a terminal would obey."""
    return shortened("".join(c if c.isprintable() else "?" for c in str(value)), width)
