"""QTRAN: its losses by loops, what they teach, the theorem at the end of learning, what the joint value can hold."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from qmix_lightning.algorithms.qtran import counterfactual_sums, least_over_own_actions, summed_values
from support.batches import LENGTHS, double_batch
from support.cases import every_value
from support.joint_learners import RETURNS, joint_actions, make
from support.matrix_games import recipe_returns, train_on
from support.plain_losses.qtran import plain_loss
from support.small_policies import A, N, S

NAMES = ("qtran_base", "qtran_alt")
F64 = torch.float64


# -- a plain recomputation ----------------------------------------------------------------------------------------


def check_loss(name, lengths=LENGTHS, agent="recurrent", **settings):
    learner = make(name, agent, **settings)
    batch = double_batch(1, lengths)
    assert not batch.agent_mask.all()
    terms = learner.loss(batch)
    expected = plain_loss(learner, batch, lengths, name == "qtran_alt")
    for part, value in expected.items():
        assert value > 0
        assert terms.sums[f"loss_{part}"].item() == pytest.approx(value, rel=1e-9), part
    weighted = expected["td"] + learner.lambda_opt * expected["opt"] + learner.lambda_nopt * expected["nopt"]
    assert terms.total.item() == pytest.approx(weighted, rel=1e-9)
    assert terms.count.item() == sum(lengths)


@pytest.mark.parametrize(("returns", "name"), every_value(RETURNS, NAMES))
def test_loss_equals_plain_loops(name, returns):
    check_loss(name, returns=returns)


@pytest.mark.parametrize("name", NAMES)
def test_loss_equals_plain_loops_with_other_settings(name):
    check_loss(name, double_q=False, joint_state=False, lambda_opt=2.0, lambda_nopt=0.1)
    check_loss(name, [2, 3], agent="feedforward")


# -- what the losses teach ----------------------------------------------------------------------------------------


def gradients(name, **settings):
    learner = make(name, **settings)
    learner.loss(double_batch()).total.backward()
    return {n: p.grad for n, p in learner.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", NAMES)
def test_the_joint_value_learns_from_the_temporal_difference_alone(name):
    """In both conditions it is held fixed: they shape the agents and the state value."""
    both, neither = gradients(name), gradients(name, lambda_opt=0.0, lambda_nopt=0.0)
    only = [n for n in both if n.startswith("joint.")]
    assert len(only) > 4
    for n in only:
        assert both[n].abs().max() > 0
        torch.testing.assert_close(both[n], neither[n])
    assert all(neither[n].abs().max() == 0 for n in both if "head" in n or n.startswith("state_value"))
    # It teaches the agents' bodies all the same.
    assert all(neither[n].abs().max() > 0 for n in both if n.startswith("policy.agent.encode"))


# -- the pieces ---------------------------------------------------------------------------------------------------


def random_step(seed=0):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(5, N, A, generator=g, dtype=F64)
    return q, torch.randint(A, (5, N), generator=g), torch.rand(5, N, generator=g) > 0.3


def test_counterfactual_sums_by_enumeration():
    q, actions, alive = random_step()
    found = counterfactual_sums(q, actions, alive)
    for b, i, a in itertools.product(range(5), range(N), range(A)):
        if alive[b, i]:
            changed = actions.clone()
            changed[b, i] = a
            torch.testing.assert_close(found[b, i, a], summed_values(q, changed, alive)[b])


def test_the_least_is_over_legal_actions():
    values = torch.tensor([[[3.0, -5.0, 1.0], [float("nan"), 2.0, 4.0]]])
    legal = torch.tensor([[[True, False, True], [False, True, True]]])
    assert least_over_own_actions(values, legal).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("name", NAMES)
def test_an_agents_preference_depends_on_the_others(name):
    """By enumeration with random weights: what no monotonic mixing of the agents' values can hold."""
    joint = make(name).joint
    with torch.no_grad():
        for p in joint.parameters():
            p.mul_(3.0)
    g = torch.Generator().manual_seed(3)
    features = 2 * torch.randn(20, N, 8, generator=g, dtype=F64)
    state = torch.randn(20, S, generator=g, dtype=F64)
    alive = torch.ones(20, N, dtype=torch.bool)
    q = torch.randn(20, N, A, generator=g, dtype=F64)

    def reorders(value):
        """``[20]``: the first agent's actions rank otherwise where the others act otherwise."""
        columns = [value(torch.tensor(u).expand(20, N)) for u in joint_actions()]
        order = torch.stack(columns, -1).reshape(20, A, A * A).argsort(dim=1)
        return (order != order[..., :1]).any(1).any(1)

    assert reorders(lambda u: joint.of(features, u, alive, state)).sum() >= 3
    assert not reorders(lambda u: summed_values(q, u, alive)).any()


def test_the_counterfactual_values_do_not_see_the_own_action():
    joint = make("qtran_alt").joint
    g = torch.Generator().manual_seed(4)
    features, state = torch.randn(1, N, 8, generator=g, dtype=F64), torch.randn(1, S, generator=g, dtype=F64)
    alive = torch.ones(1, N, dtype=torch.bool)
    one, other = (joint(features, torch.tensor([[a, 1, 2]]), alive, state) for a in (0, 3))
    torch.testing.assert_close(one[0, 0], other[0, 0])
    assert not torch.allclose(one[0, 1], other[0, 1])


# -- refusing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_opt": -1.0}, "lambda_opt must not be negative, but is -1.0"),
        ({"lambda_nopt": -0.5}, "lambda_nopt must not be negative, but is -0.5"),
        ({"joint_hidden_dim": 0}, "joint_hidden_dim must be at least 1, not 0"),
        ({"mixer": "qmix"}, "the agents' values are added up: mixer must be vdn"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make("qtran_base", **settings)


# -- learning -----------------------------------------------------------------------------------------------------


def check_theorem(game):
    """Eq. 4a and 4b hold, so the agents' own actions are the best ones of the joint value (individual-global-max)."""
    joint, summed, v = game.joint_table(), game.summed_table(), game.state_value()
    gap = summed - joint + v
    own = game.greedy()
    torch.testing.assert_close(joint, game.payoff, atol=0.3, rtol=0)
    assert abs(gap[own]) < 0.3
    assert gap.min() > -0.3
    assert joint.argmax() == summed.argmax() == game.payoff.argmax()
    assert game.payoff[own] == 8


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_the_theorem_holds_on_every_seed(name, seed):
    check_theorem(train_on("qtran", name, seed=seed, updates=2500))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_finds_eight_on_four_of_five_seeds(name, tmp_path: Path):
    found = recipe_returns(name, tmp_path)
    assert found.count(8.0) >= 4, found
