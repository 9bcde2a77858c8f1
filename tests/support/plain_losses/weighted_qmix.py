"""The losses of weighted QMIX by loops."""

from __future__ import annotations

import torch

from support.joint_learners import greedy_of, plain_targets
from support.plain_losses.q_learning import episode_values
from support.small_mixers import Seen, network, qmix
from support.small_policies import N


def central_value(mixer, q, state):
    return network(mixer.value, [*q, *state])[0]


@torch.no_grad()
def plain_loss(learner, batch, lengths, central):
    """The weighted loss of ``Q_tot`` and the plain one of ``Q*``, and how often the weight was 1."""
    qmix_loss = central_loss = 0.0
    full = 0
    for b, length in enumerate(lengths):
        acting, own, target = (
            [step.tolist() for step in episode_values(policy, batch, b, length)]
            for policy in (learner.policy, learner.central_policy, learner.target_central_policy)
        )
        selecting = acting
        if not learner.settings.double_q:
            selecting = [step.tolist() for step in episode_values(learner.target_policy, batch, b, length)]
        alive, avail = batch.agent_mask[b].tolist(), batch.avail_actions[b].tolist()
        states = batch.state[b].tolist()
        actions = [[batch.actions[b, t, i].item() if alive[t][i] else 0 for i in range(N)] for t in range(length)]
        actions.append([0] * N)

        def taken(q, t, joint_action, alive=alive):
            return [q[t][i][joint_action[i]] if alive[t][i] else 0.0 for i in range(N)]

        def after(t, joint_action, taken=taken, target=target, states=states):
            return central_value(learner.target_central_mixer, taken(target, t, joint_action), states[t])

        greedy_tp1 = [after(t, greedy_of(selecting[t], avail[t], alive[t])) for t in range(1, length + 1)]
        taken_tp1 = [after(t, actions[t]) for t in range(1, length + 1)]
        rewards = batch.reward[b, :length].tolist()
        y = plain_targets(learner.settings, rewards, bool(batch.terminated[b, length - 1]), greedy_tp1, taken_tp1)
        for t in range(length):
            q_tot = qmix(learner.mixer, Seen(taken(acting, t, actions[t]), states[t], [], [], []))
            q_star = central_value(learner.central_mixer, taken(own, t, actions[t]), states[t])
            best = greedy_of(acting[t], avail[t], alive[t])
            if central:
                q_star_best = after(t, best)
                promising = y[t] > q_star_best or best == actions[t]
            else:
                promising = q_tot < y[t]
            full += promising
            qmix_loss += (1.0 if promising else learner.alpha) * (q_tot - y[t]) ** 2
            central_loss += (q_star - y[t]) ** 2
    return qmix_loss, central_loss, full
