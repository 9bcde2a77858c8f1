import itertools

import pytest
import torch

from qmix_lightning.action_selection import epsilon_greedy
from qmix_lightning.errors import RunError
from qmix_lightning.rollout.collector import Collector
from qmix_lightning.runtime import prng
from qmix_lightning.runtime.prng import Purpose
from qmix_lightning.types import Episode
from qmix_lightning.vector.factory import make_vector_env
from support.cases import every_value
from support.collecting import collect, copied, make_policy, two_step, varying
from support.episodes import assert_same
from support.fakes import VaryingLength

MAKERS = {"varying": varying, "two_step": two_step}


def collector(make, num_envs, *, seed=11, rank=0):
    env = make(num_envs)
    return Collector(env, make_policy(env.spec), seed=seed, rank=rank)


def by_hand(make, slot, number, epsilon=0.5, seed=11, rank=0):
    """Episode ``number`` of a slot, in an environment of its own, one step after the other."""
    env = make(1)
    policy = make_policy(env.spec)
    n = env.spec.n_agents
    reset = prng.derive_key(seed, rank, Purpose.TRAIN_RESET, slot, number)
    seen = env.reset(torch.tensor([True]), torch.from_numpy(prng.to_seed(reset)))
    rows = {k: [getattr(seen, k)[0].clone()] for k in ("obs", "state", "avail_actions", "agent_mask")}
    rows |= {"actions": [], "reward": []}
    memory, last = policy.initial_state(1), torch.full((1, n), -1)
    while True:
        key = prng.derive_key(seed, rank, Purpose.EXPLORE, slot, number, len(rows["reward"]))
        draws = torch.from_numpy(prng.uniform(key, 2 * n).reshape(1, n, 2))
        with torch.no_grad():
            q, memory = policy(seen.obs, last, memory)
        memory = tuple(m * seen.agent_mask[..., None] for m in memory)
        last = epsilon_greedy(q, seen.avail_actions, epsilon, draws)
        outcome = env.step(last, torch.tensor([True]))
        seen = outcome.next
        rows["actions"].append(last[0].clone())
        rows["reward"].append(outcome.reward[0].clone())
        for k in ("obs", "state", "avail_actions", "agent_mask"):
            rows[k].append(getattr(seen, k)[0].clone())
        if outcome.terminated[0] or outcome.truncated[0]:
            stacked = {k: torch.stack(v) for k, v in rows.items()}
            return Episode(terminated=bool(outcome.terminated[0]), truncated=bool(outcome.truncated[0]), **stacked)


@pytest.mark.parametrize(("make", "num_envs"), every_value(MAKERS.values(), [1, 2, 3, 4]))
def test_episodes_equal_a_plain_loop(make, num_envs):
    """Whatever steps beside it, an episode is decided by its slot and its number: none crosses another."""
    found, returns, steps = collect(collector(make, num_envs), 6 * num_envs)
    by_end = {}
    for slot in range(num_envs):
        total, number = 0, 0
        while total < steps // num_envs:
            episode = by_hand(make, slot, number)
            total, number = total + episode.length, number + 1
            by_end[total, slot] = episode
    expected = [by_end[k] for k in sorted(by_end)[: len(found)]]
    assert len({e.length for e in expected}) > (0 if make is two_step else 3)
    for got, wanted, (episode_return, length) in zip(found, expected, returns, strict=True):
        assert_same(got, wanted)
        assert length == wanted.length
        assert episode_return == pytest.approx(float(wanted.reward.sum(dtype=torch.float64)), abs=1e-5)


def test_both_ends_and_deaths_are_among_them():
    """The fake covers what the tests above claim to cover."""
    found, _, _ = collect(collector(varying, 1), 30)
    assert {(e.terminated, e.truncated) for e in found} == {(True, False), (False, True)}
    assert any(not e.agent_mask[:-1].all() for e in found)
    truncated = next(e for e in found if e.truncated)
    assert truncated.agent_mask[-1].any()
    assert truncated.obs[-1].abs().sum() > 0  # the true last observation is there to bootstrap from


def test_env_steps_count_joint_steps():
    found, _, steps = collect(collector(two_step, 3), 9)
    assert [e.length for e in found] == [2] * 9
    assert steps == 9 * 2
    one = collector(varying, 1)
    found, _, steps = collect(one, 10)
    assert steps == sum(e.length for e in found)


def test_max_steps_and_interruption_end_a_round():
    source = collector(varying, 2)
    got = source.collect(0.5, max_steps=3)
    assert (got.env_steps, got.episodes) == (4, [])  # two environments: the first multiple of 2 from 3 on
    source = collector(varying, 2)
    asked = itertools.count()
    got = source.collect(0.5, interrupted=lambda: next(asked) == 1)
    assert (got.env_steps, got.episodes) == (4, [])


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_rounds_cut_short_collect_the_same_episodes(make):
    expected, _, _ = collect(collector(make, 3), 12)
    source, found = collector(make, 3), []
    while len(found) < 12:
        found += [copied(e) for e in source.collect(0.5, max_steps=1).episodes]
    for got, wanted in zip(found[:12], expected[:12], strict=True):
        assert_same(got, wanted)


def test_ranks_and_seeds_see_other_episodes():
    first = [
        collect(c, 1)[0][0].obs[0]
        for c in (collector(varying, 1), collector(varying, 1, rank=1), collector(varying, 1, seed=12))
    ]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    again = collect(collector(varying, 1), 1)[0][0].obs[0]
    assert torch.equal(first[0], again)


