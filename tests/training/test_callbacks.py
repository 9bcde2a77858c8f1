"""Callbacks by name, settings of Lightning that compete with ours, and what a run says it was ended by."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ProgressBar

from qmix_lightning.checkpoint.files import read_checkpoint
from qmix_lightning.config.trainer_settings import check_competing
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.training.callbacks.best_checkpoints import BestCheckpoints
from qmix_lightning.training.datamodule import ReplayDataModule
from support import inprocess, runs

TINY = [a for a in inprocess.TINY if not a.startswith("total_env_steps")]
EARLY = ["callbacks=[early_stopping,model_checkpoint]", "callbacks.early_stopping.patience=2"]


class OwnBar(ProgressBar):
    """A bar of the user's, which only says that it is there."""

    def __init__(self) -> None:
        super().__init__()

    def disable(self) -> None: ...

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        print("the user's own bar")


class StopAt(Callback):
    """Asks for the end at an update."""

    def __init__(self, update: int) -> None:
        self.update = update

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.update


class LogsScore(Callback):
    """Logs a metric of its own at every evaluation."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.log("own/score", 1.0)


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, inprocess.Outcome]:
    """A run that was stopped early: the two-step game's greedy return does not get better than it is at once."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    often = ["eval_interval=12", "checkpoint_interval=12"]
    return run, inprocess.succeed([f"run_dir={run}", "total_env_steps=400", *TINY, *often, *EARLY])


def test_early_stopping_ends_a_run_and_is_named(stopped: tuple[Path, inprocess.Outcome]):
    run, outcome = stopped
    told = summary(run)
    assert (told["status"], told["ended_by"]) == ("stopped", "early_stopping")
    assert told["env_steps"] < 400
    assert "ended by     early stopping: eval/return_mean was no better than 7 in 2 evaluations" in outcome.out
    assert told["why"] in outcome.out


def test_the_best_checkpoints_are_kept_as_whole_runs(stopped: tuple[Path, inprocess.Outcome], tmp_path: Path):
    run, _ = stopped
    evaluated = sorted(int(row["updates"]) for row in runs.rows(run) if row["eval/return_mean"])[-3:]
    kept = {path.name for path in (run / "checkpoints").glob("update*.ckpt")}
    assert kept == {f"update{number}.ckpt" for number in evaluated}
    first = run / "checkpoints" / f"update{evaluated[0]}.ckpt"
    patient = "callbacks.early_stopping.patience=50"
    inprocess.succeed([f"ckpt_path={first}", f"run_dir={tmp_path}/again", "total_env_steps=40", patient])
    assert summary(tmp_path / "again")["status"] == "completed"


def test_a_checkpoint_of_an_evaluation_knows_that_it_was_the_best(stopped: tuple[Path, inprocess.Outcome]):
    """Else a run that goes on from it would take a worse one for the best."""
    run, _ = stopped
    for path in (run / "checkpoints").glob("update*.ckpt"):
        saved = read_checkpoint(path)
        known = saved["callbacks"]["RunCheckpoint"]
        assert known["best"] == [0.0, 7.0]
        assert known["best_eval"]["env_steps"] == saved["env_steps"]  # of several that are as good the last one
        assert known["eval_wall_s"][-1][0] == saved["env_steps"]


def test_a_resumed_run_stops_where_the_uninterrupted_one_did(stopped: tuple[Path, inprocess.Outcome], tmp_path: Path):
    run, _ = stopped
    shutil.copytree(run, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):  # as if killed in the middle of the last epoch
        if path.name not in ("previous.ckpt", "best.ckpt"):
            path.unlink()
    inprocess.succeed([f"run_dir={tmp_path}/run", "ckpt_path=last", *EARLY])
    assert runs.rows(tmp_path / "run") == runs.rows(run)
    assert summary(tmp_path / "run")["why"] == summary(run)["why"]


