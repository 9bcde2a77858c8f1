"""The part of a Ray collector that runs in an actor: some of the slots, their environments, and a copy of the policy.

What happened in a call comes back as a value, mistakes too, so that every error of Ray's own means a lost actor.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import qmix_lightning
from qmix_lightning.agents.policy import Policy
from qmix_lightning.environment import VectorEnv
from qmix_lightning.rollout.collector import Collected, Collector
from qmix_lightning.rollout.process_collector import describe, portable, to_arrays
from qmix_lightning.runtime.near_modules import import_extra
from qmix_lightning.runtime.resources import keep_freed_memory
from qmix_lightning.worker.import_path import look_in

__all__ = ["Answer", "CollectorActor", "Order", "Part", "import_ray"]


def import_ray() -> Any:
    """Return the package ``ray``, which is not needed to import this one.

    Raises:
        MissingDependencyError: with the line that installs it.
    """
    import_extra("ray.exceptions", "rollout.collector=ray needs Ray", "ray")
    return importlib.import_module("ray")


@dataclass(frozen=True)
class Order:
    """What an actor is to play.

    ``number`` counts an actor's orders, so that an interruption ends the order that it is meant for and no other.
    ``weights`` is a reference to the policy's values in the object store, which only an actor fetches that has not
    their ``version`` yet. ``vector_steps`` of all its environments together are taken, or what is left of ``quota``
    played; with ``until_end`` no more than up to the first episode that ends.
    """

    number: int
    version: int
    weights: Sequence[Any]
    epsilon: float
    vector_steps: int | None = None
    until_end: bool = False
    quota: np.ndarray | None = None


@dataclass
class Part:
    """Episodes that ended in the same step of an order, the ``at``-th."""

    at: int
    collected: Collected


@dataclass
class Answer:
    """What playing an order gave, and where the actor stands now; ``quota`` is what it has left of a round."""

    parts: list[Part] = field(default_factory=list[Part])
    vector_steps: int = 0
    interrupted: bool = False
    error: Exception | None = None
    faults: dict[str, int] = field(default_factory=dict[str, int])
    episode: np.ndarray | None = None
    quota: np.ndarray | None = None
    value: Any = None


class CollectorActor:
    """Collects in some of a rank's slots; an actor of Ray's once :func:`ray.remote` has wrapped it.

    Args:
        make_env: creates the environments; called with the first request, so that what it raises is an answer.
        first_slot: of those that it plays.
    """

    def __init__(self, make_env: Callable[[], VectorEnv], first_slot: int) -> None:
        look_in([])  # Ray has put the command's folder on the path
        torch.set_num_threads(1)
        keep_freed_memory()
        self._make_env = make_env
        self._first_slot = first_slot
        self._env: VectorEnv | None = None
        self._collector: Collector | None = None
        self._version = -1
        self._interrupted = 0

    def interrupt(self, number: int) -> None:
        """End the order of this number with its next step; runs beside it, in a thread of its own."""
        self._interrupted = number

    def describe(self) -> Answer:
        """Create the environments and return their sizes, and the versions of what is here."""
        return self._answer(lambda _: self._describe())

    def start(self, policy: Policy, seed: int, rank: int, episode: np.ndarray | None) -> Answer:
        """Create the collector; with ``episode [E]`` its slots go on behind the episodes of these numbers."""
        return self._answer(lambda _: self._start(policy, seed, rank, episode))

    def request(self, name: str, *arguments: Any) -> Answer:
        """Call a method of the collector."""
        return self._answer(lambda _: getattr(self._ready, name)(*arguments))

    def play(self, order: Order) -> Answer:
        """Play as ordered."""
        answer = self._answer(lambda answer: self._play(order, answer))
        # Of no other answer: a round that was dealt meanwhile is known here with the next order.
        _, answer.quota = self._ready.progress()
        return answer

    def close(self) -> None:
        """Close the environments."""
        if self._env is not None:
            self._env.close()

    @property
    def _ready(self) -> Collector:
        assert self._collector is not None, "the collector was not started"
        return self._collector

    def _answer(self, work: Callable[[Answer], Any]) -> Answer:
        """Return the answer that ``work`` is given to fill, with its value, or with what it raised."""
        answer = Answer()
        try:
            answer.value = work(answer)
        except Exception as error:
            answer.error = portable(error)
        answer.faults = dict(getattr(self._env, "faults", {}))
        if self._collector is not None:
            answer.episode, _ = self._collector.progress()
        return answer

    def _describe(self) -> dict[str, Any]:
        self._env = self._make_env()
        return {
            **describe(self._env, "ray"),
            "package": qmix_lightning.__version__,
            "build": f"torch {torch.__version__}, CPU capability {torch.backends.cpu.get_cpu_capability()}",
        }

    def _start(self, policy: Policy, seed: int, rank: int, episode: np.ndarray | None) -> None:
        if self._env is None:
            self._env = self._make_env()
        self._collector = Collector(self._env, policy, seed=seed, rank=rank, first_slot=self._first_slot)
        if episode is not None:
            self._collector.restart({"episode": torch.tensor(episode)})

    def _play(self, order: Order, answer: Answer) -> None:
        """Play an order; what it gave so far is in ``answer`` if the environments fail for good."""
        collector = self._ready
        if order.version != self._version:
            arrays = import_ray().get(order.weights[0])
            collector.publish_values([torch.tensor(values) for values in arrays])
            self._version = order.version
        if order.quota is not None:
            collector.deal(order.quota)
        while order.vector_steps is None or answer.vector_steps < order.vector_steps:
            part = collector.collect(
                order.epsilon,
                max_vector_steps=None if order.vector_steps is None else order.vector_steps - answer.vector_steps,
                interrupted=lambda: self._interrupted == order.number,
            )
            answer.vector_steps += part.vector_steps
            # The collector reuses its buffers.
            part.episodes = [episode.map(torch.Tensor.clone) for episode in part.episodes]
            answer.parts.append(Part(answer.vector_steps, to_arrays(part)))
            answer.interrupted = part.interrupted
            played_out = part.vector_steps == 0
            if part.interrupted or played_out or (order.until_end and part.episodes):
                return
