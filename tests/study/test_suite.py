"""Suites: what they make of a run, and a line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmix_lightning.algorithms import ALGORITHMS
from qmix_lightning.cli.compose import composer
from qmix_lightning.config.env_address import trust
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.study.suite import load_suite, parse_suite, suite_names
from support.cases import every_value

GOOD = """\
summary: a suite
total_env_steps: 1000
evaluations: 4
overrides: [optimizer=adam]
replay: [rollout.num_envs=2]
seeds: [3]
tasks:
  two_step:
    overrides: [env=two_step]
    random: 4.75
    best: 8
  long: {overrides: [env=climbing], total_env_steps: 3000}
algorithms:
  vdn: [algorithm=vdn]
  coma:
    overrides: [algorithm=coma]
    learns_from_replay: false
    for_task:
      long: [algorithm.gamma=1]
published:
  - {task: two_step, algorithm: vdn, value: 7, env_steps: null, source: somebody}
"""


def test_overrides_stand_in_order():
    suite = parse_suite(GOOD, "mine", "mine.yaml")
    budget = ["total_env_steps=1000", "eval_interval=250", "eval_episodes=32"]
    assert suite.overrides_of("two_step", "vdn") == [
        *("optimizer=adam", "env=two_step", *budget, "rollout.num_envs=2", "algorithm=vdn"),
    ]
    assert suite.overrides_of("long", "coma") == [
        *("optimizer=adam", "env=climbing", "total_env_steps=3000", "eval_interval=750", "eval_episodes=32"),
        *("algorithm=coma", "algorithm.gamma=1"),
    ]
    assert (suite.seeds, suite.published[0].value, suite.tasks["two_step"].best) == ([3], 7.0, 8.0)


@pytest.mark.parametrize(
    ("was", "typed", "told"),
    [
        ("evaluations: 4", "evaluation: 4", "mine.yaml:3: unknown key 'evaluation'. Did you mean 'evaluations'?"),
        ("evaluations: 4", "evaluations: few", "mine.yaml:3: evaluations must be an integer, not 'few'"),
        ("evaluations: 4", "evaluations: 0", "mine.yaml:3: evaluations must be at least 1"),
        ("    random: 4.75", "    randm: 4.75", "mine.yaml:10: unknown key 'tasks.two_step.randm'. Did you mean"),
        ("    best: 8", "    best: high", "mine.yaml:11: tasks.two_step.best must be a number"),
        ("    best: 8", "    best: [8", "mine.yaml:12: "),
        ("    best: 8", "  best: 8", "mine.yaml:11: tasks.best must be a mapping"),
        ("  vdn: [", "  v dn: [", "mine.yaml:13: algorithms.v dn must be named by letters"),
        ("[algorithm=vdn]", "algorithm=vdn", "mine.yaml:14: algorithms.vdn must be a mapping"),
        ("[algorithm=vdn]", "[vdn]", "mine.yaml:14: algorithms.vdn.overrides must be a list of overrides like"),
        (
            "      long:",
            "      lnog:",
            "mine.yaml:19: algorithms.coma.for_task.lnog: unknown task 'lnog'. Did you mean",
        ),
        ("task: two_step, alg", "task: too_step, alg", "mine.yaml:21: published.0.task: unknown task 'too_step'. Did"),
        ("source: somebody", "by: somebody", "mine.yaml:21: unknown key 'published.0.by'"),
        ("seeds: [3]", "seeds: [a]", "mine.yaml:6: seeds.0 must be an integer"),
        ("    for_task:", "    on:", "mine.yaml:15: algorithms.coma has a key that YAML reads as True"),
        ("summary: a suite\n", "", "missing value: summary"),
        ("summary: a suite", "name: a suite", "mine.yaml:1: unknown key 'name': a suite is named by its file"),
    ],
)
def test_a_mistake_is_told_with_its_line(was: str, typed: str, told: str):
    assert was in GOOD
    with pytest.raises(ConfigurationError) as raised:
        parse_suite(GOOD.replace(was, typed, 1), "mine", "mine.yaml")
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "override",
    [
        "callbacks.evil={_target_:evil.make}",
        "+callbacks.evil._target_=evil.make",
        "env.id=evil:make",
        "env.kwargs={scenario:'evil.maps:make'}",
        "rollout.python=/bin/sh",
        "rollout={python:/bin/sh}",
        "run_dir=../outside",
        "hydra.run.dir=../outside",
        "hydra/launcher=joblib",
        "--config-dir=../outside",
        "trainer.profiler=${oc.env:HOME}",
    ],
)
def test_a_suite_holds_names_and_numbers(override: str):
    with pytest.raises(ConfigurationError, match=r"mine\.yaml:14: .* which a file does not decide"):
        parse_suite(GOOD.replace("[algorithm=vdn]", f'[algorithm=vdn, "{override}"]'), "mine", "mine.yaml")


def test_a_suite_names_a_module_that_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    trust("mine.games")
    suite = parse_suite(GOOD.replace("[algorithm=vdn]", '[algorithm=vdn, "env.id=mine.games:make"]'), "mine", "x")
    assert suite.algorithms["vdn"].overrides[-1] == "env.id=mine.games:make"


@pytest.mark.parametrize("text", ["", "- a", "a", "tasks: {}", "a: &a [*a]", "{}: 1", "x: 2020-13-13", "[" * 1_000])
def test_what_is_no_suite_at_all(text: str):
    with pytest.raises(ConfigurationError, match=r"mine\.yaml[: ]"):
        parse_suite(text, "mine", "mine.yaml")


def test_a_suite_of_the_users_own_is_a_path(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(GOOD)
    assert load_suite(str(tmp_path / "mine.yaml")).name == "mine"
    with pytest.raises(ConfigurationError, match=r"none\.yaml cannot be read: No such file"):
        load_suite(str(tmp_path / "none.yaml"))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match=r"cannot be read: it is not text in UTF-8"):
        load_suite(str(tmp_path / "bytes.yaml"))


def test_an_unknown_suite_gets_the_nearest():
    with pytest.raises(ConfigurationError, match=r"unknown suite 'gamse'\. Did you mean 'games'\?"):
        load_suite("gamse")


def shipped() -> dict[str, list[tuple[str, str]]]:
    """Tasks with algorithms, by suite: every task, and each way to set up an algorithm where it occurs first."""
    cases, known = {}, set()
    for name in suite_names():
        suite = load_suite(name)
        new = [label for label, algorithm in suite.algorithms.items() if repr(algorithm) not in known]
        known |= {repr(algorithm) for algorithm in suite.algorithms.values()}
        cases[name] = every_value(suite.tasks, new or list(suite.algorithms)[:1])
    return cases


@pytest.mark.parametrize(("name", "cases"), shipped().items())
def test_every_shipped_suite_composes_for_every_task_and_algorithm(name: str, cases: list[tuple[str, str]]):
    suite = load_suite(name)
    with composer() as compose:
        for task, algorithm in cases:
            (config,) = compose([*suite.overrides_of(task, algorithm), "num_threads=1"], [suite.seeds[0]])
            assert config.total_env_steps == suite.budget(task)
            assert algorithm not in ALGORITHMS.names() or algorithm == config.algorithm["name"]
            assert config.rollout.asynchronous != "auto", "or it would depend on the machine's cores"
