"""Collect in a process of its own: the rollout policy acts there, and whole rounds of episodes come back.

With ``rollout.asynchronous`` a round is collected while an update runs. In a thread the two share one interpreter, and
small operations spend their time waiting for it; a process has its own. It collects what the collector in this process
would have: everything is drawn by keys, and both act by the same functions.

The process ends when it is asked to close, and when the trainer is gone: it leads a process group of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qmix_lightning.agents.policy import Policy
from qmix_lightning.environment import VectorEnv
from qmix_lightning.errors import ConfigurationError, EnvironmentFault, QMixLightningError, RunError
from qmix_lightning.rollout.collector import Collected, Collector
from qmix_lightning.rollout.rollout_policy import frozen_copy, values_of
from qmix_lightning.runtime.resources import keep_freed_memory
from qmix_lightning.runtime.text import error_line
from qmix_lightning.runtime.transfer import on_host
from qmix_lightning.types import EnvSpec
from qmix_lightning.worker.blame import traceback_of
from qmix_lightning.worker.import_path import look_in
from qmix_lightning.worker.lifeline import is_gone, watch
from qmix_lightning.worker.supervisor import supervise

__all__ = ["CollectorProcess", "RemoteCollector", "describe", "portable", "to_arrays", "to_tensors"]

_POLL_S = 0.05
_JOIN_S = 10.0


class CollectorProcess:
    """A process with environments and their collector: their sizes are known here, and only it steps them.

    Args:
        make: creates the environments; sent to the process, so it must be picklable.
        name: what messages call them.
        start_s: how long they may take to be created.
    """

    def __init__(self, make: Callable[[], VectorEnv], *, name: str, start_s: float) -> None:
        self.faults: dict[str, int] = {}
        supervise()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["qmix_lightning.worker.loop"])
        self._connection, theirs = context.Pipe()
        self._lifeline, their_lifeline = socket.socketpair()
        # Not a daemon: its environments may live in workers of its own.
        self.process = context.Process(target=_work, args=(theirs, their_lifeline, make), name=f"{name}-collector")
        try:
            self.process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self._connection.close()
            self._lifeline.close()
            raise ConfigurationError(
                f"environment '{name}' cannot be sent to the collector's process ({error}): register its factory by "
                "'package.module:name', or use rollout.collector=inline"
            ) from error
        finally:
            theirs.close()
            their_lifeline.close()
        # A command that ends before its run begins would wait for a process that nothing asks to end.
        atexit.register(self.close)
        try:
            if not self._connection.poll(start_s):
                raise RunError(f"the collector of '{name}' did not start within {start_s:g} s")
            started = self._receive()
        except BaseException:
            self.close()
            raise
        self.spec = EnvSpec.from_dict(started["spec"])
        self.versions: dict[str, str] = started["versions"]

    def send(self, name: str, *arguments: Any) -> None:
        """Send the collector's process a request that has no answer.

        What it raises, the next :meth:`request` raises.
        """
        self._post(name, arguments, answered=False)

    def request(self, name: str, *arguments: Any, interrupted: Callable[[], bool] | None = None) -> Any:
        """Send the collector's process a request and return its answer; raise what the process raised.

        Raises:
            RunError: the process is gone.
        """
        return self.submit(name, *arguments)(interrupted)

    def submit(self, name: str, *arguments: Any) -> Callable[[Callable[[], bool] | None], Any]:
        """Begin a :meth:`request`; return what waits for its answer, to be called before anything else is requested."""
        self._post(name, arguments, answered=True)
        return self._answer

    def _post(self, name: str, arguments: tuple[Any, ...], *, answered: bool) -> None:
        try:
            self._connection.send_bytes(pickle.dumps((name, arguments, answered), protocol=5))
        except OSError:
            raise self._gone() from None

    def _answer(self, interrupted: Callable[[], bool] | None) -> Any:
        stop_polling = interrupted is None
        try:
            while not stop_polling and not self._connection.poll(_POLL_S):
                if interrupted is not None and interrupted():
                    self._interrupt()
                    stop_polling = True
        except OSError:
            raise self._gone() from None
        return self._receive()

    def _interrupt(self) -> None:
        """Have the round under way end with its next joint step."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.process.pid, signal.SIGUSR1)

    def _receive(self) -> Any:
        try:
            kind, value, self.faults = pickle.loads(self._connection.recv_bytes())  # from our own process
        except (EOFError, OSError):
            raise self._gone() from None
        if kind == "error":
            raise value
        return value

    def _gone(self) -> RunError:
        self.process.join(1)
        code = self.process.exitcode
        how = "gone" if code is None else f"killed by signal {-code}" if code < 0 else f"ended with status {code}"
        return RunError(
            f"the collector's process is {how}, and its episodes in flight are lost; go on from the last checkpoint "
            "with ckpt_path=last"
        )

    def close(self) -> None:
        """End the process and everything that its environments started; may be called twice."""
        atexit.unregister(self.close)
        if self._lifeline.fileno() < 0:
            return
        deadline = time.monotonic() + _JOIN_S
        self._interrupt()
        with contextlib.suppress(OSError, EOFError):
            self._connection.send_bytes(pickle.dumps(("close", (), False), protocol=5))
            while time.monotonic() < deadline:
                if self._connection.poll(_POLL_S):
                    self._connection.recv_bytes()  # what nobody waits for any more; it could not end before
        self.process.join(max(0.0, deadline - time.monotonic()))
        self._connection.close()
        self._lifeline.close()
        if self.process.is_alive() and self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.join(5)


