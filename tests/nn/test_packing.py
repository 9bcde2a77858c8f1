"""Computing only what happened gives what computing everything does."""

from dataclasses import replace

import pytest
import torch

from qmix_lightning.agents.base import Agent
from qmix_lightning.nn.mlp import hypernetwork, side_by_side
from qmix_lightning.nn.packing import Packing
from support.batches import LENGTHS, double_batch, random_batch
from support.cases import every_value, pairwise
from support.learners import make_learner
from support.small_policies import AGENTS, A, N, build_policy

SHARING = [True, False, "group"]


def masks():
    g = torch.Generator().manual_seed(0)
    yield "everyone", torch.ones(3, 5, N, dtype=torch.bool)
    yield "nobody", torch.zeros(3, 5, N, dtype=torch.bool)
    yield "one step", torch.rand(4, 1, N, generator=g) > 0.5
    yield "one row", torch.rand(1, 8, N, generator=g) > 0.4
    for i in range(4):
        yield f"random {i}", torch.rand(6, 9, N, generator=g) > 0.25 * (i + 1) - 0.1


@pytest.mark.parametrize("columns", [1, N])
@pytest.mark.parametrize("alive", [pytest.param(m, id=name) for name, m in masks()])
def test_every_step_of_an_alive_agent_has_one_packed_row_after_the_step_before(alive, columns):
    packing = Packing.of(alive, columns)
    _, t, n = alive.shape
    assert packing.counts == sorted(packing.counts, reverse=True)
    assert sum(packing.counts) * columns == len(packing.source)
    if columns == 1:
        assert len(packing.source) == alive.sum()
    grid = packing.source.view(-1, columns).tolist()
    seen = {}  # position to (row, column); a padding packed row repeats one that is already there, in any column
    packed_rows = range(len(packing.source)) if packing.packed_rows is None else packing.packed_rows.tolist()
    for position, packed_row in zip(packing.alive.tolist(), packed_rows, strict=True):
        row, column = divmod(packed_row, columns)
        assert grid[row][column] == position
        assert column == (position % n if columns > 1 else 0)
        assert position not in seen
        seen[position] = (row, column)
    assert sorted(seen) == alive.flatten().nonzero().flatten().tolist()
    starts = [sum(packing.counts[:k]) for k in range(len(packing.counts) + 1)]
    step_of = {row: k for k in range(len(packing.counts)) for row in range(starts[k], starts[k + 1])}
    for position, (row, column) in seen.items():
        time, k = position // n % t, step_of[row]
        if time > 0 and position - n in seen:  # the packed row before, in the same line
            assert seen[position - n] == (starts[k - 1] + row - starts[k], column)
        else:
            assert k == 0


@pytest.mark.parametrize("columns", [1, N])
def test_gather_and_scatter(columns):
    alive = random_batch(0, LENGTHS).agent_mask
    packing = Packing.of(alive, columns)
    values = torch.randn(*alive.shape, 2)
    back = packing.scatter(packing.gather(values))
    assert torch.equal(back, values.where(alive[..., None], torch.zeros(())))


def test_columns_are_one_or_as_many_as_agents():
    with pytest.raises(ValueError, match="columns must be 1 or 3, not 2"):
        Packing.of(torch.ones(1, 2, 3, dtype=torch.bool), 2)


# Policies -------------------------------------------------------------------------------------------------------------


def policy(agent, share, dtype=torch.float64, inputs=None, **settings):
    torch.manual_seed(0)
    return build_policy(agent, share=share, inputs=inputs, **settings).to(dtype)


def plainly(net, batch):
    """One step after the other over everything, as an agent that knows of no packing is unrolled."""
    state = batch.initial_state or net.initial_state(batch.batch_size)
    features, _ = Agent.unroll_body(net.agent, net.inputs(batch.obs, batch.last_actions()), state, batch.agent_mask)
    return features, net.agent.head(features)


def with_state(batch, net):
    g = torch.Generator().manual_seed(5)
    state = tuple(torch.randn(s.shape, generator=g, dtype=s.dtype) for s in net.initial_state(batch.batch_size))
    return replace(batch, initial_state=state, initial_action=torch.randint(0, A, (batch.batch_size, N), generator=g))


def spoiled(batch):
    """Not a number where nobody looks."""
    alive = batch.agent_mask & batch.row_valid()[..., None]
    return replace(batch, obs=batch.obs.where(alive[..., None], torch.full((), float("nan"), dtype=batch.obs.dtype)))


