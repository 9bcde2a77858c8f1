"""Two commands in one run folder at the same moment: one runs, the other is told who does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import commands, inprocess, runs

pytestmark = pytest.mark.campaign

# Both import first and wait for each other, so that they really begin at the same moment.
TOGETHER = """
import os, sys, time
import torch, qmix_lightning.build, qmix_lightning.checkpoint.resume
from qmix_lightning.commands.train import main
open(sys.argv.pop(1), "w").close()
while len([name for name in os.listdir(".") if name.startswith("ready")]) < 2:
    time.sleep(0.001)
sys.argv[0] = "qmix-train"
main()
"""


def test_pairs(campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Starts in a new folder and resumes of one run, by turns."""
    settings = [a for a in inprocess.TINY if not a.startswith("total_env_steps")]
    for number in range(campaign.number(20)):
        folder = tmp_path / f"pair{number}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        resumes = number % 2 == 1
        typed = [*settings, "run_dir=run", "total_env_steps=400"]
        whole = [*settings, "run_dir=whole", "total_env_steps=400"]
        if resumes:
            inprocess.succeed([*settings, "run_dir=run", "total_env_steps=100"])
            shutil.copytree("run", "whole")
            typed += ["ckpt_path=last"]
            whole += ["ckpt_path=last"]
        inprocess.succeed(whole)
        both = [
            subprocess.Popen(
                [sys.executable, "-c", TOGETHER, f"ready{i}", *typed],
                env=commands.environ() | {"PYTHONWARNINGS": "ignore"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(2)
        ]
        ended = [(process, *process.communicate(timeout=600)) for process in both]
        status = sorted(process.returncode for process, _, _ in ended)
        errors = [error for process, _, error in ended if process.returncode]
        part = "pairs of resumes" if resumes else "pairs of starts"
        campaign.count(part, "played")
        assert status == [0, 2], ended
        winner = next(process.pid for process, _, _ in ended if process.returncode == 0)
        told = f"is in use by process {winner}" in errors[0]
        # A loser that comes when the winner has ended already finds its run.
        assert told or "holds a run already" in errors[0], errors
        assert len(errors[0].splitlines()) == 1, errors
        campaign.count(part, "one told who holds it" if told else "one told that there is a run already")
        runs.assert_same_run(folder / "whole", folder / "run")
        assert not os.path.exists(folder / "run" / ".lock")
