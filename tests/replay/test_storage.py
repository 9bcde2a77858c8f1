"""Where the replay's rows lie, how much of it there is, and whether the machine has room for it."""

from __future__ import annotations

import errno
import mmap
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmix_lightning.errors import ConfigurationError, RunError
from qmix_lightning.replay import memory_estimate as replay_size
from qmix_lightning.replay import storage as replay_storage
from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.replay.memory_estimate import available_memory, predict_size
from qmix_lightning.replay.prioritized import PrioritizedReplay
from qmix_lightning.replay.storage import BLANK, RowQueue
from support import inprocess
from support.episodes import battle, episode, spec, whole

# Rows -----------------------------------------------------------------------------------------------------------------


def queue(**settings) -> RowQueue:
    return RowQueue(3, np.dtype(np.int16), **{"expected_rows": 1, **settings})


def play(rows: RowQueue, moves: list[tuple[int, int]]) -> None:
    """Append and release as told, and hold the queue against a list."""
    model, first = np.zeros((0, 3), np.int16), 0
    most = 0
    for added, released in moves:
        new = ((np.arange(3 * added) + 7 * len(model)) % 30011).astype(np.int16).reshape(-1, 3)
        assert rows.append(new) == len(model)
        model = np.concatenate([model, new])
        first = min(first + released, len(model))
        most = max(most, len(model) - rows.first)
        rows.release(first)
        held = np.arange(first, len(model))
        assert np.array_equal(rows.take(held), model[first:])
        shuffled = np.random.default_rng(0).permutation(held).reshape(1, -1)
        assert np.array_equal(rows.take(shuffled), model[shuffled])
        assert rows.nbytes < (most + 2 * rows.chunk_rows) * rows.row_bytes
    assert (rows.first, rows.end) == (first, len(model))
    assert np.array_equal(rows.take(np.array([BLANK])), np.zeros((1, 3)) if rows._blank is None else [rows._blank])


MOVES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 70)), max_size=40)


@settings(max_examples=80, deadline=None)
@given(moves=MOVES)
def test_a_queue_of_rows_equals_a_list(moves):
    play(queue(), moves)


@settings(max_examples=15, deadline=None)
@given(moves=MOVES)
def test_a_queue_in_a_file_equals_a_list(moves, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    play(queue(folder=folder, blank=np.array([7, 8, 9])), moves)
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems copy")
def test_memory_grows_without_a_copy():
    rows = queue()
    rows.append(np.ones((1000, 3), np.int16))
    first, size = rows._memory._map, len(rows._memory)
    rows.append(np.ones((500_000, 3), np.int16))
    assert rows._memory._map is first
    assert size < 10**5 < len(rows._memory) < 1.2 * rows.nbytes


def test_memory_that_cannot_be_extended_is_copied(monkeypatch: pytest.MonkeyPatch):
    class Stiff(mmap.mmap):
        def resize(self, size: int) -> None:
            raise SystemError("mmap: resizing not available--no mremap()")

    monkeypatch.setattr(replay_storage.mmap, "mmap", Stiff)
    rows = queue()
    play(rows, [(20_000, 0), (30_000, 100), (20_000, 5_000)])
    assert isinstance(rows._memory._map, Stiff)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=re.escape(f"for which the disk at {tmp_path} has no room: [Errno 28] No space")):
        queue(folder=tmp_path).append(np.zeros((1, 3), np.int16))


def test_a_file_is_given_back_to_the_disk(tmp_path: Path):
    replay = EpisodeReplay(spec(), 3, folder=tmp_path)
    replay.add(episode(0, 5))
    files = [q._memory._file for q in (replay._steps, replay._obs, replay._state)]
    assert all(os.fstat(file).st_nlink == 0 for file in files)
    del replay
    for file in files:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)


# The predicted size ---------------------------------------------------------------------------------------------------


def size_of(s, **changed):
    given = {"capacity": 24, "dtype": "float32", "prioritized": False, "total_env_steps": 10**6, "folder": None}
    return predict_size(s, **{**given, "room": 10**12, **changed})


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("prioritized", [False, True])
def test_the_prediction_is_what_a_full_store_takes(dtype, prioritized):
    s, capacity = battle(4, 30, 50, 9, 40), 64
    kind = {"alpha": 1.0, "beta": 1.0, "beta_anneal_steps": None} if prioritized else {}
    make = PrioritizedReplay if prioritized else EpisodeReplay
    predicted = size_of(s, capacity=capacity, dtype=dtype, prioritized=prioritized)
    for length, expected in ((40, predicted.most), (20, predicted.half)):
        store = make(s, capacity, dtype=dtype, **kind)
        for _ in range(2 * capacity):
            store.add(whole(s, length))
        assert expected <= store.nbytes() <= 1.03 * expected


def test_states_that_are_the_observations_are_not_counted():
    s = replace(battle(3, 4, 12, 5, 10), state_is_joined_obs=True)
    store = EpisodeReplay(s, 24)
    for _ in range(24):
        one = whole(s, 10)
        one.state = one.obs.flatten(1)
        store.add(one)
    assert size_of(s).most <= store.nbytes() <= 1.1 * size_of(s).most
    assert size_of(replace(s, state_is_joined_obs=False)).most > 1.7 * size_of(s).most


