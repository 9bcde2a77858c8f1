"""Connect to a Ray cluster, or start one on this machine, and keep a run's collector actors on it.

A cluster is trusted ground: whoever reaches its ports runs code on it. Nothing here opens one to the network: a local
cluster has no dashboard and listens on loopback.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from qmix_lightning.environment import VectorEnv
from qmix_lightning.errors import ConfigurationError, EnvironmentFault, RunError
from qmix_lightning.rollout.ray_actor import Answer, CollectorActor, import_ray
from qmix_lightning.runtime.text import error_line
from qmix_lightning.types import EnvSpec
from qmix_lightning.worker.fault_tolerance import FAULT_KINDS, FaultLimit, Faults
from qmix_lightning.worker.supervisor import supervise

__all__ = ["ActorSlot", "RayCluster"]

_CLOSE_S = 10.0
_CONNECT_S = 5.0


class ActorSlot:
    """The place of an actor: the slots that it plays, and the actor, while there is one.

    Attributes:
        number: of the actor, for messages.
        first: its first slot.
        size: how many it plays.
        actor: Ray's handle.
        opening: the answer that a new actor owes before it can play; ``None`` once it came.
        seen_faults: what the present actor has counted so far.
        losses: actors lost in a row, without an answer between them.
        orders: how many the actors of this place were given, see :class:`~qmix_lightning.rollout.ray_actor.Order`.
    """

    def __init__(self, number: int, first: int, size: int) -> None:
        self.number = number
        self.first, self.size = first, size
        self.actor: Any = None
        self.opening: Any = None
        self.seen_faults: dict[str, int] = {}
        self.losses = 0
        self.orders = 0

    @property
    def live(self) -> bool:
        """Return whether it plays."""
        return self.actor is not None and self.opening is None

    @property
    def slots(self) -> slice:
        """Return the slots that it plays."""
        return slice(self.first, self.first + self.size)


class RayCluster:
    """Environments in actors of Ray: their sizes are known here, and only the actors step them.

    Args:
        make_env: creates so many environments; sent to the actors.
        name: what messages call them.
        num_envs: of all actors together.
        num_collectors: actors; each has a block of the slots.
        address: of a cluster, as :func:`ray.init` takes it; ``None`` starts one on this machine.
        num_cpus: cores that an actor reserves.
        start_s: how long environments may take to be created.
        limit: lost actors, and faults within them, that the run tolerates.
    """

    def __init__(
        self,
        make_env: Callable[[int], VectorEnv],
        *,
        name: str,
        num_envs: int,
        num_collectors: int,
        address: str | None,
        num_cpus: int,
        start_s: float,
        limit: FaultLimit,
    ) -> None:
        self.ray = import_ray()
        self.num_envs = num_envs
        self._make_env = make_env
        self._name = name
        self._num_cpus = num_cpus
        self._start_s = start_s
        options = {"num_cpus": num_cpus, "max_restarts": 0, "concurrency_groups": {"control": 1}}
        self._actor_class = self.ray.remote(**options)(CollectorActor)
        self._lost = Faults(name, limit, started=True)
        self._actor_faults = dict.fromkeys(FAULT_KINDS, 0)
        self._owned = self._connect(address, num_collectors * num_cpus)
        each, rest = divmod(num_envs, num_collectors)
        sizes = [each + (i < rest) for i in range(num_collectors)]
        self.places = [ActorSlot(i, sum(sizes[:i]), size) for i, size in enumerate(sizes)]
        try:
            self._check_room(num_collectors * num_cpus)
            described = self._describe()
        except BaseException:
            self.close()
            raise
        self.spec = EnvSpec.from_dict(described["spec"])
        self.versions: dict[str, str] = described["versions"]

    @property
    def faults(self) -> dict[str, int]:
        """Return the faults so far by kind; an actor that is lost counts as killed."""
        return {kind: self._lost.counts[kind] + self._actor_faults[kind] for kind in FAULT_KINDS}

    def _connect(self, address: str | None, cores: int) -> bool:
        """Connect, unless this process is; return whether to disconnect at the end."""
        if self.ray.is_initialized():
            return False
        if address is not None:
            _check_address(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        supervise()  # what a local cluster starts ends with this process, however that ends
        local = {
            "num_cpus": cores,
            "num_gpus": 0,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "_system_config": {"worker_niceness": 0},  # else actors give way to everything, the trainer too
        }
        try:
            with _own_signals():
                self.ray.init(address=address or "local", logging_level="ERROR", **({} if address else local))
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = f"ray.address={address} cannot be reached" if address else "Ray does not start here"
            raise ConfigurationError(f"{where}: {error_line(error)}") from error
        return True

    def _check_room(self, cores: int) -> None:
        there = int(self.ray.cluster_resources().get("CPU", 0))
        if there < cores:
            raise ConfigurationError(
                f"the cluster has {there} core(s), and rollout.num_collectors={len(self.places)} of "
                f"ray.num_cpus={self._num_cpus} need {cores}"
            )

    def _describe(self) -> dict[str, Any]:
        """Start all actors, and compare what they are."""
        for place in self.places:
            self._create(place)
        opened = [place.actor.describe.remote() for place in self.places]
        ready, _ = self.ray.wait(opened, num_returns=len(opened), timeout=self._start_s)
        if len(ready) < len(opened):
            raise RunError(f"the collectors of '{self._name}' did not start within {self._start_s:g} s")
        try:
            answers: list[Answer] = self.ray.get(opened)
        except self.ray.exceptions.RayError as error:
            raise RunError(f"a collector of '{self._name}' did not start: {error_line(error)}") from error
        for answer in answers:
            if answer.error is not None:
                raise answer.error
        first, *others = (answer.value for answer in answers)
        for other in others:
            for what in ("package", "spec"):
                if other[what] != first[what]:
                    raise ConfigurationError(f"the cluster's nodes have different versions of '{self._name}' ({what})")
            if other["build"] != first["build"]:
                print(
                    f"the cluster's nodes compute differently ({first['build']}; {other['build']}): episodes may "
                    "depend, by rounding, on where they are played",
                    file=sys.stderr,
                )
        return first

    def _create(self, place: ActorSlot) -> None:
        place.actor = self._actor_class.remote(partial(self._make_env, place.size), place.first)
        place.seen_faults = {}

    def replace(self, place: ActorSlot, cause: BaseException, start: tuple[Any, ...]) -> None:
        """Count a lost actor and ask the cluster for another, which plays once there is room for it.

        Args:
            place: whose actor was lost.
            cause: what Ray says.
            start: arguments of the new actor's ``start``.

        Raises:
            EnvironmentFault: there were too many.
        """
        with suppress(self.ray.exceptions.RayError):
            self.ray.kill(place.actor)  # one that cannot be reached may live on
        place.actor = place.opening = None
        place.losses += 1
        why = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        self._lost.record("killed", f"collector {place.number}", why, in_a_row=place.losses)
        self._create(place)
        place.opening = place.actor.start.remote(*start)

    def await_actors(self, lost: Callable[[ActorSlot, BaseException], None]) -> None:
        """Let new actors play that are ready by now; wait for one, if there is none that plays.

        Args:
            lost: called for one that was lost before it was ready.

        Raises:
            EnvironmentFault: none came in time, or too many were lost.
        """
        deadline = time.monotonic() + self._start_s
        while waiting := {place.opening: place for place in self.places if place.opening is not None}:
            alone = not any(place.live for place in self.places)
            ready, _ = self.ray.wait(list(waiting), timeout=1.0 if alone else 0)
            for ref in ready:
                self._join(waiting[ref], lost)
            if not ready and not alone:
                return
            if not ready and time.monotonic() > deadline:
                raise EnvironmentFault(
                    f"the cluster had no room for a collector of '{self._name}' within {self._start_s:g} s; the last "
                    f"one was lost: {self._lost.last}"
                )

    def _join(self, place: ActorSlot, lost: Callable[[ActorSlot, BaseException], None]) -> None:
        try:
            answer: Answer = self.ray.get(place.opening)
        except self.ray.exceptions.RayError as error:
            lost(place, error)
            return
        if answer.error is not None:
            raise answer.error
        place.opening = None
        print(f"collector {place.number} of '{self._name}' plays again", file=sys.stderr, flush=True)

    def count_faults(self, place: ActorSlot, answer: Answer) -> None:
        """Count what an actor has counted since its last answer, which shows that it lives."""
        place.losses = 0
        for kind, number in answer.faults.items():
            self._actor_faults[kind] += number - place.seen_faults.get(kind, 0)
        place.seen_faults = answer.faults

    def close(self) -> None:
        """Close the environments and end the actors; may be called twice."""
        if not self.ray.is_initialized():
            return
        with suppress(self.ray.exceptions.RayError):
            closing = []
            for place in filter(lambda place: place.live, self.places):
                place.actor.interrupt.options(concurrency_group="control").remote(place.orders)
                closing.append(place.actor.close.remote())
            if closing:
                self.ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_S)
        for place in self.places:
            if place.actor is not None:
                with suppress(self.ray.exceptions.RayError):
                    self.ray.kill(place.actor)
            place.actor = place.opening = None
        if self._owned:
            self._owned = False
            with _own_signals():
                self.ray.shutdown()


def _check_address(address: str) -> None:
    """Refuse an address that nothing answers at: Ray itself tries for minutes.

    Raises:
        ConfigurationError: says why.
    """
    host, _, port = address.rpartition(":")
    try:
        if host:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"ray.address={address} cannot be reached: {error_line(error)}") from error


@contextmanager
def _own_signals() -> Generator[None]:
    """Keep this process's answers to signals: Ray sets its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