@pytest.mark.parametrize(
    ("segment", "settings", "share", "agent"),
    pairwise([False, True], [{}, {"layer_norm": True, "dueling": True}], SHARING, AGENTS),
)
def test_packed_values_and_gradients_are_the_plain_ones(agent, share, settings, segment):
    net = policy(agent, share, **settings)
    batch = double_batch(1)
    if segment:
        batch = with_state(batch, net)
    clean = batch.mask_invalid()
    packed = spoiled(batch).mask_invalid(skip=("obs",))
    assert packed.obs.isnan().any()
    alive = clean.agent_mask
    assert (alive[:, 1:] & ~alive[:, :-1]).any(), "somebody must live again"
    features, q = plainly(net, clean)
    torch.testing.assert_close(net.unroll_features(packed)[alive], features[alive])
    mine = net.unroll(packed)
    torch.testing.assert_close(mine[alive], q[alive])
    assert mine[~alive].abs().max() == 0
    weights = torch.randn(q.shape, dtype=q.dtype)
    expected = torch.autograd.grad((q * weights)[alive].sum(), list(net.parameters()))
    got = torch.autograd.grad((mine * weights).sum(), list(net.parameters()))
    torch.testing.assert_close(got, expected)


INPUTS = [
    {"use_obs": True, "use_last_action": False, "use_agent_id": False},
    {"use_obs": False, "use_last_action": True, "use_agent_id": False},
    {"use_obs": False, "use_last_action": False, "use_agent_id": True},
    {"use_obs": True, "use_last_action": True, "use_agent_id": True, "normalize_obs": True},
]


@pytest.mark.parametrize(("inputs", "share"), every_value(INPUTS, SHARING))
def test_packed_inputs_are_rows_of_the_joined_input(inputs, share):
    net = policy("recurrent", share, inputs=inputs)
    batch = double_batch(2).mask_invalid()
    net.inputs.observe(batch, lambda tensor: tensor)
    packing = Packing.of(batch.agent_mask, net.agent.columns)
    expected = net.inputs(batch.obs, batch.last_actions())[batch.agent_mask]
    assert torch.equal(packing.scatter(net.inputs.packed(batch, packing))[batch.agent_mask], expected)


@pytest.mark.parametrize("agent", AGENTS)
def test_two_policies_at_once_are_one_after_the_other(agent):
    net, other = policy(agent, True), policy(agent, True)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn_like(p))
    batch = double_batch(1).mask_invalid()
    q, target = net.unroll_online_and_target(other, batch)
    torch.testing.assert_close(q, net.unroll(batch))
    torch.testing.assert_close(target, other.unroll(batch).detach())
    assert not target.requires_grad


def relative(got, wanted):
    return float((got - wanted).norm() / wanted.norm())


def outcome(learner, batch):
    learner.zero_grad()
    terms = learner.loss(batch)
    (terms.total / terms.count).backward()
    joined = torch.cat([p.grad.flatten().double() for p in learner.parameters() if p.grad is not None])
    return terms.total.detach().double() / terms.count, joined


@pytest.mark.parametrize(("share", "agent"), every_value(SHARING, AGENTS))
def test_precision_of_loss_and_gradient(agent, share):
    """The loss in single precision within 1e-5 of float64, and its gradient; under autocast both within 1e-2 of the
    plain way under the same autocast (which is further than that from float64, where ReLUs and signs flip)."""
    batch = random_batch(3, [30, 22, 30, 11, 5, 29, 30, 17])
    exact = outcome(make_learner("qmix", agent, share=share), batch.to(torch.device("cpu"), torch.float64))
    learner = make_learner("qmix", agent, share=share).float()
    for got, wanted in zip(outcome(learner, batch), exact, strict=True):
        assert relative(got, wanted) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        low = outcome(learner, batch)
        for net in (learner.policy, learner.target_policy):
            net.agent.columns = 0  # no way of its own: step by step
        plain = outcome(learner, batch)
    assert 1e-5 < relative(low[0], exact[0]) < 1e-2
    for got, wanted in zip(low, plain, strict=True):
        assert relative(got, wanted) < 1e-2


def test_a_team_that_is_dead_altogether():
    """There is nothing to compute, and the loss knows."""
    learner = make_learner("vdn")
    batch = double_batch(4, [3, 2])
    batch.agent_mask[:] = False
    terms = learner.loss(batch)
    terms.total.backward()
    assert terms.count == 5
    torch.testing.assert_close(terms.total.detach(), batch.reward[batch.filled].square().sum())


def test_a_changed_batch_forgets_what_was_computed_of_it():
    net, batch = policy("recurrent", True), double_batch(5).mask_invalid()
    before = net.unroll(batch)
    fewer = batch.agent_mask.clone()
    fewer[0, 0, 0] = not fewer[0, 0, 0]
    assert not torch.equal(net.unroll(replace(batch, agent_mask=fewer)), before)
    assert net.unroll(batch.map(lambda x: x[:2])).shape[0] == 2


def test_hypernetworks_side_by_side():
    networks = [hypernetwork(5, 7, 1, 3), hypernetwork(5, 4, 2, 3), torch.nn.Linear(5, 2), hypernetwork(5, 1, 3, 6)]
    state = torch.randn(2, 3, 5)
    for got, network in zip(side_by_side(networks, state), networks, strict=True):
        torch.testing.assert_close(got, network(state))
