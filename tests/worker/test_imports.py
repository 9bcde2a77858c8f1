"""What a worker process imports, and the Python it needs: it may run under another interpreter than the trainer."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
WORKER = ROOT / "qmix_lightning" / "worker"
LATER = ("removeprefix", "removesuffix", "is_relative_to", "recv_fds", "send_fds", "batched", "pairwise")
"""Attributes that came after 3.8."""
MODULES = sorted(path.stem for path in WORKER.glob("*.py") if path.stem != "__init__")
ENVS = (
    "gymnasium_tuple", "lbf", "lbf_game", "optional", "pettingzoo", "pogema", "rware", "smac", "smaclite", "smacv2",
    "starcraft", "starcraft_setup",
)  # fmt: skip
"""Shipped environments that may be wanted from an older simulator's Python."""
BELOW = [
    "__init__",
    "errors",
    "registry",
    "types/__init__",
    "types/env_spec",
    "types/trajectories",
    "runtime/__init__",
    "runtime/moved",
    "runtime/near_modules",
    "runtime/text",
]
"""What they import of the package besides each other."""


def test_a_worker_imports_the_standard_library_and_numpy_alone():
    code = (
        "import sys\n"
        "allowed = {*sys.stdlib_module_names, 'numpy', 'qmix_lightning', '_distutils_hack'}\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] not in allowed: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        + "".join(f"import qmix_lightning.worker.{name}\n" for name in MODULES)
        + "print(*sorted(m for m in sys.modules if m.startswith('qmix_lightning.')), sep='\\n')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    expected = {f"qmix_lightning.worker.{name}" for name in MODULES} | {"qmix_lightning.worker"}
    expected |= {f"qmix_lightning.{name.replace('/__init__', '').replace('/', '.')}" for name in BELOW[1:]}
    assert set(ended.stdout.split()) == expected


@pytest.mark.parametrize("name", [*BELOW, *(f"worker/{name}" for name in ["__init__", *MODULES])])
def test_its_files_are_python_3_8(name: str):
    check_syntax(ROOT / "qmix_lightning" / f"{name}.py")


@pytest.mark.parametrize("name", ENVS)
def test_environments_with_old_dependencies_are_python_3_8(name: str):
    check_syntax(ROOT / "envs" / f"{name}.py")


def check_syntax(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    # What the grammar does not tell: unions and keywords that came later, where they are evaluated.
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
            assert not node.keywords, f"line {node.lineno}: zip(strict=) came with 3.10"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            assert not any(isinstance(part, ast.BinOp) for part in ast.walk(node.args[1])), (
                f"line {node.lineno}: int | str"
            )
        if isinstance(node, ast.Assign) and node in tree.body and isinstance(node.value, ast.Subscript):
            assert not isinstance(node.value.slice, (ast.List, ast.Tuple)), f"line {node.lineno}: Callable[[int], str]"
        if isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.BitOr):
            sides = [node.left, node.right] if isinstance(node, ast.BinOp) else [node.value]
            dicts = [side for side in sides if isinstance(side, (ast.Dict, ast.DictComp))]
            assert not dicts, f"line {node.lineno}: {{}} | {{}} came with 3.9"
        if isinstance(node, ast.Attribute) and path.parent.name == "worker":
            assert node.attr not in LATER, f"line {node.lineno}: came with 3.9"
