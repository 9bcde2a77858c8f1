"""``qmix-train -m`` makes a study: which runs it makes, what their folders are called, how they ended.

What a run's own command does is stood in for, since it takes seconds: ``tests/end_to_end/test_study.py`` has real ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qmix_lightning.config.run_config import RunConfig
from qmix_lightning.errors import RunError
from qmix_lightning.study import launchers, runner, sweep
from qmix_lightning.study.sweep import run_name
from support import inprocess


class Commands:
    """Stands in for the processes of runs: writes what a run leaves that a table and a sweep read."""

    made: list[list[str]]
    failing: str

    def __init__(self) -> None:
        self.stopping = 0

    def stop(self, number: int) -> None:
        raise AssertionError("nothing is stopped here")

    def call(self, module: str, arguments: Iterable[str], *args: Any, threads: int | None, **settings: Any) -> None:
        typed = dict(a.split("=", 1) for a in arguments)
        Commands.made.append([f"{k}={v}" for k, v in typed.items()])
        folder = Path(typed["run_dir"].strip("'"))
        folder.mkdir(parents=True)
        if Commands.failing in Commands.made[-1]:
            raise RunError("no luck")
        result = {"return_mean": float(typed["seed"])}
        summary = {"status": "completed", "eval": result, "env_steps": 60, "wall_s": 1.0}
        (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of the runs that were made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "Processes", Commands)
    Commands.made, Commands.failing = [], ""
    return Commands.made


def folders() -> set[str]:
    return {path.parent.name for path in Path("outputs/study").glob("*/summary.json")}


def train(*arguments: str) -> inprocess.Outcome:
    return inprocess.command(["-m", *inprocess.TINY, *arguments])


def test_the_command_again_makes_what_is_missing_and_what_it_was_extended_by(made: list[list[str]]):
    Commands.failing = "algorithm=qmix"
    outcome = train("algorithm=vdn,qmix", "seed=1")
    assert outcome.status == 1
    assert folders() == {"two_step_vdn_seed1"}
    assert "1 of 2 runs are not there" in outcome.err
    assert outcome.out.count("failed: no luck") == 1
    Commands.failing = ""
    made.clear()
    outcome = train("algorithm=vdn,qmix", "seed=1,2")
    assert outcome.status == 0
    assert len(made) == 3
    names = [f"two_step_{algorithm}_seed{seed}" for algorithm in ("vdn", "qmix") for seed in (1, 2)]
    assert folders() == set(names)
    lines = outcome.out.splitlines()
    table = lines[lines.index("outputs/study: 4 of 4 runs are there") + 2 :]
    assert [line.split()[:2] for line in table[:4]] == [
        [name, "done" if name == "two_step_vdn_seed1" else "finished"] for name in names
    ]


def test_processes_of_runs_print_no_traceback_that_nobody_asked_for(
    made: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    """They inherit the command's environment."""
    asked: list[str | None] = []
    call = Commands.call

    def with_environment(self: Commands, *args: Any, **settings: Any) -> None:
        asked.append(os.environ.get("HYDRA_FULL_ERROR"))
        call(self, *args, **settings)

    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(Commands, "call", with_environment)
    assert train("seed=1").status == 0
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert train("seed=2").status == 0
    assert asked == [None, "1"]


