"""Every algorithm by one standard, through the command line: what a run counts, what it computes, that it goes on
exactly, and that it learns. Kills are in test_resume and test_on_policy_runs, gradients of two ranks in test_ranks.

Four of them run in CI, one of which learns; ``pytest -m slow tests/end_to_end/test_every_algorithm.py`` has the rest.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from qmix_lightning.types import TrajectoryBatch
from support import inprocess, runs
from support.cases import mostly_slow
from support.on_policy_learners import COMA_SETTINGS, PQN_SETTINGS
from support.plain_losses import coma, ppo, pqn, q_learning, qtran, weighted_qmix
from support.witness import Story, told

Loss = tuple[float, int]
"""Sum over a batch, and what it is divided by."""
PLAIN = [
    "preset=pymarl",
    "agent.hidden_dim=8",
    "env=pettingzoo",
    "eval_episodes=2",
    "logger=none",
    "optimizer=adam",
    "trainer.accelerator=cpu",
]


# -- losses worked out by loops -------------------------------------------------------------------------------------


def qtran_loss(alt: bool, learner: Any, batch: TrajectoryBatch, lengths: list[int]) -> Loss:
    parts = qtran.plain_loss(learner, batch, lengths, alt)
    return parts["td"] + learner.lambda_opt * parts["opt"] + learner.lambda_nopt * parts["nopt"], sum(lengths)


def weighted_loss(central: bool, learner: Any, batch: TrajectoryBatch, lengths: list[int]) -> Loss:
    acting, unrestricted, _ = weighted_qmix.plain_loss(learner, batch, lengths, central)
    return acting + unrestricted, sum(lengths)


def mixed_loss(mixer: str, learner: Any, batch: TrajectoryBatch, lengths: list[int]) -> Loss:
    return q_learning.plain_loss(learner, batch, lengths, mixer)


def pqn_loss(learner: Any, batch: TrajectoryBatch, lengths: list[int]) -> Loss:
    return pqn.plain_loss(learner, batch, lengths, mixed=True)


LOSSES: dict[str, Callable[..., Loss]] = {
    "iql": partial(mixed_loss, "none"),
    **{name: partial(mixed_loss, name) for name in ("vdn", "qmix", "qmix_ns", "qmix_lin", "vdn_s", "qatten", "qplex")},
    "qtran_base": partial(qtran_loss, False),
    "qtran_alt": partial(qtran_loss, True),
    "cw_qmix": partial(weighted_loss, True),
    "ow_qmix": partial(weighted_loss, False),
    "coma": coma.plain_loss,
    "ippo": ppo.plain_loss,
    "mappo": ppo.plain_loss,
    "pqn_vdn": pqn_loss,
    "pqn_qmix": pqn_loss,
}
ON_POLICY = ("coma", "ippo", "mappo", "pqn_vdn", "pqn_qmix")
IN_CI = ("qmix", "cw_qmix", "mappo", "pqn_qmix")
"""Ways to collect and to learn; the losses of all are compared with the same loops in tests/algorithms."""
WITHOUT_TARGETS = ("ippo", "mappo", "pqn_vdn", "pqn_qmix")


def test_none_is_left_out():
    folder = Path(__file__).parents[2] / "conf" / "algorithm"
    assert {path.stem for path in folder.glob("*.yaml")} == LOSSES.keys()


# -- a run, its counters and its numbers ----------------------------------------------------------------------------

EPISODES = 4
"""In a batch."""
BUDGET = 120


def arguments(algorithm: str, folder: Path) -> list[str]:
    """A run whose batches have the sizes, and its learner the settings, that the loops are written for."""
    if algorithm == "coma":
        settings = {name: COMA_SETTINGS[name] for name in ("gamma", "td_lambda", "critic_coef", "entropy_coef")}
    elif algorithm in ("ippo", "mappo"):  # its loops read its settings
        settings = {"entropy_coef": 0.3}
    else:
        settings = {name: PQN_SETTINGS[name] for name in ("gamma", "td_lambda")}
    if algorithm not in WITHOUT_TARGETS:
        settings = settings | {"target_update_every": 8}
    if algorithm.endswith("w_qmix"):
        settings = settings | {"central_hidden_dim": 8}
    if algorithm.startswith("qtran") or algorithm.endswith("w_qmix"):  # their loops know nothing else
        settings = settings | {"dead_agents": "zero"}
    return [
        *PLAIN,
        "env.id=support.fakes:OfBatches",
        f"total_env_steps={BUDGET}",
        f"eval_interval={BUDGET // 2}",
        "checkpoint_interval=50",
        "rollout.num_envs=2",
        f"replay.batch_size={EPISODES}",
        f"replay.capacity={8 if algorithm in ON_POLICY else 64}",
        *(["rollout.updates=4"] if algorithm in ON_POLICY else []),
        "trainer.log_every_n_steps=1",
        "callbacks.witness={_target_:support.witness.Witness}",
        f"algorithm={algorithm}",
        *(f"algorithm.{name}={value}" for name, value in settings.items()),
        f"run_dir={folder}",
    ]


def check_counters(algorithm: str, summary: dict[str, Any], story: Story) -> None:
    assert (summary["algorithm"], summary["status"]) == (algorithm, "completed")
    assert summary["env_steps"] == story.env_steps
    assert summary["updates"] == story.updates
    if algorithm in ON_POLICY:  # 4 updates for each round of 8 episodes, until the budget is spent
        rounds, rest = divmod(summary["episodes"], 8)
        assert (summary["updates"], rest) == (4 * rounds, 0)
        assert summary["env_steps"] >= BUDGET
    else:  # one for every episode from the one that fills a batch on, the last of which ends a little past the budget
        assert summary["updates"] == summary["episodes"] - (EPISODES - 1)
        assert BUDGET <= summary["env_steps"] < BUDGET + 2 * 12


def check_loss(algorithm: str, story: Story, logged: dict[str, str]) -> None:
    """The last update's loss, as Lightning was given it and as ``metrics.csv`` has it."""
    update = story.last
    assert update is not None
    learner = copy.deepcopy(update.learner).double()
    batch = update.batch.to(torch.device("cpu"), torch.float64)
    lengths = batch.filled.sum(dim=1).tolist()
    assert len(lengths) == EPISODES
    assert len(set(lengths)) > 1
    assert batch.terminated.any()
    assert batch.truncated.any()
    assert not batch.agent_mask.all()
    if algorithm not in WITHOUT_TARGETS:
        pairs = [
            (a, b)
            for online, target in learner.target_pairs()
            for a, b in zip(online.parameters(), target.parameters(), strict=True)
        ]
        assert pairs
        assert all(not torch.equal(a, b) for a, b in pairs)
    total, count = LOSSES[algorithm](learner, batch, lengths)
    assert update.loss == pytest.approx(total / count, rel=1e-5)
    assert float(logged["train/loss"]) == pytest.approx(total / count, rel=1e-5)


