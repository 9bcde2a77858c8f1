import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qmix_lightning.errors import CheckpointError, RunError
from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.types import Episode
from support.cases import every_value
from support.episodes import OBS, TENSORS, A, N, assert_same, battle, episode, spec
from support.replays import content_hash


def assert_holds(replay, model):
    """``model``: every episode ever added; the last ``capacity`` of them must be held."""
    expected = model[-replay.capacity :]
    assert len(replay) == len(expected)
    assert replay.next_id == len(model)
    assert replay.first_id == len(model) - len(expected)
    for i, wanted in enumerate(expected, start=replay.first_id):
        assert_same(replay.get(i), wanted)


def filled(capacity, lengths):
    replay = EpisodeReplay(spec(), capacity)
    model = [episode(i, length) for i, length in enumerate(lengths)]
    for one in model:
        replay.add(one)
    return replay, model


@settings(max_examples=25, deadline=None)
@given(capacity=st.integers(1, 7), lengths=st.lists(st.integers(1, 400), max_size=40))
def test_equals_a_list(capacity, lengths):
    replay = EpisodeReplay(spec(), capacity)
    model = []
    for i, length in enumerate(lengths):
        model.append(episode(i, length))
        assert replay.add(model[-1]) == i
        assert_holds(replay, model)


@settings(max_examples=20, deadline=None)
@given(
    capacity=st.integers(1, 7),
    rounds=st.lists(st.lists(st.integers(1, 300), max_size=12), max_size=8),
    dtype=st.sampled_from(["float32", "float16"]),
)
def test_adding_several_equals_adding_each(capacity, rounds, dtype):
    """Among them episodes whose states are the joined observations, and such whose are not."""
    sizes = replace(spec(), state_dim=N * OBS)
    together, each = (EpisodeReplay(sizes, capacity, dtype=dtype) for _ in range(2))
    number = 0
    for lengths in rounds:
        episodes = []
        for length in lengths:
            one = episode(number, length)
            joined = one.obs.flatten(1)
            episodes.append(replace(one, state=joined if number % 3 else joined + 1.0))
            number += 1
        held = []
        for one in episodes:
            each.add(one)
            held.append(len(each))
        assert together.extend(episodes) == held
        assert content_hash(together) == content_hash(each)
    assert together.next_id == number


def test_equals_a_list_after_many_wraps():
    lengths = (1 + torch.randint(60, (600,), generator=torch.Generator().manual_seed(3))).tolist()
    replay = EpisodeReplay(spec(), 3)
    model = []
    for i, length in enumerate(lengths):
        model.append(episode(i, length))
        replay.add(model[-1])
        if i % 7 == 0:
            assert_holds(replay, model)
    assert_holds(replay, model)


def test_an_episode_longer_than_everything():
    replay, model = filled(3, [5, 7, 5000, 2, 2, 9000, 1])
    assert_holds(replay, model)


@pytest.mark.parametrize(("capacity", "length"), [(10, 9), (128, 7), (100, 25), (37, 80), (5, 1023)])
def test_memory_is_that_of_what_is_held(capacity, length):
    """And less than two chunks more, however many episodes have come and gone."""
    replay = EpisodeReplay(spec(), capacity)
    one = episode(0, length)
    rows = {replay._records: 1, replay._steps: length + 1, replay._state: length + 1}
    rows[replay._obs] = int(one.agent_mask.sum())
    for _ in range(5 * capacity):
        replay.add(one)
        for queue, each in rows.items():
            assert queue.nbytes < (each * len(replay) + 2 * queue.chunk_rows) * queue.row_bytes
    assert replay.nbytes() == sum(queue.nbytes for queue in rows)


def test_what_is_added_is_copied():
    replay = EpisodeReplay(spec(), 2)
    one = episode(0, 4)
    replay.add(one)
    for name in TENSORS:
        getattr(one, name).zero_()
    assert_same(replay.get(0), episode(0, 4))


@pytest.mark.parametrize("n_actions", [256, 257, 1000])
def test_large_actions_survive(n_actions):
    replay = EpisodeReplay(spec(n_actions), 2)
    one = episode(0, 3, n_actions)
    one.actions[0, 0] = n_actions - 1
    replay.add(one)
    assert int(replay.get(0).actions[0, 0]) == n_actions - 1
    assert int(replay.sample(1, 0).actions[0, 0, 0]) == n_actions - 1


# Sampling -------------------------------------------------------------------------------------------------------------


def identities(batch, model):
    """Which episode each row is, by its first observation."""
    first = {tuple(e.obs[0].flatten().tolist()): i for i, e in enumerate(model)}
    return [first[tuple(row.flatten().tolist())] for row in batch.obs[:, 0]]


