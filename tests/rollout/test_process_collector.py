"""The collector in a process of its own: the same run bit for bit, and no process that outlives its trainer."""

import importlib
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from qmix_lightning.environment import VectorEnv, load
from qmix_lightning.errors import ConfigurationError, RunError
from qmix_lightning.rollout.process_collector import CollectorProcess, RemoteCollector
from qmix_lightning.vector.factory import make_vector_env
from support import inprocess, runs
from support.collecting import make_policy
from support.fakes import VaryingLength
from support.faulty import games_left
from support.processes import descendants, wait_until

REMOTE = "rollout.collector=process"
PIPELINED = ["rollout.asynchronous=true", "rollout.update_every=2"]


def remote(factory=VaryingLength, settings=None, num_envs=3) -> CollectorProcess:
    made = partial(make_vector_env, factory, settings or {}, num_envs=num_envs, name="fake")
    return CollectorProcess(made, name="fake", start_s=60)


def collector_of(trainer: int) -> int:
    """The process id of the trainer's collector: the one below it that leads a group."""
    (only,) = [p.pid for p in descendants(trainer) if p.group == p.pid and "forkserver" in p.command]
    return only


def test_whatever_ends_it_the_run_resumes_exactly_with_either_collector(tmp_path: Path):
    """Told to end, its collector killed, killed itself, and resumed with the other collector."""
    whole, folder, count = tmp_path / "whole", tmp_path / "run", tmp_path / "count"
    settings = [*runs.BASE, *PIPELINED, "total_env_steps=300"]  # far more than the kills below wait for
    inprocess.succeed([*settings, f"run_dir={whole}"])
    arguments = [*settings, REMOTE, f"run_dir={folder}"]
    told = runs.after_updates(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    outcome = inprocess.command([*arguments, *told])
    assert outcome.status == 143, outcome
    assert "Traceback" not in outcome.err
    killed = runs.after_updates(2, lambda: os.kill(collector_of(os.getpid()), signal.SIGKILL))
    outcome = inprocess.command([*arguments, *killed, "ckpt_path=last"])
    assert outcome.status == 1, outcome
    assert "Traceback" not in outcome.err
    assert re.search(r"the collector's process is killed by signal 9.*ckpt_path=last", " ".join(outcome.err.split()))
    process = runs.begun([*arguments, "ckpt_path=last"], count, 3)
    victim = collector_of(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: not Path(f"/proc/{victim}").exists(), "the collector outlived its trainer", 20)
    inprocess.succeed([*arguments, "ckpt_path=last", "rollout.collector=inline"])
    runs.assert_same_run(whole, folder)


def test_faults_of_its_workers_are_counted_and_end_with_it(tmp_path: Path):
    inprocess.succeed([*runs.faulty_run(tmp_path, "env.kwargs.fault=kill"), REMOTE, "total_env_steps=150"])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["faults"] == {"killed": 1}
    assert not games_left(tmp_path / "faults")


def test_rounds_of_fresh_episodes_are_collected_there_too(tmp_path: Path):
    base = [a for a in runs.BASE if not a.startswith(("replay.", "mixer.", "rollout."))]
    settings = [*base, "algorithm=coma", "replay.capacity=16", "total_env_steps=200"]
    for where in ("inline", "process"):
        inprocess.succeed([*settings, f"rollout.collector={where}", f"run_dir={tmp_path / where}"])
    runs.assert_same_run(tmp_path / "inline", tmp_path / "process")


def test_a_mistake_that_is_found_after_it_began_ends_it_too(tmp_path: Path):
    arguments = [*runs.BASE, REMOTE, "algorithm.gamma=2", f"run_dir={tmp_path}/run"]
    inprocess.refused(arguments, "gamma must be in [0, 1]")
    assert not multiprocessing.active_children()


def test_what_cannot_be_sent_is_told():
    with pytest.raises(
        ConfigurationError, match=r"cannot be sent to the collector's process.*rollout.collector=inline"
    ):
        remote(lambda: VaryingLength())


IN_PLACE = """
import importlib.util, sys
from qmix_lightning.errors import RunError

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        package = __file__.replace("in_place.py", "my_team/my_team/__init__.py")
        return importlib.util.spec_from_file_location(name, package) if name == "my_team" else None

sys.meta_path.append(Finder)

def make():
    import my_team
    raise RunError(my_team.name)
"""


def test_a_package_that_is_installed_in_place_is_found_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Beside the folder of its project: ``tests/worker/test_import_path.py``."""
    package = tmp_path / "my_team" / "my_team"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("name = 'the one that is installed'\n")
    (tmp_path / "in_place.py").write_text(IN_PLACE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    make = importlib.import_module("in_place").make
    try:
        with pytest.raises(RunError, match="the one that is installed"):
            CollectorProcess(make, name="fake", start_s=60)
    finally:
        del sys.modules["in_place"]


def test_environments_that_cannot_be_made_are_told_as_here():
    with pytest.raises(ConfigurationError) as told:
        remote(load("pettingzoo"), {"id": "support.fakes:Missing"})
    with pytest.raises(ConfigurationError) as expected:
        make_vector_env(load("pettingzoo"), {"id": "support.fakes:Missing"}, num_envs=1, name="fake")
    assert str(told.value) == str(expected.value)


def test_it_is_no_vector_environment_and_closes_twice():
    env = remote()
    assert not isinstance(env, VectorEnv)
    env.close()
    env.close()
    assert not env.process.is_alive()


def test_it_ends_in_the_middle_of_a_round_that_nobody_waits_for():
    env = remote()
    collector = RemoteCollector(env, make_policy(env.spec), seed=1, rank=0)
    collector.submit_round(1.0, steps=None, episodes=10**6)
    begun_at = time.monotonic()
    env.close()
    assert time.monotonic() - begun_at < 8
    assert not env.process.is_alive()


def test_what_fails_without_an_answer_is_told_with_the_next_one():
    env = remote()
    collector = RemoteCollector(env, make_policy(env.spec), seed=1, rank=0)
    env.send("publish", [])
    with pytest.raises(RunError, match="the collector failed: ValueError"):
        collector.begin_round()
    collector.begin_round()  # told once
    env.close()
