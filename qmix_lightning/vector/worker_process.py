"""Start a worker process, in a fork of this interpreter or under another one, and talk to it."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.vector.answers import Introduction, read_introduction
from qmix_lightning.worker.last_words import LastWords
from qmix_lightning.worker.loop import WorkOrder, work
from qmix_lightning.worker.protocol import receive, receive_bytes, send
from qmix_lightning.worker.supervisor import FAMILY, end_family

__all__ = ["Interpreter", "WorkerProcess"]

_PASSED_ON = ("PATH", "HOME", "LANG")


@dataclass(frozen=True)
class Interpreter:
    """Another Python that steps environments; it needs numpy and the environment.

    Args:
        path: of its executable.
        variables: names of environment variables that it receives, besides PATH, HOME and LANG.
    """

    path: str
    variables: tuple[str, ...] = ()

    def start(self, descriptors: Sequence[int], output: int, family: str) -> subprocess.Popen[bytes]:
        """Start a worker that inherits ``descriptors`` (connection, lifeline, log) and ``output``, and nothing else.

        Raises:
            ConfigurationError: there is no program at the path.
        """
        names = (*_PASSED_ON, *self.variables)
        outside = {name: os.environ[name] for name in names if name in os.environ}
        outside[FAMILY] = ":".join(filter(None, [os.environ.get(FAMILY), family]))
        boot = Path(__file__).parent.parent / "worker" / "boot.py"
        command = [self.path, "-I", str(boot), *map(str, descriptors), str(boot.parent.parent), _folder_of_envs()]
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=outside,
                pass_fds=tuple(descriptors),
                process_group=0,
            )
        except OSError as error:
            raise ConfigurationError(f"rollout.python={self.path} cannot be started: {error.strerror}") from error


def _folder_of_envs() -> str:
    """Return the folder of the shipped environments, which are not imported here."""
    spec = importlib.util.find_spec("qmix_lightning.envs")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent)


class WorkerProcess:
    """The trainer's side of one worker process.

    Args:
        order: what the worker is told first, but for its family, which is chosen here.
        interpreter: the Python that runs it; ``None``: a fork of this one.
        sink: takes what simulators write; ``None``: it goes to standard error.

    Raises:
        ConfigurationError: the interpreter cannot be started.
    """

    def __init__(self, order: WorkOrder, interpreter: Interpreter | None, sink: Callable[[bytes], None] | None) -> None:
        self.rows = slice(order.slots[0], order.slots[-1] + 1)  # dealt in blocks
        self.connection, theirs = socket.socketpair()
        self.lifeline, their_lifeline = socket.socketpair()
        self.words = LastWords(sink)
        log = os.dup(2)
        self._interpreter = interpreter
        self._family = f"worker-{os.getpid()}-{os.urandom(4).hex()}"
        self._process: BaseProcess | subprocess.Popen[bytes] | None = None
        try:
            if interpreter is not None:
                descriptors = [theirs.fileno(), their_lifeline.fileno(), log]
                self._process = interpreter.start(descriptors, self.words.descriptor, self._family)
            else:
                self._process = self._fork(theirs, their_lifeline, log, f"{order.environment['name']}-worker")
        except BaseException:
            self.kill()
            raise
        finally:
            theirs.close()
            their_lifeline.close()
            os.close(log)
            self.words.release()
        with contextlib.suppress(OSError):  # it has ended already, which is noticed when its answer is read
            send(self.connection, asdict(replace(order, family=self._family)))

    def _fork(self, connection: socket.socket, lifeline: socket.socket, log: int, name: str) -> BaseProcess:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["qmix_lightning.worker.loop"])
        streams = [Connection(os.dup(fd), readable=False) for fd in (self.words.descriptor, log)]
        try:
            process = context.Process(target=_work, args=(connection, lifeline, *streams), daemon=True, name=name)
            process.start()
            return process
        finally:
            for stream in streams:
                stream.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def introduction(self, timeout: float) -> Introduction:
        """Return what the worker says of itself and its environments, once it has created them.

        ``timeout``, in seconds, holds for every later request too.
        """
        self.connection.settimeout(timeout)
        answer: Any = receive(self.connection)
        introduced = read_introduction(answer)
        if self._interpreter is not None:
            introduced.versions["environments' python"] = introduced.python
            introduced.versions["environments' numpy"] = introduced.numpy
        return introduced

    def share(self, descriptor: int) -> None:
        """Give the worker the shared memory."""
        socket.send_fds(self.connection, [b"m"], [descriptor])

    def receive_frame(self) -> np.ndarray:
        """Return the picture ``[height, width, 3]`` uint8 that follows an answer."""
        shape, data = receive(self.connection), receive_bytes(self.connection)
        try:
            return np.frombuffer(data, np.uint8).reshape(shape).copy()  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise ConnectionError("it sent what is no picture") from None

    def join(self, timeout: float) -> int | None:
        """Wait for the worker's end; return its exit status, negative for a signal, ``None`` if it goes on."""
        if self._process is None:
            return None
        if isinstance(self._process, BaseProcess):
            self._process.join(timeout)
            return self._process.exitcode
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return self._process.returncode

    def end(self) -> str:
        """Return how the worker ended, in words."""
        code = self.join(1)
        if code is None:
            how = "it closed its connection"
        else:
            how = f"killed by signal {-code}" if code < 0 else f"ended by itself with status {code}"
        return how + self.words.shown()

    def kill(self) -> None:
        """End the worker and everything that its environments started."""
        self.connection.close()
        self.lifeline.close()
        if self._process is not None and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)  # the group that the worker made, its games included
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self.join(5)
            end_family(self._family)  # what has left the group


def _work(connection: socket.socket, lifeline: socket.socket, output: Connection, log: Connection) -> None:
    """Run a worker in a fork of this interpreter."""
    kept = [os.dup(stream.fileno()) for stream in (output, log)]
    output.close()
    log.close()
    work(connection, lifeline, *kept)


def working_folder() -> list[str]:
    """Return the working folder if modules are looked for there, as the commands do: last of all."""
    return [os.getcwd()] if {"", os.getcwd()} & set(sys.path) else []
