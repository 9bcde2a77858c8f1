"""Lines that say that a run is going wrong: when they are printed, and when they are not."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qmix_lightning.checkpoint.files import read_checkpoint
from qmix_lightning.training.callbacks import health
from qmix_lightning.training.callbacks.health import HealthCheck
from qmix_lightning.training.callbacks.metrics_log import MetricsLog
from qmix_lightning.training.counters import Counters
from qmix_lightning.training.module import PlayedReturns, summarize_returns
from support import inprocess
from support.batches import random_batch
from support.learners import make_learner


class Watched:
    """A health check beside a trainer of which it sees only what it asks for."""

    def __init__(self, *, budget: int = 100_000, on_policy: bool = False, device: str = "cpu") -> None:
        self.log = MetricsLog()
        self.counters = Counters()
        self.check = HealthCheck(self.log, on_policy=on_policy)
        self.trainer: Any = SimpleNamespace(
            datamodule=SimpleNamespace(counters=self.counters, total_env_steps=budget),
            log_every_n_steps=50,
            is_global_zero=True,
            sanity_checking=False,
            precision="32-true",
            strategy=SimpleNamespace(root_device=torch.device(device)),
        )
        self.module: Any = SimpleNamespace(
            played=None, learner=SimpleNamespace(target_copies=lambda episodes, updates: updates)
        )

    def log_row(self, value: float, *returns: float) -> None:
        self.log.last_train = {"train/q_taken": value}
        self.module.played = PlayedReturns(max(returns), sum(returns), sum(r * r for r in returns), float(len(returns)))
        self.check.on_train_batch_end(self.trainer, self.module, None, None, 0)

    def evaluate(self, steps: int, mean: float = 0.0, half: float = 0.0) -> None:
        self.counters.env_steps = steps
        self.log.last_eval = {"eval/return_mean": mean, "eval/return_ci95": half}
        self.check.on_validation_end(self.trainer, self.module)


def test_values_above_every_return_are_told_once_and_only_if_they_stay_there(capsys: pytest.CaptureFixture[str]):
    watched = Watched()
    for value in (9.0, 9.0, 1.0, 9.0, 9.0):  # of returns 0 and 2: deviation 1, so 3 is the bound
        watched.log_row(value, 0.0, 2.0)
    assert capsys.readouterr().err == ""
    for _ in range(3):
        watched.log_row(9.0, 0.0, 2.0)
    error = capsys.readouterr().err
    assert error.startswith("warning: the team's values average 9, where no discounted return was above 2: ")
    assert error.count("\n") == 1


def test_values_just_above_the_best_return_are_hope(capsys: pytest.CaptureFixture[str]):
    watched = Watched()
    for _ in range(9):
        watched.log_row(2.9, 0.0, 2.0)
    assert capsys.readouterr().err == ""


def test_values_above_returns_that_are_all_alike(capsys: pytest.CaptureFixture[str]):
    """Where no reward was found yet, what a network says before it has learned is above all returns."""
    watched = Watched()
    for _ in range(9):
        watched.log_row(0.3, 0.0, 0.0)
    constant = Watched()
    for _ in range(9):
        constant.log_row(0.4, 0.3, 0.3, 0.3)  # their deviation is 0 but for rounding
    assert capsys.readouterr().err == ""
    for _ in range(3):
        watched.log_row(5.0, 0.0, 0.0)
    assert "values average 5, where no discounted return was above 0: " in capsys.readouterr().err


def test_a_budget_that_buys_few_updates(capsys: pytest.CaptureFixture[str]):
    watched = Watched()
    watched.counters.updates = 40
    watched.evaluate(20_000)
    assert capsys.readouterr().err == "", "the first tenths fill the replay"
    watched.evaluate(50_000)
    assert capsys.readouterr().err.startswith("warning: 100,000 environment steps buy only about 80 updates: ")
    enough = Watched()
    enough.counters.updates = 160
    enough.evaluate(50_000)
    on_policy, tried = Watched(on_policy=True), Watched(budget=4999)
    for other in (on_policy, tried):
        other.counters.updates = 1
        other.evaluate(4000)
    assert capsys.readouterr().err == ""


def test_a_budget_that_buys_no_target_copy(capsys: pytest.CaptureFixture[str]):
    watched = Watched()
    watched.counters.updates, watched.counters.episodes = 5000, 60
    watched.module.learner.target_copies = lambda episodes, updates: episodes // 200
    watched.evaluate(50_000)
    assert "the target networks are never updated: lower algorithm.target_update_every" in capsys.readouterr().err
    watched.module.learner.target_copies = lambda episodes, updates: None
    watched.evaluate(60_000)
    assert capsys.readouterr().err == ""


def test_worse_than_random_play(capsys: pytest.CaptureFixture[str]):
    def played() -> Watched:
        watched = Watched()
        watched.counters.updates = 10_000
        # Half of the episodes return 0, half 2: mean 1, deviation 1, so two standard errors below it are 0.75.
        watched.counters.first_episodes = {"episodes": 64.0, "return": 64.0, "squares": 128.0}
        return watched

    played().evaluate(40_000, mean=0.1)  # early
    played().evaluate(60_000, mean=0.8)
    played().evaluate(60_000, mean=0.7, half=0.06)
    assert capsys.readouterr().err == ""
    played().evaluate(60_000, mean=0.7, half=0.04)
    assert "the evaluation's return, 0.7, is below that of random play, 1 in the first 64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("units", "device", "told"), [(False, "cpu", True), (True, "cpu", False), (False, "meta", False)]
)
def test_mixed_precision_without_units(
    units: bool, device: str, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = {"avx512_bf16": units, "amx_bf16": False}
    monkeypatch.setattr(health.torch.cpu, "get_capabilities", lambda: found)
    watched = Watched(device=device)
    watched.trainer.precision = "bf16-mixed"
    watched.check.on_fit_start(watched.trainer, watched.module)
    assert ("trainer.precision=bf16-mixed on a CPU without bfloat16 units" in capsys.readouterr().err) is told


@pytest.mark.parametrize(("precision", "told"), [("bf16-true", True), ("16-true", True), ("bf16-mixed", False)])
def test_parameters_too_narrow_for_their_updates(precision: str, told: bool, capsys: pytest.CaptureFixture[str]):
    watched = Watched(device="meta")
    watched.trainer.precision = precision
    watched.check.on_fit_start(watched.trainer, watched.module)
    assert ("keeps parameters in 16 bits" in capsys.readouterr().err) is told


def test_two_warnings_of_one_precision_have_one_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(health.torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    watched = Watched(device="cpu")
    watched.trainer.precision = "bf16-true"
    watched.check.on_fit_start(watched.trainer, watched.module)
    cures = re.findall(r"use trainer\.precision=(\S+)", capsys.readouterr().err)
    assert cures == ["32-true", "32-true"]


def test_what_was_told_is_not_told_again_after_a_resume(capsys: pytest.CaptureFixture[str]):
    first, second = Watched(), Watched()
    first.evaluate(50_000)
    assert "buy only about 0 updates" in capsys.readouterr().err
    second.check.load_state_dict(first.check.state_dict())
    second.evaluate(60_000)
    assert "updates" not in capsys.readouterr().err


def test_played_returns_by_hand():
    """Gamma 1/2: a row that ended, one cut off whose mean reward goes on, and one shorter than the batch."""
    learner = make_learner("vdn", gamma=0.5)
    batch = random_batch(0, [2, 2, 1])
    first = (slice(None), slice(0, 2))  # the batch is padded to nine steps
    batch.reward[first] = torch.tensor([[1.0, 4.0], [1.0, 3.0], [8.0, torch.nan]])
    batch.terminated[first] = torch.tensor([[False, True], [False, False], [True, False]])
    batch.truncated[first] = torch.tensor([[False, False], [False, True], [False, False]])
    returns = learner.played_returns(batch)
    assert returns[0, :2].tolist() == [3.0, 4.0]
    assert returns[1, :2].tolist() == [3.5, 5.0]  # a mean of 2 for ever is worth 4: 3 + 4/2, 1 + 5/2
    assert returns[2, 0].item() == 8.0


def test_costs_that_go_on_behind_the_limit_are_no_bound():
    """Every step costs 1 and gamma is 1/2: values begin at 0, above every return, and a reward is -1."""
    learner = make_learner("vdn", gamma=0.5)
    batch = random_batch(0, [2, 2, 2])
    batch.reward[:] = -1.0
    batch.terminated[:] = False
    batch.truncated[:, 1] = True
    summary = summarize_returns(learner, batch)
    assert summary is not None
    highest, total, _, steps = summary.tolist()
    assert (highest, total / steps, steps) == (-1.0, -2.0, 6.0)


def test_a_real_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And counts its first episodes."""
    monkeypatch.setattr(health, "_LEAST_BUDGET", 60)
    outcome = inprocess.succeed([*inprocess.TINY, f"run_dir={tmp_path}/run"])
    assert "warning: 60 environment steps buy only about 24 updates" in outcome.err
    counters = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["ReplayDataModule"]["counters"]
    assert counters["first_episodes"]["episodes"] == 30
