import gc
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatten

from qmix_lightning.environment import VectorEnv
from qmix_lightning.envs.two_step import TwoStep
from qmix_lightning.errors import ConfigurationError, EnvironmentContractError, MissingDependencyError
from qmix_lightning.vector.factory import make_vector_env
from qmix_lightning.vector.sync import SyncVectorEnv
from qmix_lightning.worker.buffers import Buffers
from qmix_lightning.worker.parallel_adapter import ParallelAdapter
from support.fakes import Scripted, VaryingLength, WithState

BOTH = {"a_0": True, "a_1": True}


class Played:
    """One environment behind an adapter, with the row it writes."""

    def __init__(self, env, **settings):
        self.adapter = ParallelAdapter(env, name="fake", **settings)
        self.spec = self.adapter.spec
        self.env = env
        self.row = Buffers.zeros(self.spec, 1).row(self.spec, 0)

    def reset(self, seed: Any = 0):
        self.adapter.reset(seed, self.row)
        return self

    def step(self, *actions):
        return self.adapter.step(actions or [0] * self.spec.n_agents, self.row)


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
        ({"agents": []}, True, [False, False]),
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
        make_bad(action_spaces={A0: spaces.MultiDiscrete([2, 2])}),
        r"agent 'a_0' is MultiDiscrete\(\[2 2\]\), but Discrete is needed; number the combinations",
    ),
    "no agents": (make_bad(agents=()), "Scripted has no possible_agents; a fixed list of agents is needed"),
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
        "the observation of agent 'a_0' has 1 values, its observation_space says 2",
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
    assert str(refusal.value).startswith("environment 'fake'")
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
    with pytest.raises(EnvironmentContractError, match=r"state\(\) has 3 values, expected 4"):
        Played(env).reset()
    env = Scripted([], state_space=spaces.Box(0, 1, (4,)))
    with pytest.raises(EnvironmentContractError, match=r"there is a state_space but no state\(\)"):
        Played(env).reset()


def test_settings_are_checked():
    with pytest.raises(ConfigurationError, match="reward_aggregation must be sum or mean, not 'max'"):
        Played(Scripted([]), reward_aggregation="max")
    with pytest.raises(ConfigurationError, match="episode_limit must be at least 1, not 0"):
        Played(Scripted([]), episode_limit=0)


# Many together -------------------------------------------------------------------------------------------------


def varying(num_envs, **settings):
    return make_vector_env(VaryingLength, settings, num_envs=num_envs, name="varying")


def snapshot(transition):
    shown = transition.next
    tensors = (shown.obs, shown.state, shown.avail_actions, shown.agent_mask, transition.reward,
               transition.terminated, transition.truncated, transition.agent_reward)  # fmt: skip
    return [t.clone() for t in (*tensors, *transition.metrics.values())]


def legal(shown, generator):
    flat = shown.avail_actions.flatten(0, 1).float()
    return torch.multinomial(flat, 1, generator=generator).reshape(shown.agent_mask.shape)


def episode(env, slot, seed, action_seed):
    """Play one episode in ``slot`` alone: what every step gave there."""
    only = torch.arange(env.num_envs) == slot
    generator = torch.Generator().manual_seed(action_seed)
    shown = env.reset(only, torch.full((env.num_envs,), seed))
    steps = []
    while True:
        actions = torch.zeros(env.num_envs, env.spec.n_agents, dtype=torch.int64)
        one = torch.multinomial(shown.avail_actions[slot].float(), 1, generator=generator)
        actions[slot] = one[:, 0]
        step = env.step(actions, only)
        steps.append([t[slot] for t in snapshot(step)])
        shown = step.next
        if step.terminated[slot] or step.truncated[slot]:
            return steps


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) for s, t in zip(one, other, strict=True) for a, b in zip(s, t, strict=True)
    )


def test_vector_env_protocol():
    env = varying(3)
    assert isinstance(env, VectorEnv)
    assert env.num_envs == 3
    assert env.spec.episode_metrics == ("won",)
    assert not env.spec.natively_batched
    dtypes = [t.dtype for t in snapshot(env.step(torch.zeros(3, 3, dtype=torch.int64), torch.zeros(3).bool()))]
    f, b = torch.float32, torch.bool
    assert dtypes == [f, f, b, b, f, b, b, f, f]


