"""Draw evaluations over environment steps as one SVG, a panel for each task, with the standard library alone."""

from __future__ import annotations

import math
from html import escape

from qmix_lightning.study.bands import Band
from qmix_lightning.study.formatting import shown_tick
from qmix_lightning.study.plan import Plan
from qmix_lightning.study.summary import Summary

__all__ = ["picture"]

_WIDTH, _HEIGHT = 330, 220
_LEFT, _TOP, _RIGHT, _BOTTOM = 56, 34, 16, 44
_LEGEND = 18
_COLUMNS = 2
_TICKS = 5  # about
_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#17a2b8", "#e377c2", "#555555", "#9a9a00")
_DASHES = ("", "6 3", "2 3")
"""The second and third round of colours."""


def picture(plan: Plan, summary: Summary) -> str | None:
    """Return the curves of every task as one SVG; ``None`` if there are none."""
    curves = {
        task: {name: result.curve for name, result in results.items() if result.curve and len(result.curve.iqm) > 1}
        for task, results in summary.results.items()
    }
    curves = {task: found for task, found in curves.items() if found}
    if not curves:
        return None
    names = [name for name in plan.algorithms if any(name in found for found in curves.values())]
    columns = min(_COLUMNS, len(curves))
    across, down = _LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _BOTTOM
    panels = []
    for number, (task, found) in enumerate(curves.items()):
        title, label = plan.suite.title(task), plan.suite.tasks[task].metric_name
        where = f"translate({number % columns * across} {number // columns * down})"
        panels.append(f'<g transform="{where}">\n{_panel(title, label, found, names)}\n</g>')
    each = max(2, columns * across // 130)
    top = math.ceil(len(curves) / columns) * down
    width, height = columns * across, top + math.ceil(len(names) / each) * _LEGEND + 20
    for number, name in enumerate(names):
        x, y = _LEFT + number % each * 130, top + 12 + number // each * _LEGEND
        panels.append(f'<path d="M{x} {y}h22" {_stroke(number)}/>' + _text(x + 28, y + 4, name, anchor="start"))
    body = "\n".join(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        '<rect width="100%" height="100%" fill="white"/>\n'
        f'<g font-family="Helvetica, Arial, sans-serif" fill="#222">\n{body}\n</g>\n</svg>\n'
    )


def _panel(title: str, label: str, curves: dict[str, Band], names: list[str]) -> str:
    left = min(curve.x[0] for curve in curves.values())
    right = max(curve.x[-1] for curve in curves.values())
    low = min(min(curve.low) for curve in curves.values())
    high = max(max(curve.high) for curve in curves.values())
    margin = 0.05 * (high - low) or 0.5
    low, high = low - margin, high + margin

    def at(x: float, y: float) -> str:
        across, up = (x - left) / (right - left), (y - low) / (high - low)
        return f"{_LEFT + _WIDTH * across:.1f} {_TOP + _HEIGHT * (1 - up):.1f}"

    parts = [
        _text(_LEFT + _WIDTH / 2, 20, title, size=13, more='font-weight="bold"'),
        _text(_LEFT + _WIDTH / 2, _TOP + _HEIGHT + 36, "joint steps"),
        _text(0, 0, label, more=f'transform="translate(14 {_TOP + _HEIGHT / 2}) rotate(-90)"'),
    ]
    for tick in _ticks(low, high):
        x, y = map(float, at(left, tick).split())
        parts += [
            f'<path d="M{x} {y}h{_WIDTH}" stroke="#e4e4e4"/>',
            _text(x - 6, y + 4, shown_tick(tick), anchor="end"),
        ]
    for tick in _ticks(left, right):
        x, y = map(float, at(tick, low).split())
        parts += [f'<path d="M{x} {y}v4" stroke="#999"/>', _text(x, y + 18, shown_tick(tick))]
    parts.append(f'<rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#999"/>')
    for number, name in enumerate(names):
        if (curve := curves.get(name)) is not None:
            upper = [at(*point) for point in zip(curve.x, curve.high, strict=True)]
            lower = [at(*point) for point in zip(curve.x, curve.low, strict=True)]
            band = "M" + "L".join([*upper, *reversed(lower)]) + "Z"
            line = "M" + "L".join(at(*point) for point in zip(curve.x, curve.iqm, strict=True))
            parts.append(f'<path d="{band}" fill="{_COLORS[number % len(_COLORS)]}" fill-opacity="0.13"/>')
            parts.append(f'<path d="{line}" fill="none" {_stroke(number)}/>')
    return "\n".join(parts)


def _stroke(number: int) -> str:
    dash = _DASHES[number // len(_COLORS) % len(_DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{_COLORS[number % len(_COLORS)]}" stroke-width="1.8"{dashed}'


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two ends."""
    power = 10 ** math.floor(math.log10((high - low) / _TICKS))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if (high - low) / (m * power) <= _TICKS)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _text(x: float, y: float, text: str, *, size: int = 11, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" {more}>{escape(text)}</text>'
