"""Real runs from the command line, for tests that kill, resume and compare them."""

from __future__ import annotations

import contextlib
import csv
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pytorch_lightning import Callback

from qmix_lightning.checkpoint.files import read_checkpoint
from qmix_lightning.checkpoint.segments import SegmentStore
from qmix_lightning.config.run_config import ReplayConfig
from qmix_lightning.replay.factory import make_store
from qmix_lightning.types import EnvSpec
from support.commands import Command
from support.processes import running, wait_until
from support.replays import content_hash

BASE = [
    "preset=pymarl",
    "env=pettingzoo",
    "env.id=support.fakes:VaryingLength",
    "optimizer=adam",
    "rollout.num_envs=2",
    "replay.batch_size=8",
    "replay.capacity=64",
    "agent.hidden_dim=16",
    "mixer.embed_dim=8",
    "algorithm.target_update_every=20",
    "exploration.epsilon_anneal_steps=1000",
    "eval_episodes=5",
    "eval_interval=300",
    "checkpoint_interval=60",
    "trainer.log_every_n_steps=10",
    "trainer.accelerator=cpu",
    "logger=none",
]
TWO_RANKS = ["trainer.devices=2", "trainer.strategy=ddp"]


class CountUpdates(Callback):
    """Appends a line for every update to a file, so that work done is counted from outside the run."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.is_global_zero:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, b"%d\n" % trainer.datamodule.counters.updates)
            os.close(descriptor)


class AfterUpdates(Callback):
    """Calls ``action`` once, after so many updates of a run in this process."""

    action: ClassVar[Callable[[], object]]

    def __init__(self, updates: int) -> None:
        self.left = updates

    def on_train_batch_end(self, *args: Any) -> None:
        self.left -= 1
        if self.left == 0:
            type(self).action()


def after_updates(updates: int, action: Callable[[], object]) -> list[str]:
    """Overrides of a run in this process that call ``action`` after so many of its updates."""
    AfterUpdates.action = staticmethod(action)
    return [f"callbacks.after={{_target_:support.runs.AfterUpdates,updates:{updates}}}"]


def counting(file: Path) -> list[str]:
    """Overrides that count updates into ``file``."""
    return [f"callbacks.count={{_target_:support.runs.CountUpdates,path:{file}}}"]


def start(arguments: list[str], command: str = "qmix_lightning.commands.train") -> Command:
    """Start a command in a process group of its own."""
    return Command(command, arguments)


def finish(process: Command, timeout: float = 240) -> str:
    """Wait for the end; returns what was printed."""
    return process.communicate(timeout)[0]


def run(arguments: list[str], command: str = "qmix_lightning.commands.train", status: int = 0) -> str:
    """A whole command; returns what it printed, with which it fails if it ends with another status."""
    process = start(arguments, command)
    output = finish(process)
    assert process.returncode == status, f"status {process.returncode}:\n{output}"
    return output


def run_two_ranks(arguments: list[str], command: str) -> None:
    """A whole command of two ranks, both started here: those that Lightning starts import everything again."""
    ranks = []
    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        patch.setenv("MASTER_PORT", str(free.getsockname()[1]))
        for rank in ("0", "1"):
            patch.setenv("LOCAL_RANK", rank)
            ranks.append(start(arguments, command))
    outputs = [finish(process) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs


def group_members(group: int) -> list[int]:
    """Processes of a process group that still run."""
    return [process.pid for process in running() if process.group == group]


def lines(file: Path) -> int:
    return len(file.read_bytes().splitlines()) if file.exists() else 0


def begun(arguments: list[str], count: Path, updates: int) -> Command:
    """A training that has counted so many updates into ``count``, or has ended."""
    process = start([*arguments, *counting(count)])
    wait_for_updates(process, count, updates)
    return process


def wait_for_updates(process: Command, count: Path, updates: int) -> None:
    wait_until(lambda: lines(count) >= updates or process.poll() is not None, f"no {updates} updates", 240, every=0.002)


def kill_once(process: Command, run_dir: Path, count: Path, rng: random.Random, in_write: bool) -> bool:
    """SIGKILL one of the run's processes after some progress; true if it was killed before it ended."""
    begun = lines(count)
    target = begun + rng.randint(1, 40)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if lines(count) >= target:
            if not in_write:
                time.sleep(rng.random() * 0.05)
                break
            if any((run_dir / "checkpoints").rglob("*.writing")):
                break
            continue
        time.sleep(0.002)
    members = sorted(group_members(process.pid))
    victim = rng.choice(members) if members else process.pid
    if process.poll() is not None:
        return False
    with contextlib.suppress(ProcessLookupError):  # it may just have ended
        os.kill(victim, signal.SIGKILL)
    process.wait(timeout=60)
    wait_until(lambda: not group_members(process.pid), "processes left running", 30)
    return process.returncode != 0


