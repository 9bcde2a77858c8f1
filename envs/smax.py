"""Create battles of SMAX, JaxMARL's StarCraft-like simulator: our units against a scripted enemy, by scenario."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from qmix_lightning.envs.jaxmarl import import_jaxmarl
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.rendering.battle import Unit, draw_battle
from qmix_lightning.runtime.text import did_you_mean
from qmix_lightning.types import EntityBlock

__all__ = ["SmaxRules", "make"]

_OF_THE_SCENARIO = ("num_allies", "num_enemies", "smacv2_position_generation", "smacv2_unit_type_generation")
"""Settings of SMAX that a scenario decides: it would take another value of one without a word."""

_ATTACK_MODES = ("closest", "random")
"""Whom the enemy shoots at; SMAX takes any other word for the first of these."""


class SmaxRules:
    """Rules of SMAX: who is alive, who won, and what a time limit is.

    Args:
        simulator: a ``HeuristicEnemySMAX``.
        scale_state: give positions in the state as shares of the map, as observations do.
        bound_state: keep the state within [0, 1]: a weapon's cooldown as a share of the longest.
    """

    metric_names = ("won", "dead_allies", "dead_enemies")

    def __init__(self, simulator: Any, *, scale_state: bool = True, bound_state: bool = True) -> None:
        self.state_scale: list[float] | None = None
        self.state_bounds = (0.0, 1.0) if scale_state and bound_state else None
        if scale_state:
            # Of every unit: health, x, y, cooldown, one flag for each type; then all teams, then all types.
            flags = len(simulator.unit_type_names)
            # A cooldown falls by half a second in every step, with no floor: -39 in long battles.
            cooldown = 1.0 / float(max(simulator.unit_type_weapon_cooldowns)) if bound_state else 1.0
            unit = [1.0, 1.0 / simulator.map_width, 1.0 / simulator.map_height, cooldown, *[1.0] * flags]
            units = simulator.num_allies + simulator.num_enemies
            self.state_scale = unit * units + [1.0] * units + [1.0 / flags] * units
        self._allies = int(simulator.num_allies)
        self._simulator = simulator
        types = simulator.scenario
        # Without a scenario all are marines; where they are drawn anew for every episode there is no fixed type.
        kinds = [0] * self._allies if types is None else [int(kind) for kind in types[: self._allies]]
        self.group_of_agent = tuple(sorted(set(kinds), key=kinds.index).index(kind) for kind in kinds)
        self.obs_entities = _entities(simulator)

    def _units_alive(self, sim: Any) -> tuple[Any, Any]:
        alive = sim.state.unit_alive
        return alive[: self._allies], alive[self._allies :]

    def task_over(self, before: Any, after: Any, key: Any, actions: Any, dones: Any) -> Any:
        allies, enemies = self._units_alive(after)
        return ~allies.any() | ~enemies.any()

    def alive(self, after: Any, dones: Any, ended: Any, alive_before: Any) -> Any:
        return self._units_alive(after)[0]

    def metrics(self, after: Any) -> dict[str, Any]:
        """Return who won and how many died.

        A battle in which the last of both sides fall together is no win: SMAX pays no bonus for it.
        """
        allies, enemies = self._units_alive(after)
        return {
            "won": ~enemies.any() & allies.any(),
            "dead_allies": (~allies).sum(),
            "dead_enemies": (~enemies).sum(),
        }

    def draw(self, sim: Any) -> Any:
        """Draw the battle: SMAX's own animation takes a minute, and shows neither health nor shots."""
        return draw_battle(self._units(sim.state), float(self._simulator.map_width), float(self._simulator.map_height))

    def _units(self, state: Any) -> list[Unit]:
        full, radii = np.asarray(self._simulator.unit_type_health), np.asarray(self._simulator.unit_type_radiuses)
        kinds, alive = np.asarray(state.unit_types), np.asarray(state.unit_alive)
        health = np.where(alive, np.asarray(state.unit_health) / full[kinds], 0.0)
        first_attack, allies = int(self._simulator.num_movement_actions), self._allies
        attacks = np.asarray(state.prev_attack_actions).astype(int) - first_attack
        units = []
        for i, (x, y) in enumerate(np.asarray(state.unit_positions).tolist()):
            ours = i < allies
            # The enemy numbers its targets from the last of our units.
            target = allies + attacks[i] if ours else allies - 1 - attacks[i]
            units.append(
                Unit(
                    x,
                    y,
                    ours,
                    label=f"{self._simulator.unit_type_shorthands[kinds[i]]}{i if ours else i - allies}",
                    health=float(health[i]),
                    radius=float(radii[kinds[i]]),
                    target=int(target) if attacks[i] >= 0 else None,
                )
            )
        return units

    def action_names(self) -> dict[str, list[str]]:
        names = ["up", "right", "down", "left", "stop"]
        names += [f"shoot {k}" for k in range(int(self._simulator.num_enemies))]
        return {f"ally_{i}": names for i in range(self._allies)}


