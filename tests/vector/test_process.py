"""Worker processes: the same episodes, and faults that cost an episode and nothing else."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from qmix_lightning.checkpoint.segments import SegmentStore
from qmix_lightning.errors import ConfigurationError, EnvironmentFault, RunError
from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.types import EnvSpec
from qmix_lightning.vector.answers import Introduction
from qmix_lightning.vector.factory import Backend, make_vector_env
from qmix_lightning.vector.worker_process import WorkerProcess
from qmix_lightning.worker.fault_tolerance import FaultLimit
from support import faulty, inprocess, runs
from support.fakes import VaryingLength
from support.processes import wait_until
from support.vector_play import checksum


def make(
    factory, settings=None, *, envs: int = 3, workers: int = 2, timeout: float = 20.0, faults: int = 5, process=True
):
    backend = Backend("process" if process else "sync", workers, timeout, FaultLimit(faults, 600.0))
    return make_vector_env(factory, settings or {}, num_envs=envs, name="fake", backend=backend)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers may take as long to start as they are told, and a second and a half for everything else."""

    class Impatient(WorkerProcess):
        def introduction(self, timeout: float) -> Introduction:
            introduced = super().introduction(timeout)
            self.connection.settimeout(1.5)
            return introduced

    monkeypatch.setattr("qmix_lightning.vector.process.WorkerProcess", Impatient)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_processes_play_the_episodes_of_one_process(workers: int):
    here, there = make(VaryingLength, process=False), make(VaryingLength, workers=workers)
    try:
        assert checksum(here, 60) == checksum(there, 60)
    finally:
        here.close()
        there.close()


@pytest.mark.parametrize("fault", ["raise", "invalid", "nan", "reset"])
def test_a_failing_environment_is_recreated(tmp_path: Path, fault: str):
    """As it is in this process: tests/worker/test_fault_tolerance.py."""
    env = make(faulty.Faulty, {"fault": fault, "folder": str(tmp_path)})
    try:
        failed_at = run_until_failure(env)
        kind = "raised" if fault in ("raise", "reset") else "invalid"
        assert env.faults == {"raised": 0, "invalid": 0, "killed": 0, "hung": 0} | {kind: 1}
        assert (fault == "reset") == (failed_at is None)
    finally:
        env.close()


@pytest.mark.parametrize("fault", ["shape", "mask"])
def test_a_broken_contract_ends_the_run_at_once(tmp_path: Path, fault: str):
    env = make(faulty.Faulty, {"fault": fault, "folder": str(tmp_path)})
    try:
        with pytest.raises(EnvironmentFault, match=r"tests/support/faulty.py:\d+\).*qmix-envs check") as end:
            run_until_failure(env)
        assert sum(env.faults.values()) == 0
        assert any("parallel_adapter.py" in note for note in end.value.__notes__)  # the traceback from there
    finally:
        env.close()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("hang", r"never started, and was not tried again; worker 0: no answer within 9 s.*wrote: .*libfoo\.so"),
        ("exit", r"never started, in 3 attempts; worker 0: ended by itself with status 127.*wrote: .*libfoo\.so"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_what_never_starts_ends_the_run_soon_with_its_own_last_words(how: str, message: str):
    env = make(faulty.Unstarted, {"how": how}, envs=1, workers=1, timeout=9.0)
    try:
        with pytest.raises(EnvironmentFault, match=message):
            run_until_failure(env)
    finally:
        env.close()


def test_a_worker_whose_simulator_keeps_an_exception_closes_without_a_word(capfd):
    env = make(faulty.KeepsItsError)
    checksum(env, 20)
    env.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("fault", "kind"), [("kill", "killed"), ("exit", "killed"), ("hang", "hung")])
def test_a_worker_that_is_gone_or_silent_is_replaced(tmp_path: Path, fault: str, kind: str):
    settings = {"fault": fault, "folder": str(tmp_path), "game": True, "parent": os.getpid()}
    env = make(faulty.Faulty, settings, envs=4, timeout=3.0)  # of its own: here the setting itself is tried
    try:
        failed = run_until_failure(env)
        assert failed is not None
        # Both environments of that worker lost their episodes; the other worker's did not.
        assert failed.tolist() in ([True, True, False, False], [False, False, True, True])
        assert env.faults[kind] == 1
        assert len(faulty.games_left(tmp_path)) == 4, "the dead worker's games are gone, the new worker's run"
    finally:
        env.close()
    assert faulty.games_left(tmp_path) == []


@pytest.mark.usefixtures("impatient")
def test_a_worker_that_hangs_while_it_draws_is_told_from_one_that_died():
    env = make(faulty.HangsWhileItDraws, envs=1, workers=1, timeout=9.0)
    one = torch.ones(1, dtype=torch.bool)
    try:
        env.reset(one, torch.tensor([0]))
        with pytest.raises(RunError, match=r"environment 0 drew no picture within 9 s, and was ended"):
            env.render(0)
        assert env.faults == {"raised": 0, "invalid": 0, "killed": 0, "hung": 1}
    finally:
        env.close()


