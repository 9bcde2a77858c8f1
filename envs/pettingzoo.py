"""Any PettingZoo environment by its address: ``env=pettingzoo env.id=package.module:factory``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmix_lightning.environment import check_arguments
from qmix_lightning.registry import load_target

__all__ = ["make"]


def make(id: str, kwargs: Mapping[str, Any] | None = None) -> Any:
    """The ``ParallelEnv`` that the factory at ``id`` makes.

    Args:
        id: ``"package.module:factory"``; a module alone means its ``parallel_env``.
        kwargs: keyword arguments of the factory, checked against its signature where that names them.
    """
    target = id if ":" in id else f"{id}:parallel_env"
    factory = load_target(target, "env.id")
    arguments = dict(kwargs or {})
    check_arguments(factory, arguments, f"'{target}'")
    return factory(**arguments)
