import pytest
import torch
from torch import nn

from qmix_lightning.agents.base import Agent, forget_dead
from qmix_lightning.agents.feedforward import FeedForwardAgent
from qmix_lightning.agents.inputs import InputBuilder
from qmix_lightning.agents.policy import Policy
from qmix_lightning.agents.recurrent import RecurrentAgent
from qmix_lightning.nn.layers import AgentLinear, parameter_sets
from qmix_lightning.rollout.actor import Actor
from qmix_lightning.types import Observation, TrajectoryBatch
from support.batches import PLAIN_INPUTS
from support.small_agents import CLASSES, GROUPS, SHARING, A, H, I, N, make


def stepwise(agent, inputs, alive, state):
    """The definition of a sequence: one step after the other."""
    features, state = Agent.unroll_body(agent, inputs, state, alive)
    return agent.head(features), state


@pytest.mark.parametrize("share", SHARING)
@pytest.mark.parametrize("cls", CLASSES)
@torch.no_grad()
def test_unroll_equals_step_by_step(cls, share):
    agent = make(cls, share)
    g = torch.Generator().manual_seed(1)
    inputs = torch.randn(5, 7, N, I, generator=g)
    alive = torch.rand(5, 7, N, generator=g) > 0.3
    state = tuple(torch.randn(s.shape, generator=g) for s in agent.initial_state(5))
    q, last = agent.unroll(inputs, state, alive)
    expected, expected_last = stepwise(agent, inputs, alive, state)
    assert q.shape == (5, 7, N, A)
    torch.testing.assert_close(q, expected)
    torch.testing.assert_close(last, expected_last)


@torch.no_grad()
def test_unroll_returns_a_cleared_memory_where_the_agent_died_for_good():
    """Nobody revives within this segment, but one may in the next."""
    agent = make(RecurrentAgent)
    inputs = torch.randn(1, 4, N, I, generator=torch.Generator().manual_seed(2))
    alive = torch.ones(1, 4, N, dtype=torch.bool)
    alive[0, 2:, 1] = False
    q, (last,) = agent.unroll(inputs, agent.initial_state(1), alive)
    assert last[0, 1].abs().max() == 0
    assert last[0, [0, 2]].abs().min() > 0
    expected, (expected_last,) = stepwise(agent, inputs, alive, agent.initial_state(1))
    torch.testing.assert_close(last, expected_last)
    torch.testing.assert_close(q[alive], expected[alive])


@torch.no_grad()
def test_two_segments_are_one_sequence():
    agent = make(RecurrentAgent)
    g = torch.Generator().manual_seed(3)
    inputs, alive = torch.randn(2, 9, N, I, generator=g), torch.rand(2, 9, N, generator=g) > 0.4
    whole, _ = agent.unroll(inputs, agent.initial_state(2), alive)
    for cut in range(1, 9):
        first, state = agent.unroll(inputs[:, :cut], agent.initial_state(2), alive[:, :cut])
        second, _ = agent.unroll(inputs[:, cut:], state, alive[:, cut:])
        joined = torch.cat([first, second], dim=1)
        torch.testing.assert_close(joined[alive], whole[alive])


@torch.no_grad()
def test_recurrent_cell_is_torchs_gru_cell():
    agent = make(RecurrentAgent)
    cell = nn.GRUCell(H, H)
    cell.weight_ih.copy_(agent.input_gates.weight[0])
    cell.bias_ih.copy_(agent.input_gates.bias[0])
    cell.weight_hh.copy_(agent.state_gates.weight[0])
    cell.bias_hh.copy_(agent.state_gates.bias[0])
    inputs = torch.randn(5, 6, N, I)
    q, (last,) = agent.unroll(inputs, agent.initial_state(5), torch.ones(5, 6, N, dtype=torch.bool))
    hidden = torch.zeros(5 * N, H)
    for t in range(6):
        encoded = torch.relu(inputs[:, t].reshape(5 * N, I) @ agent.encode.weight[0].T + agent.encode.bias[0])
        hidden = cell(encoded, hidden)
        expected = hidden @ agent.head.weight[0].T + agent.head.bias[0]
        torch.testing.assert_close(q[:, t].reshape(5 * N, A), expected)
    torch.testing.assert_close(last.reshape(5 * N, H), hidden)