def test_episodes_depend_on_seed_and_actions_only():
    first = episode(varying(1), 0, seed=5, action_seed=1)
    assert same(first, episode(varying(4), 2, seed=5, action_seed=1))
    assert not same(first, episode(varying(1), 0, seed=6, action_seed=1))
    assert not same(first, episode(varying(1), 0, seed=5, action_seed=2))
    used = varying(1)
    episode(used, 0, seed=77, action_seed=3)
    assert same(first, episode(used, 0, seed=5, action_seed=1))


def test_varying_episodes_vary():
    env = varying(1)
    episodes = [episode(env, 0, seed=s, action_seed=s) for s in range(60)]
    assert {len(e) for e in episodes} == set(range(3, 13))
    assert {bool(e[-1][6]) for e in episodes} == {True, False}  # truncated and terminated
    assert {float(e[-1][8]) for e in episodes} == {0.0, 1.0}  # won and lost
    assert any(not step[3].all() for e in episodes for step in e[:-1])  # an agent died early
    for e in episodes:
        assert all(not (s[5] or s[6]) for s in e[:-1])
        assert bool(e[-1][5]) != bool(e[-1][6])


def test_inactive_and_unmasked_slots_are_left_alone():
    env = varying(3)
    generator = torch.Generator().manual_seed(0)
    on = torch.ones(3, dtype=torch.bool)
    shown = env.reset(on, torch.tensor([1, 2, 3]))
    before = shown.obs.clone()
    waiting = torch.tensor([True, False, True])
    step = env.step(legal(shown, generator), waiting)
    assert torch.equal(step.next.obs[1], before[1])
    assert not torch.equal(step.next.obs[0], before[0])
    middle = step.next.obs.clone()
    shown = env.reset(torch.tensor([True, False, False]), torch.tensor([1, 9, 9]))
    assert torch.equal(shown.obs[0], before[0])
    assert torch.equal(shown.obs[1:], middle[1:])
    # Slot 1 waited, and now plays as one that never did.
    alone = varying(1)
    other = alone.reset(torch.tensor([True]), torch.tensor([2]))
    actions = legal(other, generator)
    expected = snapshot(alone.step(actions, torch.tensor([True])))
    got = snapshot(env.step(actions.expand(3, -1), torch.tensor([False, True, False])))
    assert all(torch.equal(a[0], b[1]) for a, b in zip(expected, got, strict=True))


def test_an_ended_slot_that_waits_does_not_end_again():
    vector = SyncVectorEnv([ParallelAdapter(Scripted([{"terminations": BOTH, "rewards": {"a_0": 1.0}}]))])
    one = torch.tensor([True])
    vector.reset(one, torch.tensor([0]))
    actions = torch.zeros(1, 2, dtype=torch.int64)
    assert vector.step(actions, one).terminated.tolist() == [True]
    step = vector.step(actions, ~one)
    assert (step.reward.tolist(), step.terminated.tolist(), step.truncated.tolist()) == ([0.0], [False], [False])


def test_illegal_action_reaches_the_environment_as_it_is():
    env = varying(1)
    shown = env.reset(torch.tensor([True]), torch.tensor([0]))
    illegal = shown.avail_actions.int().argmin(dim=-1)
    # The fake refuses it: had it been replaced on the way, nothing would have failed.
    assert env.step(illegal, torch.tensor([True])).failed.tolist() == [True]
    assert env.faults["raised"] == 1


def test_close_closes_all_once_even_where_one_fails():
    class Stuck(Scripted):
        def close(self):
            super().close()
            raise OSError("stuck")

    envs = [Scripted([]), Stuck([]), Scripted([])]
    vector = SyncVectorEnv([ParallelAdapter(env) for env in envs])
    with pytest.raises(OSError, match="stuck"):
        vector.close()
    vector.close()
    assert [env.closed for env in envs] == [1, 1, 1]


def test_results_survive_the_environment():
    env = varying(1)
    shown = env.reset(torch.tensor([True]), torch.tensor([0]))
    expected = shown.obs.clone()
    del env
    gc.collect()
    assert torch.equal(shown.obs, expected)


# The factory ---------------------------------------------------------------------------------------------------


def test_natively_batched_factory_is_called_once():
    env = make_vector_env(TwoStep, {}, num_envs=5, name="two_step")
    assert isinstance(env, TwoStep)
    assert env.num_envs == 5
    with pytest.raises(
        ConfigurationError, match="'two_step' is batched by nature and does not take reward_aggregation, episode_limit"
    ):
        make_vector_env(TwoStep, {}, num_envs=1, name="two_step", reward_aggregation="mean", episode_limit=3)
    with pytest.raises(ConfigurationError, match="does not take timeout_is_terminal"):
        make_vector_env(TwoStep, {}, num_envs=1, name="two_step", timeout_is_terminal=True)
    with pytest.raises(ConfigurationError, match="environment 'two_step' has no setting 'steps'"):
        make_vector_env(TwoStep, {"steps": 3}, num_envs=1, name="two_step")


