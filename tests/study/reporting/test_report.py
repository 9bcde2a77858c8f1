"""``qmix-report``: which runs it finds, how it groups them, what it says of absent ones, what it writes."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from qmix_lightning.commands import report
from qmix_lightning.study.index import Study
from qmix_lightning.study.reporting.analysis import Analysis, analyse
from qmix_lightning.study.reporting.runs import find_runs
from support import inprocess
from support.run_folders import write_run


def study(folder: Path) -> Analysis:
    return analyse(find_runs([folder]))


def labels(analysis: Analysis) -> dict[tuple[str, str], list[int]]:
    return {(group.task, group.algorithm): [run.seed for run in group.runs] for group in analysis.groups}


def test_runs_are_grouped_by_task_algorithm_and_what_differs(tmp_path: Path):
    maps = {"3m": {"name": "smax", "scenario": "3m"}, "2s3z": {"name": "smax", "scenario": "2s3z"}}
    for name, env in maps.items():
        for seed in (1, 2):
            write_run(tmp_path / f"{name}-{seed}", [0.1, 0.2], seed=seed, env=env, metric="win_rate")
    write_run(tmp_path / "deep" / "below" / "lr", [0.1, 0.3], env=maps["3m"], optimizer={"lr": 0.5})
    write_run(tmp_path / "small", [1, 2], env={"name": "lbf", "kwargs": {"size": 5}}, algorithm="vdn")
    write_run(tmp_path / "large", [1, 2], env={"name": "lbf", "kwargs": {"size": 8}}, algorithm="vdn")
    assert labels(study(tmp_path)) == {
        ("lbf size=5", "vdn"): [1],
        ("lbf size=8", "vdn"): [1],
        ("smax 2s3z", "qmix"): [1, 2],
        ("smax 3m", "qmix lr=0.1"): [1, 2],
        ("smax 3m", "qmix lr=0.5"): [1],
    }


def test_an_environment_by_its_address_is_a_task_of_that_name(tmp_path: Path):
    write_run(tmp_path / "a", [1, 2], env={"name": "pettingzoo", "id": "my_game:make", "kwargs": {"size": 5}})
    write_run(tmp_path / "b", [1, 2], env={"name": "pettingzoo", "id": "my_game:make", "kwargs": {"size": 8}})
    write_run(tmp_path / "c", [1, 2], env={"name": "gymnasium", "id": "Foraging-8x8"})
    write_run(tmp_path / "d", [1, 2], env={"name": "pettingzoo", "id": "my_game:make", "kwargs": {}})
    write_run(tmp_path / "e", [1, 2], env={"name": "pettingzoo", "id": "other:make", "kwargs": {"walls": 3}})
    tasks = sorted(task for task, _ in labels(study(tmp_path)))
    assert tasks == [
        "gymnasium Foraging-8x8",
        "my_game:make",
        "my_game:make size=5",
        "my_game:make size=8",
        "other:make",
    ]


def test_runs_with_one_evaluation_have_no_curve_and_the_tables_say_so(tmp_path: Path):
    write_run(tmp_path / "one", [1])
    write_run(tmp_path / "two", [1, 2], env={"name": "mpe"})
    assert (
        report.write_report([tmp_path], tmp_path / "out", report.Options(figures=False, page=False))[0].count(
            "No curves"
        )
        == 1
    )
    (one,) = study(tmp_path / "one").results
    assert one.bands == {}


def test_runs_that_trained_at_other_times_have_no_curve_over_time_and_the_tables_say_so(tmp_path: Path):
    write_run(tmp_path / "quick", [1, 2], seed=1)
    slow = write_run(tmp_path / "slow", [1, 2], seed=2) / "summary.json"
    summary = json.loads(slow.read_text())
    slow.write_text(json.dumps(summary | {"eval_wall_s": [[100, 500.0], [200, 900.0]]}))
    (result,) = study(tmp_path).results
    assert list(result.bands) == ["env_steps"]
    written, *_ = report.write_report([tmp_path], tmp_path / "out", report.Options(figures=False))
    assert "No curve over training time of qmix: " in written
    page = (tmp_path / "out" / "report.html").read_text()
    drawn = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert drawn["axes"] == {"env_steps": "joint steps"}


def test_paths_loggers_and_presets_make_no_groups(tmp_path: Path):
    write_run(tmp_path / "a", [1, 2], seed=1, logger={"board": {"save_dir": "x"}}, preset="tuned")
    write_run(tmp_path / "b", [1, 2], seed=2, logger={}, preset="paper", checkpoint_interval=7)
    assert labels(study(tmp_path)) == {("lbf", "qmix"): [1, 2]}


def test_final_scores_are_those_of_runs_that_have_ended(tmp_path: Path):
    for seed, last in enumerate([1.0, 2.0, 6.0], 1):
        write_run(tmp_path / f"{seed}", [0.0, last], seed=seed)
    write_run(tmp_path / "4", [0.0, 100.0], seed=4, status="running")
    analysis = study(tmp_path)
    (result,) = analysis.results
    assert (result.seeds, result.values, result.iqm) == ([1, 2, 3], [1.0, 2.0, 6.0], 3.0)
    assert (result.bands["env_steps"].x[0], result.bands["env_steps"].x[-1]) == (100, 200)
    assert (result.bands["wall_s"].x[0], result.bands["wall_s"].x[-1]) == (10, 20)
    assert result.bands["env_steps"].iqm[-1] == 3.0
    (absent,) = analysis.absent
    assert (absent.name, absent.state) == ("lbf, qmix, seed 4", "running")


def test_an_evaluation_of_its_own_counts_more_than_the_last_one(tmp_path: Path):
    folder = write_run(tmp_path / "a", [1, 2])
    (folder / "final.json").write_text(json.dumps({"return_mean": 5.0, "episodes": 400}))
    assert study(tmp_path).results[0].values == [5.0]


def test_a_study_of_which_nothing_has_ended_shows_what_runs(tmp_path: Path):
    for seed in (1, 2):
        write_run(tmp_path / f"{seed}", [0.0, 1.0, 2.0], seed=seed, status="running" if seed == 1 else "")
    analysis = study(tmp_path)
    (result,) = analysis.results
    assert (result.values, result.running, result.bands["env_steps"].runs) == ([], 2, 2)
    assert [absent.state for absent in analysis.absent] == ["running", "running"]


def test_what_a_study_lacks_is_named(tmp_path: Path):
    index = Study(tmp_path)
    index.place("a1", "done", {})
    write_run(tmp_path / "done", [1, 2])
    index.place("b2", "never", {})
    index.place("c3", "broken", {})
    (tmp_path / "outcomes").mkdir()
    (tmp_path / "outcomes" / "c3.json").write_text(json.dumps({"status": "failed", "message": "no luck"}))
    write_run(tmp_path / "diverged", [1, 2], seed=7, status="diverged")
    damaged = write_run(tmp_path / "damaged", [1, 2], seed=8)
    (damaged / "config.yaml").write_text("a: [")
    linked = write_run(tmp_path / "linked", [1, 2], seed=9)
    (linked / "summary.json").rename(tmp_path / "elsewhere")
    (linked / "summary.json").symlink_to(tmp_path / "elsewhere")
    found = {(absent.name.rpartition("/")[2], absent.state, absent.reason[:7]) for absent in study(tmp_path).absent}
    assert found == {
        ("never", "missing", "not beg"),
        ("broken", "failed", "no luck"),
        ("lbf, qmix, seed 7", "diverged", "last ev"),
        ("damaged", "unreadable", "config."),
        ("linked", "unreadable", "summary"),
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", "env_steps,eval/return_mean\n100,inf\n"),
        ("metrics.csv", "env_steps,eval/return_mean\n100,1e300\n"),
        ("metrics.csv", "env_steps,eval/return_mean\n100," + "1" * 200_000),
        ("summary.json", "[" * 100_000),
        ("summary.json", '{"status": "completed", "eval_wall_s": [[100, "soon"]]}'),
        ("final.json", '{"return_mean": 1e999}'),
        ("config.yaml", "env: &a [*a]\n"),
        (
            "config.yaml",
            "a: &a [x, x, x]\n" + "".join(f"{n}: &{n} [*{b},*{b},*{b}]\n" for b, n in pairwise("abcdefghijklmno")),
        ),
        ("config.yaml", "env: " + "[" * 1_000),
        ("config.yaml", "env: {name: x}\nalgorithm: {name: y}\nseed: .inf\n"),
    ],
)
def test_a_run_that_cannot_be_read_is_named_and_the_others_are_reported(tmp_path: Path, name: str, content: str):
    write_run(tmp_path / "good", [1, 2])
    (write_run(tmp_path / "bad", [1, 2], seed=2) / name).write_text(content)
    analysis = study(tmp_path)
    assert [absent.state for absent in analysis.absent] == ["unreadable"]
    assert len(analysis.absent[0].reason) < 250
    assert analysis.results[0].values == [2.0]


def test_the_same_run_twice_counts_once(tmp_path: Path):
    write_run(tmp_path / "a", [1, 2], status="running")
    write_run(tmp_path / "b", [1, 3])
    analysis = study(tmp_path)
    assert analysis.results[0].values == [3.0]
    assert [absent.state for absent in analysis.absent] == ["double"]


def test_tasks_are_compared_on_a_scale(tmp_path: Path):
    for seed in (1, 2, 3):
        for algorithm, level in (("vdn", 0.0), ("qmix", 1.0)):
            for env, factor in (("lbf", 1), ("mpe", -50)):
                place = tmp_path / f"{env}-{algorithm}-{seed}"
                last = factor * (level if factor > 0 else 1 - level)
                write_run(place, [0.0, last], seed=seed, algorithm=algorithm, env={"name": env})
    write_run(tmp_path / "only", [0.0, 1.0], algorithm="iql")
    analysis = study(tmp_path)
    assert analysis.scales == {"lbf": (0.0, 1.0), "mpe": (-50.0, 0.0)}
    assert {o.algorithm: o.aggregates["IQM"] for o in analysis.overall} == {"qmix": (1, 1, 1), "vdn": (0, 0, 0)}
    assert analysis.improvement["qmix"]["vdn"] == pytest.approx((1, 1, 1))
    assert analysis.improvement["vdn"]["qmix"] == (0, 0, 0)


# -- what is written -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on five runs and one that has not ended; its folder."""
    folder = tmp_path_factory.mktemp("written")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as out:
        for seed in (1, 2):
            for algorithm in ("vdn", "qmix"):
                write_run(Path("runs") / f"{algorithm}{seed}", [0.0, 0.5, seed], seed=seed, algorithm=algorithm)
        write_run(Path("runs") / "odd", [0.0, 0.25], env={"name": "<script>alert(1)</script>_%&"})
        write_run(Path("runs") / "late", [0.0], seed=3, status="running", total_env_steps=300)
        assert run("runs") == 0
    assert "written to outputs/report/runs/report.html" in out.getvalue()
    return folder / "outputs" / "report" / "runs"


