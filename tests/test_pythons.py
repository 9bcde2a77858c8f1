"""What needs no torch works on later Pythons, without torch: workers, ``qmix-envs``, configuration, statistics.

Needs uv, an index, and those Pythons. That workers of other Pythons serve a trainer: tests/vector/test_interpreter.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.environments import find_python, make_environment, run, run_tests

TESTS = (
    "tests/config/test_env_address.py",
    "tests/config/test_resume.py",
    "tests/runtime/test_prng.py",
    "tests/runtime/test_run_lock.py",
    "tests/study/test_index.py",
    "tests/study/test_report.py",
    "tests/study/test_rows.py",
    "tests/study/test_runner.py",
    "tests/study/test_statistics.py",
    "tests/study/test_suite.py",
    "tests/worker/test_fault_tolerance.py",
    "tests/worker/test_imports.py",
    "tests/worker/test_last_words.py",
    "tests/worker/test_supervisor.py",
)
COMMANDS = {
    "envs": "two_step",
    "envs new elsewhere --path {folder}": "elsewhere",
    "train env=two_step --cfg job": "total_env_steps",
    "report --help": "qmix-report",
}
"""What is typed, and a word of the answer."""


@pytest.mark.pythons
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_what_needs_no_torch(version: str, tmp_path: Path):
    python = make_environment(tmp_path / "env", "report", "mpe", "butterfly", python=find_python(version), torch=False)
    print(run_tests(python, "--noconftest", *TESTS))
    for typed, word in COMMANDS.items():
        assert word in run(python, "qmix_lightning", *typed.format(folder=tmp_path).split())
