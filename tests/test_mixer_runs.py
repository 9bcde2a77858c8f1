"""Algorithms that are another mixer, through the command line: counters, and a resumed run that equals a whole one."""

from __future__ import annotations

import json
from pathlib import Path

import inprocess
import pytest
import runs

SLOW = ("iql", "vdn", "qmix", "qatten", "qmix_ns", "qmix_lin", "vdn_s")
ALGORITHMS = ["qplex", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_counters_and_exact_resume(tmp_path: Path, algorithm: str):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = [*inprocess.TINY, f"algorithm={algorithm}"]
    inprocess.succeed([*arguments, f"run_dir={whole}"])
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["algorithm"], summary["status"]) == (algorithm, "completed")
    assert (summary["env_steps"], summary["episodes"]) == (60, 30)  # two steps each
    assert summary["updates"] == 27  # one for every episode from the fourth on, which fills a batch
    inprocess.succeed([*arguments, f"run_dir={broken}", "total_env_steps=30"])
    inprocess.succeed([*arguments, f"run_dir={broken}", "ckpt_path=last"])
    runs.assert_same_run(whole, broken)
