"""Environments whose package is missing, and what importing the plugins brings.

That each one's YAML makes an environment whose episodes are decided by seed and actions is tested by the checker.
"""

import importlib.util
import subprocess
import sys

import pytest

from qmix_lightning.envs import lbf, mpe, overcooked, rware
from qmix_lightning.errors import MissingDependencyError

WITHOUT_NUMPY = ("mpe", "pettingzoo")
OTHERS = ("jaxmarl", "lbf", "overcooked", "rware", "smac", "smacv2", "smax")
HEAVY = ["torch", "jax", "jaxmarl", "pettingzoo", "mpe2", "lbforaging", "rware", "overcooked", "pysc2", "pygame"]


@pytest.mark.parametrize("plugin", [lbf, mpe, overcooked, rware], ids=lambda module: module.__name__)
def test_the_command_that_installs_it_is_named(plugin, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    name = plugin.__name__.rpartition(".")[2]
    with pytest.raises(MissingDependencyError, match=rf"pip install 'qmix-lightning\[{name}\]'"):
        plugin.make()


def test_importing_the_plugins_is_light():
    code = ["import sys"]
    for names, heavy in ((WITHOUT_NUMPY, [*HEAVY, "numpy", "gymnasium"]), (OTHERS, HEAVY)):
        code += [f"import qmix_lightning.envs.{name}" for name in names]
        code.append(f"print([m for m in {heavy} if m in sys.modules])")
    assert subprocess.check_output([sys.executable, "-c", "\n".join(code)], text=True).split() == ["[]", "[]"]
