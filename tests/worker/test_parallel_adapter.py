from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatten

from qmix_lightning.errors import ConfigurationError, EnvironmentContractError, InvalidEpisodeError
from support.fakes import Scripted, WithState
from support.playing import Player

BOTH = {"a_0": True, "a_1": True}


class Played(Player):
    """Takes the first action where none is given."""

    def choose(self) -> list[int]:
        return [0] * self.spec.n_agents


# Observation spaces --------------------------------------------------------------------------------------------

SPACES = {
    "image": spaces.Box(0, 255, (4, 3, 2), np.uint8),
    "scalar": spaces.Box(-1, 1, (), np.float64),
    "float64": spaces.Box(-1, 1, (5,), np.float64),
    "discrete": spaces.Discrete(4, start=3),
    "multi_discrete": spaces.MultiDiscrete([2, 3, 4]),
    "multi_binary": spaces.MultiBinary(3),
    "dict": spaces.Dict({"b": spaces.Discrete(3), "a": spaces.Box(0, 1, (2, 2), np.float32)}),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Dict({"x": spaces.MultiDiscrete([2, 2])})]),
}


@pytest.mark.parametrize("kind", SPACES)
def test_observations_are_flattened_as_gymnasium_does(kind):
    space = SPACES[kind]
    space.seed(1)
    value, other = space.sample(), space.sample()
    env = Scripted(
        [{"observations": {"a_0": other}}],
        agents=("a_0",),
        observation_spaces={"a_0": space},
        first={"observations": {"a_0": value}},
    )
    played = Played(env).reset()
    assert played.row.obs.dtype == np.float32
    np.testing.assert_array_equal(played.row.obs[0], np.asarray(flatten(space, value), np.float32).ravel())
    played.step()
    np.testing.assert_array_equal(played.row.obs[0], np.asarray(flatten(space, other), np.float32).ravel())


@pytest.mark.parametrize("wrong", [0.5, -1.0, 256.0])
def test_what_is_said_to_be_bytes_is_bytes(wrong):
    """A replay holds a byte for each, and would make zeros of a picture that has been divided by 255."""
    script = [
        {"observations": {"a_0": np.array([7.0, 255.0])}},
        {"observations": {"a_0": np.array([7.0, wrong])}},
    ]
    space = spaces.Box(0, 255, (2,), np.uint8)
    env = Scripted(script, agents=("a_0",), observation_spaces={"a_0": space})
    played = Played(env).reset()
    played.step()
    assert played.row.obs[0].tolist() == [7.0, 255.0]
    with pytest.raises(EnvironmentContractError, match=rf"'a_0' holds {wrong:g}, its observation_space says bytes"):
        played.step()


def test_mask_beside_the_observation():
    space = spaces.Dict({"observation": spaces.Box(0, 9, (2,), np.float32), "action_mask": spaces.MultiBinary(3)})
    given = {"a_0": {"observation": np.array([4, 5], np.float32), "action_mask": np.array([0, 1, 1], np.int8)}}
    env = Scripted([], agents=("a_0",), observation_spaces={"a_0": space}, first={"observations": given})
    played = Played(env).reset()
    assert played.spec.obs_dim == 2
    assert played.row.obs.tolist() == [[4, 5]]
    assert played.row.avail_actions.tolist() == [[False, True, True]]


def test_mask_among_other_keys_is_not_observed():
    space = spaces.Dict({"b": spaces.Discrete(2), "action_mask": spaces.MultiBinary(3), "a": spaces.Discrete(3)})
    given = {"a_0": {"a": 2, "b": 0, "action_mask": np.array([1, 0, 0], np.int8)}}
    env = Scripted([], agents=("a_0",), observation_spaces={"a_0": space}, first={"observations": given})
    played = Played(env).reset()
    rest = spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Discrete(3)})
    assert played.row.obs[0].tolist() == np.asarray(flatten(rest, {"a": 2, "b": 0})).tolist()
    assert played.row.avail_actions.tolist() == [[True, False, False]]


def test_mask_in_infos_and_everything_legal_without_one():
    first = {"infos": {"a_1": {"action_mask": [False, True, False]}}}
    played = Played(Scripted([{"infos": {"a_0": {"action_mask": np.array([1, 1, 0])}}}], first=first)).reset()
    assert played.row.avail_actions.tolist() == [[True, True, True], [False, True, False]]
    played.step(0, 1)
    assert played.row.avail_actions.tolist() == [[True, True, False], [True, True, True]]


