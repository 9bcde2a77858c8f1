"""PyMARL's data, and a game of its sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

DATA = Path(__file__).parents[1] / "data" / "pymarl"


class OfItsSizes(ParallelEnv):
    """Three agents, five actions, observations of seven numbers, states of eleven; five steps of noise.

    Args:
        n_agents: another number of agents.
    """

    metadata: dict[str, Any] = {"name": "of_its_sizes"}  # noqa: RUF012
    episode_limit = 5

    def __init__(self, n_agents: int = 3) -> None:
        self.possible_agents = [f"a_{i}" for i in range(n_agents)]
        self.state_space = spaces.Box(-np.inf, np.inf, (11,), np.float32)

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-np.inf, np.inf, (7,), np.float32)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(5)

    def state(self) -> np.ndarray:
        return np.full(11, self._t, np.float32)

    def _seen(self) -> dict[str, Any]:
        return {a: self._rng.normal(size=7).astype(np.float32) for a in self.possible_agents}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self._rng, self._t, self.agents = np.random.default_rng(seed), 0, list(self.possible_agents)
        return self._seen(), {a: {} for a in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        self._t += 1
        over = dict.fromkeys(self.agents, self._t == 5)
        rewards = {a: float(action == 1) for a, action in actions.items()}
        result = self._seen(), rewards, over, dict.fromkeys(over, False), {a: {} for a in over}
        if self._t == 5:
            self.agents = []
        return result
