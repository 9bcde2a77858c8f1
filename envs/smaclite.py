"""Create battles of SMAClite (Michalski et al., 2023), SMAC's scenarios without StarCraft, in plain Python.

The package is on no index and asks for versions that do not go with this project's, so it lives in a Python of its own
(``rollout.python``, docs/interpreters.md); this file keeps to the syntax of Python 3.8.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from qmix_lightning.errors import ConfigurationError, MissingDependencyError
from qmix_lightning.types import NO_OP

__all__ = ["SmacLite", "make"]


class SmacLite:
    """The package's environment as a ``ParallelEnv``: dead units leave, the team has one reward.

    It has no time limit of its own: an episode is truncated after ``max_steps``. ``won``, at its end: whether no enemy
    is left.
    """

    def __init__(self, env: Any, max_steps: int) -> None:
        self._env, self._game = env, env.unwrapped
        self.episode_limit = max_steps
        self.metadata = {"name": "smaclite", "shared_reward": True, "episode_metrics": ("won",)}
        self.possible_agents = [f"agent_{i}" for i in range(self._game.n_agents)]
        box = self._game.observation_space.spaces[0]
        self.state_space = type(box)(-1.0, 1.0, (self._game.state_size,))

    def observation_space(self, agent: str) -> Any:
        return self._game.observation_space.spaces[self.possible_agents.index(agent)]

    def action_space(self, agent: str) -> Any:
        # Of this many, as its masks have them; healers' own spaces are smaller.
        space = self._game.action_space.spaces[self.possible_agents.index(agent)]
        return type(space)(self._game.n_actions)

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        observations, _ = self._env.reset(seed=seed)
        self._game.last_actions = 0 * self._game.last_actions  # part of the state, which its reset forgets
        self.agents = list(self.possible_agents)
        self._steps = 0
        return self._by_agent(observations), self._infos()

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        joint = [int(actions.get(agent, NO_OP)) for agent in self.possible_agents]  # it takes no other type
        observations, reward, done, _, _ = self._env.step(joint)
        self._steps += 1
        acted = self.agents
        timed_out = not done and self._steps >= self.episode_limit
        alive = {agent: self.possible_agents.index(agent) in self._game.agents for agent in acted}
        terminations = {agent: bool(done or not alive[agent]) for agent in acted}
        truncations = {agent: timed_out and alive[agent] for agent in acted}
        infos = self._infos()
        # In every step: env.episode_limit may end the episode sooner than the game would.
        infos[self.possible_agents[0]]["won"] = float(not self._game.enemies)
        self.agents = [] if done or timed_out else [agent for agent in acted if alive[agent]]
        rewards = dict.fromkeys(acted, float(reward))
        return self._by_agent(observations), rewards, terminations, truncations, infos

    def state(self) -> Any:
        return self._game.get_state()

    def render(self) -> Any:
        return self._env.render()

    def close(self) -> None:
        self._env.close()

    def _by_agent(self, values: Any) -> dict[str, Any]:
        return dict(zip(self.possible_agents, values))

    def _infos(self) -> dict[str, dict[str, Any]]:
        masks = self._by_agent(self._game.get_avail_actions())
        return {agent: {"action_mask": mask} for agent, mask in masks.items()}


def make(map_name: str = "2s3z", max_steps: int = 120, use_cpp_rvo2: bool = False) -> SmacLite:
    """Create the battle of a map.

    Args:
        map_name: as the package registers it: ``2s3z``, ``3s5z``, ``MMM``, ...
        max_steps: joint steps after which an episode is truncated; SMAC's is 120 on 2s3z.
        use_cpp_rvo2: its collision avoidance in C++, which is built apart and is much faster.
    """
    if max_steps < 1:
        raise ConfigurationError(f"env.max_steps must be at least 1, not {max_steps}")
    if importlib.util.find_spec("smaclite") is None:
        raise MissingDependencyError(
            "environment 'smaclite' needs the package 'smaclite', which wants a Python of its own: "
            "docs/interpreters.md says how to install it there, and rollout.python=PATH names it here"
        )
    gymnasium = importlib.import_module("gymnasium")
    importlib.import_module("smaclite")  # registers its maps
    try:
        env = gymnasium.make(
            f"smaclite/{map_name}-v0", use_cpp_rvo2=use_cpp_rvo2, render_mode="rgb_array", disable_env_checker=True
        )
    except gymnasium.error.Error as error:
        raise ConfigurationError(f"SMAClite has no map '{map_name}': {' '.join(str(error).split())}") from error
    return SmacLite(env, max_steps)
