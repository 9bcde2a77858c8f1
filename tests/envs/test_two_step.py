import pytest
import torch

from qmix_lightning.environment import TabularGame, VectorEnv, is_natively_batched
from qmix_lightning.envs.two_step import TwoStep
from qmix_lightning.errors import ConfigurationError

ALL = torch.tensor([True, True, True, True])
SEEDS = torch.arange(4)


def joint(*rows):
    return torch.tensor(rows)


def test_contract():
    env = TwoStep(num_envs=4)
    assert isinstance(env, VectorEnv)
    assert isinstance(env, TabularGame)
    assert is_natively_batched(TwoStep)
    spec = env.spec
    assert (spec.n_agents, spec.n_actions, spec.obs_dim, spec.state_dim) == (2, 2, 3, 3)
    assert (spec.episode_limit, spec.natively_batched, spec.group_of_agent) == (2, True, (0, 0))
    with pytest.raises(TypeError):
        TwoStep(4)  # type: ignore[misc]
    with pytest.raises(ConfigurationError, match="num_envs must be at least 1, not 0"):
        TwoStep(num_envs=0)


def test_every_path_pays_what_the_paper_says():
    for first in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        env = TwoStep(num_envs=4)
        shown = env.reset(ALL, SEEDS)
        assert shown.obs.dtype == torch.float32
        assert shown.obs.tolist() == [[[1, 0, 0]] * 2] * 4
        assert shown.state.tolist() == [[1, 0, 0]] * 4
        assert shown.avail_actions.all()
        assert shown.agent_mask.all()

        step = env.step(joint(*[first] * 4), ALL)
        assert step.reward.tolist() == [0.0] * 4
        assert not step.terminated.any()
        expected = [0, 1, 0] if first[0] == 0 else [0, 0, 1]
        assert step.next.state.tolist() == [expected] * 4
        assert step.next.obs.tolist() == [[expected] * 2] * 4

        step = env.step(joint((0, 0), (0, 1), (1, 0), (1, 1)), ALL)
        assert step.reward.tolist() == ([7.0] * 4 if first[0] == 0 else [0.0, 1.0, 1.0, 8.0])
        assert step.reward.dtype == torch.float32
        assert step.terminated.all()
        assert not step.truncated.any()
        assert not step.next.obs.any()
        assert not step.next.state.any()
        assert not step.next.agent_mask.any()
        assert step.next.avail_actions.tolist() == [[[True, False]] * 2] * 4


def test_histories_lead_where_they_say():
    histories = TwoStep(num_envs=1).histories()
    assert histories == {"1": [[]], "2A": [[[0, 0]], [[0, 1]]], "2B": [[[1, 0]], [[1, 1]]]}
    for place, label in enumerate(histories):
        for history in histories[label]:
            env = TwoStep(num_envs=1)
            shown = env.reset(torch.tensor([True]), torch.tensor([0]))
            for actions in history:
                shown = env.step(torch.tensor([actions]), torch.tensor([True])).next
            assert shown.state[0].argmax() == place


def test_exact_values():
    q = TwoStep(num_envs=1).exact_q_values(0.99)
    assert q["2A"] == [[7.0, 7.0], [7.0, 7.0]]
    assert q["2B"] == [[0.0, 1.0], [1.0, 8.0]]
    assert q["1"][0] == pytest.approx([6.93, 6.93])
    assert q["1"][1] == pytest.approx([7.92, 7.92])
