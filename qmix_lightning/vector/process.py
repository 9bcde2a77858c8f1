"""Step environments in worker processes: several a worker, shared memory for observations, one byte for a command."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qmix_lightning.errors import ConfigurationError, EnvironmentFault, RunError
from qmix_lightning.types import Observation, Transition
from qmix_lightning.vector.answers import Introduction, check_values, read_fatal, read_fault
from qmix_lightning.vector.buffer_views import transition_view
from qmix_lightning.vector.worker_process import Interpreter, WorkerProcess, working_folder
from qmix_lightning.worker.buffers import SharedBuffers
from qmix_lightning.worker.create_env import AdapterMaker
from qmix_lightning.worker.fault_tolerance import FaultLimit, Faults
from qmix_lightning.worker.loop import WorkOrder
from qmix_lightning.worker.protocol import DONE, FATAL, FAULTY, QUIT, RENDER, RESET, STEP, receive
from qmix_lightning.worker.supervisor import supervise

__all__ = ["ProcessVectorEnv"]


class ProcessVectorEnv:
    """A :class:`~qmix_lightning.environment.VectorEnv` whose environments run in worker processes.

    The same seeds and actions give the same episodes as stepping in this process. A worker that dies or does not
    answer in time is replaced; the episodes it had in flight are reported as failed.

    Args:
        make: creates one environment; sent to the workers, so it must be picklable.
        num_envs: environments, dealt to the workers in blocks.
        num_workers: processes; no more than environments.
        name: what messages call the environment.
        limit: how many faults are tolerated.
        timeout_s: how long a step or a reset of one worker may take.
        interpreter: the Python that runs the workers; ``None``: forks of this one.
        sink: takes what simulators write; ``None``: it goes to standard error.
    """

    def __init__(
        self,
        make: AdapterMaker,
        *,
        num_envs: int,
        num_workers: int,
        name: str,
        limit: FaultLimit,
        timeout_s: float,
        interpreter: Interpreter | None = None,
        sink: Callable[[bytes], None] | None = None,
    ) -> None:
        self._environment = make.to_json()
        supervise()  # before the fork server starts, which hands the family's name on
        self._name, self._limit, self._timeout = name, limit, timeout_s
        self._interpreter, self._sink = interpreter, sink
        self.num_envs = num_envs
        self.device = torch.device("cpu")
        self._faults = Faults(name, limit)
        self.faults = self._faults.counts
        self._workers: list[WorkerProcess | None] = []
        self._descriptor = -1  # of the shared memory
        self._blocks = [b.tolist() for b in np.array_split(np.arange(num_envs), min(num_workers, num_envs))]
        try:
            for block in self._blocks:
                self._workers.append(self._start(block))
            introduced = [self._introduction(worker) for worker in self._running]
            specs = [introduction.spec for introduction in introduced]
            self.spec, self.versions, self.seeded = specs[0], introduced[0].versions, introduced[0].seeded
            if any(spec != self.spec for spec in specs):
                raise ConfigurationError(f"environments of '{name}' that step together must be alike")
            self._create_shared_buffers()
        except BaseException:
            self._end_all()
            raise
        self._lost = np.zeros(num_envs, bool)  # episodes that went with their worker
        self._in_a_row = np.zeros(num_envs, np.int64)  # workers lost by each, without an episode that ended between

    @property
    def worker_pids(self) -> list[int]:
        """Return the process ids of the workers that run."""
        return [worker.pid for worker in self._running if worker.pid is not None]

    @property
    def _running(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers if worker is not None]

    def _start(self, block: list[int], started: bool = False) -> WorkerProcess:
        order = WorkOrder(
            environment=self._environment,
            slots=block,
            num_envs=self.num_envs,
            max_faults=self._limit.max_faults,
            fault_window_s=self._limit.window_s,
            started=started,
            path=working_folder(),
        )
        return WorkerProcess(order, self._interpreter, self._sink)

    def _introduction(self, worker: WorkerProcess) -> Introduction:
        who = f"a worker of '{self._name}'"
        if self._interpreter is not None:
            who += f" under {self._interpreter.path}"
        try:
            return worker.introduction(self._timeout)
        except TimeoutError:
            raise RunError(f"{who} did not start within {self._timeout:g} s{worker.words.shown()}") from None
        except (EOFError, OSError):
            how = worker.end()
            if self._interpreter is not None and not self._faults.started:
                raise ConfigurationError(f"rollout.python={self._interpreter.path} runs no worker: {how}") from None
            raise RunError(f"{who} died while it made its environments: {how}") from None
        except RunError as error:
            raise RunError(f"{who} cannot be used: {error}") from error

    def _create_shared_buffers(self) -> None:
        size = SharedBuffers(self.spec, self.num_envs, None).nbytes
        with tempfile.TemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as file:
            self._descriptor = os.dup(file.fileno())  # no name: nothing is left behind, however this ends
        os.ftruncate(self._descriptor, size)
        self._mapping = mmap.mmap(self._descriptor, size)
        self._shared = SharedBuffers(self.spec, self.num_envs, self._mapping)
        for worker in self._running:
            worker.share(self._descriptor)
        self._failed = torch.zeros(self.num_envs, dtype=torch.bool)
        self._transition = replace(transition_view(self._shared.buffers, self.spec), failed=self._failed)

    def reset(self, mask: Tensor, seeds: Tensor) -> Observation:
        """Start the episodes of ``seeds [E]`` where ``mask [E]``; workers that are gone are replaced first."""
        self._shared.seeds[:] = seeds.numpy()
        wanted = mask.numpy()
        self._lost[wanted] = False
        remaining = wanted.copy()
        while remaining.any():
            for index, block in enumerate(self._blocks):
                if self._workers[index] is None and remaining[block].any():
                    self._replace(index)
            lost = self._command(RESET, remaining)
            remaining &= lost
            self._lost |= lost & ~wanted
        self._faults.started |= bool(wanted.any())
        self._check(wanted & ~self._lost)
        return self._transition.next

    def step(self, actions: Tensor, active: Tensor) -> Transition:
        """Take one joint step with ``actions [E, N]`` where ``active [E]``."""
        buffers, wanted = self._shared.buffers, active.numpy()
        self._shared.actions[:] = actions.numpy(force=True)
        idle = ~wanted
        if idle.any():
            buffers.clear_outcome(idle)
        self._shared.failed[:] = False
        lost = self._command(STEP, wanted & ~self._lost)
        self._lost |= lost
        failed = (self._shared.failed | self._lost) & wanted
        if failed.any():
            buffers.clear_outcome(failed)
        self._check(wanted & ~failed)
        self._failed.numpy()[:] = failed
        if self._in_a_row.any():
            self._in_a_row[(buffers.terminated | buffers.truncated) & wanted] = 0
        return self._transition

    def _check(self, rows: np.ndarray) -> None:
        """Look at what another interpreter wrote in ``rows [E]``; this one's own worker code has looked already."""
        if self._interpreter is not None and (wrong := check_values(self._shared.buffers, rows)):
            raise EnvironmentFault(f"a worker of '{self._name}' under {self._interpreter.path} wrote {wrong}")

    def _command(self, command: bytes, wanted: np.ndarray) -> np.ndarray:
        """Send ``command`` for the ``wanted`` environments; return whose episodes were lost with a worker, ``[E]``."""
        self._shared.wanted[:] = wanted
        lost = np.zeros(self.num_envs, bool)
        commanded = []
        for index, worker in enumerate(self._workers):
            if worker is not None and wanted[worker.rows].any():
                try:
                    worker.connection.sendall(command)
                except OSError:
                    lost |= self._drop(index, "killed", "its process is gone")
                    continue
                commanded.append(index)
        for index in commanded:
            worker = self._workers[index]
            assert worker is not None
            try:
                answer = worker.connection.recv(1)
                if answer == DONE:
                    continue
                if answer == FATAL:
                    raise self._fatal(receive(worker.connection))
                if answer != FAULTY:
                    raise EOFError
                self._faults.add(*read_fault(receive(worker.connection)))  # handled there, and logged
            except TimeoutError:
                lost |= self._drop(index, "hung", f"no answer within {self._timeout:g} s{worker.words.shown()}")
            except (EOFError, ConnectionError):
                lost |= self._drop(index, "killed", worker.end())
        return lost

    def _fatal(self, message: Any) -> ConfigurationError | EnvironmentFault:
        """Return what ended a worker's environments for good, with the traceback from there."""
        told, configuration, trace = read_fatal(message)
        error = (ConfigurationError if configuration and not self._faults.started else EnvironmentFault)(told)
        error.add_note(f"In the worker:\n{trace}")
        return error

    def _drop(self, index: int, kind: str, cause: str) -> np.ndarray:
        worker = self._workers[index]
        assert worker is not None
        self._workers[index] = None
        worker.kill()
        lost = np.zeros(self.num_envs, bool)
        lost[worker.rows] = True
        self._in_a_row[lost] += 1
        self._faults.record(kind, f"worker {index}", cause, int(self._in_a_row[lost].max()))
        return lost

    def _replace(self, index: int) -> None:
        """Replace a worker that is gone; try until it works or the limit is reached."""
        while True:
            self._faults.back_off()
            block = self._blocks[index]
            worker = self._start(block, self._faults.started)
            try:
                if self._introduction(worker).spec != self.spec:
                    raise EnvironmentFault(f"environment '{self._name}', recreated, has other sizes than before")
                worker.share(self._descriptor)
                self._workers[index] = worker
                return
            except EnvironmentFault:
                worker.kill()
                raise
            except (RunError, ConfigurationError, OSError) as error:
                worker.kill()
                self._in_a_row[worker.rows] += 1
                in_a_row = int(self._in_a_row[worker.rows].max())
                self._faults.record("killed", f"worker {index}", str(error), in_a_row)

    def render(self, index: int) -> np.ndarray:
        """Return what environment ``index`` draws of its present state, ``[height, width, 3]`` uint8.

        Raises:
            ConfigurationError: it cannot draw.
            RunError: its worker is gone.
        """
        number = next(n for n, block in enumerate(self._blocks) if index in block)
        worker = self._workers[number]
        if worker is None:
            raise RunError(f"the worker of environment {index} is gone; it is replaced at the next reset")
        self._shared.wanted[:] = np.arange(self.num_envs) == index
        try:
            worker.connection.sendall(RENDER)
            answer = worker.connection.recv(1)
            if answer == DONE:
                return worker.receive_frame()
            if answer != FATAL:
                raise EOFError
            told, configuration, _ = read_fatal(receive(worker.connection))
        except TimeoutError as error:
            why = f"no answer within {self._timeout:g} s while it drew a picture{worker.words.shown()}"
            self._lost |= self._drop(number, "hung", why)
            raise RunError(
                f"the worker of environment {index} drew no picture within {self._timeout:g} s, and was ended"
            ) from error
        except (EOFError, OSError) as error:
            self._lost |= self._drop(number, "killed", f"while it drew a picture, {worker.end()}")
            raise RunError(f"the worker of environment {index} ended while it drew a picture") from error
        raise (ConfigurationError if configuration else RunError)(told)

    def close(self) -> None:
        """End every worker and what its environments started; may be called twice."""
        for worker in self._running:
            with contextlib.suppress(OSError):
                worker.connection.sendall(QUIT)
        deadline = time.monotonic() + 5
        for worker in self._running:
            worker.join(max(0.0, deadline - time.monotonic()))
        self._end_all()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _end_all(self) -> None:
        for worker in self._running:
            worker.kill()
        self._workers = [None] * len(self._workers)
