import itertools

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qmix_lightning.environment import TabularGame, VectorEnv
from qmix_lightning.envs.matrix import Matrix
from qmix_lightning.envs.two_step import TwoStep
from qmix_lightning.errors import ConfigurationError
from support.playing import CONF


def paid(env, actions):
    e = env.num_envs
    env.reset(torch.ones(e, dtype=torch.bool), torch.zeros(e, dtype=torch.int64))
    return env.step(torch.tensor(actions), torch.ones(e, dtype=torch.bool))


@pytest.mark.parametrize(
    ("preset", "table"),
    [
        ("climbing", [[11, -30, 0], [-30, 7, 6], [0, 0, 5]]),
        ("penalty", [[-100, 0, 10], [0, 2, 0], [10, 0, -100]]),
        ("qtran", [[8, -12, -12], [-12, 0, 0], [-12, 0, 0]]),
    ],
)
def test_presets(preset, table):
    env = Matrix(num_envs=9, preset=preset)
    assert isinstance(env, VectorEnv)
    assert isinstance(env, TabularGame)
    step = paid(env, list(itertools.product(range(3), range(3))))
    assert step.reward.reshape(3, 3).tolist() == table
    assert step.terminated.all()
    assert not step.truncated.any()
    assert env.spec.episode_limit == 1
    assert env.histories() == {"1": [[]]}
    assert env.exact_q_values(0.5) == {"1": table}


@pytest.mark.parametrize(
    ("file", "best"), [("climbing", 11.0), ("penalty", 10.0), ("qtran_game", 8.0), ("two_step", 8.0)]
)
def test_yaml_files_make_the_games_that_they_name(file, best):
    settings = yaml.safe_load((CONF / f"{file}.yaml").read_text())
    env = {"matrix": Matrix, "two_step": TwoStep}[settings.pop("name")](num_envs=1, **settings)
    assert torch.tensor(env.exact_q_values(1.0)["1"]).max() == best


def test_penalty_k():
    assert paid(Matrix(num_envs=1, preset="penalty", penalty_k=-25), [[2, 2]]).reward.item() == -25


def test_agents_with_different_action_counts_are_padded():
    env = Matrix(num_envs=2, payoff=[[[1, 2, 3]], [[4, 5, 6]]])  # 2, 1 and 3 actions
    spec = env.spec
    assert (spec.n_agents, spec.n_actions, spec.action_counts) == (3, 3, (2, 1, 3))
    assert spec.group_of_agent == (0, 1, 2)
    shown = env.reset(torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.int64))
    assert shown.obs.tolist() == [[[1.0]] * 3] * 2
    assert shown.state.tolist() == [[1.0]] * 2
    legal = [[True, True, False], [True, False, False], [True, True, True]]
    assert shown.avail_actions.tolist() == [legal] * 2
    assert paid(env, [[1, 0, 2], [0, 0, 1]]).reward.tolist() == [6.0, 2.0]


def test_one_agent():
    env = Matrix(num_envs=3, payoff=[1.5, -2, 0])
    assert env.spec.n_agents == 1
    assert paid(env, [[0], [1], [2]]).reward.tolist() == [1.5, -2.0, 0.0]


def test_an_action_outside_the_table_is_an_error():
    with pytest.raises(IndexError):
        paid(Matrix(num_envs=1, payoff=[[1, 2, 3], [4, 5, 6]]), [[2, 0]])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_table_pays_itself(data):
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    count = torch.Size(shape).numel()
    values = data.draw(st.lists(st.integers(-100, 100), min_size=count, max_size=count))
    table = torch.tensor(values, dtype=torch.float32).reshape(shape)
    env = Matrix(num_envs=count, payoff=table.tolist())
    step = paid(env, list(itertools.product(*map(range, shape))))
    assert step.reward.tolist() == values
    assert env.exact_q_values(0.9) == {"1": table.tolist()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"needs either preset or payoff, neither given: env.preset=climbing\|"),
        ({"preset": "climbing", "payoff": [[1]]}, "needs either preset or payoff, both given"),
        ({"preset": "clmbing"}, r"unknown matrix game preset 'clmbing'\. Did you mean 'climbing'\?"),
        ({"payoff": [[1, 2], [3]]}, r"payoff is ragged: payoff\[0\] has shape \[2\], payoff\[1\] has \[1\]"),
        ({"payoff": [[1, 2], 3]}, "payoff is ragged"),
        ({"payoff": []}, "payoff is empty"),
        ({"payoff": [[], []]}, r"payoff\[0\] is empty"),
        ({"payoff": [["a", 1]]}, r"payoff\[0\]\[0\] must be a finite 32-bit number, not 'a'"),
        ({"payoff": [[float("nan")]]}, "must be a finite 32-bit number"),
        ({"payoff": [[1e39]]}, r"must be a finite 32-bit number, not 1e\+39"),
        ({"payoff": [[True]]}, "must be a finite 32-bit number, not True"),
        ({"payoff": 3.0}, "must be a nested list of numbers, not 3.0"),
        ({"payoff": [[1.0]], "penalty_k": -5.0}, "penalty_k belongs to preset 'penalty'"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ConfigurationError, match=message) as refusal:
        Matrix(num_envs=1, **arguments)
    assert "\n" not in str(refusal.value)
