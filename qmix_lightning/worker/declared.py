"""Read what a PettingZoo environment declares about itself: methods, limits, entities, the shapes of its spaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qmix_lightning.errors import EnvironmentContractError
from qmix_lightning.types import EntityBlock
from qmix_lightning.worker.spaces import is_space

__all__ = ["own_limit", "read_entities", "require_parallel_env", "vector_shape"]

LIMIT_ATTRIBUTES = ("max_cycles", "max_steps", "episode_limit")


def vector_shape(space: Any) -> tuple[int, ...] | None:
    """Return the shape of a ``Box`` of one axis; ``None`` for any other space."""
    return tuple(space.shape) if is_space(space, "Box") and len(space.shape) == 1 else None


def read_entities(declared: Sequence[Any], what: str) -> tuple[EntityBlock, ...]:
    """Return the blocks of ``metadata["obs_entities"]``."""
    try:
        return tuple(EntityBlock(**block) for block in declared)
    except (TypeError, ValueError) as error:
        raise EnvironmentContractError(f"{what}: metadata['obs_entities']: {error}") from error


def require_parallel_env(env: Any, what: str) -> None:
    """Check that an environment is a ``ParallelEnv``; raise an ``EnvironmentContractError`` that says what it lacks."""
    found = type(env).__name__
    # An AEC environment has every method that is looked for below, so it is recognised first.
    if callable(getattr(env, "agent_iter", None)):
        raise EnvironmentContractError(
            f"{what}: {found} is an AEC environment, a ParallelEnv is needed; "
            "use its parallel_env, or pettingzoo.utils.aec_to_parallel"
        )
    for method in ("reset", "step", "observation_space", "action_space"):
        if not callable(getattr(env, method, None)):
            raise EnvironmentContractError(f"{what}: {found} is not a PettingZoo ParallelEnv, it has no {method}()")
    if not getattr(env, "possible_agents", None):
        raise EnvironmentContractError(f"{what}: {found} has no possible_agents; a fixed list of agents is needed")


def own_limit(env: Any) -> int | None:
    """Return the environment's own limit on joint steps, where it shows one."""
    for source in (env, getattr(env, "unwrapped", None)):
        for attribute in LIMIT_ATTRIBUTES:
            limit = getattr(source, attribute, None)
            if isinstance(limit, (int, np.integer)) and not isinstance(limit, bool) and limit > 0:
                return int(limit)
    return None
