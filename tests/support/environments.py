"""Virtual environments that uv makes: at either end of the ranges in ``pyproject.toml``, and without torch.

pip cannot choose lowest versions. Needs uv (``pip install uv``) and an index.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = {
    name: own
    for name, lines in PROJECT["optional-dependencies"].items()
    if (own := [line for line in lines if not line.startswith("qmix-lightning[")])
}
"""What each extra adds by itself; those that only join others are left out."""

TOOLS = [line for line in EXTRAS["test"] if Requirement(line).name in ("pytest", "pytest-xdist", "hypothesis")]
NEED_TORCH = ("torch", "pytorch-lightning", "torchmetrics")


def make_environment(
    folder: Path, *extras: str, python: str = sys.executable, resolution: str = "highest", torch: bool = True
) -> Path:
    """Return the Python of an environment with this checkout, extras of it and what runs tests.

    Args:
        folder: where it is made.
        extras: keys of ``EXTRAS``.
        python: path of the interpreter.
        resolution: ``"highest"``, or ``"lowest-direct"``: what this project names is as old as its ranges allow.
        torch: with the torch that runs this; else without it and what needs it.
    """
    requirements = [*PROJECT["dependencies"], *TOOLS, *(line for extra in extras for line in EXTRAS[extra])]
    rule = folder.with_suffix(".txt")
    if torch:
        rule.write_text(f"torch=={importlib.metadata.version('torch')}\n")
    else:
        rule.write_text("".join(f"{name} ; python_version < '3'\n" for name in NEED_TORCH))
    uv("venv", "--python", python, str(folder))
    install = ("pip", "install", "--python", str(folder))
    uv(*install, "--resolution", resolution, "--constraint" if torch else "--override", str(rule), *requirements)
    uv(*install, "--no-deps", "--editable", str(ROOT))
    return folder / "bin" / "python"


def find_python(version: str) -> str:
    """Return the path of a Python of a version: pyenv's, or the one on the path."""
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    python = str(pyenv[-1]) if pyenv else shutil.which(f"python{version}")
    assert python, f"there is no Python {version} here"
    return python


def raised(python: Path, lines: Iterable[str]) -> list[str]:
    """Return the requirements that are installed in another version than the lowest of their range."""
    frozen = [line.split("==") for line in uv("pip", "freeze", "--python", str(python)).splitlines() if "==" in line]
    installed = {canonicalize_name(name): Version(version) for name, version in frozen}
    found: list[str] = []
    for requirement in map(Requirement, lines):
        lowest = next((part.version for part in requirement.specifier if part.operator == ">="), None)
        version = installed[canonicalize_name(requirement.name)]
        if lowest and version != Version(lowest):
            found.append(f"{requirement}: {version}")
    return found


def uv(*arguments: str) -> str:
    """Return what uv prints. It reads no setting of pip's: where else wheels lie is told to it."""
    environ = dict(os.environ)
    if "PIP_FIND_LINKS" in environ:
        environ.setdefault("UV_FIND_LINKS", environ["PIP_FIND_LINKS"])
    done = subprocess.run([sys.executable, "-m", "uv", *arguments], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(python: Path, *arguments: str) -> str:
    """Return what a module of an environment prints, in this checkout, with nothing of the environment around it."""
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environ["PATH"] = f"{python.parent}:{environ['PATH']}"
    command = [str(python), "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def run_tests(python: Path, *arguments: str) -> str:
    """Run tests in an environment. Warnings are no errors there: old versions, and other Pythons, have their own."""
    quiet = ("-o", "filterwarnings=default", "-p", "no:cacheprovider", "-q", "-n", "0", "--tb=short")
    return run(python, "pytest", *quiet, *arguments)