@torch.no_grad()
def test_feedforward_is_three_linear_layers():
    agent = make(FeedForwardAgent)
    x = torch.randn(2, N, I)
    hidden = torch.relu(x @ agent.encode.weight[0].T + agent.encode.bias[0])
    hidden = torch.relu(hidden @ agent.hidden.weight[0].T + agent.hidden.bias[0])
    q, state = agent(x, ())
    torch.testing.assert_close(q, hidden @ agent.head.weight[0].T + agent.head.bias[0])
    assert state == ()
    assert agent.initial_state(3) == ()


@pytest.mark.parametrize("share", SHARING)
@torch.no_grad()
def test_feedforward_sequence_has_no_memory(share):
    agent = make(FeedForwardAgent, share)
    inputs = torch.randn(2, 5, N, I)
    q, _ = agent.unroll(inputs, (), torch.ones(2, 5, N, dtype=torch.bool))
    for t in range(5):
        torch.testing.assert_close(q[:, t], agent(inputs[:, t], ())[0])


@torch.no_grad()
def test_recurrent_remembers():
    agent = make(RecurrentAgent)
    inputs = torch.randn(1, 5, N, I)
    other = inputs.clone()
    other[:, 0, 1] += 1.0
    alive = torch.ones(1, 5, N, dtype=torch.bool)
    difference = (agent.unroll(inputs, agent.initial_state(1), alive)[0]).sub(
        agent.unroll(other, agent.initial_state(1), alive)[0]
    )
    assert difference[0, 4, 1].abs().max() > 1e-4
    assert difference[0, :, [0, 2]].abs().max() == 0  # an agent sees only its own observations


# Sharing ----------------------------------------------------------------------------------------------------------


def changed_agents(agent, change_set):
    """Which agents' values change when one set of parameters does."""
    inputs, alive = torch.randn(2, 3, N, I), torch.ones(2, 3, N, dtype=torch.bool)
    found = []
    for parameter in agent.parameters():
        before = agent.unroll(inputs, agent.initial_state(2), alive)[0]
        parameter[change_set] += 0.1 * torch.randn_like(parameter[change_set])
        after = agent.unroll(inputs, agent.initial_state(2), alive)[0]
        found.append(tuple(i for i in range(N) if not torch.equal(before[:, :, i], after[:, :, i])))
    assert len(set(found)) == 1, "every layer must be shared alike"
    return found[0]


@pytest.mark.parametrize("cls", CLASSES)
@torch.no_grad()
def test_separate_parameters_change_one_agent_only(cls):
    agent = make(cls, False)
    assert [changed_agents(agent, i) for i in range(N)] == [(0,), (1,), (2,)]


@pytest.mark.parametrize("cls", CLASSES)
@torch.no_grad()
def test_group_parameters_change_their_group_only(cls):
    agent = make(cls, "group")
    assert [changed_agents(agent, i) for i in range(2)] == [(0, 2), (1,)]
    assert all(p.shape[0] == 2 for p in agent.parameters())


@pytest.mark.parametrize("cls", CLASSES)
@torch.no_grad()
def test_shared_parameters_change_everyone(cls):
    agent = make(cls, True)
    assert changed_agents(agent, 0) == (0, 1, 2)
    x = torch.randn(1, 1, I).expand(4, N, I)
    q, _ = agent(x, agent.initial_state(4))
    torch.testing.assert_close(q, q[:1, :1].expand_as(q))


