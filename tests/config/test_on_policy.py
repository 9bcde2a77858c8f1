"""Settings of rounds: what follows from what, and what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmix_lightning.errors import ConfigurationError
from support import inprocess
from support.compositions import run_config

ON_POLICY = ["preset=pymarl", "replay=on_policy", "rollout.update_every=${replay.capacity}"]


def test_the_updates_of_a_round_follow_its_capacity():
    config = run_config(*ON_POLICY, "replay.capacity=48", "replay.batch_size=16")
    assert config.rollout.update_every == 48
    for name in ("coma", "ippo", "mappo", "pqn_vdn", "pqn_qmix"):
        config = run_config(f"algorithm={name}", "replay.capacity=96")
        assert (config.replay.kind, config.rollout.update_every) == ("on_policy", 96)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["preset=pymarl", "replay=on_policy"], r"equal to replay.capacity \(32\), not 1 episodes"),
        ([*ON_POLICY, "rollout.update_unit=env_steps"], "rollout.update_unit must be episodes"),
        ([*ON_POLICY, "replay.batch_size=7"], r"replay.capacity \(32\) must be a multiple of replay.batch_size \(7\)"),
        ([*ON_POLICY, "rollout.num_envs=64"], "a round of 32 episodes .* leaves some of 64 environments"),
        ([*ON_POLICY, "rollout.asynchronous=true"], "rollout.asynchronous must be false"),
    ],
)
def test_rounds_that_cannot_be_are_refused(overrides: list[str], message: str):
    with pytest.raises(ConfigurationError, match=message):
        run_config(*overrides)


def test_what_learns_on_policy_refuses_replay(tmp_path: Path):
    typed = ["algorithm=coma", "replay=uniform", "replay.batch_size=8", "replay.capacity=8", f"run_dir={tmp_path}"]
    inprocess.refused(typed, "algorithm 'coma' learns on-policy only: use replay=on_policy")
