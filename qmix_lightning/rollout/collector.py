"""Collect episodes: policy x vector environment -> episodes, for training and for evaluation.

Environments do not wait for each other: one that ends starts its next episode at the next joint step. Every draw is
keyed by (seed, rank, slot, episode, step), so an episode in flight is fully described by its slot, its number and its
actions so far; on resume it is played again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qmix_lightning.agents.policy import Policy
from qmix_lightning.environment import PrefetchesResets, VectorEnv
from qmix_lightning.errors import EnvironmentFault, RunError
from qmix_lightning.rollout.recorder import EpisodeRecorder
from qmix_lightning.rollout.rollout_policy import RolloutPolicy, values_of
from qmix_lightning.runtime import prng
from qmix_lightning.runtime.prng import Purpose
from qmix_lightning.types import Episode, EpisodeStats, Observation
from qmix_lightning.vector.team_env import TeamEnv

__all__ = ["Collected", "Collector", "deal_episodes", "whole_round"]

_log = logging.getLogger(__name__)


@dataclass
class Collected:
    """The result of one round: joint steps taken, and the episodes that ended (views, valid until the next round).

    ``interrupted``: it was interrupted before it was over; the next one is the rest of it.
    ``act_s`` and ``env_s``: seconds spent on acting, and on environments and recording what they returned.
    ``vector_steps``: steps that all environments took together, in one call of :meth:`Collector.collect`.
    """

    env_steps: int = 0
    episodes: list[Episode] = field(default_factory=list[Episode])
    stats: EpisodeStats = field(default_factory=EpisodeStats)
    interrupted: bool = False
    act_s: float = 0.0
    env_s: float = 0.0
    vector_steps: int = 0

    def extend(self, part: Collected) -> None:
        """Add what was collected after it, or beside it; whether that was interrupted is not taken over."""
        self.env_steps += part.env_steps
        self.episodes += part.episodes
        self.stats.extend(part.stats)
        self.act_s += part.act_s
        self.env_s += part.env_s


class Collector:
    """Collects training episodes from ``env`` with its own copy of the policy.

    Args:
        env: the environments; who made them closes them.
        policy: what acts; copied.
        seed: the run's seed.
        rank: this process's rank: ranks see different episodes.
        round_episodes: deal so many episodes to the slots beforehand, at the start and at each :meth:`begin_round`; a
            slot that has played its share waits (taking whichever finish first would favour short episodes). ``None``:
            every slot plays on.
        policy_device: where the policy acts; ``None``: where the environments' tensors are.
        first_slot: the slot of its first environment, where several collectors share a rank's slots: episodes depend
            on the slot, not on who plays it.
    """

    def __init__(
        self,
        env: VectorEnv,
        policy: Policy,
        *,
        seed: int,
        rank: int,
        round_episodes: int | None = None,
        policy_device: torch.device | None = None,
        first_slot: int = 0,
    ) -> None:
        self.env = env
        self._prefetches = env if isinstance(env, PrefetchesResets) else None
        self._team_env = env if isinstance(env, TeamEnv) else None
        self.rollout_policy = RolloutPolicy(policy, env.num_envs, policy_device or env.device)
        slots = np.arange(first_slot, first_slot + env.num_envs)
        purposes = Purpose.TRAIN_RESET, Purpose.EXPLORE
        slot_keys = np.stack([prng.derive_key(seed, rank, purpose, slots) for purpose in purposes])  # [2, E]
        self._keys_of = prng.EpisodeKeys(slot_keys)
        self._recorder = EpisodeRecorder(env.spec, env.num_envs, env.device)
        self._episode = np.full(env.num_envs, -1)  # number of each slot's current episode
        self._ended = np.ones(env.num_envs, bool)
        self._observation: Observation | None = None
        # Of the present episodes and of those that follow, [E] each: what they draw from.
        self._episode_keys, self._following_keys = slot_keys[1], slot_keys[1]
        self._step_draws = prng.StepDraws(env.num_envs, env.spec.n_agents, 2)
        self._round_episodes = round_episodes
        self._quota: np.ndarray | None = None  # episodes of the round that each slot still has to finish
        self.begin_round()
        self._tell_opponents()

    def begin_round(self) -> None:
        """Deal the episodes of the next round, if there are rounds."""
        if self._round_episodes is not None:
            self.deal(deal_episodes(self._round_episodes, self.env.num_envs))

    def deal(self, quota: np.ndarray) -> None:
        """Set the episodes that each slot still has to finish, ``[E]``; where it has none, it waits."""
        self._quota = quota.copy()

    def progress(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the number of each slot's episode, ``[E]``, and what is left of a round that was dealt."""
        return self._episode.copy(), None if self._quota is None else self._quota.copy()

    def _begin(self, mask: np.ndarray) -> None:
        episode = self._episode + mask
        reset_keys, episode_keys = self._keys_of(np.stack([episode, episode + 1]))  # [2, E] each
        seeds, following = torch.from_numpy(prng.to_seed(reset_keys))  # [E] each
        torch_mask = torch.from_numpy(mask)
        if self._prefetches is not None:
            self._prefetches.prefetch_resets(following)
        self._observation = self.env.reset(torch_mask, seeds)
        # Only now: a reset that fails for good leaves everything as it was, to be saved.
        self._episode = episode
        self._episode_keys, self._following_keys = episode_keys
        self.rollout_policy.begin(torch_mask.to(self.env.device))
        self._recorder.begin(mask, self._observation)
        self._ended[mask] = False

    def _draws(self) -> Tensor:
        draws = self._step_draws(self._episode_keys, self._recorder.t, self._following_keys)  # [E, N, 2]
        return torch.from_numpy(draws).to(self.env.device)

    def collect(
        self,
        epsilon: float,
        *,
        max_steps: int | None = None,
        max_vector_steps: int | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Collected:
        """Step until an episode ends, ``max_steps`` joint steps were taken, or ``interrupted()``.

        ``max_vector_steps`` ends it too, after so many steps of all environments together. All episodes that end in
        the same joint step are returned together; none where the share of a round is played.
        """
        collected, began = Collected(), time.perf_counter()
        exploring = epsilon > 0.0 or self.rollout_policy.policy.stochastic
        while True:
            begin = self._ended if self._quota is None else self._ended & (self._quota > 0)
            if begin.any():
                self._begin(begin.copy())
            active = ~self._ended
            playing = int(active.sum())
            if playing == 0:
                break
            assert self._observation is not None
            waiting = torch.from_numpy(self._ended).to(self.env.device) if playing < self.env.num_envs else None
            before = time.perf_counter()
            actions = self.rollout_policy.act(self._observation, epsilon, self._draws() if exploring else None, waiting)
            collected.act_s += time.perf_counter() - before
            collected.episodes, collected.stats, dropped = self._advance(actions, active)
            collected.env_steps += playing - dropped
            collected.vector_steps += 1
            over = bool(collected.episodes) or (max_steps is not None and collected.env_steps >= max_steps)
            over = over or collected.vector_steps == max_vector_steps
            if over or interrupted():
                collected.interrupted = not over
                break
        collected.env_s = time.perf_counter() - began - collected.act_s
        return collected

    def _advance(self, actions: Tensor, active: np.ndarray) -> tuple[list[Episode], EpisodeStats, int]:
        """Take a joint step; return the episodes that ended, and the steps of those that were dropped with a fault."""
        outcome = self.env.step(actions, torch.from_numpy(active))
        self._observation = outcome.next
        self._recorder.step(actions, outcome, outcome.reward.numpy(force=True), active)
        terminated = outcome.terminated.numpy(force=True)
        truncated = outcome.truncated.numpy(force=True)
        ended = (terminated | truncated) & active
        dropped = 0
        if outcome.failed is not None and (failed := outcome.failed.numpy(force=True)).any():
            # What a failing simulator said last means nothing: its episode was never played.
            failed = failed & active
            dropped = int(self._recorder.t[failed].sum())
            ended &= ~failed
            self._ended |= failed
        finished, stats = [], EpisodeStats()
        if not ended.any():
            return finished, stats, dropped
        for e in ended.nonzero()[0].tolist():
            finished.append(self._recorder.episode(e, bool(terminated[e]), bool(truncated[e])))
            metrics = {name: float(values[e]) for name, values in outcome.metrics.items()}
            stats.add(float(self._recorder.returns[e]), int(self._recorder.t[e]), metrics)
        self._ended |= ended
        if self._quota is not None:
            self._quota[ended] -= 1
        return finished, stats, dropped

    def publish(self, policy: Policy) -> None:
        """Act by the parameters of ``policy`` from now on."""
        self.publish_values(values_of(policy))

    def publish_values(self, values: Sequence[Tensor]) -> None:
        """Act from now on by what :func:`values_of` gives of a policy."""
        self.rollout_policy.set_parameters(values)
        self._tell_opponents()

    def _tell_opponents(self) -> None:
        if self._team_env is not None:
            self._team_env.opponents.publish(self.rollout_policy.policy, self._team_env.env_steps)

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Act by what :meth:`acting_weights` gave."""
        self.rollout_policy.restore(weights)

    def acting_weights(self) -> dict[str, Tensor]:
        """Return the weights that act now; the policy itself may have learned since they were published."""
        return {name: v.to("cpu", copy=True) for name, v in self.rollout_policy.policy.state_dict().items()}

    def collect_round(
        self,
        epsilon: float,
        *,
        steps: int | None,
        episodes: int | None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> tuple[Collected, EnvironmentFault | None]:
        """Collect a round of so many joint steps or episodes; see :func:`whole_round`."""
        return whole_round(
            lambda left: self.collect(epsilon, max_steps=left, interrupted=interrupted), steps=steps, episodes=episodes
        )

    def state_dict(self) -> dict[str, Any]:
        """Return episode numbers, the actions of episodes in flight, the agents' memories, and the rest of a round."""
        in_flight = [
            torch.zeros(0) if self._ended[e] else self._recorder.actions_so_far(e) for e in range(self.env.num_envs)
        ]
        # What a slot that waits still computes depends on what it last saw, and means nothing.
        playing = torch.from_numpy(~self._ended).to(self.rollout_policy.device)
        memory = [s.where(playing[:, None, None], s.new_zeros(())) for s in self.rollout_policy.state]
        last_action = self.rollout_policy.last_action.where(playing[:, None], -1)
        quota = {} if self._quota is None else {"quota": torch.from_numpy(self._quota.copy())}
        return {
            "episode": torch.from_numpy(self._episode.copy()),
            "ended": torch.from_numpy(self._ended.copy()),
            "actions": in_flight,
            "memory": [s.to("cpu", copy=True) for s in memory],
            "last_action": last_action.to("cpu", copy=True),
            "checksums": [0 if self._ended[e] else self._recorder.checksum(e) for e in range(self.env.num_envs)],
            **quota,
            **({} if self._team_env is None else {"team": self._team_env.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Play the episodes in flight again, up to where they were.

        Where an environment says that no episode can be played again, they are dropped, and new ones begin.

        Raises:
            RunError: an episode came out differently: the environment is not deterministic given its seed.
        """
        fresh = state["ended"].numpy()
        if not getattr(self.env, "seeded", True) and not fresh.all():
            _log.warning(
                "%d episodes in flight are dropped: this environment's episodes are no function of their seeds, so "
                "they cannot be played again",
                int((~fresh).sum()),
            )
            self.restart(state)
            return
        # Episodes that had ended begin their next one at the next round, as they would have.
        self._episode = state["episode"].numpy().copy()
        playing = ~fresh
        if self._team_env is not None:
            self._team_env.begin_replay(state["team"])
        if playing.any():
            self._episode[playing] -= 1
            self._begin(playing)
            self._ended = fresh.copy()
            lengths = np.array([len(a) for a in state["actions"]])
            for t in range(int(lengths.max())):
                active = (lengths > t) & playing
                actions = torch.zeros(self.env.num_envs, self.env.spec.n_agents, dtype=torch.int64)
                for e in np.flatnonzero(active):
                    actions[e] = state["actions"][e][t]
                self._advance(actions.to(self.env.device), active)
                if (self._ended & playing).any():  # it ended early, or what was legal is not and it failed
                    break
            same = all(self._recorder.checksum(e) == state["checksums"][e] for e in np.flatnonzero(playing).tolist())
            if not same or (self._ended & playing).any():
                raise RunError(
                    "the episodes in flight could not be repeated: this environment is not deterministic given its "
                    "seed, so the run cannot be resumed exactly; rollout.on_resume=restart begins them anew"
                )
            # The last step showed nothing meaningful of slots that had caught up before it; this shows all.
            none = torch.zeros(self.env.num_envs, dtype=torch.bool)
            self._observation = self.env.reset(none, torch.zeros(self.env.num_envs, dtype=torch.int64))
        self._ended = fresh.copy()
        self._load_rest(state)
        self.rollout_policy.state = tuple(m.to(self.rollout_policy.device) for m in state["memory"])
        self.rollout_policy.last_action = state["last_action"].to(self.rollout_policy.device)

    def restart(self, state: dict[str, Any]) -> None:
        """Drop the episodes in flight and begin new ones; for environments that cannot repeat an episode."""
        self._episode = state["episode"].numpy().copy()
        self._ended[:] = True
        self._load_rest(state)

    def _load_rest(self, state: dict[str, Any]) -> None:
        """Load what goes on beyond the episodes in flight: the rest of a round, and the opponents' versions."""
        if self._quota is not None:
            self._quota = state["quota"].numpy().copy()
        if self._team_env is not None:
            self._team_env.end_replay(state["team"])


def whole_round(
    collect: Callable[[int | None], Collected], *, steps: int | None, episodes: int | None
) -> tuple[Collected, EnvironmentFault | None]:
    """Collect so many joint steps or episodes, whichever is given; interrupted where the environments fail for good.

    Args:
        collect: collects a part of the round, of no more than so many joint steps.
        steps: ``None`` if episodes are counted.
        episodes: ``None`` if steps are counted.
    """
    total = Collected()
    while not total.interrupted and (total.env_steps < (steps or 0) or len(total.episodes) < (episodes or 0)):
        try:
            part = collect(None if steps is None else steps - total.env_steps)
        except EnvironmentFault as error:
            total.interrupted = True
            return total, error
        # The collector reuses the buffers of what it returned.
        part.episodes = [episode.map(Tensor.clone) for episode in part.episodes]
        total.extend(part)
        total.interrupted = part.interrupted
    return total, None


def deal_episodes(episodes: int, slots: int) -> np.ndarray:
    """Return how many of ``episodes`` each slot plays, ``[slots]``, the first ones one more if they do not divide."""
    each, rest = divmod(episodes, slots)
    return each + (np.arange(slots) < rest).astype(np.int64)
