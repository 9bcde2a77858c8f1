"""Other Pythons for the tests that are marked ``interpreters``."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from support.environments import find_python

NUMPY = {"3.8": "1.24.4", "3.9": "1.26.4", "3.10": "1.26.4", "3.13": "2.4.6"}


@pytest.fixture(scope="session")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A function that returns a Python of a version with numpy and nothing else; made once, by venv and pip."""
    made: dict[str, str] = {}

    def get(version: str) -> str:
        if version not in made:
            python = find_python(version)
            folder = tmp_path_factory.mktemp("python") / version
            subprocess.run([python, "-m", "venv", str(folder)], check=True, capture_output=True)
            made[version] = str(folder / "bin" / "python")
            install = [made[version], "-m", "pip", "install", "-q", f"numpy=={NUMPY[version]}"]
            subprocess.run(install, check=True, capture_output=True)
        return made[version]

    return get
