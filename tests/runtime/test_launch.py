"""Whether this process is one of several of a run, by what torchrun and SLURM leave in the environment."""

from __future__ import annotations

import pytest

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.launch import Ranks, launched_by


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
