import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from qmix_lightning.environment import check_arguments
from qmix_lightning.envs import mpe, pettingzoo
from qmix_lightning.errors import ConfigurationError, EnvironmentContractError, MissingDependencyError
from qmix_lightning.vector.factory import make_vector_env

CONF = Path(__file__).parents[2] / "conf" / "env"


def play(env, steps, seed=0):
    """Random legal play in every slot, resetting those that end; everything seen, copied."""
    e = env.num_envs
    generator = torch.Generator().manual_seed(seed)
    on = torch.ones(e, dtype=torch.bool)
    seen = [env.reset(on, torch.arange(e) + 100).obs.clone()]
    shown_mask = env.reset(on, torch.arange(e) + 100).avail_actions.clone()
    for t in range(steps):
        weights = shown_mask.flatten(0, 1).float()
        actions = torch.multinomial(weights, 1, generator=generator).reshape(e, -1)
        step = env.step(actions, on)
        seen += [step.next.obs.clone(), step.next.state.clone(), step.reward.clone()]
        shown_mask = step.next.avail_actions.clone()
        ended = step.terminated | step.truncated
        if ended.any():
            shown_mask = env.reset(ended, torch.arange(e) + 1000 + t).avail_actions.clone()
    return seen


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


def test_same_seed_same_play():
    def one():
        return make_vector_env(mpe.make, {"kwargs": {"max_cycles": 5}}, num_envs=3, name="mpe")

    first, second, other = play(one(), 12), play(one(), 12), play(one(), 12, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("scenario", sorted(mpe.scenarios()))
def test_every_scenario_takes_the_yaml_as_it_is(scenario):
    settings = yaml.safe_load((CONF / "mpe.yaml").read_text())
    assert settings.pop("name") == "mpe"
    adapter_settings = {
        k: settings.pop(k) for k in ("reward_aggregation", "timeout_is_terminal", "episode_limit")
    }  # fmt: skip
    settings["scenario"] = scenario
    env = make_vector_env(mpe.make, settings, num_envs=1, name="mpe", **adapter_settings)
    assert env.spec.episode_limit == 25
    assert all(torch.isfinite(seen).all() for seen in play(env, 26))
    env.close()


def test_ragged_scenario_is_padded():
    env = make_vector_env(mpe.make, {"scenario": "simple_speaker_listener"}, num_envs=1, name="mpe")
    assert env.spec.obs_dims == (3, 11)
    assert env.spec.action_counts == (3, 5)
    assert env.spec.group_of_agent == (0, 1)
    shown = env.reset(torch.tensor([True]), torch.tensor([3]))
    assert shown.obs.shape == (1, 2, 11)
    assert not shown.obs[0, 0, 3:].any()
    assert shown.avail_actions[0].tolist() == [[True, True, True, False, False], [True] * 5]


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


def test_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'qmix-lightning\[mpe\]'"):
        mpe.make()


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
        ("support.fakes", {}, ConfigurationError, "'support.fakes' has no 'parallel_env'"),
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
    settings = {"id": "mpe2.simple_spread_v3", "kwargs": {"agents": 3}}
    with pytest.raises(ConfigurationError, match=r"'pettingzoo' could not be made: TypeError: .*'agents'"):
        make_vector_env(pettingzoo.make, settings, num_envs=1, name="pettingzoo")


def test_aec_environment_is_told_apart():
    settings = {"id": "mpe2.simple_spread_v3:env"}
    with pytest.raises(EnvironmentContractError, match="is an AEC environment, a ParallelEnv is needed"):
        make_vector_env(pettingzoo.make, settings, num_envs=1, name="pettingzoo")


def test_importing_the_plugins_is_light():
    code = (
        "import sys, qmix_lightning.envs.mpe, qmix_lightning.envs.pettingzoo;"
        "print([m for m in ('torch', 'numpy', 'gymnasium', 'pettingzoo', 'mpe2', 'pygame') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_check_arguments_lets_kwargs_through_but_asks_for_what_is_required():
    def factory(size, **more):
        return size, more

    check_arguments(factory, {"size": 1, "other": 2}, "it")
    with pytest.raises(ConfigurationError, match="it needs size"):
        check_arguments(factory, {"other": 2}, "it")
