"""What a file may decide, and what it may not: on resume and in an evaluation."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qmix_lightning.checkpoint.files import read_checkpoint
from support import inprocess

LAST, BEST = "run/checkpoints/last.ckpt", "run/checkpoints/best.ckpt"
RESUME = ["run_dir=run", "ckpt_path=last", "total_env_steps=62"]
EVIL = "${oc.create:{_target_: evil_module.make}}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    tiny = [a for a in inprocess.TINY if not a.startswith("logger")]
    inprocess.succeed([f"run_dir={folder}", *tiny])
    return folder


def prepare(folder: Path, run: Path) -> None:
    """Copy a run into a working folder, beside a module that leaves a file when it is imported."""
    shutil.copytree(run, folder / "run")
    (folder / "evil_module.py").write_text("open('it ran', 'w')\n")


@pytest.fixture(autouse=True)
def work(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    prepare(tmp_path, finished)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def rewrite(change: Callable[[dict[str, Any]], None], *paths: str) -> None:
    for path in paths or (LAST, "run/checkpoints/previous.ckpt", BEST):
        payload = torch.load(path, weights_only=True)
        change(payload)
        torch.save(payload, path)


def assert_refused(typed: list[str], text: str, command: str = "train") -> None:
    inprocess.refused(typed, text, name=command)
    assert not Path("it ran").exists()


def test_a_checkpoint_records_names_and_no_paths():
    config = read_checkpoint(LAST)["config"]
    assert config["logger"] == {"tensorboard": []}
    assert config["callbacks"] == {}
    assert (config["run_dir"], config["ckpt_path"], config["replay"]["memmap_dir"]) == (None, None, None)


@pytest.mark.parametrize("value", [EVIL, "x${seed}"])
def test_interpolations_are_refused(value: str):
    rewrite(lambda p: p["config"]["optimizer"].update(lr_schedule=value))
    assert_refused(RESUME[1:2] + RESUME[:1], "optimizer.lr_schedule', which a file must not")
    evaluation = [f"ckpt_path={BEST}", "episodes=2"]
    assert_refused(evaluation, "holds an interpolation under 'optimizer.lr_schedule'", "evaluate")


OPTIMIZER = {"centered": True, "weight_decay": "x", "momentum": 1e9, "evil": 1}
"""Settings that torch would take from beside its state."""


@pytest.fixture(scope="module")
def went_on(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, inprocess.Outcome]:
    """The working folder of a run that went on from a file that says more than it decides, and what it said."""
    folder = tmp_path_factory.mktemp("went_on")
    prepare(folder, finished)
    section = {"_target_": "pytorch_lightning.loggers.TensorBoardLogger", "save_dir": f"{folder}/logged", "name": EVIL}

    def change(payload: dict[str, Any]) -> None:
        payload["config"].update(logger={"tensorboard": section}, run_dir=f"{folder}/elsewhere")
        payload["config"]["replay"].update(memmap_dir=f"{folder}/mapped")
        payload["versions"].update(torch="1.0", cpu="ABACUS")
        payload["optimizer_states"][0]["param_groups"][0].update(OPTIMIZER)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        rewrite(change, LAST, "run/checkpoints/previous.ckpt")
        return folder, inprocess.succeed(RESUME)


def test_a_logger_of_a_file_is_the_shipped_one_whatever_the_file_says(
    went_on: tuple[Path, inprocess.Outcome], finished: Path
):
    folder, _ = went_on
    assert not (folder / "logged").exists()
    assert not (folder / "it ran").exists()
    before, now = (len(list((run / "tensorboard").glob("events*"))) for run in (finished, folder / "run"))
    assert now > before > 0


def test_paths_of_a_file_have_no_effect(went_on: tuple[Path, inprocess.Outcome]):
    folder, _ = went_on
    assert not (folder / "elsewhere").exists()
    assert not (folder / "mapped").exists()


def test_settings_of_the_optimizer_are_those_of_the_configuration(went_on: tuple[Path, inprocess.Outcome]):
    """Not those that torch has put into the file beside its state."""
    group = read_checkpoint(went_on[0] / LAST)["optimizer_states"][0]["param_groups"][0]
    assert (group["centered"], group["weight_decay"], group["momentum"]) == (False, 0.0, 0)
    assert "evil" not in group


def test_what_has_changed_since_is_told(went_on: tuple[Path, inprocess.Outcome]):
    said = went_on[1].err
    assert "changed since the checkpoint, so results may differ in the last bits: cpu ABACUS, now " in said
    assert "torch 1.0, now " in said


RECORDED = {"monitor": "train/loss", "patience": 70, "mode": "min"}


@pytest.fixture(scope="module")
def typed_run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with settings of a logger and of callbacks that were typed."""
    folder = tmp_path_factory.mktemp("typed") / "run"
    shutil.copytree(finished, folder)
    typed = [f"callbacks.early_stopping.{key}={value}" for key, value in RECORDED.items()]
    typed += ["callbacks=[early_stopping,q_table]", "logger.tensorboard.name=mine"]
    inprocess.succeed([f"run_dir={folder}", *RESUME[1:], *typed])
    return folder


