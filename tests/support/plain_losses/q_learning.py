"""Q-learning's loss by loops, with any mixer."""

import torch

from support.small_mixers import FORMULAS, Seen
from support.small_policies import OBS, A, N


def episode_values(policy, batch, b, length, dead_agents="zero"):
    """``q[t][i]`` of one episode, one step after the other, with nothing but the agents' own history while alive.

    With ``no_op`` the memory of the dead runs on, and is forgotten when they live again.
    """
    agent = policy.agent
    state = agent.initial_state(1)
    values = []
    for t in range(length + 1):
        alive = batch.agent_mask[b, t]
        obs = torch.zeros_like(batch.obs[b, t])
        last = torch.full((N,), -1)
        for i in range(N):
            if alive[i]:
                obs[i] = batch.obs[b, t, i]
            if t > 0:
                last[i] = batch.actions[b, t - 1, i] if batch.agent_mask[b, t - 1, i] else 0
        q, state = agent(policy.inputs(obs[None], last[None]), state)
        for memory in state:
            for i in range(N):
                reborn = t < length and batch.agent_mask[b, t + 1, i]
                if not alive[i] and (dead_agents == "zero" or reborn):
                    memory[0, i] = 0.0
        values.append(q[0])
    return values


def best_actions(q, batch, b, row):
    """Each agent's best legal action, the no-op of who is dead."""
    chosen = []
    for i in range(N):
        legal = [a for a in range(A) if batch.avail_actions[b, row, i, a]] if batch.agent_mask[b, row, i] else [0]
        chosen.append(max(legal, key=lambda a, i=i: float(q[i, a])))
    return chosen


def seen_in(q, batch, b, row, actions, dead_agents="zero"):
    """What a mixer sees of one row: the dead see nothing, and are worth nothing or what their no-op is."""
    alive = batch.agent_mask[b, row].tolist()
    counts = [dead_agents == "no_op" or living for living in alive]
    greedy = best_actions(q, batch, b, row)
    return Seen(
        q=[float(q[i, actions[i]]) if counts[i] else 0.0 for i in range(N)],
        state=batch.state[b, row].tolist(),
        greedy=[float(q[i, greedy[i]]) if counts[i] else 0.0 for i in range(N)],
        actions=actions,
        obs=[batch.obs[b, row, i].tolist() if alive[i] else [0.0] * OBS for i in range(N)],
    )


@torch.no_grad()
def plain_loss(learner, batch, lengths, mixer):
    """Sum and count of the squared TD errors by loops over episodes, steps and agents, one number at a time."""
    total, count = 0.0, 0
    dead = learner.settings.dead_agents
    for b, length in enumerate(lengths):
        online = episode_values(learner.policy, batch, b, length, dead)
        target = episode_values(learner.target_policy, batch, b, length, dead)
        for t in range(length):
            alive = batch.agent_mask[b, t].tolist()
            actions = [int(batch.actions[b, t, i]) if alive[i] else 0 for i in range(N)]
            selector = online if learner.settings.double_q else target
            now = seen_in(online[t], batch, b, t, actions, dead)
            after = seen_in(target[t + 1], batch, b, t + 1, best_actions(selector[t + 1], batch, b, t + 1), dead)
            continuation_mask = 0.0 if batch.terminated[b, t] else learner.settings.gamma
            reward = float(batch.reward[b, t])
            if mixer == "none":
                learning = [i for i in range(N) if alive[i] or dead == "no_op"]
                errors = [now.q[i] - reward - continuation_mask * after.q[i] for i in learning]
            else:
                q_tot, v_tot = (
                    FORMULAS[mixer](m, seen) for m, seen in ((learner.mixer, now), (learner.target_mixer, after))
                )
                errors = [q_tot - reward - continuation_mask * v_tot]
            total += sum(error**2 for error in errors)
            count += len(errors)
    return total, count
