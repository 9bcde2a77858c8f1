"""SMAC's adapter against a stand-in for the game; each trap of the package has a test."""

import importlib.machinery
import os
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from qmix_lightning.env_checker import check_factory, failures, report
from qmix_lightning.envs import smac, starcraft
from qmix_lightning.errors import (
    ConfigurationError,
    EnvironmentFault,
    InvalidEpisodeError,
    MissingDependencyError,
    RunError,
    StartupError,
)
from qmix_lightning.vector.factory import make_vector_env
from support import fake_smac
from support.fake_smac import SERVER, LaunchError, NoMapError
from support.playing import Player


@pytest.fixture(autouse=True)
def flags(monkeypatch):
    monkeypatch.setattr(starcraft, "_BACK_OFF_S", 0.0)
    return fake_smac.install(monkeypatch)


def play(settings=None, **more):
    """A map behind an adapter, with the row it writes."""
    return Player(smac.make(**(settings or {}), **more))


def fight(played):
    """Shoot whoever is in reach, else walk there."""
    legal = played.row.avail_actions
    moves = [int(np.flatnonzero(m[6:])[0]) + 6 if m[6:].any() else (4 if m[4] else int(m.argmax())) for m in legal]
    return played.step(*moves)


STAY = [1, 1, 1]


@pytest.mark.parametrize(
    ("map_name", "state", "obs", "actions"),
    [("3m", 48, 30, 9), ("2s3z", 120, 80, 11), ("MMM", 290, 160, 16), ("27m_vs_30m", 1170, 285, 36)],
)
def test_shapes_need_no_game_and_no_reset(map_name, state, obs, actions):
    played = play(map_name=map_name)
    assert (played.spec.state_dim, played.spec.obs_dim, played.spec.n_actions) == (state, obs, actions)
    assert SERVER.games == []
    assert played.spec.episode_metrics == ("won", "dead_allies", "dead_enemies")
    played.reset()
    assert len(SERVER.games) == 1


def test_an_episode_to_the_end_and_the_published_scale_of_its_return():
    played = play().reset()
    total, shown = 0.0, []
    while True:
        outcome = fight(played)
        total += outcome.reward
        shown.append(played.row.agent_mask.tolist())
        if outcome.terminated or outcome.truncated:
            break
    assert outcome.terminated
    assert not outcome.truncated
    won, dead_allies, dead_enemies = outcome.metrics
    assert (won, dead_enemies) == (1.0, 3.0)
    assert total == pytest.approx(20.0, rel=1e-5)  # 135 damage, 3 deaths of 10, 200 for the win, of 365 / 20
    assert dead_allies == 3 - sum(shown[-2])
    assert played.env.agents == []


def test_the_dead_keep_their_slot_with_only_the_no_op():
    played = play().reset()
    while played.row.agent_mask.all():
        fight(played)
    dead = int(np.flatnonzero(~played.row.agent_mask)[0])
    assert played.row.avail_actions[dead].tolist() == [True] + [False] * 8
    assert not played.row.obs[dead].any()
    for alive in np.flatnonzero(played.row.agent_mask):
        assert not played.row.avail_actions[alive, 0]  # the no-op is never an option of who is alive
        assert played.row.avail_actions[alive, 1]  # stop always is
    fight(played)  # the adapter sends the no-op for the dead, or the game would refuse


def test_the_limit_is_a_truncation_and_bootstraps_from_the_true_last_observation():
    played = play().reset()
    played.env._game.agents[2].health = 1.0  # this one falls
    for t in range(1, 61):
        outcome = played.step(*STAY)
        assert (outcome.terminated, outcome.truncated) == (False, t == 60)
    alive = [unit.health > 0 for unit in played.env._game.agents.values()]
    assert alive == [True, True, False]
    assert played.row.agent_mask.tolist() == alive
    assert played.row.obs.any(axis=1).tolist() == alive
    assert played.row.avail_actions[:, 1].tolist() == alive
    assert outcome.metrics == (0.0, 1.0, 0.0)


