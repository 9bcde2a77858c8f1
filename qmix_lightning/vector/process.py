"""Step environments in worker processes: several a worker, shared memory for observations, one byte for a command."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pickle import PicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qmix_lightning.errors import ConfigurationError, EnvironmentFault, RunError
from qmix_lightning.types import EnvSpec, Observation, Transition
from qmix_lightning.worker.buffers import SharedBuffers
from qmix_lightning.worker.fault_tolerance import FaultLimit, Faults
from qmix_lightning.worker.last_words import LastWords
from qmix_lightning.worker.loop import work
from qmix_lightning.worker.parallel_adapter import ParallelAdapter
from qmix_lightning.worker.protocol import DONE, FATAL, FAULTY, QUIT, RESET, STEP, receive, send
from qmix_lightning.worker.supervisor import end_family, supervise

__all__ = ["ProcessVectorEnv"]


class _Worker:
    """The trainer's side of one worker process."""

    def __init__(
        self,
        context: Any,
        make: Callable[[], ParallelAdapter],
        name: str,
        slots: list[int],
        limit: FaultLimit,
        started: bool,
    ):
        self.rows = slice(slots[0], slots[-1] + 1)  # dealt in blocks
        self.connection, theirs = socket.socketpair()
        self.lifeline, their_lifeline = socket.socketpair()
        self.words = LastWords()
        their_words = Connection(os.dup(self.words.descriptor), readable=False)
        self.words.release()
        self._family = f"worker-{os.getpid()}-{os.urandom(4).hex()}"
        self.process = context.Process(
            target=work,
            args=(theirs, their_lifeline, their_words, make, name, slots, limit, self._family, started),
            daemon=True,
            name=f"{name}-worker",
        )
        try:
            self.process.start()
        except (PicklingError, AttributeError, TypeError) as error:
            self.connection.close()
            self.lifeline.close()
            raise ConfigurationError(
                f"environment '{name}' cannot be sent to worker processes ({error}): register its factory by "
                "'package.module:name', or use rollout=sync"
            ) from error
        finally:
            theirs.close()
            their_lifeline.close()
            their_words.close()

    def spec(self, timeout: float) -> EnvSpec:
        """Return the sizes of the worker's environments, once it has created them.

        ``timeout``, in seconds, holds for every later request too.
        """
        self.connection.settimeout(timeout)
        answer: Any = receive(self.connection)
        if "error" in answer:
            error = ConfigurationError(answer["error"])
            error.exit_status = answer["status"]
            raise error
        self.versions: dict[str, str] = answer["versions"]
        self.seeded: bool = answer["seeded"]
        return EnvSpec.from_dict(answer["spec"])

    def share(self, descriptor: int, num_envs: int) -> None:
        socket.send_fds(self.connection, [b"m"], [descriptor])
        send(self.connection, num_envs)

    def kill(self) -> None:
        """End the worker and everything that its environments started."""
        self.connection.close()
        self.lifeline.close()
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)  # the group that the worker made, its games included
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.join(5)
            end_family(self._family)  # what has left the group


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
    """

    def __init__(
        self,
        make: Callable[[], ParallelAdapter],
        *,
        num_envs: int,
        num_workers: int,
        name: str,
        limit: FaultLimit,
        timeout_s: float,
    ) -> None:
        supervise()  # before the fork server starts, which hands the family's name on
        self._make, self._name, self._limit, self._timeout = make, name, limit, timeout_s
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["qmix_lightning.worker.loop"])
        self.num_envs = num_envs
        self.device = torch.device("cpu")
        self._faults = Faults(name, limit)
        self.faults = self._faults.counts
        self._workers: list[_Worker | None] = []
        self._blocks = [b.tolist() for b in np.array_split(np.arange(num_envs), min(num_workers, num_envs))]
        try:
            for block in self._blocks:
                self._workers.append(_Worker(self._context, make, name, block, limit, False))
            specs = [self._spec_of(worker) for worker in self._workers if worker is not None]
            self.spec = specs[0]
            first = self._workers[0]
            self.versions = first.versions if first is not None else {}
            self.seeded = first is None or first.seeded
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
        return [worker.process.pid for worker in self._workers if worker is not None and worker.process.pid is not None]

    def _spec_of(self, worker: _Worker) -> EnvSpec:
        try:
            return worker.spec(self._timeout)
        except TimeoutError:
            words = worker.words.shown()
            raise RunError(f"a worker of '{self._name}' did not start within {self._timeout:g} s{words}") from None
        except (EOFError, OSError):
            how = _end_of(worker)
            raise RunError(f"a worker of '{self._name}' died while it made its environments: {how}") from None

    def _create_shared_buffers(self) -> None:
        size = SharedBuffers(self.spec, self.num_envs, None).nbytes
        with tempfile.TemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as file:
            self._descriptor = os.dup(file.fileno())  # no name: nothing is left behind, however this ends
        os.ftruncate(self._descriptor, size)
        self._mapping = mmap.mmap(self._descriptor, size)
        self._shared = shared = SharedBuffers(self.spec, self.num_envs, self._mapping)
        for worker in self._workers:
            if worker is not None:
                worker.share(self._descriptor, self.num_envs)
        buffers = shared.buffers
        self._observation = Observation(
            obs=torch.from_numpy(buffers.obs),
            state=torch.from_numpy(buffers.state),
            avail_actions=torch.from_numpy(buffers.avail_actions),
            agent_mask=torch.from_numpy(buffers.agent_mask),
        )
        self._failed = torch.zeros(self.num_envs, dtype=torch.bool)
        self._transition = Transition(
            next=self._observation,
            reward=torch.from_numpy(buffers.reward),
            terminated=torch.from_numpy(buffers.terminated),
            truncated=torch.from_numpy(buffers.truncated),
            agent_reward=torch.from_numpy(buffers.agent_reward),
            metrics={n: torch.from_numpy(buffers.metrics[m]) for m, n in enumerate(self.spec.episode_metrics)},
            failed=self._failed,
        )

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
        return self._observation

    def step(self, actions: Tensor, active: Tensor) -> Transition:
        """Take one joint step with ``actions [E, N]`` where ``active [E]``."""
        buffers, wanted = self._shared.buffers, active.numpy()
        self._shared.actions[:] = actions.numpy(force=True)
        idle = ~wanted
        if idle.any():
            buffers.reward[idle], buffers.terminated[idle], buffers.truncated[idle] = 0.0, False, False
        self._shared.failed[:] = False
        lost = self._command(STEP, wanted & ~self._lost)
        self._lost |= lost
        failed = (self._shared.failed | self._lost) & wanted
        if failed.any():
            buffers.reward[failed], buffers.terminated[failed], buffers.truncated[failed] = 0.0, False, False
        self._failed.numpy()[:] = failed
        if self._in_a_row.any():
            self._in_a_row[(buffers.terminated | buffers.truncated) & wanted] = 0
        return self._transition

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
                if answer == b"":
                    lost |= self._drop(index, "killed", _end_of(worker))
                    continue
                message: Any = receive(worker.connection)
                if answer == FATAL:
                    raise self._fatal(message)
                if answer == FAULTY:  # handled there, and logged
                    self._faults.add(message["counts"], message["cause"])
            except TimeoutError:
                lost |= self._drop(index, "hung", f"no answer within {self._timeout:g} s{worker.words.shown()}")
            except (EOFError, ConnectionError):
                lost |= self._drop(index, "killed", _end_of(worker))
        return lost

    def _fatal(self, message: Any) -> ConfigurationError | EnvironmentFault:
        """Return what ended a worker's environments for good, with the traceback from there."""
        configuration = message["configuration"] and not self._faults.started
        error = (ConfigurationError if configuration else EnvironmentFault)(message["error"])
        error.add_note(f"In the worker:\n{message['traceback']}")
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
            worker = _Worker(self._context, self._make, self._name, block, self._limit, self._faults.started)
            try:
                if self._spec_of(worker) != self.spec:
                    raise EnvironmentFault(f"environment '{self._name}', recreated, has other sizes than before")
                worker.share(self._descriptor, self.num_envs)
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

    def close(self) -> None:
        """End every worker and what its environments started; may be called twice."""
        for worker in self._workers:
            if worker is not None:
                with contextlib.suppress(OSError):
                    worker.connection.sendall(QUIT)
        deadline = time.monotonic() + 5
        for worker in self._workers:
            if worker is not None:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        self._end_all()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    _descriptor = -1

    def _end_all(self) -> None:
        for worker in self._workers:
            if worker is not None:
                worker.kill()
        self._workers = [None] * len(self._workers)


def _end_of(worker: _Worker) -> str:
    worker.process.join(1)
    code = worker.process.exitcode
    if code is None:
        how = "it closed its connection"
    else:
        how = f"killed by signal {-code}" if code < 0 else f"ended by itself with status {code}"
    return how + worker.words.shown()
