"""Where the policy acts: beside the environments, or on the trainer's device."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import inprocess


def test_where_the_policy_acts_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name, more in (("plain", []), ("device", ["rollout.policy_device=device"])):
        inprocess.succeed([*inprocess.TINY, "total_env_steps=30", f"run_dir={name}", *more])
    assert Path("plain", "metrics.csv").read_text() == Path("device", "metrics.csv").read_text()
    line = inprocess.refused([*inprocess.TINY, "rollout.policy_device=device", "rollout.collector=process"])
    assert line == (
        "error: rollout.collector=process acts on the CPU, in processes of its own: rollout.policy_device must be env"
    )