def test_the_dead_of_an_episode_that_env_episode_limit_ends_are_counted():
    played = Player(smac.make(), episode_limit=59).reset()
    played.env._game.agents[2].health = 1.0  # this one falls
    while not (outcome := played.step(*STAY)).truncated:
        pass
    assert outcome.metrics == (0.0, 1.0, 0.0)


def test_timeout_is_terminal_is_pymarls_published_way():
    played = Player(smac.make(), timeout_is_terminal=True).reset()
    for _ in range(59):
        assert not played.step(*STAY).terminated
    outcome = played.step(*STAY)
    assert (outcome.terminated, outcome.truncated) == (True, False)


def test_a_battle_lost_on_the_last_step_is_an_end():
    played = play(kwargs={"move_amount": 0}).reset()
    for unit in played.env._game.enemies.values():
        unit.health = 0.0
    outcome = played.step(*STAY)
    assert outcome.terminated


def test_medivacs_aim_at_allies():
    played = play(map_name="MMM").reset()
    played.env._game.enemies.clear()
    medivac = played.env._game.get_avail_agent_actions(9)
    assert medivac[6:15] == [1] * 9  # the nine others, under the numbers that are enemies to everyone else


def test_an_illegal_action_is_not_swallowed():
    played = play().reset()
    with pytest.raises(AssertionError, match="cannot perform action 0"):
        played.step(0, 1, 1)


def test_everything_is_float32():
    played = play(kwargs={"obs_timestep_number": True}).reset()
    observations, _ = played.env.reset()
    assert {o.dtype for o in observations.values()} == {np.dtype(np.float32)}
    assert played.env.state().dtype == np.float32


# The observation that is longer than declared -------------------------------------------------------------------


def test_obs_timestep_number_declares_81_and_delivers_82():
    raw = fake_smac.StarCraft2Env(map_name="2s3z", obs_timestep_number=True)
    assert raw.get_env_info()["obs_shape"] == 81
    played = play(map_name="2s3z", kwargs={"obs_timestep_number": True})
    assert played.spec.obs_dim == 82
    played.reset()
    played.step(*[1] * 5)
    assert played.row.obs[0, 81] == np.float32(1 / 120)
    assert played.spec.state_dim == 120


def test_obs_timestep_number_in_the_state_too():
    played = play(map_name="2s3z", kwargs={"obs_timestep_number": True, "obs_instead_of_state": True}).reset()
    assert played.spec.state_dim == 5 * 82
    assert played.row.state.reshape(5, 82).tolist() == played.row.obs.tolist()


def test_a_version_that_delivers_what_it_declares_is_padded(monkeypatch):
    monkeypatch.setattr(fake_smac.StarCraft2Env, "declares_too_little", False)
    played = play(map_name="2s3z", kwargs={"obs_timestep_number": True}).reset()
    assert played.spec.obs_dim == 82
    assert not played.row.obs[:, 81].any()


# Relaunches and the reward scale ----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 5])
def test_a_relaunch_is_an_invalid_episode_and_the_next_has_a_new_game(at):
    SERVER.step_errors.append(at)
    played = play().reset(seed=3)
    for _ in range(at - 1):
        played.step()
    with pytest.raises(InvalidEpisodeError, match="SMAC map '3m': the game had to be relaunched in the middle"):
        played.step()
    played.reset(seed=4)
    assert SERVER.running == 1  # the relaunched one was ended too
    assert SERVER.games[-1].seed == 4
    assert played.env._game.max_reward == 365


def test_the_reward_scale_would_double_without_care():
    raw = fake_smac.StarCraft2Env(map_name="3m")
    raw.reset()
    assert raw.max_reward == 365
    raw.reset()
    assert raw.max_reward == 500
    assert SERVER.running == 2  # and a game is left running


