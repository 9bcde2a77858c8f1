"""What is recorded is what was played: by evaluations too, and by hand."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from qmix_lightning.algorithms import ALGORITHMS
from qmix_lightning.components import env_maker
from qmix_lightning.errors import RunError
from qmix_lightning.rendering.episode import RecordedEpisode, discounted_returns
from qmix_lightning.rendering.plain import draw_observations
from qmix_lightning.rendering.recorder import record_episode
from qmix_lightning.rendering.team_values import mixing_of
from qmix_lightning.rollout.evaluation import evaluate_episodes
from qmix_lightning.rollout.rollout_policy import RolloutPolicy
from qmix_lightning.types import TrajectoryBatch
from qmix_lightning.vector.factory import make_vector_env
from support.cases import mostly_slow
from support.fakes import VaryingLength
from support.policies import stored_policy

UNMIXED = {"iql", "coma", "ippo", "mappo", "qtran_base", "qtran_alt"}
"""Algorithms without a mixer of values: QTRAN's joint value is a network of its own."""

LEARNERS = ("qmix", "vdn", "qplex", "cw_qmix", "pqn_qmix", "iql", "mappo", "qtran_base")
"""One of each learner, and of each way in which mixers use actions and state."""

a_policy = cache(stored_policy)


def recorded(*overrides: str, **settings) -> RecordedEpisode:
    stored = a_policy(*overrides)
    env = env_maker(stored.env)(1)
    settings = {"seed": 5, "gamma": 0.9, "team_values": mixing_of(stored.build_learner()), **settings}
    return record_episode(env, stored.build().eval(), **settings)


@pytest.mark.parametrize("epsilon", [0.0, 0.4])
def test_it_is_the_evaluations_episode(epsilon: float):
    stored = a_policy()
    env = env_maker(stored.env)(1)
    policy = stored.build().eval()
    stats = evaluate_episodes(env, RolloutPolicy(policy, 1, env.device), [0, 1, 2], seed=5, epsilon=epsilon)
    for number in range(3):
        episode = record_episode(env, policy, seed=5, number=number, gamma=0.9, epsilon=epsilon)
        assert episode.length == stats.lengths[number]
        assert episode.total_reward == pytest.approx(stats.returns[number])
        assert episode.metrics == {"won": stats.metrics["won"][number]}
        assert episode.ending == "terminated"


def test_values_are_those_of_legal_actions_and_the_best_is_taken():
    episode = recorded()
    t, n, a = episode.values.shape
    assert (n, a) == (3, 5)
    assert episode.alive.shape == (t + 1, 3)
    readable = np.isfinite(episode.values)
    assert np.array_equal(readable.any(-1), episode.alive[:-1])
    assert not readable[:, 0, 3:].any(), "a scout has three actions"
    best = np.nanargmax(np.where(readable, episode.values, -np.inf), axis=-1)
    assert np.array_equal(best[episode.alive[:-1]], episode.actions[episode.alive[:-1]])


def test_epsilon_explores_by_the_seed_alone():
    once, again = (recorded(epsilon=0.8) for _ in range(2))
    assert np.array_equal(once.actions, again.actions)
    best = np.where(np.isfinite(once.values), once.values, -np.inf).argmax(-1)
    assert (best != once.actions)[once.alive[:-1]].any()


def test_a_stochastic_policy_shows_chances():
    episode = recorded("algorithm=coma")
    assert episode.probabilities
    assert np.nansum(episode.values, -1)[episode.alive[:-1]] == pytest.approx(1.0)


def test_returns_that_follow_by_hand():
    assert discounted_returns(np.array([1.0, 0.0, 4.0]), 0.5).tolist() == [2.0, 2.0, 4.0]
    episode = recorded()
    assert episode.returns[-1] == pytest.approx(episode.rewards[-1])
    assert episode.returns[0] == pytest.approx(sum(0.9**t * r for t, r in enumerate(episode.rewards)))


