"""Jobs of a suite: what counts as done, where it is made again, and what it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qmix_lightning.errors import RunError
from qmix_lightning.study import plan as plans
from qmix_lightning.study.runner import Processes
from support.suites import small_plan, write_rows


class Noted(Processes):
    """Processes that are only noted."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[str]]] = []

    def call(self, module: str, arguments: Any, log: Path, lock: int) -> None:
        self.calls.append((module.rpartition(".")[2], list(arguments)))


def test_a_run_is_told_everything_and_evaluated_on_fresh_seeds(tmp_path: Path):
    plan, processes = small_plan(tmp_path), Noted()
    cell = plan.cells[1]
    job = plan.job(cell, processes, 2)
    assert (job.name, job.folder) == ("two_step qmix seed 1", tmp_path / "study/two_step/qmix/seed1")
    job.train(False, 0)
    job.train(True, 0)
    (_, first), (_, second) = processes.calls
    assert second == [*first, "ckpt_path=last"]
    assert {"env=two_step", "algorithm=qmix", "num_threads=1", "seed=1", f"run_dir={job.folder}"} <= set(first)
    with pytest.raises(RunError, match="cannot be summed up"):
        job.finish(0)
    name, evaluation = processes.calls[2]
    assert name == "evaluate"
    assert {f"ckpt_path={job.folder}/checkpoints/last.ckpt", "episodes=2", "seed=1000"} <= set(evaluation)


def test_the_row_says_how_it_was_made(tmp_path: Path):
    plan = small_plan(tmp_path)
    cell = plan.cells[0]
    job = plan.job(cell, Noted(), 2)
    job.folder.mkdir(parents=True)
    summary = {"status": "completed", "env_steps": 300, "updates": 9, "wall_s": 2.0, "versions": {"torch": "2"}}
    (job.folder / "summary.json").write_text(json.dumps({**summary, "eval_wall_s": [[300, 1.5]]}))
    (job.folder / "metrics.csv").write_text("updates,env_steps,eval/return_mean\n9,300,7\n")
    (job.folder / "final.json").write_text(json.dumps({"episodes": 2, "seed": 1000, "return_mean": 7.5}))
    assert not job.is_done()
    job.finish(0)
    assert job.is_done()
    row = plan.row(cell)
    assert row is not None
    assert row.final == {"return_mean": 7.5}
    assert row.evaluations == {"env_steps": [300], "return_mean": [7.0], "wall_s": [1.5]}
    assert row.content["command"].startswith("qmix-train preset=pymarl trainer.accelerator=cpu ")
    assert row.content["command"].endswith(" seed=1")
    assert str(tmp_path) not in json.dumps(row.content), "it is read on other machines"
    assert row.code == cell.code
    assert row.content["cpu_capability"]


def test_a_task_without_its_metric_is_told(tmp_path: Path):
    plan = small_plan(tmp_path)
    plan.suite.tasks["two_step"] = type(plan.suite.tasks["two_step"])([], metric="win_rate")
    job = plan.job(plan.cells[0], Noted(), 1)
    job.folder.mkdir(parents=True)
    (job.folder / "summary.json").write_text("{}")
    (job.folder / "final.json").write_text('{"return_mean": 1}')
    with pytest.raises(RunError, match="two_step has no win_rate: give the task another metric"):
        job.finish(0)


def test_what_other_code_made_is_made_again_in_a_new_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = small_plan(tmp_path)
    cell = plan.cells[0]
    old = plan.job(cell, Noted(), 1).folder
    write_rows(plan, {("two_step", "vdn"): [7.0]})
    monkeypatch.setattr(
        plans, "code_version", lambda sections: {"env": "e", "agent": "a", "mixer": "m", "algorithm": "n"}
    )
    plan = small_plan(tmp_path)
    cell = plan.cells[0]
    assert not plan.is_done(cell, again=True)
    assert plan.job(cell, Noted(), 1).is_done(), "stale, and all the same a result"
    again = plan.job(cell, Noted(), 1, again=True)
    assert (old.name, again.folder.name, again.is_done()) == ("seed1", "seed1-2", False)
    assert plan.job(cell, Noted(), 1, again=True).folder == again.folder, "what was begun goes on"
