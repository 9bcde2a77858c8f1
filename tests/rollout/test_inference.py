"""The network made ready to act computes what the policy computes."""

import itertools

import pytest
import torch
from torch import nn

from qmix_lightning.agents.feedforward import FeedForwardAgent
from qmix_lightning.agents.policy import Policy
from qmix_lightning.agents.recurrent import RecurrentAgent
from qmix_lightning.rollout.inference import fold_for_inference
from qmix_lightning.rollout.numpy_inference import NumpyFeedForward, NumpyRecurrent, to_numpy_inference
from qmix_lightning.rollout.rollout_policy import RolloutPolicy
from qmix_lightning.types import Observation
from support.cases import pairwise
from support.small_policies import build_policy

N, A, OBS = 3, 5, 11
B = 7
MANY = 10_000  # environments whose agents are too many for numpy
SWITCHES = [s for s in itertools.product([True, False], repeat=3) if any(s)]


def make_policy(agent=RecurrentAgent, switches=(True, True, True), *, share=True, normalize=False, **options):
    torch.manual_seed(1)
    names = ("use_obs", "use_last_action", "use_agent_id")
    inputs = {**dict(zip(names, switches, strict=True)), "normalize_obs": normalize}
    sizes = {"sizes": (N, A, OBS), "groups": (0, 0, 1), "hidden_dim": 16}
    policy = build_policy(agent, share=share, inputs=inputs, **sizes, **options)
    with torch.no_grad():
        for parameter in policy.agent.parameters():  # layer norms and biases that do something
            parameter.add_(0.1 * torch.randn_like(parameter))
    if policy.inputs.moments is not None:
        seen = 3.0 + 5.0 * torch.randn(100, OBS)
        policy.inputs.moments.update(seen, torch.ones(100, dtype=torch.bool), lambda x: x)
    return policy


@torch.no_grad()
def assert_same_values(policy, num_envs, *, small_too, steps=4):
    """Some steps in a row, last actions and "none yet" among them; observations not contiguous in memory.

    ``num_envs`` only says which way is prepared; ``small_too``: whether a few agents of this policy act in numpy.
    """
    fast = to_numpy_inference(fold_for_inference(policy), num_envs * N)
    assert fast is not policy
    small = isinstance(fast, NumpyRecurrent | NumpyFeedForward)
    assert small == (num_envs == B and small_too)
    state, fast_state = policy.initial_state(B), policy.initial_state(B)
    for _ in range(steps):
        obs, last_action = 3.0 * torch.randn(B, N, OBS + 2)[..., :OBS], torch.randint(-1, A, (B, N))
        kept = obs.clone(), last_action.clone(), [s.clone() for s in fast_state]
        q, state = policy(obs, last_action, state)
        fast_q, next_state = fast(obs, last_action, fast_state)
        assert fast_q.shape == (B, N, A)
        torch.testing.assert_close(fast_q, q, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(next_state, state, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert torch.equal(obs, kept[0])
        assert torch.equal(last_action, kept[1])
        assert all(torch.equal(s, k) for s, k in zip(fast_state, kept[2], strict=True))
        fast_state = next_state


@pytest.mark.parametrize(
    ("num_envs", "switches", "agent"), pairwise([B, MANY], SWITCHES, [RecurrentAgent, FeedForwardAgent])
)
def test_every_input(agent, switches, num_envs):
    assert_same_values(make_policy(agent, switches), num_envs, small_too=True)


@pytest.mark.parametrize(
    ("num_envs", "agent", "layer_norm", "dueling", "normalize"),
    pairwise([B, MANY], [RecurrentAgent, FeedForwardAgent], *[[True, False]] * 3),
)
def test_every_option(agent, layer_norm, dueling, normalize, num_envs):
    policy = make_policy(agent, layer_norm=layer_norm, dueling=dueling, normalize=normalize)
    assert_same_values(policy, num_envs, small_too=not (layer_norm or normalize))


def test_a_large_first_sum_does_not_overflow_a_gate():
    policy = make_policy()
    with torch.no_grad():
        policy.agent.input_gates.bias.add_(500.0 * torch.randn_like(policy.agent.input_gates.bias))
    assert_same_values(policy, B, small_too=True)


class Doubled(RecurrentAgent):
    def forward(self, inputs, state):
        q, state = super().forward(inputs, state)
        return 2 * q, state


class Rescaled(Policy):
    def forward(self, obs, last_action, state):
        return super().forward(2 * obs, last_action, state)


def test_what_is_not_known_is_called_as_it_is():
    plain = make_policy()
    hooked = make_policy()
    hooked.agent.encode.register_forward_hook(lambda module, inputs, output: 2 * output)
    for policy in (
        make_policy(Doubled),
        Rescaled(inputs=plain.inputs, agent=plain.agent),
        make_policy(share=False),
        make_policy(share="group"),
        hooked,
    ):
        assert fold_for_inference(policy) is policy
    with_more = make_policy()
    with_more.add_module("critic", nn.Linear(3, 3))  # does not take part in acting
    assert fold_for_inference(with_more) is not with_more


@pytest.mark.parametrize("agent", [RecurrentAgent, Doubled])
def test_a_rollout_policy_acts_by_what_was_published_or_restored_last(agent):
    first, second = make_policy(agent), make_policy(agent)
    with torch.no_grad():
        second.agent.head.weight.neg_()
        second.agent.head.bias.neg_()
    seen = Observation(
        torch.randn(B, N, OBS),
        torch.zeros(B, 0),
        torch.ones(B, N, A, dtype=torch.bool),
        torch.ones(B, N, dtype=torch.bool),
    )

    def best(policy):
        with torch.no_grad():
            return policy(seen.obs, torch.full((B, N), -1), policy.initial_state(B))[0].argmax(-1)

    assert not torch.equal(best(first), best(second))
    for take in (
        lambda rollout_policy: rollout_policy.publish(second),
        lambda rollout_policy: rollout_policy.restore(second.state_dict()),
    ):
        rollout_policy = RolloutPolicy(first, B, torch.device("cpu"))
        assert torch.equal(rollout_policy.act(seen, 0.0, None), best(first))
        rollout_policy.begin(torch.ones(B, dtype=torch.bool))
        take(rollout_policy)
        assert torch.equal(rollout_policy.act(seen, 0.0, None), best(second))


@torch.no_grad()
def test_a_dead_agent_forgets_whatever_its_memory_held():
    rollout_policy = RolloutPolicy(make_policy(), B, torch.device("cpu"))
    alive = torch.ones(B, N, dtype=torch.bool)
    alive[2, 1] = False
    obs = torch.randn(B, N, OBS)
    obs[2, 1] = torch.nan
    rollout_policy.act(Observation(obs, torch.zeros(B, 0), torch.ones(B, N, A, dtype=torch.bool), alive), 0.0, None)
    memory = rollout_policy.state[0]
    assert not memory[2, 1].any()
    assert memory[alive].abs().min() > 0