def replay_hashes(checkpoint: Path) -> list[str]:
    """The content hash of every rank's replay."""
    return [content_hash(replay) for replay in replays(checkpoint)]


def replays(checkpoint: Path) -> list[Any]:
    """Every rank's replay, loaded and checked as a run that goes on does."""
    payload = read_checkpoint(checkpoint)
    spec = EnvSpec.from_dict(payload["spec"])
    ranks = payload["ReplayDataModule"]["ranks"]
    config = ReplayConfig(**payload["config"]["replay"])
    loaded = []
    for rank, state in enumerate(ranks):
        replay = make_store(config, spec, len(ranks), checkpoint.parent.parent)
        SegmentStore(checkpoint.parent, rank).load(replay, state["replay"])
        loaded.append(replay)
    return loaded


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of nested containers by its path."""
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}/{key}").items()}
    if isinstance(tree, (list, tuple)):
        return {k: v for i, value in enumerate(tree) for k, v in flat(value, f"{prefix}/{i}").items()}
    return {prefix: tree}


def assert_same_run(left: Path, right: Path) -> None:
    """Parameters, targets, optimiser, counters, replay and episodes in flight are equal bit for bit."""
    a, b = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (left, right))
    for part in ("state_dict", "optimizer_states", "loops"):
        x, y = flat(a[part]), flat(b[part])
        assert x.keys() == y.keys(), part
        for key in x:
            same = torch.equal(x[key], y[key]) if isinstance(x[key], torch.Tensor) else x[key] == y[key]
            assert same, f"{part}{key} differs"
    assert a["ReplayDataModule"]["counters"] == b["ReplayDataModule"]["counters"]
    for one, other in zip(a["ReplayDataModule"]["ranks"], b["ReplayDataModule"]["ranks"], strict=True):
        for part in ("collector", "priorities"):
            x, y = flat(one[part]), flat(other[part])
            assert x.keys() == y.keys()
            for key in x:
                same = torch.equal(x[key], y[key]) if isinstance(x[key], torch.Tensor) else x[key] == y[key]
                assert same, f"{part}{key} differs"
    assert replay_hashes(left / "checkpoints" / "last.ckpt") == replay_hashes(right / "checkpoints" / "last.ckpt")
    assert rows(left) == rows(right)


def rows(run_dir: Path) -> list[dict[str, str]]:
    """``metrics.csv``, checked for steps that are there twice or out of order."""
    with open(run_dir / "metrics.csv", newline="") as file:
        found = list(csv.DictReader(file))
    updates = [int(row["updates"]) for row in found]
    assert updates == sorted(set(updates)), f"a step is in metrics.csv twice or out of order: {updates}"
    return found


def kill_and_resume(
    tmp_path: Path,
    ranks: int,
    budget: int,
    kills: int,
    seed: int,
    extra: list[str] | None = None,
    base: list[str] | None = None,
) -> tuple[Path, int, int]:
    """A run killed ``kills`` times; returns its folder, the kills that hit, and the updates done in all."""
    rng = random.Random(seed)
    folder, count = tmp_path / "run", tmp_path / "count"
    arguments = [
        *(base or BASE),
        *(extra or []),
        *(TWO_RANKS if ranks == 2 else []),
        f"total_env_steps={budget}",
        f"run_dir={folder}",
        *counting(count),
    ]
    hit = 0
    for attempt in range(200):
        resumable = any((folder / "checkpoints").glob("last.ckpt"))
        before = lines(count)
        process = start([*arguments, *(["ckpt_path=last"] if resumable else [])])
        if hit >= kills:
            output = finish(process)
            assert process.returncode == 0, output
            return folder, hit, lines(count)
        killed = kill_once(process, folder, count, rng, in_write=attempt % 2 == 1)
        hit += killed
        if killed and not resumable and not any((folder / "checkpoints").glob("last.ckpt")):
            # Nothing to go on from yet: begin again in an empty folder, as a user would.
            for path in sorted(folder.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
        assert killed or process.returncode == 0, process.printed()
        assert lines(count) >= before
        if not killed:
            return folder, hit, lines(count)
    raise AssertionError("the run never ended")


def faulty_run(folder: Path, *extra: str) -> list[str]:
    """Overrides of a run on environments that fail; ``folder`` holds the run and an account of the faults."""
    base = [a for a in BASE if not a.startswith(("env.id", "rollout."))]
    (folder / "faults").mkdir(parents=True, exist_ok=True)
    return [
        *base,
        "rollout=process",
        "rollout.num_envs=4",
        "env.id=support.faulty:Faulty",
        f"env.kwargs.folder={folder}/faults",
        "env.kwargs.game=true",
        f"run_dir={folder}/run",
        *extra,
    ]
