"""Evaluation: decided by the ids of its episodes alone, and greedy."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from qmix_lightning.rollout import evaluation, recorder
from qmix_lightning.rollout.collector import Collector
from qmix_lightning.rollout.evaluation import evaluate_episodes
from qmix_lightning.rollout.rollout_policy import RolloutPolicy
from qmix_lightning.runtime import prng
from qmix_lightning.runtime.prng import Purpose
from qmix_lightning.vector.factory import make_vector_env
from support.collecting import collect, make_policy, two_step, varying
from support.fakes import Endless


def evaluate(make, num_envs, ids, **settings):
    env = make(num_envs)
    rollout_policy = RolloutPolicy(make_policy(env.spec), num_envs, env.device)
    return evaluate_episodes(env, rollout_policy, ids, seed=3, **settings)


@functools.cache
def greedy_by_hand(*ids):
    env = varying(1)
    policy = make_policy(env.spec)
    results = []
    for i in ids:
        seen = env.reset(
            torch.tensor([True]), torch.from_numpy(prng.to_seed(prng.derive_key(3, Purpose.EVAL_RESET, i)))
        )
        memory, last, total, length = policy.initial_state(1), torch.full((1, env.spec.n_agents), -1), 0.0, 0
        while True:
            with torch.no_grad():
                q, memory = policy(seen.obs, last, memory)
            memory = tuple(m * seen.agent_mask[..., None] for m in memory)
            last = q.masked_fill(~seen.avail_actions, -torch.inf).argmax(-1)
            outcome = env.step(last, torch.tensor([True]))
            seen, total, length = outcome.next, total + float(outcome.reward), length + 1
            if outcome.terminated or outcome.truncated:
                results.append((total, length, float(outcome.metrics["won"])))
                break
    return results


@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_evaluation_is_decided_by_the_ids_alone(num_envs):
    ids = [4, 0, 17, 2, 9, 3, 30]
    stats = evaluate(varying, num_envs, ids)
    expected = greedy_by_hand(*ids)
    assert stats.returns == pytest.approx([r for r, _, _ in expected])
    assert stats.lengths == [n for _, n, _ in expected]
    assert stats.metrics == {"won": [w for _, _, w in expected]}
    assert len(set(stats.lengths)) > 2
    assert len(stats) == 7


def test_evaluation_twice_is_the_same_and_leaves_no_memory():
    env = varying(3)
    rollout_policy = RolloutPolicy(make_policy(env.spec), 3, env.device)
    first, second = (evaluate_episodes(env, rollout_policy, [5, 6, 7, 8], seed=3) for _ in range(2))
    assert (first.returns, first.lengths) == (second.returns, second.lengths)
    other = evaluate_episodes(env, rollout_policy, [5, 6, 7, 8], seed=4)
    assert other.returns != first.returns


def test_evaluation_on_a_natively_batched_game():
    """The greedy policy is one trajectory: all ids are equal, and equal to what the collector plays greedily."""
    env = two_step(2)
    source = Collector(two_step(1), make_policy(env.spec), seed=1, rank=0)
    expected = float(collect(source, 1, epsilon=0.0)[0][0].reward.sum())
    stats = evaluate(two_step, 2, [0, 1, 2])
    assert stats.returns == [expected] * 3
    assert stats.lengths == [2] * 3


def test_evaluation_without_ids():
    assert len(evaluate(varying, 2, [])) == 0


def test_evaluation_is_interrupted():
    whole = evaluate(varying, 2, list(range(6)))
    asked = itertools.count()
    part = evaluate(varying, 2, list(range(6)), interrupted=lambda: next(asked) == 15)
    assert 0 < len(part) < 6
    # those that had ended, still in order
    positions = [whole.returns.index(r) for r in part.returns]
    assert positions == sorted(positions)
    assert len(evaluate(varying, 2, [0, 1], interrupted=lambda: True)) == 0


def test_training_and_evaluation_start_differently():
    ids = np.arange(5)
    train = prng.to_seed(prng.derive_key(3, 0, Purpose.TRAIN_RESET, ids))
    held_out = prng.to_seed(prng.derive_key(3, Purpose.EVAL_RESET, ids))
    assert not set(train.tolist()) & set(held_out.tolist())


def test_what_is_drawn_is_where_the_environments_are():
    """Else exploring would mix devices; a policy elsewhere fetches it from there."""
    env, seen = varying(2), []
    env.device = torch.device("meta")

    class Noting:
        policy = None

        def begin(self, mask):
            seen.append(mask.device.type)

        def act(self, observation, epsilon, draws):
            seen.append(draws.device.type)
            return observation.avail_actions.to(torch.uint8).argmax(-1)

    evaluate_episodes(env, Noting(), [0, 1], seed=3, epsilon=0.5)
    assert set(seen) == {"meta"}


def test_an_episode_that_may_never_end_is_told_of_once(caplog, monkeypatch):
    for module in (recorder, evaluation):
        monkeypatch.setattr(module, "LONG_EPISODE_STEPS", 64)
    env = make_vector_env(Endless, {}, num_envs=2, name="endless")
    policy = make_policy(env.spec)
    steps = itertools.count()
    evaluate_episodes(env, RolloutPolicy(policy, 2, env.device), [0, 1], seed=1, interrupted=lambda: next(steps) == 70)
    told = "an episode has taken 64 steps, and the environment declares no limit: if episodes need not end, "
    assert [record.getMessage().startswith(told) for record in caplog.records] == [True]
    collector = Collector(env, policy, seed=1, rank=0)
    collector.collect(0.0, max_vector_steps=70)
    assert [record.getMessage().startswith(told) for record in caplog.records] == [True, True]


@pytest.mark.parametrize(("batched", "named"), [(False, True), (True, False)])
def test_a_setting_that_truncates_is_named_where_there_is_one(batched, named, caplog):
    recorder.warn_of_long_episode(replace(varying(1).spec, natively_batched=batched))
    assert ("env.episode_limit" in caplog.text) is named
