"""Checks for a machine with GPUs; run them there with: pytest -m gpu tests/end_to_end/test_gpus.py"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.types import TrainBatch
from support import runs
from support.batches import double_batch
from support.episodes import episode, spec
from support.learners import make_learner
from support.replays import content_hash
from support.updates import MADE, batch_for, team, update

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
    batch = double_batch()
    found = []
    for device in ("cpu", "cuda"):
        learner = make_learner("qmix", share=share).to(device)
        terms = learner.loss(batch.to(torch.device(device)))
        terms.total.backward()
        found.append([terms.total.detach().cpu(), *(p.grad.cpu() for p in learner.parameters() if p.requires_grad)])
    torch.testing.assert_close(found[1], found[0])


CUDA = torch.device("cuda", 0)


@pytest.fixture
def never_waiting():
    """Whatever makes the host wait for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["qmix, qmix", "qmix, an agent each", "qmix, normalized"])
def test_an_update_does_not_wait(name: str, request: pytest.FixtureRequest):
    """Under ``never_waiting`` torch raises where the host would wait."""
    module = team(MADE[name]().float().to(CUDA))
    for attempt in range(2):  # libraries prepare themselves at their first calls
        batch = TrainBatch(batch_for(name).map(lambda t: t.pin_memory()), 0, 0, 0.0)
        if attempt:
            request.getfixturevalue("never_waiting")
        update(module, batch.to(CUDA, torch.float32))
    assert torch.cuda.get_sync_debug_mode() == 2, "the second update was not watched"


@pytest.mark.gpu
def test_a_batch_from_the_device_is_the_hosts_and_nobody_waits_for_it(request: pytest.FixtureRequest):
    stores = [EpisodeReplay(spec(), 6, dtype="float16", device=device) for device in (None, CUDA)]
    for i in range(9):
        for store in stores:
            store.add(episode(i, 5 + i))
    assert content_hash(stores[0]) == content_hash(stores[1])
    expected = stores[0].sample(4, key=2)
    stores[1].gather(stores[1].draw(4, 2)[0], pin=True).to(CUDA)
    request.getfixturevalue("never_waiting")
    found = stores[1].gather(stores[1].draw(4, 2)[0], pin=True).to(CUDA)
    torch.cuda.set_sync_debug_mode("default")
    assert found.obs.device == found.agent_mask.device == CUDA
    for name in ("obs", "state", "avail_actions", "actions", "reward", "filled"):
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name)), name


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["env", "device"])
@pytest.mark.parametrize("replay", ["cpu", "device"])
def test_a_run_says_where_its_replay_is(tmp_path: Path, where: str, replay: str):
    folder = tmp_path / "run"
    said = runs.run(
        [*GPU, f"run_dir={folder}", "total_env_steps=400", f"rollout.policy_device={where}", f"replay.device={replay}"]
    )
    assert ("replay on cuda:0: at most" if replay == "device" else "replay in host memory, copied to cuda:0") in said
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"
