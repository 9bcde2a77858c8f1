"""A game between sides, as its learning team sees it."""

import numpy as np
import pytest
import torch

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.vector.factory import Backend, make_vector_env
from qmix_lightning.vector.sides import one_team_of_sides, opposing_sides
from qmix_lightning.vector.team_env import Opponents, TeamEnv, team_env
from support.fakes import Scripted, VaryingLength
from support.sides import Duel, Sides, batched_duel
from support.vector_play import checksum

ON = torch.ones(1, dtype=torch.bool)
SEED = torch.tensor([5])


class Noted(Opponents):
    """Takes the first legal action, and notes what it was shown."""

    def __init__(self, spec, num_envs):
        self.spec, self.shown = spec, []

    def act(self, shown, draws, active):
        self.shown.append(shown)
        return shown.avail_actions.to(torch.uint8).argmax(-1)


def scripted(script, *, team, agents=("red_0", "red_1", "blue_0"), kind=Scripted, **settings):
    options = {key: settings.pop(key) for key in ("reward_aggregation", "episode_limit") if key in settings}
    given = {"script": script, "agents": agents, **settings}
    return team_env(make_vector_env(kind, given, num_envs=1, name="game", team=team, **options), Noted)


def step(env, actions):
    return env.step(torch.tensor([actions]), ON)


def test_sizes_rewards_and_masks_are_the_teams():
    env = team_env(make_vector_env(Duel, {}, num_envs=1, name="duel", team=["left_*"]), Noted)
    assert isinstance(env, TeamEnv)
    assert (env.spec.agent_names, env.spec.n_actions, env.spec.obs_dims) == (("left_0", "left_1"), 3, (3, 3))
    assert env.spec.state_dim == 6  # the observations of the team alone
    first = env.reset(ON, SEED)
    assert first.obs.shape == (1, 2, 3)
    assert first.state.shape == (1, 6)
    outcome = step(env, [2, 0])
    assert outcome.reward.item() == 2.0  # the other side's loss is not the team's
    assert outcome.agent_reward is not None
    assert outcome.agent_reward.tolist() == [[2.0, 0.0]]
    opponents = env.opponents
    assert isinstance(opponents, Noted)
    assert (opponents.spec.agent_names, opponents.spec.n_actions, opponents.spec.obs_dim) == (("right_0",), 2, 2)
    assert opponents.shown[0].obs.shape == (1, 1, 2)


def test_a_team_in_the_middle_is_given_its_own_slots():
    env = team_env(make_vector_env(Sides, {}, num_envs=2, name="sides", team=["red_1", "blue_1"]), Noted)
    whole = make_vector_env(Sides, {}, num_envs=2, name="sides")
    on, seeds = torch.ones(2, dtype=torch.bool), torch.tensor([3, 4])
    seen, all_of_it = env.reset(on, seeds), whole.reset(on, seeds)
    assert torch.equal(seen.obs, all_of_it.obs[:, [1, 4]])
    assert torch.equal(seen.state, all_of_it.state)  # the environment's own
    mine = seen.avail_actions.to(torch.uint8).argmax(-1)
    theirs = all_of_it.avail_actions.to(torch.uint8).argmax(-1)
    theirs[:, [1, 4]] = mine
    after, all_after = env.step(mine, on), whole.step(theirs, on)
    assert torch.equal(after.next.obs, all_after.next.obs[:, [1, 4]])
    assert all_after.agent_reward is not None
    assert torch.allclose(after.reward, all_after.agent_reward[:, [1, 4]].sum(1))


def test_workers_step_the_same_team():
    """A worker adds up the team's rewards, and ends the episode with the team."""

    def played(backend: str) -> int:
        whole = make_vector_env(Sides, {}, num_envs=2, name="sides", team=["red_*"], backend=Backend(backend))
        env = team_env(whole, Noted)
        try:
            assert env.spec.agent_names == ("red_0", "red_1", "red_2")
            return checksum(env, 30)
        finally:
            env.close()

    assert played("process") == played("sync")


def test_the_mean_is_over_the_team():
    env = scripted(
        [{"rewards": {"red_0": 3.0, "red_1": 1.0, "blue_0": 8.0}}], team=["red_*"], reward_aggregation="mean"
    )
    env.reset(ON, SEED)
    assert step(env, [0, 0]).reward.item() == 2.0


