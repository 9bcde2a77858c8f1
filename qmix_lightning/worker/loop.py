"""Run a worker process: some environments, stepped on command, written to shared memory.

A worker ends when it receives ``QUIT`` or when the trainer is gone (its sockets close), and with everything that its
environments started: it leads a process group of its own.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import FrameType

from qmix_lightning.errors import ConfigurationError, QMixLightningError
from qmix_lightning.runtime.text import one_line
from qmix_lightning.worker.blame import traceback_of
from qmix_lightning.worker.buffers import SharedBuffers
from qmix_lightning.worker.fault_tolerance import FAULT_KINDS, EnvBlock, FaultLimit, Faults, FaultTolerantEnv
from qmix_lightning.worker.lifeline import is_gone, watch
from qmix_lightning.worker.parallel_adapter import ParallelAdapter
from qmix_lightning.worker.protocol import DONE, FATAL, FAULTY, QUIT, RESET, receive, receive_descriptor, send
from qmix_lightning.worker.supervisor import join_family

__all__ = ["work"]


def _on_terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def work(
    connection: socket.socket,
    lifeline: socket.socket,
    stderr: Connection,
    make: Callable[[], ParallelAdapter],
    name: str,
    slots: list[int],
    limit: FaultLimit,
    family: str,
    started: bool,
) -> None:
    """Run a worker: create its environments, serve commands until the trainer ends it or is gone, close everything.

    Args:
        connection: receives commands, sends answers.
        lifeline: closes when the trainer is gone.
        stderr: becomes the standard error, of which the trainer keeps the end.
        make: creates one environment.
        name: what messages call it.
        slots: which rows of the shared memory are this worker's.
        limit: how many faults are tolerated.
        family: the name that everything started here carries, see :mod:`qmix_lightning.worker.supervisor`.
        started: environments of this kind have been seen to start.
    """
    os.setpgid(0, 0)
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    join_family(family)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _on_terminate)
    envs: dict[int, FaultTolerantEnv] = {}
    try:
        threading.Thread(target=watch, args=(lifeline,), daemon=True).start()
        faults = Faults(name, limit, started)
        try:
            for slot in slots:
                envs[slot] = FaultTolerantEnv(make, slot, faults)
        except Exception as error:
            status = getattr(error, "exit_status", 1)
            text = str(error) if isinstance(error, QMixLightningError) else one_line(error)
            send(connection, {"error": text, "status": status})
            return
        spec = envs[slots[0]].spec
        first = envs[slots[0]]
        send(connection, {"spec": spec.to_dict(), "versions": first.versions, "seeded": first.seeded})
        descriptor = receive_descriptor(connection)
        if descriptor is None:
            return
        num_envs = int(receive(connection))  # type: ignore[call-overload]
        # Never closed: a simulator may keep an exception, its frames and so the views of the memory, and closing would
        # raise BufferError. It goes with the process.
        mapping = mmap.mmap(descriptor, SharedBuffers(spec, num_envs, None).nbytes)
        os.close(descriptor)
        _serve(connection, SharedBuffers(spec, num_envs, mapping), envs, faults)
    except (EOFError, OSError, SystemExit):
        pass  # the trainer is gone, or ended this worker
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one that came now would leave the rest unclosed
        for env in envs.values():
            env.close()
        if is_gone(lifeline):
            os.killpg(os.getpgrp(), signal.SIGKILL)  # nobody else is there to end what did not close


def _serve(connection: socket.socket, shared: SharedBuffers, envs: dict[int, FaultTolerantEnv], faults: Faults) -> None:
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
            told = str(error) if isinstance(error, QMixLightningError) else one_line(error)
            configuration = isinstance(error, ConfigurationError)
            send(connection, {"error": told, "configuration": configuration, "traceback": traceback_of(error)})
            continue
        if faults.counts == before:
            connection.sendall(DONE)
        else:
            connection.sendall(FAULTY)
            counts = {kind: faults.counts[kind] - before[kind] for kind in FAULT_KINDS}
            send(connection, {"counts": counts, "cause": faults.last})
