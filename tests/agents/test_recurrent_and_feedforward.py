import pytest
import torch
from torch import nn

from qmix_lightning.agents.base import Agent, forget_dead
from qmix_lightning.agents.feedforward import FeedForwardAgent
from qmix_lightning.agents.recurrent import RecurrentAgent
from qmix_lightning.nn.layers import AgentLinear, parameter_sets
from support.cases import every_value
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
def test_a_set_of_parameters_changes_its_own_agents_only(cls):
    for share, own in {True: [(0, 1, 2)], False: [(0,), (1,), (2,)], "group": [(0, 2), (1,)]}.items():
        agent = make(cls, share)
        assert [changed_agents(agent, i) for i in range(len(own))] == own
        assert all(p.shape[0] == len(own) for p in agent.parameters())


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


@pytest.mark.parametrize(("cls", "bad"), every_value(CLASSES, ["all", "True", None, 2]))
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


def test_agents_that_share_nothing_take_a_batch_in_which_nobody_lives():
    layer = AgentLinear([0, 1, 2], 4, 5)
    assert layer(torch.zeros(0, 3, 4)).shape == (0, 3, 5)
    assert layer(torch.zeros(2, 0, 3, 4)).shape == (2, 0, 3, 5)


# Death ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_dead_agents_memory_starts_anew_in_a_sequence():
    agent = make(RecurrentAgent)
    inputs, alive = torch.randn(1, 8, N, I), torch.ones(1, 8, N, dtype=torch.bool)
    alive[0, 2:5, 1] = False
    q, _ = agent.unroll(inputs, agent.initial_state(1), alive)
    fresh, _ = agent.unroll(inputs[:, 5:], agent.initial_state(1), alive[:, 5:])
    torch.testing.assert_close(q[:, 5:, 1], fresh[:, :, 1])
    assert not torch.allclose(q[:, 5:, 0], fresh[:, :, 0], atol=1e-4)  # those alive remember


def test_forget_dead_clears_infinities_too():
    state = torch.full((1, 2, 3), float("nan"))
    state[0, 0] = 5.0
    (kept,) = forget_dead((state,), torch.tensor([[True, False]]))
    assert kept.tolist() == [[[5.0] * 3, [0.0] * 3]]
