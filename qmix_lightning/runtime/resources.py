"""Count cores, and set threads, freed memory and float32 precision of this process.

Imports no torch at module level.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

__all__ = [
    "CORES",
    "available_cores",
    "choose_asynchronous",
    "choose_threads",
    "keep_freed_memory",
    "set_matmul_precision",
]


CORES = "QMIX_LIGHTNING_CORES"
"""Variable with the number of cores of a process that runs beside others, of the same sweep."""

_MOST_THREADS = 4
"""The products of one update are small: more threads wait for each other longer than they compute."""


def available_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return the cores this process may use: its affinity, a container's quota, its share of a sweep's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        if allowed != "max":
            cores = min(cores, max(1, int(allowed) // int(period)))
    except (OSError, ValueError):
        pass  # no such limit
    share = os.environ.get(CORES, "")
    return min(cores, max(1, int(share))) if share.isdigit() else cores


def choose_threads(cores: int, *, ranks: int, workers: int, asynchronous: bool) -> int:
    """Choose the intra-op threads of one rank: half of the cores that workers and collecting leave to it, 1 to 4.

    Two threads on two busy cores were seen to run ten times slower than one: a thread that the scheduler puts aside is
    waited for at every operation.

    Args:
        cores: of this machine.
        ranks: processes that train on this machine.
        workers: worker processes of each rank.
        asynchronous: whether each rank collects while it updates.
    """
    left = cores // max(1, ranks) - workers - int(asynchronous)
    return max(1, min(_MOST_THREADS, left // 2))


def choose_asynchronous(
    cores: int, *, ranks: int, on_policy: bool, own_process: bool, num_envs: int, workers: int
) -> tuple[bool, str]:
    """Choose whether to collect the next round while an update runs, and say why, for ``rollout.asynchronous=auto``.

    Collecting runs beside the update only where it leaves the interpreter to it: in a process of its own, or while it
    waits for worker processes. It costs staleness, and needs a core of its own.

    Args:
        cores: of this machine.
        ranks: processes that train on this machine.
        on_policy: whether the algorithm learns from what the present policy did, and from nothing else.
        own_process: whether the collector has a process of its own.
        num_envs: training environments of a rank.
        workers: worker processes of each rank, 0 if environments are stepped in the training process.
    """
    if on_policy:
        return False, "on-policy"
    if cores < 2 * ranks:
        return False, "no core for it"
    if own_process:
        return True, "the collector has a process of its own"
    if num_envs == 1:
        return False, "one environment"
    if not workers:
        return False, "environments are stepped in this process"
    return True, f"{workers} worker processes"


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h
_TRIM_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let the C library keep up to a gigabyte of freed memory, where it is glibc and nobody has said otherwise.

    By default it returns what is freed at the end of an update, and maps each large buffer anew, so that the next one
    begins on fresh pages, which cost more than to fill them. It does not grow with the number of updates.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def set_matmul_precision(precision: str) -> None:
    """Set the precision of float32 products in torch and cuDNN.

    ``highest``: float32; ``high``: TF32, ten bits of mantissa; ``medium``: bfloat16 where there is a kernel for it.
    cuDNN allows TF32 unless it is forbidden, so the GRU would use it where products do not.
    """
    import torch

    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"
