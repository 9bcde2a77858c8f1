"""A trained team acts from dictionaries and from arrays as it acts in an evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import qmix_lightning as ql
from qmix_lightning.policies import Team, open_policy
from qmix_lightning.policies.spec import read_spec
from qmix_lightning.vector.factory import make_vector_env
from support import inprocess
from support.collecting import make_policy
from support.fakes import Scripted, VaryingLength

FAKE = ["env=pettingzoo", "env.id=support.fakes:VaryingLength"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("team") / "run"
    inprocess.succeed([*FAKE, f"run_dir={folder}", "seed=3", "agent.normalize_obs=true", *inprocess.TINY])
    return folder


def play(team: ql.Team, seed: int, epsilon: float = 0.0) -> tuple[float, list[dict[str, int]]]:
    """The return of an episode and its actions."""
    env: Any = VaryingLength()
    observations, infos = env.reset(seed=seed)
    team.reset()
    total, taken = 0.0, []
    while env.agents:
        masks = {agent: infos[agent]["action_mask"] for agent in env.agents}
        actions = team.act({agent: observations[agent] for agent in env.agents}, masks, epsilon)
        taken.append(actions)
        observations, rewards, _, _, infos = env.step(actions)
        total += sum(rewards.values())
    return total, taken


def test_it_plays_what_an_evaluation_plays(run: Path):
    """The mean over the evaluation's own episodes, dying agents and masks among them."""
    from qmix_lightning.runtime import prng

    seeds = [int(prng.to_seed(prng.derive_key(3, prng.Purpose.EVAL_RESET, i))[0]) for i in range(5)]
    team = ql.load(run)
    returns = [play(team, seed)[0] for seed in seeds]
    result = ql.evaluate(run, episodes=5, seed=3, env={"id": "support.fakes:VaryingLength"})
    assert np.mean(returns) == pytest.approx(result["return_mean"], abs=1e-5)


def test_a_new_episode_begins_without_memory(run: Path):
    team = ql.load(run)
    first, again = play(team, 1), play(team, 1)
    assert first == again


def test_exploring_is_repeated_by_its_seed_and_legal(run: Path):
    team = ql.load(run, seed=5)
    explored = play(team, 1, epsilon=0.9)
    assert explored == play(team, 1, epsilon=0.9)
    assert explored != play(ql.load(run, seed=6), 1, epsilon=0.9)


def test_arrays_for_several_environments_are_what_dictionaries_are(run: Path):
    stored = open_policy(run)
    spec, rng = stored.spec, np.random.default_rng(0)
    alone, together = stored.team(), stored.team(2)
    for _ in range(3):
        obs = rng.normal(size=(2, spec.n_agents, spec.obs_dim)).astype(np.float32)
        masks = rng.random((2, spec.n_agents, spec.n_actions)) < 0.7
        masks[..., 0] = True
        alive = np.array([[True, False, True], [True, True, True]])
        actions = together.act(obs, masks, alive=alive)
        names = [name for name, here in zip(spec.agent_names, alive[0], strict=True) if here]
        slots = {name: slot for slot, name in enumerate(spec.agent_names)}
        shown = {n: {"observation": obs[0, slots[n]], "action_mask": masks[0, slots[n]]} for n in names}
        assert alone.act(shown) == {n: actions[0, slots[n]] for n in names}
        assert actions[0, 1] == 0
        np.testing.assert_allclose(alone.values[0, 0], together.values[0, 0], atol=1e-6)
        assert np.isinf(together.values[0, 2][~masks[0, 2]]).all()