@pytest.mark.parametrize("cls", CLASSES)
@torch.no_grad()
def test_separate_agents_equal_single_ones_with_the_same_weights(cls):
    agent = make(cls, False)
    inputs, alive = torch.randn(2, 4, N, I), torch.rand(2, 4, N) > 0.3
    q, _ = agent.unroll(inputs, agent.initial_state(2), alive)
    for i in range(N):
        single = make(cls, True, group_of_agent=(0,))
        for mine, theirs in zip(single.parameters(), agent.parameters(), strict=True):
            mine.copy_(theirs[i : i + 1])
        expected, _ = single.unroll(inputs[:, :, i : i + 1], single.initial_state(2), alive[:, :, i : i + 1])
        torch.testing.assert_close(q[:, :, i : i + 1], expected)


def test_parameter_sets():
    assert parameter_sets(True, GROUPS) == [0, 0, 0]
    assert parameter_sets(False, GROUPS) == [0, 1, 2]
    assert parameter_sets("group", GROUPS) == [0, 1, 0]
    assert parameter_sets("group", (7, 7)) == [0, 0]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("bad", ["all", "True", None, 2])
def test_bad_share_parameters(cls, bad):
    with pytest.raises(ValueError, match=f"share_parameters must be true, false or 'group', not {bad!r}"):
        make(cls, bad)


def test_initialised_like_torchs_linear():
    torch.manual_seed(0)
    layer = AgentLinear([0, 1], 16, 4000)
    assert layer.weight.shape == (2, 4000, 16)
    for p in (layer.weight, layer.bias):
        assert 0.24 < p.abs().max() <= 0.25  # uniform within 1 / sqrt(16)
        assert float(p.detach().std()) == pytest.approx(0.25 / 3**0.5, rel=0.05)


# Death ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_dead_agents_memory_starts_anew_in_a_sequence():
    agent = make(RecurrentAgent)
    inputs, alive = torch.randn(1, 8, N, I), torch.ones(1, 8, N, dtype=torch.bool)
    alive[0, 2:5, 1] = False
    q, _ = agent.unroll(inputs, agent.initial_state(1), alive)
    fresh, _ = agent.unroll(inputs[:, 5:], agent.initial_state(1), alive[:, 5:])
    torch.testing.assert_close(q[:, 5:, 1], fresh[:, :, 1])
    assert not torch.allclose(q[:, 5:, 0], fresh[:, :, 0], atol=1e-4)  # the living remember


def test_forget_dead_clears_infinities_too():
    state = torch.full((1, 2, 3), float("nan"))
    state[0, 0] = 5.0
    (kept,) = forget_dead((state,), torch.tensor([[True, False]]))
    assert kept.tolist() == [[[5.0] * 3, [0.0] * 3]]


def policy(cls=RecurrentAgent, **changes):
    torch.manual_seed(0)
    switches = {"use_obs": True, "use_last_action": True, "use_agent_id": True, "normalize_obs": False, **changes}
    inputs = InputBuilder(n_agents=N, n_actions=A, obs_dim=5, **switches)
    return Policy(inputs=inputs, agent=make(cls, input_dim=inputs.output_dim))


def observation(obs, mask):
    e = obs.shape[0]
    return Observation(obs, torch.zeros(e, 2), torch.ones(e, N, A, dtype=torch.bool), mask)


def test_a_dead_agents_memory_starts_anew_in_the_actor():
    actor = Actor(policy(), 2, torch.device("cpu"))
    obs, mask = torch.randn(2, N, 5), torch.ones(2, N, dtype=torch.bool)
    actor.begin(torch.ones(2, dtype=torch.bool))
    actor.act(observation(obs, mask), 0.0, None)
    before = actor.state[0].clone()
    mask[1, 2] = False
    actor.act(observation(obs, mask), 0.0, None)
    after = actor.state[0]
    assert after[1, 2].abs().max() == 0
    assert after.abs().sum(-1).eq(0).sum() == 1
    assert before[1, 2].abs().max() > 0