def test_sample_is_padded_whole_episodes():
    # The long ones are gone when the replay is read, but their steps are still in memory.
    replay, model = filled(12, [80] * 12 + [3, 11, 1, 7, 2, 40, 5, 6, 9, 2, 8, 1, 4, 10])
    for key in range(30):
        batch = replay.sample(5, key)
        drawn = [model[i] for i in identities(batch, model)]
        horizon = max(e.length for e in drawn)
        assert batch.length == horizon
        for name, rows, dims in [
            ("obs", 1, (N, OBS)),
            ("avail_actions", 1, (N, A)),
            ("actions", 0, (N,)),
            ("reward", 0, ()),
        ]:
            assert getattr(batch, name).shape == (5, horizon + rows, *dims), name
        assert batch.actions.dtype == torch.int64
        for b, e in enumerate(drawn):
            length = e.length
            assert batch.filled[b].tolist() == [True] * length + [False] * (horizon - length)
            ends = [False] * (length - 1) + [True] + [False] * (horizon - length)
            assert batch.terminated[b].tolist() == [x and e.terminated for x in ends]
            assert batch.truncated[b].tolist() == [x and e.truncated for x in ends]
            for name in TENSORS:
                wanted = getattr(e, name)
                assert torch.equal(getattr(batch, name)[b, : len(wanted)], wanted), name
            # Padding is blank: never another's.
            assert (batch.obs[b, length + 1 :] == 0).all()
            assert (batch.state[b, length + 1 :] == 0).all()
            assert not batch.agent_mask[b, length + 1 :].any()
            assert (batch.avail_actions[b, length + 1 :] == torch.tensor([True, False, False])).all()
            assert (batch.actions[b, length:] == 0).all()
            assert (batch.reward[b, length:] == 0).all()


def test_sample_is_without_replacement():
    replay, model = filled(20, [2] * 25)
    for key in range(50):
        drawn = identities(replay.sample(20, key), model)
        assert sorted(drawn) == list(range(5, 25))
    assert all(len(set(identities(replay.sample(8, k), model))) == 8 for k in range(50))


def test_sample_is_a_pure_function_of_the_key():
    replay, model = filled(20, [2] * 20)
    first = identities(replay.sample(6, 123), model)
    replay.sample(3, 9)
    torch.manual_seed(0)
    assert identities(replay.sample(6, 123), model) == first
    assert len({tuple(identities(replay.sample(6, k), model)) for k in range(100)}) == 100
    assert identities(replay.sample(6, 2**64 - 1), model) != first  # keys have 64 bits


def test_sample_does_not_depend_on_the_layout():
    lengths = [5, 300, 2, 800, 9, 4, 30, 2, 700, 8]
    wrapped, model = filled(4, lengths)
    fresh = EpisodeReplay(spec(), 4)
    fresh.next_id = 6
    for one in model[-4:]:
        fresh.add(one)
    assert fresh._steps.first != wrapped._steps.first
    assert content_hash(fresh) == content_hash(wrapped)
    for key in range(10):
        a, b = wrapped.sample(3, key), fresh.sample(3, key)
        assert all(torch.equal(getattr(a, f), getattr(b, f)) for f in (*TENSORS, "filled", "terminated", "truncated"))


def test_sample_is_uniform():
    replay, model = filled(10, [1] * 10)
    counts = torch.zeros(10)
    for key in range(500):
        for i in identities(replay.sample(3, key), model):
            counts[i] += 1
    # 150 each; by drawing 3 of 10 the variance is 500 * 0.3 * 0.7 = 105
    assert (counts - 150).abs().max() < 4.5 * 105**0.5


# What is stored -------------------------------------------------------------------------------------------------------

PADDED = 4  # bytes of a number in the padded float32 store that others keep


def padded_bytes(s):
    """PyMARL's: an episode at full length, in float32 with one-hot actions, int64 actions and int32 legal actions."""
    n, a = s.n_agents, s.n_actions
    row = PADDED * (n * s.obs_dim + s.state_dim + 2 * n * a + 1) + 8 * n + 8 + 1  # and reward, filled, terminated
    return row * (s.episode_limit + 1)


