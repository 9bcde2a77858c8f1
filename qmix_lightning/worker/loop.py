"""Run a worker process: some environments, stepped on command, written to shared memory.

A worker ends when it receives ``QUIT`` or when the trainer is gone (its sockets close), and with everything that its
environments started: it leads a process group of its own.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import platform
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np

from qmix_lightning.errors import ConfigurationError, RunError
from qmix_lightning.runtime.text import message_of
from qmix_lightning.worker.blame import traceback_of
from qmix_lightning.worker.buffers import SharedBuffers
from qmix_lightning.worker.create_env import AdapterMaker
from qmix_lightning.worker.declared import is_seeded, versions_of
from qmix_lightning.worker.fault_tolerance import FAULT_KINDS, EnvBlock, FaultLimit, Faults, FaultTolerantEnv
from qmix_lightning.worker.frames import read_frame
from qmix_lightning.worker.import_path import look_in
from qmix_lightning.worker.lifeline import is_gone, watch
from qmix_lightning.worker.protocol import (
    DONE,
    FATAL,
    FAULTY,
    QUIT,
    RENDER,
    RESET,
    VERSION,
    receive,
    receive_descriptor,
    send,
    send_bytes,
)
from qmix_lightning.worker.supervisor import join_family

__all__ = ["WorkOrder", "work"]


@dataclass(frozen=True)
class WorkOrder:
    """What a worker is told first; plain containers, sent as JSON.

    Attributes:
        environment: how one is made: what :meth:`AdapterMaker.to_json` returned.
        slots: which rows of the shared memory are this worker's.
        num_envs: rows of the shared memory.
        max_faults, fault_window_s: the limit on faults, see :class:`FaultLimit`.
        started: environments of this kind have been seen to start.
        path: folders in which modules are looked for after all others.
        family: the name that everything started here carries, see :mod:`qmix_lightning.worker.supervisor`.
        protocol: version of the wire that the trainer speaks.
    """

    environment: dict[str, Any]
    slots: list[int]
    num_envs: int
    max_faults: int
    fault_window_s: float
    started: bool
    path: list[str]
    family: str = ""
    protocol: int = VERSION


def _on_terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def work(connection: socket.socket, lifeline: socket.socket, output: int, log: int) -> None:
    """Run a worker: create its environments, serve commands until the trainer ends it or is gone, close everything.

    Args:
        connection: receives a :class:`WorkOrder` and commands, sends answers.
        lifeline: closes when the trainer is gone.
        output: file descriptor that becomes standard output and error: what simulators write.
        log: file descriptor for this package's own messages to the user.
    """
    with contextlib.suppress(PermissionError):  # it leads a session already
        os.setpgid(0, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    _log_to(log)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _on_terminate)
    envs: dict[int, FaultTolerantEnv] = {}
    try:
        threading.Thread(target=watch, args=(lifeline,), daemon=True).start()
        order = WorkOrder(**receive(connection))  # type: ignore[arg-type]
        join_family(order.family)
        look_in(order.path)
        faults = Faults(order.environment["name"], FaultLimit(order.max_faults, order.fault_window_s), order.started)
        try:
            _create(envs, order, faults)
        except Exception as error:
            status = getattr(error, "exit_status", 1)
            send(connection, {"protocol": VERSION, "error": message_of(error), "status": status})
            return
        spec = envs[order.slots[0]].spec
        send(connection, _introduction(envs[order.slots[0]]))
        descriptor = receive_descriptor(connection)
        if descriptor is None:
            return
        # Never closed: a simulator may keep an exception, its frames and so the views of the memory, and closing would
        # raise BufferError. It goes with the process.
        mapping = mmap.mmap(descriptor, SharedBuffers(spec, order.num_envs, None).nbytes)
        os.close(descriptor)
        _serve(connection, SharedBuffers(spec, order.num_envs, mapping), envs, faults)
    except (EOFError, OSError, SystemExit):
        pass  # the trainer is gone, or ended this worker
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one that came now would leave the rest unclosed
        for env in envs.values():
            env.close()
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        if is_gone(lifeline):
            os.killpg(os.getpgrp(), signal.SIGKILL)  # nobody else is there to end what did not close


def _log_to(descriptor: int) -> None:
    """Show this package's warnings where the trainer shows its own, apart from what simulators write."""
    handler = logging.StreamHandler(os.fdopen(descriptor, "w", buffering=1))
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("qmix_lightning")
    logger.handlers[:] = [handler]
    logger.propagate = False
    with contextlib.suppress(AttributeError, ValueError):  # a line each, so that the last ones are not lost by a kill
        stdout: Any = sys.stdout
        stdout.reconfigure(line_buffering=True)


def _create(envs: dict[int, FaultTolerantEnv], order: WorkOrder, faults: Faults) -> None:
    if order.protocol != VERSION:
        raise RunError(f"the worker speaks version {VERSION} of the protocol, the trainer {order.protocol}")
    make = AdapterMaker(**order.environment)
    for slot in order.slots:
        envs[slot] = FaultTolerantEnv(make, slot, faults)


def _introduction(env: FaultTolerantEnv) -> dict[str, Any]:
    return {
        "protocol": VERSION,
        "spec": env.spec.to_dict(),
        "versions": versions_of(env.env),
        "seeded": is_seeded(env.env),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _serve(connection: socket.socket, shared: SharedBuffers, envs: dict[int, FaultTolerantEnv], faults: Faults) -> None:
    block = EnvBlock(envs, shared.buffers)
    while True:
        command = connection.recv(1)
        if command in (QUIT, b""):
            return
        before = dict(faults.counts)
        frame = None
        try:
            wanted = shared.wanted.tolist()
            if command == RESET:
                block.reset(shared.seeds.tolist(), wanted)
            elif command == RENDER:
                frame = _render(envs[wanted.index(True)])
            else:
                for slot in block.step(shared.actions.tolist(), wanted):
                    shared.failed[slot] = True
        except Exception as error:
            connection.sendall(FATAL)
            configuration = isinstance(error, ConfigurationError)
            told = {"error": message_of(error), "configuration": configuration, "traceback": traceback_of(error)}
            send(connection, told)
            continue
        if faults.counts == before:
            connection.sendall(DONE)
        else:
            connection.sendall(FAULTY)
            counts = {kind: faults.counts[kind] - before[kind] for kind in FAULT_KINDS}
            send(connection, {"counts": counts, "cause": faults.last})
        if frame is not None:
            send(connection, list(frame.shape))
            send_bytes(connection, frame.tobytes())


def _render(env: FaultTolerantEnv) -> np.ndarray:
    """Return a frame ``[height, width, 3]`` uint8 of an environment."""
    return read_frame(env.render(), f"environment '{env.name}'")
