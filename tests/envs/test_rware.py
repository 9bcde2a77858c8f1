"""The multi-robot warehouse: only time ends an episode, and the package calls that terminated."""

import gymnasium
import numpy as np
import pytest

from qmix_lightning.envs import rware
from qmix_lightning.errors import ConfigurationError
from support.playing import Player


@pytest.mark.parametrize("task", ["tiny-2ag", "tiny-4ag-hard", "small-3ag-easy", "medium-2ag", "large-2ag"])
def test_a_task_is_what_the_package_registers_under_its_name(task):
    import rware as package  # noqa: F401

    raw = gymnasium.make(f"rware-{task}-v2", disable_env_checker=True).unwrapped
    ours = rware.make(task)
    for name in ("grid_size", "n_agents", "request_queue_size", "sensor_range", "reward_type", "max_steps", "goals"):
        assert getattr(ours.game, name) == getattr(raw, name), name
    observations, _ = raw.reset(seed=5)
    assert np.array_equal(np.stack(observations), np.stack(list(ours.reset(seed=5)[0].values())))


def test_it_plays_as_the_package_does():
    raw = gymnasium.make("rware-tiny-2ag-v2", disable_env_checker=True).unwrapped
    player = Player(rware.make()).reset(3)
    assert (player.spec.n_agents, player.spec.obs_dim, player.spec.n_actions) == (2, 71, 5)
    assert player.spec.episode_limit == 500
    raw.reset(seed=3)
    for t in range(1, 501):
        actions = player.choose()
        observations, rewards, done, _, _ = raw.step(actions)
        outcome = player.step(*actions)
        assert np.array_equal(player.row.obs, np.stack(observations))
        assert outcome.reward == pytest.approx(sum(rewards))
        assert done == (t == 500)
        assert (outcome.terminated, outcome.truncated) == (False, t == 500)
    assert player.row.agent_mask.all()


def test_inactivity_is_a_truncation_too():
    player = Player(rware.make(kwargs={"max_inactivity_steps": 5})).reset()
    for t in range(1, 6):
        outcome = player.step(0, 0)
        assert (outcome.terminated, outcome.truncated) == (False, t == 5)


def test_without_a_limit_one_may_be_set():
    player = Player(rware.make(kwargs={"max_steps": None}), episode_limit=9)
    assert player.episode()[0] == 9
    assert Player(rware.make(kwargs={"max_steps": None})).spec.episode_limit is None


@pytest.mark.parametrize(("paid", "to_each"), [("individual", [1.0, 0.0]), ("global", [1.0, 1.0])])
def test_a_delivery_pays_the_team_one(paid, to_each):
    player = Player(rware.make(kwargs={"reward_type": paid})).reset()
    game = player.env.game
    robot, shelf = game.agents[0], game.request_queue[0]
    x, y = game.goals[0]
    robot.carrying_shelf = shelf
    robot.x = shelf.x = x
    robot.y = shelf.y = y
    game.agents[1].x, game.agents[1].y = 0, 0
    game._recalc_grid()
    outcome = player.step(0, 0)
    assert outcome.reward == 1.0
    assert player.row.agent_reward.tolist() == to_each


def test_messages_are_numbered_with_the_actions():
    """With two message bits each agent has 5 x 2 x 2 actions; the last bit changes fastest."""
    player = Player(rware.make(kwargs={"msg_bits": 2})).reset()
    assert player.spec.n_actions == 20
    player.step(0, 2 * 4 + 3)  # no-op and 00; left and 11
    assert player.env.game.agents[0].message.tolist() == [0, 0]
    assert player.env.game.agents[1].message.tolist() == [1, 1]
    assert player.env.game.agents[1].req_action.name == "LEFT"


@pytest.mark.parametrize("kind", ["dict", "image", "image_dict"])
def test_other_observations_are_flattened(kind):
    player = Player(rware.make(kwargs={"observation_type": kind, "max_steps": 20}))
    assert player.episode()[0] == 20


def test_enumerations_by_name():
    layers = ["shelves", "goals"]
    kwargs = {"reward_type": "two_stage", "observation_type": "image", "image_observation_layers": layers}
    game = rware.make(kwargs=kwargs).game
    assert game.reward_type.name == "TWO_STAGE"
    assert [layer.name for layer in game.image_observation_layers] == ["SHELVES", "GOALS"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "huge-2ag"}, "unknown RWARE task 'huge-2ag'; write it as tiny-2ag"),
        ({"task": "tiny-2ag-harder"}, "unknown RWARE task"),
        ({"task": "tiny-1ag-hard"}, "'tiny-1ag-hard' requests no shelf at all"),
        ({"kwargs": {"sensor_rang": 2}}, r"no setting 'sensor_rang'\. Did you mean 'sensor_range'\?"),
        ({"kwargs": {"reward_type": "globl"}}, r"reward_type: there is no 'globl'\. Did you mean 'global'\?"),
        (
            {"kwargs": {"image_observation_layers": 3}},
            "image_observation_layers must be a list, as in",
        ),
        ({"kwargs": {"image_observation_layers": ["agents", "agent_load"]}}, "'agent_load' at x and y exchanged"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        rware.make(**settings)
