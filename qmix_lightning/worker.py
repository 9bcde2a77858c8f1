"""A worker process: some environments, stepped on command, written to shared memory.

The protocol is one byte each way; observations never pass through a pipe. A worker ends when it is told to, when
the trainer is gone (its sockets close), and with everything that its environments started: it leads a process
group of its own. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

import numpy as np

from qmix_lightning.buffers import Buffers
from qmix_lightning.errors import QMixLightningError
from qmix_lightning.parallel_adapter import ParallelAdapter
from qmix_lightning.supervised import FAULT_KINDS, EnvBlock, FaultLimit, Faults, SupervisedEnv, one_line
from qmix_lightning.types import EnvSpec

__all__ = ["SharedBuffers", "is_gone", "receive", "send", "watch", "work"]

RESET, STEP, QUIT = b"r", b"s", b"q"
DONE, FAULTY, FATAL = b"d", b"f", b"x"
_GRACE_S = 5.0


class SharedBuffers:
    """:class:`Buffers` and what goes the other way, laid out in one piece of shared memory.

    ``actions [E, N]`` and ``seeds [E]`` int64; ``wanted [E]`` and ``failed [E]`` bool.
    """

    def __init__(self, spec: EnvSpec, num_envs: int, memory: mmap.mmap | None) -> None:
        layout = Buffers.layout(spec, num_envs)
        extra: dict[str, tuple[tuple[int, ...], type]] = {
            "actions": ((num_envs, spec.n_agents), np.int64),
            "seeds": ((num_envs,), np.int64),
            "wanted": ((num_envs,), np.bool_),
            "failed": ((num_envs,), np.bool_),
        }
        self.nbytes = 0
        arrays: dict[str, np.ndarray] = {}
        for name, (shape, dtype) in {**layout, **extra}.items():
            count = int(np.prod(shape))
            if memory is not None:
                arrays[name] = np.frombuffer(memory, dtype, count, self.nbytes).reshape(shape)
            self.nbytes += -(-count * np.dtype(dtype).itemsize // 64) * 64
        if memory is not None:
            self.buffers = Buffers(**{name: arrays[name] for name in layout})
            self.actions, self.seeds = arrays["actions"], arrays["seeds"]
            self.wanted, self.failed = arrays["wanted"], arrays["failed"]


def send(connection: socket.socket, value: object) -> None:
    """A JSON value with its length before it; for what is rare."""
    data = json.dumps(value).encode()
    connection.sendall(len(data).to_bytes(8, "big") + data)


def receive(connection: socket.socket) -> object:
    """What :func:`send` sent; ``EOFError`` if the other side is gone."""

    def exactly(n: int) -> bytes:
        parts = bytearray()
        while len(parts) < n:
            part = connection.recv(n - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    return json.loads(exactly(int.from_bytes(exactly(8), "big")))


def _on_terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def watch(lifeline: socket.socket) -> None:
    """End the process group when the trainer is gone, even if a simulator never returns."""
    with contextlib.suppress(OSError):
        lifeline.recv(1)  # returns only when the other end closes
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_GRACE_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def is_gone(lifeline: socket.socket) -> bool:
    """Whether the other end has closed."""
    lifeline.setblocking(False)
    try:
        return lifeline.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def work(
    connection: socket.socket,
    lifeline: socket.socket,
    make: Callable[[], ParallelAdapter],
    name: str,
    slots: list[int],
    limit: FaultLimit,
) -> None:
    """The life of a worker.

    Args:
        connection: commands come in, answers go out.
        lifeline: closes when the trainer is gone.
        make: makes one environment.
        name: what messages call it.
        slots: which rows of the shared memory are this worker's.
        limit: how many faults are put up with.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _on_terminate)
    envs: dict[int, SupervisedEnv] = {}
    try:
        threading.Thread(target=watch, args=(lifeline,), daemon=True).start()
        faults = Faults(name, limit)
        try:
            for slot in slots:
                envs[slot] = SupervisedEnv(make, slot, faults)
        except Exception as error:
            status = getattr(error, "exit_status", 1)
            text = str(error) if isinstance(error, QMixLightningError) else one_line(error)
            send(connection, {"error": text, "status": status})
            return
        spec = envs[slots[0]].spec
        send(connection, {"spec": spec.to_dict(), "versions": envs[slots[0]].versions})
        _, descriptors, _, _ = socket.recv_fds(connection, 16, 1)
        if not descriptors:
            return
        num_envs = int(receive(connection))  # type: ignore[call-overload]
        size = SharedBuffers(spec, num_envs, None).nbytes
        with mmap.mmap(descriptors[0], size) as memory:
            os.close(descriptors[0])
            try:
                _serve(connection, SharedBuffers(spec, num_envs, memory), envs, faults)
            except BufferError:
                return
    except (EOFError, OSError, SystemExit):
        pass  # the trainer is gone, or asked
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one that came now would leave the rest open
        for env in envs.values():
            env.close()
        if is_gone(lifeline):
            os.killpg(os.getpgrp(), signal.SIGKILL)  # nobody else is there to end what did not close


def _serve(connection: socket.socket, shared: SharedBuffers, envs: dict[int, SupervisedEnv], faults: Faults) -> None:
    block = EnvBlock(envs, shared.buffers)
    while True:
        command = connection.recv(1)
        if command in (QUIT, b""):
            return
        before = dict(faults.counts)
        try:
            wanted = shared.wanted.tolist()
            if command == RESET:
                block.reset(shared.seeds.tolist(), wanted)
            else:
                for slot in block.step(shared.actions.tolist(), wanted):
                    shared.failed[slot] = True
        except Exception as error:
            connection.sendall(FATAL)
            send(connection, one_line(error) if not isinstance(error, QMixLightningError) else str(error))
            continue
        if faults.counts == before:
            connection.sendall(DONE)
        else:
            connection.sendall(FAULTY)
            send(connection, {kind: faults.counts[kind] - before[kind] for kind in FAULT_KINDS})