def test_ragged_agents_are_padded():
    env = Scripted(
        [{"observations": {"big_0": np.array([7, 8, 9], np.float32), "small_0": np.array([5], np.float32)}}],
        agents=("big_0", "small_0"),
        observation_spaces={"big_0": spaces.Box(0, 9, (3,)), "small_0": spaces.Box(0, 9, (1,))},
        action_spaces={"big_0": spaces.Discrete(2), "small_0": spaces.Discrete(4)},
        first={"observations": {"big_0": np.array([1, 2, 3]), "small_0": np.array([4])}},
    )
    played = Played(env).reset()
    assert (played.spec.obs_dims, played.spec.action_counts) == ((3, 1), (2, 4))
    assert played.row.obs.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert played.row.state.tolist() == [1, 2, 3, 4]  # joined without the padding
    assert played.row.avail_actions.tolist() == [[True, True, False, False], [True] * 4]
    played.step()
    assert played.row.obs.tolist() == [[7, 8, 9], [5, 0, 0]]
    assert played.row.state.tolist() == [7, 8, 9, 5]


def test_actions_start_where_their_space_starts():
    env = Scripted([{}], action_spaces={"a_1": spaces.Discrete(3, start=5)})
    Played(env).reset().step(2, 1)
    assert env.received == [{"a_0": 2, "a_1": 6}]


def test_groups_are_agents_of_one_kind():
    agents = ("medic_0", "tank_0", "medic_1", "tank_1", "tank_2", "scout")
    env = Scripted([], agents=agents, action_spaces={"tank_2": spaces.Discrete(7)})
    assert Played(env).spec.group_of_agent == (0, 1, 0, 1, 2, 3)
    assert Played(Scripted([], agents=(0, 1))).spec.agent_names == ("0", "1")
    assert Played(Scripted([], agents=(0, 1))).spec.group_of_agent == (0, 0)


# State ---------------------------------------------------------------------------------------------------------


def test_state_is_joined_from_observations_where_there_is_none():
    played = Played(Scripted([{"terminations": {"a_0": True}}])).reset()
    assert played.spec.state_dim == 4
    played.step()
    assert played.row.state.tolist() == [0, 0, 1, 1]  # a_0 is dead


def test_state_of_the_environment_is_used():
    played = Played(WithState([{}])).reset()
    assert played.spec.state_dim == 3
    played.step()
    assert played.row.state.tolist() == [1, 10, 100]


def test_state_space_saves_the_probing_reset():
    env = WithState([{}], state_space=spaces.Box(-np.inf, np.inf, (3,)))
    played = Played(env)
    assert env.seeds == []
    assert played.spec.state_dim == 3
    assert Played(WithState([])).env.seeds == [0]


# Agents that leave, and come back ------------------------------------------------------------------------------


def test_agent_that_leaves_is_masked_and_gets_no_action_until_it_is_back():
    script = [
        {"terminations": {"a_0": True}, "rewards": {"a_0": 5.0, "a_1": 1.0}},
        {"rewards": {"a_1": 2.0}},
        {"agents": ["a_0", "a_1"]},
        {"rewards": {"a_0": 4.0, "a_1": 8.0}},
    ]
    played = Played(Scripted(script)).reset()
    row = played.row
    assert played.step(1, 2)[:3] == (6.0, False, False)
    assert row.agent_mask.tolist() == [False, True]
    assert row.obs.tolist() == [[0, 0], [1, 1]]
    assert row.avail_actions.tolist() == [[True, False, False], [True, True, True]]
    assert row.agent_reward.tolist() == [5, 1]

    assert played.step(1, 2)[:3] == (2.0, False, False)
    assert row.agent_reward.tolist() == [0, 2]

    played.step(1, 2)
    assert played.env.received[1:] == [{"a_1": 2}] * 2
    assert row.agent_mask.tolist() == [True, True]
    assert row.obs.tolist() == [[3, 3], [3, 3]]
    assert row.avail_actions.all()

    assert played.step(2, 0).reward == 12.0
    assert played.env.received[3] == {"a_0": 2, "a_1": 0}


