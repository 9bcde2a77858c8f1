"""Notice a game between sides that would be trained as one team."""

from __future__ import annotations

import numpy as np
import torch

from qmix_lightning.environment import VectorEnv
from qmix_lightning.types import EnvSpec
from qmix_lightning.worker.teams import side_of, sides_by_name

__all__ = ["one_team_of_sides", "opposing_sides"]

_STEPS = 100
_OPPOSED = -0.5
"""The correlation of two sides' rewards below which they oppose each other."""


def opposing_sides(env: VectorEnv) -> tuple[str, ...]:
    """Return the names of sides whose rewards oppose each other; empty if none do, as far as is seen.

    Agents' names may say so (``red`` and ``blue``, an ``adversary``). Otherwise the rewards of random play in the first
    environment do: those of agents that are called differently are compared over some steps.
    """
    spec = env.spec
    if spec.n_agents < 2:
        return ()
    if named := sides_by_name(spec.agent_names):
        return named
    sides = list(dict.fromkeys(map(side_of, spec.agent_names)))
    if len(sides) < 2 or not getattr(env, "seeded", True):
        return ()
    rewards = _random_rewards(env)  # [T, N]
    of_side = np.array([sides.index(side_of(name)) for name in spec.agent_names])
    sums = np.stack([rewards[:, of_side == i].sum(1) for i in range(len(sides))])  # [sides, T]
    moving = [i for i in range(len(sides)) if sums[i].std() > 0.0]
    for i in moving:
        for j in moving:
            if i < j and np.corrcoef(sums[i], sums[j])[0, 1] < _OPPOSED:
                return sides[i], sides[j]
    return ()


def _random_rewards(env: VectorEnv) -> np.ndarray:
    """Return the agents' rewards ``[T, N]`` of random episodes in the first environment."""
    generator = torch.Generator().manual_seed(0)
    first = torch.arange(env.num_envs) == 0
    found, ended, episode = [], True, 0
    shown = None
    while len(found) < _STEPS:
        if ended:
            shown, episode = env.reset(first, torch.full((env.num_envs,), episode)), episode + 1
        assert shown is not None
        legal = torch.where(first[:, None, None], shown.avail_actions.cpu(), True)
        actions = torch.multinomial(legal.flatten(0, 1).float(), 1, generator=generator).view(env.num_envs, -1)
        outcome = env.step(actions.to(env.device), first)
        if outcome.agent_reward is None:
            return np.zeros((1, env.spec.n_agents))
        failed = outcome.failed is not None and bool(outcome.failed[0])
        if not failed:
            found.append(outcome.agent_reward[0].numpy(force=True).copy())
        shown, ended = outcome.next, failed or bool(outcome.terminated[0] | outcome.truncated[0])
    return np.stack(found)


def one_team_of_sides(name: str, spec: EnvSpec, sides: tuple[str, ...]) -> str:
    """Return the line that says so, and what to do."""
    side = sides[0]
    members = [agent for agent in spec.agent_names if side_of(agent) == side]
    pattern = members[0] if len(members) == 1 else f"{side}_*"
    if spec.natively_batched:
        cure = "it is batched by nature and takes no env.team, so it must itself show one side and play the others"
    else:
        cure = f"env.team=[{pattern}] trains one side, env.opponents is how the others act"
    return (
        f"environment '{name}' is a game between sides ({', '.join(sides)}), and all of its agents are trained as one "
        f"team that earns the rewards of every side: {cure}"
    )