@pytest.mark.parametrize(("word", "terminated"), [("terminations", True), ("truncations", False)])
def test_the_episode_ends_with_the_team_though_others_go_on(word, terminated):
    env = scripted([{}, {word: {"red_0": True, "red_1": True}}, {}], team=["red_*"])
    env.reset(ON, SEED)
    assert not (step(env, [0, 0]).terminated | env.step(torch.zeros(1, 2, dtype=torch.int64), ~ON).truncated).any()
    outcome = step(env, [0, 0])
    assert (outcome.terminated.item(), outcome.truncated.item()) == (terminated, not terminated)
    # One whose time is over is shown as it was, so that its value can be bootstrapped; one that died is not.
    assert outcome.next.agent_mask.tolist() == [[not terminated] * 2]


def test_the_episode_goes_on_while_one_of_the_team_is_left():
    env = scripted([{"terminations": {"red_0": True, "blue_0": True}}, {}], team=["red_*"])
    env.reset(ON, SEED)
    outcome = step(env, [0, 0])
    assert not (outcome.terminated | outcome.truncated).any()
    assert outcome.next.agent_mask.tolist() == [[False, True]]


def test_a_metric_is_the_teams():
    told = {"red_0": {"won": 0}, "red_1": {"won": 0}, "blue_0": {"won": 1}}
    ends = dict.fromkeys(told, True)
    for team, won in ((["blue_0"], 1.0), (["red_*"], 0.0)):
        env = scripted([{"terminations": ends, "infos": told}], team=team, metadata={"episode_metrics": ("won",)})
        env.reset(ON, SEED)
        assert step(env, [0] * env.spec.n_agents).metrics["won"].item() == won


@pytest.mark.parametrize("team", [["green_*"], [], [3], ["red_*", "blau_0"]])
def test_a_team_that_is_none_is_refused(team):
    with pytest.raises(ConfigurationError, match=r"env\.team"):
        make_vector_env(Sides, {}, num_envs=1, name="sides", team=team)


def test_a_team_of_all_is_no_team():
    env = make_vector_env(Sides, {}, num_envs=1, name="sides", team=["*"])
    assert team_env(env, Noted) is env


@pytest.mark.parametrize(
    ("factory", "settings", "sides"),
    [
        (Sides, {}, ("red", "blue")),  # by their names
        (Duel, {}, ("left", "right")),  # by their rewards
        (Duel, {"opposed": False}, ()),
        (batched_duel, {}, ("left", "right")),
        (VaryingLength, {}, ()),
    ],
)
def test_opposing_sides_are_noticed(factory, settings, sides):
    env = make_vector_env(factory, settings, num_envs=2, name="game")
    assert opposing_sides(env) == sides


@pytest.mark.parametrize(("factory", "cured"), [(Duel, True), (batched_duel, False)])
def test_the_line_about_sides_names_no_setting_that_is_refused(factory, cured):
    env = make_vector_env(factory, {}, num_envs=2, name="game")
    assert ("env.team=[left_*]" in one_team_of_sides("game", env.spec, ("left", "right"))) is cured


def test_idle_environments_remember_nothing():
    """What opponents draw is that of the episode and its step, whatever steps beside it."""

    class Drawn(Noted):
        def act(self, shown, draws, active):
            self.shown.append(draws.copy())
            return super().act(shown, draws, active)

    def drawn(pattern):
        env = team_env(make_vector_env(Sides, {}, num_envs=2, name="sides", team=["red_*"]), Drawn)
        shown = env.reset(torch.ones(2, dtype=torch.bool), torch.tensor([3, 4]))
        found = []
        for active in pattern:
            actions = shown.avail_actions.to(torch.uint8).argmax(-1)
            shown = env.step(actions, torch.tensor(active)).next
            found.append(env.opponents.shown[-2])
        return found

    together = drawn([[True, True], [True, True]])
    apart = drawn([[True, False], [True, False], [False, True]])
    np.testing.assert_array_equal(together[0][0], apart[0][0])
    np.testing.assert_array_equal(together[1][0], apart[1][0])
    np.testing.assert_array_equal(together[0][1], apart[2][1])
    assert not np.array_equal(together[0][0], together[1][0])