def test_runs_that_another_command_is_making_are_waited_for_once(
    made: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    """A second shell on the same study would else wait a minute at each of them, and say nothing."""
    now = [0.0]
    clock = SimpleNamespace(
        time=lambda: now[0],
        time_ns=lambda: int(now[0] * 1e9),
        monotonic=lambda: now[0],
        sleep=lambda seconds: now.__setitem__(0, now[0] + seconds),
    )
    monkeypatch.setattr(sweep, "time", clock)
    monkeypatch.setattr(runner, "time", clock)

    def held(descriptor: int, how: int) -> None:
        raise BlockingIOError

    monkeypatch.setattr(runner, "fcntl", SimpleNamespace(flock=held, LOCK_EX=0, LOCK_NB=0))
    outcome = train("seed=1,2,3")
    assert outcome.status == 1
    assert made == []
    assert now[0] == pytest.approx(60.0, abs=0.2)
    assert outcome.out.count("waits 60 s for its end") == 1
    assert outcome.out.count("left: another process is making it") == 3


@pytest.mark.parametrize(
    ("env", "swept", "name"),
    [
        ({"name": "two_step"}, ["seed=1"], "two_step_qmix_seed1"),
        ({"name": "two_step"}, ["seed=1", "+optimizer.lr=0.25"], "two_step_qmix_optimizer.lr=0.25_seed1"),
        ({"name": "two_step"}, ["callbacks={a:b/../c}"], "two_step_qmix_callbacks=-a-b-.-c-_seed1"),
        ({"name": "pettingzoo", "id": "support.unsuitable_envs:with_size"}, ["seed=1"], "with_size_qmix_seed1"),
    ],
)
def test_a_runs_folder_is_named_after_task_algorithm_and_what_is_swept(
    env: dict[str, str], swept: list[str], name: str
):
    assert run_name(cast("RunConfig", SimpleNamespace(env=env, algorithm={"name": "qmix"}, seed=1)), swept) == name


def test_choices_are_swept_by_a_pattern_and_seeds_by_a_range(made: list[list[str]]):
    assert train("algorithm=glob(vdn*)", "seed=range(1,3)").status == 0
    assert folders() == {f"two_step_{name}_seed{seed}" for name in ("vdn", "vdn_s") for seed in (1, 2)}


def test_what_is_typed_twice_counts_as_it_was_typed_last(made: list[list[str]]):
    """As Hydra has it: a script's own settings, and what its user adds behind them."""
    assert train("seed=1", "optimizer.lr=0.5", "optimizer.lr=0.1,0.25").status == 0
    assert folders() == {f"two_step_qmix_optimizer.lr={lr}_seed1" for lr in (0.1, 0.25)}
    assert train("seed=2", "optimizer.lr=0.1,0.25", "optimizer.lr=0.5").status == 0
    assert "two_step_qmix_seed2" in folders()


def test_one_configuration_that_does_not_fit_stops_no_other(made: list[list[str]]):
    outcome = train("seed=1", "optimizer.lr=0.1,-1,0.25")
    assert outcome.status == 1
    assert folders() == {f"two_step_qmix_optimizer.lr={lr}_seed1" for lr in (0.1, 0.25)}
    assert "optimizer.lr must be above 0" in outcome.out


def test_the_objective_has_to_be_in_the_evaluations(made: list[list[str]]):
    outcome = train("seed=1", "objective=win_rat")
    assert outcome.status == 1
    assert "its evaluations have no 'win_rat'" in outcome.err


def test_the_launcher_of_joblib_makes_runs(made: list[list[str]]):
    """In this process, since it is one at a time; ``tests/end_to_end/test_study.py`` has them side by side."""
    outcome = train("seed=1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1")
    assert outcome.status == 0, outcome
    assert len(made) == 1
    assert "1 of 1 runs are there" in outcome.out


@pytest.mark.parametrize(
    ("launcher", "cores"),
    [
        ({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}, None),
        ({"_target_": "a.JoblibLauncher", "n_jobs": 2}, 4),
        ({"_target_": "a.JoblibLauncher", "n_jobs": 3}, 2),
        ({"_target_": "a.JoblibLauncher", "n_jobs": 100}, 1),
        ({"_target_": "a.JoblibLauncher", "n_jobs": -1}, 1),
        ({"_target_": "a.RayLauncher", "ray": {"remote": {}}}, 1),
        ({"_target_": "a.RayLauncher", "ray": {"remote": {"num_cpus": 3}}}, 3),
        ({"_target_": "a.LocalLauncher", "cpus_per_task": None}, 1),
        ({"_target_": "a.SlurmLauncher", "cpus_per_task": 3}, 3),
        ({"_target_": "a.SlurmLauncher", "cpus_per_task": None}, None),
    ],
)
def test_cores_are_shared_among_the_jobs(monkeypatch: pytest.MonkeyPatch, launcher: dict[str, Any], cores: int | None):
    monkeypatch.setattr(launchers, "available_cores", lambda: 8)
    assert launchers.share_of_cores(launcher) == cores


@pytest.mark.parametrize(("launcher", "extra"), [("joblib", "sweep"), ("ray", "ray")])
def test_a_missing_plugin_is_told_with_the_line_that_installs_it(
    made: list[list[str]], monkeypatch: pytest.MonkeyPatch, launcher: str, extra: str
):
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: None)
    line = inprocess.refused(["-m", *inprocess.TINY, "seed=1", f"hydra/launcher={launcher}"])
    assert line == f"error: hydra/launcher={launcher} needs its plugin: pip install 'qmix-lightning[{extra}]'"


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("replay.batch_sise=4", "replay.batch_size"),
        ("replay.batch_size=65", "replay.batch_size (65) is larger"),
        ("mixer=qmixx", "qmixx"),
    ],
)
def test_a_mistake_of_all_jobs_is_one_line_before_anything_begins(made: list[list[str]], mistake: str, told: str):
    outcome = train("seed=1,2", mistake)
    assert outcome.status == 2
    assert told in outcome.err
    assert outcome.err.strip().count("\n") == 0
    assert outcome.out == ""
    assert made == []
    assert not Path("outputs").exists()
