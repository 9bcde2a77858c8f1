"""SIGKILL at any moment: what goes on ends as the run that was never killed, bit for bit."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from qmix_lightning.runtime.kill_points import KILL_AT
from support import commands, runs

pytestmark = pytest.mark.campaign

BUDGET = 400
KINDS = {
    "qmix": ["checkpoint_interval=6"],  # so often that small segments are merged
    "asynchronous": ["rollout=process", "rollout.num_envs=2", "rollout.asynchronous=true"],
    "collector in a process": ["rollout.collector=process", "rollout.asynchronous=true"],
    "prioritised": ["replay=prioritized", "replay.batch_size=8", "replay.capacity=64"],
    "memory-mapped": ["replay.storage=memmap"],
    "coma": ["algorithm=coma", "replay.capacity=8", "rollout.num_envs=2"],
    "pqn": ["algorithm=pqn_vdn", "replay.capacity=8", "replay.batch_size=4", "rollout.num_envs=2", "rollout.updates=4"],
    "qplex": ["algorithm=qplex"],
    "ow_qmix": ["algorithm=ow_qmix"],
}
POINTS = {
    "checkpoint.begin": 3,
    "checkpoint.previous": 3,
    "checkpoint.written": 6,
    "checkpoint.rename": 6,
    "checkpoint.renamed": 6,
    "segment.begin": 3,
    "segment.rename": 3,
    "segment.remove": 1,
    "segment.merge": 1,
    "best.begin": 1,
    "evaluation.begin": 1,
    "evaluation.played": 1,
    "policy.publish": 20,
    "policy.published": 20,
    "metrics.rename": 1,
    "config.rename": 1,
}
"""Point -> up to which time it is asked for."""


def arguments(kind: str, ranks: int, folder: Path) -> list[str]:
    chosen = KINDS[kind]
    without: tuple[str, ...] = ("mixer.",) if kind in ("coma", "pqn", "qplex") else ()
    without += ("algorithm.target",) if kind in ("coma", "pqn") else ()
    base = [a for a in runs.BASE if not a.startswith(without)]
    if kind in ("coma", "pqn"):
        base = [a for a in base if not a.startswith(("replay.", "rollout."))]
    several = runs.TWO_RANKS if ranks == 2 else []
    return [*base, *chosen, *several, f"total_env_steps={BUDGET}", f"run_dir={folder}", "eval_interval=120"]


def _end(process: subprocess.Popen[str], campaign, part: str) -> str:
    """Wait for the end of a run and of all that it has started."""
    output, _ = process.communicate(timeout=900)
    deadline = time.monotonic() + 60
    while members := runs.group_members(process.pid):
        if time.monotonic() > deadline:
            campaign.count(part, "left processes running")
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"processes left running: {members}")
        time.sleep(0.1)
    return output


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_kills(campaign, tmp_path: Path, kind: str, ranks: int):
    rng = campaign.rng(f"kills {kind} {ranks}")
    left, points = campaign.number(round(50 / len(KINDS))), dict(POINTS)
    whole = tmp_path / "whole"
    runs.run(arguments(kind, ranks, whole))
    for number in itertools.count():
        folder = tmp_path / f"run{number}"
        left -= _run_to_its_end(campaign, rng, kind, ranks, folder, left, points)
        runs.assert_same_run(whole, folder)
        campaign.count(_part(ranks), "runs that ended bit for bit")
        if left <= 0:
            return


def _part(ranks: int) -> str:
    return f"kills, {ranks} rank{'s' * (ranks > 1)}"


def _run_to_its_end(campaign, rng, kind: str, ranks: int, folder: Path, kills: int, points: dict[str, int]) -> int:
    """Kill a run and go on with it until it has ended by itself; return how often it was killed, ``kills`` at most.

    A point that a run passes by until its end is asked for less often in ``points``, and then no more.
    """
    count, part = folder.with_name(f"{folder.name}.count"), _part(ranks)
    typed = [*arguments(kind, ranks, folder), *runs.counting(count)]
    hit, last = 0, False
    for _ in range(20 * kills + 20):
        by_hook = hit < kills and rng.random() < 0.6
        point = rng.choice(sorted(points))
        kill_at = f"{point}:{rng.randint(1, points[point])}" if by_hook else ""
        process = commands.start_interpreter([*typed, *(["ckpt_path=last"] if last else [])], {KILL_AT: kill_at})
        if hit < kills and not by_hook:
            _kill_by_time(process, count, rng)
        output = _end(process, campaign, part)
        if process.returncode == 0:
            if by_hook and points[point] > 1:
                points[point] //= 2
            elif by_hook:
                del points[point]
            return hit
        if process.returncode == 2 and last and "repeat its command without ckpt_path" in output:
            last = False
            continue
        killed = process.returncode == -signal.SIGKILL or (by_hook and ranks == 2)
        assert killed or (ranks == 2 and hit < kills), f"{kill_at}, status {process.returncode}:\n{output}"
        hit += 1
        campaign.count(part, f"at {point.partition('.')[0]}" if by_hook else "at a random moment")
        last = rng.random() < 0.5 or any((folder / "checkpoints").glob("last.ckpt"))
        if last and not any(folder.glob("config.yaml")):
            last = False
    raise AssertionError("the run never ended")


def _kill_by_time(process: subprocess.Popen[str], count: Path, rng: random.Random) -> None:
    """Kill the run after some updates, or while it starts."""
    target = runs.lines(count) + rng.randint(0, 60)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline and runs.lines(count) < target:
        time.sleep(0.002)
    time.sleep(rng.random() * (0.2 if runs.lines(count) else 3.0))
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
