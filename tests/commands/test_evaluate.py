"""``qmix-eval``: the table, the JSON, and the same numbers as training's own evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qmix_lightning.commands.evaluate import evaluate
from support import inprocess

FAKE = ["env=pettingzoo", "env.id=support.fakes:VaryingLength"]
ID = "env.id=support.fakes:VaryingLength"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on episodes of varying length, which may be won."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    tiny = [a for a in inprocess.TINY if not a.startswith("eval_episodes")]
    inprocess.succeed([*FAKE, f"run_dir={folder}", "seed=3", "eval_episodes=7", *tiny])
    return folder


def result_of(arguments: list[str]) -> dict[str, Any]:
    return json.loads(inprocess.succeed([*arguments, "output=-"], "evaluate").out)


@pytest.mark.parametrize(("name", "env_counts"), [("best", (1, 8)), ("last", (3,))])
def test_it_sees_what_training_saw(run: Path, name: str, env_counts: tuple[int, ...]):
    """With the run's seed and number of episodes, however many environments step together."""
    path = run / "checkpoints" / f"{name}.ckpt"
    payload = torch.load(path, weights_only=True)
    seen = payload["eval"] if name == "best" else json.loads((run / "summary.json").read_text())["eval"]
    seen = {key.removeprefix("eval/"): value for key, value in seen.items()}
    for num_envs in env_counts:
        result = result_of([f"ckpt_path={path}", "episodes=7", f"num_envs={num_envs}", "seed=3", ID])
        for key in ("return_mean", "return_ci95", "length_mean", "win_rate"):
            assert result[key] == pytest.approx(seen[key], abs=1e-9), key
        assert (result["episodes"], result["seed"], result["env_steps"]) == (7, 3, payload["env_steps"])
    assert result_of([f"ckpt_path={path}", "episodes=7", "seed=4", ID])["return_mean"] != seen["return_mean"]


def test_the_json_has_these_fields(run: Path, tmp_path: Path):
    path, target = run / "checkpoints" / "best.ckpt", tmp_path / "new" / "result.json"
    shown = inprocess.succeed([f"ckpt_path={path}", "episodes=5", ID, f"output={target}"], "evaluate")
    result = json.loads(target.read_text())
    assert list(result) == [
        "policy",
        "env",
        "env_given",
        "algorithm",
        "seed",
        "env_steps",
        "episodes",
        "num_envs",
        "epsilon",
        "return_mean",
        "return_ci95",
        "length_mean",
        "win_rate",
        "versions",
    ]
    assert (result["env"], result["algorithm"]) == ("VaryingLength", "qmix")
    assert (Path(result["policy"]).resolve(), result["env_given"]) == (path.resolve(), {})
    assert 0 <= result["win_rate"] <= 1
    assert 3 <= result["length_mean"] <= 12
    rows = dict(line.split(maxsplit=1) for line in shown.out.splitlines())
    assert rows["episodes"] == "5, seed 1003", "not the episodes that chose the best checkpoint"
    assert rows["return"] == f"{result['return_mean']:.4g} ± {result['return_ci95']:.2g} (95 %)"
    assert rows["win"].split() == ["rate", f"{result['win_rate']:.1%}"]
    assert str(target) in shown.out
    assert shown.err == ""


def test_it_writes_into_the_run_folder(run: Path):
    inprocess.succeed([f"ckpt_path={run}/checkpoints/last.ckpt", "episodes=2", ID], "evaluate")
    assert json.loads((run / "eval.json").read_text())["episodes"] == 2


def test_one_episode_has_no_interval(run: Path):
    arguments = [f"ckpt_path={run}/checkpoints/best.ckpt", "episodes=1", ID]
    assert result_of(arguments)["return_ci95"] is None
    assert "±" not in inprocess.succeed(arguments, "evaluate").out


def test_random_play_can_be_asked_for(run: Path):
    """With ``epsilon=1`` the weights do not matter: two checkpoints play the same episodes."""
    shown = inprocess.succeed([f"policy={run}", "episodes=6", "epsilon=1", ID], "evaluate")
    assert "6, seed 1003, epsilon 1" in shown.out
    results = [
        result_of([f"ckpt_path={run}/checkpoints/{name}.ckpt", "episodes=6", f"epsilon={epsilon}", ID])
        for name, epsilon in (("best", 1), ("last", 1), ("best", 0))
    ]
    returns = [result["return_mean"] for result in results]
    assert returns[0] == returns[1] != returns[2]


def test_a_task_that_cannot_be_won_has_no_win_rate(finished_run: Path):
    result = result_of([f"ckpt_path={finished_run}/checkpoints/best.ckpt", "episodes=3"])
    assert "win_rate" not in result
    assert result["return_mean"] in (0.0, 1.0, 7.0, 8.0), "the two-step game is deterministic"
    assert result["return_ci95"] == 0


def test_settings_of_the_environment_can_be_changed(run: Path):
    path = f"ckpt_path={run}/checkpoints/best.ckpt"
    plain = result_of([path, "episodes=6", ID])
    assert result_of([path, "episodes=6", ID, "env.episode_limit=2"])["length_mean"] == 2
    longer = result_of([path, "episodes=6", ID, "env.kwargs.extra_length=20", "env.reward_aggregation=sum"])
    assert longer["env_given"] == {"kwargs.extra_length": 20}
    assert longer["length_mean"] == plain["length_mean"] + 20
    mean = result_of([path, "episodes=6", ID, "env.reward_aggregation=mean"])
    assert mean["return_mean"] == pytest.approx(plain["return_mean"] / 3)


def test_several_at_once_leave_nothing_of_hydras_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    outcome = inprocess.succeed(["-m", "policy=two_step", "episodes=1,2", "output=-"], "evaluate")
    assert [json.loads(line)["episodes"] for line in outcome.out.splitlines()] == [1, 2]
    assert inprocess.command(["-m", "policy=nowhere"], "evaluate").status == 2
    assert list(tmp_path.iterdir()) == []


def test_from_python(run: Path):
    result = evaluate(
        str(run / "checkpoints" / "best.ckpt"),
        episodes=4,
        num_envs=2,
        seed=None,
        env={"id": "support.fakes:VaryingLength"},
    )
    assert result["episodes"] == 4


def test_an_empty_output_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    inprocess.succeed(["two_step", "episodes=1", "output="], "evaluate")
    assert not list(tmp_path.glob("**/*.json"))