def test_a_second_reset_without_steps_is_absorbed():
    played = play().reset(seed=1)
    first = played.row.obs.copy()
    played.reset(seed=2)
    assert len(SERVER.games) == 1
    assert SERVER.first_observations == 1
    assert np.array_equal(played.row.obs, first)
    assert played.env._game.max_reward == 365


def test_a_reset_in_the_first_episode_takes_a_new_game():
    played = play().reset(seed=1)
    played.step(*STAY)
    played.reset(seed=2)
    assert [game.running for game in SERVER.games] == [False, True]
    assert played.env._game.max_reward == 365


def test_a_reset_in_a_later_episode_keeps_the_game():
    played = play()
    played.episode()
    played.reset()
    played.step(*STAY)
    played.reset()
    assert len(SERVER.games) == 1
    assert played.env._game.max_reward == 365


def test_units_that_appear_late_do_not_change_the_scale():
    SERVER.late_units = 1
    raw = fake_smac.StarCraft2Env(map_name="3m")
    raw.reset()
    assert raw.max_reward == 365 + 2 * 45
    assert play().reset().env._game.max_reward == 365


def test_the_first_observation_that_fails():
    SERVER.observe_errors.append(1)
    played = play()
    with pytest.raises(InvalidEpisodeError, match="SMAC map '3m': the game failed at its first observation"):
        played.reset()
    assert SERVER.running == 0
    played.reset()
    assert played.env._game.max_reward == 365


def test_a_later_first_observation_that_fails_would_show_the_episode_before():
    SERVER.observe_errors.append(2)
    played = play()
    played.episode()
    with pytest.raises(InvalidEpisodeError, match="had to be relaunched while an episode started"):
        played.reset()
    assert SERVER.running == 0
    played.reset()
    assert SERVER.running == 1


def test_a_failing_relaunch_is_an_invalid_episode_too():
    SERVER.step_errors.append(1)
    played = play().reset()
    SERVER.launch_errors.append(OSError("port taken"))
    with pytest.raises(InvalidEpisodeError, match="the game failed in a step: OSError: port taken"):
        played.step()
    played.reset()
    assert SERVER.running == 1


# Launching -----------------------------------------------------------------------------------------------------


def test_ports_in_use_are_tried_again():
    SERVER.launch_errors.extend([ConnectionError("Failed to connect to the SC2 websocket. Is it up?")] * 2)
    play().reset()
    assert SERVER.running == 1
    SERVER.launch_errors.extend([ConnectionError("no")] * 2)
    with pytest.raises(StartupError, match="could not be launched in 2 attempts: ConnectionError: no"):
        play(launch_attempts=2).reset()


def test_a_game_that_has_never_started_ends_the_run_with_its_last_words(monkeypatch):
    def launch(self):
        os.write(2, b"error while loading shared libraries: libfoo.so\n")
        launches.append(1)
        raise ConnectionError("Is it up?")

    launches = []
    monkeypatch.setattr(fake_smac.StarCraft2Env, "_launch", launch)
    env = make_vector_env(smac.make, {"launch_attempts": 2}, num_envs=1, name="smac")
    with pytest.raises(
        EnvironmentFault, match=r"in 2 attempts: ConnectionError: Is it up\?; the last that it.*libfoo\.so"
    ):
        env.reset(torch.tensor([True]), torch.tensor([0]))
    assert len(launches) == 2


