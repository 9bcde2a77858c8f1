"""The policy that acts: memories that begin and end, parameters of its own, the learner's values."""

import pytest
import torch
from torch import nn

from qmix_lightning.rollout.rollout_policy import RolloutPolicy
from qmix_lightning.types import Observation, TrajectoryBatch
from support.collecting import make_policy, varying
from support.small_policies import AGENTS, A, N, build_policy


def policy(agent="recurrent"):
    torch.manual_seed(0)
    return build_policy(agent)


def observation(obs, mask):
    e = obs.shape[0]
    return Observation(obs, torch.zeros(e, 2), torch.ones(e, N, A, dtype=torch.bool), mask)


def test_a_dead_agents_memory_starts_anew_in_the_rollout_policy():
    rollout_policy = RolloutPolicy(policy(), 2, torch.device("cpu"))
    obs, mask = torch.randn(2, N, 5), torch.ones(2, N, dtype=torch.bool)
    rollout_policy.begin(torch.ones(2, dtype=torch.bool))
    rollout_policy.act(observation(obs, mask), 0.0, None)
    before = rollout_policy.state[0].clone()
    mask[1, 2] = False
    rollout_policy.act(observation(obs, mask), 0.0, None)
    after = rollout_policy.state[0]
    assert after[1, 2].abs().max() == 0
    assert after.abs().sum(-1).eq(0).sum() == 1
    assert before[1, 2].abs().max() > 0


def test_the_rollout_policy_begins_masked_environments_only():
    rollout_policy = RolloutPolicy(policy(), 2, torch.device("cpu"))
    obs, mask = torch.randn(2, N, 5), torch.ones(2, N, dtype=torch.bool)
    rollout_policy.act(observation(obs, mask), 0.0, None)
    memory, last = rollout_policy.state[0].clone(), rollout_policy.last_action.clone()
    rollout_policy.begin(torch.tensor([True, False]))
    assert rollout_policy.state[0][0].abs().max() == 0
    assert torch.equal(rollout_policy.state[0][1], memory[1])
    assert rollout_policy.last_action.tolist() == [[-1] * N, last[1].tolist()]


def test_the_rollout_policy_has_its_own_parameters_until_published():
    mine = policy()
    rollout_policy = RolloutPolicy(mine, 1, torch.device("cpu"))
    start = mine.agent.head.weight.clone()
    with torch.no_grad():
        mine.agent.head.weight += 1.0
    torch.testing.assert_close(rollout_policy.policy.agent.head.weight, start)
    rollout_policy.publish(mine)
    for a, b in zip(rollout_policy.policy.parameters(), mine.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not any(p.requires_grad for p in rollout_policy.policy.parameters())


@pytest.mark.parametrize("agent", AGENTS)
def test_acting_and_learning_compute_the_same_values(agent):
    """What the rollout policy saw step by step is what the learner unrolls: inputs, last actions and memory."""
    net = policy(agent)
    rollout_policy = RolloutPolicy(net, 4, torch.device("cpu"))
    g = torch.Generator().manual_seed(4)
    obs, alive = torch.randn(4, 7, N, 5, generator=g), torch.rand(4, 7, N, generator=g) > 0.3
    rollout_policy.begin(torch.ones(4, dtype=torch.bool))
    actions, values = [], []
    for t in range(7):
        with torch.no_grad():
            values.append(rollout_policy.policy(obs[:, t], rollout_policy.last_action, rollout_policy.state)[0])
        actions.append(
            rollout_policy.act(observation(obs[:, t], alive[:, t]), 1.0, torch.rand(4, N, 2, generator=g)).clone()
        )
    b, t = torch.zeros(4, 6), torch.zeros(4, 6, dtype=torch.bool)
    batch = TrajectoryBatch(
        obs=obs,
        state=torch.zeros(4, 7, 2),
        avail_actions=torch.ones(4, 7, N, A, dtype=torch.bool),
        agent_mask=alive,
        actions=torch.stack(actions[:-1], dim=1),
        reward=b,
        terminated=t,
        truncated=t,
        filled=~t,
    )
    torch.testing.assert_close(net.unroll(batch)[alive], torch.stack(values, dim=1)[alive])


def test_the_rollout_policy_is_no_module_of_the_learners():
    """Its copy is frozen, in float32 and in evaluation mode whatever the learner does."""
    policy = make_policy(varying(1).spec).double().train()
    policy.add_module("dropout", nn.Dropout(0.5))
    rollout_policy = RolloutPolicy(policy, 1, torch.device("cpu"))
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in rollout_policy.policy.parameters())
    assert not rollout_policy.policy.training
    assert policy.training
    assert all(p.requires_grad and p.dtype == torch.float64 for p in policy.parameters())
