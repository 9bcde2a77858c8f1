"""Format numbers and tables."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["markdown_table", "shown_interval", "shown_number", "shown_tick", "shown_with_interval"]


def shown_number(value: float | None) -> str:
    """Return a number with three digits; empty for ``None``."""
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def shown_interval(interval: tuple[float, float] | None) -> str:
    """Return an interval as text; empty for ``None``."""
    return "" if interval is None else f"{shown_number(interval[0])} to {shown_number(interval[1])}"


def shown_with_interval(value: float, low: float, high: float) -> str:
    """Return a number with its interval in brackets."""
    return f"{shown_number(value)} [{shown_number(low)}, {shown_number(high)}]"


def shown_tick(value: float) -> str:
    """Return a number at an axis in as few letters as it takes: ``2M``, ``50k``."""
    if abs(value) >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are aligned, for terminals."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)
