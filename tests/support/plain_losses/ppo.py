"""What the PPO learners make of a round, and their loss, by loops over episodes, steps and agents."""

from __future__ import annotations

import math
from typing import Any

import torch

from qmix_lightning.algorithms.networks.ppo import HistoryCritic
from qmix_lightning.algorithms.ppo import PPO
from qmix_lightning.types import TrajectoryBatch
from support.plain_losses.q_learning import episode_values
from support.small_policies import A, N

Numbers = list[list[list[float]]]
"""``[b][t][i]``, of filled steps."""


def critic_values(critic: HistoryCritic, data: TrajectoryBatch, b: int, length: int) -> list[list[float]]:
    """``[t][i]`` of one episode, as the network says it; the dead see zeros, do nothing, and remember."""
    network, values = critic.network, []
    memory = network.initial_state(1)
    for t in range(length + 1):
        rows, last = [], []
        for i in range(N):
            alive = bool(data.agent_mask[b, t, i])
            own = [float(x) if alive else 0.0 for x in data.obs[b, t, i]]
            rows.append((own if critic.obs else []) + (data.state[b, t].tolist() if critic.state else []))
            last.append(-1)
            if t > 0:
                last[i] = int(data.actions[b, t - 1, i]) if data.agent_mask[b, t - 1, i] else 0
        seen = torch.tensor(rows, dtype=data.obs.dtype)[None]
        out, memory = network(seen, torch.tensor(last)[None], memory)
        values.append(out[0, :, 0].tolist())
    return values


def log_policies(learner: PPO, data: TrajectoryBatch, b: int, length: int) -> list[list[list[float]]]:
    """``[t][i][a]``, ``-inf`` for what is illegal, with the floor of the round's epsilon."""
    logits = episode_values(learner.policy, data, b, length)
    epsilon, rows = float(data.extras["epsilon"][b]), []
    for t in range(length):
        row = []
        for i in range(N):
            legal = [a for a in range(A) if data.avail_actions[b, t, i, a]] if data.agent_mask[b, t, i] else [0]
            mass = sum(math.exp(float(logits[t][i, a])) for a in legal)
            pi = {a: (1 - epsilon) * math.exp(float(logits[t][i, a])) / mass + epsilon / len(legal) for a in legal}
            row.append([math.log(pi[a]) if a in pi else -math.inf for a in range(A)])
        rows.append(row)
    return rows


def taken(data: TrajectoryBatch, b: int, t: int, i: int) -> int:
    return int(data.actions[b, t, i]) if data.agent_mask[b, t, i] else 0


@torch.no_grad()
def plain_round(learner: PPO, data: TrajectoryBatch, lengths: list[int], mean: float, deviation: float) -> Any:
    """What ``prepare_round`` returns, as ``[b][t][i]``, with a critic in units of ``deviation`` from ``mean``."""
    settings = learner.settings
    made: dict[str, Numbers] = {name: [] for name in learner.round_extras}
    for b, length in enumerate(lengths):
        log_pi = log_policies(learner, data, b, length)
        values = [[v * deviation + mean for v in row] for row in critic_values(learner.critic, data, b, length)]
        advantages = [[0.0] * N for _ in range(length + 1)]
        for t in reversed(range(length)):
            for i in range(N):
                ends = bool(data.terminated[b, t])
                delta = float(data.reward[b, t]) - values[t][i]
                delta += 0.0 if ends else settings.gamma * values[t + 1][i]
                advantages[t][i] = delta + settings.gamma * settings.gae_lambda * advantages[t + 1][i]
        made["old_log_pi"].append([[log_pi[t][i][taken(data, b, t, i)] for i in range(N)] for t in range(length)])
        made["old_value"].append(values[:length])
        made["advantage"].append(advantages[:length])
        made["target"].append([[a + v for a, v in zip(*rows, strict=True)]
                               for rows in zip(advantages[:length], values[:length], strict=True)])  # fmt: skip
    if settings.normalize_advantages:
        acting = [made["advantage"][b][t][i] for b, length in enumerate(lengths) for t in range(length)
                  for i in range(N) if data.agent_mask[b, t, i]]  # fmt: skip
        middle = sum(acting) / len(acting)
        spread = math.sqrt(sum((x - middle) ** 2 for x in acting) / len(acting))
        made["advantage"] = [[[(x - middle) / spread for x in row] for row in rows] for rows in made["advantage"]]
    return made


def discounted_returns(data: TrajectoryBatch, lengths: list[int], gamma: float) -> list[float]:
    """Of every step, of what was played alone."""
    found = []
    for b, length in enumerate(lengths):
        for t in range(length):
            found.append(sum(gamma ** (k - t) * float(data.reward[b, k]) for k in range(t, length)))
    return found


@torch.no_grad()
def plain_loss(learner: PPO, data: TrajectoryBatch, lengths: list[int]) -> tuple[float, int]:
    """The sum of the loss over the agents' choices, and their number."""
    settings, moments = learner.settings, learner.value_moments
    mean = 0.0 if moments is None else float(moments.mean)
    deviation = 1.0 if moments is None else math.sqrt(float(moments.squares / moments.count))
    policy, wrong, choices, slots = 0.0, 0.0, 0, 0
    for b, length in enumerate(lengths):
        log_pi = log_policies(learner, data, b, length)
        values = critic_values(learner.critic, data, b, length)
        for t in range(length):
            for i in range(N):
                old = {name: float(data.extras[name][b, t, i]) for name in learner.round_extras}
                target, before = (old["target"] - mean) / deviation, (old["old_value"] - mean) / deviation
                errors = [(values[t][i] - target) ** 2]
                if settings.value_clip is not None:
                    step = max(-settings.value_clip, min(settings.value_clip, values[t][i] - before))
                    errors.append((before + step - target) ** 2)
                wrong += max(errors)
                slots += 1
                if not data.agent_mask[b, t, i]:
                    continue
                choices += 1
                ratio = math.exp(log_pi[t][i][taken(data, b, t, i)] - old["old_log_pi"])
                clipped = max(1 - settings.clip_epsilon, min(1 + settings.clip_epsilon, ratio))
                policy -= min(ratio * old["advantage"], clipped * old["advantage"])
                policy += settings.entropy_coef * sum(math.exp(x) * x for x in log_pi[t][i] if x > -math.inf)
    return policy + settings.value_coef * wrong * choices / slots, choices
