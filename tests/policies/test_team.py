"""A trained team acts from dictionaries and from arrays as it acts in an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qmix_lightning as ql
from qmix_lightning.policies import open_policy
from support import inprocess
from support.fakes import VaryingLength

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
        (np.zeros((2, 3, 4)), "observations must be"),
    ],
)
def test_what_it_cannot_use_is_refused(run: Path, observations: Any, message: str):
    with pytest.raises(ValueError, match=message):
        ql.load(run).act(observations)
