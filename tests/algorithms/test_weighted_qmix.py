"""Weighted QMIX: both losses and both weightings by loops, what is monotonic and what is not, and QTRAN's game."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from qmix_lightning.algorithms.networks.weighted_qmix import CentralMixer
from qmix_lightning.algorithms.weighted_qmix import central_weights, optimistic_weights
from support.batches import LENGTHS, double_batch
from support.cases import every_value
from support.joint_learners import RETURNS, make
from support.matrix_games import recipe_returns, train_on
from support.plain_losses.weighted_qmix import plain_loss
from support.small_policies import A, N, S

NAMES = ("cw_qmix", "ow_qmix")
F64 = torch.float64


# -- a plain recomputation ----------------------------------------------------------------------------------------


def check_loss(name, lengths=LENGTHS, agent="recurrent", **settings):
    learner = make(name, agent, **settings)
    batch = double_batch(2, lengths)
    assert not batch.agent_mask.all()
    terms = learner.loss(batch)
    qmix_loss, central_loss, full = plain_loss(learner, batch, lengths, name == "cw_qmix")
    steps = sum(lengths)
    assert 0 < full < steps
    assert terms.count.item() == steps
    assert terms.sums["weight"].item() == pytest.approx(full + learner.alpha * (steps - full))
    assert terms.total.item() == pytest.approx(qmix_loss + central_loss, rel=1e-9)


@pytest.mark.parametrize(("returns", "name"), every_value(RETURNS, NAMES))
def test_loss_equals_plain_loops(name, returns):
    check_loss(name, returns=returns)


@pytest.mark.parametrize("name", NAMES)
def test_loss_equals_plain_loops_with_other_settings(name):
    check_loss(name, double_q=False, alpha=0.05)
    check_loss(name, [7, 3, 9], agent="feedforward", alpha=0.9)


# -- the weights --------------------------------------------------------------------------------------------------


def test_central_weights():
    y, best = torch.tensor([1.0, 3.0, 1.0, 2.0]), torch.tensor([2.0, 2.0, 2.0, 2.0])
    greedy = torch.tensor([False, False, True, False])
    assert central_weights(y, best, greedy, 0.25).tolist() == [0.25, 1.0, 1.0, 0.25]  # only what is better counts


def test_optimistic_weights():
    y, q_tot = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([2.0, 2.0, 2.0])
    assert optimistic_weights(y, q_tot, 0.25).tolist() == [0.25, 1.0, 0.25]


@pytest.mark.parametrize(("online", "target", "full"), [(0.0, 2.0, 0), (2.0, 0.0, 1)])
def test_the_central_weighting_compares_with_the_target_networks_value(online: float, target: float, full: int):
    """One step that pays ``y = 1`` and ends, by other actions than the greedy ones: full weight if ``Q*`` is below."""
    learner, batch = make("cw_qmix"), double_batch(0, [1])
    batch.terminated = batch.filled.clone()
    batch.reward[:] = 1.0
    batch.agent_mask[:] = batch.avail_actions[:] = True
    with torch.no_grad():
        batch.actions[0, 0] = (learner.policy.unroll(batch)[0, 0].argmax(-1) + 1) % A
        for mixer, value in ((learner.central_mixer, online), (learner.target_central_mixer, target)):
            mixer.value[-1].weight.zero_()
            mixer.value[-1].bias.fill_(value)
    terms = learner.loss(batch)
    assert terms.sums["target"].item() == 1.0
    assert terms.sums["q_central"].item() == online
    assert terms.sums["weight"].item() == (1.0 if full else learner.alpha)


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_scale_what_the_acting_network_learns_and_nothing_else(name):
    """Through them no gradient flows; the central value is learned with equal weights."""

    def gradients(alpha):
        learner = make(name, alpha=alpha)
        learner.loss(double_batch()).total.backward()
        return {n: p.grad for n, p in learner.named_parameters() if p.requires_grad}

    full, half, none = gradients(1.0), gradients(0.5), gradients(1e-9)
    for n in full:
        if n.startswith("central_"):
            torch.testing.assert_close(half[n], full[n])
        else:  # linear in alpha
            torch.testing.assert_close(half[n], (full[n] + none[n]) / 2, rtol=1e-6, atol=1e-8)
            assert not torch.allclose(none[n], full[n])


# -- representation -----------------------------------------------------------------------------------------------


def test_the_central_value_is_not_monotonic_and_the_acting_one_is():
    """By autograd with random weights: the same agent's value lifts ``Q*`` in one place and lowers it in another."""
    learner = make("cw_qmix")
    g = torch.Generator().manual_seed(5)
    q = 4 * torch.randn(200, 1, N, generator=g, dtype=F64)
    state = torch.randn(200, 1, S, generator=g, dtype=F64)
    slopes = {}
    for name in ("central_mixer", "mixer"):
        values = q.clone().requires_grad_()
        getattr(learner, name)(values, state).sum().backward()
        slopes[name] = values.grad[:, 0]
    assert (slopes["mixer"] >= 0).all()
    assert (slopes["mixer"] > 0).any(0).all()
    central = slopes["central_mixer"]
    assert ((central > 0).any(0) & (central < 0).any(0)).any()
    assert (central < 0).any(0).any()