def run(*arguments: str) -> int:
    with inprocess.own_globals(["qmix-report", *arguments]), pytest.raises(SystemExit) as ended:
        report.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_what_is_written_can_be_read(written: Path):
    rows = list(csv.DictReader((written / "runs.csv").read_text().splitlines()))
    assert len(rows) == 6
    assert [(r["seed"], r["final"]) for r in rows if r["task"] == "lbf" and r["algorithm"] == "vdn"] == [
        ("1", "1.0"),
        ("2", "2.0"),
    ]
    results = list(csv.DictReader((written / "results.csv").read_text().splitlines()))
    assert {(r["task"], r["algorithm"]): r["iqm"] for r in results}["lbf", "vdn"] == "1.5"
    exported = json.loads((written / "marl_eval.json").read_text())["lbf"]["lbf"]["vdn"]
    assert exported["seed_2"]["step_1"] == {"step_count": 200, "elapsed_time": 20.0, "mean_episode_return": [0.5]}
    assert exported["seed_2"]["absolute_metrics"] == {"mean_episode_return": [2.0]}
    table = (written / "table.tex").read_text()
    assert r"\textbf{1.5} [1, 2]" in table
    assert r"alert(1)</script>\_\%\&" in table
    markdown = (written / "report.md").read_text()
    assert "| lbf, qmix, seed 3 | running | last evaluation after 100 steps |" in markdown


