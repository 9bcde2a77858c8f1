"""Read what a PettingZoo environment declares about itself: methods, limits, entities, the shapes of its spaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qmix_lightning.errors import EnvironmentContractError
from qmix_lightning.runtime.text import shortened
from qmix_lightning.types import EntityBlock, Picture
from qmix_lightning.worker.spaces import is_space

__all__ = [
    "close_if_it_can",
    "find_pictures",
    "is_bytes",
    "is_seeded",
    "keys_out_of_order",
    "metadata_of",
    "own_limit",
    "read_entities",
    "read_pictures",
    "require_parallel_env",
    "vector_shape",
    "versions_of",
]

LIMIT_ATTRIBUTES = ("max_cycles", "max_steps", "episode_limit", "timestep_limit", "_max_episode_steps")
_MOST_WRAPPERS = 16


def metadata_of(env: Any) -> dict[str, Any]:
    """Return the ``metadata`` of an environment; empty where it has none."""
    return getattr(env, "metadata", None) or {}


def is_seeded(env: Any) -> bool:
    """Return whether an episode is a function of its seed and the actions; ``metadata["seeded"] = False`` says no."""
    return bool(metadata_of(env).get("seeded", True))


def versions_of(env: Any) -> dict[str, str]:
    """Return what ``metadata["versions"]`` says of a simulator, such as its game's build."""
    return {str(name): str(value) for name, value in metadata_of(env).get("versions", {}).items()}


def close_if_it_can(env: Any) -> None:
    """Close an environment that has ``close()``: a simulator may hold processes."""
    close = getattr(env, "close", None)
    if callable(close):
        close()


def vector_shape(space: Any) -> tuple[int, ...] | None:
    """Return the shape of a ``Box`` of one axis; ``None`` for any other space."""
    return tuple(space.shape) if is_space(space, "Box") and len(space.shape) == 1 else None


def read_entities(declared: Sequence[Any], what: str) -> tuple[EntityBlock, ...]:
    """Return the blocks of ``metadata["obs_entities"]``."""
    try:
        return tuple(EntityBlock(**block) for block in declared)
    except (TypeError, ValueError) as error:
        raise EnvironmentContractError(f"{what}: metadata['obs_entities']: {error}") from error


def read_pictures(declared: Sequence[Any], what: str) -> tuple[Picture, ...]:
    """Return the pictures of ``metadata["obs_pictures"]``, of observations that are flat already."""
    try:
        return tuple(Picture.from_dict(block) for block in declared)
    except (KeyError, TypeError, ValueError) as error:
        raise EnvironmentContractError(f"{what}: metadata['obs_pictures']: {error}") from error


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
    names = list(map(str, env.possible_agents))
    if len(set(names)) < len(names):  # a policy is saved with its agents' names, and could not be opened again
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise EnvironmentContractError(f"{what}: possible_agents holds two agents called '{shortened(twice, 40)}'")


def own_limit(env: Any) -> int | None:
    """Return the environment's own limit on joint steps, where it or one that it wraps shows one."""
    waiting, seen = [env], []
    while waiting and len(seen) < _MOST_WRAPPERS:
        source = waiting.pop(0)
        if source is None or any(source is other for other in seen):
            continue
        seen.append(source)
        for attribute in LIMIT_ATTRIBUTES:
            limit = _attribute(source, attribute)
            if isinstance(limit, (int, np.integer)) and not isinstance(limit, bool) and limit > 0:
                return int(limit)
        waiting += [_attribute(source, name) for name in ("unwrapped", "env", "aec_env", "par_env")]
    return None


def _attribute(source: Any, name: str) -> Any:
    try:
        return getattr(source, name, None)
    except Exception:  # a property may raise anything
        return None


def find_pictures(space: Any) -> tuple[Picture, ...]:
    """Return which parts of a flattened observation are pictures or grids: boxes of two or three axes.

    They are looked for in the observation itself and in the parts of a ``Dict``, in the order of
    ``gymnasium.spaces.utils.flatten``; a mask among these must have been taken out.
    """
    if is_space(space, "Box"):
        picture = _picture("observation", 0, space)
        return () if picture is None else (picture,)
    if not is_space(space, "Dict"):
        return ()
    found, start = [], 0
    for name, part in space.spaces.items():
        if not is_space(part, "Box"):
            return ()  # its flat size is another library's business
        picture = _picture(str(name), start, part)
        found += [] if picture is None else [picture]
        start += int(np.prod(part.shape))
    return tuple(found)


def _picture(name: str, start: int, box: Any) -> Picture | None:
    shape = tuple(int(size) for size in box.shape)
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3 or min(shape) < 1:
        return None
    # Channels are fewer than rows and columns, and stand first or last.
    first = shape[0] < shape[2]
    sides = shape[1:] if first else shape[:2]
    if min(sides) < 3:
        return None
    return Picture(name, start, shape, first, 1.0 / 255.0 if _dtype(box) == np.uint8 else 1.0)


def keys_out_of_order(spaces: Sequence[Any]) -> tuple[str, ...]:
    """Return the parts that all of ``spaces`` have as each ``Dict`` has them; empty where they are sorted by name.

    Empty too for other spaces, and where they differ.
    """
    found = {tuple(map(str, space.spaces)) if is_space(space, "Dict") else () for space in spaces}
    keys = found.pop() if len(found) == 1 else ()
    return () if keys == tuple(sorted(keys)) else keys


def is_bytes(space: Any) -> bool:
    """Return whether a space holds nothing but bytes."""
    if is_space(space, "Dict"):
        return bool(space.spaces) and all(map(is_bytes, space.spaces.values()))
    return is_space(space, "Box") and _dtype(space) == np.uint8


def _dtype(box: Any) -> Any:
    """Return the dtype of a ``Box``; one of an environment's own may have none."""
    return getattr(box, "dtype", None)
