"""Prioritised replay against its definition: probabilities, weights, new and stale priorities, and resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qmix_lightning.checkpoint.files import read_checkpoint
from qmix_lightning.errors import RunError
from qmix_lightning.replay import sampler as batch_source
from qmix_lightning.replay.prioritized import PrioritizedReplay, SumTree, importance_weights
from qmix_lightning.runtime import prng
from qmix_lightning.runtime.prng import Purpose
from support import inprocess, runs
from support.cases import every_value
from support.collecting import varying
from support.data_modules import make, next_batch, resumed
from support.episodes import TENSORS, episode, spec

EPSILON = 1e-6


def filled(count, capacity=8, alpha=0.6, beta=0.4, beta_anneal_steps=100) -> PrioritizedReplay:
    settings = {"alpha": alpha, "beta": beta, "beta_anneal_steps": beta_anneal_steps}
    replay = PrioritizedReplay(spec(), capacity, **settings)
    for i in range(count):
        replay.add(episode(i, 1 + i % 3))
    return replay


def held(replay) -> np.ndarray:
    return np.arange(replay.first_id, replay.next_id)


# The tree -------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(1, 40),
    changes=st.lists(st.lists(st.tuples(st.integers(0, 39), st.floats(0, 100)), min_size=1, max_size=8), max_size=6),
)
def test_the_tree_finds_what_cumulative_sums_find(size, changes):
    tree, plain = SumTree(size), np.zeros(size)
    for change in [*changes, [(0, 1.0)]]:
        numbers = {i % size: value for i, value in change}
        index, values = np.array(list(numbers)), np.array(list(numbers.values()))
        tree.set(index, values)
        plain[index] = values
    again = SumTree(size)
    again.set(np.arange(size), plain)
    assert np.array_equal(again._nodes, tree._nodes)  # whatever the way there, bit for bit
    assert tree.total == pytest.approx(plain.sum())
    ends = np.cumsum(plain)
    mass = np.linspace(0, 1, 101)[:-1] * tree.total
    for m, i in zip(mass, tree.find(mass), strict=True):
        assert plain[i] > 0
        assert ends[i] - plain[i] <= m + 1e-9 * tree.total
        assert m <= ends[i] + 1e-9 * tree.total


# Drawing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "count"), every_value([0.0, 0.6, 1.0], [5, 8, 21]))
def test_probabilities_are_those_of_the_definition(alpha, count):
    replay = filled(count, alpha=alpha)
    errors = np.linspace(0.1, 4.0, len(replay)) ** 2
    replay.update_priorities(held(replay), errors)
    wanted = [(e + EPSILON) ** alpha for e in errors]
    wanted = np.array(wanted) / sum(wanted)
    # Of each draw: the first episode, from the oldest place in memory on, at which the sum passes it.
    order = sorted(range(len(replay)), key=lambda k: (replay.first_id + k) % replay.capacity)
    for key in range(20):
        ids, probabilities = replay.draw(6, key)
        assert probabilities == pytest.approx(wanted[ids - replay.first_id])
        random = np.random.Generator(np.random.Philox(key=key)).random(6)
        for row in range(6):
            point, passed = (row + random[row]) / 6, 0.0
            for k in order:
                passed += wanted[k]
                if passed > point:
                    break
            assert ids[row] == replay.first_id + k


def test_every_part_of_the_total_gives_one():
    """An episode with three tenths of the priority is drawn three times in ten, give or take the two at its edges."""
    replay = filled(8, alpha=1.0)
    replay.update_priorities(held(replay), np.array([3.0, 0.5, 0.5, 0.5, 0.5, 2.0, 1.0, 2.0]))
    for key in range(50):
        counts = np.bincount(replay.draw(10, key)[0], minlength=8)
        assert counts[0] == 3
        assert counts[5] == counts[7] == 2
        assert counts.sum() == 10


def test_draws_are_a_pure_function_of_key_and_contents():
    replay = filled(21)
    replay.update_priorities(held(replay), np.arange(1.0, 9.0))
    first = replay.draw(6, 123)
    replay.draw(3, 9)
    np.random.seed(0)
    assert all(np.array_equal(a, b) for a, b in zip(first, replay.draw(6, 123), strict=True))
    assert len({tuple(replay.draw(6, k)[0]) for k in range(50)}) > 20
    batch, ids = replay.sample(6, 123), first[0]
    for b, i in enumerate(ids):
        one = replay.get(i)
        for name in TENSORS:
            assert torch.equal(getattr(batch, name)[b, : len(getattr(one, name))], getattr(one, name))


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_are_those_of_the_definition(beta):
    """``(n P)^-beta`` over the largest of them, over all rows of all ranks, whose shards hold different priorities."""
    shards = [filled(8), filled(5)]
    for shard, scale in zip(shards, (1.0, 7.0), strict=True):
        shard.update_priorities(held(shard), scale * np.linspace(0.1, 3.0, len(shard)) ** 2)
    drawn = [shard.draw(6, 4)[1] for shard in shards]
    n = sum(map(len, shards))
    joined = np.concatenate(drawn) / len(shards)  # a row of the joined batch comes from either rank
    plain = [(n * p) ** -beta for p in joined]
    plain = [w / max(plain) for w in plain]
    least = min(p.min() for p in drawn)
    weights = torch.cat([importance_weights(p, least, beta) for p in drawn])
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx(plain, rel=1e-6)
    assert float(weights.max()) == 1.0


def test_beta_rises_to_one():
    assert [filled(0).beta(steps) for steps in (0, 50, 100, 10**6)] == pytest.approx([0.4, 0.7, 1.0, 1.0])
    assert filled(0, beta_anneal_steps=None).beta(10**6) == 0.4
    assert filled(0, beta_anneal_steps=0).beta(0) == 1.0


# Priorities -----------------------------------------------------------------------------------------------------------


def test_a_new_episode_has_the_largest_priority_so_far():
    replay = filled(2)
    assert replay.priorities(held(replay)).tolist() == [1.0, 1.0]
    replay.update_priorities(np.array([0, 1]), np.array([0.25, 5.0]))
    replay.add(episode(2, 1))
    assert replay.priorities(held(replay)) == pytest.approx([0.25, 5.0, 5.0], rel=1e-5)
    replay.update_priorities(np.array([1, 2]), np.array([0.5, 0.5]))
    replay.add(episode(3, 1))  # the largest ever, not the largest held
    assert replay.priorities(held(replay)) == pytest.approx([0.25, 0.5, 0.5, 5.0], rel=1e-5)


def test_a_stale_update_is_dropped():
    """Of episodes that have left, also when others lie in their place; and of such that never were."""
    replay = filled(8)
    ids = held(replay)
    for i in range(8, 11):
        replay.add(episode(i, 1))
    before = replay.priorities(held(replay))
    replay.update_priorities(ids[:3], np.full(3, 9.0))
    replay.update_priorities(np.array([11, 19, -1]), np.full(3, 9.0))
    assert np.array_equal(replay.priorities(held(replay)), before)
    assert replay.largest == 1.0
    replay.update_priorities(ids, np.arange(8.0))
    assert replay.priorities(np.arange(3, 11)) == pytest.approx([3, 4, 5, 6, 7, 1, 1, 1], abs=1e-5)


def test_an_episode_that_was_drawn_twice_keeps_its_larger_error():
    replay = filled(3)
    replay.update_priorities(np.array([1, 2, 1, 1]), np.array([0.5, 0.1, 3.0, 2.0]))
    assert replay.priorities(held(replay)) == pytest.approx([1.0, 3.0, 0.1], abs=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_error_that_is_no_number_does_not_reach_the_sums(bad):
    replay = filled(4)
    replay.update_priorities(held(replay), np.array([bad, 0.0, 2.0, 0.5]))
    assert replay.priorities(held(replay)) == pytest.approx([1.0, 0.0, 2.0, 0.5], abs=1e-5)
    assert np.isfinite(replay.draw(4, 0)[1]).all()


def test_an_error_of_nothing_can_still_be_drawn():
    replay = filled(4, alpha=1.0)
    replay.update_priorities(held(replay), np.zeros(4))
    assert replay.draw(4, 0)[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("alpha", [0.6, 0.0])
def test_what_was_cleared_is_not_drawn(alpha):
    replay = filled(8, alpha=alpha)
    replay.clear()
    with pytest.raises(ValueError, match="cannot draw 2 episodes from none"):
        replay.draw(2, 0)
    replay.add(episode(8, 1))
    assert replay.draw(3, 0)[0].tolist() == [8, 8, 8]


@pytest.mark.parametrize("count", [5, 21])
def test_priorities_come_back_exactly(count):
    replay, other = filled(count), filled(0)
    replay.update_priorities(held(replay), np.linspace(0.1, 4.0, len(replay)) ** 2)
    replay.update_priorities(held(replay)[1:3], np.array([30.0, 0.7]))
    other.restore(replay.first_id, replay.export(replay.first_id, replay.next_id), replay.first_id)
    other.restore_beside(replay.saved_beside(), ())
    for key in range(5):
        for a, b in zip(replay.draw(4, key), other.draw(4, key), strict=True):
            assert np.array_equal(a, b)
    for one in (replay, other):
        one.add(episode(40, 2))
    assert np.array_equal(replay._tree._nodes, other._tree._nodes)
    with pytest.raises(RunError, match="does not hold the priorities of its"):
        other.restore_beside({"priorities": {"priorities": torch.ones(2), "largest": 1.0}}, ())


# In a run -------------------------------------------------------------------------------------------------------------


def prioritized(**changed):
    env = varying(2)
    store = PrioritizedReplay(env.spec, 9, alpha=0.6, beta=0.4, beta_anneal_steps=100)
    env.close()
    return {"env": varying, "num_envs": 2, "batch_size": 4, "replay": store, **changed}


def learn(data, batch) -> None:
    """Give back errors that depend on the batch."""
    data.update_priorities(batch.episode_ids, batch.trajectories.reward.abs().sum(1))


def test_a_batch_has_the_weights_and_ids_of_its_draw():
    data = make(**prioritized())
    for _ in range(15):
        batch = next_batch(data)
        key = int(prng.derive_key(5, 0, Purpose.SAMPLE, data.counters.updates)[0])
        ids, probabilities = data.replay.draw(4, key)
        assert batch.episode_ids.tolist() == ids.tolist()
        assert torch.equal(batch.trajectories.obs, data.replay.gather(ids).obs)
        beta = 0.4 + 0.6 * min(1.0, data.counters.env_steps / 100)
        plain = (len(data.replay) * probabilities) ** -beta
        assert batch.trajectories.extras["weight"].numpy() == pytest.approx(plain / plain.max(), rel=1e-6)
        learn(data, batch)
    assert len(set(data.replay.priorities(held(data.replay)).tolist())) > 3
    uniform = next_batch(make(varying))
    assert (uniform.episode_ids, uniform.trajectories.extras) == (None, {})


def test_the_largest_weight_is_that_of_all_ranks(monkeypatch: pytest.MonkeyPatch):
    data = make(**prioritized())
    batch = next_batch(data)
    learn(data, batch)
    monkeypatch.setattr(batch_source, "least_number", lambda number, device: number / 16)  # another rank's is smaller
    data.replay._beta, data.replay._beta_anneal_steps = 0.5, None
    key = int(prng.derive_key(5, 0, Purpose.SAMPLE, data.counters.updates + 1)[0])
    batch = next_batch(data)
    assert float(batch.trajectories.extras["weight"].max()) == pytest.approx(0.25)
    assert batch.episode_ids.tolist() == data.replay.draw(4, key)[0].tolist()


def test_resumes_bit_for_bit_between_updates(tmp_path: Path):
    def play(data, updates):
        found = []
        for _ in range(updates):
            batch = next_batch(data)
            found.append((batch.episode_ids.tolist(), batch.trajectories.extras["weight"].tolist()))
            learn(data, batch)
        return found

    reference = make(**prioritized())
    expected = play(reference, 9)
    for at in (0, 5):
        data = make(**prioritized())
        assert play(data, at) == expected[:at]
        (folder := tmp_path / str(at)).mkdir()
        assert play(resumed(data, folder, prioritized()), 9 - at) == expected[at:]


SETTINGS = ["replay=prioritized", "replay.batch_size=8", "replay.capacity=64", "replay.dtype=float16"]
SETTINGS += ["replay.storage=memmap", "replay.priority_beta_anneal_steps=400"]


def from_its_middle(tmp_path: Path, run: Callable[[list[str]], object], *extra: str) -> tuple[Path, Path]:
    """A run, and the same one in two parts, of which the first ends at an evaluation that the whole has too."""
    whole, again = tmp_path / "whole", tmp_path / "again"
    arguments = [*runs.BASE, *SETTINGS, *extra, "eval_interval=120"]
    run([*arguments, f"run_dir={whole}", "total_env_steps=200"])
    run([*arguments, f"run_dir={again}", "total_env_steps=120"])
    assert read_checkpoint(again / "checkpoints" / "last.ckpt")["env_steps"] < 180
    run([*arguments, f"run_dir={again}", "total_env_steps=200", "ckpt_path=last"])
    return whole, again


def check_learned(run: Path) -> None:
    """Every rank's priorities have moved away from what new episodes get."""
    for rank in read_checkpoint(run / "checkpoints" / "last.ckpt")["ReplayDataModule"]["ranks"]:
        priorities = rank["priorities"]["priorities"]
        assert len(priorities.unique()) > 8
        assert bool((priorities <= rank["priorities"]["largest"]).all())


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path):
    whole, again = from_its_middle(tmp_path, inprocess.succeed)
    runs.assert_same_run(whole, again)
    check_learned(whole)


@pytest.mark.slow
def test_two_ranks_go_on_as_if_they_had_not_stopped(tmp_path: Path):
    whole, again = from_its_middle(tmp_path, runs.run, *runs.TWO_RANKS)
    runs.assert_same_run(whole, again)
    check_learned(whole)