def test_what_a_file_records_of_loggers_and_callbacks(typed_run: Path):
    """Of a logger, the names of what was typed; of a callback, numbers and metrics, too."""
    config = read_checkpoint(typed_run / "checkpoints" / "last.ckpt")["config"]
    assert config["logger"] == {"tensorboard": ["name"]}
    assert config["callbacks"] == {"early_stopping": RECORDED, "q_table": {}}


def test_what_a_file_does_not_decide_of_loggers_and_callbacks_is_said_to_be_left_out(typed_run: Path, work: Path):
    shutil.copytree(typed_run, "run", dirs_exist_ok=True)
    evil = {"q_table": {"run_dir": f"{work}/outside", "gamma": "x"}, "early_stopping": RECORDED | {"patience": "../x"}}
    rewrite(lambda p: p["config"].update(callbacks=evil), LAST, "run/checkpoints/previous.ckpt")
    outcome = inprocess.succeed([*RESUME[:2], "total_env_steps=64"])
    left_out = ["logger.tensorboard.name", "callbacks.q_table.run_dir", "callbacks.q_table.gamma"]
    left_out.append("callbacks.early_stopping.patience")
    assert f"the run goes on without its {', '.join(left_out)}; type them again" in outcome.err
    assert not Path("outside").exists()
    kept = read_checkpoint(LAST)["config"]["callbacks"]["early_stopping"]
    assert (kept["monitor"], kept["mode"]) == ("train/loss", "min")


@pytest.mark.parametrize(("section", "name", "text"), [("agent", "name", "../x"), ("trainer", "model_registry", "x")])
def test_a_text_that_is_no_name_is_refused(section: str, name: str, text: str):
    rewrite(lambda p: p["config"][section].update({name: text}))
    assert_refused(RESUME[:2], "a file decides numbers and names only")


def test_a_path_for_an_environment_is_typed_again():
    def change(payload: dict[str, Any]) -> None:
        payload["config"]["env"]["kwargs"] = {"folder": "/etc/x"}

    rewrite(change)
    assert_refused(RESUME[:2], "which a file does not decide; to let it be used, say env.kwargs.folder=/etc/x")
    assert_refused([f"ckpt_path={BEST}", "episodes=2"], "say env.kwargs.folder=/etc/x", "evaluate")