def test_a_hang_is_counted_as_one(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(starcraft.time, "monotonic", lambda: now[0])
    SERVER.step_errors.append(1)
    env = make_vector_env(smac.make, {"timeout_s": 120}, num_envs=1, name="smac")
    on = torch.tensor([True])
    env.reset(on, torch.tensor([0]))
    step = fake_smac.StarCraft2Env.step

    def slow(self, actions):
        now[0] += 121.0
        return step(self, actions)

    monkeypatch.setattr(fake_smac.StarCraft2Env, "step", slow)
    assert env.step(torch.tensor([STAY]), on).failed.tolist() == [True]
    assert env.faults["hung"] == 1


def test_its_episodes_are_no_function_of_the_seed_and_the_checker_knows():
    assert make_vector_env(smac.make, {}, num_envs=1, name="smac").seeded is False
    results = check_factory(smac.make, name="smac", steps=200)
    assert not failures(results), report(results)
    unseen = {r.check: r.message for r in results if r.status == "unseen"}
    for check in ("seeding", "state", "slots", "unfinished"):
        assert "metadata['seeded'] is false" in unseen[check]


def test_without_a_game_nothing_is_said_to_have_been_tried():
    SERVER.launch_errors.extend([FileNotFoundError(2, "No such file", "/x/StarCraftII/Versions")] * 20)
    results = check_factory(smac.make, name="smac")
    assert {r.check for r in failures(results)} == {"runs"}
    assert {r.check for r in results if r.status == "ok"} == {"keywords"}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "No such file", "/x/StarCraftII/Versions"), "StarCraft II is not there .*SC2PATH"),
        (LaunchError("Expected to find StarCraft II installed at '/x'."), "StarCraft II is not there .*SC2PATH"),
        (LaunchError("No SC2 binary found at: /x/SC2_x64"), "StarCraft II is not there .*SC2PATH"),
        (ValueError("Map SMAC_Maps/3m.SC2Map not found in /x/Maps."), "Copy the folder SMAC_Maps of the smac rep"),
        (NoMapError("Map doesn't exist: 3m"), "Copy the folder SMAC_Maps"),
        (ValueError("Unknown game version: 4.6.9. Known versions: ['4.10.0', 'latest']."), "Set env.kwargs.game_ver"),
    ],
)
def test_what_is_missing_is_one_helpful_line_and_not_tried_again(error, message):
    SERVER.launch_errors.append(error)
    with pytest.raises(ConfigurationError, match=f"SMAC map '3m': .*{message}") as caught:
        play().reset()
    assert "\n" not in str(caught.value)
    assert not SERVER.launch_errors
    assert SERVER.games == []


def test_the_hang_is_bounded_by_a_setting(flags):
    play(timeout_s=25).reset()
    assert flags.parsed
    assert flags.sc2_timeout == 25


# Seeds, versions, rebuilding, closing, replays --------------------------------------------------------------------


def test_the_first_seed_is_the_games_and_a_new_game_has_a_new_one():
    play().reset(seed=11).reset(seed=12)
    assert [game.seed for game in SERVER.games] == [11]
    play({"kwargs": {"seed": 5}}).reset(seed=11)
    assert SERVER.games[-1].seed == 5


def test_the_same_seed_plays_the_same_first_episode():
    seen = []
    for seed in (7, 7, 8):
        played = play().reset(seed=seed)
        seen.append([played.row.obs.copy(), *(played.step() and played.row.obs.copy() for _ in range(5))])
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])


def test_the_games_build_is_recorded():
    env = smac.make(kwargs={"game_version": "4.10.0"})
    assert env.metadata["versions"]["StarCraft II"] == "4.10.0 (build 75689)"
    assert env.versions() == env.metadata["versions"]


def test_the_newest_game_is_recorded_by_its_build_alone(monkeypatch):
    newest = SimpleNamespace(game_version="latest", build_version=75689)
    run_configs = sys.modules["pysc2.run_configs"]
    monkeypatch.setattr(run_configs, "get", lambda version=None: SimpleNamespace(version=newest))
    assert smac.make().metadata["versions"]["StarCraft II"] == "(build 75689)"


def test_a_game_that_is_not_there_is_told_before_it_is_launched(monkeypatch):
    def missing(version=None):
        raise FileNotFoundError("/root/StarCraftII/Versions")

    assert smac.make().metadata["missing"] is None
    monkeypatch.setattr(sys.modules["pysc2.run_configs"], "get", missing)
    assert "StarCraft II is not there" in smac.make().metadata["missing"]


