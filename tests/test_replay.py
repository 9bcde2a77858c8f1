import re
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qmix_lightning.replay import Episode, EpisodeReplay
from qmix_lightning.types import EnvSpec

N, A, OBS, S = 2, 3, 2, 3
TENSORS = ("obs", "state", "avail_actions", "agent_mask", "actions", "reward")


def spec(n_actions=A):
    return EnvSpec(
        n_agents=N,
        n_actions=n_actions,
        obs_dim=OBS,
        state_dim=S,
        obs_dims=(OBS,) * N,
        action_counts=(n_actions,) * N,
        agent_names=("a", "b"),
        group_of_agent=(0, 0),
    )


def episode(number, length, n_actions=A):
    g = torch.Generator().manual_seed(number)
    return Episode(
        obs=torch.randn(length + 1, N, OBS, generator=g),
        state=torch.randn(length + 1, S, generator=g),
        avail_actions=torch.rand(length + 1, N, n_actions, generator=g) > 0.5,
        agent_mask=torch.rand(length + 1, N, generator=g) > 0.2,
        actions=torch.randint(n_actions, (length, N), generator=g),
        reward=torch.randn(length, generator=g),
        terminated=number % 3 == 0,
        truncated=number % 3 == 1,
    )


def assert_same(left, right):
    assert (left.terminated, left.truncated, left.length) == (right.terminated, right.truncated, right.length)
    for name in TENSORS:
        a, b = getattr(left, name), getattr(right, name)
        assert a.shape == b.shape, name
        assert torch.equal(a, b.to(a.dtype)), name


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


@settings(max_examples=60, deadline=None)
@given(capacity=st.integers(1, 7), lengths=st.lists(st.integers(1, 400), max_size=40))
def test_equals_a_list(capacity, lengths):
    """Lengths up to 400 rows in a ring that starts with 1024: it wraps and grows, and both at once."""
    replay = EpisodeReplay(spec(), capacity)
    model = []
    for i, length in enumerate(lengths):
        model.append(episode(i, length))
        assert replay.add(model[-1]) == i
        assert_holds(replay, model)


@pytest.mark.parametrize("capacity", [1, 3, 50])
def test_equals_a_list_after_many_wraps(capacity):
    g = torch.Generator().manual_seed(capacity)
    lengths = (1 + torch.randint(60, (600,), generator=g)).tolist()
    replay = EpisodeReplay(spec(), capacity)
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


@pytest.mark.parametrize("length", [98, 99, 100, 101])
def test_a_gap_is_used_up_to_its_last_row(length):
    """The head of the ring has 100 free rows before the oldest episode."""
    replay, model = filled(3, [99, 799, 99])
    start = replay.nbytes()
    model.append(episode(3, length))
    replay.add(model[-1])
    assert_holds(replay, model)
    assert replay.nbytes() == (start if length + 1 <= 100 else 2 * start)


@pytest.mark.parametrize("length", [848, 849, 850, 851])
def test_a_gap_in_the_middle_is_used_up_to_its_last_row(length):
    """Live rows wrap around: from the write at 50 to the oldest episode at 900 there are 850."""
    replay, model = filled(3, [99, 799, 99, 49])
    start = replay.nbytes()
    model.append(episode(4, length))
    replay.add(model[-1])
    assert_holds(replay, model)
    assert replay.nbytes() == (start if length + 1 <= 850 else 2 * start)


def test_grows_by_need():
    replay = EpisodeReplay(spec(), 10)
    start = replay.nbytes()
    row = N * OBS * 4 + S * 4 + N * A + N + N + 4  # obs, state, avail, alive, actions, reward
    assert start == 1024 * row
    for i in range(5):
        replay.add(episode(i, 203))  # 5 * 204 rows fit into 1024
    assert replay.nbytes() == start
    replay.add(episode(5, 203))
    assert replay.nbytes() == 2 * start


@pytest.mark.parametrize(("capacity", "length"), [(10, 9), (128, 7), (100, 25), (37, 80), (5, 1023)])
def test_steady_state_allocates_nothing(capacity, length):
    replay = EpisodeReplay(spec(), capacity)
    one = episode(0, length)
    for _ in range(capacity):
        replay.add(one)
    held, memory = replay.nbytes(), [t.data_ptr() for t in replay._store.values()]
    for _ in range(3 * capacity):
        replay.add(one)
        assert replay.nbytes() == held
    assert [t.data_ptr() for t in replay._store.values()] == memory


