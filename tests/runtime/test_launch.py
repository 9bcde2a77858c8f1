"""Whether this process is one of several of a run, by what torchrun and SLURM leave in the environment."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.launch import Ranks, launched_by
from support import inprocess


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch):
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1"}, None),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4"}, "torchrun"),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "study"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "study"}, "SLURM"),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"}, None),
    ],
)
def test_who_started_it(variables: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched_by() == expected


def test_what_is_no_number_of_processes_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_NTASKS", "two\x1b[31m")
    with pytest.raises(ConfigurationError, match=r"SLURM_NTASKS='two\?\[31m'"):
        launched_by()


def test_devices_that_do_not_fit_the_launch_are_told_with_the_cure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    ranks = Ranks()
    ranks.launcher, ranks.size = "torchrun", 4
    with pytest.raises(ConfigurationError, match=r"set trainer\.devices=2 trainer\.num_nodes=2"):
        ranks.check_trainer({"devices": 1})
    ranks.check_trainer({"devices": 2, "num_nodes": 2})


@pytest.fixture
def two_of_slurm(monkeypatch: pytest.MonkeyPatch) -> list[Ranks]:
    """The two processes of a job, not entered yet: what tells them apart is read when they are."""
    variables = {
        "NTASKS": "2",
        "JOB_NAME": "study",
        "LOCALID": "0",
        "NODEID": "0",
        "JOB_ID": "77",
        "NTASKS_PER_NODE": "2",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    both = [Ranks(), Ranks()]
    for rank, ranks in enumerate(both):
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        ranks.__enter__()
    return both


def test_a_job_without_tasks_per_node_is_told_what_to_give(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    with pytest.raises(ConfigurationError, match="--ntasks=2: give the job --nodes and --ntasks-per-node"), Ranks():
        pass


def test_restarts_with_the_store_of_before_are_refused(monkeypatch: pytest.MonkeyPatch):
    variables = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_MAX_RESTARTS": "1"}
    for name, value in {**variables, "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"), Ranks():
        pass


def test_rank_0_stays_until_the_others_have_read_what_it_told(
    two_of_slurm: list[Ranks], monkeypatch: pytest.MonkeyPatch
):
    """Under SLURM it serves the store: when it went on at once, a slower rank said that rank 0 had gone."""
    read, slow = TCPStore.get, threading.get_ident()

    def get(store: TCPStore, key: str) -> bytes:
        if threading.get_ident() == slow:
            time.sleep(0.3)
        return read(store, key)

    def first_rank() -> None:
        two_of_slurm[0].exchange("mine")
        two_of_slurm[0].begin()
        two_of_slurm.pop(0)

    monkeypatch.setattr(TCPStore, "get", get)
    thread, other = threading.Thread(target=first_rank), two_of_slurm[1]
    thread.start()
    try:
        assert other.exchange("yours") == ["mine", "yours"]
    finally:
        thread.join()


def test_the_store_stays_open_for_the_process_group_of_a_faster_rank(two_of_slurm: list[Ranks]):
    faster = TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), 2, is_master=False, wait_for_workers=False)
    two_of_slurm[0].begin()
    faster.set("key", "value")
    assert faster.get("key") == b"value"


def test_a_machine_with_slurm_trains_outside_of_it_without_a_word_about_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
):
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    inprocess.succeed([*inprocess.TINY, "total_env_steps=20", f"run_dir={tmp_path}/run"])
    assert [str(warning.message) for warning in recwarn if "srun" in str(warning.message)] == []
