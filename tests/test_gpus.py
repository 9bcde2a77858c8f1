"""Checks for a machine with GPUs; run them there with: pytest -m gpu tests/test_gpus.py"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import runs
import torch
from batches import random_batch
from learners import make_learner

GPU = [a for a in runs.BASE if not a.startswith("trainer.accelerator")] + ["trainer.accelerator=gpu"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_one_gpu_trains_and_resumes(tmp_path: Path, precision: str):
    folder = tmp_path / "run"
    arguments = [*GPU, f"run_dir={folder}", f"trainer.precision={precision}"]
    runs.run([*arguments, "total_env_steps=400"])
    runs.run([*arguments, "total_env_steps=900", "ckpt_path=last"])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["env_steps"] >= 900
    assert runs.rows(folder)


@pytest.mark.gpu
def test_every_gpu_trains_with_nccl(tmp_path: Path):
    devices = torch.cuda.device_count()
    assert devices >= 2, f"this check needs at least two GPUs, found {devices}"
    folder = tmp_path / "run"
    sizes = [f"replay.batch_size={8 * devices}", f"replay.capacity={64 * devices}"]
    ranks = [f"trainer.devices={devices}", "trainer.strategy=ddp"]
    base = [a for a in GPU if not a.startswith("replay.")]
    arguments = [*base, *sizes, *ranks, f"run_dir={folder}"]
    runs.run([*arguments, "total_env_steps=1000"])
    runs.run([*arguments, "total_env_steps=2000", "ckpt_path=last"])
    assert len(set(runs.replay_hashes(folder / "checkpoints" / "last.ckpt"))) == devices


@pytest.mark.gpu
@pytest.mark.parametrize("share", [True, False, "group"])
def test_the_learner_computes_the_same_on_a_gpu(share):
    batch = random_batch(0, [9, 1, 4, 6, 3]).to(torch.device("cpu"), torch.float64)
    found = []
    for device in ("cpu", "cuda"):
        learner = make_learner("qmix", share=share).to(device)
        terms = learner.loss(batch.to(torch.device(device)))
        terms.total.backward()
        found.append([terms.total.detach().cpu(), *(p.grad.cpu() for p in learner.parameters() if p.requires_grad)])
    torch.testing.assert_close(found[1], found[0])