def test_adapter_settings_reach_every_environment():
    env = make_vector_env(
        VaryingLength, {"n_agents": 2}, num_envs=2, name="v", reward_aggregation="mean", timeout_is_terminal=True,
        episode_limit=2,
    )  # fmt: skip
    on = torch.tensor([True, True])
    shown = env.reset(on, torch.tensor([0, 1]))
    generator = torch.Generator().manual_seed(0)
    for expected in (False, True):
        step = env.step(legal(shown, generator), on)
        assert step.terminated.tolist() == [expected] * 2
        assert step.agent_reward is not None
        assert torch.allclose(step.reward, step.agent_reward.sum(1) / 2)
        shown = step.next
    assert not step.truncated.any()
    assert env.spec.episode_limit == 2


def test_factory_failures_are_one_line_and_leave_nothing_open():
    made = []

    def third_fails(fail="boom\nand more"):
        if len(made) == 2:
            raise RuntimeError(fail)
        made.append(Scripted([]))
        return made[-1]

    message = "environment 'x' could not be made: RuntimeError: boom and more"
    with pytest.raises(ConfigurationError, match=message) as refusal:
        make_vector_env(third_fails, {}, num_envs=3, name="x")
    assert "\n" not in str(refusal.value)
    assert [env.closed for env in made] == [1, 1]

    def needs_package():
        import not_there_at_all  # type: ignore[import-not-found]

        return not_there_at_all

    with pytest.raises(MissingDependencyError, match="'x' needs the package 'not_there_at_all': pip install"):
        make_vector_env(needs_package, {}, num_envs=1, name="x")
    with pytest.raises(ConfigurationError, match=r"has no setting 'n_agent'\. Did you mean 'n_agents'"):
        varying(1, n_agent=2)
    with pytest.raises(ConfigurationError, match="num_envs must be at least 1, not 0"):
        varying(0)

    def lies(num_envs):
        return object()

    with pytest.raises(EnvironmentContractError, match=r"must return a VectorEnv .* not object"):
        make_vector_env(lies, {}, num_envs=1, name="x")

    refused = Scripted([], action_spaces={"a_0": spaces.Box(0, 1)})
    with pytest.raises(EnvironmentContractError):
        make_vector_env(lambda: refused, {}, num_envs=1, name="x")
    assert refused.closed == 1


def test_environments_that_differ_are_refused():
    sizes = iter([2, 3])
    with pytest.raises(EnvironmentContractError, match="must be alike: n_agents is 2 in number 0, 3 in 1"):
        make_vector_env(lambda: VaryingLength(n_agents=next(sizes)), {}, num_envs=2, name="v")


@pytest.mark.parametrize("where", ["observations", "rewards"])
def test_a_value_that_is_not_finite_costs_its_own_environment_only(where):
    """Values are looked at for all environments together; the blame falls on one, and only until its reset."""
    made = []

    def make():
        second: dict[str, Any] = {"rewards": {"a_0": 2.0}}
        if len(made) == 1:
            second[where] = {"a_1": np.array([0.0, np.nan]) if where == "observations" else np.inf}
        made.append(Scripted([{"rewards": {"a_0": 1.0}}, second, *[{"rewards": {"a_0": 3.0}}] * 3]))
        return made[-1]

    env = make_vector_env(make, {}, num_envs=3, name="fake")
    everyone, seeds = torch.ones(3, dtype=torch.bool), torch.arange(3)
    actions = torch.zeros(3, 2, dtype=torch.int64)
    env.reset(everyone, seeds)
    assert not env.step(actions, everyone).failed.any()
    outcome = env.step(actions, everyone)
    assert outcome.failed.tolist() == [False, True, False]
    assert outcome.reward.tolist() == [2.0, 0.0, 2.0]
    assert env.faults["invalid"] == 1
    # What it wrote is still there; the others are not blamed for it.
    outcome = env.step(actions, torch.tensor([True, False, True]))
    assert not outcome.failed.any()
    assert outcome.reward.tolist() == [3.0, 0.0, 3.0]
    observation = env.reset(torch.tensor([False, True, False]), seeds)
    assert torch.isfinite(observation.obs).all()
    assert made[1].closed == 1
    assert len(made) == 4
