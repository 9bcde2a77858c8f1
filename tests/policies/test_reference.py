"""What a reference names, in which order."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qmix_lightning.errors import CheckpointError, ConfigurationError
from qmix_lightning.policies import open_policy
from qmix_lightning.policies.reference import find_policy


def test_a_run_folder_means_its_best_checkpoint_or_else_its_last(finished_run: Path, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    checkpoints = copy / "checkpoints"
    assert find_policy(copy) == checkpoints / "best.ckpt"
    assert find_policy(checkpoints) == checkpoints / "best.ckpt"
    assert find_policy("last", copy) == checkpoints / "last.ckpt"
    (checkpoints / "best.ckpt").unlink()
    assert find_policy(str(copy)) == checkpoints / "last.ckpt"
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*best\.ckpt"):
        find_policy("best", copy)
    with pytest.raises(ConfigurationError, match="of which run"):
        find_policy("last")


def test_a_folder_wins_over_a_name_of_the_zoo(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shipped = find_policy("two_step")
    Path("two_step").mkdir()
    assert find_policy("two_step") == shipped, "an empty folder is no policy"
    shutil.copytree(finished_run / "checkpoints", "two_step/checkpoints")
    assert find_policy("two_step") == Path("two_step/checkpoints/best.ckpt")


def test_what_was_opened_says_where_it_is_from(finished_run: Path):
    stored = open_policy(finished_run)
    assert stored.source == str(finished_run / "checkpoints" / "best.ckpt")
    assert stored.provenance.seed == 1
    assert 0 < stored.provenance.env_steps <= 64
