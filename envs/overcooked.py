"""Create Overcooked kitchens (package ``overcooked``): two cooks; 20 for every soup that is served, to both."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from qmix_lightning.envs.optional import require
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["Overcooked", "layouts", "make"]


class Overcooked:
    """The kitchen as a PettingZoo ``ParallelEnv``.

    What an agent observes is the package's own lossless encoding from its point of view, flattened, and then the time
    passed (as a share of the horizon) and whether little is left. The state is the first agent's. The game is
    deterministic: a seed changes nothing.

    The package's own wrapper asks for the potential of every state, which raises ``IndexError`` in the middle of legal
    play and computes planners that it writes into its installation. Nothing of that is touched here.

    Args:
        layout: the kitchen's name.
        horizon: steps of an episode. It is a time limit, so the episode ends truncated.
        reward_shaping_factor: what the package's own shaping (picking up, potting) counts beside soups served.
    """

    def __init__(self, layout: str, *, horizon: int, reward_shaping_factor: float) -> None:
        from overcooked.mdp import Action, OvercookedEnv, OvercookedGridworld, Recipe

        class Kitchen(OvercookedEnv):
            # step() reads it as an argument even where it is not used; the original would compute and write a planner.
            @property
            def mp(self) -> Any:
                return None

        self._recipe = Recipe
        self._joint_actions = Action.ALL_ACTIONS
        self._mdp = mdp = OvercookedGridworld.from_layout_name(layout)
        if mdp.num_players != 2:
            raise ConfigurationError(
                f"Overcooked layout '{layout}' has {mdp.num_players} player(s), but its observations are defined for 2"
            )
        self._kitchen = Kitchen(mdp_generator_fn=lambda *_: mdp, horizon=horizon, info_level=0)
        self._shaping = reward_shaping_factor
        self.episode_limit = horizon
        self.possible_agents = ["agent_0", "agent_1"]
        self.agents: list[str] = []
        self.metadata: dict[str, Any] = {
            "name": f"overcooked_{layout}",
            "shared_reward": True,
            "episode_metrics": ("sparse_return",),
        }
        self._seen = self._look()
        size = self._seen[0].size
        self._space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.state_space = self._space
        self._actions = spaces.Discrete(Action.NUM_ACTIONS)
        self._sparse_return = 0.0
        self._visualizer: Any = None
        self.action_names = ("up", "down", "right", "left", "stay", "interact")

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._space

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self._actions

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
        """Start an episode; return observations and infos by agent."""
        self._use_own_recipes()
        self._kitchen.reset(regen_mdp=False)
        self.agents = list(self.possible_agents)
        self._sparse_return = 0.0
        self._seen = self._look()
        return self._by_agent(self._seen), {agent: {} for agent in self.agents}

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """Take a joint step; return observations, rewards, terminations, truncations and infos by agent."""
        self._use_own_recipes()
        joint = [self._joint_actions[int(actions[agent])] for agent in self.possible_agents]
        _, sparse, done, info = self._kitchen.step(joint, display_phi=False)
        self._sparse_return += float(sparse)
        reward = float(sparse) + self._shaping * float(sum(info["shaped_r_by_agent"]))
        self._seen = self._look()
        # In every step: env.episode_limit may end the episode sooner than the kitchen would.
        infos: dict[str, dict[str, Any]] = {"agent_0": {"sparse_return": self._sparse_return}, "agent_1": {}}
        if done:
            self.agents = []
        return (
            self._by_agent(self._seen),
            self._by_agent([reward, reward]),
            dict.fromkeys(self.possible_agents, False),
            dict.fromkeys(self.possible_agents, bool(done)),
            infos,
        )

    def state(self) -> np.ndarray:
        return self._seen[0]

    def render_frame(self) -> np.ndarray:
        """Return the package's own picture of the kitchen."""
        import pygame
        from overcooked.visualization.state_visualizer import StateVisualizer

        if self._visualizer is None:
            self._visualizer = StateVisualizer()
        surface = self._visualizer.render_state(state=self._kitchen.state, grid=self._mdp.terrain_mtx)
        return np.ascontiguousarray(pygame.surfarray.array3d(surface).swapaxes(0, 1))

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _use_own_recipes(self) -> None:
        # Cooking times and prices are global in the package: the layout made last would set them for all.
        if self._recipe.configuration() is not self._mdp.recipe_config:
            self._recipe.configure(self._mdp.recipe_config)

    def _look(self) -> list[np.ndarray]:
        state, encode = self._kitchen.state, self._mdp.lossless_state_encoding
        views = [np.asarray(view, np.float32) for view in encode(state, horizon=self.episode_limit)]  # [X, Y, C]
        # The last layer is all ones when little time is left: one number says as much.
        clock = np.array([state.timestep / self.episode_limit, views[0][..., -1].all()], np.float32)
        return [np.concatenate([view[..., :-1].transpose(2, 0, 1).ravel(), clock]) for view in views]

    def _by_agent(self, values: Any) -> dict[str, Any]:
        return dict(zip(self.possible_agents, values, strict=True))


def layouts() -> list[str]:
    """Return the name of every kitchen the package has; import nothing."""
    require("overcooked", "overcooked", "overcooked")
    spec = importlib.util.find_spec("overcooked")
    folders = (spec.submodule_search_locations if spec else None) or []
    return sorted(path.stem for folder in folders for path in Path(folder).glob("data/layouts/*.layout"))


def make(layout: str = "cramped_room", horizon: int = 400, reward_shaping_factor: float = 1.0) -> Overcooked:
    """Create a kitchen with two cooks.

    Args:
        layout: the kitchen's name, e.g. ``cramped_room``, ``asymmetric_advantages``, ``coordination_ring``.
        horizon: steps of an episode. It is a time limit, so the episode ends truncated.
        reward_shaping_factor: what the package's own shaping (picking up, potting) counts beside soups served.
    """
    known = layouts()
    if layout not in known:
        raise ConfigurationError(f"unknown Overcooked layout '{layout}'{did_you_mean(layout, known)}")
    if horizon < 1:
        raise ConfigurationError(f"horizon must be at least 1, not {horizon}")
    return Overcooked(layout, horizon=horizon, reward_shaping_factor=reward_shaping_factor)
