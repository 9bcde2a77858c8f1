"""Many environments in one process: each plays as if it were alone."""

import gc

import pytest
import torch

from qmix_lightning.environment import VectorEnv
from qmix_lightning.vector.sync import SyncVectorEnv
from qmix_lightning.worker.parallel_adapter import ParallelAdapter
from support.collecting import legal, varying
from support.fakes import Scripted

BOTH = {"a_0": True, "a_1": True}


def snapshot(transition):
    shown = transition.next
    tensors = (shown.obs, shown.state, shown.avail_actions, shown.agent_mask, transition.reward,
               transition.terminated, transition.truncated, transition.agent_reward)  # fmt: skip
    return [t.clone() for t in (*tensors, *transition.metrics.values())]


def episode(env, slot, seed, action_seed):
    """Play one episode in ``slot`` alone: what every step gave there."""
    only = torch.arange(env.num_envs) == slot
    generator = torch.Generator().manual_seed(action_seed)
    shown = env.reset(only, torch.full((env.num_envs,), seed))
    steps = []
    while True:
        actions = torch.zeros(env.num_envs, env.spec.n_agents, dtype=torch.int64)
        one = torch.multinomial(shown.avail_actions[slot].float(), 1, generator=generator)
        actions[slot] = one[:, 0]
        step = env.step(actions, only)
        steps.append([t[slot] for t in snapshot(step)])
        shown = step.next
        if step.terminated[slot] or step.truncated[slot]:
            return steps


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) for s, t in zip(one, other, strict=True) for a, b in zip(s, t, strict=True)
    )


def test_vector_env_protocol():
    env = varying(3)
    assert isinstance(env, VectorEnv)
    assert env.num_envs == 3
    assert env.spec.episode_metrics == ("won",)
    assert not env.spec.natively_batched
    dtypes = [t.dtype for t in snapshot(env.step(torch.zeros(3, 3, dtype=torch.int64), torch.zeros(3).bool()))]
    f, b = torch.float32, torch.bool
    assert dtypes == [f, f, b, b, f, b, b, f, f]


def test_episodes_depend_on_seed_and_actions_only():
    first = episode(varying(1), 0, seed=5, action_seed=1)
    assert same(first, episode(varying(4), 2, seed=5, action_seed=1))
    assert not same(first, episode(varying(1), 0, seed=6, action_seed=1))
    assert not same(first, episode(varying(1), 0, seed=5, action_seed=2))
    used = varying(1)
    episode(used, 0, seed=77, action_seed=3)
    assert same(first, episode(used, 0, seed=5, action_seed=1))


def test_varying_episodes_vary():
    env = varying(1)
    episodes = [episode(env, 0, seed=s, action_seed=s) for s in range(60)]
    assert {len(e) for e in episodes} == set(range(3, 13))
    assert {bool(e[-1][6]) for e in episodes} == {True, False}  # truncated and terminated
    assert {float(e[-1][8]) for e in episodes} == {0.0, 1.0}  # won and lost
    assert any(not step[3].all() for e in episodes for step in e[:-1])  # an agent died early
    for e in episodes:
        assert all(not (s[5] or s[6]) for s in e[:-1])
        assert bool(e[-1][5]) != bool(e[-1][6])


def test_inactive_and_unmasked_slots_are_left_alone():
    env = varying(3)
    generator = torch.Generator().manual_seed(0)
    on = torch.ones(3, dtype=torch.bool)
    shown = env.reset(on, torch.tensor([1, 2, 3]))
    before = shown.obs.clone()
    waiting = torch.tensor([True, False, True])
    step = env.step(legal(shown, generator), waiting)
    assert torch.equal(step.next.obs[1], before[1])
    assert not torch.equal(step.next.obs[0], before[0])
    middle = step.next.obs.clone()
    shown = env.reset(torch.tensor([True, False, False]), torch.tensor([1, 9, 9]))
    assert torch.equal(shown.obs[0], before[0])
    assert torch.equal(shown.obs[1:], middle[1:])
    # Slot 1 waited, and now plays as one that never did.
    alone = varying(1)
    other = alone.reset(torch.tensor([True]), torch.tensor([2]))
    actions = legal(other, generator)
    expected = snapshot(alone.step(actions, torch.tensor([True])))
    got = snapshot(env.step(actions.expand(3, -1), torch.tensor([False, True, False])))
    assert all(torch.equal(a[0], b[1]) for a, b in zip(expected, got, strict=True))


def test_an_ended_slot_that_waits_does_not_end_again():
    vector = SyncVectorEnv([ParallelAdapter(Scripted([{"terminations": BOTH, "rewards": {"a_0": 1.0}}]))])
    one = torch.tensor([True])
    vector.reset(one, torch.tensor([0]))
    actions = torch.zeros(1, 2, dtype=torch.int64)
    assert vector.step(actions, one).terminated.tolist() == [True]
    step = vector.step(actions, ~one)
    assert (step.reward.tolist(), step.terminated.tolist(), step.truncated.tolist()) == ([0.0], [False], [False])


def test_illegal_action_reaches_the_environment_as_it_is():
    env = varying(1)
    shown = env.reset(torch.tensor([True]), torch.tensor([0]))
    illegal = shown.avail_actions.int().argmin(dim=-1)
    # The fake refuses it: had it been replaced on the way, nothing would have failed.
    assert env.step(illegal, torch.tensor([True])).failed.tolist() == [True]
    assert env.faults["raised"] == 1


def test_close_closes_all_once_even_where_one_fails():
    class Stuck(Scripted):
        def close(self):
            super().close()
            raise OSError("stuck")

    envs = [Scripted([]), Stuck([]), Scripted([])]
    vector = SyncVectorEnv([ParallelAdapter(env) for env in envs])
    with pytest.raises(OSError, match="stuck"):
        vector.close()
    vector.close()
    assert [env.closed for env in envs] == [1, 1, 1]


def test_results_survive_the_environment():
    env = varying(1)
    shown = env.reset(torch.tensor([True]), torch.tensor([0]))
    expected = shown.obs.clone()
    del env
    gc.collect()
    assert torch.equal(shown.obs, expected)
