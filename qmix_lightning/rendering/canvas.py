"""Draw shapes in the coordinates of a simulator, with smooth edges, to an array of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmix_lightning.runtime.near_modules import import_extra

__all__ = ["AGENT_COLOURS", "INK", "PAPER", "Canvas", "Colour", "Frame", "agent_colour", "require_pillow"]

Frame = NDArray[np.uint8]
"""One picture, ``[height, width, 3]``."""

Colour = tuple[int, int, int]

PAPER: Colour = (250, 249, 246)
INK: Colour = (38, 42, 48)

AGENT_COLOURS: tuple[Colour, ...] = (
    (31, 119, 180),
    (214, 96, 20),
    (44, 140, 60),
    (148, 80, 170),
    (190, 50, 70),
    (20, 150, 160),
    (150, 110, 20),
    (110, 110, 120),
)

_OVERSAMPLING = 2


def agent_colour(index: int) -> Colour:
    """Return the colour of agent ``index``, the same in every picture and on the page."""
    return AGENT_COLOURS[index % len(AGENT_COLOURS)]


def require_pillow() -> Any:
    """Import and return Pillow's package, or refuse with the command that installs it."""
    return import_extra("PIL", "drawing needs Pillow", "video")


class Canvas:
    """A picture on which shapes are drawn in a simulator's coordinates, y upwards.

    Args:
        width, height: of the picture, in pixels.
        bounds: ``(left, bottom, right, top)`` of the world that it shows; ``None``: pixels from the top left, y down.
        background: its colour.
    """

    def __init__(
        self,
        width: int,
        height: int,
        bounds: tuple[float, float, float, float] | None = None,
        background: Colour = PAPER,
    ) -> None:
        require_pillow()
        from PIL import Image, ImageDraw

        self.width, self.height = width, height
        self._image = Image.new("RGB", (width * _OVERSAMPLING, height * _OVERSAMPLING), background)
        self._draw = ImageDraw.Draw(self._image)
        left, bottom, right, top = bounds or (0.0, float(height), float(width), 0.0)
        self._origin = left, top
        self._scale = self._image.width / (right - left), self._image.height / (bottom - top)

    @property
    def scale(self) -> float:
        """Pixels of the finished picture in one unit of the world."""
        return abs(self._scale[0]) / _OVERSAMPLING

    def circle(self, x: float, y: float, radius: float, fill: Colour | None, outline: Colour | None = None) -> None:
        """Draw a disc, or a ring with no ``fill``; ``radius`` in units of the world."""
        (px, py), r = self._at(x, y), radius * abs(self._scale[0])
        self._draw.ellipse((px - r, py - r, px + r, py + r), fill=fill, outline=outline, width=_width(1.5))

    def rectangle(
        self, x0: float, y0: float, x1: float, y1: float, fill: Colour | None, outline: Colour | None = None
    ) -> None:
        """Draw a rectangle between two corners."""
        (a, b), (c, d) = self._at(x0, y0), self._at(x1, y1)
        box = (min(a, c), min(b, d), max(a, c), max(b, d))
        self._draw.rectangle(box, fill=fill, outline=outline, width=_width(1.5))

    def line(self, points: Sequence[tuple[float, float]], fill: Colour, pixels: float = 2.0) -> None:
        """Draw a line through ``points``, so many pixels wide."""
        self._draw.line([self._at(*point) for point in points], fill=fill, width=_width(pixels))

    def text(self, x: float, y: float, text: str, fill: Colour = INK, pixels: float = 14.0, anchor: str = "mm") -> None:
        """Write ``text`` so many pixels high; ``anchor`` as Pillow has it, ``mm`` for centred, ``lm`` for left."""
        from PIL import ImageFont

        font = ImageFont.load_default(pixels * _OVERSAMPLING)
        self._draw.text(self._at(x, y), text, fill=fill, font=font, anchor=anchor)

    def pixels(self) -> Frame:
        """Return the finished picture."""
        from PIL import Image

        return np.asarray(self._image.resize((self.width, self.height), Image.Resampling.BOX))

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return (x - self._origin[0]) * self._scale[0], (y - self._origin[1]) * self._scale[1]


def _width(pixels: float) -> int:
    return max(1, round(pixels * _OVERSAMPLING))