def test_eviction_is_by_number_of_episodes():
    replay, _ = filled(4, [500, 1, 1, 1])
    assert replay.first_id == 0
    replay.add(episode(4, 1))
    assert (replay.first_id, replay.next_id, len(replay)) == (1, 5, 4)


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
    # The long ones are gone when the replay is read, but their steps are still in the ring.
    replay, model = filled(12, [80] * 12 + [3, 11, 1, 7, 2, 40, 5, 6, 9, 2, 8, 1, 4, 10])
    assert replay.nbytes() == EpisodeReplay(spec(), 1).nbytes()
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
            # Padding repeats the last row of this episode; it is never another's.
            assert torch.equal(batch.obs[b, length + 1 :], e.obs[length].expand(horizon - length, N, OBS))
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
    assert [r.start for r in fresh._records] != [r.start for r in wrapped._records]
    assert fresh.content_hash() == wrapped.content_hash()
    for key in range(10):
        a, b = wrapped.sample(3, key), fresh.sample(3, key)
        assert all(torch.equal(getattr(a, f), getattr(b, f)) for f in (*TENSORS, "filled", "terminated", "truncated"))


def test_sample_is_uniform():
    replay, model = filled(10, [1] * 10)
    counts = torch.zeros(10)
    for key in range(2000):
        for i in identities(replay.sample(3, key), model):
            counts[i] += 1
    # 600 each; by drawing 3 of 10 the variance is 2000 * 0.3 * 0.7 = 420
    assert (counts - 600).abs().max() < 4.5 * 420**0.5


# Between processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [3, 7, 100])
@pytest.mark.parametrize("cuts", [[10], [2, 5, 10], list(range(1, 11))])
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
    assert restored.content_hash() == replay.content_hash()
    for i in range(replay.first_id, 10):
        assert_same(restored.get(i), replay.get(i))
    count = min(3, len(replay))
    for key in range(5):
        a, b = replay.sample(count, key), restored.sample(count, key)
        for name in (*TENSORS, "filled", "terminated", "truncated"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
    for one in (replay, restored):
        one.add(episode(77, 5))
    assert restored.content_hash() == replay.content_hash()


def test_an_export_is_plain_and_its_own_memory():
    replay, model = filled(3, [2, 3, 4, 5])
    segment = replay.export(1, 4)
    assert segment["lengths"].tolist() == [3, 4, 5]
    assert segment["terminated"].tolist() == [e.terminated for e in model[1:]]
    assert segment["truncated"].tolist() == [e.truncated for e in model[1:]]
    assert segment["obs"].shape == (3 + 1 + 4 + 1 + 5 + 1, N, OBS)
    assert segment["reward"].shape == (12,)
    before = segment["obs"].clone()
    replay.get(1).obs.fill_(9.0)
    assert torch.equal(segment["obs"], before)


def test_restoring_twice_adds_nothing():
    replay, _ = filled(5, [2, 3, 4])
    restored = EpisodeReplay(spec(), 5)
    for _ in range(2):
        restored.restore(0, replay.export(0, 3), 0)
    assert restored.content_hash() == replay.content_hash()


@pytest.mark.parametrize("changed", [f.name for f in fields(Episode)])
def test_the_hash_sees_every_change(changed):
    replay, _ = filled(3, [2, 3])
    other = EpisodeReplay(spec(), 3)
    other.add(episode(0, 2))
    one = episode(1, 3)
    value = getattr(one, changed)
    if isinstance(value, bool):
        setattr(one, changed, not value)
    elif value.dtype == torch.bool:
        value[(-1,) * value.dim()] ^= True
    else:
        value[(-1,) * value.dim()] = (value[(-1,) * value.dim()] + 1) % A
    other.add(one)
    assert other.content_hash() != replay.content_hash()


def test_the_hash_sees_ids_and_order():
    replay, _ = filled(3, [2, 3])
    later = EpisodeReplay(spec(), 3)
    later.next_id = 1
    swapped = EpisodeReplay(spec(), 3)
    for number, length in [(0, 2), (1, 3)]:
        later.add(episode(number, length))
    for number, length in [(1, 3), (0, 2)]:
        swapped.add(episode(number, length))
    assert len({r.content_hash() for r in (replay, later, swapped)}) == 3


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
