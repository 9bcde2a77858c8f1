"""An update never waits for the device: what the host must know of a batch, it knows from its own masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from qmix_lightning.agents.inputs import InputBuilder
from qmix_lightning.mixers import base
from qmix_lightning.nn.packing import Packing
from qmix_lightning.nn.running_moments import RunningMoments
from qmix_lightning.runtime.transfer import copy_values
from qmix_lightning.types import HostMasks, TrainBatch
from support import inprocess, waiting
from support.batches import LENGTHS, random_batch
from support.updates import MADE, batch_for, team, update


@pytest.mark.parametrize("name", MADE)
def test_an_update_asks_the_device_nothing(name: str, monkeypatch: pytest.MonkeyPatch):
    """On a device without values every question raises; only positions go there, and nobody waits for them."""
    waiting.without_autocast(monkeypatch)
    module = team(MADE[name]().to(waiting.DEVICE))
    batch = batch_for(name, [3, 1, 2])  # each operation takes long there, and each step has its own
    batch = TrainBatch(batch, env_steps=0, episodes=0, epsilon=0.0).to(waiting.DEVICE, torch.float64)
    with waiting.Crossings() as crossings:
        update(module, batch)
    assert all(op == "aten._to_copy.default" and t.dtype == torch.int64 for op, t in crossings.seen), crossings.seen
    assert len(crossings.seen) <= 6  # the cells of the packing (of a critic with memory another), and the filled steps
    assert all(value.device == waiting.DEVICE for value in module.last_sums.values())


def test_a_question_would_be_noticed():
    there = torch.zeros(3, device=waiting.DEVICE)
    for ask in (lambda: there.sum().item(), lambda: there.tolist(), lambda: bool(there.any()), lambda: there > 0 or 1):
        with pytest.raises((RuntimeError, NotImplementedError)):
            ask()
    for ask in (lambda: there.nonzero(), lambda: there[there > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            ask()
    with waiting.Crossings() as crossings:
        there + torch.zeros(()).to(waiting.DEVICE)
        there[torch.tensor([0, 1])]
    assert [op.endswith("waiting") for op, _ in crossings.seen] == [True, True]


@pytest.mark.parametrize("name", MADE)
def test_the_hosts_masks_change_nothing(name: str):
    """The same batch with and without them, bit for bit."""
    found = []
    for host in (False, True):
        learner, batch = MADE[name](), batch_for(name).to(torch.device("cpu"), torch.float64)
        if host:
            batch.host = HostMasks(batch.agent_mask.clone(), batch.filled.clone())
        learner.observe(batch)
        terms = learner.loss(batch)
        terms.total.backward()
        gradients = [p.grad for p in learner.parameters() if p.requires_grad]
        found.append([terms.total.detach(), terms.count, *gradients])
    for plain, masked in zip(*found, strict=True):
        assert torch.equal(plain, masked)


def test_a_changed_batch_has_none():
    """Another mask would be in them than in the batch."""
    moved = random_batch(0, LENGTHS).to(waiting.DEVICE)
    assert moved.host is not None
    assert moved.map(lambda t: t).host is None
    assert moved.to(waiting.DEVICE).host is moved.host
    clean = moved.mask_invalid().host
    assert clean is not None
    assert torch.equal(clean.agent_mask, random_batch(0, LENGTHS).mask_invalid().agent_mask)
    assert random_batch(0, LENGTHS).to(torch.device("cpu")).host is None


def test_statistics_of_observations_are_taken_without_waiting():
    """The device has no values: whatever asks for one raises."""
    inputs = InputBuilder(
        n_agents=3, n_actions=4, obs_dim=5, use_obs=True, use_last_action=True, use_agent_id=True, normalize_obs=True
    )
    inputs.to(waiting.DEVICE).observe(random_batch(0, LENGTHS).to(waiting.DEVICE), lambda t: t)
    assert inputs.moments is not None
    assert inputs.moments.mean.device == waiting.DEVICE


def test_statistics_leave_out_what_is_masked():
    moments, items = RunningMoments(2), torch.randn(4, 3, 2)
    mask = torch.rand(4, 3) > 0.4
    seen = items[mask].double()
    moments.update(items.where(mask[..., None], torch.tensor(float("nan"))), mask, lambda t: t)
    torch.testing.assert_close(moments.mean, seen.mean(0))
    torch.testing.assert_close(moments.deviation(items), seen.var(0, unbiased=False).sqrt().float())


def test_a_row_of_the_log_is_one_question(monkeypatch: pytest.MonkeyPatch):
    module = team(MADE["qmix, qmix"]())
    update(module, TrainBatch(batch_for("qmix"), 0, 0, 0.0).to(torch.device("cpu"), torch.float64))
    asked = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: asked.append(self.shape) or tolist(self))
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: pytest.fail("another question"))
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("another question"))
    metrics = module.train_metrics()
    assert len(asked) == 1
    norms = [p.grad.norm() for p in module.learner.parameters() if p.grad is not None]
    assert metrics["grad_norm"] == pytest.approx(torch.stack(norms).norm().tolist(), rel=1e-4)


def test_a_publication_to_another_device_is_one_copy_for_each_dtype():
    policy = MADE["qmix, qmix"]().policy
    of = [*policy.parameters(), torch.zeros(3), torch.ones(2, 2)]
    to = [torch.zeros(t.shape, dtype=torch.float32, device=waiting.DEVICE) for t in of]
    with waiting.Crossings() as crossings:
        copy_values(to, of)
    assert [t.dtype for _, t in crossings.seen] == [torch.float64, torch.float32]
    here = [torch.zeros(t.shape) for t in of]
    copy_values(here, of)
    assert all(torch.equal(a, b.float()) for a, b in zip(here, of, strict=True))


@pytest.mark.parametrize("replay", ["uniform", "prioritized"])
def test_lightnings_loop_asks_nothing_either(replay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From a batch's arrival to the end of its update, but for what the host computes of its own masks."""
    monkeypatch.chdir(tmp_path)

    def unseen(function):
        def hosts(*args, **kwargs):
            with _disable_current_modes():
                return function(*args, **kwargs)

        return hosts

    monkeypatch.setattr(Packing, "of", unseen(Packing.of))
    monkeypatch.setattr(base, "true_positions", unseen(base.true_positions))
    waiting.WATCHED.clear()
    waiting.Questions.asked.clear()
    more = [f"replay={replay}", "callbacks.watch={_target_:support.waiting.Watch}", "trainer.log_every_n_steps=1000"]
    more += ["agent=recurrent", "trainer.gradient_clip_val=null", "total_env_steps=20"]
    inprocess.succeed([*inprocess.TINY, *more, "run_dir=run"])
    assert len(waiting.WATCHED) >= 5
    assert waiting.Questions.asked == []
