"""What may differ from the checkpoint when a run goes on, and what may not."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from qmix_lightning.config.resume import check_resumable
from qmix_lightning.config.tree import flatten
from qmix_lightning.errors import ConfigurationError
from support.compositions import run_config


def changed(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    other = copy.deepcopy(tree)
    *parents, last = key.split(".")
    section = other
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value
    return other


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    return run_config("preset=pymarl").to_dict()


ALLOWED = {
    "total_env_steps": 7,
    "eval_interval": 7,
    "eval_episodes": 7,
    "checkpoint_interval": 7,
    "run_dir": "elsewhere",
    "ckpt_path": "last",
    "logger": {},
    "logger.mine": {"_target_": "a.B"},
    "callbacks.mine": {"_target_": "a.B", "deep": {"er": 1}},
    "trainer.devices": 2,
    "trainer.accelerator": "cpu",
    "trainer.strategy": "ddp",
    "trainer.enable_progress_bar": False,
    "trainer.log_every_n_steps": 1,
    "rollout.num_eval_envs": 3,
    "rollout.collector": "process",
    "replay.storage": "memmap",
    "replay.memmap_dir": "/elsewhere",
    "replay.device": "device",
    "objective": "win_rate",
}


@pytest.mark.parametrize("key", ALLOWED)
def test_what_cannot_change_the_past_may_differ(saved: dict[str, Any], key: str):
    other = changed(saved, key, ALLOWED[key])
    assert other != saved
    check_resumable(saved, other, "last.ckpt")


def test_everything_else_is_refused_by_name(saved: dict[str, Any]):
    """Every single key of the configuration, one at a time."""
    free = (
        "preset",
        "total_env_steps",
        "eval_",
        "checkpoint_interval",
        "objective",
        "init_from",
        "init_parts",
        "run_dir",
        "ckpt_path",
        "logger",
        "callbacks",
        "trainer",
    )
    free += (
        "rollout.num_eval_envs",
        "rollout.on_resume",
        "rollout.backend",
        "rollout.num_workers",
        "rollout.collector",
        "rollout.num_collectors",
        "ray.",
    )
    free += ("rollout.step_timeout_s", "rollout.max_faults", "rollout.fault_window_s", "rollout.python")
    free += ("replay.storage", "replay.memmap_dir", "replay.device")
    keys = [key for key in flatten(saved) if not key.startswith(free)]
    assert len(keys) > 30
    for key in [*keys, "trainer.precision", "trainer.gradient_clip_val", "env.new"]:
        with pytest.raises(ConfigurationError, match=r"^last\.ckpt belongs to another run: ") as refused:
            check_resumable(saved, changed(saved, key, "other"), "last.ckpt")
        assert f"{key}='other' (the checkpoint has " in str(refused.value), key


def test_an_empty_mapping_that_is_filled_is_said_once(saved: dict[str, Any]):
    before = changed(saved, "env.kwargs", {})
    with pytest.raises(ConfigurationError) as refused:
        check_resumable(before, changed(saved, "env.kwargs.crew", 4), "last.ckpt")
    assert str(refused.value).startswith(
        "last.ckpt belongs to another run: env.kwargs.crew=4 (the checkpoint has null)."
    )


def test_a_refusal_is_short(saved: dict[str, Any]):
    """Of another component only its name is said; of many differences the first."""
    other = run_config("algorithm=vdn", "env=climbing", "optimizer=adam", "seed=5", "preset=pymarl").to_dict()
    with pytest.raises(ConfigurationError) as refused:
        check_resumable(saved, other, "last.ckpt")
    message = str(refused.value)
    assert (
        "algorithm.name='vdn' (the checkpoint has 'qmix'); env.name='matrix' (the checkpoint has 'two_step')" in message
    )
    assert " and 2 more" in message
    assert "embed_dim" not in message