def check_gradients(story: Story) -> None:
    """Every parameter that trains had one, and moved; no target had one, and each followed."""
    assert story.last is not None
    named = dict(story.last.learner.named_parameters())
    assert story.reached == {name for name, p in named.items() if p.requires_grad}
    assert {name for name in named if not name.startswith("target_")} == story.reached
    stayed = [name for name, p in named.items() if torch.equal(p, story.first[name])]
    assert not stayed


@pytest.mark.parametrize("algorithm", mostly_slow(LOSSES, IN_CI))
def test_a_run_counts_computes_and_goes_on_exactly(algorithm: str, tmp_path: Path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    inprocess.succeed(arguments(algorithm, whole))
    story = told()
    check_counters(algorithm, json.loads((whole / "summary.json").read_text()), story)
    check_loss(algorithm, story, runs.rows(whole)[-1])
    check_gradients(story)
    # An evaluation is due where the first part ends, as it is in the whole run.
    inprocess.succeed([*arguments(algorithm, broken), f"total_env_steps={BUDGET // 2}"])
    first = told()
    inprocess.succeed([*arguments(algorithm, broken), "ckpt_path=last"])
    second = told()
    assert min(first.updates, second.updates) > 0
    assert first.updates + second.updates == story.updates
    runs.assert_same_run(whole, broken)


# -- learning -------------------------------------------------------------------------------------------------------


def echo_return(algorithm: str, folder: Path, seed: int, steps: int, *extra: str) -> float:
    """The greedy return on ``Echo``: 1 at best, a third for random play."""
    if algorithm in ON_POLICY:
        sizes = ["rollout.num_envs=8", "replay.capacity=8", "replay.batch_size=8"]
        sizes += [] if algorithm == "coma" else ["rollout.updates=2"]
    else:
        sizes = [
            "rollout.num_envs=4",
            "replay.capacity=500",
            "replay.batch_size=16",
            "algorithm.target_update_every=40",
        ]
        sizes += ["algorithm.central_hidden_dim=32"] if algorithm.endswith("w_qmix") else []
    inprocess.succeed(
        [
            *PLAIN,
            "env.id=support.fakes:Echo",
            "agent=feedforward",
            "agent.hidden_dim=32",
            "eval_episodes=32",
            f"total_env_steps={steps}",
            f"eval_interval={steps}",
            f"checkpoint_interval={steps}",
            "optimizer.lr=5e-3",
            "optimizer.lr_schedule=linear",
            f"optimizer.lr_anneal_steps={steps}",
            f"exploration.epsilon_anneal_steps={steps // 2}",
            f"algorithm={algorithm}",
            *sizes,
            f"seed={seed}",
            f"run_dir={folder}",
            *extra,
        ]
    )
    result = json.loads((folder / "summary.json").read_text())["eval"]
    assert result["episodes"] == 32
    return result["return_mean"]


STEPS = dict.fromkeys(LOSSES, 1500) | dict.fromkeys(ON_POLICY, 2400) | {"qtran_base": 2400}
SEEDS = (1, 2, 3)


def test_a_policy_gradient_learns_to_do_what_it_is_shown(tmp_path: Path):
    """Of those that learn values, qmix learns a game in test_experiments and qtran_alt one in test_qtran."""
    assert echo_return("mappo", tmp_path, seed=1, steps=1600) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("algorithm", LOSSES)
def test_it_learns_on_every_seed(algorithm: str, seed: int, tmp_path: Path):
    assert echo_return(algorithm, tmp_path, seed, STEPS[algorithm]) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", LOSSES)
def test_what_has_learned_nothing_does_not(algorithm: str, tmp_path: Path):
    """A few updates with steps of nearly nothing: the networks as they begin."""
    found = [echo_return(algorithm, tmp_path / str(seed), seed, 60, "optimizer.lr=1e-9") for seed in SEEDS]
    assert max(found) < 0.7, found


# Individual values: agent 1 thinks 2B worth the mean over what the other does there, 4.5 at best, against a sure 7.
# Qatten: both agents see the same, so it is a sum, and 2B comes out as 6.5. The others hold the whole game.
TWO_STEP = {"iql": 7.0, "qatten": 7.0, "qtran_base": 8.0, "qtran_alt": 8.0, "cw_qmix": 8.0, "ow_qmix": 8.0}


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("algorithm", TWO_STEP)
def test_the_two_step_game_ends_as_the_theory_says(algorithm: str, seed: int, tmp_path: Path):
    """Those that are not here have recipes, which test_experiments, test_coma and test_pqn run."""
    recipe = ["experiment=two_step_qmix_ns", f"algorithm={algorithm}", "callbacks=none", "logger=none"]
    if algorithm == "qtran_alt":  # at the recipe's 3,200 steps seed 2 still takes 7; from 4,000 on 8
        recipe += ["total_env_steps=4800"]
    inprocess.succeed([*recipe, "trainer.accelerator=cpu", f"seed={seed}", f"run_dir={tmp_path}"])
    assert json.loads((tmp_path / "summary.json").read_text())["eval"]["return_mean"] == TWO_STEP[algorithm]
