"""Not-a-number never reaches a checkpoint, and a run that diverged says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from qmix_lightning.checkpoint.files import read_checkpoint
from qmix_lightning.checkpoint.manifest import not_finite
from support import inprocess

DIVERGES = ["optimizer.lr=1e30", "optimizer.max_grad_norm=1e30"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checkpoints() -> list[Path]:
    return sorted(Path("run").rglob("*.ckpt"))


def status() -> str:
    return json.loads(Path("run/summary.json").read_text())["status"]


@pytest.mark.parametrize("every", [1, 50])
def test_a_run_that_diverges_leaves_no_nan(every: int):
    typed = [*inprocess.TINY, *DIVERGES, "run_dir=run", "total_env_steps=100", f"trainer.log_every_n_steps={every}"]
    outcome = inprocess.command(typed)
    assert outcome.status == 1
    assert "so the run has diverged: lower optimizer.lr or optimizer.max_grad_norm; " in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert status() == "diverged"
    for path in checkpoints():
        assert not_finite(read_checkpoint(path)["state_dict"]) == []
    assert checkpoints() or "no checkpoint was written before" in outcome.err


def test_a_run_that_is_over_before_a_loss_was_looked_at_does_not_end_completed():
    """One checkpoint, at its end, and no evaluation or logging before."""
    quiet = ["total_env_steps=20", "checkpoint_interval=1000", "eval_interval=1000", "trainer.log_every_n_steps=1000"]
    outcome = inprocess.command([*inprocess.TINY, *DIVERGES, *quiet, "run_dir=run"])
    assert outcome.status == 1
    assert status() == "diverged"
    assert checkpoints() == []


def test_the_last_good_checkpoint_stays_and_the_message_names_it(finished_run: Path):
    shutil.copytree(finished_run, "run")
    before = read_checkpoint("run/checkpoints/last.ckpt")
    spoil = "callbacks.spoil._target_=support.spoil.Spoil"
    outcome = inprocess.command(["run_dir=run", "ckpt_path=last", "total_env_steps=200", spoil])
    assert outcome.status == 1
    assert f"last.ckpt is of update {before['global_step']}, from before" in outcome.err
    after = read_checkpoint("run/checkpoints/last.ckpt")
    assert after["global_step"] == before["global_step"]
    name = "learner.policy.agent.encode.weight"
    assert torch.equal(after["state_dict"][name], before["state_dict"][name])
    inprocess.succeed(["run_dir=run", "ckpt_path=last", "total_env_steps=64"])


def _spoil(path: Path) -> None:
    payload = torch.load(path, weights_only=True)
    name = next(
        n for n, v in payload["state_dict"].items() if n.startswith("learner.policy.") and v.is_floating_point()
    )
    payload["state_dict"][name][:] = float("nan")
    torch.save(payload, path)


def test_an_evaluation_refuses_such_a_network_and_a_resume_passes_it_over(finished_run: Path):
    shutil.copytree(finished_run, "run")
    _spoil(Path("run/checkpoints/last.ckpt"))
    typed = ["ckpt_path=run/checkpoints/last.ckpt", "episodes=2"]
    inprocess.refused(typed, "holds NaN or infinity in", name="evaluate")
    went_on = inprocess.succeed(["run_dir=run", "ckpt_path=last", "total_env_steps=64"])
    assert "passed over: run/checkpoints/last.ckpt cannot be resumed: its networks hold NaN or infinity" in went_on.err
    assert "going on from run/checkpoints/previous.ckpt" in went_on.err
    assert "last.ckpt is kept as last.ckpt.damaged" in went_on.err
