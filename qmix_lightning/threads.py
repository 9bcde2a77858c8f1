"""How many threads an update may use, so that collecting and learning do not fight over the cores."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["available_cores", "choose_threads"]

_MOST = 4
"""The products of one update are small: more threads wait for each other longer than they compute."""


def available_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may use: its affinity, and a container's quota if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        if allowed != "max":
            cores = min(cores, max(1, int(allowed) // int(period)))
    except (OSError, ValueError):
        pass  # no such limit
    return cores


def choose_threads(cores: int, *, ranks: int, workers: int, pipelined: bool) -> int:
    """Intra-op threads of one rank: half of the cores that workers and collecting leave to it, 1 to 4.

    Two threads on two busy cores were seen to run ten times slower than one: a thread that the scheduler puts aside is
    waited for at every operation.

    Args:
        cores: of this machine.
        ranks: processes that train on this machine.
        workers: worker processes of each rank.
        pipelined: whether each rank collects while it updates.
    """
    left = cores // max(1, ranks) - workers - int(pipelined)
    return max(1, min(_MOST, left // 2))
