"""Imports go one way, and nothing heavy is imported before it is asked for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qmix_lightning"
TESTS = ROOT / "tests"
MATHS = ("nn", "agents", "mixers", "algorithms")

LAYERS = [
    ("errors", "types", "runtime"),
    ("registry", "config", "nn", "action_selection", "worker"),
    ("environment", "agents", "mixers", "optimizers"),
    ("algorithms", "vector", "replay", "rendering"),
    ("rollout", "checkpoint", "components", "env_checker", "policies"),
    ("training", "cli"),
    ("build", "fit", "study"),
    ("commands", "api"),
    ("__main__",),
]
"""From what knows nothing to what knows everything: each imports from its own line and from those above it."""

LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


@cache
def imported(path: Path) -> frozenset[str]:
    """Full names of what a file imports, inside functions and for type checkers too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def files_of(name: str) -> list[Path]:
    """The files of a module or a sub-package of this package."""
    return sorted((PACKAGE / name).rglob("*.py")) if (PACKAGE / name).is_dir() else [PACKAGE / f"{name}.py"]


def names_in(path: Path) -> set[str]:
    """The first-level names of this package that a file imports: ``agents``, ``config``, ..."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("qmix_lightning.")}


@cache
def graph() -> dict[str, set[str]]:
    modules = {p.stem if p.is_file() else p.name for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    modules -= {"__init__", "__pycache__"}
    return {m: {n for f in files_of(m) for n in names_in(f) if n in modules} - {m} for m in sorted(modules)}


def reachable(module: str) -> dict[str, list[str]]:
    """Everything that ``module`` imports, directly or not, each with the way there."""
    ways, waiting = {module: [module]}, [module]
    while waiting:
        for other in sorted(graph()[(current := waiting.pop())]):
            if other not in ways:
                ways[other] = [*ways[current], other]
                waiting.append(other)
    return ways


def test_every_module_has_its_layer():
    assert set(LAYER) == set(graph())


def test_the_top_of_the_package_can_be_taken_in_at_a_glance():
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 31


def test_no_file_is_too_long_to_be_read_at_once():
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "envs").rglob("*.py")]
    assert {str(path.relative_to(ROOT)): n for path in files if (n := len(path.read_text().splitlines())) > 450} == {}


@pytest.mark.parametrize("module", LAYER)
def test_imports_go_one_way(module: str):
    above = {m: " -> ".join(w) for m, w in reachable(module).items() if LAYER.get(m, -1) > LAYER[module]}
    assert not above


def test_there_are_no_circles():
    circles = [(m, o) for m in graph() for o in graph()[m] if m in reachable(o)]
    assert circles == []


def test_the_picture_shows_every_module():
    picture = (ROOT / "docs" / "architecture.svg").read_text()
    rows: dict[int, set[str]] = {}
    for height, name in re.findall(r'<text class="n" x="\d+" y="(\d+)" text-anchor="middle">(\w+)</text>', picture):
        rows.setdefault(int(height) // 72, set()).add(name)
    assert [rows[height] for height in sorted(rows, reverse=True)] == [set(names) for names in LAYERS[:-1]]


@pytest.mark.parametrize("folder", MATHS)
def test_the_maths_imports_torch_only(folder: str):
    roots = {name.split(".")[0] for path in files_of(folder) for name in imported(path)}
    assert roots - set(sys.stdlib_module_names) - {"qmix_lightning"} == {"torch"}
    ours = {name for path in files_of(folder) for name in names_in(path)}
    assert ours <= {*MATHS, "action_selection", "registry", "types", "errors", "runtime"}


def test_environments_are_reached_through_the_registry_only():
    for path in PACKAGE.rglob("*.py"):
        found = {name for name in imported(path) if name.startswith(("qmix_lightning.envs", "envs"))}
        assert not found, path


def test_environments_know_nothing_of_training():
    for path in sorted((ROOT / "envs").rglob("*.py")):
        used = names_in(path) - {"envs"}
        assert not {name for name in used if LAYER.get(name, 0) > LAYER["vector"]}, path


def test_no_test_file_imports_another_one():
    """What several of them need is in ``tests/support``."""
    files = sorted(TESTS.rglob("test_*.py"))
    names = {path.stem for path in files}
    found = {str(path.relative_to(TESTS)): n for path in files for n in imported(path) if names & set(n.split("."))}
    assert not found


def test_the_folders_of_the_tests_are_packages():
    folders = {path.relative_to(TESTS).parts[0] for path in TESTS.rglob("*.py") if path.parent != TESTS}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders - {"support", "data", "end_to_end", "envs", "benchmarks", "campaign"} <= packages


def test_importing_it_is_cheap():
    """The package, and a command with all that it imports before it knows what to do."""
    heavy = ("torch", "pytorch_lightning", "hydra", "numpy", "gymnasium", "pettingzoo", "qmix_lightning.envs")
    code = f"import sys, qmix_lightning.commands.train; print([name for name in {heavy!r} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_importing_it_changes_nothing_global():
    """No library is patched and no switch is thrown at import time."""
    code = (
        "import logging, signal, warnings\n"
        "before = (list(warnings.filters), logging.root.handlers[:], signal.getsignal(signal.SIGTERM))\n"
        "import qmix_lightning.commands.train, qmix_lightning.commands.evaluate\n"
        "assert (list(warnings.filters), logging.root.handlers[:], signal.getsignal(signal.SIGTERM)) == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
