"""Rounds: dealt beforehand, played by one policy, learned from in epochs, dropped, and resumed from any step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qmix_lightning.checkpoint.segments import SegmentStore
from qmix_lightning.errors import ConfigurationError, RunInterrupted
from qmix_lightning.replay import sampler as batch_source
from qmix_lightning.replay.on_policy import RoundStore
from qmix_lightning.rollout.collector import Collector
from qmix_lightning.training import datamodule
from qmix_lightning.types import Episode
from qmix_lightning.vector.factory import Backend, make_vector_env
from qmix_lightning.worker.fault_tolerance import FaultLimit
from support import data_modules, faulty, inprocess
from support.collecting import assert_same, copied, make_collector, play_round, two_step, varying
from support.compositions import run_config
from support.data_modules import fingerprint, redeem
from support.fakes import VaryingLength

ON_POLICY = ["replay=on_policy", "rollout.update_every=${replay.capacity}"]


def make(env=varying, num_envs=2, *, capacity=6, batch_size=3, updates=4, ranks=1, **settings):
    one = env(1)
    store = RoundStore(one.spec, capacity // ranks)
    one.close()
    return data_modules.make(
        env, num_envs, every=capacity, updates=updates, batch_size=batch_size, replay=store, **settings
    )


# Collecting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_envs", "size"), [(3, 7), (4, 4), (1, 5), (5, 12)])
def test_a_round_is_the_first_episodes_of_every_slot(num_envs: int, size: int):
    """Each slot plays its share and waits, however long the others take; the next round goes on from there."""
    dealt = [size // num_envs + (slot < size % num_envs) for slot in range(num_envs)]
    expected: list[list[Episode]] = []
    for slot in range(num_envs):  # what the slot plays when nobody waits
        free = make_collector(num_envs)
        expected.append([])
        while len(expected[slot]) < 2 * dealt[slot]:
            free.collect(0.5)
            if free._ended[slot]:
                expected[slot].append(copied(free._recorder.episode(slot, True, False)))
    source = make_collector(num_envs, size)
    for number in range(2):
        episodes, steps = play_round(source)
        assert len(episodes) == size
        assert steps == sum(e.length for e in episodes)
        wanted = [
            e for slot, own in enumerate(expected) for e in own[number * dealt[slot] : (number + 1) * dealt[slot]]
        ]
        assert len(wanted) == size
        for episode in episodes:
            (match,) = [e for e in wanted if torch.equal(e.obs[0], episode.obs[0]) and e.length == episode.length]
            assert torch.equal(match.actions, episode.actions)
            assert torch.equal(match.reward, episode.reward)
        source.begin_round()


def test_a_slot_that_waits_is_not_stepped():
    source = make_collector(2, 4)
    step, active = source.env.step, []

    def watched(actions, mask):
        active.append(mask.clone())
        return step(actions, mask)

    source.env.step = watched
    episodes, steps = play_round(source)
    assert torch.stack(active).sum() == steps == sum(e.length for e in episodes)
    assert not torch.stack(active).all()


def test_processes_collect_the_same_rounds():
    def process(num_envs: int):
        backend = Backend("process", 2, 20.0, FaultLimit(5, 600.0))
        return make_vector_env(VaryingLength, {}, num_envs=num_envs, name="varying", backend=backend)

    here, there = make_collector(3, 5), make_collector(3, 5, process)
    try:
        for _ in range(2):
            (left, steps), (right, same_steps) = play_round(here), play_round(there)
            assert steps == same_steps
            for a, b in zip(left, right, strict=True):
                assert_same(a, b)
            here.begin_round()
            there.begin_round()
    finally:
        there.close()


def test_an_episode_that_fails_is_dealt_again(tmp_path: Path):
    backend = Backend("sync", 1, 20.0, FaultLimit(5, 600.0))
    settings = {"fault": "raise", "folder": str(tmp_path), "times": 2}

    def failing(num_envs: int):
        return make_vector_env(faulty.Faulty, settings, num_envs=num_envs, name="faulty", backend=backend)

    source = make_collector(3, 6, failing)
    episodes, steps = play_round(source)
    assert source.env.faults["raised"] == 2
    assert len(episodes) == 6
    assert steps == sum(e.length for e in episodes)  # what was played of the others is taken back


# The store ------------------------------------------------------------------------------------------------------------


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


# The data module ------------------------------------------------------------------------------------------------------


def test_a_round_buys_its_updates_and_comes_from_one_policy_and_one_epsilon():
    data = make()
    collector = data._collector()
    collect, used = collector.collect, []

    def watched(epsilon, **settings):
        used.append((data.counters.updates, epsilon, float(collector.actor.policy.agent.head.bias[0, 0])))
        return collect(epsilon, **settings)

    collector.collect = watched
    ended = 0
    for number in range(5):
        start = data.counters.env_steps
        bias = float(data.policy.agent.head.bias[0, 0].detach())
        epsilon = max(0.0, 1 - start / 200)
        for _ in range(4):
            batch = redeem(data)
            assert data.counters.episodes == 6 * (number + 1)
            assert len(data.replay) == 6
            assert batch.trajectories.batch_size == 3
            assert batch.trajectories.extras["epsilon"].tolist() == pytest.approx([epsilon] * 3)
            with torch.no_grad():
                data.policy.agent.head.bias += 1.0
        assert data.counters.owed == 0
        assert {u[1:] for u in used[ended:]} == {(epsilon, bias)}
        assert {u[0] for u in used[ended:]} == {4 * number}
        ended = len(used)


def test_a_first_round_longer_than_the_budget_is_finished():
    data = make(total_env_steps=3)
    redeem(data)
    assert data.counters.episodes == 6


def test_a_round_that_outlasts_the_budget_is_not_the_end():
    """Interrupted behind the budget but within its round, a resumed run plays on to the round's updates."""
    data = make(total_env_steps=10)
    step = data._env.step

    def stepping(actions, active):
        if data.counters.env_steps >= 10:
            data.stop.signal_number = 15
        return step(actions, active)

    data._env.step = stepping
    with pytest.raises(RunInterrupted):
        redeem(data)
    assert data.counters.env_steps >= 10
    assert not data.finished
    data.stop.signal_number = 0
    data._env.step = step
    for left in (3, 2, 1, 0):
        redeem(data)
        assert data.finished == (left == 0)