def test_agent_that_is_absent_at_first():
    played = Played(Scripted([{"agents": ["a_0", "a_1"]}], first={"agents": ["a_1"]})).reset()
    assert played.row.agent_mask.tolist() == [False, True]
    played.step()
    assert played.env.received == [{"a_1": 0}]
    assert played.row.agent_mask.tolist() == [True, True]


def test_reset_revives():
    played = Played(Scripted([{"terminations": {"a_0": True}, "rewards": {"a_0": 1.0}}])).reset()
    played.step()
    played.reset(seed=torch.tensor(9))  # whatever counts as a number
    assert played.row.agent_mask.all()
    assert played.row.avail_actions.all()
    assert not played.row.agent_reward.any()
    assert played.env.seeds[-1] == 9
    assert type(played.env.seeds[-1]) is int


# Rewards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("aggregation", "expected"), [("sum", [3.0, 4.0]), ("mean", [1.5, 2.0])])
def test_team_reward(aggregation, expected):
    script = [{"rewards": {"a_0": 1.0, "a_1": 2.0}, "terminations": {"a_0": True}}, {"rewards": {"a_1": 4.0}}]
    played = Played(Scripted(script), reward_aggregation=aggregation).reset()
    assert [played.step().reward, played.step().reward] == expected


# How episodes end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "terminated", "mask"),
    [
        ({"terminations": BOTH}, True, [False, False]),
        ({"truncations": BOTH}, False, [True, True]),
        ({"terminations": {"a_0": True}, "truncations": {"a_1": True}}, False, [False, True]),
        ({"terminations": BOTH, "truncations": BOTH}, True, [False, False]),
        ({"terminations": BOTH, "truncations": {"a_1": True}}, True, [False, False]),
        ({"agents": [], "terminations": {"a_0": True}}, True, [False, False]),
        ({"agents": [], "truncations": {"a_0": True}}, False, [True, False]),
    ],
)
@pytest.mark.parametrize("timeout_is_terminal", [False, True])
def test_ends(end, terminated, mask, timeout_is_terminal):
    played = Played(Scripted([{}, end]), timeout_is_terminal=timeout_is_terminal).reset()
    assert played.step()[:3] == (0.0, False, False)
    outcome = played.step()
    assert (outcome.terminated, outcome.truncated) == (
        (True, False) if timeout_is_terminal else (terminated, not terminated)
    )
    row = played.row
    assert row.agent_mask.tolist() == mask
    assert row.obs.tolist() == [[2, 2] if alive else [0, 0] for alive in mask]  # the true successor, step 2
    assert row.avail_actions.tolist() == [[True] * 3 if alive else [True, False, False] for alive in mask]


def test_the_last_to_die_ends_the_episode_though_another_was_truncated_before():
    played = Played(Scripted([{"truncations": {"a_0": True}}, {"terminations": {"a_1": True}}])).reset()
    assert played.step()[1:3] == (False, False)
    assert played.row.agent_mask.tolist() == [False, True]
    assert played.step()[1:3] == (True, False)


def test_episode_goes_on_while_an_agent_comes_in():
    played = Played(Scripted([{"terminations": {"a_0": True}}, {"terminations": {"a_1": True}, "agents": ["a_0"]}]))
    played.reset()
    played.step()
    assert played.step()[1:3] == (False, False)
    assert played.row.agent_mask.tolist() == [True, False]


def test_mask_at_the_end_is_used_and_an_empty_one_means_none():
    masks = {"a_0": {"action_mask": [0, 1, 0]}, "a_1": {"action_mask": [0, 0, 0]}}
    played = Played(Scripted([{"truncations": BOTH, "infos": masks}])).reset()
    played.step()
    assert played.row.avail_actions.tolist() == [[False, True, False], [True, True, True]]


def test_episode_limit_cuts():
    played = Played(Scripted([{}, {}, {}]), episode_limit=2)
    assert played.spec.episode_limit == 2
    for _ in range(2):
        played.reset()
        assert played.step()[1:3] == (False, False)
        assert played.step()[1:3] == (False, True)
        assert played.row.agent_mask.all()
        assert played.row.obs.tolist() == [[2, 2], [2, 2]]
    one_timed_out = Played(Scripted([{"truncations": {"a_0": True}}, {}]), episode_limit=1).reset()
    assert one_timed_out.step()[1:3] == (False, True)
    assert one_timed_out.row.agent_mask.tolist() == [True, True]  # both go on somewhere, both are bootstrapped
    terminal = Played(Scripted([{}, {}]), episode_limit=1, timeout_is_terminal=True).reset()
    assert terminal.step()[1:3] == (True, False)
    ended = Played(Scripted([{"terminations": BOTH}]), episode_limit=1).reset()
    assert ended.step()[1:3] == (True, False)