def test_the_figures_are_what_their_names_say(written: Path):
    figures = written / "figures"
    names = ("curves_env_steps", "curves_wall_s", "overall", "profiles")  # one algorithm on all tasks: no comparison
    assert {path.name for path in figures.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("png", "svg", "pdf")}
    assert (figures / "curves_wall_s.png").read_bytes().startswith(b"\x89PNG")
    assert (figures / "curves_wall_s.pdf").read_bytes().startswith(b"%PDF")
    assert ElementTree.parse(figures / "curves_env_steps.svg").getroot().tag.endswith("svg")


def test_a_comparison_of_single_runs_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    for task, returns in {"lbf": [0, 1], "mpe": [-3, -2], "rware": [0, 0]}.items():
        write_run(Path("runs") / task, returns, env={"name": task})
    assert run("runs", "page=false", "formats=[svg]") == 0
    shown = capsys.readouterr().out
    assert "lbf 0 to 1; mpe -3 to -2. Algorithms with a result on each of these." in shown
    assert "All evaluations are alike, and not counted, on rware." in shown
    texts = re.findall("<!-- (.*?) -->", Path("outputs/report/runs/figures/overall.svg").read_text())
    assert max(map(len, texts)) == len("normalised score"), "ticks are short numbers"
    assert all(len(text) <= 5 for text in texts if text[-1].isdigit())
    assert run("runs/rware", "page=false", "formats=[svg]", "output=outputs/report/runs") == 0
    found = {path.name for path in Path("outputs/report/runs/figures").iterdir()}
    assert found == {"curves_env_steps.svg", "curves_wall_s.svg"}, "what was drawn of other runs is gone"