def test_ranks_play_and_learn_from_their_shares(monkeypatch: pytest.MonkeyPatch):
    """Two ranks, of which the other one does exactly what this one does."""
    for where in (datamodule, batch_source):
        monkeypatch.setattr(where, "world_size", lambda: 2)
    monkeypatch.setattr(datamodule, "sum_numbers", lambda numbers, device: [2 * x for x in numbers])
    data = make(capacity=12, batch_size=4, updates=3, ranks=2)
    for update in range(6):
        batch = redeem(data)
        assert batch.trajectories.batch_size == 2
        assert (data.counters.episodes, len(data.replay)) == (12 * (update // 3 + 1), 6)
    assert data.counters.owed == 0


SETTINGS = {
    "rounds": {"capacity": 6, "batch_size": 3, "updates": 4},
    "slots left over": {"num_envs": 3, "capacity": 4, "batch_size": 4, "updates": 1},
    "native": {"env": two_step, "num_envs": 2, "capacity": 6, "batch_size": 2, "updates": 3},
}


def resumed(data, folder: Path, settings):
    if data.store is None:
        data.store = SegmentStore(folder, 0)
    torch.save(data.state_dict(), folder / "data.pt")
    other = make(**settings)
    other.store = SegmentStore(folder, 0)
    other.load_state_dict(torch.load(folder / "data.pt", weights_only=True))
    return other


def seen(batch):
    return (*fingerprint(batch), *(batch.trajectories.extras[k].tolist() for k in ("epsilon", "draws")))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_resumes_bit_for_bit_from_any_update(tmp_path: Path, settings):
    reference = make(**settings)
    expected = [seen(redeem(reference)) for _ in range(9)]
    for at in range(0, 9, 2):
        data = make(**settings)
        assert [seen(redeem(data)) for _ in range(at)] == expected[:at]
        folder = tmp_path / str(at)
        folder.mkdir()
        data = resumed(data, folder, settings)
        assert [seen(redeem(data)) for _ in range(at, 9)] == expected[at:]
        assert data.counters == reference.counters
        assert data.replay.content_hash() == reference.replay.content_hash()
        assert data.collector.state_dict()["quota"].tolist() == reference.collector.state_dict()["quota"].tolist()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_signal_at_any_step_of_a_round_changes_nothing(tmp_path: Path, settings):
    reference = make(**settings)
    expected = [seen(redeem(reference)) for _ in range(5)]
    for at in range(1, 25, 4):
        data = make(**settings)
        step, taken = data._env.step, [0]

        def stepping(actions, active, data=data, step=step, taken=taken, at=at):
            taken[0] += 1
            if taken[0] == at:
                data.stop.signal_number = 15
            return step(actions, active)

        data._env.step = stepping
        found = []
        while len(found) < 5:
            try:
                found.append(seen(redeem(data)))
            except RunInterrupted:
                folder = tmp_path / str(at)
                folder.mkdir()
                data = resumed(data, folder, settings)
        assert found == expected, f"signal in step {at}"
        assert data.counters == reference.counters
        assert data.replay.content_hash() == reference.replay.content_hash()
        mine, whole = data.collector.state_dict(), reference.collector.state_dict()
        assert mine.keys() == whole.keys()
        for left, right in zip(mine["memory"], whole["memory"], strict=True):
            assert torch.equal(left, right)


# The configuration ----------------------------------------------------------------------------------------------------


def test_the_updates_of_a_round_follow_its_capacity():
    config = run_config(*ON_POLICY, "replay.capacity=48", "replay.batch_size=16")
    assert config.rollout.update_every == 48
    for name in ("coma", "pqn_vdn", "pqn_qmix"):
        config = run_config(f"algorithm={name}", "replay.capacity=96")
        assert (config.replay.kind, config.rollout.update_every) == ("on_policy", 96)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["replay=on_policy"], r"equal to replay.capacity \(32\), not 1 episodes"),
        ([*ON_POLICY, "rollout.update_unit=env_steps"], "rollout.update_unit must be episodes"),
        ([*ON_POLICY, "replay.batch_size=7"], r"replay.capacity \(32\) must be a multiple of replay.batch_size \(7\)"),
        ([*ON_POLICY, "rollout.num_envs=64"], "a round of 32 episodes .* leaves some of 64 environments"),
        ([*ON_POLICY, "rollout.pipelined=true"], "rollout.pipelined must be false"),
    ],
)
def test_rounds_that_cannot_be_are_refused(overrides: list[str], message: str):
    with pytest.raises(ConfigurationError, match=message):
        run_config(*overrides)


def test_what_learns_on_policy_refuses_replay(tmp_path: Path):
    outcome = inprocess.command(
        ["algorithm=coma", "replay=uniform", "replay.batch_size=8", "replay.capacity=8", f"run_dir={tmp_path}"]
    )
    assert outcome.status == 2
    assert "algorithm 'coma' learns on-policy only: use replay=on_policy" in outcome.err
