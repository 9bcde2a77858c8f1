"""Kill this process at a named point, for the tests of what a kill may do: see ``tests/campaign``.

``QMIX_LIGHTNING_KILL_AT=checkpoint.rename:3`` sends SIGKILL to the process itself when it reaches that point for the
third time. Nothing else can be asked for, and without the variable a point is an empty function.
"""

from __future__ import annotations

import os
import signal

__all__ = ["KILL_AT", "reached"]

KILL_AT = "QMIX_LIGHTNING_KILL_AT"


def reached(point: str) -> None:
    """Mark a point of the program."""


def _arm(asked: str) -> None:
    """Replace :func:`reached` by one that counts, and kills."""
    global reached
    name, _, times = asked.partition(":")
    left = int(times) if times.isdigit() else 1

    def counting(point: str) -> None:
        nonlocal left
        if point == name:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    reached = counting


if asked := os.environ.get(KILL_AT):
    _arm(asked)
