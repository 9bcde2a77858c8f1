"""SMACv2's adapter against a stand-in for the game."""

import random
import sys
from copy import deepcopy
from types import ModuleType

import pytest
import yaml

from qmix_lightning.envs import smacv2, starcraft
from qmix_lightning.errors import ConfigurationError, InvalidEpisodeError, MissingDependencyError
from support import fake_smac
from support.fake_smac import SERVER
from support.playing import Player


@pytest.fixture(autouse=True)
def _game(monkeypatch):
    monkeypatch.setattr(starcraft, "_BACK_OFF_S", 0.0)
    fake_smac.install(monkeypatch, "smacv2")


def play(env, steps, seed=0):
    """Random legal play; what it is of, and the steps taken."""
    player, length, over = Player(env).reset(seed), 0, False
    while length < steps and not over:
        outcome = player.step()
        length, over = length + 1, outcome.terminated or outcome.truncated
    return player.spec, length


def test_an_authors_task():
    env = smacv2.make(race="terran", n_units=5, n_enemies=6)
    spec, length = play(env, 500)
    assert (spec.n_agents, spec.n_actions, spec.episode_limit) == (5, 12, 200)
    assert spec.episode_metrics == ("won", "dead_allies", "dead_enemies")
    assert length > 4
    team = SERVER.spawned[0]["team_gen"]
    assert set(team["ally_team"]) <= {"marine", "marauder", "medivac"}
    assert env._game.env.settings.map_name == "10gen_terran"


def test_conic_view_has_23_actions():
    spec, _ = play(smacv2.make(kwargs={"conic_fov": True}), 20)
    assert spec.n_actions == 23


def test_an_episodes_seed_decides_teams_and_positions():
    before = random.getstate()
    for seed in (3, 4, 5, 6, 3, 4, 5, 6):
        smacv2.make(n_units=10, n_enemies=10).reset(seed=seed)
        assert random.getstate() == before
        random.seed(seed + len(SERVER.spawned))
        before = random.getstate()
    assert SERVER.spawned[:4] == SERVER.spawned[4:]
    assert SERVER.spawned[0] != SERVER.spawned[1]


def test_seeds_reach_the_distributions_of_a_game_that_runs():
    env = smacv2.make()
    for seed in (3, 4, 3):
        play(env, 500, seed)
    assert len(SERVER.games) == 1
    assert SERVER.spawned[0] == SERVER.spawned[2]
    assert SERVER.spawned[0] != SERVER.spawned[1]


def test_a_fresh_episode_stands_for_one_of_the_same_seed_only():
    env = smacv2.make()
    env.reset(seed=3)
    env.reset(seed=3)
    assert len(SERVER.spawned) == 1
    env.reset(seed=4)
    assert [game.running for game in SERVER.games] == [False, True]  # the first game's reward scale is kept single
    assert env._game.env.max_reward == 5 * 10 + 200 + 5 * 45


def test_the_configuration_is_not_written_into():
    config = {
        "n_units": 3,
        "n_enemies": 3,
        "team_gen": {"dist_type": "weighted_teams", "unit_types": ["zealot"], "weights": [1.0], "observe": True},
    }
    before = deepcopy(config)
    env = smacv2.make(capability_config=config)
    env.reset(seed=1)
    env.rebuild()
    env.reset(seed=2)
    assert config == before
    assert SERVER.spawned[0]["team_gen"]["ally_team"] == ["zealot"] * 3


def test_a_relaunch_is_an_invalid_episode():
    SERVER.step_errors.append(3)
    with pytest.raises(InvalidEpisodeError, match="SMACv2 10gen_protoss 5v5: the game had to be relaunched"):
        play(smacv2.make(), 10)


def test_the_call_that_the_wrapper_breaks_is_avoided():
    env = smacv2.make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="too many values to unpack"):
        env._game.get_avail_actions()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"race": "protos"}, r"unknown SMACv2 race 'protos'\. Did you mean 'protoss'\?"),
        ({"capability_config": {"team_gen": {}}}, "capability_config needs n_units and n_enemies"),
        ({"capability_config": {"n_units": 5}}, "capability_config needs n_enemies"),
        ({"kwargs": {"conic_fow": True}}, r"no setting 'conic_fow'\. Did you mean 'conic_fov'\?"),
        ({"kwargs": {"capability_config": {}}}, "use env.capability_config, or env.race"),
        ({"map_name": "10gen_teran"}, r"unknown SMACv2 map '10gen_teran'\. Did you mean '10gen_terran'\?"),
        (
            {"capability_config": {"n_units": 5, "n_enemies": 5, "team_gen": {"unit_types": []}}},
            "capability_config lacks or misnames 'dist_type'",
        ),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        smacv2.make(**settings)


def test_what_is_installed(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "smac.env", ModuleType("smac.env"))
        with pytest.raises(ConfigurationError, match="smac is loaded already: run smacv2 in a process of its own"):
            smacv2.make()
    for name in [name for name in sys.modules if name.partition(".")[0] == "smacv2"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingDependencyError, match=r"pip install --no-deps git\+https://github.com/oxwhirl/smacv2"):
        smacv2.make()


def test_the_yaml_as_it_is(request):
    settings = yaml.safe_load((request.config.rootpath / "conf" / "env" / "smacv2.yaml").read_text())
    assert settings.pop("name") == "smacv2"
    for name in ("timeout_is_terminal", "episode_limit"):
        settings.pop(name)
    env = smacv2.make(**settings)
    given = env._game.env.settings
    assert (given.obs_own_pos, given.use_unit_ranges, given.conic_fov) == (True, True, False)
    env.close()
    assert SERVER.running == 0
