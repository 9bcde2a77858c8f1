"""Format short texts for messages."""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

from qmix_lightning.errors import QMixLightningError

__all__ = [
    "aligned",
    "did_you_mean",
    "error_line",
    "message_of",
    "on_one_line",
    "printable",
    "printable_items",
    "shortened",
    "shown_path",
    "shown_size",
]


_MOST_SHOWN = 24
"""Choices that a message lists."""


def shown_path(folder: Path) -> str:
    """Return a folder as people write it: relative when it is below the working folder."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed meanwhile
        return str(folder)
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


def did_you_mean(name: str, choices: Iterable[str], prefix: str = "") -> str:
    """Return ``". Did you mean 'x'?"`` for the closest choice, with ``prefix`` before it, otherwise a list of all."""
    choices = sorted(choices)
    lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    if close:
        return f". Did you mean '{prefix}{lower[close[0]]}'?"
    more = f", ... ({len(choices)} in all)" if len(choices) > _MOST_SHOWN else ""
    return f"; known: {', '.join(choices[:_MOST_SHOWN])}{more}" if choices else ""


def on_one_line(value: object) -> str:
    """Return the text of ``value`` without line breaks and runs of blanks."""
    return " ".join(str(value).split())


def error_line(error: BaseException) -> str:
    """Return an exception, with the name of its class, as one line."""
    return on_one_line(f"{type(error).__name__}: {error}")


def message_of(error: BaseException) -> str:
    """Return what a user is told of an error: the message of one of this package's, any other as :func:`error_line`."""
    return str(error) if isinstance(error, QMixLightningError) else error_line(error)


def shortened(value: object, width: int = 120) -> str:
    """Return ``value`` as one line of at most ``width`` characters."""
    text = on_one_line(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def printable(value: object, width: int = 80) -> str:
    """Return ``value`` as one short line without control characters, which a terminal would obey."""
    text = str(value)
    return shortened(text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text), width)


def printable_items(found: object, width: int = 80) -> dict[str, str]:
    """Return a mapping of a file as short lines, keys and values; empty if it is no mapping."""
    items = found.items() if isinstance(found, Mapping) else ()
    return {printable(key, width): printable(value, width) for key, value in items}


def shown_size(size: int) -> str:
    """Return a number of bytes as people read it, ``1.5 GB``; a kB is 1000 bytes."""
    value, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"


def aligned(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """Return rows of a table as lines; columns whose numbers are in ``right`` are aligned there."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return lines
