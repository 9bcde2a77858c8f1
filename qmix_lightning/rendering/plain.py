"""Draw what agents observe, for environments that have no picture of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qmix_lightning.rendering.canvas import INK, Canvas, Colour, Frame, agent_colour

__all__ = ["draw_observations"]

_GREY: Colour = (150, 150, 150)
_WIDTH, _MARGIN, _ROW = 640, 16, 64
_STRIP_LEFT = 200
_MOST_AGENTS, _MOST_NUMBERS = 12, 64


def draw_observations(
    names: Sequence[str],
    obs: NDArray[np.float32],
    alive: NDArray[np.bool_],
    last_actions: Sequence[str | None] | None,
) -> Frame:
    """Draw one row for each agent: its name, its last action, and its observation as a strip of colours.

    Args:
        names: of the ``N`` agents.
        obs: ``[N, O]``; blue is negative, red positive, each row scaled by its largest number.
        alive: ``[N]``.
        last_actions: what each did in the step before, in words, ``None`` for one that was not alive to do anything;
            ``None`` before the first step.
    """
    shown = min(len(names), _MOST_AGENTS)
    canvas = Canvas(_WIDTH, 2 * _MARGIN + _ROW * shown + 24)
    canvas.text(_MARGIN, _MARGIN, "what each agent observes (blue: negative, red: positive)", _GREY, 13, "lm")
    for i in range(shown):
        middle = _MARGIN + 24 + _ROW * i + _ROW / 2
        colour = agent_colour(i) if alive[i] else _GREY
        canvas.circle(_MARGIN + 12, middle, 11, colour)
        canvas.text(_MARGIN + 12, middle, str(i), (255, 255, 255), 12)
        canvas.text(_MARGIN + 32, middle - 9, names[i][:18], INK if alive[i] else _GREY, 14, "lm")
        doing = "" if alive[i] else "not alive"
        if last_actions and last_actions[i] is not None:  # at the end nobody is alive, and all have acted
            doing = f"did {last_actions[i]}"
        canvas.text(_MARGIN + 32, middle + 10, doing[:22], _GREY, 13, "lm")
        if alive[i]:
            _draw_strip(canvas, obs[i, :_MOST_NUMBERS], middle)
    if len(names) > shown:
        canvas.text(_WIDTH / 2, canvas.height - 10, f"and {len(names) - shown} more", _GREY, 12)
    return canvas.pixels()


def _draw_strip(canvas: Canvas, numbers: NDArray[np.float32], middle: float) -> None:
    largest = float(np.abs(numbers).max(initial=0.0)) or 1.0
    width = (_WIDTH - _MARGIN - _STRIP_LEFT) / max(8, len(numbers))
    for k, number in enumerate((numbers / largest).tolist()):
        left = _STRIP_LEFT + k * width
        canvas.rectangle(left, middle - 16, left + width - 1, middle + 16, _diverging(number), (225, 225, 225))


def _diverging(share: float) -> Colour:
    """Return white at 0, red at 1, blue at -1."""
    faded = round(255 * (1.0 - min(1.0, abs(share))))
    return (235, faded, faded) if share > 0 else (faded, faded, 235)
