"""Whole runs on rounds, killed often. The shorter test of exact resume is in test_every_algorithm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmix_lightning.checkpoint.files import read_checkpoint
from support import runs

REPLACED = ("replay.", "mixer.", "algorithm.", "rollout.")
BASE = [
    *(a for a in runs.BASE if not a.startswith(REPLACED)),
    "rollout.num_envs=2",
    "rollout.updates=4",
    "replay.capacity=12",
    "replay.batch_size=6",
]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("algorithm", ["coma", "ippo", "mappo", "pqn_vdn", "pqn_qmix"])
def test_a_run_of_rounds_killed_often(tmp_path: Path, algorithm: str, ranks: int):
    budget = 1500
    base = [*BASE, f"algorithm={algorithm}"]
    whole = tmp_path / "whole"
    arguments = [*base, f"total_env_steps={budget}", f"run_dir={whole}"]
    runs.run([*arguments, *(runs.TWO_RANKS if ranks == 2 else [])])
    payload = read_checkpoint(whole / "checkpoints" / "last.ckpt")
    counters = payload["ReplayDataModule"]["counters"]
    rounds, rest = divmod(counters["episodes"], 12)
    assert rest == 0
    assert counters["updates"] == payload["global_step"] == 4 * rounds
    assert counters["env_steps"] >= budget
    held = payload["ReplayDataModule"]["ranks"]
    assert [rank["next_id"] for rank in held] == [12 * rounds // ranks] * ranks
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["env_steps"], summary["updates"]) == (counters["env_steps"], counters["updates"])
    folder, hit, _ = runs.kill_and_resume(tmp_path, ranks, budget, kills=4, seed=3, base=base)
    assert hit >= 1
    runs.assert_same_run(whole, folder)
