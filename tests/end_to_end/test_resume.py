"""A killed run, resumed, ends as the run that was never killed: bit for bit."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from pathlib import Path

import pytest

from support import inprocess, runs
from support.processes import wait_until

ID = "env.id=support.fakes:VaryingLength"  # a checkpoint does not decide what is imported: it is said again
BUDGET = 300
"""Environment steps of one process: some thirty updates."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory):
    """Runs that are never killed, one for each number of ranks and budget."""
    made: dict[tuple[int, int], Path] = {}

    def get(ranks: int, budget: int) -> Path:
        if (ranks, budget) not in made:
            folder = tmp_path_factory.mktemp("reference") / "run"
            arguments = [*runs.BASE, f"total_env_steps={budget}", f"run_dir={folder}"]
            if ranks == 2:
                runs.run([*arguments, *runs.TWO_RANKS])
            else:
                inprocess.succeed(arguments)
            made[ranks, budget] = folder
        return made[ranks, budget]

    return get


def check(reference, tmp_path: Path, ranks: int, budget: int, kills: int, seed: int) -> int:
    folder, hit, done = runs.kill_and_resume(tmp_path, ranks, budget, kills, seed)
    whole = reference(ranks, budget)
    runs.assert_same_run(whole, folder)
    updates = int(runs.read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"])
    # An update is bought by at least one environment step, so an interval of steps bounds the updates that are redone;
    # the round in which the interval ends may add its own.
    assert done <= updates + hit * (60 + 12 * ranks)
    return hit


def test_a_killed_run_ends_like_an_unkilled_one(reference, tmp_path: Path):
    """Of two ranks: below, and with each algorithm."""
    assert check(reference, tmp_path, 1, BUDGET, kills=1, seed=1) == 1


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_twenty_kills(reference, tmp_path: Path, ranks: int):
    hit = sum(
        check(reference, tmp_path / str(part), ranks, 3000, kills=10, seed=10 * ranks + part) for part in range(2)
    )
    assert hit >= 20


OTHERS = ["iql", "vdn", "qmix_ns", "qmix_lin", "vdn_s", "qplex", "qatten"]
OTHERS += ["qtran_base", "qtran_alt", "cw_qmix", "ow_qmix"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("algorithm", OTHERS)
def test_a_killed_run_of_every_algorithm_with_replay(tmp_path: Path, algorithm: str, ranks: int):
    """The others learn from rounds, and are killed in test_on_policy_runs."""
    base = [*(a for a in runs.BASE if not a.startswith("mixer.")), f"algorithm={algorithm}"]
    whole = tmp_path / "whole"
    runs.run([*base, *(runs.TWO_RANKS if ranks == 2 else []), "total_env_steps=900", f"run_dir={whole}"])
    folder, hit, _ = runs.kill_and_resume(tmp_path, ranks, 900, kills=2, seed=ranks, base=base)
    assert hit >= 1
    runs.assert_same_run(whole, folder)


def test_a_signal_saves_and_ends_cleanly(reference, tmp_path: Path):
    """Ctrl-C, and SIGTERM when it has gone on."""
    folder, count = tmp_path / "run", tmp_path / "count"
    arguments = [*runs.BASE, f"total_env_steps={BUDGET}", f"run_dir={folder}", "checkpoint_interval=100000"]
    for number, name, status in ((signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)):
        goes_on = ["ckpt_path=last"] if folder.exists() else []
        process = runs.begun([*arguments, *goes_on], count, runs.lines(count) + 10)
        os.kill(process.pid, number)
        output = runs.finish(process)
        assert process.returncode == status, output
        assert "Traceback" not in output
        assert f"stopped by {name} and saved; to go on: qmix-train run_dir={folder} ckpt_path=last {ID}\n" in output
        assert '"status": "interrupted"' in (folder / "summary.json").read_text()
    inprocess.succeed([*arguments, "ckpt_path=last"])
    runs.assert_same_run(reference(1, BUDGET), folder)


def stopped_as_it_begins(
    typed: list[str], monkeypatch: pytest.MonkeyPatch, stop: BaseException | None = None
) -> inprocess.Outcome:
    """Run a command that a signal, Ctrl-C unless said, stops where training is about to begin."""

    def stopped(*_: object) -> None:
        raise stop or KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qmix_lightning.fit.print_start", stopped)
        return inprocess.command(typed)


@pytest.mark.parametrize(("stop", "number"), [(KeyboardInterrupt(), signal.SIGINT), (SystemExit(143), signal.SIGTERM)])
def test_a_signal_before_the_training_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, number: signal.Signals
):
    """Before its handlers are there, Python raises: interrupted, not failed, and what the message says goes on."""
    folder = tmp_path / "run"
    outcome = stopped_as_it_begins([*inprocess.TINY, f"run_dir={folder}"], monkeypatch, stop)
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert (outcome.status, outcome.err) == (
        128 + number,
        f"error: stopped by {name}; to go on: qmix-train run_dir={folder} ckpt_path=last\n",
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["ended_by"]) == ("interrupted", number.name)
    assert summary["why"] == f"stopped by {name}"
    inprocess.succeed([f"run_dir={folder}", "ckpt_path=last"])
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"


def test_a_signal_before_a_resumed_run_goes_on(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the run had reached stays in its summary, and in a new folder ``ckpt_path=last`` would begin anew."""
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(finished_run, first)
    before = json.loads((first / "summary.json").read_text())
    begun = [f"run_dir={first}", "ckpt_path=last", "total_env_steps=66"]
    elsewhere = [f"run_dir={second}", f"ckpt_path={first}/checkpoints/last.ckpt", "total_env_steps=66"]
    for typed in (begun, elsewhere):
        outcome = stopped_as_it_begins(typed, monkeypatch)
        assert (outcome.status, outcome.err) == (
            130,
            "error: stopped by Ctrl-C before the run went on: repeat the command\n",
        )
    summary = json.loads((first / "summary.json").read_text())
    assert summary == before | {"status": "interrupted", "ended_by": "SIGINT", "why": "stopped by Ctrl-C"}
    for typed in (elsewhere, begun):
        assert "goes on from environment step 60" in inprocess.succeed(typed).out


def test_a_signal_before_a_run_begins_from_networks(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They are named again, since a run's folder does not decide about them."""
    first, second = tmp_path / "the first", tmp_path / "second"
    shutil.copytree(finished_run, first)
    begun = [*inprocess.TINY, f"run_dir={second}", f"init_from='{first}'"]
    outcome = stopped_as_it_begins(begun, monkeypatch)
    typed = shlex.split(outcome.err.partition("to go on: qmix-train ")[2])
    assert typed == [f"run_dir={second}", "ckpt_path=last", f"init_from='{first}'"]
    inprocess.succeed(typed)


def test_a_run_goes_on_in_another_folder(reference, tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    inprocess.succeed([*runs.BASE, "total_env_steps=200", f"run_dir={first}"])
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    inprocess.succeed(
        [f"ckpt_path={first}/checkpoints/last.ckpt", f"run_dir={second}", f"total_env_steps={BUDGET}", ID]
    )
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    # The shorter run evaluated at its own end, which the longer one does not; all else is the same.
    whole = reference(1, BUDGET)
    a, b = (runs.read_checkpoint(f / "checkpoints" / "last.ckpt") for f in (whole, second))
    assert all(a["state_dict"][k].equal(v) for k, v in b["state_dict"].items() if hasattr(v, "equal"))
    assert runs.replay_hashes(whole / "checkpoints/last.ckpt") == runs.replay_hashes(second / "checkpoints/last.ckpt")
    losses = [{r["updates"]: r["train/loss"] for r in runs.rows(f) if r["train/loss"]} for f in (whole, second)]
    assert losses[0] == losses[1]


def test_slurm_requeue_saves_at_an_update_and_goes_on(reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, count, asked = tmp_path / "run", tmp_path / "count", tmp_path / "asked"
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    scontrol = bin_folder / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    for name, value in {"NTASKS": "1", "JOB_ID": "77", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NODEID", "0")
    arguments = [*runs.BASE, f"total_env_steps={BUDGET}", f"run_dir={folder}", "checkpoint_interval=100000"]
    process = runs.begun(arguments, count, 10)
    os.kill(process.pid, signal.SIGUSR1)
    wait_until(asked.exists, "no requeue was asked for")
    process.kill()  # as SLURM does
    runs.finish(process)
    assert asked.read_text().split() == ["requeue", "77"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    runs.run(arguments)
    runs.assert_same_run(reference(1, BUDGET), folder)


def test_a_checkpoint_of_lightnings_own_callback_resumes(reference, tmp_path: Path):
    own = "{_target_:pytorch_lightning.callbacks.ModelCheckpoint,every_n_train_steps:10,save_top_k:-1}"
    first, second = tmp_path / "first", tmp_path / "second"
    inprocess.succeed([*runs.BASE, f"total_env_steps={BUDGET}", f"run_dir={first}", f"callbacks.own={own}"])
    found = {int(path.stem.rpartition("=")[2]): path for path in first.rglob("*step=*.ckpt")}
    assert {10, 20} <= set(found)
    inprocess.succeed([f"ckpt_path={found[20]}", f"run_dir={second}", "callbacks=none", ID])
    runs.assert_same_run(reference(1, BUDGET), second)
