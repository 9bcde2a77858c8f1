"""PQN: the lambda return over the learning network's own values, and nothing of a target network."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from support import runs
from support.batches import double_batch
from support.cases import every_value
from support.compositions import run_config
from support.on_policy_learners import make_pqn
from support.plain_losses.pqn import plain_loss
from support.small_policies import AGENTS

MIXERS = ("none", "vdn", "qmix")


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("mixer", MIXERS)
def test_loss_equals_plain_loops(mixer: str, agent: str):
    learner = make_pqn(mixer, agent)
    for seed, lengths in [(1, [9, 1, 5, 7]), (2, [2, 3])]:
        data = double_batch(seed, lengths)
        terms = learner.loss(data)
        total, count = plain_loss(learner, data, lengths, mixer != "none")
        assert terms.count.item() == count
        assert terms.total.item() == pytest.approx(total, rel=1e-9)
        assert math.isfinite(total)


def test_there_is_no_target_network():
    learner = make_pqn()
    assert [name for name, _ in learner.named_children()] == ["policy", "mixer"]
    assert not [name for name in learner.state_dict() if "target" in name]
    before = [p.clone() for p in learner.parameters()]
    learner.after_update(episodes=10**6, updates=1)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.parameters(), strict=True))


@pytest.mark.parametrize(("agent", "mixer"), every_value(AGENTS, MIXERS))
def test_nothing_flows_through_the_return(mixer: str, agent: str):
    learner, data = make_pqn(mixer, agent), double_batch(7, [6, 9, 3])
    learner.loss(data).total.backward()
    got = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    learner.zero_grad()
    frozen = make_pqn(mixer, agent)
    clean = data.mask_invalid()
    held = frozen.targets(clean, frozen.policy.unroll(clean))
    learner.targets = lambda *_: held  # type: ignore[method-assign]
    learner.loss(data).total.backward()
    for name, p in learner.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, got[name])


def test_the_settings_that_take_the_place_of_replay_and_targets():
    for mixer in ("vdn", "qmix"):
        config = run_config(f"algorithm=pqn_{mixer}")
        assert config.mixer["name"] == mixer
        assert config.agent["layer_norm"] is True
        assert config.replay.kind == "on_policy"
        per_epoch = config.replay.capacity // config.replay.batch_size
        assert config.rollout.updates % per_epoch == 0
        assert config.rollout.num_envs > 1


# Learning: with full exploration and one-step targets the two-step game is what the values' exact form decides --------


def play(tmp_path: Path, mixer: str, seed: int) -> dict:
    runs.run(
        [
            "env=two_step",
            f"algorithm=pqn_{mixer}",
            "optimizer=adam",
            "optimizer.lr=2e-3",
            "algorithm.td_lambda=0",
            "exploration.epsilon_finish=1",
            "total_env_steps=8000",
            "eval_interval=8000",
            "eval_episodes=1",
            "callbacks=q_table",
            "logger=none",
            f"seed={seed}",
            f"run_dir={tmp_path}",
        ]
    )
    return json.loads((tmp_path / "q_table.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_a_monotonic_mixer_finds_eight(tmp_path: Path, seed: int):
    report = play(tmp_path, "qmix", seed)
    assert report["greedy_return"] == 8.0
    values = [value for row in report["learned"]["2B"] for value in row]
    assert values == pytest.approx([0.0, 1.0, 1.0, 8.0], abs=1.0)  # a sum has -1.5, 2.5, 2.5, 6.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_a_sum_settles_for_seven(tmp_path: Path, seed: int):
    report = play(tmp_path, "vdn", seed)
    assert report["greedy_return"] == 7.0
