"""COMA's loss by loops."""

from __future__ import annotations

import math

import torch

from qmix_lightning.algorithms.coma import COMA
from qmix_lightning.types import TrajectoryBatch
from support.on_policy_learners import COMA_SETTINGS as SETTINGS
from support.plain_losses.q_learning import episode_values
from support.small_policies import A, N


def critic_inputs(data: TrajectoryBatch, b: int, t: int, agent: int, actions: list[int]) -> torch.Tensor:
    """What the critic is told of one agent, put together one number after the other."""
    alive = bool(data.agent_mask[b, t, agent])
    numbers = [float(x) for x in data.state[b, t]]
    numbers += [float(x) if alive else 0.0 for x in data.obs[b, t, agent]]
    for other in range(N):
        numbers += [float(other != agent and a == actions[other]) for a in range(A)]
    for other in range(N):
        last = -1
        if t > 0:
            last = int(data.actions[b, t - 1, other]) if data.agent_mask[b, t - 1, other] else 0
        numbers += [float(a == last) for a in range(A)]
    return torch.tensor([*numbers, *(float(i == agent) for i in range(N))], dtype=torch.float64)


@torch.no_grad()
def plain_loss(learner: COMA, data: TrajectoryBatch, lengths: list[int]) -> tuple[float, int]:
    """The loss and its count by loops over episodes, steps and agents."""
    total, count = 0.0, 0
    for b, length in enumerate(lengths):
        epsilon = float(data.extras["epsilon"][b])
        logits = episode_values(learner.policy, data, b, length)
        pi, joint = [], []
        for t in range(length + 1):
            rows = []
            for i in range(N):
                alive = bool(data.agent_mask[b, t, i])
                own = [a for a in range(A) if data.avail_actions[b, t, i, a]] if alive else [0]
                counted = own if learner.policy.mask_before_softmax or not alive else range(A)
                weights = {a: math.exp(float(logits[t][i, a])) for a in counted}
                mass = sum(weights.values())
                floored = [(1 - epsilon) * weights[a] / mass + epsilon / len(counted) if a in own else 0.0
                           for a in range(A)]  # fmt: skip
                rows.append([p / sum(floored) for p in floored])
            pi.append(rows)
            if t < length:
                joint.append([int(data.actions[b, t, i]) if data.agent_mask[b, t, i] else 0 for i in range(N)])
            else:
                joint.append([next(a for a in range(A) if sum(rows[i][: a + 1]) > float(data.extras["draws"][b, i]))
                              for i in range(N)])  # fmt: skip
        for i in range(N):
            inputs = [critic_inputs(data, b, t, i, joint[t]) for t in range(length + 1)]
            online = [learner.critic.layers(x).tolist() for x in inputs]
            target = [learner.target_critic.layers(x).tolist() for x in inputs]
            value = [target[t][joint[t][i]] for t in range(length)]
            value.append(sum(p * q for p, q in zip(pi[length][i], target[length], strict=True)))
            if data.terminated[b, length - 1]:
                value[length] = 0.0
            for t in range(length):
                # (1 - lambda) sum_n lambda^(n-1) G^(n), all that is left of the weight on the last one.
                y, weight, discounted, g = 0.0, 1.0, 0.0, SETTINGS["gamma"]
                for n in range(1, length - t + 1):
                    discounted += g ** (n - 1) * float(data.reward[b, t + n - 1])
                    share = weight * (1 - SETTINGS["td_lambda"]) if t + n < length else weight
                    y += share * (discounted + g**n * value[t + n])
                    weight *= SETTINGS["td_lambda"]
                taken, own = joint[t][i], pi[t][i]
                baseline = sum(p * q for p, q in zip(own, online[t], strict=True))
                entropy = -sum(p * math.log(p) for p in own if p > 0)
                total += -math.log(own[taken]) * (online[t][taken] - baseline)
                total += SETTINGS["critic_coef"] * (online[t][taken] - y) ** 2 - SETTINGS["entropy_coef"] * entropy
                count += 1
    return total, count
