"""Define the environment: agents on a line look for each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

__all__ = ["Rendezvous"]

STAY, LEFT, RIGHT = 0, 1, 2


class Rendezvous(ParallelEnv):
    """A line of cells on which agents look for each other.

    Agents that stand on the same cell have found each other, and the episode is won. The keyword arguments
    are the settings: ``env.kwargs.size=12`` on the command line.

    Args:
        size: cells of the line.
        n_agents: how many have to meet.
        max_steps: time limit of an episode. It is no part of the task, so it truncates.
    """

    # What an agent's info holds at the end of an episode; "won" becomes the win rate.
    metadata: dict[str, Any] = {"name": "rendezvous", "episode_metrics": ("won",)}  # noqa: RUF012

    def __init__(self, size: int = 9, n_agents: int = 2, max_steps: int = 20) -> None:
        self.size = size
        self.max_steps = max_steps
        self.possible_agents = [f"agent_{i}" for i in range(n_agents)]
        self.agents: list[str] = []
        self._slots = {agent: i for i, agent in enumerate(self.possible_agents)}
        self.state_space = spaces.Box(0.0, 1.0, (n_agents + 1,), np.float32)

    def observation_space(self, agent: str) -> spaces.Space:
        """Return the space of an observation: where the agent is, and how far off to the right every agent is."""
        return spaces.Box(-1.0, 1.0, (1 + len(self.possible_agents),), np.float32)

    def action_space(self, agent: str) -> spaces.Discrete:
        return spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        # Everything random comes from this generator: the seed alone decides the episode.
        rng = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self._steps = 0
        self._position = rng.integers(self.size, size=len(self.agents))
        while self._met():
            self._position = rng.integers(self.size, size=len(self.agents))
        return self._observations(), self._infos()

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        for agent, action in actions.items():
            self._position[self._slots[agent]] += (0, -1, 1)[action]
        self._steps += 1
        met = self._met()
        timeout = not met and self._steps >= self.max_steps
        # The return is the sum over agents: 1 for meeting, less up to 1 for the time it took.
        reward = (float(met) - 1.0 / self.max_steps) / len(self.possible_agents)
        agents = self.agents
        infos = self._infos()
        if met or timeout:
            infos[agents[0]]["won"] = float(met)
            self.agents = []  # nobody acts any more; the next call is reset, never our own
        return (
            self._observations(),  # the true last observation, at the end too
            dict.fromkeys(agents, reward),
            dict.fromkeys(agents, met),
            dict.fromkeys(agents, timeout),
            infos,
        )

    def state(self) -> np.ndarray:
        """Return the global state, which the mixer sees in training and no agent sees when it acts."""
        return np.append(self._position / (self.size - 1), self._steps / self.max_steps).astype(np.float32)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _met(self) -> bool:
        return bool((self._position == self._position[0]).all())

    def _observations(self) -> dict[str, np.ndarray]:
        x = self._position / (self.size - 1)
        return {a: np.concatenate([x[i : i + 1], x - x[i]]).astype(np.float32) for a, i in self._slots.items()}

    def _infos(self) -> dict[str, dict[str, Any]]:
        """Return the action masks: no agent may walk off the line."""
        masks = [(1, x > 0, x < self.size - 1) for x in self._position]
        return {a: {"action_mask": np.array(masks[i], np.int8)} for a, i in self._slots.items()}
