"""``import qmix_lightning as ql``: train, load, evaluate and build from Python, as the commands do."""

from __future__ import annotations

import doctest
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

import qmix_lightning as ql
from qmix_lightning import api
from qmix_lightning.checkpoint.files import read_checkpoint
from qmix_lightning.environment import register
from qmix_lightning.errors import CheckpointError, ConfigurationError
from qmix_lightning.mixers.qmix import QMixer
from qmix_lightning.optimizers import LearningRate, adam
from qmix_lightning.policies import team
from qmix_lightning.training.module import TeamModule
from support import inprocess
from support.fakes import VaryingLength

TINY: dict[str, Any] = {
    "preset": "pymarl",
    "total_env_steps": 60,
    "eval_interval": 30,
    "eval_episodes": 4,
    "checkpoint_interval": 30,
    "rollout": {"num_envs": 2},
    "replay": {"batch_size": 4, "capacity": 64},
    "agent": {"hidden_dim": 8},
    "trainer": {"log_every_n_steps": 1, "accelerator": "cpu"},
    "logger": "none",
}
QUIET: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_epochs": -1}


def test_a_run_from_python_is_the_commands(tmp_path: Path):
    run = ql.train("two_step", "vdn", run_dir=tmp_path / "python", seed=3, **TINY)
    inprocess.succeed([*inprocess.TINY, "env=two_step", "algorithm=vdn", "seed=3", f"run_dir={tmp_path / 'command'}"])
    mine, theirs = read_checkpoint(run.last), read_checkpoint(tmp_path / "command" / "checkpoints" / "last.ckpt")
    assert mine["config"] == theirs["config"]
    assert all(torch.equal(v, theirs["state_dict"][n]) for n, v in mine["state_dict"].items() if torch.is_tensor(v))
    assert run.summary == json.loads((run.folder / "summary.json").read_text())
    assert run.load().spec.n_agents == 2


@pytest.mark.parametrize(
    ("env", "n_agents"), [(VaryingLength, 3), ("support.fakes:VaryingLength", 3), ({"name": "two_step"}, 2)]
)
def test_an_environment_is_a_factory_an_address_or_a_section(env: Any, n_agents: int, tmp_path: Path):
    _, data = ql.build_lightning(env, run_dir=tmp_path / "run", **TINY)
    assert data.replay.spec.n_agents == n_agents


def test_what_is_no_setting_is_refused_by_its_name():
    env: Any = VaryingLength()
    with pytest.raises(ConfigurationError, match=r"^env must be .*, or a class or function that .*, not <support"):
        ql.train(env, "vdn")
    env = 3
    with pytest.raises(ConfigurationError, match=r"^env must be a name, .*, not 3$"):
        ql.evaluate("two_step", env=env)
    learner: Any = VaryingLength
    with pytest.raises(ConfigurationError, match=r"^algorithm must be as it is typed .*, not <class .*: give a comp"):
        ql.train("two_step", learner)
    with pytest.raises(ConfigurationError, match=r"^mixer must be as it is typed .*QMixer.*: give a component"):
        ql.build_lightning("two_step", mixer={"name": QMixer})


def test_a_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ql.train(VaryingLength, run_dir=tmp_path / "run", **TINY)
    shown = capsys.readouterr().out
    resume = f"ql.train(FACTORY, run_dir='{tmp_path / 'run'}', resume=True, overrides=['total_env_steps=120'])"
    assert resume in shown
    assert "qmix-" not in shown  # no command has the factory
    with pytest.raises(ConfigurationError, match="holds a run already"):
        ql.train(VaryingLength, run_dir=tmp_path / "run", **TINY)
    more = {**TINY, "total_env_steps": 80}
    assert ql.train(VaryingLength, run_dir=tmp_path / "run", resume=True, **more).summary["env_steps"] >= 80


def test_a_mistake_is_what_the_command_says(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"unknown key 'optimizer.lrr'"):
        ql.train("two_step", run_dir=tmp_path / "run", optimizer={"lrr": 1e-3})
    with pytest.raises(ConfigurationError, match="Did you mean 'env=two_step'"):
        ql.train("two_stp", run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: ql.evaluate("two_step", episodes=0), "episodes must be at least 1, not 0"),
        (lambda: ql.evaluate("two_step", seed=-1), "seed must be at least 0, not -1"),
        (lambda: ql.evaluate("two_step", epsilon=2), "epsilon must be between 0 and 1, not 2"),
        (lambda: ql.load("two_step", num_envs=0), "num_envs must be at least 1, not 0"),
        (lambda: ql.train("two_step", overrides="seed=3"), "must be a list of texts: overrides=['seed=3']"),
    ],
)
def test_a_number_out_of_its_range_is_named(call: Callable[[], object], told: str):
    with pytest.raises(ConfigurationError) as raised:
        call()
    assert told in str(raised.value)


def test_settings_are_values_of_python(tmp_path: Path):
    """A path with blanks and brackets, and mappings within a list, which Hydra's grammar writes in its own way."""
    goals: list[dict[str, Any]] = [{"at": "a place", "worth": 1.5}, {"at": "another, far", "worth": None}]
    folder = tmp_path / "levels (1), of=2"
    given: list[object] = []

    def playing_for(goals: list[dict[str, Any]], folder: str) -> VaryingLength:
        given.append((goals, folder))
        return VaryingLength()

    register("goals_of_a_test", playing_for, overwrite=True)
    env = {"name": "goals_of_a_test", "kwargs": {"goals": goals, "folder": folder}}
    ql.build_lightning(env, run_dir=tmp_path / "run", **TINY)
    assert given[0] == (goals, str(folder))


def test_a_trainer_of_ones_own_stops_at_the_budget(tmp_path: Path):
    module, data = ql.build_lightning(VaryingLength, run_dir=tmp_path, **TINY)
    seen: list[float] = []

    class Seen(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.append(float(trainer.callback_metrics["eval/return_mean"]))

    trainer = pl.Trainer(**QUIET, default_root_dir=tmp_path, callbacks=[Seen()], num_sanity_val_steps=0)
    trainer.fit(module, datamodule=data)
    assert 60 <= data.counters.env_steps < 90
    assert trainer.global_step == data.counters.updates > 0
    assert len(seen) == 2, "evaluated at 30 and at 60 steps"


def test_a_module_is_loaded_from_a_checkpoint(finished_run: Path, tmp_path: Path):
    last = finished_run / "checkpoints" / "last.ckpt"
    rate = LearningRate(lr=1e-3, lr_schedule="constant", lr_anneal_steps=1, lr_final=0.0)
    optimizer = adam(rate=rate, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0, max_grad_norm=None)
    module = TeamModule.load_from_checkpoint(last, optimizer=optimizer)
    saved = read_checkpoint(last)["state_dict"]
    assert all(torch.equal(p, saved[name]) for name, p in module.named_parameters())
    assert len(module.configure_optimizers().param_groups) == 2
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        TeamModule.load_from_checkpoint(tmp_path / "nothing.ckpt")


@pytest.mark.parametrize("module", [api, team])
def test_the_examples_in_docstrings_hold(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    finder, failed, tried = doctest.DocTestFinder(), 0, 0
    for test in finder.find(module):
        runner = doctest.DocTestRunner(optionflags=flags)
        runner.run(test, out=lambda text: None)
        failed, tried = failed + runner.failures, tried + runner.tries
    assert tried > 3
    assert failed == 0