def test_names_in_the_page_are_shown_and_not_run(written: Path):
    text = (written / "report.html").read_text()
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["a_file"], "a_file is a file: name the folder that it is in"),
        ([".", "output=a_file"], "output must be a folder, and a_file is a file"),
        (["."], "there is no run below ."),
        ([".", "metrc=win_rate"], "unknown key 'metrc'. Did you mean 'metric'?"),
        ([".", "metric=loss"], "metric must be "),
        ([".", "formats=[jpg]"], "unknown format 'jpg'"),
        ([".", "formats=png,jpg"], "unknown format 'jpg'"),
        (["page=false"], "name at least one folder"),
    ],
)
def test_a_mistake_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, typed: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    Path("a_file").touch()
    assert run(*typed) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


@pytest.mark.parametrize(("module", "typed"), [("matplotlib", "page=false"), ("plotly.offline", "figures=false")])
def test_a_missing_package_is_told_with_the_line_that_installs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module: str, typed: str
):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", [1, 2])
    monkeypatch.setitem(sys.modules, module, None)
    assert run("run", typed) == 2
    assert "pip install 'qmix-lightning[report]'" in capsys.readouterr().err
    assert run("run", "page=false", "figures=false") == 0


def test_many_runs_are_all_summed_up(tmp_path: Path):
    algorithms, tasks, seeds = ("iql", "vdn", "qmix", "qplex"), ("task0", "task1", "task2"), range(5)
    for algorithm, task, seed in itertools.product(algorithms, tasks, seeds):
        folder = tmp_path / "runs" / f"{task}_{algorithm}_{seed}"
        write_run(folder, [0.0, 0.5, float(seed)], seed=seed, algorithm=algorithm, env={"name": task})
    text, _ = report.write_report([tmp_path / "runs"], tmp_path / "out", report.Options(figures=False))
    analysis = study(tmp_path / "runs")
    assert len(list(csv.DictReader((tmp_path / "out" / "runs.csv").read_text().splitlines()))) == 60
    assert len(analysis.results) == 12
    for result in analysis.results:
        assert (result.values, result.iqm) == ([0.0, 1.0, 2.0, 3.0, 4.0], 2.0)
        assert result.bands["env_steps"].x[-1] == 300
        assert result.bands["env_steps"].iqm[-1] == 2.0
    assert len(re.findall(r"\| +5 +\| 2 +\| \S+ to \S+ +\| 2 +\|", text)) == 12
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<td>0: 0, 1: 1, 2: 2, 3: 3, 4: 4</td>") == 12
