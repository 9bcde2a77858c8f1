"""Draw a battle from above: units with their health, the two sides, and who shoots at whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qmix_lightning.rendering.canvas import Canvas, Colour, Frame

__all__ = ["Unit", "draw_battle"]

_OURS: Colour = (31, 110, 190)
_THEIRS: Colour = (200, 60, 50)
_GROUND: Colour = (232, 228, 214)
_FULL: Colour = (60, 170, 80)
_SHIELD: Colour = (90, 160, 230)
_BLACK: Colour = (50, 50, 50)
_WHITE: Colour = (255, 255, 255)
_GRID_LINE: Colour = (222, 217, 200)
_LONGEST_SIDE = 720
_GRID, _MARGIN = 4, 2.0
_SMALLEST_VIEW = 24, 16  # what sides that meet from afar need, so that the view stays as it is


@dataclass(frozen=True)
class Unit:
    """One unit of a battle.

    Attributes:
        x, y: where it stands, in the map's units.
        ours: it is the team's, not the enemy's.
        label: what is written on it, a few characters.
        health: share of what it began with, 0 to 1; at 0 it has fallen.
        shield: the same of its shield; ``None``: it has none.
        radius: in the map's units.
        target: index of the unit that it shoots at.
    """

    x: float
    y: float
    ours: bool
    label: str
    health: float
    shield: float | None = None
    radius: float = 0.5
    target: int | None = None


def draw_battle(units: Sequence[Unit], width: float, height: float) -> Frame:
    """Draw ``units``, ours blue, theirs red, shots as lines, the fallen as crosses, and the part of the map around.

    Args:
        units: of both sides, the fallen too.
        width, height: of the map, in its own units.
    """
    left, bottom, right, top = bounds = _view(units, width, height)
    pixels = _LONGEST_SIDE / max(right - left, top - bottom)
    canvas = Canvas(round((right - left) * pixels), round((top - bottom) * pixels), bounds, _GROUND)
    for k in range(int(left), int(right) + 1, _GRID):
        canvas.line([(k, bottom), (k, top)], _GRID_LINE, 1)
    for k in range(int(bottom), int(top) + 1, _GRID):
        canvas.line([(left, k), (right, k)], _GRID_LINE, 1)
    smallest = 9.0 / canvas.scale  # so that a letter fits
    for unit in units:
        if unit.health <= 0.0:
            arm = max(unit.radius, smallest) * 0.7
            faded = _faded(_OURS if unit.ours else _THEIRS)
            canvas.line([(unit.x - arm, unit.y - arm), (unit.x + arm, unit.y + arm)], faded, 3)
            canvas.line([(unit.x - arm, unit.y + arm), (unit.x + arm, unit.y - arm)], faded, 3)
    for unit in units:
        if unit.target is not None and unit.health > 0.0:
            canvas.line(_shot(unit, units[unit.target], 2.0 / canvas.scale), _OURS if unit.ours else _THEIRS, 1.5)
    for unit in units:
        if unit.health > 0.0:
            _draw_unit(canvas, unit, max(unit.radius, smallest))
    alive = [sum(unit.health > 0.0 for unit in units if unit.ours is side) for side in (True, False)]
    total = [sum(unit.ours is side for unit in units) for side in (True, False)]
    edge = 12 / canvas.scale
    canvas.text(left + edge, top - edge, f"team (blue) {alive[0]} of {total[0]}", _OURS, 15, "lm")
    canvas.text(right - edge, top - edge, f"enemy (red) {alive[1]} of {total[1]}", _THEIRS, 15, "rm")
    return canvas.pixels()


def _faded(colour: Colour) -> Colour:
    red, green, blue = ((2 * ground + part) // 3 for ground, part in zip(_GROUND, colour, strict=True))
    return red, green, blue


def _shot(unit: Unit, aim: Unit, aside: float) -> list[tuple[float, float]]:
    """Return the line from ``unit`` to ``aim``, a little to its right, so that two that meet both show."""
    across, along = aim.x - unit.x, aim.y - unit.y
    length = math.hypot(across, along) or 1.0
    x, y = along / length * aside, -across / length * aside
    return [(unit.x + x, unit.y + y), (aim.x + x, aim.y + y)]


def _view(units: Sequence[Unit], width: float, height: float) -> tuple[float, float, float, float]:
    """Return the part of the map that holds everybody; it changes in steps, so that it seldom moves."""
    places = [(unit.x, unit.y) for unit in units if unit.health > 0.0] or [(width / 2, height / 2)]
    ends = []
    for axis, smallest in enumerate(_SMALLEST_VIEW):
        low = math.floor((min(place[axis] for place in places) - _MARGIN) / _GRID) * _GRID
        high = math.ceil((max(place[axis] for place in places) + _MARGIN) / _GRID) * _GRID
        side = max(smallest, high - low)
        low -= (side - (high - low)) // (2 * _GRID) * _GRID
        ends.append((float(low), float(low + side)))
    (left, right), (bottom, top) = ends
    return left, bottom, right, top


def _draw_unit(canvas: Canvas, unit: Unit, radius: float) -> None:
    canvas.circle(unit.x, unit.y, radius, _OURS if unit.ours else _THEIRS, _BLACK)
    canvas.text(unit.x, unit.y, unit.label, _WHITE, min(14.0, radius * canvas.scale * 1.2))
    bars = [(unit.health, _FULL)] + ([(unit.shield, _SHIELD)] if unit.shield is not None else [])
    thick = 4.0 / canvas.scale
    for row, (share, colour) in enumerate(bars):
        bottom = unit.y + radius + (0.7 + 1.2 * row) * thick
        left, full = unit.x - 1.2 * radius, 2.4 * radius
        canvas.rectangle(left, bottom, left + full, bottom + thick, _BLACK)
        canvas.rectangle(left, bottom, left + full * min(1.0, max(0.0, share)), bottom + thick, colour)
