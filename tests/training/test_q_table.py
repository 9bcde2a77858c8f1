"""The learned tables of a small game: every joint action, through a mixer that is given what it asks for."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
import torch

from qmix_lightning.agents.policy import Policy
from qmix_lightning.envs.two_step import TwoStep
from qmix_lightning.nn.running_moments import RunningMoments
from qmix_lightning.training.callbacks.q_table import QTableReport, learned_tables
from support.small_mixers import FORMULAS, Seen, small_mixer
from support.small_policies import build_policy

SIZES = {"n": 2, "a": 2, "obs": 3, "state": 3}


def policy() -> Policy:
    torch.manual_seed(0)
    return build_policy("feedforward", sizes=(2, 2, 3), groups=[0, 0])


@pytest.mark.parametrize("name", ["vdn", "qmix", "qplex", "qatten"])
@torch.no_grad()
def test_every_joint_action_by_the_formula(name):
    team, mixer, env = policy(), small_mixer(name, **SIZES), TwoStep(num_envs=1)
    tables = learned_tables(team, mixer, env, env.histories())
    assert tables is not None
    for place, (label, histories) in enumerate(env.histories().items()):
        state = [float(place == k) for k in range(3)]
        expected = torch.zeros(2, 2)
        for history in histories:
            last = torch.tensor([history[-1] if history else [-1, -1]])
            q, _ = team(torch.tensor([[state, state]]), last, ())  # [1, N, A]
            q = q[0].tolist()
            for joint in itertools.product(range(2), repeat=2):
                seen = Seen([q[i][joint[i]] for i in range(2)], state, [max(row) for row in q], [*joint], [state] * 2)
                expected[joint] += FORMULAS[name](mixer, seen) / len(histories)
        torch.testing.assert_close(torch.tensor(tables[label]), expected)


def test_no_table_where_every_agent_keeps_a_value_of_its_own():
    env = TwoStep(num_envs=1)
    assert learned_tables(policy(), small_mixer("none", **SIZES), env, env.histories()) is None


@pytest.mark.parametrize("mixer", ["vdn", "none"])
def test_the_environment_of_the_report_is_closed(tmp_path: Path, mixer: str):
    """Its workers would stay where a program makes several runs; with or without a table to report."""
    env = TwoStep(num_envs=1)
    env.close = Mock()
    trainer = SimpleNamespace(is_global_zero=True, datamodule=SimpleNamespace(make_eval_env=lambda _: env))
    learner = SimpleNamespace(policy=policy(), mixer=small_mixer(mixer, **SIZES))
    QTableReport(str(tmp_path), 0.9).on_train_end(cast(Any, trainer), cast(Any, SimpleNamespace(learner=learner)))
    env.close.assert_called_once()
    assert (tmp_path / "q_table.json").exists() == (mixer == "vdn")


def test_the_report_of_a_normalised_learner_is_in_the_scale_of_returns(tmp_path: Path):
    """A value that its networks call 0 is the mean of returns, here 5, and 1 is a deviation of 2 above it."""
    env, moments = TwoStep(num_envs=1), RunningMoments()
    moments.count.fill_(100.0)
    moments.mean.fill_(5.0)
    moments.squares.fill_(400.0)
    learner = SimpleNamespace(policy=policy(), mixer=small_mixer("vdn", **SIZES), value_moments=moments)
    learned = learned_tables(learner.policy, learner.mixer, env, env.histories())
    assert learned is not None
    trainer = SimpleNamespace(is_global_zero=True, datamodule=SimpleNamespace(make_eval_env=lambda _: env))
    report = QTableReport(str(tmp_path), 0.9)
    report.on_train_end(cast(Any, trainer), cast(Any, SimpleNamespace(learner=learner)))
    assert report.report is not None
    for label, table in learned.items():
        torch.testing.assert_close(torch.tensor(report.report["learned"][label]), 5.0 + 2.0 * torch.tensor(table))