def run_until_failure(env) -> torch.Tensor | None:
    """Play for a while; the slots that failed, once they did, after everything was begun again."""
    e = env.num_envs
    failed_slots = None
    begin = torch.ones(e, dtype=torch.bool)
    for t in range(40):
        observation = env.reset(begin, torch.arange(e) + 100 * t) if begin.any() else observation  # noqa: F821
        actions = observation.avail_actions.to(torch.uint8).argmax(-1)
        outcome = env.step(actions, torch.ones(e, dtype=torch.bool))
        observation = outcome.next
        assert torch.isfinite(observation.obs).all() or outcome.failed.any()
        if outcome.failed.any():
            assert failed_slots is None, "it fails once"
            failed_slots = outcome.failed.clone()
            assert not (outcome.terminated | outcome.truncated)[outcome.failed].any()
        begin = outcome.terminated | outcome.truncated | outcome.failed
    return failed_slots


def test_past_the_limit_the_cause_is_told(tmp_path: Path):
    env = make(faulty.Faulty, {"fault": "raise", "folder": str(tmp_path), "times": 99}, faults=1)
    try:
        with pytest.raises(EnvironmentFault, match=r"failed 2 times within 600 s .*RuntimeError: the simulator broke"):
            run_until_failure(env)
    finally:
        env.close()


def test_what_cannot_be_sent_to_a_worker_is_told():
    with pytest.raises(ConfigurationError, match="cannot be sent to worker processes"):
        make(lambda: VaryingLength())


def test_a_factory_that_fails_in_a_worker_is_told_as_here():
    with pytest.raises(ConfigurationError, match="environment 'fake' could not be made: TypeError"):
        make(VaryingLength, {"n_agents": "three"})


def test_batched_environments_do_not_go_to_workers():
    from qmix_lightning.envs.two_step import TwoStep

    with pytest.raises(ConfigurationError, match=r"batched by nature .* use rollout=sync"):
        make(TwoStep)


def test_a_run_past_the_limit_ends_with_the_cause_and_a_checkpoint(tmp_path: Path):
    arguments = runs.faulty_run(tmp_path, "env.kwargs.fault=raise", "checkpoint_interval=100000")
    arguments += ["env.kwargs.times=999", "rollout.max_faults=3", "total_env_steps=500"]
    outcome = inprocess.command(arguments)
    assert outcome.status == 1
    assert (outcome.out + outcome.err).count("error: ") == 1
    assert "RuntimeError: the simulator broke" in outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    assert runs.read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert faulty.games_left(tmp_path / "faults") == []


@pytest.mark.parametrize(
    ("number", "ranks"),
    [(signal.SIGKILL, 1), (signal.SIGINT, 1), pytest.param(signal.SIGKILL, 2, marks=pytest.mark.slow)],
)
def test_no_worker_and_no_game_outlives_the_trainer(tmp_path: Path, number: int, ranks: int):
    extra = runs.TWO_RANKS if ranks == 2 else []
    arguments = [*runs.faulty_run(tmp_path, "env.kwargs.fault=none", *extra), "total_env_steps=100000"]
    process = runs.begun(arguments, tmp_path / "count", 1)
    assert len(faulty.games_left(tmp_path / "faults")) >= 4 * ranks
    os.kill(process.pid, number)
    runs.finish(process, timeout=60)
    wait_until(lambda: not faulty.games_left(tmp_path / "faults"), "a game outlived its trainer", 30)


@pytest.mark.usefixtures("impatient")
def test_training_survives_deaths_and_a_hang_and_the_accounts_agree(tmp_path: Path):
    """Every episode that an environment ended is stored and counted; none that a death broke off is."""
    inprocess.succeed(
        [
            "env=pettingzoo",
            "env.id=support.faulty:Mortal",
            f"env.kwargs.folder={tmp_path}",
            "env.kwargs.every=50",
            "rollout=process",
            "rollout.num_envs=2",
            "rollout.num_workers=2",  # one environment each: a death costs no finished episode of another
            "replay.batch_size=2",
            "agent=feedforward",
            "eval_interval=100000",
            "trainer.limit_val_batches=0",
            "trainer.accelerator=cpu",
            "total_env_steps=150",
            "logger=none",
            f"run_dir={tmp_path}/run",
        ]
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["faults"] == {"killed": (tmp_path / "steps").stat().st_size // 50 - 1, "hung": 1}
    assert summary["faults"]["killed"] >= 2
    ended = [int(line) for line in (tmp_path / "episodes").read_text().split()]
    payload = runs.read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    counters, state = payload["ReplayDataModule"]["counters"], payload["ReplayDataModule"]["ranks"][0]
    assert counters["faults"] == summary["faults"]
    replay = EpisodeReplay(EnvSpec.from_dict(payload["spec"]), payload["config"]["replay"]["capacity"])
    SegmentStore(tmp_path / "run" / "checkpoints", 0).load(replay, state["replay"])
    stored = [replay.get(i) for i in range(replay.first_id, replay.next_id)]
    assert all(episode.terminated or episode.truncated for episode in stored)
    assert sorted(episode.length for episode in stored) == sorted(ended)
    assert counters["episodes"] == len(ended)
    in_flight = sum(len(actions) for actions in state["collector"]["actions"])
    assert counters["env_steps"] == sum(ended) + in_flight
    assert counters["env_steps"] >= 150
