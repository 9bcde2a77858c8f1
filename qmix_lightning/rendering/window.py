"""Show pictures in a window as they are drawn."""

from __future__ import annotations

import time
from typing import Any

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.rendering.canvas import Frame, require_pillow
from qmix_lightning.rendering.recorder import Moment
from qmix_lightning.rendering.video import with_caption

__all__ = ["Window", "WindowClosed"]


class WindowClosed(Exception):
    """Raised when somebody closed the window: they have seen enough."""


class Window:
    """A window on the screen; closing it, or Escape, ends what is shown.

    Args:
        title: of the window.
        fps: pictures in a second, at most.

    Raises:
        ConfigurationError: there is no screen.
    """

    def __init__(self, title: str, fps: int) -> None:
        require_pillow()
        try:
            import tkinter
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "render=human needs Python's tkinter (Debian: apt install python3-tk); render=video writes a file"
            ) from error
        try:
            self._root: Any = tkinter.Tk()
        except tkinter.TclError as error:
            raise ConfigurationError(f"render=human needs a screen ({error}); render=video writes a file") from error
        self._root.title(title)
        self._label: Any = tkinter.Label(self._root)
        self._label.pack()
        self._pause = 1.0 / fps
        self._next = time.monotonic()
        self._closed = False
        self._root.protocol("WM_DELETE_WINDOW", self._on_close)
        self._root.bind("<Escape>", lambda event: self._on_close())

    def __call__(self, frame: Frame, moment: Moment) -> None:
        """Show one picture, and wait until it is time for the next; the last of an episode stays for a second."""
        from PIL import Image, ImageTk

        picture: Any = ImageTk.PhotoImage(Image.fromarray(with_caption(frame, moment)), master=self._root)
        self._label.configure(image=picture)
        self._picture = picture  # tkinter keeps no reference, and the picture would be gone
        self._next = max(self._next, time.monotonic()) + (1.0 if moment.over else self._pause)
        while not self._closed and (self._root.update() or time.monotonic() < self._next):
            time.sleep(0.01)
        if self._closed:
            self.close()
            raise WindowClosed

    def _on_close(self) -> None:
        self._closed = True

    def close(self) -> None:
        """Take the window away; may be called twice."""
        if self._root is not None:
            self._root.destroy()
            self._root = None
