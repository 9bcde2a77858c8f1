"""PQN's loss by loops."""

from __future__ import annotations

import torch

from qmix_lightning.algorithms.pqn import PQN
from qmix_lightning.types import TrajectoryBatch
from support.on_policy_learners import PQN_SETTINGS
from support.plain_losses.q_learning import episode_values
from support.small_policies import A, N


@torch.no_grad()
def plain_loss(learner: PQN, data: TrajectoryBatch, lengths: list[int], mixed: bool) -> tuple[float, int]:
    """Sum and count of the squared errors by loops over episodes, steps and agents."""
    gamma, decay = PQN_SETTINGS["gamma"], PQN_SETTINGS["td_lambda"]
    total, count = 0.0, 0
    for b, length in enumerate(lengths):
        q = episode_values(learner.policy, data, b, length)
        taken = [[0.0] * N for _ in range(length)]
        best = [[0.0] * N for _ in range(length + 1)]
        for t in range(length + 1):
            for i in range(N):
                if data.agent_mask[b, t, i]:
                    best[t][i] = max(float(q[t][i, a]) for a in range(A) if data.avail_actions[b, t, i, a])
                    if t < length:
                        taken[t][i] = float(q[t][i, data.actions[b, t, i]])

        def team(values: list[float], t: int, b: int = b) -> list[float]:
            if not mixed:
                return values
            q_tot = learner.mixer(torch.tensor(values, dtype=torch.float64)[None, None], data.state[b, t][None, None])
            return [float(q_tot)]

        returns = [0.0]
        for t in reversed(range(length)):
            values = team(best[t + 1], t + 1)
            last, reward = t == length - 1, float(data.reward[b, t])
            if last:
                tail = [0.0 if data.terminated[b, t] else v for v in values]
            else:
                tail = [(1 - decay) * v + decay * g for v, g in zip(values, returns, strict=True)]
            returns = [reward + gamma * v for v in tail]
            for i, (value, target) in enumerate(zip(team(taken[t], t), returns, strict=True)):
                if mixed or data.agent_mask[b, t, i]:
                    total += (value - target) ** 2
                    count += 1
    return total, count
