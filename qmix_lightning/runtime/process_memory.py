"""Measure the host memory of a run: of this process and of all that it has started."""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["MemoryPeak", "process_peaks"]


def process_peaks() -> dict[str, float]:
    """Return the most memory that this process and each of its descendants had resident, in MB, by host and number.

    Memory that processes share counts for each. Where there is no ``/proc`` it is this process alone.
    """
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)
    host = socket.gethostname()
    peaks = {f"{host}:{os.getpid()}": own}
    for pid in _descendants(os.getpid()):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue  # it has just ended
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                peaks[f"{host}:{pid}"] = int(line.split()[1]) / 1024
    return peaks


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        children.setdefault(parent, []).append(int(entry.parent.name))
    found, waiting = [], [root]
    while waiting:
        waiting += (below := children.get(waiting.pop(), []))
        found += below
    return found


class MemoryPeak:
    """The largest sum of a run's processes at the moments it was looked at."""

    def __init__(self) -> None:
        self._largest = 0.0

    def add(self, of_ranks: Iterable[Mapping[str, float]]) -> None:
        """Look at the peaks of every rank's processes; a rank that another one started is there twice."""
        joined = {process: mb for one in of_ranks for process, mb in one.items()}
        self._largest = max(self._largest, sum(joined.values()))

    @property
    def peak_mb(self) -> float:
        """Return the largest sum so far, in MB; those that run now are counted too."""
        self.add([process_peaks()])
        return round(self._largest, 1)
