"""``qmix-export``: the folder, the card and the programs, by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmix_lightning.policies import open_policy
from support import inprocess


def test_the_learners_part_is_there_on_demand(finished_run: Path, tmp_path: Path):
    outcome = inprocess.succeed([str(finished_run), f"output={tmp_path / 'team'}"], "export")
    assert outcome.out == f"written to {tmp_path / 'team'}: policy.json, policy.safetensors\n"
    assert open_policy(tmp_path / "team").build_learner() is None
    inprocess.succeed([str(finished_run), f"output={tmp_path / 'whole'}", "learner=true"], "export")
    assert open_policy(tmp_path / "whole").build_learner() is not None


def test_it_plays_as_the_checkpoint_does_and_as_its_card_says(finished_run: Path, tmp_path: Path):
    team = tmp_path / "team"
    typed = [f"output={team}", "card=true", "episodes=5", "task=Agree, in (two) steps: [1, 2]."]
    typed.append("command=qmix-train env=two_step")
    inprocess.succeed([str(finished_run), *typed], "export")
    card = open_policy(team).card
    assert card is not None
    assert (card["task"], card["command"]) == ("Agree, in (two) steps: [1, 2].", "qmix-train env=two_step")
    of_team = json.loads(inprocess.succeed([str(team), "output=-"], "evaluate").out)
    of_run = json.loads(inprocess.succeed([str(finished_run), "episodes=5", "output=-"], "evaluate").out)
    assert of_team.pop("card")["holds"]
    assert of_team.pop("policy") != of_run.pop("policy")
    assert of_team == of_run


def test_what_is_typed_for_a_card_or_programs_that_are_not_asked_for(finished_run: Path, tmp_path: Path):
    typed = ["task=agree", "episodes=5", "verify_steps=9", "num_envs=2"]
    outcome = inprocess.succeed([str(finished_run), f"output={tmp_path / 'team'}", *typed], "export")
    assert outcome.err.splitlines() == [
        "task changes nothing: it is for card=true",
        "episodes changes nothing: it is for card=true",
        "verify_steps changes nothing: it is for programs=onnx or torch_export",
        "num_envs changes nothing: it is for card=true, and for programs, which it verifies",
    ]
    used = [*typed, "card=true", "programs=torch_export", f"output={tmp_path / 'used'}"]
    assert inprocess.succeed([str(finished_run), *used], "export").err == ""


def test_a_program_is_verified_and_told(finished_run: Path, tmp_path: Path):
    typed = [f"output={tmp_path / 'team'}", "programs=torch_export", "verify_steps=40"]
    outcome = inprocess.succeed([str(finished_run), *typed], "export")
    assert "torch_export: 0 of 80 choices differ in 40 steps" in outcome.out
    assert (tmp_path / "team" / "programs" / "set_0.pt2").is_file()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["output=team", "programs=onx"], "programs: there is no kind 'onx'. Did you mean 'onnx'?"),
        (["output=team", "verify_steps=-1"], "verify_steps must be at least 0, not -1"),
        (["output=taken"], "taken holds something already"),
        ([], "output needs a value"),
        (["two_step", "output=team"], "and two_step are two policies: name one"),
        (["output=team", "seeds=1"], "unknown key 'seeds'"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    Path("taken/file").touch()
    inprocess.refused([str(finished_run), *typed], message, name="export")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_an_environment_that_no_program_could_play_is_told_before_any_is_made(finished_run: Path, tmp_path: Path):
    typed = [f"output={tmp_path / 'team'}", "programs=torch_export", "env.sice=3"]
    outcome = inprocess.command([str(finished_run), *typed], "export")
    assert (outcome.status, outcome.out) == (2, ""), outcome
    assert "unknown key 'env.sice'" in outcome.err
