"""The policies that come with the package: opened by name, and as good as their cards say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmix_lightning.policies import open_policy
from qmix_lightning.policies.card import compare
from qmix_lightning.policies.zoo import zoo_folder, zoo_names
from support import inprocess


def test_six_policies_are_there_and_small():
    assert set(zoo_names()) == {"two_step", "simple_spread", "lbf", "smax_3m", "balance", "rware"}
    sizes = [path.stat().st_size for name in zoo_names() for path in zoo_folder(name).rglob("*")]
    assert sum(sizes) < 4_000_000


@pytest.mark.parametrize("name", zoo_names())
def test_each_is_whole_and_says_how_it_was_made(name: str):
    stored = open_policy(name)
    assert stored.build() is not None
    assert stored.build_learner() is not None
    assert stored.card is not None
    assert stored.card["command"].startswith("qmix-train ")
    assert stored.card["task"]
    assert len(stored.card["commit"]) >= 7
    assert {"torch", "cpu"} <= stored.card["versions"].keys()
    assert stored.env_section()["name"] == stored.env["name"], "nothing of it has to be typed"


def test_the_cards_figure_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    outcome = inprocess.succeed(["two_step"], "evaluate")
    rows = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert rows["return"].startswith("8 ")
    assert rows["card"].startswith(("the same as 8", "inside 8"))
    assert list(tmp_path.iterdir()) == [], "nothing is written beside a policy that comes with the package"


def test_figures_that_are_not_the_cards_end_with_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import shutil

    monkeypatch.chdir(tmp_path)
    shutil.copytree(zoo_folder("two_step"), "mine")
    content = json.loads(Path("mine/policy.json").read_text())
    content["card"]["figures"]["return_mean"] = 9.0
    Path("mine/policy.json").write_text(json.dumps(content))
    outcome = inprocess.command(["mine"], "evaluate")
    assert outcome.status == 1
    assert "does not play as its card says" in outcome.err


def test_elsewhere_the_interval_counts():
    card = {"figures": {"return_mean": 1.0, "return_ci95": 0.1}, "versions": {"torch": "1", "cpu": "AVX2"}}
    other = {"torch": "2", "cpu": "AVX2"}
    assert compare(card, {"return_mean": 1.05, "versions": other})[0]
    assert not compare(card, {"return_mean": 1.2, "versions": other})[0]
    assert not compare(card, {"return_mean": 1.05, "versions": card["versions"]})[0]
    assert compare(card, {"return_mean": 1.0, "versions": card["versions"]})[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo_names())
def test_every_cards_figure_is_repeated(name: str):
    result = json.loads(inprocess.succeed([name, "output=-"], "evaluate").out)
    assert result["card"]["holds"]