def test_the_central_value_holds_qtrans_game():
    """One hidden layer: ``8 - 20 relu(x + y) + 32 relu(x + y - 1)`` over the agents' values ``x`` and ``y``."""
    mixer = CentralMixer(n_agents=2, state_dim=1, central_hidden_dim=2, central_hidden_layers=1).double()
    with torch.no_grad():
        first, last = mixer.value[0], mixer.value[2]
        first.weight.copy_(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]))
        first.bias.copy_(torch.tensor([0.0, -1.0]))
        last.weight.copy_(torch.tensor([[-20.0, 32.0]]))
        last.bias.fill_(8.0)
    # An agent's first action is worth 0 to it, the others 1.
    q = [0.0, 1.0, 1.0]
    payoff = [[8, -12, -12], [-12, 0, 0], [-12, 0, 0]]
    for i, j in itertools.product(range(3), repeat=2):
        value = mixer(torch.tensor([[[q[i], q[j]]]], dtype=F64), torch.ones(1, 1, 1, dtype=F64))
        assert value.item() == pytest.approx(payoff[i][j])


def test_the_two_kinds_of_agents_have_weights_of_their_own():
    learner = make("ow_qmix")
    groups = [group["name"] for group in learner.parameter_groups()]
    assert groups == ["policy", "mixer", "central_policy", "central_mixer"]
    for a, b in zip(learner.policy.parameters(), learner.central_policy.parameters(), strict=True):
        assert a.shape == b.shape
        assert not torch.equal(a, b)
    assert learner.target_policy is None  # with double Q-learning the online network selects
    assert make("ow_qmix", double_q=False).target_policy is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\], not 0.0"),
        ({"alpha": 1.5}, r"alpha must be in \(0, 1\], not 1.5"),
        ({"central_hidden_dim": 0}, "central_hidden_dim must be at least 1, not 0"),
        ({"central_hidden_layers": 0}, "central_hidden_layers must be at least 1, not 0"),
        ({"mixer": "none"}, "it weights the error of one team value: mixer must not be none"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make("cw_qmix", **settings)


def test_wrong_shapes_are_named():
    mixer = CentralMixer(n_agents=3, state_dim=S, central_hidden_dim=4, central_hidden_layers=1)
    with pytest.raises(ValueError, match=rf"expected agent_qs \[..., 3\] and state \[..., {S}\], got"):
        mixer(torch.zeros(2, 4, 3), torch.zeros(2, 4, S + 1))


# -- learning -----------------------------------------------------------------------------------------------------


def check_game(game):
    """``Q*`` is the table; ``Q_tot`` has its best cell and gives up the ones that nobody needs."""
    torch.testing.assert_close(game.central_table(), game.payoff, atol=0.5, rtol=0)
    table = game.mixed_table()
    assert game.payoff[game.greedy()] == 8
    assert table.argmax() == game.payoff.argmax()
    assert table.max() == pytest.approx(8, abs=1)
    assert (table - game.payoff).abs().max() > 2  # which no monotonic mixer can fit


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_learns_qtrans_game(name, seed):
    check_game(train_on("qtran", name, seed=seed, updates=1500, lr=2e-3))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_finds_eight_on_four_of_five_seeds(name, tmp_path: Path):
    found = recipe_returns(name, tmp_path)
    assert found.count(8.0) >= 4, found
