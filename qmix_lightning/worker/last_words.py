"""Keep the end of what a process writes to its standard error, to be told when it has failed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

__all__ = ["LastWords"]

_KEPT_BYTES = 4096
_SHOWN_LINES = 3
_SHOWN_CHARACTERS = 300


class LastWords:
    """A pipe whose contents are passed on, and whose end is kept.

    A thread reads it until every writer has closed it, so that none of them ever waits.

    Args:
        sink: takes the contents, in a thread; ``None``: they go to this process's standard error.

    Attributes:
        descriptor: where to write; give it to the process and :meth:`release` it here.
    """

    def __init__(self, sink: Callable[[bytes], None] | None = None) -> None:
        self._end = b""
        reading, self.descriptor = os.pipe()
        onward = os.dup(2) if sink is None else -1
        self._thread = threading.Thread(target=self._pass_on, args=(reading, onward, sink), daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Close this process's own end; may be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _pass_on(self, reading: int, onward: int, sink: Callable[[bytes], None] | None) -> None:
        try:
            while True:
                part = os.read(reading, 65536)
                if not part:
                    return
                self._end = (self._end + part)[-_KEPT_BYTES:]
                with contextlib.suppress(OSError):  # nobody listens there any more
                    if sink is not None:
                        sink(part)
                        continue
                    while part:
                        part = part[os.write(onward, part) :]
        finally:
            os.close(reading)
            if onward >= 0:
                os.close(onward)

    def shown(self) -> str:
        """Return the last lines in one, as a clause to append to a message; empty where there are none."""
        self._thread.join(0.2)  # what a process wrote right before its end may be on its way
        text = "".join(c if c.isprintable() or c == "\n" else " " for c in self._end.decode(errors="replace"))
        lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        words = " / ".join(lines[-_SHOWN_LINES:])[-_SHOWN_CHARACTERS:]
        return f"; the last that it wrote: {words}" if words else ""
