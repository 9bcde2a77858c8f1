"""The end of a run names a command that goes on with it, and does not end at once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qmix_lightning.training import end_table
from support.compositions import run_config


@pytest.mark.parametrize(("budget", "taken", "told"), [(1000, 1024, 2000), (10, 1536, 3072)])
def test_the_budget_to_go_on_with_is_above_what_was_taken(budget: int, taken: int, told: int):
    """A resumed run may have been given less than it had taken."""
    config: Any = SimpleNamespace(total_env_steps=budget)
    assert end_table._more({"ended_by": "budget", "env_steps": taken}, config) == f" total_env_steps={told}"


def test_what_was_typed_of_loggers_is_named_but_no_address(tmp_path: Path):
    loggers = [
        "logger=[wandb,mlflow]",
        "logger.wandb.mode=offline",
        "logger.wandb.tags=['a b',c]",
        "logger.wandb.group=g",
    ]
    config = run_config("env=two_step", *loggers, "logger.mlflow.tracking_uri=https://me:secret@server")
    end = (
        "ckpt_path=last logger.wandb.mode=offline logger.wandb.group=g 'logger.wandb.tags=['\"'\"'a b'\"'\"',c]' more=1"
    )
    assert end_table.resume_command(config, tmp_path, " more=1") == f"qmix-train run_dir={tmp_path} {end}"
    for others in ((), ("logger=wandb", "logger.wandb=null")):
        assert end_table.resume_command(run_config("env=two_step", *others), tmp_path).endswith("ckpt_path=last")


def test_the_rate_of_a_slow_run_is_no_mere_zero():
    rates = {12_345.6: "12,346/s", 9.96: "10/s", 0.192: "0.19/s", 0.0: "0/s"}
    assert {rate: end_table.shown_rate(rate) for rate in rates} == rates
