"""The store of a round: epochs of its episodes, draws that stay, and what the next round drops."""

from __future__ import annotations

import numpy as np
import pytest

from qmix_lightning.replay.on_policy import RoundStore
from qmix_lightning.rollout.collector import Collector
from qmix_lightning.types import Episode
from support.collecting import make_collector, play_round


def fill(store: RoundStore, source: Collector) -> list[Episode]:
    episodes, _ = play_round(source)
    for episode in episodes:
        store.add(episode)
    source.begin_round()
    return episodes


def contents(batch) -> list[str]:
    """What tells episodes apart."""
    return [str((o[f].tolist(), a[f].tolist())) for o, a, f in
            zip(batch.obs[:, :-1], batch.actions, batch.filled, strict=True)]  # fmt: skip


def test_an_epoch_has_every_episode_once_and_an_order_of_its_own():
    source = make_collector(2, 6)
    store = RoundStore(source.env.spec, 6)
    fill(store, source)
    epochs = []
    for epoch in range(3):
        batches = [store.minibatch(2, 3 * epoch + part, seed=1, rank=0) for part in range(3)]
        epochs.append([c for b in batches for c in contents(b)])
        assert len(set(epochs[-1])) == 6
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    assert contents(store.minibatch(2, 4, seed=1, rank=0)) == epochs[1][2:4]
    assert contents(store.minibatch(6, 0, seed=1, rank=1)) != contents(store.minibatch(6, 0, seed=1, rank=0))


def test_an_episode_keeps_its_draws_in_every_epoch():
    source = make_collector(2, 6)
    store = RoundStore(source.env.spec, 6)
    fill(store, source)
    seen: dict[str, list[list[float]]] = {}
    for update in range(6):
        batch = store.minibatch(3, update, seed=1, rank=0)
        for content, draws in zip(contents(batch), batch.extras["draws"].tolist(), strict=True):
            seen.setdefault(content, []).append(draws)
    assert all(draws == [draws[0]] * 3 for draws in seen.values())
    numbers = np.array([draws[0] for draws in seen.values()])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert len(np.unique(numbers)) == numbers.size


def test_a_new_round_drops_the_last_one():
    source = make_collector(2, 4)
    store = RoundStore(source.env.spec, 4)
    first = fill(store, source)
    (episodes, _) = play_round(source)
    store.add(episodes[0])
    assert (len(store), store.first_id, store.next_id) == (1, 4, 5)
    with pytest.raises(ValueError, match="cannot divide 1 episodes of a round of 4 into batches of 2"):
        store.minibatch(2, 0, seed=1, rank=0)
    for episode in episodes[1:]:
        store.add(episode)
    batch = store.minibatch(4, 0, seed=1, rank=0)
    old = {str((e.obs[:-1].tolist(), e.actions.tolist())) for e in first}
    assert old.isdisjoint(contents(batch))
