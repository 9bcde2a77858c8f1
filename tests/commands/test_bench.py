"""``qmix-bench``: what is typed; a suite that is killed and goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from statistics import mean

import pytest

from qmix_lightning.commands import bench
from qmix_lightning.errors import ConfigurationError
from support import inprocess, runs
from support.processes import running, wait_until
from support.suites import SUITE, small_plan, write_rows


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["seeds=3"], "suite needs a value: suite=games; --help lists them"),
        (["suite=gamse"], "unknown suite 'gamse'. Did you mean 'games'?"),
        (["suite=games", "tasks=two_stpe"], "unknown task 'two_stpe'. Did you mean 'two_step'?"),
        (["suite=games", "algorithms=[vdn,qmixx]"], "unknown algorithm 'qmixx'. Did you mean 'qmix'?"),
        (["suite=games", "seed=3"], "unknown key 'seed'. Did you mean 'seeds'?"),
        (["suite=games", "seeds=0"], "seeds must be at least 1, not 0"),
        (["suite=games", "seeds=a"], "seeds must be a number of them, seeds=3, or a list of integers, seeds=[1,2]"),
        (["suite=games", "jobs=0"], "jobs must be at least 1, not 0"),
        (["suite=games", "jobs=many"], "jobs must be an integer or null, not 'many'"),
        (["suite=games", "--jobs"], "cannot read '--jobs', which should be key=value. Did you mean 'jobs='?"),
        (["suite=games", "suite=lbf"], "suite is given twice"),
        (["suite=games", "tasks=[two_step"], "cannot read 'tasks=[two_step': "),
        (
            ["suite=games", "tasks=[two_step,", "climbing]"],
            "cannot read 'tasks=[two_step,': a list is closed and",
        ),
        (["games", "seeds=2"], "cannot read 'games', which should be key=value. Did you mean 'suite=games'?"),
        (["mine.yaml"], "cannot read 'mine.yaml', which should be key=value. Did you mean 'suite=mine.yaml'?"),
        (["suite=games", "also=optimizer.lr=1e-3"], "also must be a list of overrides: also=[optimizer.lr=1e-3]"),
        (["suite=games", "also=[seed=3]"], "seed is set by qmix-bench for each run"),
        (["suite=games", "also=[3]"], "also must be a list of overrides, also=[optimizer.lr=1e-3], not 3"),
        (["suite=games", "rerun=all"], "rerun must be one of none, stale, not 'all'"),
        (["suite=none.yaml"], "the suite none.yaml cannot be read: No such file or directory"),
    ],
)
def test_a_mistake_gets_one_line(typed: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as raised:
        bench._bench(typed)
    assert str(raised.value).startswith(told)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


def test_training_points_to_where_suites_are_run():
    assert inprocess.refused(["suite=games"]) == "error: suites are run by qmix-bench suite=..."


def test_rows_of_the_project_are_kept_for_everybody_and_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert bench._results("games", Path("study"), False) == Path("study/results")
    for name in ("benchmarks/results", "conf/suite", "docs"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "docs")
    assert bench._results("games", Path("study"), False) == tmp_path / "benchmarks" / "results" / "games"
    assert bench._results("games", Path("study"), True) == Path("study/results"), "not the suite as it is"


def test_rows_that_are_there_are_done_without_their_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plan = small_plan(tmp_path)
    write_rows(plan, {(task, name): [7.0, 8.0] for task in plan.tasks for name in plan.algorithms})
    bench._bench([f"suite={tmp_path}/small.yaml", f"folder={tmp_path}/elsewhere", f"results={tmp_path}/rows"])
    printed = capsys.readouterr().out
    assert printed.startswith("small: 8 of 8 runs are done\n")
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"results.md", "results.json", "curves.svg"}


def test_nothing_is_run_if_that_was_not_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "small.yaml").write_text(SUITE)
    bench._bench([f"suite={tmp_path}/small.yaml", f"folder={tmp_path}/study", "run=false", f"results={tmp_path}/rows"])
    assert capsys.readouterr().out == "no run has finished yet\n"
    assert not (tmp_path / "study").exists()


def wait_for(condition, process: runs.Command) -> None:
    wait_until(lambda: condition() or process.poll() is not None, "nothing is saved", 300)
    assert process.poll() is None, process.printed()


def at_work(folder: Path) -> list[int]:
    """Processes with a folder in their command line."""
    return [one.pid for one in running() if str(folder) in one.command and one.pid != os.getpid()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_a_suite_that_was_killed_goes_on_and_its_table_is_that_of_its_rows(tmp_path: Path):
    plan = small_plan(tmp_path, tasks=("two_step",), env_steps=600)
    write_rows(plan, {("two_step", "vdn"): [7.5]})  # as if the first of two runs was finished
    study, rows = tmp_path / "study", tmp_path / "rows"
    chosen = ["tasks=two_step", "algorithms=[vdn]", "jobs=1"]
    command = [f"suite={tmp_path}/small.yaml", *chosen, f"folder={study}", f"results={rows}"]

    process = runs.start(command, "qmix_lightning.commands.bench")
    begun = study / "two_step" / "vdn" / "seed2" / "checkpoints" / "last.ckpt"
    wait_for(begun.exists, process)
    process.kill()
    process.wait()
    wait_until(lambda: not at_work(study), "a run outlived its suite")
    before = {path.name: path.stat().st_mtime_ns for path in rows.glob("*.json")}
    assert len(before) == 1

    printed = runs.run(command, "qmix_lightning.commands.bench")
    assert printed.startswith("small: 1 of 2 runs are done\n")
    after = {path.name: path.stat().st_mtime_ns for path in rows.glob("*.json")}
    assert len(after) == 2
    assert all(after[name] == written for name, written in before.items()), "what was finished was run again"
    assert [path.name for path in (study / "two_step" / "vdn").glob("seed*")] == ["seed2"]
    assert int(runs.rows(study / "two_step" / "vdn" / "seed2")[-1]["env_steps"]) >= 600

    contents = [json.loads(path.read_text()) for path in sorted(rows.glob("*.json"))]
    assert all(path.stat().st_size < 10_000 for path in rows.glob("*.json"))
    assert all(len(content["evaluations"]["env_steps"]) == 3 for content in contents)
    made = contents[[content["seed"] for content in contents].index(2)]
    assert (made["final"]["seed"], made["final"]["episodes"]) == (1000, 2)
    assert made["evaluations"]["wall_s"] == sorted(made["evaluations"]["wall_s"])
    assert made["evaluations"]["wall_s"][-1] <= made["wall_s"]
    values = [content["final"]["return_mean"] for content in contents]
    line = next(line for line in printed.splitlines() if line.startswith("| vdn "))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    iqm = f"{mean(values):.3g}"  # of two runs neither is cut
    interval = f"{min(values):.3g} to {max(values):.3g}"  # a quarter of the samples is either run twice
    assert cells[1:5] == ["2", iqm, interval, f"{mean(values):.3g}"]

    assert runs.run(command, "qmix_lightning.commands.bench").startswith("small: 2 of 2 runs are done\n")


@pytest.mark.slow
def test_ctrl_c_saves_and_a_failure_stops_no_other(tmp_path: Path):
    text = SUITE.replace("total_env_steps: 300", "total_env_steps: 4000").replace("seeds: [1, 2]", "seeds: [1]")
    (tmp_path / "small.yaml").write_text(text)
    study = tmp_path / "study"
    command = [
        f"suite={tmp_path}/small.yaml",
        "tasks=two_step",
        "jobs=2",
        f"folder={study}",
        f"results={tmp_path}/rows",
    ]
    process = runs.start(command, "qmix_lightning.commands.bench")
    folders = [study / "two_step" / name / "seed1" for name in ("vdn", "qmix")]
    wait_for(lambda: all((folder / "checkpoints" / "last.ckpt").exists() for folder in folders), process)
    process.send_signal(signal.SIGINT)
    printed = runs.finish(process)
    assert process.returncode == 130
    assert printed.endswith("error: stopped by Ctrl-C; what was begun is saved: the same command goes on\n")
    assert at_work(study) == []
    for folder in folders:
        assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"

    for path in (folders[0] / "checkpoints").glob("*.ckpt"):
        path.write_bytes(b"damaged")
    process = runs.start(command, "qmix_lightning.commands.bench")
    printed = runs.finish(process, timeout=500)
    assert process.returncode == 1, printed
    assert re.search(
        r"^\[\d/2\] two_step vdn seed 1: failed: no checkpoint in .* can be resumed", printed, re.MULTILINE
    )
    assert re.search(r"^\[1/2\] two_step qmix seed 1: [\d.]+ \(\d+ s\)$", printed, re.MULTILINE)
    assert printed.endswith("error: 1 of 2 runs are not there; the same command tries them again\n")