SIZES = {
    "hidden_dim": (lambda c: c["agent"].update(hidden_dim=10**9), "asks for networks that cannot be made"),
    "hidden_dim a little": (lambda c: c["agent"].update(hidden_dim=9), "does not fit its own configuration"),
    "num_envs": (
        lambda c: c["rollout"].update(num_envs=10**9),
        "of 2 environments, and rollout.num_envs is 1000000000",
    ),
    "capacity": (lambda c: c["replay"].update(capacity=10**13), "the replay may need"),
    "num_threads": (lambda c: c.update(num_threads=10**9), "threads"),
    "num_eval_envs": (lambda c: c["rollout"].update(num_eval_envs=10**9), "rollout.num_eval_envs"),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_looked_at_before_memory_is_taken(name: str):
    change, text = SIZES[name]
    rewrite(lambda p: change(p["config"]))
    assert_refused(RESUME[:2], text)


def test_a_network_that_does_not_fit_is_refused_in_an_evaluation():
    rewrite(lambda p: p["config"]["agent"].update(hidden_dim=10**9))
    assert_refused([f"ckpt_path={BEST}", "episodes=2"], "asks for networks that cannot be made", "evaluate")


def _counters(payload: dict[str, Any]) -> dict[str, Any]:
    return payload["ReplayDataModule"]["counters"]


MADE_UP = {
    "env_steps": lambda p: _counters(p).update(env_steps=-5),
    "updates": lambda p: _counters(p).update(updates="many"),
    "updates due": lambda p: _counters(p).update(updates_due=10**12),
    "another counter": lambda p: _counters(p).update(x=1),
    "window": lambda p: _counters(p).update(window={"episodes": "x"}),
    "no ranks": lambda p: p["ReplayDataModule"].update(ranks=[]),
    "ranks": lambda p: p["ReplayDataModule"].update(ranks=[1]),
    "collector": lambda p: p["ReplayDataModule"]["ranks"][0]["collector"].pop("ended"),
    "memory": lambda p: p["ReplayDataModule"]["ranks"][0]["collector"].update(memory=[1]),
    "next_id": lambda p: p["ReplayDataModule"]["ranks"][0].update(next_id=3),
    "segment": lambda p: p["ReplayDataModule"]["ranks"][0]["replay"][0].update(first_id=-1),
    "loops": lambda p: p.update(loops={"fit_loop": 1}),
    "optimizer": lambda p: p.update(optimizer_states=[{}]),
    "state of the optimizer": lambda p: next(iter(p["optimizer_states"][0]["state"].values())).update(
        square_avg=torch.zeros(3)
    ),
    "learning rate": lambda p: p["optimizer_states"][0]["param_groups"][0].update(lr=-1.0),
    "best": lambda p: p["callbacks"]["RunCheckpoint"].update(best=["x"]),
    "world_size": lambda p: p.update(world_size="2"),
    "config": lambda p: p.update(config=[1]),
    "version": lambda p: p.update({"pytorch-lightning_version": "x"}),
}


@pytest.mark.parametrize("name", MADE_UP)
def test_made_up_contents_end_in_one_line_and_leave_the_folder_as_it_was(name: str):
    rewrite(MADE_UP[name], LAST, "run/checkpoints/previous.ckpt")
    summary = Path("run/summary.json").read_text()
    assert_refused(RESUME, "")
    assert Path("run/summary.json").read_text() == summary


@pytest.mark.parametrize("name", ["checkpoints/replay", "metrics.csv"])
def test_links_out_of_the_folder_are_not_followed(work: Path, name: str):
    (work / "outside").mkdir()
    path = work / "run" / name
    path.rename(work / "outside" / path.name)
    path.symlink_to(work / "outside" / path.name)
    before = inprocess.snapshot(work)
    assert_refused(RESUME, "is a link out of the run's folder")
    assert inprocess.snapshot(work) == before


# -- folders ------------------------------------------------------------------------------------------------------


def test_a_run_that_was_killed_before_its_first_last_checkpoint_begins_anew():
    """With the settings of its own config.yaml, where only ``ckpt_path=last`` was typed."""
    for path in Path("run/checkpoints").iterdir():
        if path.name != "best.ckpt":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    summary = json.loads(Path("run/summary.json").read_text())
    Path("run/summary.json").write_text(json.dumps(summary | {"status": "running"}))
    outcome = inprocess.succeed(["run_dir=run", "ckpt_path=last"])
    assert "run holds no last.ckpt: the run ended before its first, and begins anew" in outcome.err
    assert read_checkpoint(LAST)["config"]["agent"]["hidden_dim"] == 8


def test_a_finished_run_without_its_checkpoint_is_not_overwritten():
    for name in ("last", "previous"):
        Path(f"run/checkpoints/{name}.ckpt").unlink()
    assert_refused(["run_dir=run", "ckpt_path=last"], "")
    assert_refused(["run_dir=run", *inprocess.TINY], "holds a run already")


def test_lost_rows_are_told():
    Path("run/metrics.csv").unlink()
    outcome = inprocess.succeed(RESUME)
    assert "run/metrics.csv is gone: its rows up to update" in outcome.err


def test_rows_that_are_no_text_are_set_aside():
    Path("run/metrics.csv").write_bytes(b"\xff\xfe\x00rows")
    outcome = inprocess.succeed(RESUME)
    assert "cannot be read (UnicodeDecodeError)" in outcome.err
    assert Path("run/metrics.csv.damaged").exists()


def test_a_damaged_last_checkpoint_never_takes_the_place_of_the_one_before():
    Path(LAST).write_bytes(b"")
    outcome = inprocess.succeed([*RESUME, "checkpoint_interval=1"])
    assert "passed over: run/checkpoints/last.ckpt is not a whole checkpoint" in outcome.err
    read_checkpoint("run/checkpoints/previous.ckpt")
    assert Path("run/checkpoints/last.ckpt.damaged").read_bytes() == b""


def test_a_file_system_without_hard_links(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    before = read_checkpoint(LAST)["global_step"]
    inprocess.succeed([*RESUME, "checkpoint_interval=1000"])
    assert read_checkpoint("run/checkpoints/previous.ckpt")["global_step"] == before


def _stretched(payload: dict[str, Any]) -> None:
    payload["state_dict"]["learner.policy.agent.encode.weight"] = torch.zeros(1).expand(10**6, 10**6)


def test_a_tensor_that_shows_more_than_the_file_holds_is_refused():
    rewrite(_stretched)
    assert_refused([f"ckpt_path={LAST}"], "a tensor in it shows more than the file holds")
    assert_refused([f"ckpt_path={BEST}", "episodes=2"], "a tensor in it shows more than the file holds", "evaluate")


def test_a_packed_file_is_refused():
    """Its contents may be of any size, and are read to verify them."""
    path = Path(LAST)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert_refused([f"ckpt_path={LAST}"], "in it is compressed")


@pytest.mark.parametrize("name", ["checkpoints/last.ckpt", "metrics.csv"])
def test_a_pipe_is_not_waited_for(name: str):
    Path("run", name).unlink()
    os.mkfifo(Path("run", name))
    assert_refused(RESUME, "is neither a file nor a folder")
    if name.endswith(".ckpt"):
        assert_refused([f"ckpt_path={LAST}", "episodes=2"], "is not a file", "evaluate")


def test_an_environment_that_calls_exit_does_not_end_the_run_well(monkeypatch: pytest.MonkeyPatch):
    def leave(*_: Any, **__: Any) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("qmix_lightning.envs.two_step.TwoStep.step", leave)
    outcome = inprocess.command(RESUME)
    assert outcome.status == 1
    assert outcome.err.startswith("error: environment 'two_step' failed: SystemExit: 0 (")
    assert outcome.err.count("\n") == 1
    assert json.loads(Path("run/summary.json").read_text())["status"] == "failed"
