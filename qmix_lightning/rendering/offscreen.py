"""Let simulators that draw with pyglet do it where there is no display."""

from __future__ import annotations

import sys

__all__ = ["draw_offscreen"]


def draw_offscreen() -> None:
    """Make pyglet draw into memory, by EGL; to be called before a simulator's rendering is imported.

    Raises:
        OSError: EGL is not installed (Debian: ``libegl1 libgl1-mesa-dri``).
    """
    import pyglet

    if "pyglet.gl" not in sys.modules:  # the choice is made when that is imported
        pyglet.options["headless"] = True