def test_a_build_that_cannot_be_told_is_left_out(monkeypatch):
    def missing(version=None):
        raise FileNotFoundError("no game")

    monkeypatch.setattr(sys.modules["pysc2.run_configs"], "get", missing)
    assert "StarCraft II" not in smac.make().metadata["versions"]


@pytest.mark.parametrize(("step_mul", "steps"), [(8, 32768), (4, 65536), (16, 16384), (None, 32768)])
def test_a_new_game_is_due_well_before_its_last_loop(step_mul, steps):
    env = smac.make(kwargs={"step_mul": step_mul})
    assert env.metadata["rebuild_after_steps"] == steps
    assert (steps + env.episode_limit) * (step_mul or 8) < 2**19


def test_a_new_game_is_taken_between_episodes():
    played = play(rebuild_after_steps=100, kwargs={"move_amount": 0})
    assert played.episode(seed=1, actions=STAY)[0] == 60
    assert played.episode(seed=2, actions=STAY)[0] == 60
    assert played.env.steps_since_launch == 120
    played.reset(seed=3)
    assert [(game.running, game.seed) for game in SERVER.games] == [(False, 1), (True, 3)]
    assert played.env.steps_since_launch == 0
    assert played.env._game.max_reward == 365


def test_the_last_game_loop_loses_an_episode_if_it_is_reached():
    played = play(rebuild_after_steps=10**6).reset()
    SERVER.games[0].loops = 2**19 - 10
    played.step(*STAY)
    with pytest.raises(InvalidEpisodeError, match="relaunched"):
        played.step(*STAY)


def test_close_is_for_good_and_may_be_called_twice():
    played = play().reset()
    played.adapter.close()
    played.env.close()
    assert SERVER.running == 0
    with pytest.raises(RunError, match="was closed"):
        played.env.reset(seed=1)
    assert SERVER.running == 0


def test_a_game_that_fails_to_close_is_replaced_all_the_same(monkeypatch):
    played = play().reset()
    played.step(*STAY)

    def broken(self):
        raise fake_smac.ProtocolError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(fake_smac.Game, "close", broken)
        played.reset()
    assert len(SERVER.games) == 2


def test_replays_are_saved_at_the_end_of_evaluation_episodes_only():
    play(save_replay=True).episode()
    assert SERVER.replays == []
    played = play(save_replay=True, evaluation=True, kwargs={"replay_prefix": "watch"})
    played.episode()
    played.episode()
    assert SERVER.replays == ["watch", "watch"]
    play(evaluation=True).episode()
    assert len(SERVER.replays) == 2


def test_a_replay_that_cannot_be_saved_does_not_end_the_run(monkeypatch):
    def full(self):
        raise OSError("disk full")

    monkeypatch.setattr(fake_smac.StarCraft2Env, "save_replay", full)
    assert play(save_replay=True, evaluation=True).episode()[0] > 0


# Settings ------------------------------------------------------------------------------------------------------


