"""Relative paths mean the folder that a command was typed in, wherever an environment goes meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import inprocess


def test_an_environment_that_changes_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home, elsewhere = tmp_path / "my rüns [1]", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    tiny = [a for a in inprocess.TINY if not a.startswith("logger")]
    env = ["env.id=support.fakes:Wandering", f"+env.kwargs.folder={elsewhere}"]
    for arguments, command in (
        (["run_dir=rün 1", "env=pettingzoo", *env, *tiny], "train"),
        (["ckpt_path=rün 1/checkpoints/last.ckpt", *env, "total_env_steps=70"], "train"),
        (["ckpt_path=rün 1/checkpoints/last.ckpt", *env, "episodes=2", "output=eval.json"], "evaluate"),
    ):
        monkeypatch.chdir(home)
        inprocess.succeed(arguments, command)
    assert list(elsewhere.iterdir()) == []
    assert sorted(path.name for path in home.iterdir()) == ["eval.json", "rün 1"]
    assert len(list((home / "rün 1" / "tensorboard").glob("events*"))) >= 2