def test_epsilon_zero_is_greedy():
    env = two_step(1)
    source = Collector(env, make_policy(env.spec), seed=1, rank=0)
    found, _, _ = collect(source, 5, epsilon=0.0)
    assert all(torch.equal(e.actions, found[0].actions) for e in found)
    other, _, _ = collect(collector(two_step, 1), 12, epsilon=1.0)
    assert len({tuple(e.actions.flatten().tolist()) for e in other}) > 3


class Long(VaryingLength):
    """Episodes of 93 to 102 steps, of a length that it may not say."""

    def __init__(self, limit):
        super().__init__(extra_length=90)
        if limit is None:
            del self.episode_limit


def test_episodes_of_unknown_length_grow_the_buffers():
    def make(limit):
        return lambda num_envs: make_vector_env(Long, {"limit": limit}, num_envs=num_envs, name="long")

    assert make(None)(1).spec.episode_limit is None
    expected, _, _ = collect(collector(make(102), 2), 3)
    found, _, _ = collect(collector(make(None), 2), 3)
    assert all(e.length > 90 for e in found)
    for got, wanted in zip(found, expected, strict=True):
        assert_same(got, wanted)


# Resuming -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "num_envs"), every_value(MAKERS.values(), [1, 4, 2]))
def test_resumes_bit_for_bit_in_mid_episode(make, num_envs):
    for steps in [0, 1, 5, 8, 31]:
        one = collector(make, num_envs)
        for _ in range(steps):
            one.collect(0.5, max_steps=1)
        state = one.state_dict()
        other = collector(make, num_envs)
        other.load_state_dict(state)
        expected, expected_returns, expected_steps = collect(one, 6)
        found, returns, taken = collect(other, 6)
        assert taken == expected_steps
        assert returns == expected_returns
        for got, wanted in zip(found, expected, strict=True):
            assert_same(got, wanted)


def test_the_state_is_not_changed_by_going_on():
    one = collector(varying, 3)
    for _ in range(4):
        one.collect(0.5, max_steps=1)
    state = one.state_dict()
    before = [a.clone() for a in state["actions"]], state["memory"][0].clone(), state["episode"].clone()
    collect(one, 10)
    assert all(torch.equal(a, b) for a, b in zip(state["actions"], before[0], strict=True))
    assert torch.equal(state["memory"][0], before[1])
    assert torch.equal(state["episode"], before[2])


def test_resumes_with_another_policy_since():
    """The memory in flight was made by older parameters: it is restored, not computed anew."""
    one = collector(varying, 2)
    one.collect(0.5, max_steps=4)
    one.rollout_policy.publish(make_policy(one.env.spec, seed=5))
    state = one.state_dict()
    env = varying(2)
    other = Collector(env, make_policy(env.spec, seed=5), seed=11, rank=0)
    other.load_state_dict(state)
    for got, wanted in zip(collect(other, 10)[0], collect(one, 10)[0], strict=True):
        assert_same(got, wanted)


def test_the_state_is_plain_and_survives_a_file(tmp_path):
    one = collector(varying, 3)
    one.collect(0.5)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other = collector(varying, 3)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for got, wanted in zip(collect(other, 10)[0], collect(one, 10)[0], strict=True):
        assert_same(got, wanted)


class Moody(VaryingLength):
    """Not deterministic: plays another episode each time, whatever the seed; legal actions included."""

    made = itertools.count()

    def reset(self, seed=None, options=None):
        return super().reset(seed=next(self.made))


class Noisy(VaryingLength):
    """Its rewards alone are not deterministic."""

    noise = itertools.count()

    def step(self, actions):
        observations, rewards, *rest = super().step(actions)
        return observations, {a: r + 1e-3 * next(self.noise) for a, r in rewards.items()}, *rest


def not_deterministic(env):
    return lambda num_envs: make_vector_env(env, {}, num_envs=num_envs, name="moody")


@pytest.mark.parametrize(("rounds", "env"), every_value([1, 2, 6], [Moody, Noisy]))
def test_an_environment_that_is_not_deterministic_is_refused(env, rounds):
    for attempt in range(3):
        one = collector(not_deterministic(env), 3, seed=attempt)
        for _ in range(rounds):
            one.collect(0.5, max_steps=3)
        state = one.state_dict()
        other = collector(not_deterministic(env), 3, seed=attempt)
        with pytest.raises(RunError, match=r"could not be repeated.*not deterministic.*rollout\.on_resume=restart"):
            other.load_state_dict(state)


def test_restart_goes_on_with_the_next_episodes():
    one = collector(varying, 2)
    for _ in range(5):
        one.collect(0.5, max_steps=1)
    state = one.state_dict()
    other = collector(varying, 2)
    other.restart(state)
    found, _, _ = collect(other, 6)
    number = state["episode"].tolist()
    expected = {}
    for slot in range(2):
        total = 0
        for k in range(6):
            episode = by_hand(varying, slot, number[slot] + 1 + k)
            total += episode.length
            expected[total, slot] = episode
    for got, key in zip(found, sorted(expected)[: len(found)], strict=True):
        assert_same(got, expected[key])


def test_episodes_that_are_no_function_of_their_seeds_are_dropped_with_a_line(caplog):
    def collector():
        env = varying(2)
        env.seeded = False
        return Collector(env, make_policy(env.spec), seed=0, rank=0)

    before = collector()
    before.collect(0.5, max_steps=2)
    state = before.state_dict()
    assert not state["ended"].all()
    after = collector()
    after.load_state_dict(state)
    assert after.state_dict()["ended"].all()
    assert after.state_dict()["episode"].tolist() == state["episode"].tolist()
    assert "2 episodes in flight are dropped" in caplog.text
    assert after.collect(0.5).episodes
