"""Processes of this machine as ``/proc`` shows them, and waiting for what they do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Process:
    """A process that runs, with its command line; one that has ended and is not waited for is none."""

    pid: int
    parent: int
    group: int
    session: int
    command: str


def running() -> Iterator[Process]:
    """Every process that runs."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, *numbers = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if state != "Z":
                yield Process(int(entry.name), *map(int, numbers[:3]), command)


def runs(pid: int) -> bool:
    return any(process.pid == pid for process in running())


def descendants(pid: int) -> list[Process]:
    """All below a process, whatever sessions they are in."""
    everything, found = list(running()), [pid]
    for above in found:
        found += [process.pid for process in everything if process.parent == above]
    return [process for process in everything if process.pid in found[1:]]


def wait_until(condition: Callable[[], Any], otherwise: str, timeout: float = 60, every: float = 0.02) -> None:
    """Wait for a condition, asked ``every`` so many seconds; fail with a message after ``timeout`` of them."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(every)