def test_an_evaluation_that_is_repeated_counts_as_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A checkpoint at every second evaluation is there, and the same, if signals came in that evaluation."""
    second = ["callbacks=model_checkpoint", "callbacks.model_checkpoint.every_n_epochs=2"]
    twice = ["eval_interval=16", "total_env_steps=32"]
    inprocess.succeed([f"run_dir={tmp_path}/whole", *TINY, *second, *twice])
    evaluate, numbers = ReplayDataModule.evaluate, itertools.count(1)

    def interrupted(data: ReplayDataModule) -> Any:
        data.stop.signal_number = signal.SIGTERM if next(numbers) in (2, 3) else 0
        return evaluate(data)

    monkeypatch.setattr(ReplayDataModule, "evaluate", interrupted)
    assert inprocess.command([f"run_dir={tmp_path}/run", *TINY, *second, *twice]).status == 143
    assert inprocess.command([f"run_dir={tmp_path}/run", "ckpt_path=last"]).status == 143
    inprocess.succeed([f"run_dir={tmp_path}/run", "ckpt_path=last"])
    found = [tmp_path.glob(f"{name}/checkpoints/update*.ckpt") for name in ("whole", "run")]
    saved = [{path.name: read_checkpoint(path) for path in paths} for paths in found]
    assert saved[0].keys() == saved[1].keys()
    assert len(saved[0]) == 1
    assert all(saved[0][name]["loops"] == saved[1][name]["loops"] for name in saved[0])


@pytest.mark.parametrize("evaluations", [[], ["trainer.limit_val_batches=0"]])
def test_an_epoch_that_was_saved_before_its_end_ends_once(tmp_path: Path, evaluations: list[str]):
    """With what callbacks do at its end, whether its evaluation is repeated or there are none."""
    watch = (
        "callbacks.stop={_target_:pytorch_lightning.callbacks.EarlyStopping,monitor:train/epsilon,mode:max,patience:50}"
    )
    own = "{_target_:pytorch_lightning.callbacks.ModelCheckpoint,every_n_train_steps:1,save_top_k:-1}"
    twice = ["total_env_steps=32", "eval_interval=16", *evaluations, watch]
    inprocess.succeed([f"run_dir={tmp_path}/whole", *TINY, *twice, f"callbacks.own={own}"])
    saved = {path: read_checkpoint(path) for path in tmp_path.rglob("*step=*.ckpt")}
    path = next(p for p, s in saved.items() if s["ReplayDataModule"]["counters"]["evaluation_pending"])
    inprocess.succeed([f"run_dir={tmp_path}/run", f"ckpt_path={path}", watch])
    whole, run = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "run"))
    (name,) = (name for name in whole["callbacks"] if name.startswith("EarlyStopping"))
    assert run["callbacks"][name] == whole["callbacks"][name]
    assert run["loops"] == whole["loops"]
    assert run["ReplayDataModule"]["counters"] == whole["ReplayDataModule"]["counters"]


@pytest.mark.parametrize(
    ("mode", "keep", "kept", "best"),
    [
        ("max", -1, ["a", "b", "c", "d"], "c"),
        ("max", 2, ["c", "d"], "c"),
        ("max", 1, ["c"], "c"),
        ("min", 2, ["a", "d"], "a"),
        ("max", 0, [], ""),
    ],
)
def test_a_resumed_run_may_keep_fewer_checkpoints(tmp_path: Path, mode: Any, keep: int, kept: list[str], best: str):
    """Those that are too many are not counted any more; were they, no checkpoint would ever be removed again."""
    (tmp_path / "checkpoints").mkdir()
    for name in "abcd":
        (tmp_path / "checkpoints" / name).touch()
    callback = BestCheckpoints(str(tmp_path), "eval/return_mean", mode, keep)
    scores = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 2.0}
    callback.load_state_dict({"scores": scores | {"gone": 9.0 if mode == "max" else 0.0}})
    assert [Path(path).name for path in callback.best_k_models] == kept
    assert Path(callback.best_model_path).name == best
    if kept:
        assert callback.best_model_score == {"max": 3.0, "min": 1.0}[mode]
        assert callback.kth_value == callback.best_k_models[callback.kth_best_model_path]


def test_more_patience_lets_a_stopped_run_go_on(stopped: tuple[Path, inprocess.Outcome], tmp_path: Path):
    run, _ = stopped
    shutil.copytree(run, tmp_path / "run")
    inprocess.succeed(
        [f"run_dir={tmp_path}/run", "ckpt_path=last", "callbacks.early_stopping.patience=50", "total_env_steps=50"]
    )
    assert summary(tmp_path / "run")["ended_by"] == "budget"


EPSILON = [
    "callbacks=early_stopping",
    "callbacks.early_stopping.monitor=train/epsilon",
    "callbacks.early_stopping.mode=min",
    "callbacks.early_stopping.stopping_threshold=0.9995",
]


def test_metrics_of_training_can_be_watched(tmp_path: Path):
    no_row = "trainer.log_every_n_steps=50"  # of training before the first evaluation
    inprocess.succeed([f"run_dir={tmp_path}/run", "total_env_steps=400", *TINY, *EPSILON, no_row])
    assert summary(tmp_path / "run")["why"] == "early stopping: train/epsilon reached 0.9995"


def test_without_evaluations_the_end_of_an_epoch_is_looked_at(tmp_path: Path):
    none = "trainer.limit_val_batches=0"
    inprocess.succeed([f"run_dir={tmp_path}/run", "total_env_steps=400", *TINY, *EPSILON, none])
    assert summary(tmp_path / "run")["ended_by"] == "early_stopping"


def test_a_metric_that_does_not_exist_is_told_at_the_first_update(tmp_path: Path):
    arguments = [f"run_dir={tmp_path}/run", "callbacks=early_stopping", "callbacks.early_stopping.monitor=train/los"]
    told = "watches 'train/los', which is not logged. Did you mean 'train/loss'?"
    inprocess.refused([*arguments, "total_env_steps=400", *TINY], told)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def logs_a_score(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is typed for a callback that logs ``own/score`` at evaluations, watched by another one."""
    monkeypatch.setitem(sys.modules, "test_callbacks", sys.modules[__name__])
    return ["callbacks=early_stopping", "callbacks.own._target_=test_callbacks.LogsScore", "eval_interval=12"]