class RemoteCollector:
    """A :class:`~qmix_lightning.rollout.collector.Collector` in another process: the same methods and episodes.

    Args:
        process: where it collects.
        policy: what acts; copied.
        seed: the run's seed.
        rank: this process's rank.
        round_episodes: as for the collector.
    """

    def __init__(
        self, process: CollectorProcess, policy: Policy, *, seed: int, rank: int, round_episodes: int | None = None
    ) -> None:
        self.process = process
        settings = {"seed": seed, "rank": rank, "round_episodes": round_episodes}
        process.request("start", frozen_copy(policy), settings)

    def publish(self, policy: Policy) -> None:
        """Take over the parameters of ``policy``, and its statistics."""
        self.process.send("publish", [t.numpy() for t in on_host(values_of(policy))])

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`acting_weights` gave."""
        self.process.request("restore", dict(weights))

    def acting_weights(self) -> dict[str, Tensor]:
        """Return the weights that act now, as :meth:`.Collector.acting_weights` does."""
        return self.process.request("acting_weights")

    def begin_round(self) -> None:
        """Deal the episodes of the next round, if there are rounds."""
        self.process.request("begin_round")

    def collect(
        self, epsilon: float, *, max_steps: int | None = None, interrupted: Callable[[], bool] = lambda: False
    ) -> Collected:
        """Collect in the process, as :meth:`.Collector.collect` does."""
        return to_tensors(self.process.request("collect", epsilon, max_steps, interrupted=interrupted))

    def collect_round(
        self, epsilon: float, *, steps: int | None, episodes: int | None
    ) -> tuple[Collected, EnvironmentFault | None]:
        """Collect a round in the process, as :meth:`.Collector.collect_round` does."""
        return self.submit_round(epsilon, steps=steps, episodes=episodes)()

    def submit_round(
        self, epsilon: float, *, steps: int | None, episodes: int | None
    ) -> Callable[[], tuple[Collected, EnvironmentFault | None]]:
        """Begin the collector's ``collect_round``; return what waits for it."""
        wait = self.process.submit("collect_round", epsilon, steps, episodes)

        def result() -> tuple[Collected, EnvironmentFault | None]:
            collected, fault = wait(None)
            return to_tensors(collected), fault

        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the process's collector, as :meth:`.Collector.state_dict` does."""
        return self.process.request("state_dict")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Play the episodes in flight again in the process, as :meth:`.Collector.load_state_dict` does."""
        self.process.request("load_state_dict", state)

    def restart(self, state: dict[str, Any]) -> None:
        """Drop the episodes in flight and begin new ones in the process, as :meth:`.Collector.restart` does."""
        self.process.request("restart", state)


# -- the other side -----------------------------------------------------------------------------------------------


class _Served:
    """The collector of the process, whose methods answer the requests."""

    def __init__(self, env: VectorEnv) -> None:
        self.env = env
        self.collector: Any = None
        self.interrupted = False

    def interrupt(self, *_: object) -> None:
        self.interrupted = True

    def start(self, policy: Policy, settings: dict[str, Any]) -> None:
        self.collector = Collector(self.env, policy, **settings)

    def publish(self, values: list[Any]) -> None:
        self.collector.publish_values([torch.from_numpy(v) for v in values])

    def collect(self, epsilon: float, max_steps: int | None) -> Collected:
        return to_arrays(self.collector.collect(epsilon, max_steps=max_steps, interrupted=lambda: self.interrupted))

    def collect_round(
        self, epsilon: float, steps: int | None, episodes: int | None
    ) -> tuple[Collected, EnvironmentFault | None]:
        collected, fault = self.collector.collect_round(  # interrupted when it is closed, by nothing else
            epsilon, steps=steps, episodes=episodes, interrupted=lambda: self.interrupted
        )
        return to_arrays(collected), fault

    def answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return getattr(self if hasattr(type(self), name) else self.collector, name)(*arguments)
        finally:
            self.interrupted = False  # only now: the signal may be here before the request that it is for


def describe(env: VectorEnv, collector: str) -> dict[str, Any]:
    """Return an environment's sizes and versions, in plain containers.

    Args:
        env: of a collector elsewhere than in the trainer's process.
        collector: the value of ``rollout.collector``.

    Raises:
        ConfigurationError: its tensors are not on the CPU.
    """
    if env.device.type != "cpu":
        raise ConfigurationError(
            f"the environments are on {env.device.type}: rollout.collector={collector} is for those on a CPU"
        )
    return {"spec": env.spec.to_dict(), "versions": dict(getattr(env, "versions", {}))}


def to_arrays(collected: Collected) -> Collected:
    """Return the episodes with arrays instead of tensors, which pickle in one piece each."""
    return replace(collected, episodes=[e.map(lambda t: t.numpy(force=True)) for e in collected.episodes])


def to_tensors(collected: Collected) -> Collected:
    """Return what :func:`to_arrays` gave with tensors again."""
    return replace(collected, episodes=[e.map(_tensor) for e in collected.episodes])


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _work(connection: Connection, lifeline: socket.socket, make: Callable[[], VectorEnv]) -> None:
    """Run the collector's process: create the environments, then answer requests until it is closed."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    threading.Thread(target=watch, args=(lifeline,), daemon=True).start()
    look_in([])  # the path is inherited, how packages are found on it is not
    torch.set_num_threads(1)
    keep_freed_memory()
    env: VectorEnv | None = None

    def send(kind: str, value: Any) -> None:
        faults = dict(getattr(env, "faults", {}))
        connection.send_bytes(pickle.dumps((kind, value, faults), protocol=5))

    try:
        try:
            env = make()
            send("done", describe(env, "process"))
        except Exception as error:
            send("error", portable(error))
            return
        served = _Served(env)
        signal.signal(signal.SIGUSR1, served.interrupt)
        failed: Exception | None = None  # of a request that has no answer
        while True:
            name, arguments, answered = pickle.loads(connection.recv_bytes())  # from the trainer, which started this
            if name == "close":
                return
            value = None
            try:
                if failed is None:
                    value = served.answer(name, arguments)
            except Exception as error:
                failed = portable(error)
            if answered:
                send("done", value) if failed is None else send("error", failed)
                failed = None
    except (EOFError, OSError):
        pass  # the trainer is gone
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if env is not None:
            env.close()
        if is_gone(lifeline):
            os.killpg(os.getpgrp(), signal.SIGKILL)


def portable(error: Exception) -> Exception:
    """Return an exception that another process can load and show as one line."""
    if type(error).__module__ == QMixLightningError.__module__:
        if error.__cause__ is not None:  # left behind by pickle
            error.add_note(f"In the collector's process:\n{traceback_of(error)}")
        return error
    return RunError(f"the collector failed: {error_line(error)}")
