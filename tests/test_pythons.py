"""What needs no torch works on later Pythons, without torch: workers, ``qmix-envs``, configuration, statistics.

Needs uv, an index, and those Pythons (uv finds them in the path, and pyenv's).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.environments import make_environment, run_tests

TESTS = ()


@pytest.mark.pythons
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_what_needs_no_torch(version: str, tmp_path: Path):
    python = make_environment(tmp_path / "env", "report", python=version, torch=False)
    print(run_tests(python, "--noconftest", *TESTS))