def test_a_metric_that_a_callback_of_ones_own_logs_at_evaluations_can_be_watched(
    tmp_path: Path, logs_a_score: list[str]
):
    watch = ["callbacks.early_stopping.monitor=own/score", "callbacks.early_stopping.patience=2"]
    inprocess.succeed([f"run_dir={tmp_path}/run", "total_env_steps=400", *TINY, *logs_a_score, *watch])
    assert summary(tmp_path / "run")["why"] == "early stopping: own/score was no better than 1 in 2 evaluations"


def test_beside_a_callback_of_ones_own_a_wrong_name_is_told_at_the_first_evaluation(
    tmp_path: Path, logs_a_score: list[str]
):
    watch = ["callbacks.early_stopping.monitor=own/scores"]
    outcome = inprocess.command([f"run_dir={tmp_path}/run", "total_env_steps=400", *TINY, *logs_a_score, *watch])
    assert outcome.status == 2
    assert "watches 'own/scores', which is not logged. Did you mean 'own/score'?" in outcome.err


@pytest.mark.parametrize(
    ("limit", "by"), [("trainer.max_steps=4", "max_steps"), ("trainer.max_time={microseconds:1}", "max_time")]
)
def test_a_limit_that_ended_a_run_is_named_and_the_command_that_is_printed_goes_on(limit: str, by: str, tmp_path: Path):
    ended = inprocess.succeed([f"run_dir={tmp_path}/run", "total_env_steps=100000", *TINY, limit])
    told = summary(tmp_path / "run")
    assert (told["status"], told["ended_by"]) == ("stopped", by)
    assert by != "max_steps" or told["updates"] == 4
    command = ended.out.splitlines()[-1].partition("qmix-train ")[2]
    inprocess.succeed([*shlex.split(command), f"total_env_steps={told['env_steps'] + 4}"])
    after = summary(tmp_path / "run")
    assert after["ended_by"] == "budget"
    assert after["env_steps"] >= told["env_steps"] + 4


@pytest.fixture(scope="module")
def with_callbacks_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, inprocess.Outcome]:
    """A run with a callback that ends it, and a bar."""
    run = tmp_path_factory.mktemp("callbacks") / "run"
    own = ["callbacks.own={_target_:test_callbacks.StopAt,update:2}", "callbacks.bar._target_=test_callbacks.OwnBar"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "test_callbacks", sys.modules[__name__])
        return run, inprocess.succeed([f"run_dir={run}", "total_env_steps=400", *own, *TINY])


def test_a_callback_that_ended_a_run_is_named(with_callbacks_of_the_users: tuple[Path, inprocess.Outcome]):
    told = summary(with_callbacks_of_the_users[0])
    assert (told["status"], told["ended_by"]) == ("stopped", "callback")


def test_a_bar_of_the_users_takes_the_place_of_ours(with_callbacks_of_the_users: tuple[Path, inprocess.Outcome]):
    assert "the user's own bar" in with_callbacks_of_the_users[1].out


COMPETING = {
    "trainer.max_epochs=3": "total_env_steps",
    "trainer.min_steps=10": "total_env_steps",
    "trainer.limit_train_batches=5": "total_env_steps",
    "trainer.fast_dev_run=true": "total_env_steps",
    "trainer.val_check_interval=0.5": "eval_interval",
    "trainer.check_val_every_n_epoch=2": "eval_interval",
    "trainer.limit_val_batches=3": "eval_episodes",
    "trainer.overfit_batches=2": "replay.capacity",
}


@pytest.mark.parametrize("argument", COMPETING)
def test_a_setting_that_competes_with_ours_is_answered_with_what_to_set(argument: str):
    name, _, value = argument.removeprefix("trainer.").partition("=")
    with pytest.raises(ConfigurationError, match=f"^{re.escape(argument)} has no place here: .*{COMPETING[argument]}"):
        check_competing({name: yaml.safe_load(value)})


def test_a_run_is_not_begun_with_a_setting_that_competes(tmp_path: Path):
    inprocess.refused([f"run_dir={tmp_path}/run", "trainer.max_epochs=3"], "has no place here: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argument", ["callbacks=[early_stoping,q_table]", "callbacks=early_stoping"])
def test_a_misspelt_callback_gets_the_closest_name(argument: str):
    line = inprocess.refused([argument])
    assert line == "error: unknown callbacks 'early_stoping'. Did you mean 'callbacks=early_stopping'?"
