"""Starts commands as forks of one process that has imported what they import: a process each, without its five seconds.

Reads a JSON object a line from its standard input (``module``, ``arguments``, ``environ``, ``folder``, and the files
``output`` and ``status``) and prints the process's number. Writes ``status`` when the process has ended.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

running: dict[int, Path] = {}
"""Number of a process -> where its status goes."""


def reap(number: int = 0, frame: FrameType | None = None) -> None:
    """Write down how each process ended that has ended since."""
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            path = running.pop(pid)
            path.with_suffix(".writing").write_text(str(os.waitstatus_to_exitcode(status)))
            path.with_suffix(".writing").rename(path)


def serve() -> dict[str, Any]:
    """Fork at every line; returns in the fork what is to be run, and ends the server with its input."""
    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        request = json.loads(line)
        with_signals = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, with_signals)
            return request
        running[pid] = Path(request["status"])
        print(pid, flush=True)
        signal.pthread_sigmask(signal.SIG_SETMASK, with_signals)
    for pid in list(running):  # what a test that failed has left
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    while running:  # so that their time is counted
        time.sleep(0.01)
    sys.exit()


def become(request: dict[str, Any]) -> None:
    """Be the command, as ``python -m`` would start it in a session of its own."""
    os.setsid()
    os.chdir(request["folder"])
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(request["environ"])
    added = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    sys.path[:1] = [request["folder"], *added]
    sys.argv = [request["module"], *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    from hydra.core.plugins import Plugins

    import qmix_lightning.build
    import qmix_lightning.fit
    import qmix_lightning.training.summary  # noqa: F401
    from support import quick_hydra

    quick_hydra.quicken()
    Plugins.instance()  # looks for them in every package that may hold one
    gc.freeze()
    become(serve())
