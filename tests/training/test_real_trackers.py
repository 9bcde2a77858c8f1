"""Runs in the real MLflow, Trackio and W&B, all local, killed and resumed, and read back by their own clients.

``pip install -e ".[test,trackers]"``, then ``pytest -m integration tests/training/test_real_trackers.py``.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from support import runs
from support.processes import wait_until
from support.trackers import wandb_records

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]  # the trackers' own

BUDGET = 900


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trackers")


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """A run of a study that was killed once by SIGKILL and went on to its budget."""
    study = home / "study"
    study.mkdir()
    (study / "study.json").write_text("{}")
    folder, count = study / "seed=1", home / "count"
    arguments = [
        *[argument for argument in runs.BASE if argument != "logger=none"],
        "logger=[csv,tensorboard,mlflow,trackio,wandb]",
        f"logger.mlflow.tracking_uri=sqlite:///{home}/mlflow.db",
        "logger.wandb.mode=offline",
        "logger.wandb.tags=[mine]",
        "eval_interval=200",
        f"run_dir='{folder}'",
        f"total_env_steps={BUDGET}",
        *runs.counting(count),
    ]
    environment = {"TRACKIO_DIR": str(home / "trackio"), "WANDB_SILENT": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        process = runs.start(arguments)
        wait_until(
            lambda: (folder / "checkpoints" / "last.ckpt").exists() or process.poll() is not None, "no checkpoint", 240
        )
        assert runs.kill_once(process, folder, count, random.Random(1), in_write=False), "it was to be killed"
        if process.stdout:
            process.stdout.close()
        runs.run([*arguments, "ckpt_path=last"])
    return folder


def written(run: Path) -> dict[str, dict[int, float]]:
    """Return metric -> environment step -> value in ``metrics.csv``; of several updates at a step the first."""
    found: dict[str, dict[int, float]] = {}
    for row in runs.rows(run):
        for name, value in row.items():
            if value:
                found.setdefault(name, {}).setdefault(int(row["env_steps"]), float(value))
    return found


def without_extras(found: dict[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in found.items() if not name.startswith(("time/", "summary/"))}


def test_mlflow_has_all_parameters_and_every_metric_once(run: Path, home: Path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("qmix-lightning")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert (tracked.info.run_name, tracked.info.status) == ("seed=1", "FINISHED")
    assert tracked.data.params["optimizer.lr"] == "0.0005"
    assert tracked.data.params["total_env_steps"] == str(BUDGET)
    assert len(tracked.data.params) > 60
    tags = tracked.data.tags
    assert (tags["study"], tags["env"], tags["algorithm"]) == ("study", "pettingzoo", "qmix")
    assert (tags["summary.status"], tags["summary.ended_by"]) == ("completed", "budget")
    found: dict[str, dict[int, float]] = {}
    for name in tracked.data.metrics:
        points = client.get_metric_history(tracked.info.run_id, name)
        assert len({point.step for point in points}) == len(points), f"{name} is there twice"
        found[name] = {point.step: point.value for point in points}
    assert without_extras(found) == written(run)
    assert {"time/act_s", "time/env_s", "time/update_s", "summary/eval.return_mean"} <= found.keys()


def test_trackio_has_all_parameters_and_every_metric_once(run: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(home / "trackio"))
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", home / "trackio", raising=False)
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", home / "trackio", raising=False)
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("qmix-lightning")
    config = SQLiteStorage.get_run_config("qmix-lightning", name)
    assert (config["optimizer.lr"], config["total_env_steps"], config["_Group"]) == (0.0005, BUDGET, "study")
    assert config["tags"] == "pettingzoo, qmix"
    found: dict[str, dict[int, float]] = {}
    for row in SQLiteStorage.get_logs("qmix-lightning", name):
        for key in row.keys() - {"step", "timestamp"}:
            assert row["step"] not in found.setdefault(key, {}), f"{key} is there twice"
            found[key][row["step"]] = row[key]
    assert without_extras(found) == written(run)
    assert found["summary/status"] == {max(found["env_steps"]): "completed"}


def test_wandb_goes_on_under_the_same_id_and_its_newest_folder_is_whole(run: Path):
    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1
    records = list(wandb_records(folders[-1]))
    begun = next(record.run for record in records if record.HasField("run"))
    assert (begun.display_name, begun.run_group) == ("seed=1", "study")
    assert set(begun.tags) == {"pettingzoo", "qmix", "mine"}
    updates = [u for record in records for u in (*record.config.update, *record.run.config.update)]
    config = {_key(update): json.loads(update.value_json) for update in updates}
    assert (config["optimizer.lr"], config["total_env_steps"]) == (0.0005, BUDGET)
    found: dict[str, dict[int, float]] = {}
    for history in (record.history for record in records if record.HasField("history")):
        for item in history.item:
            values = found.setdefault(_key(item), {})
            assert history.step.num not in values, f"{_key(item)} is there twice"
            values[history.step.num] = json.loads(item.value_json)
    shown = {name: values for name, values in without_extras(found).items() if not name.startswith("_")}
    assert shown == written(run)
    summary = {_key(u): u.value_json for r in records for u in r.summary.update}
    assert json.loads(summary["summary/status"]) == "completed"


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def test_no_link_leads_out_of_the_folder(run: Path):
    links = [path for path in run.rglob("*") if path.is_symlink() and not path.resolve().is_relative_to(run)]
    assert links == []


def test_two_runs_that_begin_together_share_a_new_database_of_mlflow(tmp_path: Path):
    """Both found it without tables, and one of them failed as it made them."""
    from mlflow import MlflowClient

    base = [argument for argument in runs.BASE if argument != "logger=none"]
    typed = [*base, "total_env_steps=200", "logger=mlflow", f"logger.mlflow.tracking_uri=sqlite:///{tmp_path}/new.db"]
    started = [runs.start([*typed, f"seed={seed}", f"run_dir={tmp_path}/{seed}"]) for seed in (1, 2)]
    printed = [runs.finish(process) for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(printed)
    client = MlflowClient(f"sqlite:///{tmp_path}/new.db")
    experiment = client.get_experiment_by_name("qmix-lightning")
    assert len(client.search_runs([experiment.experiment_id])) == 2
