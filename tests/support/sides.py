"""Games between two sides for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from qmix_lightning.vector.factory import make_vector_env
from support.fakes import VaryingLength


class Sides(VaryingLength):
    """``VaryingLength`` between three reds and two blues, of whom some die early."""

    def __init__(self, extra_length: int = 0) -> None:
        super().__init__(n_agents=5, extra_length=extra_length)
        self.possible_agents = ["red_0", "red_1", "red_2", "blue_0", "blue_1"]


class Duel(ParallelEnv):
    """Two sides whose rewards add up to zero; names do not tell. Lefts see 3 numbers and have 3 actions, rights 2."""

    metadata: dict[str, Any] = {"name": "duel"}  # noqa: RUF012

    def __init__(self, opposed: bool = True) -> None:
        self.possible_agents = ["left_0", "left_1", "right_0"]
        self.opposed = opposed

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-1, 1, (2 if agent.startswith("right") else 3,), np.float32)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(2 if agent.startswith("right") else 3)

    def _shown(self) -> dict[str, Any]:
        return {a: np.full(self.observation_space(a).shape, self.t / 10, np.float32) for a in self.agents}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.t = list(self.possible_agents), 0
        return self._shown(), {a: {} for a in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        self.t += 1
        gain = float(actions["left_0"] - actions["right_0"])
        rewards = {"left_0": gain, "left_1": 0.0, "right_0": -gain if self.opposed else gain}
        over = dict.fromkeys(self.agents, self.t >= 5)
        never = dict.fromkeys(self.agents, False)
        shown, infos = self._shown(), {a: {} for a in self.agents}
        self.agents = [] if self.t >= 5 else self.agents
        return shown, rewards, over, never, infos


def batched_duel(num_envs: int) -> Any:
    """The same game as one simulator would step it."""
    env = make_vector_env(Duel, {}, num_envs=num_envs, name="duel")
    env.spec = replace(env.spec, natively_batched=True)
    return env


def first_or_second(agent: str, observation: np.ndarray, action_mask: np.ndarray, rng: np.random.Generator) -> int:
    """A function of one's own: a legal action, drawn."""
    return int(rng.choice(np.flatnonzero(action_mask)))


class Counting:
    """A policy of one's own that remembers how often it was asked in this episode."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, agent: str, observation: np.ndarray, action_mask: np.ndarray, rng: Any) -> int:
        self.asked += 1
        legal = np.flatnonzero(action_mask)
        return int(legal[self.asked % len(legal)])


def illegal(agent: str, observation: np.ndarray, action_mask: np.ndarray, rng: Any) -> int:
    return len(action_mask)
