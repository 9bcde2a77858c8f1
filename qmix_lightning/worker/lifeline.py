"""End a worker with its trainer: a socket's other end closes when the trainer is gone, for whatever reason."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading

__all__ = ["is_gone", "watch"]

_GRACE_S = 5.0


def watch(lifeline: socket.socket) -> None:
    """End the process group when the trainer is gone, even if a simulator never returns."""
    with contextlib.suppress(OSError):
        lifeline.recv(1)  # returns only when the other end closes
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_GRACE_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def is_gone(lifeline: socket.socket) -> bool:
    """Return whether the other end has closed."""
    try:
        lifeline.setblocking(False)
        return lifeline.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
