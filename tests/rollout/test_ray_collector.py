"""Collectors in Ray actors: the same run bit for bit, whoever plays the slots; a lost node costs its episodes."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from qmix_lightning.config.run_config import validate
from qmix_lightning.errors import ConfigurationError, MissingDependencyError
from qmix_lightning.rollout.ray_cluster import import_ray
from support import runs
from support.compositions import composed
from support.processes import descendants
from support.ray_nodes import TwoNodes

BASE = [
    *(setting for setting in runs.BASE if not setting.startswith("rollout.num_envs")),
    "rollout.num_envs=4",
    "num_threads=1",
    "total_env_steps=300",
]
RAY = ["rollout.collector=ray", "rollout.num_collectors=2"]
SCHEDULES = {
    "steps": ["rollout.asynchronous=true", "rollout.update_unit=env_steps", "rollout.update_every=16"],
    "episodes": ["rollout.asynchronous=true", "rollout.update_every=2"],
    "between updates": ["rollout.asynchronous=false", "rollout.update_unit=env_steps", "rollout.update_every=16"],
}
DEALT = [
    *(a for a in BASE if not a.startswith(("replay.", "mixer."))),
    "algorithm=coma",
    "replay.capacity=16",
]


# -- without Ray ---------------------------------------------------------------------------------------------------


def test_a_missing_ray_is_told_with_what_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"qmix-lightning\[ray\]"):
        import_ray()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["rollout=ray", "+env.team=[agent_0]"], "are played by rollout.collector=inline or process, not by ray"),
        (["rollout=ray", "rollout.num_collectors=9"], "rollout.num_collectors (9) is larger than rollout.num_envs (8)"),
        (["rollout=ray", "rollout.policy_device=device"], "rollout.policy_device must be env"),
        (["rollout=ray", "+env.opponents=random"], "env.opponents"),
        (["rollout=ray", "ray.address=ray://host:1"], "ray.address"),
        (["ray.address=auto"], "ray.address is for rollout.collector=ray"),
        (["rollout=ray", "+ray.num_cpu=2"], "ray.num_cpus"),
    ],
)
def test_what_does_not_go_together_is_one_line(settings: list[str], told: str):
    with pytest.raises(ConfigurationError) as refused:
        validate(composed(*settings, resolve=True))
    assert told in str(refused.value)


# -- with Ray ------------------------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_run_is_the_one_of_an_inline_collector(tmp_path: Path, schedule: str):
    arguments = [*BASE, *SCHEDULES[schedule]]
    runs.run([*arguments, f"run_dir={tmp_path}/inline"])
    output = runs.run([*arguments, *RAY, f"run_dir={tmp_path}/ray"])
    assert "Traceback" not in output
    runs.assert_same_run(tmp_path / "inline", tmp_path / "ray")


@pytest.mark.integration
def test_dealt_rounds_are_those_of_an_inline_collector(tmp_path: Path):
    runs.run([*DEALT, f"run_dir={tmp_path}/inline"])
    runs.run([*DEALT, *RAY, f"run_dir={tmp_path}/ray"])
    inline, ray = (runs.replay_hashes(tmp_path / where / "checkpoints" / "last.ckpt") for where in ("inline", "ray"))
    assert inline == ray


@pytest.mark.integration
@pytest.mark.parametrize("schedule", ["steps", "episodes"])
def test_told_to_end_and_killed_it_resumes_exactly_with_any_number_of_collectors(tmp_path: Path, schedule: str):
    arguments, count = [*BASE, *SCHEDULES[schedule]], tmp_path / "count"
    runs.run([*arguments, f"run_dir={tmp_path}/whole"])
    arguments += [*RAY, f"run_dir={tmp_path}/run"]
    process = runs.begun(arguments, count, 4)
    process.send_signal(signal.SIGTERM)
    output = runs.finish(process)
    assert process.returncode == 143, output
    assert "Traceback" not in output
    process = runs.begun([*arguments, "ckpt_path=last"], count, 8)
    process.kill()
    process.wait(timeout=60)
    runs.run([*arguments, "ckpt_path=last", "rollout.num_collectors=4"])
    runs.assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.integration
def test_a_node_that_is_killed_costs_its_episodes_and_another_one_plays_on(tmp_path: Path):
    folder, count = tmp_path / "run", tmp_path / "count"
    arguments = [*BASE, *SCHEDULES["steps"], *RAY, f"run_dir={folder}", "total_env_steps=6000"]
    arguments += ["replay.capacity=2048", "checkpoint_interval=2000", "eval_interval=3000"]
    with TwoNodes() as cluster:
        process = runs.begun([*arguments, f"ray.address={cluster.address}"], count, 20)
        cluster.tell("kill")
        runs.wait_for_updates(process, count, runs.lines(count) + 30)
        cluster.tell("add")
        output = runs.finish(process, timeout=500)
    assert process.returncode == 0, output
    assert "plays again" in output
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["env_steps"] >= 6000
    assert summary["faults"]["killed"] == 1
    (replay,) = runs.replays(folder / "checkpoints" / "last.ckpt")
    episodes = [replay.get(i) for i in range(replay.first_id, replay.next_id)]
    assert len(episodes) > 300
    for episode in episodes:
        assert 3 <= len(episode.actions) <= 12
        assert episode.terminated != episode.truncated
    assert len({episode.obs.numpy().tobytes() for episode in episodes}) == len(episodes), "one was stored twice"


@pytest.mark.integration
def test_an_actor_that_is_killed_is_replaced(tmp_path: Path):
    folder, count = tmp_path / "run", tmp_path / "count"
    arguments = [*BASE, *SCHEDULES["episodes"], *RAY, f"run_dir={folder}", "total_env_steps=1500"]
    process = runs.begun(arguments, count, 5)
    actors = [one for one in descendants(process.pid) if one.command.startswith("ray::CollectorActor")]
    os.kill(actors[0].pid, signal.SIGKILL)
    output = runs.finish(process)
    assert process.returncode == 0, output
    assert json.loads((folder / "summary.json").read_text())["faults"]["killed"] == 1


@pytest.mark.integration
def test_an_address_where_no_cluster_is(tmp_path: Path):
    output = runs.run([*BASE, *RAY, "ray.address=127.0.0.1:1", f"run_dir={tmp_path}/run"], status=2)
    assert "Traceback" not in output
    assert "ray.address=127.0.0.1:1 cannot be reached" in " ".join(output.split())