@pytest.mark.parametrize("s", [battle(8, 128, 216, 14, 150), battle(10, 160, 290, 16, 150)], ids=["3s5z", "MMM"])
def test_bytes_against_a_padded_store(s):
    """Episodes that fill half of their limit."""
    length, share = s.episode_limit // 2, {}
    alive = torch.ones(length + 1, s.n_agents, dtype=torch.bool)
    dying = torch.arange(length + 1)[:, None] < torch.linspace(0.3, 1.2, s.n_agents) * length
    for name, dtype, mask in [
        ("float32", "float32", alive), ("float16", "float16", alive), ("deaths", "float16", dying)
    ]:  # fmt: skip
        replay = EpisodeReplay(s, 24, dtype=dtype)
        for _ in range(60):
            replay.add(
                Episode(
                    obs=torch.zeros(length + 1, s.n_agents, s.obs_dim),
                    state=torch.zeros(length + 1, s.state_dim),
                    avail_actions=torch.ones(length + 1, s.n_agents, s.n_actions, dtype=torch.bool),
                    agent_mask=mask,
                    actions=torch.zeros(length, s.n_agents, dtype=torch.int64),
                    reward=torch.zeros(length),
                    terminated=True,
                    truncated=False,
                )
            )
        share[name] = replay.nbytes() / (24 * padded_bytes(s))
    assert share["float32"] <= 0.43
    assert share["float16"] <= 0.22
    assert share["deaths"] < 0.8 * share["float16"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_training_sees_the_rounded_numbers(dtype):
    """Observations and states are those of the dtype; rewards, actions and masks are exact."""
    replay, kind = EpisodeReplay(spec(), 5, dtype=dtype), getattr(torch, dtype)
    model = [episode(i, 3 + i) for i in range(5)]
    for one in model:
        one.obs, one.state = one.obs * 100, one.state * 100
        replay.add(one)
        one.obs, one.state = one.obs.to(kind).float(), one.state.to(kind).float()
    assert_holds(replay, model)
    batch = replay.sample(3, 1)
    assert (batch.obs.dtype, batch.state.dtype) == (torch.float32, torch.float32)
    drawn = [model[i] for i in identities(batch, model)]
    assert all(torch.equal(batch.state[b, : e.length + 1], e.state) for b, e in enumerate(drawn))
    restored = EpisodeReplay(spec(), 5, dtype=dtype)
    restored.restore(0, replay.export(0, 5), 0)
    assert content_hash(restored) == content_hash(replay)
    assert torch.equal(restored.sample(3, 1).obs, batch.obs)


def test_a_number_too_large_for_float16_is_told():
    one = episode(0, 3)
    one.state[1, 2] = -70000.0
    message = (
        "an observation or a state holds -70000, too large for float16 (65504): set replay.dtype=bfloat16 or float32"
    )
    with pytest.raises(RunError, match=re.escape(message)):
        EpisodeReplay(spec(), 2, dtype="float16").add(one)
    one.state[1, 2] = torch.inf  # the environment's own: not for the replay to judge
    EpisodeReplay(spec(), 2, dtype="float16").add(one)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("dims", [(2, 2), (2, 1)], ids=["even", "ragged"])
def test_states_that_are_the_joined_observations_are_not_stored(dims, dtype):
    ragged = replace(spec(), obs_dims=dims, state_dim=sum(dims))
    replay, kind = EpisodeReplay(ragged, 6, dtype=dtype), getattr(torch, dtype)
    model = [episode(i, 2 + i) for i in range(6)]
    for i, one in enumerate(model):
        one.obs[..., 1, dims[1] :] = 0
        one.state = torch.cat([one.obs[:, k, :size] for k, size in enumerate(dims)], dim=1)
        if i == 4:  # not quite: this one has to be kept
            one.state[-1, 0] += 1.0
        replay.add(one)
        one.obs, one.state = one.obs.to(kind).float(), one.state.to(kind).float()
    assert replay._state.end == 7  # rows of number 4 alone
    assert_holds(replay, model)
    for drawn in ([0, 1, 2], [4, 0, 5], [4, 4]):  # all states from observations, some, none
        batch = replay.gather(np.array(drawn))
        for b, i in enumerate(drawn):
            assert torch.equal(batch.state[b, : 3 + i], model[i].state)
            assert (batch.state[b, 3 + i :] == 0).all()
    restored = EpisodeReplay(ragged, 6, dtype=dtype)
    restored.restore(0, replay.export(0, 6), 0)
    assert content_hash(restored) == content_hash(replay)
    assert_holds(restored, model)


def test_what_the_dead_see_is_not_stored():
    one, seen = episode(0, 30), episode(0, 30)
    one.obs[~one.agent_mask] = torch.nan  # meaningless by contract
    replay = EpisodeReplay(spec(), 2)
    replay.add(one)
    assert replay._obs.end == int(one.agent_mask.sum()) < 31 * N
    assert_same(replay.get(0), seen)


def test_everybody_may_be_dead_and_everything_empty():
    one = episode(0, 3)
    one.agent_mask[:] = False
    one.obs[:] = 0
    replay = EpisodeReplay(replace(spec(), state_dim=0), 2)
    one.state = one.state[:, :0]
    replay.add(one)
    assert_same(replay.get(0), one)


def test_clear_keeps_the_ids():
    replay, _ = filled(3, [2, 3, 4, 5])
    replay.clear()
    assert (len(replay), replay.first_id, replay.next_id) == (0, 4, 4)
    assert replay.add(episode(9, 6)) == 4
    assert_same(replay.get(4), episode(9, 6))


@pytest.mark.parametrize("joined", [False, True])
def test_a_batch_for_a_gpu_is_pinned(monkeypatch, joined):
    """Without a GPU memory cannot be pinned: here it is only noted."""
    pinned, empty = set(), torch.empty
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda t: t.untyped_storage().data_ptr() in pinned)

    def pin_memory(t):
        copy = t.clone()
        pinned.add(copy.untyped_storage().data_ptr())
        return copy

    def noted(*sizes, pin_memory=False):
        made = empty(*sizes)
        if pin_memory:
            pinned.add(made.untyped_storage().data_ptr())
        return made

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch, "empty", noted)
    replay = EpisodeReplay(replace(spec(), state_dim=N * OBS) if joined else spec(), 3, dtype="float16")
    for i in range(3):
        one = episode(i, 3 + i)
        one.state = one.obs.flatten(1) if joined else one.state
        replay.add(one)
    plain, batch = replay.gather(np.array([0, 2])), replay.gather(np.array([0, 2]), pin=True)
    for name in (*TENSORS, "filled", "terminated", "truncated"):
        assert getattr(batch, name).is_pinned(), name
        assert torch.equal(getattr(batch, name), getattr(plain, name)), name
        assert not getattr(plain, name).is_pinned()


