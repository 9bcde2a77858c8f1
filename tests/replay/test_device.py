"""Observations and states on a device: the same episodes, batches and segments as in the host's memory, bit for bit.

The CPU is a device like any other here; what must not ask the device anything is drawn on one without values.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.replay.device import ReplayDevice, choose_replay_device
from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.replay.on_policy import RoundStore
from qmix_lightning.replay.prioritized import PrioritizedReplay
from qmix_lightning.types import TrajectoryBatch
from support import inprocess
from support.cases import every_value
from support.episodes import battle, episode, spec, whole
from support.replays import content_hash

CPU, META, GPU = torch.device("cpu"), torch.device("meta"), torch.device("cuda", 0)
PRIORITIES = {"alpha": 0.7, "beta": 0.4, "beta_anneal_steps": None}


def pair(kind=EpisodeReplay, capacity=5, s=None, dtype="float32"):
    s, more = s or spec(), PRIORITIES if kind is PrioritizedReplay else {}
    return [kind(s, capacity, dtype=dtype, device=device, **more) for device in (None, CPU)]


def assert_equal_batches(a: TrajectoryBatch, b: TrajectoryBatch) -> None:
    for f in fields(TrajectoryBatch):
        mine, other = getattr(a, f.name), getattr(b, f.name)
        if isinstance(mine, torch.Tensor):
            assert mine.dtype == other.dtype
            assert torch.equal(mine, other), f.name


def joined(i: int, length: int):
    """An episode whose state is made of its observations."""
    one = episode(i, length)
    one.obs = one.obs.where(one.agent_mask[..., None], 0.0)
    one.state = one.obs.flatten(1)
    return one


@pytest.mark.parametrize(
    ("dtype", "kind"), every_value(["float32", "float16", "bfloat16"], [EpisodeReplay, PrioritizedReplay, RoundStore])
)
def test_equals_the_hosts_after_many_wraps(kind, dtype: str):
    host, device = pair(kind, dtype=dtype)
    g = torch.Generator().manual_seed(0)
    for i, length in enumerate((1 + torch.randint(60, (60,), generator=g)).tolist()):
        for store in (host, device):
            store.add(episode(i, length))
        if i % 5 == 4:
            assert content_hash(host) == content_hash(device)
            if kind is RoundStore:
                assert_equal_batches(*(store.minibatch(5, 0, seed=1, rank=0) for store in (host, device)))
            else:
                assert_equal_batches(*(store.sample(4, key=i) for store in (host, device)))
        if kind is PrioritizedReplay:
            for store in (host, device):
                store.update_priorities(np.array([i]), np.array([0.1 * (i % 7)]))
    assert host.nbytes() == device.nbytes()


@pytest.mark.parametrize(
    ("lengths", "from_obs"), every_value([[3, 5, 2], [1], [40, 1, 1, 7]], [[True], [False], [True, False]])
)
def test_states_from_observations_and_segments_are_the_same(lengths: list[int], from_obs: list[bool]):
    s = spec()
    s = replace(s, state_dim=sum(s.obs_dims))
    host, device = pair(s=s, capacity=8)
    for i, length in enumerate(lengths):
        made = joined(i, length)
        if not from_obs[i % len(from_obs)]:
            made.state = made.state + 1.0
        host.add(made)
        device.add(made)
    assert_equal_batches(host.sample(len(lengths), key=3), device.sample(len(lengths), key=3))
    mine, other = host.export(0, len(lengths)), device.export(0, len(lengths))
    assert mine.keys() == other.keys()
    for name, values in mine.items():
        assert torch.equal(values, other[name]), name
    for source in (mine, other):  # and each takes back what the other wrote
        for again in pair(s=s, capacity=8):
            again.restore(0, source, 0)
            assert content_hash(again) == content_hash(host)


def test_drawing_asks_the_device_nothing():
    """Every row's place is known to the host: the device has no values here, and any question raises."""
    s = battle(3, 4, 7, 5, 20)
    store = EpisodeReplay(s, 4, device=META)
    for i in range(9):
        store.add(episode_of(s, i, 5 + i))
    batch = store.sample(3, key=1)
    assert batch.obs.device == batch.state.device == META
    assert batch.obs.shape[2:] == (3, 4)
    assert batch.obs.dtype == torch.float32
    assert {batch.agent_mask.device, batch.filled.device, batch.actions.device} == {CPU}
    with pytest.raises((RuntimeError, NotImplementedError)):
        store.export(store.first_id, store.next_id)


def episode_of(s, seed: int, length: int):
    torch.manual_seed(seed)
    return whole(s, length)


def test_memory_is_taken_when_the_run_begins():
    s, capacity = battle(4, 30, 50, 9, 40), 16
    store = EpisodeReplay(s, capacity, device=CPU)
    held = store._obs._held, store._state._held
    for i in range(3 * capacity):
        store.add(episode_of(s, i, 40))
    assert (store._obs._held.data_ptr(), store._state._held.data_ptr()) == tuple(t.data_ptr() for t in held)
    unknown = EpisodeReplay(replace(s, episode_limit=None), 2, device=CPU)
    for i in range(2):
        unknown.add(episode_of(s, i, 900))
    assert torch.equal(unknown.get(1).obs, episode_of(s, 1, 900).obs)


# Where it goes --------------------------------------------------------------------------------------------------------


def place(setting="auto", **changed):
    given = {"accelerator": GPU, "in_file": False, "need": 10 * 10**9, "free": 40 * 10**9, "growing": False}
    return choose_replay_device(setting, **{**given, **changed})


def test_auto_takes_half_of_what_is_free():
    chosen = place()
    assert chosen.device == GPU
    assert chosen.line == "replay on cuda:0: at most 10.0 GB of observations and states, 40.0 GB free there"
    assert place(need=20 * 10**9).device == GPU
    small = place(need=20 * 10**9 + 1)
    assert small.device is None
    assert small.line == (
        "replay in host memory, copied to cuda:0 from page-locked memory meanwhile (20.0 GB of observations and "
        "states, 40.0 GB free on cuda:0, of which auto takes half at most)"
    )
    assert place(need=11 * 10**9, growing=True).device is None


def test_it_stays_with_the_host_where_it_must():
    assert place(accelerator=CPU) == place("cpu", accelerator=CPU) == ReplayDevice(None, None)
    assert place(in_file=True).device is None
    assert place("cpu").device is None
    assert str(place("cpu").line).endswith("(replay.device=cpu)")


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigurationError, match="exclude each other: choose one"):
        place("device", in_file=True)
    with pytest.raises(
        ConfigurationError, match=r"does not fit: 50.0 GB of observations and states, 40.0 GB free on cuda"
    ):
        place("device", need=50 * 10**9)
    assert place("device", need=39 * 10**9).device == GPU


def test_a_run_is_the_same_and_resumes_from_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    rows = []
    for where, then in (("cpu", "device"), ("device", "cpu")):
        typed = [*inprocess.TINY, "total_env_steps=20", "checkpoint_interval=20"]
        first = inprocess.succeed([*typed, f"run_dir={where}", f"replay.device={where}"])
        assert ("replay on cpu: at most" in first.out) == (where == "device")
        inprocess.succeed(["total_env_steps=40", f"run_dir={where}", "ckpt_path=last", f"replay.device={then}"])
        rows.append(Path(where, "metrics.csv").read_text())
    assert rows[0] == rows[1]
