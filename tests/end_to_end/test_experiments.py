"""The recipes learn what they claim, on every seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support import inprocess, runs


def learned(folder: Path, recipe: str, seed: int, *settings: str) -> dict:
    """The table of values that a recipe ends with."""
    run = [f"experiment={recipe}", f"seed={seed}", f"run_dir={folder}", "logger=none"]
    assert "learned | exact" in inprocess.succeed([*run, *settings]).out
    return json.loads((folder / "q_table.json").read_text())


def shortened(steps: int, lr: float) -> list[str]:
    """Settings that get a recipe there in fewer steps, where one seed has to do."""
    budget = ("total_env_steps", "eval_interval", "checkpoint_interval")
    return [*(f"{key}={steps}" for key in budget), f"optimizer.lr={lr}"]


def two_step(tmp_path: Path, algorithm: str, seed: int) -> dict:
    return learned(tmp_path / f"{algorithm}{seed}", f"two_step_{algorithm}", seed)


def cells(table: dict, state: str) -> list[float]:
    return [value for row in table[state] for value in row]


def check_qmix(report: dict) -> None:
    exact = {"1": [6.93, 6.93, 7.92, 7.92], "2A": [7.0] * 4, "2B": [0.0, 1.0, 1.0, 8.0]}
    for state, values in exact.items():
        assert cells(report["exact"], state) == pytest.approx(values, abs=1e-6)
        assert cells(report["learned"], state) == pytest.approx(values, abs=0.1)
    assert report["greedy_return"] == 8.0


def test_qmix_learns_the_two_step_game(tmp_path: Path):
    check_qmix(learned(tmp_path, "two_step_qmix", 1, *shortened(800, 1e-2), "optimizer.lr_anneal_steps=800"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_qmix_learns_the_two_step_game_on_every_seed(tmp_path: Path, seed: int):
    check_qmix(two_step(tmp_path, "qmix", seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_vdn_cannot_and_takes_seven(tmp_path: Path, seed: int):
    """VDN's best additive fit of 2B to uniform data is [[-1.5, 2.5], [2.5, 6.5]]: it prefers the sure 7."""
    report = two_step(tmp_path, "vdn", seed)
    assert cells(report["learned"], "2B") == pytest.approx([-1.5, 2.5, 2.5, 6.5], abs=0.5)
    assert cells(report["learned"], "2A") == pytest.approx([7.0] * 4, abs=0.2)
    assert cells(report["learned"], "1")[:2] == pytest.approx([6.93] * 2, abs=0.3)
    assert report["greedy_return"] == 7.0


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["qmix_lin", "vdn_s"])
def test_what_is_additive_within_a_state_takes_seven(tmp_path: Path, algorithm: str):
    """A weight and a bias for each state add nothing to what a sum can fit inside 2B: the same table as VDN's."""
    for seed in (1, 2, 3):
        report = two_step(tmp_path, algorithm, seed)
        assert cells(report["learned"], "2B") == pytest.approx([-1.5, 2.5, 2.5, 6.5], abs=0.7)
        assert cells(report["learned"], "2A") == pytest.approx([7.0] * 4, abs=0.4)
        first, second = report["learned"]["1"]
        assert first == pytest.approx([6.93] * 2, abs=0.3)
        assert max(second) < min(first) - 0.2  # on its way to 0.99 * 6.5
        assert report["greedy_return"] == 7.0


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["qmix_ns", "qplex"])
def test_what_holds_the_two_step_game_takes_eight(tmp_path: Path, algorithm: str):
    for seed in (1, 2, 3):
        check_qmix(two_step(tmp_path, algorithm, seed))


def qtrans_game(tmp_path: Path, algorithm: str, seed: int) -> dict:
    return learned(tmp_path / str(seed), f"matrix_qtran_{algorithm}", seed)


@pytest.mark.slow
def test_qplex_finds_eight_in_qtrans_game(tmp_path: Path):
    report = learned(tmp_path, "matrix_qtran_qplex", 1, *shortened(450, 3.5e-3))
    assert report["greedy_return"] == 8.0
    assert cells(report["learned"], "1") == pytest.approx([8, -12, -12, -12, 0, 0, -12, 0, 0], abs=2.0)


@pytest.mark.slow
def test_qplex_finds_eight_in_qtrans_game_on_four_seeds_of_five(tmp_path: Path):
    returns = [qtrans_game(tmp_path, "qplex", seed)["greedy_return"] for seed in range(1, 6)]
    assert returns.count(8.0) >= 4, returns


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["vdn", "qmix"])
def test_a_monotonic_mixer_ends_at_zero_in_qtrans_game(tmp_path: Path, algorithm: str):
    returns = [qtrans_game(tmp_path, algorithm, seed)["greedy_return"] for seed in range(1, 6)]
    assert returns == [0.0] * 5


@pytest.mark.slow
def test_qmix_on_simple_spread(tmp_path: Path):
    """Mean greedy return over 100 episodes of -80 or better after 100k joint steps, in the mean of 3 seeds."""
    returns = []
    for seed in (1, 2, 3):
        folder = tmp_path / str(seed)
        runs.run(["experiment=simple_spread_qmix", f"seed={seed}", f"run_dir={folder}", "logger=none"])
        result = json.loads((folder / "summary.json").read_text())["eval"]
        assert result["episodes"] == 100
        returns.append(result["return_mean"])
    assert sum(returns) / 3 >= -80, returns
