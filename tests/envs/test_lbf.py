"""Level-based foraging: the mask that the package keeps to itself, its limit, its names."""

import copy

import gymnasium
import numpy as np
import pytest

from qmix_lightning.envs import lbf
from qmix_lightning.errors import ConfigurationError, EnvironmentContractError
from support.playing import Player


@pytest.mark.parametrize("task", ["8x8-2p-3f", "2s-8x8-2p-2f", "10x10-3p-3f", "15x15-4p-3f-coop", "2s-5x5-3p-1f-coop"])
def test_a_task_is_what_the_package_registers_under_its_name(task):
    from lbforaging.foraging import ForagingEnv

    raw = ForagingEnv(**gymnasium.spec(f"Foraging-{task}-v3").kwargs)
    ours = lbf.make(task).game
    for name in ("sight", "force_coop", "penalty", "max_num_food", "_max_episode_steps", "field_size", "n_agents"):
        assert getattr(ours, name) == getattr(raw, name), name
    assert ours.observation_space == raw.observation_space
    observations, _ = raw.reset(seed=5)
    assert np.array_equal(np.stack(observations), np.stack(list(lbf.make(task).reset(seed=5)[0].values())))


def test_tasks_that_are_not_registered():
    game = lbf.make("2s-9x7-5p-6f-coop-ind-pen").game
    assert (game.field.shape, game.n_agents, game.max_num_food, game.sight) == ((9, 7), 5, 6, 2)
    assert (game.force_coop, game.penalty, game.max_food_level.tolist()) == (True, 0.1, [1] * 6)


def test_sizes_and_that_the_observations_joined_are_the_state():
    player = Player(lbf.make("8x8-2p-3f")).reset()
    spec = player.spec
    assert (spec.n_agents, spec.n_actions, spec.obs_dim, spec.state_dim, spec.episode_limit) == (2, 6, 15, 30, 50)
    assert player.row.state.tolist() == player.row.obs.ravel().tolist()
    assert spec.episode_metrics == ("food_collected",)


def test_it_plays_as_the_package_does():
    raw = gymnasium.make("Foraging-8x8-2p-3f-v3", disable_env_checker=True).unwrapped
    player = Player(lbf.make()).reset(3)
    raw.reset(seed=3)
    for t in range(1, 51):
        actions = player.choose()
        observations, rewards, done, _, _ = raw.step(actions)
        outcome = player.step(*actions)
        assert np.array_equal(player.row.obs, np.stack(observations))
        assert outcome.reward == pytest.approx(sum(rewards))
        assert player.row.agent_reward.tolist() == pytest.approx(rewards)
        assert done == (t == 50)


@pytest.mark.parametrize(
    ("task", "kwargs"),
    [
        ("8x8-2p-3f", {}),
        ("2s-8x8-2p-2f-coop", {}),
        ("1s-6x9-4p-5f-pen", {}),
        ("2s-7x5-3p-3f", {"observe_agent_levels": False}),
    ],
)
def test_what_the_game_computes_in_another_way_is_the_packages(task, kwargs):
    """Observations and legal actions of whole episodes; loading is preferred, so that food disappears."""
    from lbforaging.foraging import ForagingEnv

    ours = lbf.make(task, kwargs).game
    theirs = copy.deepcopy(ours)
    theirs.__class__ = ForagingEnv
    rng, eaten = np.random.default_rng(1), 0
    for seed in range(6):
        for game in (ours, theirs):
            for player in game.players:
                player.position = None
        shown, done = (ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0]), False
        while True:
            for mine, other in zip(*shown, strict=True):
                np.testing.assert_array_equal(mine, other)
                assert mine.dtype == other.dtype
            if done:
                break
            legal = [ours._valid_actions[player] for player in ours.players]
            assert legal == [theirs._valid_actions[player] for player in theirs.players]
            actions = [rng.choice([*of_player, of_player[-1], of_player[-1]]).value for of_player in legal]
            before = ours.field.sum()
            (*shown_ours, done, _, _), (*shown_theirs, also_done, _, _) = ours.step(actions), theirs.step(actions)
            assert done == also_done
            assert shown_ours[1] == shown_theirs[1]
            shown = shown_ours[0], shown_theirs[0]
            eaten += int(ours.field.sum() < before)
    assert eaten > 0 or "coop" in task


def test_grids_of_agents_food_and_free_cells():
    player = Player(lbf.make("2s-6x6-2p-1f-coop", {"grid_observation": True})).reset()
    assert player.spec.obs_dims == (75, 75)  # three layers of what is within two fields
    assert [picture.shape for picture in player.spec.pictures] == [(3, 5, 5)]
    game = player.env.game
    game.field[:] = 0
    game.field[1, 1] = 2
    for agent, place, level in zip(game.players, [(0, 0), (1, 2)], [1, 2], strict=True):
        agent.position, agent.level = place, level
    game._gen_valid_moves()
    player.step(0, 0)
    agents, food, free = player.row.obs[0].reshape(3, 5, 5)
    assert agents.nonzero()[0].tolist() == [2, 3]
    assert (agents[2, 2], agents[3, 4], food[3, 3], food.sum()) == (1, 2, 2, 2)
    assert free.sum() == 9 - 3  # of the cells on the field
    assert player.episode()[0] <= 50
    with pytest.raises(ConfigurationError, match="grid observations need a sight of at least 1"):
        lbf.make("0s-6x6-2p-1f", {"grid_observation": True})