def test_deaths_are_those_before_the_end():
    alive = np.array([[1, 1, 1], [1, 0, 1], [1, 0, 1], [0, 0, 0]], bool)
    empty = {"values": np.zeros((3, 3, 1)), "actions": np.zeros((3, 3), np.int64), "returns": np.zeros(3)}
    episode = RecordedEpisode(spec=None, action_names=[], seed=0, probabilities=False, alive=alive,  # type: ignore[arg-type]
                              rewards=np.zeros(3), **empty)  # fmt: skip
    assert episode.deaths == [(0, 1)]


def test_pictures_come_before_each_step_and_after_the_last():
    moments = []
    episode = recorded(on_frame=lambda frame, moment: moments.append((frame.shape, moment)))
    assert [moment.step for _, moment in moments] == list(range(episode.length + 1))
    assert [moment.over for _, moment in moments] == [False] * episode.length + [True]
    assert moments[-1][1].total_reward == pytest.approx(episode.total_reward)
    assert len({shape for shape, _ in moments}) == 1


def test_a_plain_picture_tells_who_did_what_even_last(monkeypatch: pytest.MonkeyPatch):
    told = []

    def draw(names, obs, alive, last_actions):
        told.append(last_actions)
        return draw_observations(names, obs, alive, last_actions)

    monkeypatch.setattr("qmix_lightning.rendering.frames.draw_observations", draw)
    frames = []
    episode = recorded(on_frame=lambda frame, moment: frames.append(frame))
    done = np.where(episode.alive[:-1], episode.actions, -1)
    words = [[names[a] if a >= 0 else None for names, a in zip(episode.action_names, row, strict=True)] for row in done]
    assert told == [None, *words]
    assert not episode.alive[-1].any()
    idle = draw_observations(episode.spec.agent_names, np.zeros((3, 1), np.float32), episode.alive[-1], None)
    assert not np.array_equal(frames[-1], idle), "what led to the end is seen"


def test_recording_stops_where_it_is_told():
    episode = recorded(max_steps=2)
    assert (episode.length, episode.ending, episode.metrics) == (2, "not ended", {})


class Breaks(VaryingLength):
    def step(self, actions):
        raise RuntimeError("the simulator is gone")


@pytest.mark.filterwarnings("default")
def test_a_simulator_that_fails_ends_the_recording():
    env = make_vector_env(Breaks, {}, num_envs=1, name="breaks")
    stored = stored_policy("env=pettingzoo", "env.id=support.fakes:VaryingLength")
    with pytest.raises(RunError, match="failed in step 1"):
        record_episode(env, stored.build(), seed=0, gamma=1.0)


@pytest.mark.parametrize("algorithm", mostly_slow(ALGORITHMS.names(), LEARNERS))
def test_sensitivities_are_slopes_of_what_the_mixer_gives(algorithm: str):
    """By finite differences of one agent's value in one step, where the learner mixes values."""
    stored = stored_policy(f"algorithm={algorithm}")
    learner = stored.build_learner()
    assert learner is not None
    seen: list[TrajectoryBatch] = []
    mixing = mixing_of(learner)

    def values(batch):
        seen.append(batch)
        return None if mixing is None else mixing(batch)

    env = env_maker(stored.env)(1)
    episode = record_episode(env, stored.build().eval(), seed=5, gamma=0.9, team_values=values)
    if algorithm in UNMIXED:
        assert episode.q_tot is None
        assert episode.sensitivities is None
        return
    assert episode.q_tot is not None
    assert episode.sensitivities is not None
    assert (episode.sensitivities[~episode.alive[:-1]] == 0.0).all()
    batch = learner.masked(seen[0])  # type: ignore[attr-defined]
    with torch.no_grad():
        q = learner.policy.unroll(batch)[:, :-1]

        def mixed(changed):
            return learner.mix(learner.mixer, changed, batch.actions, batch, slice(0, -1))[0]  # type: ignore[attr-defined]

        t, agent, small = 1, 0, 1e-2
        steps = [q.clone() for _ in range(2)]
        for moved, by in zip(steps, (small, -small), strict=True):
            moved[0, t, agent, batch.actions[0, t, agent]] += by
        slopes = (mixed(steps[0]) - mixed(steps[1])) / (2 * small)
    assert float(slopes[t]) == pytest.approx(episode.sensitivities[t, agent], rel=0.05, abs=1e-3)
    assert slopes[[0]].abs().max() == 0.0, "a step's value depends on that step alone"
