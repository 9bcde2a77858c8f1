"""Play greedy evaluation episodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from qmix_lightning.agents.policy import Policy
from qmix_lightning.environment import PrefetchesResets, VectorEnv
from qmix_lightning.rollout.recorder import LONG_EPISODE_STEPS, warn_of_long_episode
from qmix_lightning.rollout.rollout_policy import RolloutPolicy
from qmix_lightning.runtime import prng
from qmix_lightning.runtime.kill_points import reached
from qmix_lightning.runtime.prng import Purpose
from qmix_lightning.types import EpisodeStats, Observation
from qmix_lightning.vector.team_env import let_self_follow

__all__ = ["Evaluator", "evaluate_episodes"]


class Evaluator:
    """Player of a run's evaluations, on environments of its own that are created for the first one.

    Args:
        make_env: creates the environments for so many episodes.
        seed: the run's seed.
    """

    def __init__(self, make_env: Callable[[int], VectorEnv], *, seed: int) -> None:
        self._make_env = make_env
        self._seed = seed
        self.env: VectorEnv | None = None
        self._rollout_policy: RolloutPolicy | None = None

    def play(
        self,
        policy: Policy,
        episode_ids: list[int],
        *,
        device: torch.device | None,
        interrupted: Callable[[], bool],
    ) -> EpisodeStats:
        """Play greedy episodes with the present weights of ``policy``.

        Args:
            policy: the same object each time.
            episode_ids: see :func:`evaluate_episodes`.
            device: where it acts; ``None``: where the environments' tensors are.
            interrupted: ends the evaluation early.
        """
        if self.env is None or self._rollout_policy is None:
            self.env = self._make_env(len(episode_ids))
            where = self.env.device if device is None else device
            self._rollout_policy = RolloutPolicy(policy, self.env.num_envs, where)
        self._rollout_policy.publish(policy)
        reached("evaluation.begin")
        stats = evaluate_episodes(self.env, self._rollout_policy, episode_ids, seed=self._seed, interrupted=interrupted)
        reached("evaluation.played")
        return stats

    def close(self) -> None:
        """Close the environments; another evaluation would create them anew."""
        if self.env is not None:
            self.env.close()
            self.env = None


@torch.inference_mode()
def evaluate_episodes(
    env: VectorEnv,
    rollout_policy: RolloutPolicy,
    episode_ids: list[int],
    *,
    seed: int,
    epsilon: float = 0.0,
    interrupted: Callable[[], bool] = lambda: False,
) -> EpisodeStats:
    """Play greedy episodes, one for each id; the id and ``seed`` alone decide how an episode starts.

    With ``epsilon`` each agent takes any legal action with that chance, and a stochastic policy is sampled.

    Ids are dealt to the environments beforehand: taking whichever finish first would favour short episodes. The result
    is in the order of ``episode_ids``.
    """
    slots = env.num_envs
    queues = [list(range(s, len(episode_ids), slots)) for s in range(slots)]
    base, explore_base = prng.derive_key(seed, Purpose.EVAL_RESET), prng.derive_key(seed, Purpose.EXPLORE)
    results: dict[int, tuple[float, int, dict[str, float]]] = {}
    current = np.full(slots, -1)
    explore_keys, step_draws = np.zeros(slots, np.uint64), prng.StepDraws(slots, env.spec.n_agents, 2)
    lengths, returns = np.zeros(slots, np.int64), np.zeros(slots)
    observation: Observation | None = None
    prefetches = env if isinstance(env, PrefetchesResets) else None
    let_self_follow(env, rollout_policy.policy)
    may_go_on = env.spec.episode_limit is None
    while not interrupted():
        begin = np.array([current[s] < 0 and bool(queues[s]) for s in range(slots)])
        if begin.any():
            for s in np.flatnonzero(begin):
                current[s] = queues[s].pop(0)
            lengths[begin], returns[begin] = 0, 0.0
            ids = np.array([episode_ids[c] if c >= 0 else 0 for c in current], np.uint64)
            mask = torch.from_numpy(begin)
            explore_keys = prng.fold(explore_base, ids)
            if prefetches is not None:
                following = np.array([episode_ids[q[0]] if q else 0 for q in queues], np.uint64)
                prefetches.prefetch_resets(torch.from_numpy(prng.to_seed(prng.fold(base, following))))
            observation = env.reset(mask, torch.from_numpy(prng.to_seed(prng.fold(base, ids))))
            rollout_policy.begin(mask.to(env.device))
        active = current >= 0
        if not active.any():
            break
        assert observation is not None
        draws = None
        if epsilon > 0.0:
            draws = torch.from_numpy(step_draws(explore_keys, lengths)).to(env.device)
        outcome = env.step(rollout_policy.act(observation, epsilon, draws), torch.from_numpy(active))
        observation = outcome.next
        lengths[active] += 1
        if may_go_on and lengths.max() > LONG_EPISODE_STEPS:
            warn_of_long_episode(env.spec)
            may_go_on = False
        returns[active] += outcome.reward.numpy(force=True)[active]
        ended = (outcome.terminated | outcome.truncated).numpy(force=True) & active
        if outcome.failed is not None:
            failed = outcome.failed.numpy(force=True) & active
            for s in np.flatnonzero(failed):  # play it again
                queues[s].insert(0, int(current[s]))
                current[s] = -1
            ended &= ~failed
        for s in np.flatnonzero(ended):
            metrics = {name: float(values[s]) for name, values in outcome.metrics.items()}
            results[int(current[s])] = (float(returns[s]), int(lengths[s]), metrics)
            current[s] = -1
    stats = EpisodeStats()
    for index in sorted(results):
        stats.add(*results[index])
    return stats