def test_the_mask_is_what_the_rules_allow_and_masked_play_is_never_illegal():
    from lbforaging.foraging.environment import Action

    player = Player(lbf.make("2s-6x6-3p-3f"))
    game, closed = player.env.game, 0
    for seed in range(10):
        player.reset(seed)
        over = False
        while not over:
            truth = [[game._is_valid_action(p, a) for a in Action] for p in game.players]
            assert player.row.avail_actions.tolist() == truth
            assert player.row.avail_actions[:, 0].all()
            closed += int((~player.row.avail_actions).sum())
            actions = player.choose()
            assert all(truth[i][a] for i, a in enumerate(actions))
            outcome = player.step(*actions)
            over = outcome.terminated or outcome.truncated
    assert closed > 100  # the mask did forbid something


def collect(player):
    """Everyone stands beside the food and loads it."""
    game = player.env.game
    game.field[:] = 0
    game.field[4, 4] = 1
    game._food_spawned = 1.0
    for agent, place in zip(game.players, [(3, 4), (5, 4)], strict=True):
        agent.position = place
    game._gen_valid_moves()
    return player.step(5, 5)


def test_the_last_food_ends_the_task():
    outcome = collect(Player(lbf.make()).reset())
    assert (outcome.terminated, outcome.truncated) == (True, False)
    assert outcome.reward == pytest.approx(1.0)
    assert outcome.metrics == (1.0,)


def test_the_limit_is_a_truncation_though_the_package_says_terminated():
    player = Player(lbf.make()).reset(1)
    for t in range(1, 51):
        outcome = player.step(0, 0)
        assert (outcome.terminated, outcome.truncated) == (False, t == 50)
    assert outcome.metrics == (0.0,)
    assert player.row.agent_mask.all()
    assert player.row.obs.any()  # the true last observation


def test_the_last_food_on_the_last_step_ends_the_task():
    player = Player(lbf.make()).reset(1)
    for _ in range(49):
        player.step(0, 0)
    outcome = collect(player)
    assert (outcome.terminated, outcome.truncated) == (True, False)


def test_timeout_is_terminal_is_a_setting():
    player = Player(lbf.make(kwargs={"max_episode_steps": 7}), timeout_is_terminal=True)
    assert player.spec.episode_limit == 7
    steps, outcome, _ = player.episode()
    assert steps == 7
    assert (outcome.terminated, outcome.truncated) == (True, False)


def _collect_one_level_of_four(**settings):
    player = Player(lbf.make(), **settings).reset()
    game = player.env.game
    game.field[:] = 0
    game.field[4, 4], game.field[1, 1] = 1, 3
    game._food_spawned = 4.0
    for agent, place in zip(game.players, [(3, 4), (5, 4)], strict=True):
        agent.position = place
    game._gen_valid_moves()
    outcome = player.step(5, 5)
    assert outcome.reward == pytest.approx(0.25)
    return player, outcome


def test_the_share_of_food_counts_levels():
    player, outcome = _collect_one_level_of_four()
    while not outcome.truncated:
        outcome = player.step(0, 0)
    assert outcome.metrics == (0.25,)


def test_the_share_of_food_of_an_episode_that_env_episode_limit_ends():
    player, _ = _collect_one_level_of_four(episode_limit=2)
    outcome = player.step(0, 0)
    assert (outcome.truncated, outcome.metrics) == (True, (0.25,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "8x8-2p"}, r"unknown LBF task '8x8-2p'; write it as 8x8-2p-3f"),
        ({"task": "8x8-0p-3f"}, "LBF task '8x8-0p-3f' has nobody to play it"),
        ({"task": "2x8-2p-3f"}, "LBF task '2x8-2p-3f' has no room for food, which never lies at the border"),
        ({"kwargs": {"field_size": 6}}, r"field_size must be two numbers, \[rows, columns\], not 6"),
        ({"kwargs": {"max_episode_step": 5}}, r"no setting 'max_episode_step'\. Did you mean 'max_episode_steps'\?"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        lbf.make(**settings)


def test_a_list_for_the_field_size():
    assert lbf.make(kwargs={"field_size": [6, 9]}).game.field.shape == (6, 9)


def test_not_in_the_tuple_style():
    from qmix_lightning.envs.gymnasium_tuple import TupleEnv

    with pytest.raises(EnvironmentContractError, match=r"CartPoleEnv is not in the Tuple style.*not Box and Discrete"):
        TupleEnv(gymnasium.make("CartPole-v1"))
