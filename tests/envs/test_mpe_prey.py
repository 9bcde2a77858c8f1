"""The prey of ``simple_tag`` that acts by a rule."""

import numpy as np
import pytest
from mpe2 import simple_tag_v3

from qmix_lightning.envs.mpe_prey import flee

NONE, LEFT, RIGHT, DOWN, UP = range(5)
FAR = [9.0, 9.0]


def move(place, *predators):
    """What it does at ``place``, seeing predators relative to itself, of whom the others are far away."""
    others = [FAR] * (3 - len(predators))
    observation = np.array([0, 0, *place, 0, 0, 0, 0, *np.ravel([*predators, *others])], np.float32)
    return flee("agent_0", observation, np.ones(5, bool), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("predator", "expected"), [((0.3, 0), LEFT), ((-0.3, 0.1), RIGHT), ((0.1, 0.3), DOWN), ((0, -0.3), UP)]
)
def test_it_runs_from_the_nearest_predator(predator, expected):
    assert move((0, 0), predator) == move((0, 0), (0.6, 0.6), predator) == expected


def test_it_stays_inside_the_field():
    assert move((-0.85, 0), (0.3, 0)) in (UP, DOWN), "left is out"
    assert move((0, -0.85), (0.02, 0.3), (0.3, 0)) == LEFT


def test_it_reads_what_the_scenario_shows():
    env = simple_tag_v3.parallel_env(continuous_actions=False)
    for seed in range(5):
        shown, _ = env.reset(seed=seed)
        world = {agent.name: agent.state.p_pos for agent in env.unwrapped.world.agents}
        seen = shown["agent_0"]
        assert np.allclose(seen[2:4], world["agent_0"], atol=1e-6)
        relative = [world[f"adversary_{i}"] - world["agent_0"] for i in range(3)]
        assert np.allclose(seen[8:14].reshape(3, 2), relative, atol=1e-6)