def _entities(simulator: Any) -> tuple[EntityBlock, ...]:
    """Return the blocks of other units in an observation: allies, enemies; zeros where one is out of sight or dead."""
    if getattr(simulator, "observation_type", None) != "unit_list":  # others group what is seen in their own way
        return ()
    size, allies, enemies = len(simulator.unit_features), int(simulator.num_allies) - 1, int(simulator.num_enemies)
    attack = int(simulator.num_movement_actions)
    own = (EntityBlock("allies", 0, allies, size),) if allies else ()
    return *own, EntityBlock("enemies", allies * size, enemies, size, first_action=attack)


def _with_arrays(cls: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with lists, as YAML has them, made arrays where the simulator wants one.

    Raises:
        ConfigurationError: one has not a number for each unit type: out of its range JAX takes the last one.
    """
    import jax
    import jax.numpy as jnp

    defaults = {name: parameter.default for name, parameter in inspect.signature(cls.__init__).parameters.items()}
    types = len(given.get("unit_type_names", defaults["unit_type_names"]))
    found = dict(given)
    for name, value in given.items():
        if isinstance(defaults.get(name), jax.Array):
            found[name] = jnp.asarray(value, jnp.float32)
            if found[name].shape != (types,):
                raise ConfigurationError(f"SMAX: env.kwargs.{name} needs a number for each of the {types} unit types")
    return found


def make(
    *,
    num_envs: int,
    scenario: str = "3m",
    max_steps: int = 100,
    timeout_is_terminal: bool = False,
    reward_aggregation: Literal["sum", "mean"] = "mean",
    scale_state: bool = True,
    bound_state: bool = True,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Create ``num_envs`` battles of ``scenario`` against SMAX's heuristic enemy, batched by JAX.

    Args:
        num_envs: battles that step together.
        scenario: ``3m``, ``2s3z``, ``3s5z``, ``5m_vs_6m``, ``smacv2_5_units``, ...
        max_steps: the time limit.
        timeout_is_terminal: count the time limit as a true end, as published results do.
        reward_aggregation: SMAX pays every ally the same, so ``mean`` is what one gets: at most 2 in an episode, 1 for
            all of the enemy's health and 1 for winning.
        scale_state: give positions in the state as shares of the map, as observations do. SMAX's own go up to 32, and
            values that a mixing network makes of them start in the hundreds, where 2 is the most that can be earned.
        bound_state: with ``scale_state``, keep every number of the state within [0, 1], as observations are: SMAX's own
            weapon cooldowns fall without a floor.
        device: where JAX runs.
        kwargs: SMAX's other settings by name, e.g. ``see_enemy_actions``, ``attack_mode``.
    """
    jaxmarl = import_jaxmarl("smax")
    from jaxmarl.environments import smax
    from jaxmarl.environments.smax.smax_env import MAP_NAME_TO_SCENARIO

    from qmix_lightning.envs.jax_program import JaxProgram, shared_program
    from qmix_lightning.envs.jax_vector import JaxVectorEnv

    if scenario not in MAP_NAME_TO_SCENARIO:
        raise ConfigurationError(f"unknown SMAX scenario '{scenario}'{did_you_mean(scenario, MAP_NAME_TO_SCENARIO)}")
    if max_steps < 1:
        raise ConfigurationError(f"SMAX: max_steps must be at least 1, not {max_steps}")
    given = dict(kwargs or {})
    classes = (smax.HeuristicEnemySMAX, smax.SMAX)
    known = {k for c in classes for k in inspect.signature(c.__init__).parameters}
    known -= {"self", "env_kwargs", *_OF_THE_SCENARIO}
    for key in given:
        if key in ("max_steps", "scenario"):
            raise ConfigurationError(f"SMAX: {key} is a setting of its own: env.{key}, not env.kwargs.{key}")
        if key in _OF_THE_SCENARIO:
            raise ConfigurationError(f"SMAX: env.kwargs.{key} would change nothing: env.scenario decides it")
        if key not in known:
            raise ConfigurationError(f"SMAX has no setting '{key}'{did_you_mean(key, known)}")
    mode = given.get("attack_mode", _ATTACK_MODES[0])
    if mode not in _ATTACK_MODES:
        raise ConfigurationError(
            f"SMAX: env.kwargs.attack_mode must be one of {', '.join(_ATTACK_MODES)}, not '{mode}'"
        )
    arguments: dict[str, Any] = {
        **_with_arrays(smax.SMAX, given),
        "max_steps": max_steps,
        "scenario": smax.map_name_to_scenario(scenario),
    }

    def build() -> JaxProgram:
        return JaxProgram(
            smax.HeuristicEnemySMAX(**arguments),
            functools.partial(SmaxRules, scale_state=scale_state, bound_state=bound_state),
            name=f"SMAX scenario '{scenario}'",
            reward_aggregation=reward_aggregation,
            timeout_is_terminal=timeout_is_terminal,
        )

    settings = (
        scenario,
        max_steps,
        timeout_is_terminal,
        reward_aggregation,
        scale_state,
        bound_state,
        sorted(given.items()),
    )
    program = shared_program(f"smax {jaxmarl.__version__} {settings!r}", build)
    return JaxVectorEnv(program, num_envs=num_envs, device=device)
