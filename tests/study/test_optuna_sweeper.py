"""A search goes on in its storage: nothing is repeated, what was cut off is made to its end, failures are tried again.

Runs are stood in for; ``tests/end_to_end/test_study.py`` searches with real ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from qmix_lightning.errors import RunError
from qmix_lightning.runtime.trial import TRIAL, load_trial
from qmix_lightning.study import sweep
from support import inprocess

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
SEARCH = ["hydra/sweeper=optuna", "objective=return_mean", "optimizer.lr=interval(0.1,0.9)", "run_dir=study"]


class Runs:
    """Stands in for the processes of runs: a run's return is its learning rate."""

    made: list[float]
    killed_at: int | None
    failing_at: int | None

    def __init__(self) -> None:
        self.stopping = 0

    def stop(self, number: int) -> None:
        self.stopping = number

    def call(self, module: str, arguments: Iterable[str], *args: Any, **settings: Any) -> None:
        typed = dict(a.split("=", 1) for a in arguments)
        number, value = len(Runs.made), float(typed["optimizer.lr"])
        Runs.made.append(value)
        if number == Runs.killed_at:
            raise KeyboardInterrupt
        if number == Runs.failing_at:
            raise RunError("no luck")
        trial = load_trial(os.environ[TRIAL])
        pruned = False
        for step in (20, 40):
            trial.report(value, step)
            pruned = trial.should_prune()
            if pruned:
                break
        folder = Path(typed["run_dir"].strip("'"))
        folder.mkdir(parents=True)
        summary = {"status": "pruned" if pruned else "completed", "objective": value, "env_steps": step, "wall_s": 1.0}
        (folder / "summary.json").write_text(json.dumps({**summary, "eval": {"return_mean": value}}))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rates of the runs that were begun, below a folder whose name JSON writes with backslashes."""
    folder = tmp_path / "Läufe 1"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sweep, "Processes", Runs)
    Runs.made, Runs.killed_at, Runs.failing_at = [], None, None
    return Runs.made


def search(*arguments: str) -> inprocess.Outcome:
    return inprocess.command(["-m", *inprocess.TINY, *SEARCH, *arguments])


def trials() -> list[Any]:
    import optuna  # for which all workers would wait while they collect

    (summary,) = optuna.get_all_study_summaries("sqlite:///study/optuna.db")
    return optuna.load_study(summary.study_name, "sqlite:///study/optuna.db").trials


def test_a_search_that_was_killed_goes_on(made: list[float]):
    settings = ["hydra.sweeper.n_trials=3", "hydra.sweeper.pruner=none"]
    Runs.killed_at = 1
    assert search(*settings).status == 130
    assert len(trials()) == 2
    Runs.killed_at = None
    outcome = search(*settings)
    assert outcome.status == 0, outcome
    found = trials()
    assert [trial.state.name for trial in found] == ["COMPLETE"] * 3
    assert made[1] == made[2], "the trial that was cut off is made to its end"
    assert [trial.value for trial in found] == [made[0], *made[2:]] == [t.params["optimizer.lr"] for t in found]
    assert f"best of 3 trials: {max(made):.6g}" in outcome.out
    again = search(*settings)
    assert (again.status, len(made)) == (0, 4)


def test_a_trial_is_pruned_by_its_evaluations_and_a_failed_one_tried_again(made: list[float]):
    settings = [
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.sampler.seed=1",
        "hydra.sweeper.pruner_settings={n_startup_trials:1}",
    ]
    Runs.failing_at = 1
    assert search(*settings).status == 1
    assert [trial.state.name for trial in trials()].count("FAIL") == 1
    outcome = search(*settings)
    assert outcome.status == 0
    assert "best of 3 trials: " in outcome.out, "what failed is not one of them"
    assert made[3] == made[1]
    found = trials()
    states = [trial.state.name for trial in found]
    assert (states.count("FAIL"), len(states)) == (1, 4)
    (pruned,) = (trial for trial in found if trial.state.name == "PRUNED")
    (summary,) = Path("study").glob(f"*lr={pruned.params['optimizer.lr']}_*/summary.json")
    assert json.loads(summary.read_text())["status"] == "pruned"


@pytest.mark.parametrize("kind", ["noise", "pipe", "link"])
def test_a_storage_that_is_none_is_told(made: list[float], kind: str):
    Path("study").mkdir()
    if kind == "noise":
        Path("study/optuna.db").write_bytes(bytes(range(256)) * 16)
    elif kind == "pipe":
        os.mkfifo("study/optuna.db")
    else:
        Path("study/optuna.db").symlink_to("/etc/passwd")
    outcome = inprocess.command(["-m", *SEARCH])
    assert outcome.status == 2
    told = "cannot be opened: (sqlite3.DatabaseError)" if kind == "noise" else "is a link or no file"
    assert told in outcome.err.splitlines()[-1]
    assert made == []


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["objective=null"], "compares runs by objective="),
        (["optimizer.lr=0.1"], "has nothing to search"),
        (["hydra.sweeper.pruner=medean"], "Did you mean 'median'?"),
        (["hydra.sweeper.pruner_settings={n_start:1}"], "hydra.sweeper.pruner_settings: "),
    ],
)
def test_a_search_that_cannot_begin(made: list[float], typed: list[str], message: str):
    inprocess.refused(["-m", *inprocess.TINY, *SEARCH, *typed], message)
    assert made == []
