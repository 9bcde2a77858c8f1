"""Environments that need numpy alone, for workers under any Python: spaces of their own, no PettingZoo.

Everything here keeps to the syntax of Python 3.8.
"""

from __future__ import annotations

import os
import sys

import numpy as np


class Box:
    def __init__(self, low, high, shape, dtype=np.float32):
        self.low, self.high, self.shape, self.dtype = np.full(shape, low), np.full(shape, high), shape, np.dtype(dtype)


class Discrete:
    def __init__(self, n):
        self.n = n


class Dict:
    def __init__(self, **spaces):
        self.spaces = spaces


class PlainWalk:
    """Three walkers on a line; the last one dies early. Ends by termination or at the limit, as the seed decides."""

    metadata = {"name": "plain_walk", "episode_metrics": ("won",)}  # noqa: RUF012
    episode_limit = 8

    def __init__(self, width: float = 2.0, noise: int = 0):
        self.width, self.noise = width, noise
        self.possible_agents = ["w_0", "w_1", "w_2"]
        self.state_space = Box(-np.inf, np.inf, (4,))

    def observation_space(self, agent):
        box = Box(-np.inf, np.inf, (3,))
        return Dict(observation=Dict(place=box, clock=Discrete(9)), action_mask=Box(0, 1, (3,), np.int8))

    def action_space(self, agent):
        return Discrete(3)

    def reset(self, seed=None, options=None):
        self.rng = np.random.RandomState(seed)  # the same numbers in every version of numpy
        self.t = 0
        self.agents = list(self.possible_agents)
        self.x = self.rng.normal(size=3)
        self.death = int(self.rng.randint(2, 5))
        self.length = 6 if self.rng.uniform() < 0.3 else self.episode_limit
        if self.noise:
            print("x" * self.noise)
            sys.stderr.write("y" * self.noise + "\n")
        return self.observe(self.agents), {agent: {} for agent in self.agents}

    def step(self, actions):
        acted = list(self.agents)
        for agent, action in actions.items():
            assert self.mask(agent)[action], "illegal"
            self.x[self.possible_agents.index(agent)] += (0.0, -0.2, 0.2)[action]
        self.x += 0.01 * self.rng.normal(size=3)
        self.t += 1
        over = self.t >= self.length
        timeout = over and self.length == self.episode_limit
        terminations = {a: (over and not timeout) or (a == "w_2" and self.t == self.death) for a in acted}
        truncations = {a: timeout and not terminations[a] for a in acted}
        rewards = {a: float(-abs(self.x[self.possible_agents.index(a)])) for a in acted}
        self.agents = [a for a in acted if not terminations[a] and not truncations[a]]
        infos = {a: {"won": 1.0} if over else {} for a in acted}
        return self.observe(acted), rewards, terminations, truncations, infos

    def observe(self, agents):
        numbers = {a: self.possible_agents.index(a) for a in agents}
        return {
            a: {
                "observation": {"place": np.array([self.x[i], self.t / 8, i], np.float32), "clock": self.t},
                "action_mask": self.mask(a),
            }
            for a, i in numbers.items()
        }

    def mask(self, agent):
        x = self.x[self.possible_agents.index(agent)]
        return np.array([1, x > -self.width, x < self.width], np.int8)

    def state(self):
        return np.append(self.x, self.t).astype(np.float32)

    def render(self):
        frame = np.zeros((20, 30, 3), np.uint8)
        frame[:, : self.t] = 255
        return frame

    def close(self):
        pass


class Surroundings(PlainWalk):
    """Shows what a worker was started with, in its versions."""

    def __init__(self):
        super().__init__()
        self.metadata = dict(
            self.metadata,
            versions={
                "variables": " ".join(sorted(os.environ)),
                "isolated": str(sys.flags.isolated),
                "foreign": " ".join(m for m in ("torch", "gymnasium", "pettingzoo", "hydra") if m in sys.modules),
            },
        )


def make_walk(width: float = 2.0, noise: int = 0):
    return PlainWalk(width, noise)
