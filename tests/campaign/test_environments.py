"""Environments that misbehave: nothing wrong is stored, every fault is counted or refused, nothing is left running."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign import simulators

from qmix_lightning.errors import EnvironmentFault
from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.rollout.collector import Collector
from qmix_lightning.vector.factory import Backend, make_vector_env
from qmix_lightning.worker import fault_tolerance
from qmix_lightning.worker.fault_tolerance import FaultLimit
from support import commands, runs
from support.collecting import make_policy
from support.processes import running

pytestmark = [
    pytest.mark.campaign,
    # What a simulator's number becomes in float32 is the point here; and forking is one of the things that go wrong.
    pytest.mark.filterwarnings(
        "ignore:overflow encountered in cast:RuntimeWarning", "ignore:.*fork.*:DeprecationWarning"
    ),
]

INJECTED = 1000
"""In all, at full size: over kinds and backends."""

BACKENDS = ("sync", "process")
CASES = [
    (kind, backend)
    for kind in simulators.KINDS
    for backend in BACKENDS
    if backend == "process" or kind not in simulators.WORKER_ENDS  # they end the process that they are in
]
SLOW = ("hangs", "holds_the_lock")
TIMEOUT_S = 4.0


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fault_tolerance, "_BACK_OFF_S", (0.0, 0.0))
    monkeypatch.chdir(Path.cwd())  # and back, where a simulator has left
    with np.errstate():
        yield


class Collecting:
    """A collector of one kind of simulator, and the replay that it fills."""

    def __init__(self, kind: str, backend: str, folder: Path, seed: int, **settings: Any) -> None:
        timeout = TIMEOUT_S if kind in SLOW else 60.0
        place = Backend(backend, 2, timeout, FaultLimit(10**6, 600.0))
        settings = {"kind": kind, "folder": str(folder), **settings}
        # One to a worker where it ends the worker: two at the same time would be one fault.
        envs = 2 if kind in simulators.WORKER_ENDS else 4
        self.env: Any = make_vector_env(
            simulators.Accountable, settings, num_envs=envs, name="accountable", backend=place
        )
        self.replay = EpisodeReplay(self.env.spec, 4096)
        self.collector = Collector(self.env, make_policy(self.env.spec), seed=seed, rank=0)

    def collect(self, steps: int) -> None:
        self.replay.extend(self.collector.collect(0.5, max_steps=steps).episodes)

    def wrong(self) -> list[str]:
        """What is wrong in the replay."""
        stored = (self.replay.get(i) for i in range(self.replay.first_id, self.replay.next_id))
        return [why for episode in stored if (why := simulators.proof(episode)) is not None]


def injected(folder: Path) -> int:
    file = folder / "injected"
    return file.stat().st_size if file.exists() else 0


@pytest.mark.parametrize(("kind", "backend"), CASES)
def test_nothing_wrong_is_stored_and_everything_is_accounted_for(
    campaign: Any, tmp_path: Path, kind: str, backend: str
) -> None:
    part = f"environments, {backend}"
    wanted = max(2, -(-campaign.number(INJECTED) // len(CASES)))
    seed = campaign.rng(f"{kind}:{backend}").randrange(2**31)
    if kind == "reused_arrays":
        wanted = 0
    refused = kind in simulators.REFUSED
    stored = 0
    for attempt in range(wanted if refused else 1):
        collecting = Collecting(kind, backend, tmp_path, seed + attempt, times=attempt + 1 if refused else wanted)
        try:
            deadline = time.monotonic() + 300
            rounds = 0
            with pytest.raises(EnvironmentFault) if refused else nullcontext() as ended:
                # On for a while after the last, so that what it left behind would show.
                while injected(tmp_path) < (10**9 if refused else wanted) or rounds < 60:
                    collecting.collect(32)
                    rounds += injected(tmp_path) >= wanted
                    assert time.monotonic() < deadline, f"{injected(tmp_path)} of {wanted} after 300 s"
            if refused:
                message = str(ended.value)
                assert "\n" not in message
                assert "tests/campaign/simulators.py:" in message
                assert "qmix-envs check" in message
                assert "HYDRA_FULL_ERROR=1" in message
            assert collecting.wrong() == []
            stored += len(collecting.replay)
            faults = dict(collecting.env.faults)
        finally:
            collecting.env.close()
    done = injected(tmp_path)
    assert done == wanted
    assert stored > 0 or refused
    if kind in (*simulators.HARMLESS, "reused_arrays") or refused:
        assert sum(faults.values()) == 0
    else:
        assert sum(faults.values()) == done, faults
    what = "refused" if refused else "taken without a fault" if not sum(faults.values()) else "counted"
    campaign.count(part, "injected", done)
    campaign.count(part, what, done)
    campaign.count(part, "episodes proved", stored)
    campaign.count(part, "bad transitions", 0)
    campaign.count(part, "kinds")


# What is left of a killed trainer ----------------------------------------------------------------------------------

BAD_WORKERS = {
    "hangs": ["rollout=process"],
    "holds_the_lock": ["rollout=process"],
    "starts_one_that_is_deaf": ["rollout=process"],
    "starts_a_daemon": ["rollout=process"],
    "forks_away": ["rollout=process"],
    "starts_a_game": ["rollout=sync"],
    "starts_a_session": ["rollout=sync", "rollout.collector=process"],
}


@pytest.mark.parametrize("kind", BAD_WORKERS)
def test_nothing_is_left_of_a_killed_trainer(campaign: Any, tmp_path: Path, kind: str) -> None:
    mark = uuid.uuid4().hex
    base = [a for a in runs.BASE if not a.startswith("env.id")]
    process = commands.start_interpreter(
        [
            *base, "env.id=campaign.simulators:Accountable", f"env.kwargs.kind={kind}", f"env.kwargs.folder={tmp_path}",
            "env.kwargs.every=60", "total_env_steps=1000000", "checkpoint_interval=100000", "eval_interval=100000",
            f"run_dir={tmp_path}/run", *BAD_WORKERS[kind], *runs.counting(tmp_path / "count"),
        ],
        {"CAMPAIGN_MARK": mark},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        hangs = kind in SLOW
        while process.poll() is None and (injected(tmp_path) < 1 if hangs else runs.lines(tmp_path / "count") < 5):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        assert process.poll() is None
        there = marked(mark)
        assert process.pid in there
        assert len(there) >= 2, "its workers, or what they have started"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    deadline = time.monotonic() + 30
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    campaign.count("trainer killed under a bad simulator", "kinds")
    campaign.count("trainer killed under a bad simulator", "processes there", len(there))
    campaign.count("trainer killed under a bad simulator", "processes left", len(left))
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def marked(mark: str) -> list[int]:
    """Processes that were started by the run, wherever they have gone; this one is none of them."""
    found = []
    for process in running():
        with suppress(OSError):  # it has ended since
            variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if f"CAMPAIGN_MARK={mark}".encode() in variables and process.pid != os.getpid():
                found.append(process.pid)
    return found


# Flat over time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["none", "raises"])
def test_memory_descriptors_and_shared_memory_stay_flat(
    campaign: Any, request: pytest.FixtureRequest, tmp_path: Path, backend: str, kind: str
) -> None:
    """Half of the time each for a sound simulator and for one that is made anew all the time."""
    logging.disable(logging.WARNING)  # pytest would keep every line
    request.addfinalizer(lambda: logging.disable(logging.NOTSET))
    seconds = max(8.0, 300.0 * campaign.size)
    collecting = Collecting(kind, backend, tmp_path, seed=campaign.rng(f"flat:{backend}").randrange(2**31))
    try:
        measured: list[dict[str, int]] = []
        begun = time.monotonic()
        while (now := time.monotonic() - begun) < seconds:
            collecting.collect(256)
            # The first third fills caches and the replay, which then stays as it is.
            if now > seconds * (1 + len(measured) / 4) / 3 and len(measured) < 9:
                measured.append(usage(getattr(collecting.env, "worker_pids", [])))
    finally:
        collecting.env.close()
    assert len(measured) >= 3
    first, last = measured[0], measured[-1]
    part = f"flat over {seconds:g} s, {backend}, {kind}"
    for what in ("kB", "descriptors", "bytes in /dev/shm", "processes"):
        campaign.count(part, f"{what} first", first[what])
        campaign.count(part, f"{what} last", last[what])
    assert last["descriptors"] == first["descriptors"]
    assert last["bytes in /dev/shm"] == first["bytes in /dev/shm"]
    assert last["processes"] == first["processes"]
    assert last["kB"] < first["kB"] * 1.03 + 4096


def usage(workers: list[int]) -> dict[str, int]:
    """Memory, descriptors and shared memory of this process and its workers."""
    gc.collect()
    pids = [os.getpid(), *workers]
    shared = [f for f in Path("/dev/shm").iterdir() if f.exists()]
    return {
        "kB": sum(int(line.split()[1]) for pid in pids for line in _status(pid) if line.startswith("VmRSS")),
        "descriptors": sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
        "bytes in /dev/shm": sum(f.stat().st_size for f in shared if f.owner() == Path.home().owner()),
        "processes": len(pids),
    }


def _status(pid: int) -> Iterator[str]:
    yield from Path(f"/proc/{pid}/status").read_text().splitlines()
