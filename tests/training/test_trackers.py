"""What every tracker is told of a run, and what a resumed run tells it again."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qmix_lightning.errors import CheckpointError
from qmix_lightning.training.trackers.base import TrackedRun, tracker_ids
from qmix_lightning.training.trackers.mlflow import MLflowTracker
from qmix_lightning.training.trackers.wandb import WandbTracker
from support import inprocess, runs
from support.trackers import events, steps_of

TINY = [argument for argument in inprocess.TINY if argument != "logger=none"]


def with_tracker(store: Path, **settings: Any) -> list[str]:
    more = "".join(f",{key}:{value}" for key, value in settings.items())
    return [f"+logger.file={{_target_:support.trackers.FileTracker,store:{store}{more}}}"]


def tracker_id(run: Path) -> str:
    payload = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return payload["callbacks"]["RunCheckpoint"]["trackers"]["file"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, inprocess.Outcome]:
    """A finished run, the store of its tracker, and what was printed."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "study").mkdir()
    (folder / "study" / "study.json").write_text("{}")
    run, store = folder / "study" / "seed=5", folder / "store"
    arguments = ["logger=[csv,tensorboard]", *with_tracker(store, tags="[mine]"), "seed=5", "callbacks=learning_rate"]
    return run, store, inprocess.succeed([f"run_dir='{run}'", *arguments, *TINY])


