"""Environments made side by side by a factory, and what is refused."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from qmix_lightning.envs.two_step import TwoStep
from qmix_lightning.errors import ConfigurationError, EnvironmentContractError, MissingDependencyError
from qmix_lightning.vector.checked import CheckedVectorEnv
from qmix_lightning.vector.env_section import parse_env_section
from qmix_lightning.vector.factory import make_vector_env
from support.collecting import legal, varying
from support.fakes import Scripted, VaryingLength


def test_natively_batched_factory_is_called_once():
    env = make_vector_env(TwoStep, {}, num_envs=5, name="two_step")
    assert isinstance(env, CheckedVectorEnv)
    assert isinstance(env.unchecked, TwoStep)
    assert env.num_envs == 5
    with pytest.raises(
        ConfigurationError, match="'two_step' is batched by nature and does not take reward_aggregation, episode_limit"
    ):
        make_vector_env(TwoStep, {}, num_envs=1, name="two_step", reward_aggregation="mean", episode_limit=3)
    with pytest.raises(ConfigurationError, match="does not take timeout_is_terminal"):
        make_vector_env(TwoStep, {}, num_envs=1, name="two_step", timeout_is_terminal=True)
    with pytest.raises(ConfigurationError, match="environment 'two_step' has no setting 'steps'"):
        make_vector_env(TwoStep, {"steps": 3}, num_envs=1, name="two_step")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"episode_limit": 3}, "decides that by itself: it takes no env.episode_limit"),
        ({"team": ["agent_1"]}, "shows one team: it takes no env.team"),
        ({"opponents": "random"}, "shows one team: it takes no env.opponents"),
        ({"kwargs": {"num_envs": 3}}, r"unknown key 'env\.kwargs\.num_envs' .* rollout\.num_envs is how many"),
        ({"kwargs": {}, "sise": 3}, r"unknown key 'env\.sise' .*; known: kwargs; .* are typed env\.kwargs\.sise"),
    ],
)
def test_what_a_natively_batched_environment_does_not_take(given, told):
    with pytest.raises(ConfigurationError, match=told):
        parse_env_section({"name": "two_step", **given})
    parse_env_section({"name": "two_step", "episode_limit": None, "team": None})  # said to be left as it is


def test_a_natively_batched_environment_says_which_setting_is_its_limit():
    with pytest.raises(ConfigurationError, match=r"takes no env\.episode_limit; its limit is env\.max_steps$"):
        parse_env_section({"name": "vmas", "episode_limit": 3})


def test_a_natively_batched_environment_has_no_address():
    section = {"name": "pettingzoo", "id": "qmix_lightning.envs.two_step:TwoStep"}
    env = parse_env_section(section)
    with pytest.raises(ConfigurationError, match="needs num_envs; environments that step together have a name"):
        make_vector_env(env.factory, env.settings, num_envs=2, name=env.name)


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

    class Unreadable(Scripted):
        def state(self):
            sys.exit(0)

        def close(self):
            super().close()
            raise OSError("nothing to close")

    unreadable = Unreadable([])
    with pytest.raises(
        ConfigurationError, match=r"'x' could not be made: SystemExit: 0 \(tests/vector/test_factory.py"
    ):
        make_vector_env(lambda: unreadable, {}, num_envs=1, name="x")
    assert unreadable.closed == 1

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
