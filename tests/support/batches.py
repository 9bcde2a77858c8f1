"""Random trajectories, and settings of what learns from them."""

from __future__ import annotations

import torch

from qmix_lightning.algorithms.value_learner import ValueSettings
from qmix_lightning.types import TrajectoryBatch
from support.small_policies import OBS, A, N, S

LENGTHS = [9, 1, 4, 6, 3]
VALUES = {
    "gamma": 0.9,
    "double_q": True,
    "returns": "one_step",
    "n_steps": 3,
    "td_lambda": 0.6,
    "normalize_rewards": "none",
    "normalize_values": False,
    "target_update_mode": "hard",
    "target_update_every": 200,
    "target_update_unit": "episodes",
    "target_update_tau": 0.01,
    "dead_agents": "zero",
}


def value_settings(**changed) -> ValueSettings:
    return ValueSettings(**{**VALUES, **changed})


def random_batch(seed: int, lengths: list[int]) -> TrajectoryBatch:
    """Episodes of the given lengths, with illegal actions, dead agents, terminations and truncations."""
    g = torch.Generator().manual_seed(seed)
    b, t = len(lengths), max(9, *lengths)
    avail = torch.rand(b, t + 1, N, A, generator=g) > 0.4
    avail[..., 0] = True
    alive = torch.rand(b, t + 1, N, generator=g) > 0.2
    filled = torch.arange(t) < torch.tensor(lengths)[:, None]
    last = torch.arange(t) == torch.tensor(lengths)[:, None] - 1
    ends = torch.rand(b, 1, generator=g) > 0.5
    actions = torch.where(avail[:, :-1], torch.rand(b, t, N, A, generator=g), -1.0).argmax(-1)
    return TrajectoryBatch(
        obs=torch.randn(b, t + 1, N, OBS, generator=g),
        state=torch.randn(b, t + 1, S, generator=g),
        avail_actions=avail,
        agent_mask=alive,
        actions=actions,
        reward=torch.randn(b, t, generator=g),
        terminated=last & ends,
        truncated=last & ~ends,
        filled=filled,
    )


def double_batch(seed: int = 0, lengths: list[int] = LENGTHS) -> TrajectoryBatch:
    """The same in double precision."""
    return random_batch(seed, lengths).to(torch.device("cpu"), torch.float64)