@pytest.mark.parametrize("attribute", ["max_cycles", "max_steps", "episode_limit"])
def test_own_limit_is_found(attribute):
    env = Scripted([{}, {}, {}])
    setattr(env, attribute, 2)
    played = Played(env).reset()
    assert played.spec.episode_limit == 2
    played.step()
    with pytest.raises(EnvironmentContractError, match=r"goes on after 2 joint steps.*says 2; set env.episode_limit"):
        played.step()
    assert Played(env, episode_limit=1).spec.episode_limit == 1
    setattr(env, attribute, True)
    assert Played(env).spec.episode_limit is None


def test_metrics_are_read_at_the_end_from_any_agent():
    end = {"terminations": BOTH, "infos": {"a_1": {"won": True, "score": 2.5}}}
    env = Scripted([{}, end], metadata={"episode_metrics": ("won", "score")})
    played = Played(env).reset()
    assert played.spec.episode_metrics == ("won", "score")
    assert played.step().metrics == ()
    assert played.step().metrics == (1.0, 2.5)
    cut = Played(Scripted([{}], metadata={"episode_metrics": ("won",)}), episode_limit=1).reset()
    assert cut.step().metrics == (0.0,)


# Refusals ------------------------------------------------------------------------------------------------------


class NoParallelEnv:
    possible_agents = ("a",)


def make_bad(**changes):
    return lambda: Played(Scripted([{}], **changes)).reset()


def first_and(*, step=None, first=None, **changes):
    def run():
        Played(Scripted([step or {}], first=first, **changes)).reset().step()

    return run


