"""Runs that version 0.1.0 wrote go on: one of each family of algorithms, of two ranks, and one that was interrupted.

``tests/data/checkpoints_0.1.0`` holds their checkpoints, replay segments and ``metrics.csv``, made with that version.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from qmix_lightning.checkpoint.compatibility import upgrade_checkpoint, upgrade_segment
from qmix_lightning.checkpoint.files import FORMAT, read_checkpoint
from qmix_lightning.errors import CheckpointError
from support import inprocess, runs
from support.cases import mostly_slow

DATA = Path(__file__).parent.parent / "data" / "checkpoints_0.1.0"
BUDGET = {"interrupted": 800}
RUNS = sorted(path.stem for path in DATA.glob("*.zip"))


def unpacked(name: str, folder: Path) -> Path:
    with zipfile.ZipFile(DATA / f"{name}.zip") as archive:
        archive.extractall(folder / name)
    return folder / name


def counters(run_dir: Path) -> dict[str, int]:
    return read_checkpoint(run_dir / "checkpoints" / "last.ckpt")["ReplayDataModule"]["counters"]


def test_every_kind_of_run_is_there():
    assert RUNS == ["actor_critic", "duplex", "interrupted", "joint", "on_policy", "ranks", "value", "weighted"]


@pytest.mark.parametrize("name", mostly_slow(RUNS, set(RUNS) - {"ranks"}))  # which starts two processes
def test_an_old_run_goes_on_to_a_larger_budget(tmp_path: Path, name: str):
    run_dir, budget = unpacked(name, tmp_path), BUDGET.get(name, 80)
    before = counters(run_dir)
    rows_before = runs.rows(run_dir) if (run_dir / "metrics.csv").exists() else []
    rows_before = [{name: value for name, value in row.items() if value} for row in rows_before]
    arguments = [f"run_dir={run_dir}", "ckpt_path=last", f"total_env_steps={budget}", "trainer.accelerator=cpu"]
    if name == "ranks":
        runs.run([*arguments, *runs.TWO_RANKS])
    else:
        outcome = inprocess.succeed(arguments)
        if name == "value":  # a table of the game is made by the callback of today
            assert "learned | exact" in outcome.out
            assert "is called" not in outcome.err, "nobody typed the old name"
    after = counters(run_dir)
    assert after["env_steps"] >= budget > before["env_steps"]
    assert after["updates"] > before["updates"]
    assert not after["partial_rollout"]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["env_steps"]) == ("completed", after["env_steps"])
    # There may be columns more, empty in the old rows.
    rows_after = [{name: value for name, value in row.items() if value} for row in runs.rows(run_dir)]
    assert rows_after[: len(rows_before)] == rows_before


@pytest.mark.parametrize("name", [name for name in RUNS if name != "interrupted"])  # which had no evaluation yet
def test_an_old_network_is_evaluated(tmp_path: Path, name: str):
    checkpoints = unpacked(name, tmp_path) / "checkpoints"
    recorded = read_checkpoint(checkpoints / "best.ckpt")["eval"]
    arguments = [f"ckpt_path={checkpoints / 'best.ckpt'}", "episodes=4", f"output={tmp_path / 'eval.json'}"]
    inprocess.succeed(arguments, "evaluate")
    found = json.loads((tmp_path / "eval.json").read_text())
    assert (found["episodes"], found["return_mean"]) == (4, pytest.approx(recorded["eval/return_mean"], abs=1e-3))


def test_the_one_that_was_interrupted_was_so_in_the_middle_of_a_round(tmp_path: Path):
    payload = read_checkpoint(unpacked("interrupted", tmp_path) / "checkpoints" / "last.ckpt")
    assert payload["ReplayDataModule"]["counters"]["partial_rollout"] is True
    assert payload["ReplayDataModule"]["asynchronous"] is True
    assert payload["ReplayDataModule"]["ranks"][0]["acting"] is not None


def test_what_has_the_names_of_today_stays():
    payload = {"config": {"rollout": {"asynchronous": "auto"}}, "ReplayDataModule": {"counters": {"updates_due": 1}}}
    assert upgrade_checkpoint(payload) == payload
    segment = {"alive_rows": torch.ones(1), "state_from_obs": torch.zeros(1)}
    assert upgrade_segment(segment) == segment


@pytest.mark.parametrize(
    "payload", [{}, {"config": 3}, {"ReplayDataModule": []}, {"ReplayDataModule": {"counters": 1}}]
)
def test_made_up_contents_pass_through(payload: dict):
    assert upgrade_checkpoint(payload) == payload


def test_contents_that_hold_themselves_are_refused(tmp_path: Path):
    config: dict = {}
    config["rollout"] = config
    keys = {"state_dict": {}, "spec": {}, "env_steps": 0, "global_step": 0}
    torch.save({"format": FORMAT, "config": config, **keys}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="refers to its own parts without end"):
        read_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize("segment", [None, 3, [], {1: 2}])
def test_made_up_segments_pass_through(segment: object):
    assert upgrade_segment(segment) == segment