# On disk --------------------------------------------------------------------------------------------------------------


def test_a_store_in_a_file_is_the_same_store(tmp_path):
    lengths = [5, 300, 2, 800, 9, 4, 30, 2, 700, 8]
    replay, _ = filled(4, lengths)
    folder = tmp_path / "not" / "yet" / "there"
    on_disk = EpisodeReplay(spec(), 4, folder=folder)
    assert not folder.exists()  # before anything is written
    for i, length in enumerate(lengths):
        on_disk.add(episode(i, length))
    assert content_hash(on_disk) == content_hash(replay)
    assert torch.equal(on_disk.sample(3, 1).obs, replay.sample(3, 1).obs)
    assert on_disk.nbytes() == replay.nbytes()
    assert list(folder.iterdir()) == []  # files without a name


# Between processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("capacity", "cuts"), every_value([3, 7, 100], [[10], [2, 5, 10], list(range(1, 11))]))
def test_export_and_restore_in_segments(capacity, cuts):
    """Segments were written while the replay filled; some of their episodes have left since."""
    lengths = [4, 1, 9, 300, 2, 700, 3, 3, 1, 8]
    replay = EpisodeReplay(spec(), capacity)
    segments, start = [], 0
    for end in cuts:
        for i in range(start, end):
            replay.add(episode(i, lengths[i]))
        begin = max(start, replay.first_id)
        segments.append((begin, replay.export(begin, end)))
        start = end
    restored = EpisodeReplay(spec(), capacity)
    for first_id, segment in segments:
        if first_id + len(segment["lengths"]) > replay.first_id:
            restored.restore(first_id, segment, replay.first_id)
    assert (restored.first_id, restored.next_id) == (replay.first_id, 10)
    assert content_hash(restored) == content_hash(replay)
    for i in range(replay.first_id, 10):
        assert_same(restored.get(i), replay.get(i))
    count = min(3, len(replay))
    for key in range(5):
        a, b = replay.sample(count, key), restored.sample(count, key)
        for name in (*TENSORS, "filled", "terminated", "truncated"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
    for one in (replay, restored):
        one.add(episode(77, 5))
    assert content_hash(restored) == content_hash(replay)


def test_an_export_is_plain_and_its_own_memory():
    replay, model = filled(3, [2, 3, 4, 5])
    segment = replay.export(1, 4)
    assert segment["lengths"].tolist() == [3, 4, 5]
    assert segment["terminated"].tolist() == [e.terminated for e in model[1:]]
    assert segment["truncated"].tolist() == [e.truncated for e in model[1:]]
    assert segment["steps"].shape[0] == 3 + 1 + 4 + 1 + 5 + 1
    assert segment["alive_rows"].tolist() == [int(e.agent_mask.sum()) for e in model[1:]]
    assert torch.equal(segment["obs"], torch.cat([e.obs[e.agent_mask] for e in model[1:]]))
    assert torch.equal(segment["state"], torch.cat([e.state for e in model[1:]]))
    before = {name: value.clone() for name, value in segment.items()}
    for i in range(5):
        replay.add(episode(10 + i, 6))
    assert all(torch.equal(segment[name], value) for name, value in before.items())


@pytest.mark.parametrize("changed", ["steps", "obs", "state"])
def test_a_segment_of_another_store_is_refused(changed):
    segment = filled(3, [2, 3])[0].export(0, 2)
    others = [
        {name: value for name, value in segment.items() if name != changed},
        {**segment, changed: segment[changed][:, :-1]},
        {**segment, changed: segment[changed].double()},
    ]
    for other in others:
        with pytest.raises(CheckpointError, match=f"a replay segment has other '{changed}' than this run's layout"):
            EpisodeReplay(spec(), 3).restore(0, other, 0)


def test_restoring_twice_adds_nothing():
    replay, _ = filled(5, [2, 3, 4])
    restored = EpisodeReplay(spec(), 5)
    for _ in range(2):
        restored.restore(0, replay.export(0, 3), 0)
    assert content_hash(restored) == content_hash(replay)


@pytest.mark.parametrize("changed", [f.name for f in fields(Episode)])
def test_the_hash_sees_every_change(changed):
    replay, other = EpisodeReplay(spec(), 3), EpisodeReplay(spec(), 3)
    one = episode(1, 3)
    one.agent_mask[-1, -1] = True
    for store in (replay, other):
        store.add(episode(0, 2))
    replay.add(one)
    value = getattr(one, changed)
    if isinstance(value, bool):
        setattr(one, changed, not value)
    elif value.dtype == torch.bool:
        value[(-1,) * value.dim()] ^= True
    else:
        value[(-1,) * value.dim()] = (value[(-1,) * value.dim()] + 1) % A
    other.add(one)
    assert content_hash(other) != content_hash(replay)


def test_the_hash_sees_ids_and_order():
    replay, _ = filled(3, [2, 3])
    later = EpisodeReplay(spec(), 3)
    later.next_id = 1
    swapped = EpisodeReplay(spec(), 3)
    for number, length in [(0, 2), (1, 3)]:
        later.add(episode(number, length))
    for number, length in [(1, 3), (0, 2)]:
        swapped.add(episode(number, length))
    assert len({content_hash(r) for r in (replay, later, swapped)}) == 3


def test_refusals():
    with pytest.raises(ValueError, match="the replay capacity must be at least 1 episode, not 0"):
        EpisodeReplay(spec(), 0)
    replay, _ = filled(5, [2, 3])
    with pytest.raises(ValueError, match=re.escape("cannot draw 3 different episodes from 2")):
        replay.sample(3, 0)
    with pytest.raises(ValueError, match="an episode needs at least one step"):
        replay.add(episode(9, 0))
    assert len(replay) == 2
    assert replay.next_id == 2


@pytest.mark.parametrize("everyone", [True, False])
def test_a_masked_batch_is_as_masking_makes_it(everyone):
    """Padding is blank; where somebody is dead, what is shown of them is the environment's word and is cleaned."""
    replay = EpisodeReplay(spec(), 10)
    for i, length in enumerate([3, 7, 5]):
        one = episode(i, length)
        if everyone:
            one.agent_mask[:] = True
        replay.add(one)
    batch = replay.gather(np.arange(3))
    assert batch.is_masked is everyone
    assert batch.to(torch.device("cpu"), torch.float64).is_masked is everyone
    assert not replace(batch).is_masked
    cleaned = batch.mask_invalid()
    assert cleaned is not batch
    assert cleaned.cache is not batch.cache
    for name in (*TENSORS, "terminated", "truncated", "filled"):
        wanted = getattr(replace(batch).mask_invalid(), name)
        assert torch.equal(getattr(cleaned, name), wanted), name
        assert not everyone or torch.equal(getattr(batch, name), wanted), name


def test_a_batch_that_is_where_it_should_be_stays_as_it_is():
    replay, _ = filled(3, [4, 2])
    batch = replay.gather(np.arange(2))
    assert batch.to(torch.device("cpu"), torch.float32) is batch
    batch.extras["weight"] = torch.ones(2, dtype=torch.float64)
    assert batch.to(torch.device("cpu"), torch.float32).extras["weight"].dtype == torch.float32
