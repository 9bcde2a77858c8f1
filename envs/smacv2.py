"""Create battles of SMACv2 (Ellis et al., 2023), whose teams and positions are drawn for every episode.

Installing it: docs/smac.md.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from typing import Any

import numpy as np

from qmix_lightning.environment import check_arguments
from qmix_lightning.envs.starcraft import StarCraft
from qmix_lightning.envs.starcraft_setup import RESERVED, game_settings, import_package
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["SmacV2", "make"]

# Unit types, their weights, and who cannot make up a team alone, as the authors' configurations have them.
_RACES: dict[str, tuple[list[str], list[float], list[str]]] = {
    "protoss": (["stalker", "zealot", "colossus"], [0.45, 0.45, 0.1], []),
    "terran": (["marine", "marauder", "medivac"], [0.45, 0.45, 0.1], ["medivac"]),
    "zerg": (["zergling", "baneling", "hydralisk"], [0.45, 0.1, 0.45], ["baneling"]),
}
_RESERVED = {
    **RESERVED,
    "map_name": "use env.map_name, or env.race",
    "capability_config": "use env.capability_config, or env.race, env.n_units and env.n_enemies",
}


class SmacV2(StarCraft):
    """:class:`StarCraft` with the wrapper that draws teams and positions; here an episode's seed decides them.

    The wrapper leaves its distributions to chance: each has a generator of its own, and teams are shuffled by Python's
    global one. Both are set for the episode; the global one is put back.
    """

    def starts_alike(self, seed: int | None, other: int | None) -> bool:
        return seed is not None and seed == other

    def prepare(self, game: Any, seed: int | None) -> AbstractContextManager[Any]:
        if seed is not None:
            for number, distribution in enumerate(_with_generators(game.env_key_to_distribution_map)):
                distribution.rng = np.random.default_rng([seed, number])
        return _python_seed(seed)

    def core(self, game: Any) -> Any:
        return game.env


def make(
    race: str = "protoss",
    n_units: int = 5,
    n_enemies: int = 5,
    map_name: str | None = None,
    capability_config: Mapping[str, Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    save_replay: bool = False,
    evaluation: bool = False,
    timeout_s: int = 120,
    launch_attempts: int = 3,
    rebuild_after_steps: int | None = None,
) -> SmacV2:
    """Create a SMACv2 battle.

    Args:
        race: ``protoss``, ``terran`` or ``zerg``, with the units, weights and start positions of the authors' tasks.
        n_units: allies.
        n_enemies: enemies.
        map_name: ``None``: the race's, e.g. ``10gen_protoss``.
        capability_config: the wrapper's own configuration, instead of ``race``, ``n_units`` and ``n_enemies``.
        kwargs: any other setting of ``StarCraft2Env`` by its name, e.g. ``conic_fov``, ``difficulty``.
        save_replay: save a replay when an evaluation episode ends. It holds everything since the game was launched.
        evaluation: this environment evaluates; it alone saves replays.
        timeout_s: seconds that the game may take to answer or to start; pysc2's own limit is 360.
        launch_attempts: how often a launch is tried before giving up: ports are not reserved and may be taken.
        rebuild_after_steps: take a new game after so many joint steps; ``None``: at half of what the game can do.
    """
    if race not in _RACES:
        raise ConfigurationError(f"unknown SMACv2 race '{race}'{did_you_mean(race, _RACES)}")
    config = dict(capability_config) if capability_config else _capabilities(race, n_units, n_enemies)
    if missing := [name for name in ("n_units", "n_enemies") if name not in config]:
        raise ConfigurationError(f"env.capability_config needs {' and '.join(missing)}")
    settings = game_settings(kwargs, _RESERVED)
    settings.update({"map_name": map_name or f"10gen_{race}", "continuing_episode": True})
    module: Any = import_package("smacv2", "smacv2.env.starcraft2.wrapper")
    check_arguments(module.StarCraft2Env, {**settings, "capability_config": config}, "SMACv2's StarCraft2Env")

    def new_game(seed: int | None) -> Any:
        try:
            # The wrapper writes into the configuration it is given.
            return module.StarCraftCapabilityEnvWrapper(
                **{**settings, "seed": seed}, capability_config=deepcopy(config)
            )
        except KeyError as error:
            registry: Any = importlib.import_module("smacv2.env.starcraft2.maps.smac_maps")
            known = sorted(registry.get_smac_map_registry())
            if settings["map_name"] in known:
                raise ConfigurationError(f"env.capability_config lacks or misnames {error}") from error
            hint = did_you_mean(settings["map_name"], known)
            raise ConfigurationError(f"unknown SMACv2 map '{settings['map_name']}'{hint}") from error

    return SmacV2(
        new_game,
        name=f"SMACv2 {settings['map_name']} {config['n_units']}v{config['n_enemies']}",
        package="smacv2",
        seed=settings.get("seed"),
        step_mul=settings.get("step_mul"),
        obs_timestep_slack=0,
        obs_instead_of_state=bool(settings.get("obs_instead_of_state")),
        game_version=settings.get("game_version"),
        save_replay=save_replay and evaluation,
        timeout_s=timeout_s,
        launch_attempts=launch_attempts,
        rebuild_after_steps=rebuild_after_steps,
    )


def _capabilities(race: str, n_units: int, n_enemies: int) -> dict[str, Any]:
    units, weights, exceptions = _RACES[race]
    return {
        "n_units": n_units,
        "n_enemies": n_enemies,
        "team_gen": {
            "dist_type": "weighted_teams",
            "unit_types": list(units),
            "weights": list(weights),
            "exception_unit_types": list(exceptions),
            "observe": True,
        },
        "start_positions": {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32},
    }


def _with_generators(distributions: Mapping[str, Any]) -> list[Any]:
    """Return every distribution with a generator of its own, those within others too, in a fixed order."""
    found: list[Any] = []

    def visit(distribution: Any) -> None:
        if hasattr(distribution, "rng"):
            found.append(distribution)
        for inner in vars(distribution).values():
            if hasattr(inner, "generate"):
                visit(inner)

    for key in sorted(distributions):
        visit(distributions[key])
    return found


@contextmanager
def _python_seed(seed: int | None) -> Generator[None]:
    before = random.getstate()
    try:
        if seed is not None:
            random.seed(seed)
        yield
    finally:
        random.setstate(before)
