"""QTRAN's losses by loops."""

from __future__ import annotations

import torch

from support.joint_learners import greedy_of, plain_targets
from support.small_mixers import network
from support.small_policies import A, N


def episode(policy, batch, b, length):
    """Features and values ``[t][i]`` of one episode as plain numbers, one step after the other."""
    state = policy.agent.initial_state(1)
    features, values = [], []
    for t in range(length + 1):
        alive = batch.agent_mask[b, t]
        obs = torch.where(alive[:, None], batch.obs[b, t], 0.0)
        last = torch.full((N,), -1)
        if t > 0:
            last = torch.where(batch.agent_mask[b, t - 1], batch.actions[b, t - 1], 0)
        found, state = policy.agent.body(policy.inputs(obs[None], last[None]), state)
        for memory in state:
            memory[0, ~alive] = 0.0
        features.append(found[0].tolist())
        values.append(policy.agent.head(found)[0].tolist())
    return features, values


def one_hot(k, size):
    return [float(j == k) for j in range(size)]


def total_of(vectors, size):
    return [sum(v[k] for v in vectors) for k in range(size)]


def encoded(encoder, features, alive_agents, actions=None):
    """The encoding of each agent alive, zeros for the others."""
    found = []
    for i in range(N):
        x = [*features[i], *one_hot(i, N), *([] if actions is None else one_hot(actions[i], A))]
        out = network(encoder.network, x)
        found.append(out if i in alive_agents else [0.0] * len(out))
    return found


def joint_values(joint, features, actions, alive_agents, state, alt):
    """``Q_jt(u)``, one number; QTRAN-alt: for each agent, one for each of its actions."""
    extra = state if joint.state_dim else []
    codes = encoded(joint.encode, features, alive_agents, actions)
    size = len(codes[0])
    if not alt:
        return network(joint.value, [*total_of(codes, size), *extra])[0]
    each = []
    for i in range(N):
        others = total_of([codes[j] for j in range(N) if j != i], size)
        each.append(network(joint.value, [*features[i], *one_hot(i, N), *others, *extra]))
    return each


def team_value(joint, features, actions, alive_agents, state, alt):
    values = joint_values(joint, features, actions, alive_agents, state, alt)
    if not alt:
        return values
    return sum(values[i][actions[i]] for i in alive_agents) / max(1, len(alive_agents))


@torch.no_grad()
def plain_loss(learner, batch, lengths, alt):
    """The three losses, one number at a time."""
    sums = {"td": 0.0, "opt": 0.0, "nopt": 0.0}
    for b, length in enumerate(lengths):
        features, q = episode(learner.policy, batch, b, length)
        target_features, target_q = episode(learner.target_policy, batch, b, length)
        selecting = q if learner.settings.double_q else target_q
        alive = batch.agent_mask[b].tolist()
        alive_agents = [[i for i in range(N) if alive[t][i]] for t in range(length + 1)]
        legal = [
            [[alive[t][i] and x for x in batch.avail_actions[b, t, i].tolist()] for i in range(N)]
            for t in range(length + 1)
        ]
        states = batch.state[b].tolist()
        actions = [[batch.actions[b, t, i].item() if alive[t][i] else 0 for i in range(N)] for t in range(length)]
        actions.append([0] * N)

        def after(t, joint_action, features=target_features, alive_agents=alive_agents, states=states):
            return team_value(learner.target_joint, features[t], joint_action, alive_agents[t], states[t], alt)

        greedy_tp1 = [after(t, greedy_of(selecting[t], legal[t], alive[t])) for t in range(1, length + 1)]
        taken_tp1 = [after(t, actions[t]) for t in range(1, length + 1)]
        rewards = batch.reward[b, :length].tolist()
        y = plain_targets(learner.settings, rewards, bool(batch.terminated[b, length - 1]), greedy_tp1, taken_tp1)
        for t in range(length):
            value_codes = encoded(learner.state_value.encode, features[t], alive_agents[t])
            extra = states[t] if learner.state_value.state_dim else []
            v = network(learner.state_value.value, [*total_of(value_codes, len(value_codes[0])), *extra])[0]
            best = greedy_of(q[t], legal[t], alive[t])

            def summed(joint_action, t=t, alive_agents=alive_agents, q=q):
                return sum(q[t][i][joint_action[i]] for i in alive_agents[t])

            at_taken, at_best = (
                joint_values(learner.joint, features[t], u, alive_agents[t], states[t], alt) for u in (actions[t], best)
            )
            if not alt:
                sums["td"] += (at_taken - y[t]) ** 2
                sums["opt"] += (summed(best) - at_best + v) ** 2
                sums["nopt"] += min(summed(actions[t]) - at_taken + v, 0.0) ** 2
                continue
            count = max(1, len(alive_agents[t]))
            choosing = [i for i in alive_agents[t] if sum(legal[t][i]) > 1]
            for i in alive_agents[t]:
                sums["td"] += (at_taken[i][actions[t][i]] - y[t]) ** 2 / count
                sums["opt"] += (summed(best) - at_best[i][best[i]] + v) ** 2 / count
            for i in choosing:
                gaps = []
                for a in range(A):
                    if legal[t][i][a]:
                        changed = [a if j == i else actions[t][j] for j in range(N)]
                        gaps.append(summed(changed) - at_taken[i][a] + v)
                sums["nopt"] += min(gaps) ** 2 / len(choosing)
    return sums
