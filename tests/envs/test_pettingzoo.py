import numpy as np
import pytest
import torch

from qmix_lightning.environment import check_arguments
from qmix_lightning.envs import mpe, pettingzoo
from qmix_lightning.errors import ConfigurationError, EnvironmentContractError, MissingDependencyError
from qmix_lightning.vector.factory import make_vector_env


def test_simple_spread_equals_the_environment_itself():
    from mpe2 import simple_spread_v3

    env = make_vector_env(mpe.make, {"kwargs": {"max_cycles": 4}}, num_envs=2, name="mpe")
    raw = [simple_spread_v3.parallel_env(max_cycles=4, continuous_actions=False) for _ in range(2)]
    spec = env.spec
    assert (spec.n_agents, spec.n_actions, spec.obs_dim, spec.state_dim, spec.episode_limit) == (3, 5, 18, 54, 4)
    assert spec.group_of_agent == (0, 0, 0)
    assert spec.agent_names == ("agent_0", "agent_1", "agent_2")

    on = torch.tensor([True, True])
    shown = env.reset(on, torch.tensor([7, 8]))
    for e, one in enumerate(raw):
        observations, _ = one.reset(seed=7 + e)
        np.testing.assert_array_equal(shown.obs[e].numpy(), np.stack(list(observations.values())))
    for t in range(4):
        actions = torch.tensor([[1, 2, 3], [4, 0, t]])
        step = env.step(actions, on)
        assert step.agent_reward is not None
        for e, one in enumerate(raw):
            observations, rewards, *_ = one.step(dict(zip(one.possible_agents, actions[e].tolist(), strict=True)))
            np.testing.assert_array_equal(step.next.obs[e].numpy(), np.stack(list(observations.values())))
            np.testing.assert_array_equal(step.next.state[e].numpy(), one.state())
            assert step.reward[e].item() == pytest.approx(sum(rewards.values()), rel=1e-6)
            assert step.agent_reward[e].tolist() == pytest.approx(list(rewards.values()), rel=1e-6)
        assert step.truncated.tolist() == [t == 3] * 2  # max_cycles is a time limit
        assert not step.terminated.any()
        assert step.next.agent_mask.all()
    env.close()


def test_scenarios_are_listed_without_importing_them():
    found = mpe.scenarios()
    assert found["simple_spread"] == "simple_spread_v3"
    assert {"simple", "simple_reference", "simple_tag", "simple_adversary"} <= set(found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scenario": "simple_sprad"}, r"unknown MPE scenario 'simple_sprad'\. Did you mean 'simple_spread'\?"),
        ({"kwargs": {"max_cycle": 3}}, r"'simple_spread' has no setting 'max_cycle'\. Did you mean 'max_cycles'\?"),
        ({"scenario": "simple_tag", "kwargs": {"N": 3}}, "MPE scenario 'simple_tag' has no setting 'N'"),
    ],
)
def test_mpe_refusals(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        make_vector_env(mpe.make, settings, num_envs=1, name="mpe")


def test_continuous_actions_are_refused_with_the_way_out():
    message = r"'mpe': the action space of agent 'agent_0' is Box\(.*pass continuous_actions=False"
    with pytest.raises(EnvironmentContractError, match=message):
        make_vector_env(mpe.make, {"kwargs": {"continuous_actions": True}}, num_envs=1, name="mpe")


def test_by_address():
    for address in ("mpe2.simple_spread_v3:parallel_env", "mpe2.simple_spread_v3"):
        env = pettingzoo.make(address, {"N": 2, "continuous_actions": False})
        assert env.possible_agents == ["agent_0", "agent_1"]
    assert pettingzoo.make("support.fakes:VaryingLength", {"n_agents": 2}).possible_agents == ["unit_0", "unit_1"]
    assert len(pettingzoo.make("support.fakes:VaryingLength").possible_agents) == 3


@pytest.mark.parametrize(
    ("id", "kwargs", "error", "message"),
    [
        ("no_such_package:env", {}, MissingDependencyError, "there is no module 'no_such_package'"),
        (
            "support.fakes:VaringLength",
            {},
            ConfigurationError,
            r"'support\.fakes' has no 'VaringLength'\. Did you mean 'VaryingLength'",
        ),
        ("support.fakes", {}, ConfigurationError, "'support.fakes' has no 'parallel_env'(?!.*ParallelEnv)"),
        (
            "support.fakes:VaryingLength",
            {"agents": 2},
            ConfigurationError,
            r"no setting 'agents'\. Did you mean 'n_agents'",
        ),
        ("support.fakes:Scripted", {}, ConfigurationError, "'support.fakes:Scripted' needs script"),
    ],
)
def test_address_refusals(id, kwargs, error, message):
    with pytest.raises(error, match=message):
        pettingzoo.make(id, kwargs)


def test_a_factory_that_refuses_for_itself_ends_in_one_line():
    settings = {"id": "mpe2.simple_spread_v3", "kwargs": {"N": "three"}}
    with pytest.raises(ConfigurationError, match=r"'pettingzoo' could not be made: TypeError: 'str'"):
        make_vector_env(pettingzoo.make, settings, num_envs=1, name="pettingzoo")


def test_turns_are_refused_where_they_cannot_be_taken_at_once():
    settings = {"id": "pettingzoo.classic.tictactoe_v3:env"}
    with pytest.raises(EnvironmentContractError, match="is an AEC environment, a ParallelEnv is needed"):
        make_vector_env(pettingzoo.make, settings, num_envs=1, name="pettingzoo")


def test_turns_are_taken_at_once_where_pettingzoo_says_that_it_is_sound():
    env = make_vector_env(pettingzoo.make, {"id": "mpe2.simple_spread_v3:env"}, num_envs=1, name="pettingzoo")
    assert (env.spec.n_agents, env.spec.n_actions) == (3, 5)
    env.close()


def test_check_arguments_lets_kwargs_through_but_asks_for_what_is_required():
    def factory(size, **more):
        return size, more

    check_arguments(factory, {"size": 1, "other": 2}, "it")
    with pytest.raises(ConfigurationError, match="it needs size"):
        check_arguments(factory, {"other": 2}, "it")
