"""Gymnasium environments in the Tuple style, by id: LBF, RWARE, and one made up here."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from qmix_lightning.envs import gymnasium_tuple
from qmix_lightning.envs.lbf import Foraging
from qmix_lightning.envs.rware import RoboticWarehouse
from qmix_lightning.errors import ConfigurationError, EnvironmentContractError, MissingDependencyError
from support.playing import Player


class Counting(gymnasium.Env):
    """Two agents of different sizes count to ``length``; the end is reported as terminated, whatever it is."""

    def __init__(self, length: int = 8, success_at: int | None = None, rewards: Any = (1.0, 2.0)) -> None:
        self.observation_space = spaces.Tuple([spaces.Box(-1, 99, (2,)), spaces.Discrete(3)])
        self.action_space = spaces.Tuple([spaces.Discrete(2), spaces.MultiDiscrete([3, 2])])
        self.length, self.success_at, self.rewards = length, success_at, rewards
        self.received: list[Any] = []

    def _see(self):
        return np.array([self.t, self.seed], np.float32), self.t % 3

    def reset(self, *, seed=None, options=None):
        self.t, self.seed = 0, seed or 0
        return self._see(), {}

    def step(self, action):
        self.received.append(action)
        self.t += 1
        return self._see(), self.rewards, self.t in (self.length, self.success_at), False, {}


class Uneven(Counting):
    """Three actions for two agents."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Tuple([spaces.Discrete(2)] * 3)


@pytest.fixture(autouse=True, scope="module")
def _registered():
    gymnasium.register("Counting-v0", entry_point=f"{__name__}:Counting")
    gymnasium.register("Uneven-v0", entry_point=f"{__name__}:Uneven")
    yield
    del gymnasium.registry["Counting-v0"], gymnasium.registry["Uneven-v0"]


def make(kwargs=None, **settings):
    return gymnasium_tuple.make("Counting-v0", kwargs=kwargs, **settings)


def test_agents_of_different_sizes_are_padded():
    player = Player(make()).reset(seed=7)
    assert player.spec.obs_dims == (2, 3)
    assert player.spec.action_counts == (2, 6)
    assert player.row.obs.tolist() == [[0, 7, 0], [1, 0, 0]]
    assert player.row.avail_actions.tolist() == [[True, True] + [False] * 4, [True] * 6]
    assert player.row.state.tolist() == [0, 7, 1, 0, 0]
    outcome = player.step(1, 5)
    assert player.env.game.received == [(1, [2, 1])]  # six numbers for 3 x 2 choices, the last fastest
    assert outcome.reward == 3.0
    assert player.row.agent_reward.tolist() == [1.0, 2.0]


def test_one_reward_for_the_team_is_shared_out():
    player = Player(make({"rewards": 3.0})).reset()
    assert player.step(0, 0).reward == 3.0
    assert player.row.agent_reward.tolist() == [1.5, 1.5]
    assert Player(make({"rewards": [3.0, 1.0]}), reward_aggregation="mean").reset().step(0, 0).reward == 2.0


def test_an_end_is_an_end_unless_it_is_said_to_be_the_limit():
    steps, outcome, _ = Player(make()).episode()
    assert (steps, outcome.terminated, outcome.truncated) == (8, True, False)
    player = Player(make(time_limit=8))
    assert player.spec.episode_limit == 8
    steps, outcome, _ = player.episode()
    assert (steps, outcome.terminated, outcome.truncated) == (8, False, True)
    steps, outcome, _ = Player(make({"success_at": 5}, time_limit=8)).episode()
    assert (steps, outcome.terminated, outcome.truncated) == (5, True, False)


def test_gymnasiums_own_limit_is_a_truncation():
    player = Player(make({"max_episode_steps": 4}))
    assert player.spec.episode_limit == 4
    steps, outcome, _ = player.episode()
    assert (steps, outcome.terminated, outcome.truncated) == (4, False, True)
    steps, outcome, _ = Player(make({"max_episode_steps": 8})).episode()  # both at once: it did end
    assert (steps, outcome.terminated, outcome.truncated) == (8, True, False)


def test_an_episode_limit_of_ones_own():
    steps, outcome, _ = Player(make(), episode_limit=3).episode()
    assert (steps, outcome.terminated, outcome.truncated) == (3, False, True)


def test_lbf_by_id():
    env = gymnasium_tuple.make("Foraging-8x8-2p-3f-v3")
    assert isinstance(env, Foraging)
    player = Player(env).reset(1)
    assert player.spec.episode_limit == 50
    assert not player.row.avail_actions.all()
    for t in range(1, 51):
        outcome = player.step(0, 0)
        assert (outcome.terminated, outcome.truncated) == (False, t == 50)
    shorter = Player(gymnasium_tuple.make("Foraging-8x8-2p-3f-v3", kwargs={"max_episode_steps": 9}))
    assert (shorter.spec.episode_limit, shorter.episode()[0]) == (9, 9)


def test_rware_by_id():
    env = gymnasium_tuple.make("rware-tiny-2ag-v2", module="rware")
    assert isinstance(env, RoboticWarehouse)
    steps, outcome, _ = Player(env).episode()
    assert (steps, outcome.terminated, outcome.truncated) == (500, False, True)


@pytest.mark.parametrize(
    ("id", "settings", "error", "message"),
    [
        ("Countin-v0", {}, ConfigurationError, "Gymnasium does not know 'Countin-v0'.*env.module names the package"),
        ("CartPole-v1", {}, EnvironmentContractError, "CartPoleEnv is not in the Tuple style"),
        ("Uneven-v0", {}, EnvironmentContractError, "Uneven has 2 observations and 3 actions"),
        ("Counting-v0", {"kwargs": {"lenght": 3}}, ConfigurationError, r"no setting 'lenght'\. Did you mean 'length'"),
        ("Counting-v0", {"time_limit": 0}, ConfigurationError, "env.time_limit must be at least 1, not 0"),
        ("Any-v0", {"module": "no_such_package"}, MissingDependencyError, r"correct env\.module \('no_such_package'\)"),
    ],
)
def test_refusals(id, settings, error, message):
    with pytest.raises(error, match=message):
        gymnasium_tuple.make(id, **settings)
