"""Small games of pixels for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

SIDE, STEPS = 10, 9


class Catch(ParallelEnv):
    """Two agents move a paddle each along the bottom row; a ball falls. Below it, a step earns 1 / 9.

    Each sees the whole picture, its own paddle in red, the other's in green, the ball in blue.

    Args:
        beside: ``Dict`` observations, with the paddle's place as a vector beside the picture.
        moves: ``discrete`` (left, stay, right), or ``multi`` (a direction and a length, MultiDiscrete).
    """

    metadata: dict[str, Any] = {"name": "catch_v0"}  # noqa: RUF012

    def __init__(self, beside: bool = False, moves: str = "discrete") -> None:
        self.possible_agents = ["left", "right"]
        self.beside, self.moves = beside, moves
        self.max_cycles = STEPS

    def observation_space(self, agent: str) -> Any:
        picture = spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        if not self.beside:
            return picture
        return spaces.Dict({"picture": picture, "place": spaces.Box(0.0, 1.0, (1,), np.float32)})

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(3) if self.moves == "discrete" else spaces.MultiDiscrete([3, 2])

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        rng = np.random.default_rng(seed)
        self.agents, self.t = list(self.possible_agents), 0
        self.column, first = int(rng.integers(SIDE)), rng.integers(SIDE, size=2)
        self.place = {"left": int(first[0]), "right": int(first[1])}
        return self._shown(), {a: {} for a in self.agents}

    def _shown(self) -> dict[str, Any]:
        shown = {}
        for agent, other in (("left", "right"), ("right", "left")):
            picture = np.zeros((SIDE, SIDE, 3), np.uint8)
            picture[-1, self.place[agent], 0] = picture[-1, self.place[other], 1] = 255
            picture[self.t, self.column, 2] = 255
            place = np.array([self.place[agent] / SIDE], np.float32)
            shown[agent] = {"picture": picture, "place": place} if self.beside else picture
        return shown

    def step(self, actions: dict[str, Any]) -> Any:
        for agent, action in actions.items():
            assert self.action_space(agent).contains(action), action
            move = int(action) - 1 if self.moves == "discrete" else (int(action[0]) - 1) * (1 + int(action[1]))
            self.place[agent] = min(SIDE - 1, max(0, self.place[agent] + move))
        self.t += 1
        over = self.t == STEPS
        rewards = {a: float(self.place[a] == self.column) / STEPS for a in self.agents}
        ends, never = dict.fromkeys(self.agents, over), dict.fromkeys(self.agents, False)
        result = self._shown(), rewards, ends, never, {a: {} for a in self.agents}
        self.agents = [] if over else self.agents
        return result