@pytest.fixture
def copied(finished: tuple[Path, Path, inprocess.Outcome], tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.copytree(finished[1], tmp_path / "store")
    return tmp_path / "run", tmp_path / "store"


def found_in(run: Path, store: Path) -> list[dict[str, Any]]:
    return events(store, tracker_id(run))


def test_a_tracker_is_told_what_the_run_is(finished: tuple[Path, Path, inprocess.Outcome]):
    begin = found_in(*finished[:2])[0]
    assert begin["open"] == {"name": "seed=5", "group": "study", "tags": ["two_step", "qmix", "mine"]}
    params = begin["params"]
    assert (params["seed"], params["env.name"], params["agent.hidden_dim"]) == (5, "two_step", 8)
    assert not [key for key in params if key.startswith(("logger", "callbacks", "run_dir"))]
    assert all(value is None or isinstance(value, bool | int | float | str) for value in params.values())


def test_its_metrics_are_those_of_metrics_csv_and_times(finished: tuple[Path, Path, inprocess.Outcome]):
    run, store, _ = finished
    found: dict[str, dict[int, float]] = {}
    for event in found_in(run, store):
        for name, value in event.get("metrics", {}).items():
            assert event["step"] not in found.setdefault(name, {}), f"{name} is there twice"
            found[name][event["step"]] = value
    times = {name for name in found if name.startswith("time/")}
    assert times == {"time/act_s", "time/env_s", "time/update_s", "time/evaluate_s"}
    assert all(value >= 0 for name in times for value in found[name].values())
    assert sum(found["time/update_s"].values()) > 0
    rows = runs.rows(run)
    written: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if value:
                written.setdefault(name, {}).setdefault(int(row["env_steps"]), float(value))  # of several updates, one
    assert {name: values for name, values in found.items() if name not in times} == written
    assert "lr/agents" in written or any(name.startswith("lr/") for name in written), "callbacks=learning_rate"


class LogsByLightning(Callback):
    """A callback of the user's, which logs as Lightning's users know it."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        pl_module.log("own/update", float(trainer.global_step))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("own/evaluation", float(trainer.global_step))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("own/epoch", float(trainer.global_step))


def test_what_a_callback_logs_by_lightning_is_in_the_row_of_its_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Over environment steps, like everything else; Lightning's own step is the update before, and no row's."""
    monkeypatch.setitem(sys.modules, "test_trackers", sys.modules[__name__])
    run, store = tmp_path / "run", tmp_path / "store"
    own = ["callbacks.own._target_=test_trackers.LogsByLightning", "logger=tensorboard", *with_tracker(store)]
    inprocess.succeed([f"run_dir={run}", *own, *TINY, "total_env_steps=40", "trainer.log_every_n_steps=5"])
    rows = runs.rows(run)
    seen = steps_of(found_in(run, store))
    board = EventAccumulator(str(next(run.rglob("events.out*")).parent)).Reload()
    for name, beside in {"update": "train/loss", "evaluation": "eval/return_mean", "epoch": "eval/return_mean"}.items():
        written = [row for row in rows if row[f"own/{name}"]]
        assert written == [row for row in rows if row[beside]]
        assert all(float(row[f"own/{name}"]) == float(row["updates"]) for row in written)
        assert seen[f"own/{name}"] == sorted({int(row["env_steps"]) for row in written})
        assert [event.step for event in board.Scalars(f"own/{name}")] == [int(row["env_steps"]) for row in written]


def test_it_gets_the_summary_at_the_end(finished: tuple[Path, Path, inprocess.Outcome]):
    run, store, _ = finished
    summary = json.loads((run / "summary.json").read_text())
    told = found_in(run, store)[-1]["summary"]
    assert (told["status"], told["ended_by"], told["eval.return_mean"]) == (
        "completed",
        "budget",
        summary["eval"]["return_mean"],
    )
    assert sum(summary["seconds"].values()) <= summary["wall_s"]


def test_a_resumed_run_goes_on_in_the_same_run_of_the_tracker_with_nothing_twice(copied: tuple[Path, Path]):
    run, store = copied
    before = tracker_id(run)
    (run / "checkpoints" / "last.ckpt").unlink()  # as if killed after the checkpoint before
    outcome = inprocess.succeed(
        [f"run_dir={run}", "ckpt_path=last", "total_env_steps=64", *with_tracker(store), "callbacks=learning_rate"]
    )
    assert tracker_id(run) == before
    assert [path.stem for path in store.iterdir()] == [before]
    found = found_in(run, store)
    assert [event["params"]["total_env_steps"] for event in found if "params" in event] == [60, 64]
    assert all(len(steps) == len(set(steps)) for steps in steps_of(found).values())
    assert sorted({int(row["env_steps"]) for row in runs.rows(run)}) == steps_of(found)["env_steps"]
    assert "failed" not in outcome.err


def test_a_tracker_that_joins_later_gets_what_was_before(copied: tuple[Path, Path], tmp_path: Path):
    run, _ = copied
    payload = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    payload["callbacks"]["RunCheckpoint"].pop("trackers")  # a version without trackers wrote it
    torch.save(payload, run / "checkpoints" / "last.ckpt")
    inprocess.succeed([f"run_dir={run}", "ckpt_path=last", "total_env_steps=64", *with_tracker(tmp_path / "late")])
    steps = steps_of(events(tmp_path / "late", tracker_id(run)))
    assert steps["env_steps"] == sorted({int(row["env_steps"]) for row in runs.rows(run)})


def test_a_run_that_goes_on_elsewhere_is_another_run_of_the_tracker(copied: tuple[Path, Path], tmp_path: Path):
    run, store = copied
    typed = [f"ckpt_path={run}/checkpoints/last.ckpt", f"run_dir={tmp_path}/other", "total_env_steps=64"]
    before = (store / f"{tracker_id(run)}.jsonl").read_bytes()
    inprocess.succeed([*typed, *with_tracker(store)])
    assert tracker_id(tmp_path / "other") != tracker_id(run)
    assert (store / f"{tracker_id(run)}.jsonl").read_bytes() == before


@pytest.mark.parametrize("ids", [{"file": "../x"}, {"file": "a" * 65}, {"file": 3}, ["file"]])
def test_what_is_no_id_is_refused(ids: Any):
    """A crafted checkpoint names no file or run of others."""
    with pytest.raises(CheckpointError, match="the checkpoint's trackers are named by what is no id"):
        tracker_ids({"callbacks": {"RunCheckpoint": {"trackers": ids}}})


def test_a_run_whose_checkpoint_has_no_id_is_refused(copied: tuple[Path, Path]):
    run, store = copied
    for path in (run / "checkpoints").glob("*.ckpt"):
        payload = torch.load(path, weights_only=True)
        if "callbacks" in payload:
            payload["callbacks"]["RunCheckpoint"]["trackers"] = {"file": "../x"}
            torch.save(payload, path)
    inprocess.refused([f"run_dir={run}", "ckpt_path=last", *with_tracker(store)], "error: the checkpoint's trackers")


def test_a_tracker_that_fails_costs_its_rows_and_not_the_run(tmp_path: Path):
    fails = with_tracker(tmp_path / "store", fail="write")
    outcome = inprocess.succeed([f"run_dir={tmp_path}/run", *fails, *TINY, "total_env_steps=20"])
    assert len(runs.rows(tmp_path / "run")) > 5
    first, last = outcome.err.splitlines()
    assert "logger.file failed, and lacks what metrics.csv has" in first
    assert last.startswith("warning: logger.file lacks ")


def test_a_tracker_that_does_not_open_ends_the_command_before_anything_is_written(tmp_path: Path):
    line = inprocess.refused([f"run_dir={tmp_path}/run", *with_tracker(tmp_path / "store", fail="open"), *TINY])
    assert line == "error: logger.file: OSError: nobody answers; logger=none goes without"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qmix_lightning.training.trackers.base.is_installed", lambda package: False)
    typed = [f"run_dir={tmp_path}/run", "logger=[tensorboard,mlflow]", *TINY]
    inprocess.refused(typed, "pip install 'qmix-lightning[mlflow]'")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_of_a_tracker_gets_the_closest_name(tmp_path: Path):
    line = inprocess.refused([f"run_dir={tmp_path}/run", "logger=mlflow", "logger.mlflow.projct=x", *TINY])
    assert line == "error: unknown key 'logger.mlflow.projct'. Did you mean 'logger.mlflow.project'?"


@pytest.mark.parametrize(
    ("status", "shown_by_mlflow", "exit_code"),
    [("completed", "FINISHED", 0), ("pruned", "FINISHED", 0), ("interrupted", "KILLED", 0), ("failed", "FAILED", 1)],
)
def test_trackers_tell_a_failure_from_other_ends(
    status: str, shown_by_mlflow: str, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By stand-ins for the packages: a trial that a sweep's pruner gave up has not failed."""
    monkeypatch.setattr("qmix_lightning.training.trackers.base.require", lambda package: None)
    monkeypatch.setitem(sys.modules, "mlflow", Mock())
    monkeypatch.setitem(sys.modules, "mlflow.entities", Mock())
    run = TrackedRun(tmp_path, "it", "two_step", "qmix", "some_id")
    mlflow, wandb = MLflowTracker(run), WandbTracker(run)
    for tracker in (mlflow, wandb):
        tracker.experiment = Mock()
        tracker.finish({"status": status})
    mlflow.experiment.set_terminated.assert_called_once_with("some_id", shown_by_mlflow)
    wandb.experiment.finish.assert_called_once_with(exit_code=exit_code)
