"""End what a process started, once it is gone: also what hangs, and what has a session of its own.

A process that is killed can end nothing itself, and a simulator that holds the interpreter's lock or has left the
process group hears of nothing. So everything that a supervised process starts carries the name of its *family* in its
environment variables, and a small process of its own waits until the supervised one is gone and ends those that carry
the name. Needs ``/proc``; elsewhere nothing is supervised.

This file is also that small process's program, run by itself: it imports the standard library alone.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import time

__all__ = ["FAMILY", "end_family", "family_members", "join_family", "supervise"]

FAMILY = "QMIX_LIGHTNING_FAMILY"
"""The environment variable: names, the oldest first, with colons between them."""

_POLL_S = 0.25
_GRACE_S = 6.0
"""Workers notice by themselves that their trainer is gone and close their environments, for up to 5 s."""

_supervised = 0  # the process that is; a copy of it (fork) is not


def join_family(name: str) -> None:
    """Have everything that this process starts from now on, by a program of its own, carry ``name``."""
    os.environ[FAMILY] = ":".join(filter(None, [os.environ.get(FAMILY), name]))


def supervise() -> None:
    """Have what this process starts ended when it is gone; nothing happens the second time."""
    global _supervised
    if _supervised == os.getpid() or not os.path.isdir("/proc/self") or not sys.executable:
        return
    _supervised = os.getpid()
    name = f"{_supervised}-{os.urandom(4).hex()}"
    outside = {key: value for key, value in os.environ.items() if key != FAMILY}
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, name, str(_supervised)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd="/", env=outside, start_new_session=True,
        )  # fmt: skip
    except OSError:  # no process to be had: the run is worth more
        return
    join_family(name)
    atexit.register(_dismiss, process, _supervised)


def _dismiss(process: subprocess.Popen[bytes], supervised: int) -> None:
    """End the supervisor of a process that ends by itself, and closes what it started."""
    if os.getpid() == supervised:
        process.kill()
        process.wait()


def family_members(name: str) -> list[int]:
    """Return the processes that carry ``name``, wherever they have gone."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                with open(f"/proc/{entry}/environ", "rb") as file:
                    variables = file.read().split(b"\0")
                prefix = f"{FAMILY}=".encode()
                names = [v[len(prefix) :].split(b":") for v in variables if v.startswith(prefix)]
                if names and name.encode() in names[0]:
                    found.append(int(entry))
    return found


def end_family(name: str) -> None:
    """Kill the processes that carry ``name``, but this one; again, since one of them may have started another."""
    if not os.path.isdir("/proc/self"):
        return
    for _ in range(5):
        members = [pid for pid in family_members(name) if pid != os.getpid()]
        if not members:
            return
        for pid in members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _main(name: str, parent: int) -> None:
    """Wait until the parent is gone, then for its family to end; kill what has not."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    deadline = time.monotonic() + _GRACE_S
    while family_members(name) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    end_family(name)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
