"""``python -m qmix_lightning COMMAND`` is the console script; the modules of 0.1.0 are imported and run as before.

That each answers to ``--help`` is in test_help, that it starts the other ranks as it was started in test_ranks.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from qmix_lightning.commands import COMMANDS
from support import commands

ROOT = Path(__file__).parent.parent.parent


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=commands.environ())


def test_every_command_is_a_console_script_and_has_its_file():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    files = {path.stem for path in (ROOT / "qmix_lightning" / "commands").glob("*.py")} - {"__init__"}
    assert files == set(COMMANDS)
    assert set(scripts.values()) == {f"qmix_lightning.commands.{name}:main" for name in COMMANDS}
    installed = distribution("qmix-lightning").entry_points.select(group="console_scripts")
    assert {script.name: script.value for script in installed} == scripts
    assert all(callable(script.load()) for script in installed)


def test_without_a_command_they_are_listed():
    ended = python("-m", "qmix_lightning")
    assert ended.returncode == 0
    assert all(f"  {name}  " in ended.stdout for name in COMMANDS)


def test_an_unknown_command_gets_the_nearest():
    ended = python("-m", "qmix_lightning", "trian")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: there is no command 'trian'. Did you mean 'train'?\n"


def test_the_modules_of_0_1_0():
    names = ("train", "evaluate")
    code = "import runpy, sys\n" + "".join(f"import qmix_lightning.{name}\n" for name in names)
    code += "assert 'torch' not in sys.modules and 'hydra' not in sys.modules\n"
    for name in names:
        code += (
            f"from qmix_lightning.{name} import main, {name}\n"
            f"from qmix_lightning.commands import {name} as now\n"
            f"assert main is now.main and {name} is now.{name}\n"
            f"sys.argv[1:] = ['--help']; del sys.modules['qmix_lightning.{name}']\n"
            f"try: runpy.run_module('qmix_lightning.{name}', run_name='__main__', alter_sys=True)\n"
            "except SystemExit as end: assert not end.code\n"
        )
    ended = python("-c", code)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.count("qmix-train") >= 1
    assert ended.stdout.count("qmix-eval") >= 1
