"""A study that is killed ends by repeating its command, each run bit for bit as if it had never been."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
import warnings
from pathlib import Path

import pytest

from support import runs
from support.processes import descendants

ALGORITHMS, SEEDS = ("iql", "vdn", "qmix"), (1, 2, 3, 4, 5)
TINY = [
    "preset=pymarl",
    "total_env_steps=1200",
    "eval_interval=400",
    "eval_episodes=4",
    "checkpoint_interval=100",
    "rollout.num_envs=2",
    "rollout.asynchronous=false",
    "replay.batch_size=4",
    "replay.capacity=64",
    "agent.hidden_dim=8",
    "num_threads=1",
    "trainer.accelerator=cpu",
    "logger=none",
]
LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "ray": [
        "hydra/launcher=ray",
        "+hydra.launcher.ray.init.num_cpus=2",
        "+hydra.launcher.ray.init.include_dashboard=false",
    ],
}


def command(folder: Path, launcher: str, seeds: tuple[int, ...] = SEEDS) -> list[str]:
    swept = [f"algorithm={','.join(ALGORITHMS)}", f"seed={','.join(map(str, seeds))}"]
    return ["-m", *swept, *TINY, *LAUNCHERS[launcher], f"run_dir={folder}"]


def finished(folder: Path) -> set[str]:
    done = set()
    for path in folder.glob("*/summary.json"):
        try:
            if json.loads(path.read_text())["status"] == "completed":
                done.add(path.parent.name)
        except ValueError:
            continue
    return done


def kill(process: int, how: str) -> None:
    """Kill a process, with ``tree`` and all below it."""
    for victim in [process, *(one.pid for one in descendants(process) if how == "tree")]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGTERM if how == "term" else signal.SIGKILL)


def kill_at_random(process: subprocess.Popen[str], folder: Path, rng: random.Random, how: str) -> None:
    wanted = len(finished(folder)) + rng.randint(0, 3)
    while process.poll() is None and len(finished(folder)) < wanted:
        time.sleep(0.1)
    time.sleep(rng.uniform(0, 12))
    assert process.poll() is None, "it ended before it was killed"
    kill(process.pid, how)
    process.wait(timeout=240)
    if process.stdout:
        process.stdout.close()


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("never") / "study"
    runs.finish(process := runs.start(command(folder, "joblib")), timeout=3000)
    assert process.returncode == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_study_that_is_killed_three_times(tmp_path: Path, never_killed: Path, launcher: str):
    folder, rng = tmp_path / "study", random.Random(launcher)
    for how in ("tree", "parent", "term"):
        kill_at_random(runs.start(command(folder, launcher)), folder, rng, how)
    output = runs.finish(process := runs.start(command(folder, launcher)), timeout=3000)
    assert process.returncode == 0, output
    names = {f"two_step_{algorithm}_seed{seed}" for algorithm in ALGORITHMS for seed in SEEDS}
    assert finished(folder) == finished(never_killed) == names
    for name in names:
        runs.assert_same_run(folder / name, never_killed / name)


@pytest.mark.slow
def test_a_study_is_extended_by_seeds(never_killed: Path):
    before = {name: (never_killed / name / "summary.json").stat().st_mtime_ns for name in finished(never_killed)}
    output = runs.finish(process := runs.start(command(never_killed, "joblib", (*SEEDS, 6, 7))), timeout=3000)
    assert process.returncode == 0, output
    new = {f"two_step_{algorithm}_seed{seed}" for algorithm in ALGORITHMS for seed in (6, 7)}
    assert finished(never_killed) == {*before, *new}
    assert {n: (never_killed / n / "summary.json").stat().st_mtime_ns for n in before} == before


@pytest.mark.slow
def test_a_search_that_is_killed_after_its_fourth_trial(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import optuna

    folder = tmp_path / "study"
    storage = f"sqlite:///{folder / 'optuna.db'}"
    arguments = [
        *(
            "-m",
            "hydra/sweeper=optuna",
            "hydra.sweeper.n_trials=8",
            "objective=return_mean",
            *TINY,
            "algorithm=vdn,qmix",
        ),
        *("optimizer.lr=tag(log,interval(1e-6,1e-2))", "hydra.sweeper.pruner_settings={n_startup_trials:2}"),
        *("hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=3", f"run_dir={folder}"),
    ]

    def trials() -> list[optuna.trial.FrozenTrial]:
        if not (folder / "optuna.db").exists():
            return []
        found = optuna.get_all_study_summaries(storage)
        return optuna.load_study(found[0].study_name, storage).trials if found else []

    process = runs.start(arguments)
    while process.poll() is None and sum(trial.state.is_finished() for trial in trials()) < 4:
        time.sleep(0.5)
    time.sleep(5)
    kill(process.pid, "tree")
    process.wait(timeout=60)
    cut_off = [trial.params for trial in trials() if not trial.state.is_finished()]
    output = runs.finish(process := runs.start(arguments), timeout=3000)
    assert process.returncode == 0, output
    found = trials()
    assert len(found) == 8
    assert len({tuple(sorted(trial.params.items())) for trial in found}) == 8
    assert all(params in [trial.params for trial in found] for params in cut_off)
    summaries = {path.parent: json.loads(path.read_text()) for path in folder.glob("*/summary.json")}
    assert len(summaries) == 8
    done = sorted(trial.value for trial in found if trial.state.name == "COMPLETE")
    assert done == sorted(s["objective"] for s in summaries.values() if s["status"] == "completed")
    pruned = [path for path, summary in summaries.items() if summary["status"] == "pruned"]
    assert len(pruned) == 8 - len(done) >= 1
    runs.run([f"run_dir='{pruned[0]}'", "ckpt_path=last"])
    assert json.loads((pruned[0] / "summary.json").read_text())["status"] == "completed"
