"""Many environments in one process: each plays as if it were alone."""

import gc

import numpy as np
import pytest
import torch
from gymnasium import spaces

from qmix_lightning.environment import VectorEnv
from qmix_lightning.errors import EnvironmentContractError
from qmix_lightning.vector.sync import SyncVectorEnv
from qmix_lightning.worker.parallel_adapter import ParallelAdapter
from support.collecting import varying
from support.fakes import Scripted
from support.vector_play import snapshot

BOTH = {"a_0": True, "a_1": True}


def test_vector_env_protocol():
    env = varying(3)
    assert isinstance(env, VectorEnv)
    assert env.num_envs == 3
    assert env.spec.episode_metrics == ("won",)
    assert not env.spec.natively_batched
    dtypes = [t.dtype for t in snapshot(env.step(torch.zeros(3, 3, dtype=torch.int64), torch.zeros(3).bool()))]
    f, b = torch.float32, torch.bool
    assert dtypes == [f, f, b, b, f, f, b, b, f]


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


@pytest.mark.parametrize("first_has_it", [True, False])
def test_environments_that_differ_in_what_few_have_are_told_so(first_has_it):
    shapes = ((8, 9, 1), (72,)) if first_has_it else ((72,), (8, 9, 1))
    adapters = [
        ParallelAdapter(Scripted([], agents=("a_0",), observation_spaces={"a_0": spaces.Box(0, 1, shape, np.float32)}))
        for shape in shapes
    ]
    with pytest.raises(EnvironmentContractError, match="must be alike: pictures is "):
        SyncVectorEnv(adapters)


def test_results_survive_the_environment():
    env = varying(1)
    shown = env.reset(torch.tensor([True]), torch.tensor([0]))
    expected = shown.obs.clone()
    del env
    gc.collect()
    assert torch.equal(shown.obs, expected)
