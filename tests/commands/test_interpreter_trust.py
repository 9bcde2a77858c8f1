"""Only what is typed starts another Python: whatever a file names, nothing of it runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
import torch
import yaml

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.study.suite import load_suite
from support import inprocess

WALK = ["env=pettingzoo", "env.id=support.plain_envs:make_walk"]
SMALL = [a for a in inprocess.TINY if not a.startswith("total_env_steps")]


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil"
    path.write_text("#!/bin/sh\ntouch 'it ran'\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def run(evil: str, finished_run: Path, tmp_path: Path) -> Path:
    """A run whose every file names another Python."""
    shutil.copytree(finished_run, tmp_path / "run")
    for path in (tmp_path / "run/checkpoints").glob("*.ckpt"):
        payload = torch.load(path, weights_only=True)
        payload["config"]["rollout"].update(python=evil, python_env=["LD_PRELOAD"])
        torch.save(payload, path)
    config = tmp_path / "run/config.yaml"
    tree = yaml.safe_load(config.read_text())
    tree["rollout"].update(python=evil, python_env=["LD_PRELOAD"])
    config.write_text(yaml.safe_dump(tree))
    return tmp_path / "run"


def test_a_checkpoint_names_none(run: Path):
    inprocess.succeed(["run_dir=run", "ckpt_path=last", "total_env_steps=62"])
    inprocess.succeed(["ckpt_path=run/checkpoints/best.ckpt", "episodes=2"], "evaluate")
    assert not Path("it ran").exists()


def test_a_run_folder_names_none(run: Path):
    """Where a run begins anew with its own settings."""
    for path in (run / "checkpoints").glob("*.ckpt"):
        path.unlink()
    (run / "summary.json").write_text('{"status": "running"}')
    inprocess.succeed(["run_dir=run", "ckpt_path=last", "total_env_steps=10"])
    assert not Path("it ran").exists()


def recipe(evil: str) -> list[str]:
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/mine.yaml").write_text(f"# @package _global_\nrollout:\n  python: {evil}\n")
    return ["--config-dir", "conf", "experiment=mine"]


def group(evil: str) -> list[str]:
    Path("conf/rollout").mkdir(parents=True)
    Path("conf/rollout/mine.yaml").write_text(f"defaults: [process]\npython: {evil}\n")
    return ["--config-dir", "conf", "rollout=mine"]


@pytest.mark.parametrize("write", [recipe, group])
def test_a_file_of_settings_names_none(evil: str, write: Callable[[str], list[str]]):
    typed = ["run_dir=run", "total_env_steps=60", *write(evil), *SMALL, *WALK]
    inprocess.refused(typed, "a file names rollout.python")
    assert not Path("it ran").exists()
    assert not Path("run").exists()


def test_a_suite_names_none(evil: str, tmp_path: Path):
    shipped = Path(str(resources.files("qmix_lightning.conf").joinpath("suite/quick.yaml"))).read_text()
    suite = yaml.safe_load(shipped) | {"overrides": [f"rollout.python={evil}"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(suite))
    with pytest.raises(ConfigurationError, match="which a file does not decide"):
        load_suite(str(tmp_path / "mine.yaml"))


def test_what_is_no_file_or_no_variable_is_refused_before_anything_starts(evil: str):
    for typed, message in (
        (["rollout.python=none"], "rollout.python=none: there is no such file"),
        ([f"rollout.python={evil}", "rollout.python_env=[A-B]"], "names of variables are needed"),
        (["rollout.python_env=[HOME]"], "is for another Python"),
    ):
        inprocess.refused(["run_dir=run", *WALK, *typed], message)
    assert not Path("it ran").exists()
