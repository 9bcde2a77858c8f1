"""Environments of the registry, put to every check of ``qmix-envs check``."""

from __future__ import annotations

import pytest

from qmix_lightning.cli.env_catalogue import catalogue
from qmix_lightning.commands.envs import compose_env
from qmix_lightning.env_checker.checker import check_factory
from qmix_lightning.env_checker.report import CHECKS, failures, report
from qmix_lightning.errors import MissingDependencyError
from qmix_lightning.vector.env_section import parse_env_section

SHORT = {  # what needs a setting, and episodes short enough that several end
    "gymnasium": ["id=Foraging-5x5-2p-1f-v3"],
    "magent2": ["kwargs.max_cycles=30"],
    "matrix": ["payoff=[[1,0,2],[0,3,0]]"],
    "overcooked": ["horizon=20"],
    "pettingzoo": ["id=support.fakes:VaryingLength"],
    "rware": ["kwargs.max_steps=20"],
    "smax": ["max_steps=20"],  # as in tests/envs/test_smax.py, with which it shares what is compiled
    "vmas": ["max_steps=20"],
}


def passes_every_check(name: str, overrides: list[str]) -> set[str]:
    """Check it; returns the checks that were tried."""
    env = parse_env_section(compose_env(name, overrides))
    results = check_factory(env.factory, env.settings, name=name, **env.adapter)
    assert not failures(results), report(results)
    return {f.check for f in results if f.status == "ok"}


def check_registered(name: str) -> None:
    """Put the environment of this name to every check; what is not installed has to say how to install it."""
    if catalogue()[name].install is not None:
        # Nothing is passed over in silence: who lacks it is told what to install.
        with pytest.raises(MissingDependencyError, match=r"pip install|rollout\.python=PATH"):
            passes_every_check(name, SHORT.get(name, []))
        return
    tested = passes_every_check(name, SHORT.get(name, []))
    one_step = {"climbing", "matrix", "penalty", "qtran_game"}
    assert tested >= CHECKS.keys() - {"death", "accounts", *(["unfinished"] if name in one_step else [])}
