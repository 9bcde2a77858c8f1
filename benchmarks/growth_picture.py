"""Draw what ``growth.py`` measured as one SVG, with nothing but the standard library.

    python benchmarks/growth_picture.py growth.json docs/growth.svg

Both axes of every panel are logarithmic. Bars are the least and the most of the turns; a dotted line is growth in
proportion to the size, through the last point of the line it belongs to.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 300, 210
"""Size of a panel's axes; around them is room for the labels."""
LEFT, TOP, RIGHT, BOTTOM = 58, 34, 14, 44
COLORS = ("#1f6fb4", "#d1661b", "#7a7a7a")


@dataclass
class Line:
    """Line of a panel through points ``(size, median, least, most)``."""

    name: str
    points: list[tuple[float, float, float, float]]
    proportional: bool = False


@dataclass
class Panel:
    """One diagram of the picture: title, labels of both axes, and lines."""

    title: str
    x: str
    y: str
    lines: list[Line] = field(default_factory=list)


def _points(rows: list[dict[str, Any]], *path: str) -> list[tuple[float, float, float, float]]:
    points = []
    for row in rows:
        value: Any = row
        for name in path:
            value = value[name]
        low, middle, high = (value["min"], value["median"], value["max"]) if isinstance(value, dict) else (value,) * 3
        points.append((row["size"], middle, low, high))
    return points


def panels(found: dict[str, Any]) -> list[Panel]:
    """Return the panels whose parts have been measured."""
    rows = {part: content["rows"] for part, content in found.items()}
    made = []
    titles = {
        "environments": ("SMAX 3m: environments", "environments"),
        "workers": ("Foraging, 32 games: workers", "worker processes"),
        "ranks": ("Foraging, whole run: ranks", "ranks"),
    }
    for part, (title, what) in titles.items():
        if part in rows:
            lines = [Line("", [point for point in _points(rows[part], "cpu_us") if point[0]])]
            if part == "workers":
                lines[0].name = "in workers"
                in_process = [point[1:] for point in _points(rows[part], "cpu_us") if not point[0]]
                lines += [Line("in this process", [(size, *h) for h in in_process for size, *_ in lines[0].points])]
            made.append(Panel(title, what, "processor microseconds a joint step", lines))
    for part, what in (("agents", "agents"), ("steps", "steps of an episode")):
        if part in rows:
            lines = [
                Line("float32", _points(rows[part], "ms", "float32"), proportional=True),
                Line("plain", _points(rows[part], "ms", "plain")),
                Line("arithmetic floor", _points(rows[part], "floor_ms")),
            ]
            made.append(Panel(f"An update: {part}", what, "ms", lines))
    if "replay" in rows:
        line = Line("float32", _points(rows["replay"], "gb"), proportional=True)
        made.append(Panel("Replay: memory", "episodes held", "GB", [line]))
        lines = [
            Line("draw a batch", _points(rows["replay"], "sample_ms")),
            Line("add an episode", _points(rows["replay"], "add_ms")),
        ]
        made.append(Panel("Replay: time", "episodes held", "ms", lines))
    return made


def _text(x: float, y: float, text: str, *, size: int = 11, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" {more}>{text}</text>'


def _short(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _ticks(low: float, high: float) -> list[float]:
    """Return ticks of an axis, 1, 2 and 5 times powers of ten or the like; fewer where there are many."""
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        ticks = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
        if len(ticks) <= 7:
            break
    return ticks


def draw(panel: Panel) -> str:
    """Return one panel as SVG, with its corner at 0, 0."""
    xs = [point[0] for line in panel.lines for point in line.points]
    ys = [value for line in panel.lines for point in line.points for value in point[2:]]
    left, right = min(xs) / 1.15, max(xs) * 1.15
    low, high = min(ys) / 1.25, max(ys) * 1.25
    if len(panel.lines) > 1:
        high *= (high / low) ** 0.3  # for the names

    def at(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / left) / math.log(right / left)
        up = math.log(y / low) / math.log(high / low)
        return LEFT + WIDTH * across, TOP + HEIGHT * (1 - up)

    parts = [
        _text(LEFT + WIDTH / 2, 20, panel.title, size=13, more='font-weight="bold"'),
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>',
        _text(LEFT + WIDTH / 2, TOP + HEIGHT + 36, panel.x),
        _text(0, 0, panel.y, more=f'transform="translate(14 {TOP + HEIGHT / 2}) rotate(-90)"'),
    ]
    sizes = sorted(set(xs))
    for size in sizes if len(sizes) <= 9 else sizes[::2]:
        x, y = at(size, low)
        parts += [f'<path d="M{x:.1f} {y:.1f}v4" stroke="#999"/>', _text(x, y + 18, _short(size))]
    for tick in _ticks(low, high):
        x, y = at(left, tick)
        parts += [f'<path d="M{x} {y:.1f}h{WIDTH}" stroke="#e4e4e4"/>', _text(x - 5, y + 4, _short(tick), anchor="end")]
    for number, line in enumerate(panel.lines):
        color = COLORS[number]
        if line.proportional:
            size, value = line.points[-1][:2]
            begin, end = max(left, size * low / value), min(right, size * high / value)  # where it leaves the panel
            (x0, y0), (x1, y1) = at(begin, value * begin / size), at(end, value * end / size)
            path = f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"
            parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-dasharray="2 4"/>')
        places = [at(size, value) for size, value, *_ in line.points]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        for (x, y), (size, _, least, most) in zip(places, line.points, strict=True):
            bar = f"M{x:.1f} {at(size, least)[1]:.1f}V{at(size, most)[1]:.1f}"
            parts += [
                f'<path d="{bar}" stroke="{color}"/>',
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{color}"/>',
            ]
        if len(panel.lines) > 1:
            x, y = LEFT + 10, TOP + 16 + 15 * number
            parts += [f'<path d="M{x} {y - 4}h16" stroke="{color}" stroke-width="1.8"/>']
            parts += [_text(x + 21, y, line.name, anchor="start")]
    return "\n".join(parts)


def picture(made: list[Panel], columns: int = 2) -> str:
    """Return all panels as one SVG file."""
    across, down = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM
    columns = min(columns, len(made))
    lines = math.ceil(len(made) / columns)
    body = "\n".join(
        f'<g transform="translate({i % columns * across} {i // columns * down})">\n{draw(panel)}\n</g>'
        for i, panel in enumerate(made)
    )
    size = f'width="{columns * across}" height="{lines * down}"'
    box = f'viewBox="0 0 {columns * across} {lines * down}"'
    white = '<rect width="100%" height="100%" fill="white"/>'
    font = 'font-family="Helvetica, Arial, sans-serif" fill="#222"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box}>\n{white}\n<g {font}>\n{body}\n</g>\n</svg>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    options.picture.write_text(picture(panels(json.loads(options.measured.read_text()))))


if __name__ == "__main__":
    main()
