"""Runs of one side of a game, from the command line."""

import os
import signal
from pathlib import Path

import pytest

from support import inprocess, runs

SIDES = ["env=support.sides:Sides", "env.team=[red_*]"]
BASE = [a for a in runs.BASE if not a.startswith("env")]
SELF = "env.opponents={policy:self,versions:3,interval:100}"


@pytest.mark.slow
@pytest.mark.parametrize("collector", [[], ["rollout.collector=process", "rollout.asynchronous=true"]])
def test_a_team_against_itself_goes_on_as_if_it_had_not_stopped(tmp_path: Path, collector: list[str]):
    """The versions, who plays against which, and what opponents remember are those of the run that never stopped."""
    whole, resumed, count = tmp_path / "whole", tmp_path / "resumed", tmp_path / "updates"
    settings = [*BASE, *SIDES, SELF, *collector, "total_env_steps=500"]
    process = runs.begun([*settings, f"run_dir={resumed}"], count, 15)
    os.kill(process.pid, signal.SIGTERM)
    runs.finish(process)
    assert process.returncode == 143
    # A checkpoint does not decide what is imported: it is said again.
    runs.run([f"run_dir={resumed}", "ckpt_path=last", "env.id=support.sides:Sides", *runs.counting(count)])
    runs.run([*settings, *runs.counting(count), f"run_dir={whole}"])
    runs.assert_same_run(whole, resumed)


def test_a_run_of_one_side(tmp_path: Path):
    """It is called by its own name, evaluated against other opponents, and its checkpoint names no function."""
    folder = tmp_path / "run"
    opponents = "env.opponents=support.sides:first_or_second"
    inprocess.succeed([*BASE, *SIDES, opponents, "total_env_steps=150", f"run_dir={folder}"])
    checkpoint = f"ckpt_path={folder}/checkpoints/last.ckpt"
    typed = [checkpoint, "episodes=2", "env.id=support.sides:Sides"]
    inprocess.refused(typed, "say env.opponents=support.sides:first_or_second", name="evaluate")
    told = inprocess.succeed([checkpoint, "episodes=2", "env=support.sides:Sides", "env.opponents=random"], "evaluate")
    assert "on Sides" in told.out


def test_a_team_that_learned_against_itself_is_watched_exported_and_played_against(tmp_path: Path):
    """Each opens the policy that the opponents act by; ``self`` is the team as it is."""
    folder, other, team = (str(tmp_path / name) for name in ("run", "other", "team"))
    inprocess.succeed([*BASE, *SIDES, SELF, "total_env_steps=150", f"run_dir={folder}"])
    typed = ["env=support.sides:Sides"]
    clip = tmp_path / "clip.gif"
    inprocess.succeed([f"policy={folder}", *typed, f"output={clip}"], "watch")
    assert clip.stat().st_size > 0
    told = inprocess.succeed(
        [f"policy={folder}", *typed, f"output={team}", "programs=torch_export", "verify_steps=50"], "export"
    )
    assert "0 of" in told.out
    against = f"env.opponents={folder}"
    inprocess.succeed([*BASE, *SIDES, against, "callbacks=video", "total_env_steps=150", f"run_dir={other}"])
    assert list((Path(other) / "videos").glob("*.gif"))
    clip.unlink()
    inprocess.succeed([f"policy={other}", *typed, against, f"output={clip}"], "watch")
    assert clip.stat().st_size > 0
