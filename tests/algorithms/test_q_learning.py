import io
from dataclasses import replace

import pytest
import torch
from torch import nn

from qmix_lightning.algorithms.base import trainable_groups
from qmix_lightning.algorithms.q_learning import QLearning
from support.batches import double_batch, value_settings
from support.cases import pairwise
from support.learners import MIXERS, make_learner
from support.plain_losses.q_learning import plain_loss
from support.small_policies import AGENTS


def parameters(*modules):
    return [p.detach().clone() for m in modules for p in m.parameters()]


def same(left, right):
    assert len(left) == len(right)
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


# A plain recomputation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("double_q", "agent", "mixer"), pairwise([True, False], AGENTS, [*MIXERS, "qmix_ns", "qmix_lin", "vdn_s"])
)
def test_loss_equals_plain_loops(mixer, agent, double_q):
    learner = make_learner(mixer, agent, double_q=double_q, share="group")
    for seed, lengths in [(1, [9, 1, 5, 7]), (3, [2])]:
        batch = double_batch(seed, lengths)
        assert not batch.agent_mask.all()
        terms = learner.loss(batch)
        total, count = plain_loss(learner, batch, lengths, mixer)
        assert terms.count.item() == count
        # 1e-10 keeps what must be positive in QPLEX from being zero; the formula has none of it.
        assert terms.total.item() == pytest.approx(total, rel=1e-8)


@pytest.mark.parametrize("cut", [1, 3, 8])
def test_segments_with_their_state_equal_the_whole(cut):
    """A segment that carries the memory and the action before computes what the whole episode does."""
    policy = make_learner("vdn").policy
    batch = double_batch(5, [9, 9]).mask_invalid()
    whole = policy.unroll(batch)
    head = replace(
        batch,
        **{n: getattr(batch, n)[:, :cut] for n in ("actions", "reward", "terminated", "truncated", "filled")},
        **{n: getattr(batch, n)[:, : cut + 1] for n in ("obs", "state", "avail_actions", "agent_mask")},
    )
    inputs = policy.inputs(head.obs[:, :-1], head.last_actions()[:, :-1])
    _, memory = policy.agent.unroll(inputs, policy.initial_state(2), head.agent_mask[:, :-1])
    tail = replace(
        batch,
        **{n: getattr(batch, n)[:, cut:] for n in ("actions", "reward", "terminated", "truncated", "filled")},
        **{n: getattr(batch, n)[:, cut:] for n in ("obs", "state", "avail_actions", "agent_mask")},
        initial_state=memory,
        initial_action=batch.actions[:, cut - 1],
    )
    assert tail.last_actions()[:, 0].tolist() == batch.actions[:, cut - 1].tolist()
    alive = batch.agent_mask
    torch.testing.assert_close(policy.unroll(head)[alive[:, : cut + 1]], whole[:, : cut + 1][alive[:, : cut + 1]])
    torch.testing.assert_close(policy.unroll(tail)[alive[:, cut:]], whole[:, cut:][alive[:, cut:]])
    without = policy.unroll(replace(tail, initial_state=None))
    assert not torch.allclose(without[alive[:, cut:]], whole[:, cut:][alive[:, cut:]], atol=1e-6)


# Targets follow -------------------------------------------------------------------------------------------------------


def drift(learner):
    with torch.no_grad():
        for p in [*learner.policy.parameters(), *learner.mixer.parameters()]:
            p.add_(torch.randn_like(p))


def online(learner):
    return parameters(learner.policy, learner.mixer)


def target(learner):
    return parameters(learner.target_policy, learner.target_mixer)


def test_hard_copies_by_episodes():
    """Every 200 episodes from the last copy: at 200, and after one at 203 not before 403."""
    learner = make_learner(target_update_every=200, target_update_unit="episodes")
    copied = []
    for updates, episodes in enumerate([1, 100, 199, 200, 201, 399, 403, 602, 603, 1500]):
        drift(learner)
        before = target(learner)
        learner.after_update(episodes=episodes, updates=updates * 1000)
        assert same(target(learner), before) or same(target(learner), online(learner))
        if same(target(learner), online(learner)):
            copied.append(episodes)
    assert copied == [200, 403, 603, 1500]
    assert learner.last_copy == 1500


def test_hard_copies_by_updates():
    learner = make_learner("vdn", target_update_every=3, target_update_unit="updates")
    copied = []
    for updates in range(1, 11):
        drift(learner)
        learner.after_update(episodes=10**6, updates=updates)
        if same(target(learner), online(learner)):
            copied.append(updates)
    assert copied == [3, 6, 9]


def test_soft_steps():
    learner = make_learner(target_update_mode="soft", target_update_tau=0.25)
    for _ in range(3):
        drift(learner)
        expected = [t + 0.25 * (o - t) for t, o in zip(target(learner), online(learner), strict=True)]
        learner.after_update(episodes=0, updates=1)
        for got, wanted in zip(target(learner), expected, strict=True):
            torch.testing.assert_close(got, wanted)


def test_targets_start_as_copies_of_their_own():
    source = make_learner()
    learner = QLearning(
        policy=source.policy,
        mixer=source.mixer,
        settings=value_settings(target_update_every=1, target_update_unit="updates", target_update_tau=0.1),
    )
    assert same(target(learner), online(learner))
    drift(learner)
    assert not same(target(learner), online(learner))


def test_the_state_is_whole():
    learner = make_learner()
    drift(learner)
    learner.after_update(episodes=230, updates=7)
    drift(learner)
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    other = make_learner()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.last_copy == 230
    assert same(online(other), online(learner))
    assert same(target(other), target(learner))
    for learning in (learner, other):
        learning.after_update(episodes=429, updates=8)
    assert not same(target(other), online(other))
    for learning in (learner, other):
        learning.after_update(episodes=430, updates=9)
    assert same(target(other), online(other))
    assert other.last_copy == learner.last_copy == 430


def test_parameter_groups():
    learner = make_learner("qmix")
    groups = learner.parameter_groups()
    assert [g["name"] for g in groups] == ["policy", "mixer"]
    listed = [id(p) for g in groups for p in g["params"]]
    assert listed == [id(p) for p in (*learner.policy.parameters(), *learner.mixer.parameters())]
    assert [g["name"] for g in make_learner("vdn").parameter_groups()] == ["policy"]
    assert trainable_groups({"nothing": nn.ReLU()}) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_update_mode": "slow"}, "target_update_mode must be 'hard' or 'soft', not 'slow'"),
        ({"target_update_unit": "steps"}, "target_update_unit must be 'episodes' or 'updates', not 'steps'"),
        ({"target_update_every": 0}, "target_update_every must be at least 1, not 0"),
        ({"target_update_tau": 0.0}, r"target_update_tau must be in \(0, 1\], not 0.0"),
        ({"target_update_tau": 1.5}, r"target_update_tau must be in \(0, 1\], not 1.5"),
        ({"gamma": 1.01}, r"gamma must be in \[0, 1\], not 1.01"),
        ({"gamma": -0.1}, r"gamma must be in \[0, 1\], not -0.1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make_learner(**settings)
