"""Create MAgent2's battles and pursuits (package ``magent2``) by name, with who won where there are two armies."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from pettingzoo import ParallelEnv

from qmix_lightning.envs.optional import require
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import did_you_mean
from qmix_lightning.worker.teams import side_of

__all__ = ["Grid", "games", "make"]

_ARMIES = ("red", "blue")


def games() -> dict[str, str]:
    """Return game -> module of its latest version, e.g. ``battle -> battle_v4``; import none."""
    require("magent2", "magent2", "magent2")
    spec = importlib.util.find_spec("magent2.environments")
    assert spec is not None
    found: dict[str, int] = {}
    for module in pkgutil.iter_modules(spec.submodule_search_locations):
        if match := re.fullmatch(r"(\w+)_v(\d+)", module.name):
            found[match[1]] = max(found.get(match[1], 0), int(match[2]))
    return {game: f"{game}_v{version}" for game, version in sorted(found.items())}


def make(game: str = "battle", kwargs: Mapping[str, Any] | None = None) -> Grid:
    """Create a game of the package.

    Args:
        game: ``battle``, ``battlefield``, ``combined_arms``, ``adversarial_pursuit``, ``tiger_deer`` or ``gather``.
        kwargs: keyword arguments of its ``parallel_env``: ``map_size``, ``max_cycles``, ``attack_penalty``, ... An
            attack that hits nothing costs nothing unless ``attack_penalty`` says so: at the package's -0.1 a team that
            explores learns not to fight.
    """
    known = games()
    if game not in known:
        raise ConfigurationError(f"unknown MAgent2 game '{game}'{did_you_mean(game, known)}")
    module = importlib.import_module(f"magent2.environments.{known[game]}")
    factory, arguments = module.parallel_env, dict(kwargs or {})
    # It takes **reward_args and would fail from deep within.
    code = importlib.import_module(factory.__module__)
    rewards = getattr(code, "default_reward_args", {})
    names = [*inspect.signature(factory).parameters, *rewards]
    for key in arguments:
        if key not in names or key == "reward_args":
            choices = set(names) - {"reward_args"}
            raise ConfigurationError(f"MAgent2 game '{game}' has no setting '{key}'{did_you_mean(key, choices)}")
    if "attack_penalty" in rewards:
        arguments.setdefault("attack_penalty", 0.0)
    return Grid(factory(**arguments))


class Grid(ParallelEnv[str, Any, Any]):
    """A game of the package that knows its state when an army is gone, and says who won.

    Every agent's info has ``won`` where there are two armies: more of its own are alive than of the other's. Whoever
    has killed all of the other has won; at the time limit, the larger army has.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.possible_agents = list(env.possible_agents)
        self.state_space = env.state_space
        self.render_mode = env.render_mode
        self._army = {a: next((c for c in _ARMIES if a.startswith(c)), None) for a in self.possible_agents}
        self._has_armies = set(self._army.values()) == set(_ARMIES)
        self.metadata = {**env.metadata, "episode_metrics": ("won",) if self._has_armies else ()}
        self.max_cycles = env.max_cycles

    def observation_space(self, agent: str) -> Any:
        return self.env.observation_space(agent)

    def action_space(self, agent: str) -> Any:
        return self.env.action_space(agent)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        shown = self.env.reset(seed=seed)
        self.agents = list(self.env.agents)
        return shown

    def step(self, actions: dict[str, int]) -> Any:
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        self.agents = list(self.env.agents)
        if self._has_armies:
            alive = self._alive()
            infos = {agent: {"won": alive[self._army[agent]] > alive[self._other(agent)]} for agent in infos}
        return observations, rewards, terminations, truncations, infos

    def _alive(self) -> dict[str | None, int]:
        """Return how many of each army are alive; the last step of a game terminates the survivors too."""
        counts: dict[str | None, int] = dict.fromkeys(_ARMIES, 0)
        kinds = dict.fromkeys(side_of(agent) for agent in self.possible_agents)  # a handle for each, in this order
        for kind, handle in zip(kinds, self.env.handles, strict=True):
            counts[self._army[f"{kind}_0"]] += self.env.env.get_num(handle)
        return counts

    def _other(self, agent: str) -> str:
        return _ARMIES[1 - _ARMIES.index(str(self._army[agent]))]

    def state(self) -> np.ndarray:
        """Return the map; the package's own fails when an army is gone."""
        game, present = self.env, self.env._all_handles
        game._all_handles = [handle for handle in present if game.env.get_num(handle)]
        try:
            return game.state()
        finally:
            game._all_handles = present

    def render(self) -> Any:
        return self.env.render()

    def render_frame(self) -> np.ndarray:
        """Return the package's own drawing of the map, which has 8 pixels for a square, four times as large."""
        self.env.render_mode = "rgb_array"
        return self.env.render().repeat(4, axis=0).repeat(4, axis=1)

    def close(self) -> None:
        self.env.close()
