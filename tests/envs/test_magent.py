"""MAgent2's games: who won, a state when an army is gone, and mistakes in settings."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qmix_lightning.envs import magent
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.vector.factory import make_vector_env


def test_a_battle_between_two_armies_ends_at_its_limit_as_a_draw():
    settings = {"game": "battle", "kwargs": {"map_size": 16, "max_cycles": 3}}
    env = make_vector_env(magent.make, settings, num_envs=1, name="magent2", team=["red_*"])
    assert (env.spec.episode_limit, env.spec.episode_metrics, len(env.spec.team)) == (3, ("won",), 6)
    assert [p.shape for p in env.spec.pictures] == [(13, 13, 5)]
    on = torch.ones(1, dtype=torch.bool)
    env.reset(on, torch.tensor([1]))
    for _ in range(3):
        outcome = env.step(torch.zeros(1, 12, dtype=torch.int64), on)
    assert (outcome.truncated.item(), outcome.terminated.item()) == (True, False)
    assert outcome.metrics["won"].item() == 0.0
    env.close()


def test_an_attack_that_hits_nothing_costs_nothing_unless_it_is_asked_for():
    """21 actions: do nothing, 12 moves, 8 attacks; each step costs 0.005."""
    costs = []
    for kwargs in ({}, {"attack_penalty": -0.1}):
        env = magent.make("battle", {"map_size": 16, "max_cycles": 3, **kwargs})
        env.reset(seed=1)
        costs.append(env.step(dict.fromkeys(env.agents, 13))[1]["red_0"])
        env.close()
    assert costs == pytest.approx([-0.005, -0.105])


class Stub:
    """A game of two red and one blue, of whom so many are alive."""

    def __init__(self, red: int, blue: int) -> None:
        self.possible_agents = self.agents = ["red_0", "red_1", "blue_0"]
        self.handles = self._all_handles = [0, 1]
        self.env = SimpleNamespace(get_num=lambda handle: (red, blue)[handle])
        self.metadata, self.state_space, self.render_mode, self.max_cycles = {}, None, None, 5

    def step(self, actions):
        never = dict.fromkeys(self.agents, False)
        return {}, {}, never, never, {agent: {} for agent in self.agents}

    def state(self):
        rows, columns = zip(*[(handle, 0) for handle in self._all_handles if self.env.get_num(handle)], strict=True)
        assert len(rows) == len(columns) == len(self._all_handles)  # the package unpacks nobody's places
        return np.zeros(1)


@pytest.mark.parametrize(
    ("red", "blue", "winners"),
    [(2, 1, {"red_0", "red_1"}), (0, 1, {"blue_0"}), (1, 1, set()), (1, 0, {"red_0", "red_1"})],
)
def test_the_larger_army_has_won(red: int, blue: int, winners: set[str]):
    game = magent.Grid(Stub(red, blue))
    infos = game.step({})[-1]
    assert {agent for agent, info in infos.items() if info["won"]} == winners
    assert game.state().shape == (1,)
    assert game.env._all_handles == [0, 1]


def test_mistakes_get_the_nearest_name():
    with pytest.raises(ConfigurationError, match=r"unknown MAgent2 game 'batle'. Did you mean 'battle'\?"):
        magent.make("batle")
    with pytest.raises(ConfigurationError, match=r"no setting 'attack_penalt'. Did you mean 'attack_penalty'\?"):
        magent.make("battle", {"attack_penalt": 1.0})
