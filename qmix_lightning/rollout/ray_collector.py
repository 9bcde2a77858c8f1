"""Collect in Ray actors, on this machine or a cluster: each has a block of the slots, and their policy's copy.

Episodes are drawn by slot, so what is collected is what one collector with all slots would have collected. Where that
one's next step depends on which episodes have ended (an episode that ends changes what epsilon is counted from, or
completes a round of so many episodes), actors wait for each other at every step; in rounds of environment steps that
are collected while an update runs it does not, and they play a round by one call.

An actor that is lost, with its node or alone, costs the episodes that it had not delivered. Its slots wait until the
cluster has room for another one, which goes on behind the episodes that were lost; meanwhile the others play.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qmix_lightning.agents.policy import Policy
from qmix_lightning.errors import EnvironmentFault, RunError
from qmix_lightning.rollout.collector import Collected, deal_episodes, whole_round
from qmix_lightning.rollout.process_collector import to_tensors
from qmix_lightning.rollout.ray_actor import Answer, Order, Part
from qmix_lightning.rollout.ray_cluster import ActorSlot, RayCluster
from qmix_lightning.rollout.rollout_policy import frozen_copy, values_of
from qmix_lightning.runtime.text import error_line
from qmix_lightning.runtime.transfer import copy_values, on_host

__all__ = ["RayCollector"]

_POLL_S = 0.05


class RayCollector:
    """A :class:`~qmix_lightning.rollout.collector.Collector` in actors: the same methods and episodes.

    Args:
        cluster: where the actors are.
        policy: what acts; copied.
        seed: the run's seed.
        rank: this process's rank.
        round_episodes: as for the collector.
    """

    def __init__(
        self, cluster: RayCluster, policy: Policy, *, seed: int, rank: int, round_episodes: int | None = None
    ) -> None:
        self.cluster = cluster
        self._policy = frozen_copy(policy)
        self._seed, self._rank = seed, rank
        self._round_episodes = round_episodes
        self._episode = np.full(cluster.num_envs, -1)
        self._quota: np.ndarray | None = None  # episodes of the round that each slot still has to finish
        self._version = 0
        self._weights: Any = None
        self._publish()
        start = (self._policy, seed, rank, None)
        for answer in self._gather([(p, p.actor.start.remote(*start)) for p in cluster.places]).values():
            if answer.error is not None:
                raise answer.error
        self.begin_round()

    @property
    def _live(self) -> list[ActorSlot]:
        return [place for place in self.cluster.places if place.live]

    # -- policies ------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        """Put the policy's values into the object store, once; each actor fetches what it has not got."""
        values = [tensor.numpy() for tensor in values_of(self._policy)]
        self._version += 1
        self._weights = self.cluster.ray.put(values)

    def publish(self, policy: Policy) -> None:
        """Take over the parameters of ``policy``, and its statistics."""
        copy_values(values_of(self._policy), on_host(values_of(policy)))
        self._publish()

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`acting_weights` gave."""
        self._policy.load_state_dict(weights)
        self._publish()

    def acting_weights(self) -> dict[str, Tensor]:
        """Return the weights that act now, as :meth:`.Collector.acting_weights` does."""
        return {name: value.clone() for name, value in self._policy.state_dict().items()}

    # -- rounds --------------------------------------------------------------------------------------------------

    def begin_round(self) -> None:
        """Deal the episodes of the next round to the slots that have an actor, if there are rounds."""
        if self._round_episodes is None:
            return
        self._quota = np.zeros(self.cluster.num_envs, np.int64)
        self._deal(self._round_episodes)

    def _deal(self, episodes: int) -> None:
        """Add episodes to what the slots that have an actor are still to play."""
        assert self._quota is not None
        self._join()
        slots = np.concatenate([np.arange(self.cluster.num_envs)[place.slots] for place in self._live])
        self._quota[slots] += deal_episodes(episodes, len(slots))

    def collect(
        self, epsilon: float, *, max_steps: int | None = None, interrupted: Callable[[], bool] = lambda: False
    ) -> Collected:
        """Collect as :meth:`.Collector.collect` does."""
        total = Collected()
        while True:
            live = self._join()
            if self._quota is not None and not self._quota.any():
                return total
            limit = None if max_steps is None else self._vector_steps(max_steps - total.env_steps)
            part, fault = self._play(epsilon, limit if len(live) == 1 else 1, interrupted, until_end=True)
            total.extend(part)
            self._deal_again()
            if fault is not None:
                raise fault
            over = bool(part.episodes) or (max_steps is not None and total.env_steps >= max_steps)
            if over or part.interrupted or interrupted():
                return replace(total, interrupted=not over)

    def collect_round(
        self, epsilon: float, *, steps: int | None, episodes: int | None
    ) -> tuple[Collected, EnvironmentFault | None]:
        """Collect a round of so many joint steps or episodes, as :meth:`.Collector.collect_round` does."""
        if steps is None:
            return whole_round(lambda _: self.collect(epsilon), steps=None, episodes=episodes)
        total = Collected()
        while total.env_steps < steps:
            try:
                self._join()
                part, fault = self._play(epsilon, self._vector_steps(steps - total.env_steps), lambda: False)
            except EnvironmentFault as error:
                return replace(total, interrupted=True), error
            total.extend(part)
            if fault is not None:
                return replace(total, interrupted=True), fault
        return total, None

    def _deal_again(self) -> None:
        """Give what lost actors had left of a round to those that are there."""
        gone = [place for place in self.cluster.places if not place.live]
        if self._quota is None or not (owed := sum(int(self._quota[place.slots].sum()) for place in gone)):
            return
        for place in gone:
            self._quota[place.slots] = 0
        self._deal(owed)

    def _vector_steps(self, joint_steps: int) -> int:
        """Return how often all slots that have an actor step together to take so many joint steps."""
        return max(1, -(-joint_steps // sum(place.size for place in self._live)))

    def _play(
        self, epsilon: float, vector_steps: int | None, interrupted: Callable[[], bool], *, until_end: bool = False
    ) -> tuple[Collected, EnvironmentFault | None]:
        """Have every actor play, and join what they bring as if one had played.

        Actors that were interrupted at different steps are brought to the same one: a run that goes on from there
        takes as many steps of each as one that was not interrupted.
        """
        order = Order(0, self._version, [self._weights], epsilon, vector_steps, until_end)
        answers = self._order(dict.fromkeys(self._live, order), interrupted)
        reached = {place: answer.vector_steps for place, answer in answers.items()}
        parts = [(part.at, place.first, part) for place, answer in answers.items() for part in answer.parts]
        stopped = any(answer.interrupted for answer in answers.values())
        if stopped:
            behind = {p: replace(order, vector_steps=max(reached.values()) - n) for p, n in reached.items() if p.live}
            behind = {p: o for p, o in behind.items() if o.vector_steps}
            for place, answer in self._order(behind, lambda: False).items():
                parts += [(reached[place] + part.at, place.first, part) for part in answer.parts]
                answers[place].error = answers[place].error or answer.error
            stopped = vector_steps is None or max(reached.values()) < vector_steps
        errors = [answer.error for answer in answers.values() if answer.error is not None]
        for error in errors:
            if not isinstance(error, EnvironmentFault):
                raise error
        joined = _joined([part for *_, part in sorted(parts, key=lambda found: found[:2])])
        joined.interrupted = stopped
        joined.act_s, joined.env_s = (spent / max(1, len(answers)) for spent in (joined.act_s, joined.env_s))
        return joined, next((e for e in errors if isinstance(e, EnvironmentFault)), None)

    def _order(self, orders: Mapping[ActorSlot, Order], interrupted: Callable[[], bool]) -> dict[ActorSlot, Answer]:
        """Send orders and wait for the answers of those actors that are not lost."""
        asked = []
        for place, order in orders.items():
            place.orders += 1
            quota = None if self._quota is None else self._quota[place.slots]
            asked.append((place, place.actor.play.remote(replace(order, number=place.orders, quota=quota))))
        return self._gather(asked, interrupted)

    def _gather(
        self, asked: list[tuple[ActorSlot, Any]], interrupted: Callable[[], bool] = lambda: False
    ) -> dict[ActorSlot, Answer]:
        ray = self.cluster.ray
        refs = [ref for _, ref in asked]
        told = False
        while refs and len(ray.wait(refs, num_returns=len(refs), timeout=_POLL_S)[0]) < len(refs):
            if not told and interrupted():
                told = True
                for place, _ in asked:
                    place.actor.interrupt.options(concurrency_group="control").remote(place.orders)
        answers: dict[ActorSlot, Answer] = {}
        for place, ref in asked:
            try:
                answer: Answer = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                raise RunError(f"a collector failed: {error_line(error.cause or error)}") from error
            except ray.exceptions.RayError as error:
                self._lost(place, error)
                continue
            self.cluster.count_faults(place, answer)
            if answer.episode is not None:
                self._episode[place.slots] = answer.episode
            if answer.quota is not None and self._quota is not None:
                self._quota[place.slots] = answer.quota
            answers[place] = answer
        return answers

    def _lost(self, place: ActorSlot, cause: BaseException) -> None:
        """Give up an actor with its episodes in flight; another one goes on behind them."""
        self._episode[place.slots] += 1
        start = (self._policy, self._seed, self._rank, self._episode[place.slots])
        self.cluster.replace(place, cause, start)

    def _join(self) -> list[ActorSlot]:
        """Return who plays, with those that are ready by now; wait for one if nobody does."""
        self.cluster.await_actors(self._lost)
        return self._live

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all slots, as :meth:`.Collector.state_dict` does."""
        answers = self._request("state_dict", dict.fromkeys(self._live, ()))
        states = [
            answers[place].value if place in answers else self._state_without_actor(place)
            for place in self.cluster.places
        ]
        memories = zip(*(state["memory"] for state in states), strict=True)
        joined = {name: torch.cat([state[name] for state in states]) for name in ("episode", "ended", "last_action")}
        return {
            **joined,
            "actions": [actions for state in states for actions in state["actions"]],
            "memory": [torch.cat(memory) for memory in memories],
            "checksums": [checksum for state in states for checksum in state["checksums"]],
            **({} if self._quota is None else {"quota": torch.from_numpy(self._quota.copy())}),
        }

    def _state_without_actor(self, place: ActorSlot) -> dict[str, Any]:
        """Return the state of slots with no episode in flight."""
        return {
            "episode": torch.tensor(self._episode[place.slots]),
            "ended": torch.ones(place.size, dtype=torch.bool),
            "actions": [torch.zeros(0)] * place.size,
            "memory": [torch.zeros_like(memory) for memory in self._policy.initial_state(place.size)],
            "last_action": torch.full((place.size, self._policy.inputs.n_agents), -1),
            "checksums": [0] * place.size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Play the episodes in flight again in the actors, as :meth:`.Collector.load_state_dict` does."""
        self._load("load_state_dict", state)

    def restart(self, state: dict[str, Any]) -> None:
        """Drop the episodes in flight and begin new ones, as :meth:`.Collector.restart` does."""
        self._load("restart", state)

    def _load(self, name: str, state: dict[str, Any]) -> None:
        self._episode = state["episode"].numpy().copy()
        if self._quota is not None:
            self._quota = state["quota"].numpy().copy()
        self._request(name, {place: (_rows(state, place.slots),) for place in self._live})

    def _request(self, name: str, arguments: Mapping[ActorSlot, tuple[Any, ...]]) -> dict[ActorSlot, Answer]:
        answers = self._gather([(p, p.actor.request.remote(name, *given)) for p, given in arguments.items()])
        for answer in answers.values():
            if answer.error is not None:
                raise answer.error
        return answers


def _rows(state: Mapping[str, Any], slots: slice) -> dict[str, Any]:
    """Return the state of some slots; what is left of a round comes with an order."""
    return {
        name: [memory[slots] for memory in value] if name == "memory" else value[slots]
        for name, value in state.items()
        if name != "quota"
    }


def _joined(parts: list[Part]) -> Collected:
    """Return what several actors collected, as one would have."""
    total = Collected()
    for part in parts:
        total.extend(to_tensors(part.collected))
    return total
