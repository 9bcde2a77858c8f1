"""Write a plugin package for ``qmix-envs new``: it installs, passes every check, and trains."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from importlib import resources
from pathlib import Path
from string import Template

from qmix_lightning.errors import ConfigurationError

__all__ = ["write_plugin"]

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"

[project]
name = "$distribution"
version = "0.1.0"
description = "The environment '$name' for qmix-lightning"
requires-python = ">=3.11"
dependencies = ["qmix-lightning", "pettingzoo", "gymnasium", "numpy"]

[project.optional-dependencies]
test = ["pytest"]

# This line makes env=$name work wherever the package is installed.
[project.entry-points."qmix_lightning.envs"]
$name = "$name.environment:$class_name"

[tool.setuptools]
packages = ["$name"]
"""

_INIT = '''\
"""The environment ``$name`` for qmix-lightning; found through its entry point, so nothing is imported here."""
'''

_RECIPE = """\
# @package _global_
# QMIX on $name: solved within a minute. Use: qmix-train --config-dir conf experiment=${name}_qmix
defaults:
  - override /preset: pymarl
  - override /env: $name
  - override /algorithm: qmix
  - override /mixer: qmix_paper
  - override /agent: feedforward
  - override /optimizer: adam

total_env_steps: 20000
eval_interval: 4000
eval_episodes: 100
checkpoint_interval: 4000
env:
  kwargs:            # the keyword arguments of $class_name
    size: 9
    n_agents: 2
    max_steps: 20
algorithm:
  target_update_every: 100
optimizer:
  lr: 1.0e-3
rollout:
  num_envs: 8
exploration:
  epsilon_anneal_steps: 8000
"""

_TEST = '''\
from $name.environment import LEFT, RIGHT, STAY, $class_name
from qmix_lightning import environment
from qmix_lightning.env_checker import check_factory, failures, report


def test_passes_every_check():
    """Check it by its name, so that the entry point is tested too; the package must be installed."""
    results = check_factory(environment.load("$name"), name="$name")
    assert not failures(results), report(results)


def test_meeting_wins():
    env = $class_name(size=5)
    env.reset(seed=0)
    env._position[:] = 1, 3
    _, rewards, terminations, truncations, infos = env.step({"agent_0": RIGHT, "agent_1": LEFT})
    assert sum(rewards.values()) == 1 - 1 / 20
    assert all(terminations.values())
    assert not any(truncations.values())
    assert infos["agent_0"]["won"] == 1.0
    assert env.agents == []


def test_the_time_limit_truncates():
    env = $class_name(max_steps=3)
    env.reset(seed=0)
    for _ in range(3):
        _, _, terminations, truncations, infos = env.step({"agent_0": STAY, "agent_1": STAY})
    assert all(truncations.values())
    assert not any(terminations.values())
    assert infos["agent_0"]["won"] == 0.0
'''

_README = """\
# $name

An environment for qmix-lightning, written by `qmix-envs new $name`. As it stands, two agents on a line look for each
other; make it yours in `$name/environment.py`.

```bash
pip install -e .                     # the entry point in pyproject.toml makes env=$name known
qmix-envs show $name                 # sizes and settings
qmix-envs check $name                # does it pass the checks that training relies on?
qmix-train env=$name env.kwargs.size=5
qmix-train --config-dir conf experiment=${name}_qmix
pytest
```

The environment is a PettingZoo `ParallelEnv`. Its keyword arguments are the settings `env.kwargs.*`; a misspelt one is
refused. If it needs packages that not everyone has, name them in an extra called `$name` in `pyproject.toml`:
`qmix-envs` then says what to install where they are missing.
"""


def write_plugin(name: str, parent: Path) -> Path:
    """Write the package ``name`` below ``parent``.

    Returns:
        The new folder.

    Raises:
        ConfigurationError: the name cannot be used, or the folder exists.
    """
    folder = parent / name
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        hint = re.sub(r"\W+", "_", name.lower()).strip("_").lstrip("0123456789_")
        hint = f", e.g. '{hint}'" if hint and hint != name and not keyword.iskeyword(hint) else ""
        raise ConfigurationError(
            f"'{name}' cannot be the name of a package: use lower-case letters, digits and underscores{hint}"
        )
    if folder.exists():
        raise ConfigurationError(f"{folder} exists already; nothing was written")
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise ConfigurationError(f"there is a module '{name}' already, which the new package would hide")
    class_name = "".join(part.capitalize() for part in name.split("_"))
    names = {"name": name, "class_name": class_name, "distribution": name.replace("_", "-")}
    source = resources.files(__name__).joinpath("environment.py").read_text()
    files = {
        "pyproject.toml": Template(_PYPROJECT).substitute(names),
        "README.md": Template(_README).substitute(names),
        f"{name}/__init__.py": Template(_INIT).substitute(names),
        f"{name}/environment.py": source.replace("Rendezvous", class_name).replace('"rendezvous"', f'"{name}"'),
        f"conf/experiment/{name}_qmix.yaml": Template(_RECIPE).substitute(names),
        f"tests/test_{name}.py": Template(_TEST).substitute(names),
    }
    try:
        folder.mkdir(parents=True)
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written: {error}") from error
    return folder
