"""Where the policy acts: beside the environments, or on the trainer's device."""

from __future__ import annotations

from pathlib import Path

from support import inprocess


def test_where_the_policy_acts_is_a_setting(finished_run: Path, tmp_path: Path):
    inprocess.succeed([*inprocess.TINY, f"run_dir={tmp_path}/run", "rollout.policy_device=device"])
    assert (tmp_path / "run" / "metrics.csv").read_text() == (finished_run / "metrics.csv").read_text()
    line = inprocess.refused([*inprocess.TINY, "rollout.policy_device=device", "rollout.collector=process"])
    assert line == (
        "error: rollout.collector=process acts on the CPU, in processes of its own: rollout.policy_device must be env"
    )
