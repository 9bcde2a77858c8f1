"""Draw games of two agents by their payoff tables."""

from __future__ import annotations

from collections.abc import Sequence

from qmix_lightning.rendering.canvas import INK, Canvas, Colour, Frame, agent_colour

__all__ = ["draw_payoffs"]

_WHITE: Colour = (255, 255, 255)
_GREY: Colour = (150, 150, 150)
_NOW: Colour = (255, 226, 150)
_CHOSEN: Colour = (60, 150, 80)
_CELL, _GAP, _TOP, _EDGE = 72, 44, 86, 40


def draw_payoffs(
    labels: Sequence[str],
    tables: Sequence[Sequence[Sequence[float]]],
    now: int | None,
    chosen: tuple[int, int, int] | None,
) -> Frame:
    """Draw one payoff table for each state, side by side; rows are agent 1's actions, columns agent 2's.

    Args:
        labels: a name for each of the ``K`` states.
        tables: ``[K][A_1][A_2]``, what the team is paid.
        now: the state that the game is in, on a yellow ground; ``None``: the game is over.
        chosen: ``(state, row, column)`` that was just played, in green.
    """
    rows, columns = max(map(len, tables)), max(len(table[0]) for table in tables)
    step = columns * _CELL + _GAP
    canvas = Canvas(2 * _EDGE + len(tables) * step - _GAP, _TOP + rows * _CELL + _EDGE)
    for k, (label, table) in enumerate(zip(labels, tables, strict=True)):
        left = _EDGE + k * step
        right, bottom = left + len(table[0]) * _CELL, _TOP + len(table) * _CELL
        if k == now:
            canvas.rectangle(left - 16, 12, right + 16, bottom + 16, _NOW)
        canvas.text((left + right) / 2, 30, f"state {label}", INK if k == now else _GREY, 17)
        for column in range(len(table[0])):
            canvas.text(left + (column + 0.5) * _CELL, _TOP - 16, str(column), agent_colour(1), 15)
        for row, payoffs in enumerate(table):
            canvas.text(left - 9, _TOP + (row + 0.5) * _CELL, str(row), agent_colour(0), 15)
            for column, payoff in enumerate(payoffs):
                played = chosen == (k, row, column)
                x, y = left + column * _CELL, _TOP + row * _CELL
                canvas.rectangle(x, y, x + _CELL, y + _CELL, _CHOSEN if played else _WHITE, INK)
                canvas.text(x + _CELL / 2, y + _CELL / 2, f"{payoff:g}", _WHITE if played else INK, 20)
    canvas.text(canvas.width / 2, canvas.height - 12, "row: agent 1, column: agent 2", _GREY, 13)
    return canvas.pixels()
