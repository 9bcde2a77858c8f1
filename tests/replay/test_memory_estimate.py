"""How much memory a replay takes, and whether the machine has room for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.replay import memory_estimate as replay_size
from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.replay.memory_estimate import available_memory, predict_size
from qmix_lightning.replay.prioritized import PrioritizedReplay
from support import inprocess
from support.cases import every_value
from support.episodes import battle, spec, whole


def size_of(s, **changed):
    given = {"capacity": 24, "dtype": "float32", "prioritized": False, "total_env_steps": 10**6, "folder": None}
    return predict_size(s, **{**given, "room": 10**12, **changed})


@pytest.mark.parametrize(("dtype", "prioritized"), every_value(["float32", "float16", "bfloat16"], [False, True]))
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


def test_episodes_of_unknown_length_are_not_answered_with_fewer_of_them():
    """The budget is what may fill the memory: no smaller capacity would be taken either."""
    settings = {"dtype": "float16", "prioritized": False, "total_env_steps": 10**7, "room": 10**8}
    unlimited = replace(spec(), episode_limit=None)
    for capacity in (5000, 1):
        size = predict_size(unlimited, capacity=capacity, folder=Path("/data"), **settings)
        with pytest.raises(
            ConfigurationError, match=r"has free: set env.episode_limit to the most steps of an episode$"
        ):
            size.check()


def test_the_command_says_the_size_or_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    inprocess.refused([*inprocess.TINY, "run_dir=run", "replay.capacity=1000000000000"], "error: the replay may need ")
    assert list(tmp_path.iterdir()) == []
    in_files = ["replay.storage=memmap", "replay.memmap_dir=big", "total_env_steps=20"]
    done = inprocess.succeed([*inprocess.TINY, "run_dir=run", *in_files])
    (line,) = [line for line in done.out.splitlines() if line.startswith("replay: ")]
    assert line.startswith("replay: 64 episodes of up to 2 steps, in float32: at most ")
    assert line.endswith("free on disk at big")
    assert list((tmp_path / "big").iterdir()) == []  # nothing is left


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
