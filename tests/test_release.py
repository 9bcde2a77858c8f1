"""Releases are the same bytes each time, and all that a command needs is in the wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qmix_lightning.policies.zoo import zoo_names

pytestmark = pytest.mark.release

ROOT = Path(__file__).parent.parent
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def build(folder: Path, umask: int) -> dict[str, bytes]:
    """Return wheel and sdist of the last commit by name."""
    command = [sys.executable, str(ROOT / ".ci/build_release.py"), str(folder)]
    subprocess.run(command, check=True, capture_output=True, umask=umask)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    build(folder, 0o022)
    return folder


def test_two_builds_are_the_same_bytes(first: Path, tmp_path: Path):
    built = build(tmp_path, 0o027)
    assert {name.split(".")[-1] for name in built} == {"whl", "gz"}
    for name, content in built.items():
        assert content == (first / name).read_bytes(), name


@pytest.fixture(scope="module")
def installed(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of an environment with the wheel, and with the dependencies of this one but not its project."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    (wheel,) = first.glob("*.whl")
    command = [str(folder / "bin/python"), "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", "--no-index"]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    return folder / "bin"


def run(installed: Path, where: Path, *command: str) -> str:
    """Return what a command of the wheel prints, run from an empty folder."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(installed / command[0]), *command[1:]], cwd=where, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_is_what_is_imported(installed: Path, tmp_path: Path):
    said = run(
        installed, tmp_path, "python", "-c", "import qmix_lightning, qmix_lightning.envs as e; print(e.__path__)"
    )
    assert str(installed.parent) in said


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_is_there(installed: Path, tmp_path: Path, script: str):
    assert script in run(installed, tmp_path, script, "--help")


def test_a_run_and_its_evaluation_need_the_wheel_alone(installed: Path, tmp_path: Path):
    run(installed, tmp_path, "qmix-train", "env=two_step", "total_env_steps=200", "run_dir=x", "logger=none")
    assert "episodes   2," in run(installed, tmp_path, "qmix-eval", "x", "episodes=2")


@pytest.mark.parametrize("name", zoo_names())
def test_a_policy_that_comes_with_the_package_repeats_its_figure(installed: Path, tmp_path: Path, name: str):
    """Ends with status 1, which ``run`` refuses, where the figure on the card does not hold."""
    assert re.search(r"^ +card ", run(installed, tmp_path, "qmix-eval", name), re.MULTILINE)
