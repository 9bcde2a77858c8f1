"""Overcooked: the package's wrapper raises in legal play, shapes by default and writes planners; ours does not."""

import stat
from pathlib import Path

import numpy as np
import overcooked as package
import pytest

from qmix_lightning.envs import overcooked
from qmix_lightning.errors import ConfigurationError
from support.playing import Player

UP, DOWN, RIGHT, LEFT, STAY, USE = range(6)
PLANNERS = Path(package.__file__).parent / "data" / "planners"


def test_sizes():
    spec = Player(overcooked.make()).spec
    assert (spec.n_agents, spec.n_actions, spec.obs_dim, spec.state_dim, spec.episode_limit) == (2, 6, 502, 502, 400)
    assert spec.episode_metrics == ("sparse_return",)


def test_observations_are_the_packages_own():
    raw = package.Overcooked.from_layout("cramped_room", horizon=400, reward_shaping_factor=0.0)
    raw.reset(seed=0)
    player = Player(overcooked.make()).reset()
    for _ in range(400):
        player.step()
        raw._oenv.state = player.env._kitchen.state
        shown, state = raw.get_observation(), raw.get_state()
        for i in range(2):
            assert np.array_equal(player.row.obs[i], np.concatenate([shown.data[i].ravel(), shown.extras[i]]))
        assert np.array_equal(player.row.state, np.concatenate([state.data.ravel(), state.extras]))
    assert player.row.obs[:, -2:].tolist() == [[1.0, 1.0]] * 2


def test_long_random_play_never_raises_and_writes_no_planner():
    before = sorted(PLANNERS.iterdir())
    player = Player(overcooked.make())
    for seed in range(3):  # the package's own step raises IndexError in most of these
        assert player.episode(seed)[0] == 400
    assert sorted(PLANNERS.iterdir()) == before


@pytest.fixture
def read_only_planners():
    mode = PLANNERS.stat().st_mode
    PLANNERS.chmod(mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    yield
    PLANNERS.chmod(mode)


def test_a_read_only_installation(read_only_planners, monkeypatch):
    from overcooked.planning.planners import MotionPlanner

    def touched(*args, **kwargs):
        raise AssertionError("a planner was asked for")

    monkeypatch.setattr(MotionPlanner, "from_pickle_or_compute", touched)  # root may write anywhere
    assert Player(overcooked.make(horizon=50)).episode()[0] == 50


def test_the_horizon_is_a_truncation_though_the_package_says_done():
    player = Player(overcooked.make(horizon=30)).reset()
    for t in range(1, 31):
        outcome = player.step(STAY, STAY)
        assert (outcome.terminated, outcome.truncated) == (False, t == 30)
    assert outcome.metrics == (0.0,)
    assert player.row.agent_mask.all()
    assert player.row.obs[0, -2:].tolist() == [1.0, 1.0]
    again = Player(overcooked.make(horizon=30), timeout_is_terminal=True).episode()[1]
    assert (again.terminated, again.truncated) == (True, False)


def cook(player):
    """Soup by one cook: three onions into the pot, lit, dished and served; the rewards of all steps.

    The cooks start at (1, 2) and (3, 1), and the second stays there. Onions are left of (1, 1), the pot above (2, 1),
    dishes below (1, 2), and soup is served below (3, 2).
    """
    to_pot = [RIGHT, UP, USE]
    plan = [UP, LEFT, USE, *to_pot]
    for _ in range(2):
        plan += [LEFT, LEFT, USE, *to_pot]
    plan += [USE]  # light it
    plan += [DOWN, LEFT, DOWN, USE]  # to (2, 2) and (1, 2): a dish
    plan += [STAY] * 20
    plan += [RIGHT, UP, UP, USE]  # to (2, 2) and (2, 1): the soup
    plan += [DOWN, RIGHT, DOWN, USE]  # to (2, 2) and (3, 2): serve
    return [player.step(action, STAY).reward for action in plan]


def test_a_soup_is_worth_twenty_once_without_shaping():
    player = Player(overcooked.make(horizon=100, reward_shaping_factor=0.0)).reset()
    rewards = cook(player)
    assert rewards[-1] == 20.0
    assert set(rewards[:-1]) == {0.0}
    assert player.row.agent_reward.tolist() == [20.0, 20.0]
    outcome = player.step()
    while not outcome.truncated:
        outcome = player.step(STAY, STAY)
    assert outcome.metrics == (20.0,)


def test_shaping_comes_on_top_and_is_kept_out_of_the_sparse_return():
    player = Player(overcooked.make(horizon=100, reward_shaping_factor=0.5)).reset()
    rewards = cook(player)
    # The package's own: 3 for each of three onions potted, 3 for a dish while soup cooks, 5 for picking the soup up.
    assert sum(rewards) == pytest.approx(20.0 + 0.5 * (3 * 3 + 3 + 5))
    while not (outcome := player.step(STAY, STAY)).truncated:
        pass
    assert outcome.metrics == (20.0,)


def test_the_sparse_return_of_an_episode_that_env_episode_limit_ends():
    player = Player(overcooked.make(horizon=100), episode_limit=70).reset()
    cook(player)
    while not (outcome := player.step(STAY, STAY)).truncated:
        pass
    assert outcome.metrics == (20.0,)


def test_recipes_of_another_kitchen_do_not_leak_in():
    """Cooking times are global in the package: here 20 steps, in the other kitchen 100."""
    kitchen = Player(overcooked.make(horizon=100)).reset()
    other = Player(overcooked.make("long_cook_time")).reset()
    assert cook(kitchen)[-1] == 20.0
    other.step()
    kitchen.reset()
    assert cook(kitchen)[-1] == 20.0


@pytest.mark.parametrize("layout", overcooked.layouts())
def test_every_layout_plays_or_says_why_not(layout):
    from overcooked.mdp import OvercookedGridworld

    if OvercookedGridworld.from_layout_name(layout).num_players != 2:
        with pytest.raises(ConfigurationError, match=r"has \d player\(s\), but its observations are defined for 2"):
            overcooked.make(layout)
    else:
        assert Player(overcooked.make(layout, horizon=5)).episode()[0] == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "cramped_rom"}, r"unknown Overcooked layout 'cramped_rom'\. Did you mean 'cramped_room'\?"),
        ({"horizon": 0}, "horizon must be at least 1, not 0"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        overcooked.make(**settings)
