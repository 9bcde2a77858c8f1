"""Collecting while an update runs: the same data whatever the threads do, one update stale, whole at a checkpoint."""

import json
import signal
import threading
from pathlib import Path

import pytest
import torch

from qmix_lightning import build
from qmix_lightning.checkpoint.segments import SegmentStore
from qmix_lightning.errors import EnvironmentFault, RunInterrupted
from qmix_lightning.rollout.collector import Collected, whole_round
from qmix_lightning.training.schedules import EpsilonSchedule
from qmix_lightning.types import EpisodeStats
from support import inprocess
from support.collecting import varying
from support.data_modules import make, next_batch

SCHEDULES = [{"every": 1}, {"every": 3}, {"unit": "env_steps", "every": 7}, {"every": 4, "updates": 2}]


def weights_after(update, policy, seed=0):
    """Stands for an optimiser step: other weights for every update."""
    g = torch.Generator().manual_seed(1000 * seed + update)
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(torch.randn(p.shape, generator=g))


def make_data(**settings):
    # Constant: a round ahead holds epsilon, where several rounds that follow each other would lower it.
    epsilon = EpsilonSchedule(0.3, 0.3, 0)
    return make(varying, num_envs=3, batch_size=4, capacity=30, **{"epsilon": epsilon, **settings})


def fields_of(batch):
    trajectories = batch.trajectories
    return [
        trajectories.obs,
        trajectories.actions,
        trajectories.filled,
        torch.tensor([batch.env_steps, batch.episodes]),
    ]


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(fields_of(left), fields_of(right), strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_round_is_collected_by_the_policy_from_before_the_update(schedule):
    ahead, behind = make_data(asynchronous=True, **schedule), make_data(**schedule)
    updates = schedule.get("updates", 1)
    for update in range(1, 10):
        # What collects the round that buys an update had seen every update but the last one.
        last_round = update - 1 - (update - 1) % updates
        weights_after(max(0, last_round - 1), behind.policy)
        weights_after(update - 1, ahead.policy)
        assert equal(next_batch(ahead), next_batch(behind))
        ahead.take_background_round()
    ahead.teardown("fit")


def test_nothing_is_under_way_between_updates():
    data = make_data(asynchronous=True, unit="env_steps", every=9)
    next_batch(data)
    assert data.counters.updates_due == 0
    data.take_background_round()
    assert data._background.result() is None
    assert data.counters.updates_due > 0
    data.teardown("fit")
    assert not [t for t in threading.enumerate() if t.name.startswith("collector")]


def test_no_round_is_begun_behind_the_budget():
    data = make_data(asynchronous=True, total_env_steps=60)
    while data.counters.env_steps < 60 or data.counters.updates_due:
        next_batch(data)
        if data.counters.env_steps < 60:
            data.take_background_round()
    assert data._background.result() is None


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_signal_does_not_cut_a_round(schedule, tmp_path):
    """Its rest would be played by another epsilon, and counted apart."""
    schedule = {**schedule, "epsilon": EpsilonSchedule(1.0, 0.0, 200)}
    whole, cut = make_data(asynchronous=True, **schedule), make_data(asynchronous=True, **schedule)
    for update in range(1, 8):
        for data in (whole, cut):
            weights_after(update - 1, data.policy)
        batches = [next_batch(data) for data in (whole, cut)]
        assert equal(*batches)
        whole.take_background_round()
        if update < 7:
            cut.take_background_round()
    cut.stop.signal_number = signal.SIGTERM
    cut.take_background_round()
    assert cut.counters == whole.counters
    with pytest.raises(RunInterrupted):
        next_batch(cut)
    cut.store = SegmentStore(tmp_path, 0)
    state = cut.state_dict()
    resumed = make_data(asynchronous=True, **schedule)
    resumed.store = SegmentStore(tmp_path, 0)
    for data in (whole, resumed):
        weights_after(7, data.policy)
    resumed.load_state_dict(state)
    for update in range(8, 12):
        assert equal(next_batch(whole), next_batch(resumed))
        for data in (whole, resumed):
            data.take_background_round()
            weights_after(update, data.policy)
    whole.teardown("fit")


def test_a_fault_keeps_what_was_collected_before_it():
    parts = iter([Collected(3, [], EpisodeStats([1.0], [3])), EnvironmentFault("broken")])

    def collect(steps):
        part = next(parts)
        if isinstance(part, Exception):
            raise part
        return part

    collected, fault = whole_round(collect, steps=10, episodes=None)
    assert (collected.env_steps, collected.interrupted, str(fault)) == (3, True, "broken")
    assert collected.stats.returns == [1.0]


def test_a_fault_ends_the_run_at_the_next_batch():
    data = make_data(asynchronous=True)
    next_batch(data)
    data.take_background_round()
    data.counters.updates_due = 0

    def broken(*args, **kwargs):
        raise EnvironmentFault("broken")

    data.collector.collect = broken
    data._begin_background_round(data.collector)
    before = data.counters.env_steps
    data.take_background_round()
    assert data.counters.env_steps == before
    with pytest.raises(EnvironmentFault, match="broken"):
        next_batch(data)
    data.teardown("fit")


def test_what_was_chosen_stays_when_a_run_goes_on_on_fewer_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = [*inprocess.TINY, "rollout.collector=process", f"run_dir={tmp_path}/run"]
    summary = tmp_path / "run" / "summary.json"
    for cores, steps, said in ((8, 30, "the collector has a process of its own"), (1, 40, "as the run began")):
        monkeypatch.setattr(build, "available_cores", lambda cores=cores: cores)
        ended = inprocess.succeed([*run, f"total_env_steps={steps}", *(["ckpt_path=last"] if steps > 30 else [])])
        assert f"collecting: while an update runs, by the policy from before it ({said})" in ended.out
        assert json.loads(summary.read_text())["asynchronous"] is True


def test_what_was_typed_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "available_cores", lambda: 8)
    typed = ["rollout.asynchronous=false", "total_env_steps=20"]
    ended = inprocess.succeed([*inprocess.TINY, f"run_dir={tmp_path}/run", *typed])
    assert "collecting: between updates (rollout.asynchronous)" in ended.out
