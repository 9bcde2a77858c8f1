"""Create environments of the StarCraft Multi-Agent Challenge (Samvelyan et al., 2019), on oxwhirl's package.

Installing it: docs/smac.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from qmix_lightning.environment import check_arguments
from qmix_lightning.envs.starcraft import StarCraft
from qmix_lightning.envs.starcraft_setup import RESERVED, game_settings, import_package
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["make", "maps"]


def maps() -> list[str]:
    """Return the name of every map that the installed package has."""
    import_package("smac", "smac.env")
    registry: Any = importlib.import_module("smac.env.starcraft2.maps.smac_maps")
    return sorted(registry.get_smac_map_registry())


def make(
    map_name: str = "3m",
    kwargs: Mapping[str, Any] | None = None,
    save_replay: bool = False,
    evaluation: bool = False,
    timeout_s: int = 120,
    launch_attempts: int = 3,
    rebuild_after_steps: int | None = None,
) -> StarCraft:
    """Create the environment of a SMAC map.

    Args:
        map_name: e.g. ``3m``, ``MMM2``, ``27m_vs_30m``.
        kwargs: any setting of ``StarCraft2Env`` by its name, e.g. ``difficulty``, ``step_mul``, ``game_version``,
            ``reward_sparse``, ``obs_last_action``, ``replay_dir``. A ``seed`` given here is every environment's.
        save_replay: save a replay when an evaluation episode ends. It holds everything since the game was launched.
        evaluation: this environment evaluates; it alone saves replays.
        timeout_s: seconds that the game may take to answer or to start; pysc2's own limit is 360.
        launch_attempts: how often a launch is tried before giving up: ports are not reserved and may be taken.
        rebuild_after_steps: take a new game after so many joint steps; ``None``: at half of what the game can do.
    """
    settings = game_settings(kwargs, RESERVED)
    env_class: Any = import_package("smac", "smac.env").StarCraft2Env  # type: ignore[attr-defined]
    settings.update({"map_name": map_name, "continuing_episode": True})
    check_arguments(env_class, settings, "SMAC's StarCraft2Env")

    def new_game(seed: int | None) -> Any:
        try:
            return env_class(**{**settings, "seed": seed})
        except KeyError as error:
            known = maps()
            if map_name in known:
                raise
            raise ConfigurationError(f"unknown SMAC map '{map_name}'{did_you_mean(map_name, known)}") from error

    return StarCraft(
        new_game,
        name=f"SMAC map '{map_name}'",
        package="smac",
        seed=settings.get("seed"),
        step_mul=settings.get("step_mul"),
        # It counts the time step once in what it declares and delivers it twice.
        obs_timestep_slack=1 if settings.get("obs_timestep_number") else 0,
        obs_instead_of_state=bool(settings.get("obs_instead_of_state")),
        game_version=settings.get("game_version"),
        save_replay=save_replay and evaluation,
        timeout_s=timeout_s,
        launch_attempts=launch_attempts,
        rebuild_after_steps=rebuild_after_steps,
    )
