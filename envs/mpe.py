"""Create the Multi-Agent Particle Environments of the package ``mpe2`` by scenario."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

from qmix_lightning.environment import check_arguments
from qmix_lightning.errors import ConfigurationError, MissingDependencyError
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["make", "scenarios"]


def scenarios() -> dict[str, str]:
    """Return scenario -> module of its latest version, e.g. ``simple_spread -> simple_spread_v3``; import none."""
    spec = importlib.util.find_spec("mpe2")
    if spec is None:
        raise MissingDependencyError("environment 'mpe' needs mpe2: pip install 'qmix-lightning[mpe]'")
    versions: dict[str, int] = {}
    for module in pkgutil.iter_modules(spec.submodule_search_locations):
        if match := re.fullmatch(r"(\w+)_v(\d+)", module.name):
            versions[match[1]] = max(versions.get(match[1], 0), int(match[2]))
    return {scenario: f"{scenario}_v{version}" for scenario, version in sorted(versions.items())}


def make(scenario: str = "simple_spread", kwargs: Mapping[str, Any] | None = None) -> Any:
    """Create the ``ParallelEnv`` of ``scenario``, with discrete actions unless ``kwargs`` says otherwise.

    Args:
        scenario: e.g. ``simple_spread``, ``simple_reference``, ``simple_speaker_listener``, ``simple_tag``.
        kwargs: keyword arguments of the scenario, e.g. ``N`` and ``max_cycles`` of ``simple_spread``.
    """
    known = scenarios()
    if scenario not in known:
        raise ConfigurationError(f"unknown MPE scenario '{scenario}'{did_you_mean(scenario, known)}")
    module = importlib.import_module(f"mpe2.{known[scenario]}")
    arguments = {"continuous_actions": False, **(kwargs or {})}
    # parallel_env takes **kwargs and would fail from deep within; the class behind it has the names.
    check_arguments(module.raw_env, arguments, f"MPE scenario '{scenario}'")
    from qmix_lightning.envs.mpe_parallel import ParticleEnv

    env = ParticleEnv(module.parallel_env(**arguments))
    if scenario == "simple_spread" and not {"num_landmark_neighbors", "num_agent_neighbors"} & set(arguments):
        # Own velocity and position, landmarks, the others, and what they say (nothing).
        n = len(env.possible_agents)
        landmarks = {"name": "landmarks", "start": 4, "count": n, "size": 2}
        others = {"name": "others", "start": 4 + 2 * n, "count": n - 1, "size": 2}
        env.metadata = {**env.metadata, "obs_entities": [landmarks, *([others] if n > 1 else [])]}
    return env
