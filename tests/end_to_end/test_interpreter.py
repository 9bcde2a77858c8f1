"""Environments under another Python: a run of theirs is a run like any other."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qmix_lightning.checkpoint.files import read_checkpoint
from support import commands, inprocess, runs
from support.processes import running, wait_until

ID = "env.id=support.plain_envs:make_walk"
BASE = [*(a for a in runs.BASE if not a.startswith("env.id")), ID, "rollout.asynchronous=false", "num_threads=1"]
PYTHON = f"rollout.python={sys.executable}"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(commands.TESTS)  # where the environment's module is found by both Pythons


def test_a_killed_run_ends_as_one_that_steps_in_its_own_process(tmp_path: Path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    inprocess.succeed([*BASE, "total_env_steps=200", f"run_dir={whole}"])
    arguments = [*BASE, PYTHON, "rollout.num_workers=1", "total_env_steps=200", f"run_dir={folder}"]
    process = runs.begun(arguments, tmp_path / "n", 10)
    assert any(one.session == process.pid and "boot.py" in one.command for one in running())
    process.kill()
    runs.finish(process)
    wait_until(lambda: all(one.session != process.pid for one in running()), "a worker outlived its trainer", 30)
    inprocess.succeed([f"run_dir={folder}", "ckpt_path=last", ID, PYTHON])
    runs.assert_same_run(whole, folder)
    recorded = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert recorded["config"]["rollout"]["python"] is None
    assert recorded["versions"]["environments' python"]
    typed = [f"ckpt_path={folder}/checkpoints/last.ckpt", "episodes=5", ID]
    inprocess.succeed([*typed, f"output={tmp_path}/a.json"], "evaluate")
    inprocess.succeed([*typed, PYTHON, f"output={tmp_path}/b.json"], "evaluate")
    here, there = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert here == there
