"""The data module without a Trainer: made, asked for batches, saved and restored."""

import itertools

import pytest
import torch

from qmix_lightning.checkpoint.segments import SegmentStore
from qmix_lightning.errors import RunInterrupted
from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.runtime.signals import StopFlag
from qmix_lightning.training import datamodule
from qmix_lightning.training.datamodule import ReplayDataModule
from qmix_lightning.training.loaders import PLACEHOLDER
from qmix_lightning.training.schedules import EpsilonSchedule, UpdateSchedule
from qmix_lightning.types import TrainBatch
from support.collecting import make_policy, two_step


def make(env=two_step, num_envs=1, *, every=1, unit="episodes", updates=1, batch_size=4, capacity=50, **settings):
    made = env(num_envs)
    policy = make_policy(made.spec)
    data = ReplayDataModule(
        **{
            "env": made,
            "make_eval_env": lambda episodes: env(min(3, episodes)),
            "policy": policy,
            "replay": EpisodeReplay(made.spec, capacity),
            "batch_size": batch_size,
            "schedule": UpdateSchedule(every=every, unit=unit, updates=updates),
            "epsilon": EpsilonSchedule(1.0, 0.0, 200),
            "seed": 5,
            "total_env_steps": 10**9,
            "eval_interval": 10**9,
            "eval_episodes": 4,
            "stop": StopFlag(),
            "on_resume": "replay",
            **settings,
        }
    )
    data.policy = policy
    return data


def be_one_of(monkeypatch: pytest.MonkeyPatch, ranks: int, number: int = 0) -> None:
    """Be one rank of several, of which the others do exactly what this one does."""
    monkeypatch.setattr(datamodule, "world_size", lambda: ranks)
    monkeypatch.setattr(datamodule, "rank", lambda: number)
    monkeypatch.setattr(datamodule, "sum_numbers", lambda numbers, device: [ranks * x for x in numbers])


def next_batch(data) -> TrainBatch:
    batch = data.on_before_batch_transfer(PLACEHOLDER, 0)
    assert isinstance(batch, TrainBatch)
    return batch


def fingerprint(batch):
    t = batch.trajectories
    return (batch.env_steps, batch.episodes, batch.epsilon, t.obs.tolist(), t.actions.tolist(), t.filled.tolist())


def resumed(data, tmp_path, settings, make=make):
    """Through the checkpoint's own containers into a new data module."""
    if data.store is None:
        data.store = SegmentStore(tmp_path, 0)
    torch.save(data.state_dict(), tmp_path / "data.pt")
    other = make(**settings)
    other.store = SegmentStore(tmp_path, 0)
    other.load_state_dict(torch.load(tmp_path / "data.pt", weights_only=True))
    return other


def stopped_in_step(data, at, count, seen, resume):
    """``seen`` of each of ``count`` batches if a signal comes in joint step ``at``, and the data module after it.

    ``resume`` makes another one of what the signal has ended.
    """
    step, taken, found = data._env.step, itertools.count(1), []

    def stepping(actions, active):
        if next(taken) == at:
            data.stop.signal_number = 15
        return step(actions, active)

    data._env.step, first = stepping, data
    while len(found) < count:
        try:
            found.append(seen(next_batch(data)))
        except RunInterrupted:
            assert data is first
            data = resume(data)
    return found, data