def test_the_games_own_settings_by_name():
    env = smac.make(kwargs={"difficulty": 9, "reward_scale_rate": 10, "step_mul": 4})
    settings = env._game.settings
    assert (settings.difficulty, settings.reward_scale_rate, settings.step_mul) == ("9", 10, 4)
    assert settings.continuing_episode is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kwargs": {"dificulty": "7"}}, r"StarCraft2Env has no setting 'dificulty'\. Did you mean 'difficulty'\?"),
        ({"kwargs": {"difficulty": 11}}, "difficulty must be one of 1, 2"),
        ({"kwargs": {"game_version": 4.10}}, r"game_version=4\.1 is ambiguous: write all three parts"),
        ({"kwargs": {"map_name": "8m"}}, r"map_name is not yours to set: use env\.map_name"),
        ({"kwargs": {"continuing_episode": False}}, "it is always on, .* use env.timeout_is_terminal"),
        ({"map_name": "27m_vs_31m"}, r"unknown SMAC map '27m_vs_31m'\. Did you mean '27m_vs_30m'\?"),
        ({"timeout_s": 0}, r"timeout_s \(0\), launch_attempts \(3\)"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        smac.make(**settings)


def test_every_map_of_the_package_is_known():
    assert smac.maps() == sorted(fake_smac._MAPS)


# What is installed -----------------------------------------------------------------------------------------------


def uninstall(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("smac", "smacv2")]:
        monkeypatch.delitem(sys.modules, name)


def test_nothing_installed(monkeypatch):
    uninstall(monkeypatch)
    with pytest.raises(MissingDependencyError, match=r"on no index: pip install --no-deps git\+https://github.com/oxw"):
        smac.make()


def test_smac3_installed_instead(monkeypatch, tmp_path):
    uninstall(monkeypatch)
    (tmp_path / "smac").mkdir()
    (tmp_path / "smac" / "__init__.py").write_text("raise RuntimeError('never imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match="'smac' is SMAC3, an optimiser, not the StarCraft environment"):
        smac.make()
    assert "smac" not in sys.modules


def test_smac3_imported_already(monkeypatch):
    uninstall(monkeypatch)
    module = ModuleType("smac")
    module.__spec__ = importlib.machinery.ModuleSpec("smac", None, is_package=True)
    module.__path__ = []
    monkeypatch.setitem(sys.modules, "smac", module)
    with pytest.raises(MissingDependencyError, match="is SMAC3"):
        smac.make()


def test_a_package_that_smac_needs_is_named(monkeypatch, tmp_path):
    uninstall(monkeypatch)
    (tmp_path / "smac" / "env").mkdir(parents=True)
    (tmp_path / "smac" / "env" / "__init__.py").write_text("import s2clientprotocol_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match="needs the package 's2clientprotocol_that_is_missing': pip inst"):
        smac.make()


def test_smacv2_in_the_same_process(monkeypatch):
    monkeypatch.setitem(sys.modules, "smacv2.env", ModuleType("smacv2.env"))
    with pytest.raises(ConfigurationError, match=r"smac and smacv2 cannot share a process.*smacv2 is loaded already"):
        smac.make()


# What the vector layer makes of it -----------------------------------------------------------------------------------


def test_the_yaml_as_it_is(request):
    path = request.config.rootpath / "conf" / "env" / "smac.yaml"
    settings = yaml.safe_load(path.read_text())
    assert settings.pop("name") == "smac"
    terminal, limit = settings.pop("timeout_is_terminal"), settings.pop("episode_limit")
    env = make_vector_env(
        smac.make, settings, num_envs=2, name="smac", timeout_is_terminal=terminal, episode_limit=limit
    )
    on = torch.tensor([True, True])
    env.reset(on, torch.tensor([1, 2]))
    assert sorted(game.seed for game in SERVER.games) == [1, 2]
    env.close()
    assert SERVER.running == 0


def test_a_relaunch_drops_the_episode_and_training_goes_on():
    SERVER.step_errors.append(5)
    env = make_vector_env(smac.make, {}, num_envs=1, name="smac")
    on = torch.tensor([True])
    env.reset(on, torch.tensor([1]))
    for _ in range(4):
        assert not env.step(torch.tensor([STAY]), on).terminated.any()
    outcome = env.step(torch.tensor([STAY]), on)
    assert outcome.failed is not None
    assert outcome.failed.tolist() == [True]
    assert not outcome.terminated.any()
    env.reset(on, torch.tensor([2]))
    assert SERVER.running == 1
    for t in range(60):
        outcome = env.step(torch.tensor([STAY]), on)
        assert outcome.truncated.tolist() == [t == 59]
    env.close()
    assert SERVER.running == 0
