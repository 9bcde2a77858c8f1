"""Draw worlds of discs: agents that move among landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qmix_lightning.rendering.canvas import Canvas, Colour, Frame, agent_colour

__all__ = ["Particle", "draw_particles"]

_LANDMARK: Colour = (110, 110, 110)
_EDGE: Colour = (60, 60, 60)
_WHITE: Colour = (255, 255, 255)
_PIXELS = 560
_SMALLEST = 9.0  # pixels, so that a number can be read
_HALF_WIDTHS = (1.3, 1.8, 2.5, 3.5, 5.0, 7.0, 10.0)
"""What is shown changes in steps, so that it seldom moves."""


@dataclass(frozen=True)
class Particle:
    """One disc of the world.

    Attributes:
        x, y, radius: in the world's units.
        agent: the number of the agent that it is; ``None``: a landmark.
        colour: ``None``: the agent's own, or grey.
        says: what it tells the others, drawn below it.
    """

    x: float
    y: float
    radius: float
    agent: int | None = None
    colour: Colour | None = None
    says: str = ""


def draw_particles(particles: Sequence[Particle]) -> Frame:
    """Draw landmarks as grey discs and agents as numbered ones; who is far away widens what is shown."""
    farthest = max((max(abs(p.x), abs(p.y)) + p.radius for p in particles), default=0.0)
    half = next((width for width in _HALF_WIDTHS if width >= farthest), _HALF_WIDTHS[-1])
    canvas = Canvas(_PIXELS, _PIXELS, (-half, -half, half, half))
    for particle in sorted(particles, key=lambda p: p.agent is not None):
        x, y, radius = particle.x, particle.y, max(particle.radius, _SMALLEST / canvas.scale)
        if particle.agent is None:
            canvas.circle(x, y, particle.radius, particle.colour or _LANDMARK, _EDGE)
            continue
        canvas.circle(x, y, radius, particle.colour or agent_colour(particle.agent), _EDGE)
        canvas.text(x, y, str(particle.agent), _WHITE, min(18.0, radius * canvas.scale * 1.1))
        if particle.says:
            canvas.text(x, y - radius - 10 / canvas.scale, f"says {particle.says}", _EDGE, 13)
    return canvas.pixels()