def test_the_actor_begins_masked_environments_only():
    actor = Actor(policy(), 2, torch.device("cpu"))
    obs, mask = torch.randn(2, N, 5), torch.ones(2, N, dtype=torch.bool)
    actor.act(observation(obs, mask), 0.0, None)
    memory, last = actor.state[0].clone(), actor.last_action.clone()
    actor.begin(torch.tensor([True, False]))
    assert actor.state[0][0].abs().max() == 0
    assert torch.equal(actor.state[0][1], memory[1])
    assert actor.last_action.tolist() == [[-1] * N, last[1].tolist()]


def test_the_actor_has_its_own_parameters_until_published():
    mine = policy()
    actor = Actor(mine, 1, torch.device("cpu"))
    start = mine.agent.head.weight.clone()
    with torch.no_grad():
        mine.agent.head.weight += 1.0
    torch.testing.assert_close(actor.policy.agent.head.weight, start)
    actor.publish(mine)
    for a, b in zip(actor.policy.parameters(), mine.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not any(p.requires_grad for p in actor.policy.parameters())


@pytest.mark.parametrize("cls", CLASSES)
def test_acting_and_learning_compute_the_same_values(cls):
    """What the actor saw step by step is what the learner unrolls: inputs, last actions and memory."""
    net = policy(cls)
    actor = Actor(net, 4, torch.device("cpu"))
    g = torch.Generator().manual_seed(4)
    obs, alive = torch.randn(4, 7, N, 5, generator=g), torch.rand(4, 7, N, generator=g) > 0.3
    actor.begin(torch.ones(4, dtype=torch.bool))
    actions, values = [], []
    for t in range(7):
        with torch.no_grad():
            values.append(actor.policy(obs[:, t], actor.last_action, actor.state)[0])
        actions.append(actor.act(observation(obs[:, t], alive[:, t]), 1.0, torch.rand(4, N, 2, generator=g)).clone())
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


# Inputs -----------------------------------------------------------------------------------------------------------


def builder(**switches):
    return InputBuilder(
        n_agents=2,
        n_actions=3,
        obs_dim=2,
        **{**dict.fromkeys(("use_obs", "use_last_action", "use_agent_id", "normalize_obs"), False), **switches},
    )


OBS = torch.tensor([[[1.5, 2.5], [3.5, 4.5]]])
LAST = torch.tensor([[2, -1]])
PARTS = {
    "use_obs": [[1.5, 2.5], [3.5, 4.5]],
    "use_last_action": [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]],  # -1: there was none
    "use_agent_id": [[1.0, 0.0], [0.0, 1.0]],
}


@pytest.mark.parametrize("switches", [s for i in range(1, 8) if (s := [k for b, k in enumerate(PARTS) if i >> b & 1])])
def test_input_layout(switches):
    """Observation, last action, agent: in this order, each of its own width."""
    built = builder(**dict.fromkeys(switches, True))
    x = built(OBS, LAST)
    expected = [[v for part in PARTS if part in switches for v in PARTS[part][i]] for i in range(2)]
    assert x.tolist() == [expected]
    assert built.output_dim == len(expected[0])


def test_inputs_along_time_and_in_other_dtypes():
    built = builder(**PLAIN_INPUTS)
    obs, last = OBS[None].expand(4, 3, 2, 2).double(), LAST[None].expand(4, 3, 2)
    x = built(obs, last)
    assert x.shape == (4, 3, 2, 7)
    assert x.dtype == torch.float64
    assert torch.equal(x[2, 1].float(), built(OBS, LAST)[0])


def test_empty_input_is_refused():
    with pytest.raises(ValueError, match="the agent's input is empty: switch on use_obs, use_last_action or use_agent"):
        builder()


def test_wrong_shapes_are_named():
    built = builder(use_obs=True)
    with pytest.raises(ValueError, match=r"obs must end in \(2, 2\), got \(1, 2, 5\)"):
        built(torch.zeros(1, 2, 5), LAST)
    with pytest.raises(ValueError, match=r"last_action must be \(1, 2\), got \(1, 3\)"):
        built(OBS, torch.zeros(1, 3, dtype=torch.int64))
