"""Commands in processes of their own, started by ``command_server``: one for each process that runs tests."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent


def environ() -> dict[str, str]:
    """The environment of a command that can import the fakes."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "default"}


def start_interpreter(arguments: list[str], variables: dict[str, str]) -> subprocess.Popen[str]:
    """Start ``qmix-train`` in an interpreter and a session of its own.

    For what has to stand in the process's environment from its beginning: that of a fork is its parent's.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "qmix_lightning.commands.train", *arguments],
        env=environ() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


class Server:
    """The process that commands are forked from, and the folder of what they print."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="commands"))
        script = Path(__file__).with_name("command_server.py")
        self._process = subprocess.Popen(
            [sys.executable, script], env=environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, **request: Any) -> int:
        """Fork a command; returns the number of its process."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        return int(stdout.readline())

    def stop(self) -> None:
        """End what still runs, and then the server: its time, and that of what it started, is this process's."""
        self._process.communicate()
        shutil.rmtree(self.folder)


@functools.cache
def server() -> Server:
    """The server, started for the first command."""
    return Server()


def stop_server() -> None:
    """End the server, if there is one."""
    if server.cache_info().currsize:
        server().stop()
        server.cache_clear()


class Command:
    """A command that runs; like ``subprocess.Popen``, with what it prints on either stream in a file."""

    stdout = stderr = stdin = None  # no pipes

    def __init__(self, module: str, arguments: list[str], output: str | None = None) -> None:
        """``output``: a terminal, for instance, in place of a file."""
        path = server().folder / uuid.uuid4().hex
        path.touch()
        self._output, self._status = path, path.with_suffix(".status")
        self.returncode: int | None = None
        where = {"folder": os.getcwd(), "output": output or str(path), "status": str(self._status)}
        self.pid = server().start(module=module, arguments=arguments, environ=environ(), **where)

    def printed(self) -> str:
        """What it has printed so far."""
        return self._output.read_text()

    def poll(self) -> int | None:
        """Its status, once it has ended."""
        if self.returncode is None and self._status.exists():
            self.returncode = int(self._status.read_text())
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        """Its status; a command that still runs after ``timeout`` seconds is killed, and fails with what it printed."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                raise AssertionError(f"still running after {timeout} s:\n{self.printed()}")
            time.sleep(0.005)
        return status

    def communicate(self, timeout: float = 240) -> tuple[str, None]:
        """Wait for its end; returns what it printed, and nothing for standard error, which is in there."""
        self.wait(timeout)
        return self.printed(), None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)
