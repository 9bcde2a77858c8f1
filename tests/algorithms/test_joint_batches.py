"""QTRAN and weighted QMIX: batches that are joined, the settings of a value learner, a state that is whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qmix_lightning.types import TrajectoryBatch
from support.batches import double_batch
from support.joint_learners import LEARNERS, make


def rows_of(batch: TrajectoryBatch, rows: slice) -> TrajectoryBatch:
    return batch.map(lambda x: x[rows])


@pytest.mark.parametrize("name", LEARNERS)
def test_two_parts_of_a_batch_add_up_to_the_whole(name: str):
    """Loss, count and gradients: so ranks that hold a part each train as one that holds all."""
    learner, batch = make(name), double_batch()
    whole = learner.loss(batch)
    whole.total.backward()
    expected = [p.grad.clone() for p in learner.parameters() if p.requires_grad]
    learner.zero_grad()
    parts = [learner.loss(rows_of(batch, rows)) for rows in (slice(0, 2), slice(2, None))]
    sum(part.total for part in parts).backward()
    assert whole.count == sum(part.count for part in parts)
    torch.testing.assert_close(whole.total, sum(part.total for part in parts))
    for p, gradient in zip((p for p in learner.parameters() if p.requires_grad), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


@pytest.mark.parametrize("name", LEARNERS)
def test_importance_weights_multiply_each_rows_loss(name: str):
    learner, batch = make(name), double_batch()
    alone = torch.stack([learner.loss(rows_of(batch, slice(b, b + 1))).total for b in range(5)])
    weight = torch.tensor([0.5, 1.0, 0.0, 2.0, 0.25], dtype=torch.float64)
    terms = learner.loss(replace(batch, extras={"weight": weight}))
    torch.testing.assert_close(terms.total, (alone * weight).sum())
    # How wrong a row is does not depend on how much it counts.
    torch.testing.assert_close(terms.td_errors, learner.loss(batch).td_errors)
    assert (terms.td_errors > 0).all()


@pytest.mark.parametrize("name", LEARNERS)
def test_values_and_rewards_may_be_normalised(name: str):
    """Rewards a thousand times as large: the same targets in the networks' scale, and logs in the rewards' own."""
    small, large = (make(name, normalize_rewards="scale", normalize_values=True) for _ in range(2))
    batch = double_batch()
    bigger = replace(batch, reward=1000 * batch.reward)
    for _ in range(3):
        for learner, seen in ((small, batch), (large, bigger)):
            learner.observe(seen)
            terms = learner.loss(seen)
    torch.testing.assert_close(small.loss(batch).total, large.loss(bigger).total, rtol=1e-6, atol=1e-9)
    assert terms.total.isfinite()
    plain = make(name, normalize_values=True)
    first = plain.loss(bigger)
    plain.observe(bigger)
    then = plain.loss(bigger)
    count = first.count.item()
    assert abs(first.sums["target"].item() / count) < 1e3
    assert then.total < 10 * count  # the networks' targets have deviation 1, the rewards 1000
    assert not torch.isclose(first.total, then.total)


@pytest.mark.parametrize("name", LEARNERS)
def test_the_state_is_whole(name: str, tmp_path: Path):
    learner = make(name, normalize_values=True)
    learner.loss(double_batch())
    learner.after_update(episodes=230, updates=7)
    torch.save(learner.state_dict(), tmp_path / "state.pt")
    other = make(name, seed=1, normalize_values=True)
    assert other.loss(double_batch(3)).total != learner.loss(double_batch(3)).total
    learner.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    one, two = learner.loss(double_batch(3)), other.loss(double_batch(3))
    assert one.total.item() == two.total.item()
    assert other.last_copy == 230


@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize("name", LEARNERS)
def test_targets_follow(name: str, double_q: bool):
    learner = make(name, double_q=double_q, target_update_every=3, target_update_unit="updates")
    pairs = [
        (a, b)
        for online, target in learner.target_pairs()
        for a, b in zip(online.parameters(), target.parameters(), strict=True)
    ]
    learner.after_update(episodes=0, updates=2)
    assert not any(torch.equal(a, b) for a, b in pairs)
    learner.after_update(episodes=0, updates=3)
    assert all(torch.equal(a, b) for a, b in pairs)