def test_an_unknown_limit_is_bounded_by_the_budget():
    s = battle(3, 4, 5, 5, None)
    size = size_of(s, capacity=10, total_env_steps=1000)
    store = EpisodeReplay(s, 10)
    store.add(whole(s, 991))
    for _ in range(9):
        store.add(whole(s, 1))
    # ten rows more than steps
    assert size.most == 1010 * (3 * 4 * 4 + 5 * 4 + 4 + 3 + 3) + 10 * 56 <= store.nbytes()
    assert str(size).startswith("replay: 10 episodes of unknown length within 1,000 steps, in float32: at most ")


def test_the_line_that_is_printed():
    s = battle(8, 128, 216, 14, 150)
    size = size_of(s, capacity=5000, room=10_000_000_000)
    assert str(size) == (
        "replay: 5,000 episodes of up to 150 steps, in float32: at most 3.8 GB, 1.9 GB if they end half-way; "
        "10.0 GB free"
    )
    size.check()
    on_disk = size_of(s, folder=Path("/data"), room=500_000_000, dtype="float16")
    assert str(on_disk).endswith("; 500 MB free on disk at /data")
    two = size_of(s, capacity=5000, machines=2)
    assert two.most == size.most // 2


def test_a_replay_that_does_not_fit_is_refused():
    s = battle(8, 128, 216, 14, 150)
    with pytest.raises(ConfigurationError) as refused:
        size_of(s, capacity=5000, room=1_000_000_000).check()
    assert str(refused.value) == (
        "the replay may need 3.8 GB (5,000 episodes of up to 150 steps, in float32; 1.9 GB if they end half-way), more "
        "than the 1.0 GB that this machine has free: lower replay.capacity (1,327 fit) or set replay.dtype=float16 or "
        "set replay.storage=memmap"
    )
    with pytest.raises(ConfigurationError, match=r"that the disk at /data has free: lower replay.capacity \(.*\)$"):
        size_of(s, capacity=5000, room=1_000_000_000, dtype="bfloat16", folder=Path("/data")).check()
    size_of(s, capacity=1327, room=1_000_000_000).check()


def test_the_command_says_the_size_or_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    refused = inprocess.command([*inprocess.TINY, "run_dir=run", "replay.capacity=1000000000000"])
    assert refused.status == 2
    assert refused.err.startswith("error: the replay may need ")
    assert len(refused.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    done = inprocess.succeed([*inprocess.TINY, "run_dir=run", "replay.storage=memmap", "replay.memmap_dir=big"])
    (line,) = [line for line in done.out.splitlines() if line.startswith("replay: ")]
    assert line.startswith("replay: 64 episodes of up to 2 steps, in float32: at most ")
    assert line.endswith("free on disk at big")
    assert list((tmp_path / "big").iterdir()) == []  # nothing is left


# The machine's memory -------------------------------------------------------------------------------------------------


def system(tmp_path: Path, groups: str, files: dict[str, str]) -> dict[str, Path]:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    texts = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n", "proc/self/cgroup": groups}
    for name, text in {**texts, **{f"cgroup/{name}": text for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return {"proc": proc, "cgroup": cgroup}


LIMITED = {"memory.max": "3000000\n", "memory.current": "2000000\n", "memory.stat": "anon 7\ninactive_file 500000\n"}
FREE = {"memory.max": "max\n", "memory.current": "1\n"}
OLD = {"memory.limit_in_bytes": "3000000", "memory.usage_in_bytes": "2500000"}
OLD["memory.stat"] = "total_inactive_file 100"
UNLIMITED = {"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "5"}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, 5_120_000),
        ("0::/\n", {}, 5_120_000),
        ("0::/\n", FREE, 5_120_000),
        ("0::/\n", LIMITED, 1_500_000),
        ("0::/job/step\n", {f"job/step/{k}": v for k, v in FREE.items()} | {f"job/{k}": v for k, v in LIMITED.items()},
         1_500_000),
        ("0::/not/here\n", LIMITED, 1_500_000),  # a container that sees itself as the root
        ("4:cpu,memory:/job\n0::/\n", {f"memory/job/{k}": v for k, v in OLD.items()}, 500_100),
        ("4:memory:/job\n", {f"memory/{k}": v for k, v in UNLIMITED.items()}, 5_120_000),
    ],
)  # fmt: skip
def test_memory_is_what_the_machine_and_the_control_groups_leave(tmp_path, groups, files, expected):
    assert available_memory(**system(tmp_path, groups, files)) == expected


def test_memory_of_a_system_that_does_not_say(tmp_path, monkeypatch: pytest.MonkeyPatch):
    assert available_memory(tmp_path, tmp_path) is None
    monkeypatch.setattr(replay_size, "available_memory", lambda: None)
    size = predict_size(
        spec(), capacity=10**15, dtype="float32", prioritized=False, total_env_steps=1, folder=None
    )  # fmt: skip
    size.check()
    assert str(size).endswith("if they end half-way")


def test_memory_of_this_machine_is_plausible():
    free = available_memory()
    if free is not None:
        assert 10**7 < free < 10**14
