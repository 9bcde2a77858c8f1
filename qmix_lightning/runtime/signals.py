"""Handle signals that ask a run to end: a handler only sets a flag; the run ends where it can be resumed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["STOP_SIGNALS", "SignalHandlers", "StopFlag", "end_with_parent"]


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What asks a run to stop."""

_PR_SET_PDEATHSIG = 1  # Linux, sys/prctl.h


def end_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends, where it is Linux; nothing happens elsewhere.

    A rank whose first rank was killed would otherwise wait in a collective until that times out.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class StopFlag:
    """The number of the signal that asked the run to stop; 0 while none did."""

    def __init__(self) -> None:
        self.signal_number = 0

    def is_set(self) -> bool:
        """Return whether a signal asked the run to stop."""
        return self.signal_number != 0


class SignalHandlers:
    """Handlers of SIGINT and SIGTERM that set the flag; a second SIGINT ends the process at once.

    Lightning's own handlers broadcast inside the handler, so two ranks that both receive the signal wait for each
    other for ever; its Ctrl-C interrupts an update half-way. These replace them while training.

    A handler that Lightning set for SLURM's requeue signal saves a checkpoint wherever the run happens to be; it is
    deferred: called by :meth:`run_deferred` at the next update boundary.

    Args:
        stop: the flag to set.
        at_once: what a second SIGINT does before the process exits, e.g. end the other ranks.
    """

    def __init__(self, stop: StopFlag, at_once: Callable[[], None] = lambda: None) -> None:
        self.stop = stop
        self.at_once = at_once
        self._previous: dict[int, Any] = {}
        self._deferred: Callable[[int, FrameType | None], Any] | None = None
        self._deferred_signal = 0

    def install(self, requeue_signal: int | None = None) -> None:
        """Install the handlers; do nothing outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._on_stop)
        if requeue_signal is not None and callable(handler := signal.getsignal(requeue_signal)):
            self._deferred = handler
            self._previous[requeue_signal] = signal.signal(requeue_signal, self._on_requeue)

    def restore(self) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.stop.signal_number == signal.SIGINT:
            self.at_once()
            os._exit(128 + number)
        self.stop.signal_number = number

    def _on_requeue(self, number: int, frame: FrameType | None) -> None:
        self._deferred_signal = number

    def run_deferred(self) -> bool:
        """Let the requeue handler save and requeue at an update boundary, if its signal came; return whether it did."""
        if not self._deferred_signal or self._deferred is None:
            return False
        number, self._deferred_signal = self._deferred_signal, 0
        self._deferred(number, None)
        return True
