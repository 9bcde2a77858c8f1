"""QPLEX: its formula, that the joint greedy action is the agents' own, and a table that no monotonic mixer holds."""

import itertools
import math

import pytest
import torch

from qmix_lightning.action_selection import greedy_actions
from qmix_lightning.envs.matrix import Matrix
from qmix_lightning.mixers.base import MixerCall
from support.batches import double_batch
from support.cases import every_value
from support.small_mixers import qplex, seen_at, small_mixer
from support.small_policies import OBS, A, N, S

F64 = torch.float64


def make(*, seed=0, n=N, a=A, state=S, spread=1.0, **changed):
    """A mixer with random weights, ``spread`` times as large as it starts with."""
    torch.manual_seed(seed)
    mixer = small_mixer("qplex", n=n, a=a, obs=OBS, state=state, **changed).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.mul_(spread)
    return mixer


def random_inputs(count, seed=1):
    """Values of the actions taken, states, greedy values at least as large, and actions."""
    g = torch.Generator().manual_seed(seed)
    q = 3 * torch.randn(count, 1, N, generator=g, dtype=F64)
    state = torch.randn(count, 1, S, generator=g, dtype=F64)
    greedy = q + torch.randn(count, 1, N, generator=g, dtype=F64).abs()
    return q, state, greedy, torch.randint(A, (count, 1, N), generator=g)


@pytest.mark.parametrize(("stop", "layers"), every_value([True, False], [1, 2, 3]))
def test_equals_the_published_formula(layers, stop):
    """V_tot + sum_i lambda_i A_i by loops: what is stopped is the gradient, not the value."""
    mixer = make(attention_layers=layers, stop_advantage_gradient=stop)
    q, state, greedy, actions = random_inputs(6)
    got = mixer(q, state, greedy, actions).detach()
    assert got.shape == (6, 1)
    for b in range(6):
        seen = seen_at(q[b, 0], state[b, 0], greedy[b, 0], actions[b, 0], torch.zeros(N, OBS))
        assert float(got[b, 0]) == pytest.approx(qplex(mixer, seen), rel=1e-8)


@pytest.mark.parametrize(("spread", "seed"), every_value([1.0, 4.0], range(5)))
def test_the_greedy_joint_action_is_the_agents_own(seed, spread):
    """Individual-global-max by enumeration: with illegal actions and dead agents."""
    mixer = make(seed=seed, spread=spread)
    mix = MixerCall(mixer)
    batch = double_batch(seed, [9, 4, 1]).mask_invalid()
    rows = slice(0, -1)
    b, t = batch.filled.shape
    g = torch.Generator().manual_seed(seed)
    q = 3 * torch.randn(b, t, N, A, generator=g, dtype=F64)
    avail, alive = batch.avail_actions[:, rows], batch.agent_mask[:, rows]
    q = torch.where(avail, q, q + 100.0)  # what is illegal tempts
    own = greedy_actions(q, avail)  # [B, T, N]
    top = mix(mixer, q, own, batch, rows)
    seen = 0
    for joint in itertools.product(range(A), repeat=N):
        actions = torch.tensor(joint).expand(b, t, N)
        legal = avail.gather(-1, actions[..., None]).squeeze(-1).all(-1) & batch.filled
        value = mix(mixer, q, actions, batch, rows)
        same = (actions == own).all(-1)
        assert (value < top)[legal & ~same].all()
        assert (value == top)[legal & same].all()
        seen += int(legal.sum())
    assert seen > 100
    assert not alive[batch.filled].all()


@pytest.mark.parametrize("stop", [True, False])
def test_monotonic_in_each_agents_advantage(stop):
    """``dQ_tot/dA_i = w_i lambda_i > 0`` at the same greedy value; with the stop, the agents see ``w_i`` alone."""
    mixer = make(spread=2.0, stop_advantage_gradient=stop)
    q, state, greedy, actions = random_inputs(200)
    q.requires_grad_()
    greedy.requires_grad_()
    slope, other = torch.autograd.grad(mixer(q, state, greedy, actions).sum(), (q, greedy), allow_unused=True)
    weight = mixer.weight(state).abs()
    attention = mixer.advantage_weights(state, actions)
    assert (attention > 0).all()
    assert (weight > 0).all()
    torch.testing.assert_close(slope, weight if stop else weight * attention)
    if stop:
        assert other is None
    else:
        torch.testing.assert_close(other, weight * (1 - attention))
    # The value itself rises with the advantage either way.
    with torch.no_grad():
        for i in range(N):
            less = q - torch.eye(N, dtype=F64)[i]
            assert (mixer(less, state, greedy, actions) < mixer(q, state, greedy, actions)).all()


def test_the_weights_see_the_joint_action_and_the_state():
    heads = make().advantage_weights
    state = torch.randn(1, 1, S, dtype=F64)
    one, other = torch.tensor([[[0, 1, 2]]]), torch.tensor([[[0, 1, 3]]])
    assert not torch.allclose(heads(state, one)[..., 0], heads(state, other)[..., 0])  # by what another one does
    assert not torch.allclose(heads(state, one), heads(2 * state, one))


def test_holds_qtrans_game_exactly():
    """One head of one layer: no monotonic mixer holds this table, where an action's worth hangs on the other's.

    Each agent's other actions lie 1 below its first. The weights must then be 20 where the other agent takes its first
    action, and 4 where it does not: a sigmoid of the other's action, times key and ``phi``.
    """
    mixer = make(n=2, a=3, state=1, attention_heads=1, attention_layers=1)
    heads = mixer.advantage_weights
    with torch.no_grad():
        for network in (mixer.weight, mixer.bias, heads.key, heads.phi, heads.psi):
            for parameter in network.parameters():
                parameter.zero_()
        mixer.weight[-1].bias.fill_(1.0)
        mixer.bias[-1].bias.fill_(4.0)
        heads.key[-1].bias.fill_(80.0)  # phi is 1/2
        few, many = math.log(0.1 / 0.9), 0.0  # sigmoid of 0.1 and of 0.5
        heads.psi[-1].bias.fill_(few)
        heads.psi[-1].weight[0, 1 + 3] = many - few  # agent 1, by agent 2's first action
        heads.psi[-1].weight[1, 1] = many - few
    payoff = torch.tensor(Matrix(num_envs=1, preset="qtran").exact_q_values(0.99)["1"], dtype=F64)
    q = torch.tensor([0.0, -1.0, -1.0], dtype=F64)
    for joint in itertools.product(range(3), repeat=2):
        actions = torch.tensor(joint)[None, None]
        value = mixer(q[actions], torch.ones(1, 1, 1, dtype=F64), torch.zeros(1, 1, 2, dtype=F64), actions)
        assert value.item() == pytest.approx(float(payoff[joint]), abs=1e-6)


def test_wrong_shapes_are_named():
    q, state, greedy, actions = random_inputs(2)
    with pytest.raises(
        ValueError, match=r"expected greedy_qs and actions \(2, 1, 3\), got \(2, 1, 3\) and \(2, 1, 2\)"
    ):
        make()(q, state, greedy, actions[..., :2])
    with pytest.raises(ValueError, match=r"expected agent_qs \[..., 3\] and state \[..., 6\]"):
        make()(q, state[..., :2], greedy, actions)


@pytest.mark.parametrize("name", ["attention_heads", "attention_layers", "hypernet_dim"])
def test_bad_settings(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        make(**{name: 0})
