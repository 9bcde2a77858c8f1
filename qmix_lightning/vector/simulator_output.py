"""Keep what simulators write in a file of the run, so that it neither fills the terminal nor the disk."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

__all__ = ["SimulatorOutput"]

LARGEST_FILE = 8 * 2**20
"""Bytes; then a new file is begun, and the one before it is kept beside it."""

_MOST_PENDING = 2**16


class SimulatorOutput:
    """A file that takes what simulators write; called with each part of it, in any thread.

    Until the folder of the file is there, the end of what was written is kept in memory: a run that is refused leaves
    nothing behind. The file is only ever appended to, by every rank, and never followed through a link.

    Args:
        path: of the file; what was written before the last :data:`LARGEST_FILE` bytes goes to ``<name>.1``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending = b""
        self._lock = threading.Lock()

    def __call__(self, part: bytes) -> None:
        with self._lock:
            part = (self._pending + part)[-LARGEST_FILE:]
            if not self._path.parent.is_dir():
                self._pending = part[-_MOST_PENDING:]
                return
            self._pending = b""
            with contextlib.suppress(OSError):  # a full disk must not end a run for this
                self._append(part)

    def _append(self, part: bytes) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o644)
        try:
            if os.fstat(descriptor).st_size + len(part) > LARGEST_FILE:
                os.replace(self._path, self._path.with_name(f"{self._path.name}.1"))
                os.close(descriptor)
                descriptor = os.open(self._path, flags, 0o644)
            os.write(descriptor, part)
        finally:
            os.close(descriptor)
