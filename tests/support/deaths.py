"""Two games of two steps in which an agent's death decides what the team gets afterwards."""

from __future__ import annotations

import torch

from qmix_lightning.algorithms.q_learning import QLearning
from qmix_lightning.types import TrajectoryBatch
from support.batches import value_settings
from support.small_mixers import small_mixer
from support.small_policies import build_policy

GAMMA = 0.96875
N, A, OBS, S = 2, 3, 3, 2
SACRIFICE = {1: (True, 10.0), 2: (False, 1.0)}
"""What agent 0 does first -> whether it dies of it, and what the team is paid one step later. All see who is alive."""
HIDDEN = {1: (True, 10.0), 2: (True, 0.0)}
"""Both kill: what is paid depends on what nobody alive, nor the state, remembers."""


def episodes(game: dict[int, tuple[bool, float]], copies: int = 4) -> TrajectoryBatch:
    """So many episodes of each action of agent 0; nothing else is chosen."""
    b = copies * len(game)
    alive = torch.ones(b, 3, N, dtype=torch.bool)
    actions = torch.ones(b, 2, N, dtype=torch.int64)
    reward = torch.zeros(b, 2)
    for i, action in enumerate(list(game) * copies):
        dies, paid = game[action]
        actions[i, 0, 0] = action
        alive[i, 1:, 0] = not dies
        reward[i, 1] = paid
    state = torch.zeros(b, 3, S)  # which step it is, and whether agent 0 is alive
    state[:, 0, 0] = 1.0
    state[..., 1] = alive[..., 0].float()
    obs = torch.cat([torch.ones(b, 3, 1), state], dim=-1)[:, :, None].repeat(1, 1, N, 1)
    obs[~alive] = 0.0
    actions[~alive[:, :-1]] = 0
    avail = torch.zeros(b, 3, N, A, dtype=torch.bool)
    avail[..., 1] = True
    avail[:, 0, 0, 2] = True
    avail[~alive] = torch.tensor([True, False, False])
    ends = torch.zeros(b, 2, dtype=torch.bool)
    ends[:, 1] = True
    return TrajectoryBatch(
        obs=obs,
        state=state,
        avail_actions=avail,
        agent_mask=alive,
        actions=actions,
        reward=reward,
        terminated=ends,
        truncated=torch.zeros_like(ends),
        filled=torch.ones_like(ends),
    )


def make_learner(mixer: str, seed: int = 0, **settings) -> QLearning:
    torch.manual_seed(seed)
    return QLearning(
        policy=build_policy(sizes=(N, A, OBS), groups=[0] * N, hidden_dim=16),
        mixer=small_mixer(mixer, n=N, a=A, obs=OBS, state=S),
        settings=value_settings(gamma=GAMMA, target_update_every=5, target_update_unit="updates", **settings),
    )


def fitted(game: dict[int, tuple[bool, float]], mixer: str, *, updates: int = 120, seed: int = 0, **settings):
    """What agent 0 thinks its actions 1 and 2 are worth at the first step, after so many updates by RMSprop."""
    learner, batch = make_learner(mixer, seed, **settings), episodes(game)
    trained = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.RMSprop(trained, lr=2e-2, alpha=0.99, eps=1e-5)
    for update in range(1, updates + 1):
        terms = learner.loss(batch)
        optimizer.zero_grad()
        (terms.total / terms.count).backward()
        torch.nn.utils.clip_grad_norm_(trained, 10.0)
        optimizer.step()
        learner.after_update(episodes=0, updates=update)
    with torch.no_grad():
        return learner.policy.unroll(batch)[0, 0, 0, 1:].tolist()


if __name__ == "__main__":  # the table of docs/algorithms.md
    torch.set_num_threads(1)
    for name, game in (("sacrifice", SACRIFICE), ("hidden", HIDDEN)):
        for mixer in ("none", "vdn", "qmix"):
            for returns, dead_agents in (("one_step", "zero"), ("peng_lambda", "zero"), ("one_step", "no_op")):
                rows = [fitted(game, mixer, seed=s, returns=returns, dead_agents=dead_agents) for s in range(5)]
                first, second = (sorted(column)[2] for column in zip(*rows, strict=True))
                gap = sorted(a - b for a, b in rows)
                print(f"{name} {mixer} {returns} {dead_agents}: {first:.2f} {second:.2f} gap {gap[2]:.2f} ", end="")
                print(f"({gap[0]:.2f} to {gap[-1]:.2f})")