def test_the_learners_part_mixes_as_in_training(run: Path):
    stored = open_policy(run)
    learner = stored.build_learner()
    assert learner is not None
    spec = stored.spec
    mixer: Any = learner.mixer
    mixed = mixer(torch.zeros(1, 1, spec.n_agents), torch.zeros(1, 1, spec.state_dim))
    assert mixed.shape == (1, 1)


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        ({"unit_9": np.zeros(4)}, "there is no agent 'unit_9'"),
        ({"unit_0": np.zeros(5)}, "has 5 numbers, not 4"),
        ({"unit_0": {"observation": np.zeros(4), "action_mask": np.zeros(4)}}, "leaves no legal action"),
        (
            {"unit_0": {"observation": np.zeros(4), "action_mask": [0.0, -np.inf, 0.0, 0.0]}},
            "0 and 1, or false and true",
        ),
        ({"unit_0": {"observation": np.zeros(4), "action_mask": ["0", "1", "1", "1"]}}, "0 and 1, or false and true"),
        (
            {"unit_0": {"observation": {"x": {"y": np.zeros(4)}}, "action_mask": np.ones(4)}},
            "agent 'unit_0' is no vector",
        ),
        ({"unit_0": {"action_mask": np.ones(4)}}, "has 0 numbers, not 4"),
        (np.zeros((2, 3, 4)), "observations must be"),
    ],
)
def test_what_it_cannot_use_is_refused(run: Path, observations: Any, message: str):
    with pytest.raises(ValueError, match=message):
        ql.load(run).act(observations)


def test_a_chance_is_at_most_1(run: Path):
    with pytest.raises(ValueError, match="epsilon must be between 0 and 1, not 10"):
        ql.load(run).act({"unit_0": np.zeros(4)}, epsilon=10)


@pytest.mark.parametrize(("num_envs", "mask"), [(1, [True, False]), (3, [True]), (2, [[True, False]])])
def test_a_mask_of_other_environments_begins_no_episode(run: Path, num_envs: int, mask: Any):
    team = ql.load(run, num_envs=num_envs)
    with pytest.raises(ValueError, match=rf"a mask must be \({num_envs},\)"):
        team.reset(mask)
    assert team.act(np.zeros((num_envs, 3, 4))).shape == (num_envs, 3), "its memory is what it was"


def test_agents_may_be_called_by_numbers(run: Path):
    stored = open_policy(run)
    by_number = replace(stored.spec, agent_names=("0", "1", "2"))
    obs = np.random.default_rng(0).normal(size=(3, 4))
    numbered = Team(stored.build(), by_number).act(dict(enumerate(obs)), {2: [0, 0, 0, 1]})
    named = stored.team().act({f"unit_{i}": row for i, row in enumerate(obs)}, {"unit_2": [0, 0, 0, 1]})
    assert numbered == {i: named[f"unit_{i}"] for i in range(3)}
    assert numbered[2] == 3


def test_the_parts_of_an_observation_are_joined_as_in_training():
    """A ``Dict`` made of keywords keeps their order, that of a mapping sorts them."""
    box = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    unsorted, in_order = spaces.Dict(speed=box, place=box), spaces.Dict({"speed": box, "place": box})
    shown = {"speed": np.array([7.0], np.float32), "place": np.array([1.0], np.float32)}
    for space, joined in ((unsorted, [7.0, 1.0]), (in_order, [1.0, 7.0])):
        first = {"observations": {"a_0": shown}}

        def make(space: Any = space, first: Any = first) -> Any:
            return Scripted([], agents=("a_0",), observation_spaces={"a_0": space}, first=first)

        env = make_vector_env(make, {}, num_envs=1, name="parts")
        observation = env.reset(torch.tensor([True]), torch.tensor([0]))
        assert observation.obs[0, 0].tolist() == joined
        spec = read_spec(json.loads(json.dumps(env.spec.to_dict())), "policy.json")
        assert spec.obs_keys == (("speed", "place") if space is unsorted else ())
        assert spec == replace(spec, obs_keys=()), "runs that began without it go on"
        policy = make_policy(spec)
        by_name, beside_a_mask, as_trained = (Team(policy, spec) for _ in range(3))
        by_name.act({"a_0": shown})
        beside_a_mask.act({"a_0": {"observation": shown, "action_mask": np.ones(3)}})
        as_trained.act(observation.obs.numpy())
        np.testing.assert_array_equal(by_name.values, as_trained.values)
        np.testing.assert_array_equal(beside_a_mask.values, as_trained.values)
