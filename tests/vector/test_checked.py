"""Natively batched environments: each answer is looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from qmix_lightning.environment import PrefetchesResets, TabularGame, VectorEnv
from qmix_lightning.envs.two_step import TwoStep
from qmix_lightning.errors import ConfigurationError, EnvironmentFault
from qmix_lightning.vector.checked import CheckedVectorEnv
from qmix_lightning.worker import fault_tolerance
from qmix_lightning.worker.fault_tolerance import FaultLimit

ON = torch.ones(3, dtype=torch.bool)
SEEDS = torch.arange(3)
ACTIONS = torch.zeros(3, 2, dtype=torch.int64)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(fault_tolerance, "_BACK_OFF_S", (0.0, 0.0))


class Spoiled:
    """``TwoStep`` whose answers go through ``spoil_step`` and ``spoil_reset``."""

    def __init__(self, spoil_step: Any = None, spoil_reset: Any = None) -> None:
        self.game = TwoStep(num_envs=3)
        self.spoil_step, self.spoil_reset = spoil_step, spoil_reset

    def __getattr__(self, name: str) -> Any:
        return getattr(self.game, name)

    def reset(self, mask: Any, seeds: Any) -> Any:
        shown = self.game.reset(mask, seeds)
        return self.spoil_reset(shown) if self.spoil_reset else shown

    def step(self, actions: Any, active: Any) -> Any:
        outcome = self.game.step(actions, active)
        return self.spoil_step(outcome, actions) if self.spoil_step else outcome


def checked(*spoil: Any, max_faults: int = 10) -> CheckedVectorEnv:
    env: Any = Spoiled(*spoil)
    return CheckedVectorEnv(env, "fake", FaultLimit(max_faults))


def put(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[1] = value
    return tensor


def observed(outcome: Any, **fields: Any) -> Any:
    return replace(outcome, next=replace(outcome.next, **fields))


def test_it_can_do_what_the_environment_can():
    env = CheckedVectorEnv(TwoStep(num_envs=3), "two_step", FaultLimit())
    assert isinstance(env, VectorEnv)
    assert isinstance(env, TabularGame)
    assert not isinstance(env, PrefetchesResets)
    assert env.histories() == TwoStep(num_envs=3).histories()
    with pytest.raises(AttributeError):
        env.no_such_attribute  # noqa: B018


BROKEN = {
    "no transition": lambda o, a: None,
    "a list": lambda o, a: replace(o, reward=[0.0, 0.0, 0.0]),
    "a wrong shape": lambda o, a: replace(o, reward=torch.zeros(3, 1)),
    "float64": lambda o, a: observed(o, obs=o.next.obs.double()),
    "masks that are no masks": lambda o, a: observed(o, avail_actions=o.next.avail_actions.float()),
    "flags that are numbers": lambda o, a: replace(o, terminated=torch.zeros(3)),
    "both ends": lambda o, a: replace(o, terminated=ON.clone(), truncated=ON.clone()),
    "a share of another shape": lambda o, a: replace(o, agent_reward=torch.zeros(3, 5)),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_contract_ends_the_run_at_once(case):
    env = checked(BROKEN[case])
    env.reset(ON, SEEDS)
    with pytest.raises(
        EnvironmentFault, match=r"^environment 'fake': step: .*tests/vector/test_checked.py:.*envs check"
    ):
        env.step(ACTIONS, ON)
    assert sum(env.faults.values()) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda o, v: observed(o, obs=put(o.next.obs, v)),
        lambda o, v: observed(o, state=put(o.next.state, v)),
        lambda o, v: replace(o, reward=put(o.reward, v)),
    ],
)
def test_what_is_not_finite_costs_the_episode_of_its_row(spoil, value):
    env = checked(lambda o, a: spoil(o, value))
    env.reset(ON, SEEDS)
    outcome = env.step(ACTIONS, ON)
    assert outcome.failed is not None
    assert outcome.failed.tolist() == [False, True, False]
    assert outcome.reward.isfinite().all()
    assert not (outcome.terminated | outcome.truncated)[1]
    assert env.faults["invalid"] == 1


def test_rows_that_are_not_stepped_may_hold_anything():
    env = checked(lambda o, a: replace(o, reward=put(o.reward, float("nan"))))
    env.reset(ON, SEEDS)
    assert env.step(ACTIONS, torch.tensor([True, False, True])).failed is None
    assert sum(env.faults.values()) == 0


def test_an_ended_game_may_leave_nothing_legal_until_its_own_reset():
    """An evaluation resets one environment while another has ended and rests."""
    over = False

    def nothing_legal(shown: Any) -> Any:
        return replace(shown, avail_actions=put(shown.avail_actions, False)) if over else shown

    env = checked(None, nothing_legal)
    env.reset(ON, SEEDS)
    over = True
    env.reset(torch.tensor([True, False, True]), SEEDS)
    with pytest.raises(EnvironmentFault, match="reset: an agent that is alive has no legal action"):
        env.reset(torch.tensor([False, True, False]), SEEDS)


def test_large_numbers_are_numbers():
    env = checked(lambda o, a: observed(o, obs=torch.full_like(o.next.obs, 3e38)))
    env.reset(ON, SEEDS)
    env.step(ACTIONS, ON)
    assert sum(env.faults.values()) == 0


def test_a_first_observation_that_stays_nan_ends_the_run():
    env = checked(None, lambda shown: replace(shown, obs=put(shown.obs, float("nan"))))
    with pytest.raises(
        EnvironmentFault, match=r"'fake' has never started, in 3 attempts.*an observation is not finite"
    ):
        env.reset(ON, SEEDS)


def test_actions_that_the_simulator_writes_over_stay_what_they_were():
    def spoil(outcome: Any, actions: torch.Tensor) -> Any:
        actions.fill_(77)
        return outcome

    env, actions = checked(spoil), ACTIONS.clone()
    env.reset(ON, SEEDS)
    env.step(actions, ON)
    assert torch.equal(actions, ACTIONS)


def test_an_exception_ends_the_run_with_the_users_line():
    def broken(outcome: Any, actions: Any) -> Any:
        raise SystemExit(0)

    env = checked(broken)
    env.reset(ON, SEEDS)
    with pytest.raises(EnvironmentFault, match=r"SystemExit: 0 \(tests/vector/test_checked.py:\d+\); all of its 3"):
        env.step(ACTIONS, ON)


def test_errors_with_a_message_of_their_own_are_left_alone():
    def refuses(outcome: Any, actions: Any) -> Any:
        raise ConfigurationError("the simulator says so")

    env = checked(refuses)
    env.reset(ON, SEEDS)
    with pytest.raises(ConfigurationError, match="says so"):
        env.step(ACTIONS, ON)
