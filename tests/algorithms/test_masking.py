"""What has no meaning has no influence: padding, dead agents and illegal actions may hold anything."""

from dataclasses import replace

import pytest
import torch

from qmix_lightning.types import TrajectoryBatch
from support.batches import double_batch
from support.cases import every_value
from support.garbage import GARBAGE, INF, NAN, assert_unchanged, dirty_dead, dirty_padding, garbage_like, outcome
from support.learners import MIXERS, make_learner
from support.small_policies import AGENTS, A
from support.updates import MADE, batch_for


@pytest.mark.parametrize("name", [name for name in MADE if name not in ("ippo", "mappo")])  # theirs is in test_ppo
def test_padding_and_dead_agents(name):
    learner, clean = MADE[name](), batch_for(name).to(torch.device("cpu"), torch.float64)
    dirty = [dirty_dead(dirty_padding(clean, garbage), garbage) for garbage in GARBAGE]
    assert not any(torch.equal(other.obs, clean.obs) for other in dirty)
    assert_unchanged(learner, clean, *dirty)


def test_what_has_meaning_has_influence():
    """The check itself: one number that counts changes the loss."""
    clean, learner = double_batch(), make_learner()
    before = outcome(learner, clean)[0].total.item()
    alive = clean.agent_mask[0, :, 0].nonzero()[0, 0]
    for name, index in [("obs", (0, alive, 0, 0)), ("state", (2, 3, 0)), ("reward", (0, 8))]:
        dirty = clean.map(torch.clone)
        getattr(dirty, name)[index] += 0.5
        assert outcome(learner, dirty)[0].total.item() != before, name


def longer(data: TrajectoryBatch, steps: int) -> TrajectoryBatch:
    def extend(value: torch.Tensor) -> torch.Tensor:
        return torch.cat([value, garbage_like(NAN, value[:, :1]).expand(-1, steps, *value.shape[2:])], dim=1)

    names = ("obs", "state", "avail_actions", "agent_mask", "actions", "reward", "terminated", "truncated", "filled")
    return replace(data, **{n: extend(getattr(data, n)) for n in names})


@pytest.mark.parametrize(("agent", "mixer"), every_value(AGENTS, MIXERS))
def test_longer_padding(mixer, agent):
    """Other episodes in the batch decide how long the rows are."""
    clean, learner = double_batch(), make_learner(mixer, agent)
    terms, gradients = outcome(learner, clean)
    other, other_gradients = outcome(learner, longer(clean, 5))
    assert other.count == terms.count
    torch.testing.assert_close(other.total, terms.total)
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient)


class Spoiled(torch.nn.Module):
    """A policy whose illegal actions' values are replaced."""

    def __init__(self, policy, garbage):
        super().__init__()
        self.policy = policy
        self.garbage = garbage

    def unroll(self, data):
        q = self.policy.unroll(data)
        return torch.where(data.avail_actions, q, garbage_like(self.garbage, q))


@pytest.mark.parametrize(
    ("double_q", "garbage", "agent", "mixer"), every_value([True, False], GARBAGE, reversed(AGENTS), MIXERS)
)
def test_values_of_illegal_actions(mixer, agent, garbage, double_q):
    clean, learner = double_batch(), make_learner(mixer, agent, double_q=double_q)
    # No-ops that padding and the dead take are legal after the batch is cleaned; every other action taken was legal.
    learner.policy, learner.target_policy = Spoiled(learner.policy, 0.0), Spoiled(learner.target_policy, 0.0)
    terms, gradients = outcome(learner, clean)
    learner.policy.garbage = learner.target_policy.garbage = garbage
    other, other_gradients = outcome(learner, clean)
    assert other.total.item() == terms.total.item()
    assert other.sums["target"].item() == terms.sums["target"].item()
    for name, gradient in gradients.items():
        assert torch.equal(other_gradients[name], gradient), name


LEARNERS = {name: made for name, made in MADE.items() if name.startswith(("qmix", "qtran", "cw_", "ow_"))}


@pytest.mark.parametrize(("garbage", "name"), every_value([INF, -INF, NAN], LEARNERS))
def test_an_action_that_is_never_legal(name, garbage):
    """Padded actions of an agent with fewer have outputs too, of which nothing is ever learned."""
    clean, learner = double_batch(), LEARNERS[name]()
    clean.avail_actions[..., A - 1] = False
    clean.actions[clean.actions == A - 1] = 0
    terms, gradients = outcome(learner, clean)
    policies = [part for child, part in learner.named_children() if child.endswith("policy")]
    with torch.no_grad():
        for policy in policies:
            policy.agent.head.bias[:, A - 1] = garbage
    other, other_gradients = outcome(learner, clean)
    assert other.total.item() == terms.total.item()
    for gradient_of, gradient in gradients.items():
        assert torch.equal(other_gradients[gradient_of], gradient), gradient_of
    assert gradients["policy.agent.head.bias"][:, A - 1].abs().max() == 0


def test_masking_leaves_what_counts_as_it_is():
    clean = dirty_dead(dirty_padding(double_batch(), NAN), INF).mask_invalid()
    original = double_batch()
    valid, filled = original.row_valid(), original.filled
    alive = original.agent_mask & valid[..., None]
    assert torch.equal(clean.obs[alive], original.obs[alive])
    assert torch.equal(clean.state[valid], original.state[valid])
    assert torch.equal(clean.avail_actions[alive], original.avail_actions[alive])
    assert torch.equal(clean.reward[filled], original.reward[filled])
    assert torch.equal(clean.terminated, original.terminated)
    assert torch.equal(clean.truncated, original.truncated)
    assert torch.equal(clean.filled, filled)
    acting = alive[:, :-1] & filled[..., None]
    assert torch.equal(clean.actions[acting], original.actions[acting])
    # and the rest is the constant that belongs there
    assert torch.equal(clean.agent_mask, alive)
    assert clean.obs[~alive].abs().sum() == 0
    assert clean.state[~valid].abs().sum() == 0
    assert clean.reward[~filled].abs().sum() == 0
    assert (clean.actions[~acting] == 0).all()
    assert (clean.avail_actions[~alive] == (torch.arange(A) == 0)).all()
