"""Create any PettingZoo environment by its address: ``env=pettingzoo env.id=package.module:factory``."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping
from typing import Any

from qmix_lightning.environment import check_arguments
from qmix_lightning.registry import load_target

__all__ = ["make"]


def make(id: str, kwargs: Mapping[str, Any] | None = None) -> Any:
    """Create the ``ParallelEnv`` of the factory at ``id``.

    Args:
        id: ``"package.module:factory"``; a module alone means its ``parallel_env``.
        kwargs: keyword arguments of the factory, checked against its signature where that names them.
    """
    target = id if ":" in id else f"{id}:parallel_env"
    arguments = dict(kwargs or {})
    if target.startswith("pettingzoo.") and arguments.get("render_mode") != "human":
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # its games draw even where nobody watches
    with warnings.catch_warnings():
        # Its modules by family warn that there is a registry now; the address is the same either way.
        warnings.filterwarnings("ignore", "The old environment creation API", DeprecationWarning)
        factory = load_target(target, "env.id")
    check_arguments(_with_names(factory), arguments, f"'{target}'")
    env = factory(**arguments)
    if callable(getattr(env, "agent_iter", None)) and (getattr(env, "metadata", None) or {}).get("is_parallelizable"):
        from pettingzoo.utils.conversions import aec_to_parallel

        env = aec_to_parallel(env)  # sound where nothing happens between the turns of a cycle, which it says of itself
    if target.startswith("pettingzoo.butterfly.knights_archers_zombies"):
        _reset_spawn_count(env)
    return env


def _with_names(factory: Any) -> Any:
    """Return what names the keyword arguments of ``factory``: PettingZoo's wrappers hand on whatever they are given."""
    seen: list[Any] = []
    candidate = factory
    while candidate is not None and candidate not in seen:
        seen.append(candidate)
        parameters = inspect.signature(candidate).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return candidate
        code = inspect.unwrap(candidate.__init__ if inspect.isclass(candidate) else candidate)
        inner = [c.cell_contents for c in getattr(code, "__closure__", None) or () if callable(c.cell_contents)]
        names = getattr(code, "__globals__", {})
        inner += [names[name] for name in ("raw_env", "_env") if callable(names.get(name))]
        candidate = next((other for other in inner if other not in seen and other is not code), None)
    return factory


def _reset_spawn_count(env: Any) -> None:
    """Make ``env`` count the steps to the first zombie from the start of an episode.

    The game's reset forgets to, so that what the last episode left of the count would decide the next one too, not the
    seed alone.
    """
    game, reset = env.unwrapped, env.reset

    def reset_with_count(*args: Any, **kwargs: Any) -> Any:
        game.zombie_spawn_interval.reset()
        return reset(*args, **kwargs)

    env.reset = reset_with_count
