"""Every cooperative scenario of MPE: its sizes, its limit, its rewards."""

import importlib

import numpy as np
import pytest

from qmix_lightning.envs import mpe
from support.playing import Player

# Agents, observation sizes, action counts, state: agents that speak have (moves x words) actions, or words alone.
COOPERATIVE = {
    "simple": ((4,), (5,), 4),
    "simple_spread": ((18,) * 3, (5,) * 3, 54),
    "simple_reference": ((21,) * 2, (50,) * 2, 42),
    "simple_speaker_listener": ((3, 11), (3, 5), 14),
}


@pytest.mark.parametrize("scenario", COOPERATIVE)
def test_sizes(scenario):
    spec = Player(mpe.make(scenario)).spec
    assert (spec.obs_dims, spec.action_counts, spec.state_dim) == COOPERATIVE[scenario]
    assert spec.episode_limit == 25


@pytest.mark.parametrize("scenario", sorted(mpe.scenarios()))
def test_masked_play_in_every_scenario(scenario):
    player = Player(mpe.make(scenario))
    spec = player.spec
    steps, outcome, _ = player.episode()
    assert steps == 25
    assert (outcome.terminated, outcome.truncated) == (False, True)  # max_cycles is a time limit
    assert player.row.agent_mask.all()
    for i, (size, count) in enumerate(zip(spec.obs_dims, spec.action_counts, strict=True)):
        assert player.row.avail_actions[i].sum() == count
        assert not player.row.obs[i, size:].any()


@pytest.mark.parametrize("scenario", [*COOPERATIVE, "simple_line", "simple_formation", "collect_treasure"])
def test_the_return_is_the_agents_rewards_added_up(scenario):
    raw = importlib.import_module(f"mpe2.{mpe.scenarios()[scenario]}").parallel_env(continuous_actions=False)
    raw.reset(seed=2)
    total, mean = Player(mpe.make(scenario)).reset(2), Player(mpe.make(scenario), reward_aggregation="mean").reset(2)
    for _ in range(25):
        actions = total.choose()
        rewards = raw.step(dict(zip(raw.possible_agents, actions, strict=True)))[1]
        assert total.step(*actions).reward == pytest.approx(sum(rewards.values()), rel=1e-6)
        assert mean.step(*actions).reward == pytest.approx(sum(rewards.values()) / len(rewards), rel=1e-6)


def test_success_is_an_end_where_the_scenario_has_it():
    """With everyone exactly on the line the scenario reports success, long before its limit."""
    env = mpe.make("simple_line", {"terminate_on_success": True, "N": 2})
    player = Player(env).reset(1)
    world = env.unwrapped.world
    ends = [landmark.state.p_pos for landmark in world.landmarks]
    for agent, place in zip(world.agents, ends, strict=True):
        agent.state.p_pos = place.copy()
        agent.state.p_vel[:] = 0
    outcome = player.step(0, 0)
    assert (outcome.terminated, outcome.truncated) == (True, False)


@pytest.mark.parametrize("scenario", sorted(mpe.scenarios()))
def test_the_game_without_turns_is_the_packages(scenario):
    theirs = importlib.import_module(f"mpe2.{mpe.scenarios()[scenario]}").parallel_env(
        continuous_actions=False, max_cycles=6
    )
    ours, rng = mpe.make(scenario, {"max_cycles": 6}), np.random.default_rng(0)
    assert ours.possible_agents == theirs.possible_agents
    for seed in (3, 4):
        shown = theirs.reset(seed=seed), ours.reset(seed=seed)
        for step in range(7):
            for of_theirs, of_ours in zip(*shown, strict=True):
                np.testing.assert_equal(dict(of_ours), dict(of_theirs))
            assert {value.dtype for value in shown[1][0].values()} == {np.dtype(np.float32)}
            np.testing.assert_array_equal(ours.state(), theirs.state())
            assert ours.state().dtype == theirs.state().dtype
            assert ours.agents == theirs.agents
            assert bool(ours.agents) == (step < 6)
            actions = {agent: int(rng.integers(theirs.action_space(agent).n)) for agent in theirs.agents}
            shown = (theirs.step(actions), ours.step(actions)) if actions else shown