A0 = "a_0"
REFUSED = {
    "continuous": (
        make_bad(action_spaces={A0: spaces.Box(-1, 1, (2,))}),
        r"the action space of agent 'a_0' is Box\(-1.*but Discrete is needed; pass continuous_actions=False",
    ),
    "multi-discrete": (
        make_bad(action_spaces={A0: spaces.MultiBinary(2)}),
        r"agent 'a_0' is MultiBinary\(2\), but Discrete is needed; number the combinations",
    ),
    "no agents": (make_bad(agents=()), "Scripted has no possible_agents; a fixed list of agents is needed"),
    "two of one name": (make_bad(agents=("a_0", "a_1", "a_0")), "possible_agents holds two agents called 'a_0'"),
    "a number and its text": (make_bad(agents=(0, "0")), "possible_agents holds two agents called '0'"),
    "not parallel": (lambda: Played(NoParallelEnv()), "NoParallelEnv is not a PettingZoo ParallelEnv, it has no reset"),
    "sequence": (
        make_bad(observation_spaces={A0: spaces.Sequence(spaces.Discrete(2))}),
        r"the observation of agent 'a_0' has the space Sequence\(.*which has no fixed flat size; use Box",
    ),
    "mask alone": (
        make_bad(observation_spaces={A0: spaces.Dict({"action_mask": spaces.MultiBinary(3)})}),
        "the observation of agent 'a_0' holds an action_mask and nothing else",
    ),
    "too few values": (
        make_bad(first={"observations": {A0: np.zeros(1)}}),
        r"the observation of agent 'a_0' has shape \[1\], its space says \[2\]",
    ),
    "outside its space": (
        make_bad(observation_spaces={A0: spaces.Dict({"x": spaces.Discrete(2)})}, first={"observations": {A0: {}}}),
        "the observation of agent 'a_0' does not fit its space Dict",
    ),
    "no observation": (
        first_and(step={"observations": {A0: None}}),
        "agent 'a_0' is alive but has no observation",
    ),
    "no last observation": (
        first_and(step={"observations": {A0: None}, "truncations": BOTH}),
        "agent 'a_0' is alive but has no observation",
    ),
    "mask size": (
        make_bad(first={"infos": {A0: {"action_mask": [1, 1]}}}),
        "the action_mask of agent 'a_0' has 2 entries for 3 actions",
    ),
    "mask empty": (
        make_bad(first={"infos": {A0: {"action_mask": [0, 0, 0]}}}),
        "the action_mask of agent 'a_0' leaves no legal action",
    ),
    "nobody": (make_bad(first={"agents": []}), "env.agents is empty after reset"),
    "metric": (
        first_and(step={"terminations": BOTH}, metadata={"episode_metrics": ("won",)}),
        "metadata names the episode metric 'won', but no agent's info has it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_contract_violations_are_one_line(case):
    violate, message = REFUSED[case]
    with pytest.raises(EnvironmentContractError, match=message) as refusal:
        violate()
    assert str(refusal.value).startswith("environment 'played'")
    assert "\n" not in str(refusal.value)


def test_old_interfaces_are_named():
    class OldReset(Scripted):
        def reset(self, seed=None, options=None):
            return super().reset(seed)[0]

    class OldStep(Scripted):
        def step(self, actions):
            return super().step(actions)[:4]

    class NoAgents(Scripted):
        def reset(self, seed=None, options=None):
            result = super().reset(seed)
            del self.agents
            return result

        def state(self):
            return np.zeros(1)

    with pytest.raises(EnvironmentContractError, match=r"reset must return \(observations, infos\)"):
        Played(OldReset([])).reset()
    with pytest.raises(EnvironmentContractError, match=r"step must return .* not 4 values"):
        Played(OldStep([{}])).reset().step()
    with pytest.raises(EnvironmentContractError, match=r"reset must set env\.agents"):
        Played(NoAgents([])).reset()


def test_state_that_does_not_fit():
    env = WithState([], state_space=spaces.Box(0, 1, (4,)))
    with pytest.raises(EnvironmentContractError, match=r"state\(\) has shape \[3\], its space says \[4\]"):
        Played(env).reset()
    env = Scripted([], state_space=spaces.Box(0, 1, (4,)))
    with pytest.raises(EnvironmentContractError, match=r"there is a state_space but no state\(\)"):
        Played(env).reset()


def test_settings_are_checked():
    with pytest.raises(ConfigurationError, match="reward_aggregation must be sum or mean, not 'max'"):
        Played(Scripted([]), reward_aggregation="max")
    with pytest.raises(ConfigurationError, match="episode_limit must be at least 1, not 0"):
        Played(Scripted([]), episode_limit=0)


# What is returned is looked at -------------------------------------------------------------------------------------


class Returns(Scripted):
    """Gives in a step what ``change`` makes of the five values."""

    def __init__(self, change: Any, **settings: Any) -> None:
        super().__init__([{}, {}], **settings)
        self.change = change

    def step(self, actions: dict[Any, Any]) -> Any:
        return self.change(self, list(super().step(actions)))


def gives(part: int, value: Any) -> Any:
    """Give ``value`` for agent ``a_1`` in a part of the result."""

    def change(env: Any, result: list[Any]) -> Any:
        result[part] = {**result[part], "a_1": value}
        return tuple(result)

    return change


def whole(part: int, value: Any) -> Any:
    def change(env: Any, result: list[Any]) -> Any:
        result[part] = value
        return tuple(result)

    return change


def lists(agents: Any) -> Any:
    def change(env: Any, result: list[Any]) -> Any:
        env.agents = agents
        return tuple(result)

    return change


def mask(value: Any) -> Any:
    return gives(4, {"action_mask": value})


UNREADABLE = {
    "rewards in a list": (whole(1, [0.0, 0.0]), "step must return rewards as a dictionary by agent, not list"),
    "no reward": (whole(1, {"a_0": 0.0}), "agent 'a_1' acted, but is not in rewards"),
    "no termination": (whole(2, {"a_0": False}), "agent 'a_1' acted, but is not in terminations"),
    "no truncations": (whole(3, None), "step must return truncations as a dictionary by agent, not NoneType"),
    "a reward in words": (gives(1, "1.0"), "the reward of agent 'a_1' is '1.0', a number is needed"),
    "a complex reward": (gives(1, 1j), r"the reward of agent 'a_1' is 1j, a number is needed"),
    "two rewards": (gives(1, np.zeros(2)), "the reward of agent 'a_1' is .*, a number is needed"),
    "an end in words": (gives(2, "False"), "the termination of agent 'a_1' is 'False', true or false is needed"),
    "half an end": (gives(3, 0.5), "the truncation of agent 'a_1' is 0.5, true or false is needed"),
    "a mask in words": (mask(np.array(["0", "1", "1"])), "the action_mask of agent 'a_1' holds <U1, real numbers are"),
    "a mask of NaN": (mask(np.array([np.nan, 1, 1])), "the action_mask of agent 'a_1' holds nan, only 0 and 1"),
    "a mask of weights": (mask([0.5, 0.5, 0]), "the action_mask of agent 'a_1' holds 0.5, only 0 and 1"),
    "an agent twice": (lists(["a_0", "a_0"]), "env.agents holds an agent twice"),
    "a stranger": (lists(["a_0", "a_1", "b"]), "env.agents holds 'b', which is not in possible_agents"),
    "nobody, without a word": (lists([]), r"env.agents is \[\] after step 1, so no agent is left, but none was term"),
    "another shape": (gives(0, np.zeros((2, 1), np.float32)), r"has shape \[2, 1\], its space says \[2\]"),
    "a complex observation": (gives(0, np.zeros(2) + 1j), "the observation of agent 'a_1' holds complex128, real"),
    "an observation in words": (gives(0, np.array(["1", "2"])), "the observation of agent 'a_1' holds <U1, real"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_refused_by_name(case):
    change, message = UNREADABLE[case]
    played = Played(Returns(change)).reset()
    with pytest.raises(EnvironmentContractError, match=message) as refusal:
        played.step()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", [1e39, -1e39, float("nan"), float("inf"), 10**400, np.float64(1e300)])
def test_a_reward_that_no_float32_holds_makes_the_episode_invalid(value):
    played = Played(Returns(gives(1, value))).reset()
    with pytest.raises(InvalidEpisodeError, match=r"the reward of agent 'a_1' is .*, which no float32 holds"):
        played.step()


def test_rewards_that_no_float32_holds_together_make_the_episode_invalid():
    played = Played(Returns(whole(1, {"a_0": 3e38, "a_1": 3e38}))).reset()
    with pytest.raises(InvalidEpisodeError, match="the team's reward is 6e"):
        played.step()


@pytest.mark.parametrize("value", [2, True, np.int8(2), np.float32(2), np.array(2.0), np.array([2]), torch.tensor(2.0)])
def test_any_real_number_is_a_reward(value):
    assert Played(Returns(gives(1, value))).reset().step().reward == (1.0 if value is True else 2.0)


@pytest.mark.parametrize("value", [True, np.bool_(True), 1, 1.0, np.array(True), np.array([1]), torch.tensor(True)])
def test_any_truth_value_is_an_end(value):
    def ends(env: Any, result: list[Any]) -> Any:
        env.agents = []
        return (*result[:2], {"a_0": value, "a_1": value}, *result[3:])

    assert Played(Returns(ends)).reset().step()[1:3] == (True, False)


@pytest.mark.parametrize(("value", "error"), [(np.nan, InvalidEpisodeError), (7, EnvironmentContractError)])
def test_episode_metrics_are_looked_at(value, error):
    end = {"terminations": BOTH, "infos": {"a_0": {"won": value}}}
    played = Played(Scripted([end], metadata={"episode_metrics": ("won",)})).reset()
    with pytest.raises(error, match="the episode metric 'won' is"):
        played.step()


def test_arrays_that_are_changed_later_have_no_influence():
    shown = {agent: np.ones(2, np.float32) for agent in ("a_0", "a_1")}
    legal = np.ones(3, bool)
    infos = {agent: {"action_mask": legal} for agent in shown}
    played = Played(Returns(lambda env, result: (shown, *result[1:4], infos))).reset()
    played.step()
    for values in shown.values():
        values[:] = 99
    legal[:] = False
    assert played.row.obs.tolist() == [[1, 1], [1, 1]]
    assert played.row.state.tolist() == [1, 1, 1, 1]
    assert played.row.avail_actions.all()


def test_who_is_listed_long_after_its_death_stays_dead():
    """Some environments never take anybody off the list."""
    everyone = ["a_0", "a_1"]
    script = [{"terminations": {"a_1": True}, "agents": everyone}, {"terminations": {"a_1": True}, "agents": everyone}]
    played = Played(Scripted(script)).reset()
    for _ in script:
        assert played.step()[1:3] == (False, False)
        assert played.row.agent_mask.tolist() == [True, False]
