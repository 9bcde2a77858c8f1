"""Checkpoints from before a setting existed."""

import shutil
from pathlib import Path

import pytest
import torch

from qmix_lightning.checkpoint.files import read_checkpoint, write_checkpoint
from qmix_lightning.config.resume import fill_missing_defaults, missing_settings
from support import inprocess

NEWER = {
    "num_threads": None,
    "matmul_precision": "highest",
    "replay": {"device": "auto", "dtype": "float32"},
    "rollout": {"collector": "inline", "policy_device": "env"},
    "agent": {"dueling": False, "orthogonal_init": False},
    "algorithm": {"normalize_values": False},
    "optimizer": {"lr_schedule": "constant"},
}


def without_newer(config):
    older = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for key, value in NEWER.items():
        if isinstance(value, dict):
            for name in value:
                del older[key][name]
        else:
            del older[key]
    return older


def test_defaults_fill_what_is_missing(finished_run: Path, capsys: pytest.CaptureFixture[str]):
    config = read_checkpoint(finished_run / "checkpoints" / "last.ckpt")["config"]
    assert missing_settings(config) == {}
    assert fill_missing_defaults(config, "last.ckpt") == config
    assert capsys.readouterr().err == ""
    older = without_newer(config)
    assert missing_settings(older) == NEWER
    assert fill_missing_defaults(older, "last.ckpt") == config
    error = capsys.readouterr().err
    assert error.startswith("last.ckpt was written before these settings existed and goes on with what held before: ")
    assert error.count("\n") == 1
    for shown in ("num_threads=null", "replay.device=auto", "agent.dueling=False"):
        assert shown in error
    assert older == without_newer(config)


def test_a_plugins_settings_are_its_own():
    config = {"agent": {"name": "mine"}, "algorithm": {"name": "../../secret"}, "mixer": {"name": "/etc/hosts"}}
    assert not missing_settings(config).keys() & {"agent", "algorithm", "mixer"}


def test_an_older_run_goes_on_as_a_newer_one(finished_run: Path, tmp_path: Path):
    """To the same weights, and it can be evaluated."""
    found = {}
    for name in ("older", "newer"):
        folder = tmp_path / name
        shutil.copytree(finished_run, folder)
        path = folder / "checkpoints" / "last.ckpt"
        if name == "older":
            payload = read_checkpoint(path)
            write_checkpoint(payload | {"config": without_newer(payload["config"])}, path)
            outcome = inprocess.succeed([f"ckpt_path={path}", "episodes=2", "output=-"], "evaluate")
            assert "written before these settings existed" in outcome.err
        outcome = inprocess.succeed([f"run_dir={folder}", "ckpt_path=last", "total_env_steps=70"])
        assert ("written before these settings existed" in outcome.err) is (name == "older")
        found[name] = read_checkpoint(path)
    assert found["older"]["env_steps"] >= 70
    assert found["older"]["config"] == found["newer"]["config"] | {"run_dir": found["older"]["config"]["run_dir"]}
    for key, value in found["newer"]["state_dict"].items():
        assert not torch.is_tensor(value) or torch.equal(value, found["older"]["state_dict"][key]), key
