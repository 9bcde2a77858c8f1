"""Step MPE's games as the simultaneous games they are.

Imports nothing of the package ``mpe2``: it is handed its environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qmix_lightning.rendering.canvas import Colour
from qmix_lightning.rendering.particles import Particle, draw_particles

__all__ = ["ParticleEnv"]


class ParticleEnv:
    """A game of ``mpe2`` as a PettingZoo ``ParallelEnv``, without its turns.

    The package plays in turns and moves the world after the last one; its own ``parallel_env`` takes those turns one by
    one, each with an observation that nobody reads, and a quarter of the time goes there. Here the world moves once all
    actions are set. The results are the package's, which tests compare.

    Args:
        env: what the scenario's ``parallel_env`` returns.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self._game = game = env.unwrapped
        self.possible_agents: list[str] = list(game.possible_agents)
        self.agents: list[str] = []
        self.metadata: dict[str, Any] = dict(env.metadata)
        self.max_cycles = int(game.max_cycles)
        self.state_space = game.state_space
        self.action_names = ("none", "left", "right", "down", "up")
        self._observations: dict[str, np.ndarray] = {}

    def observation_space(self, agent: str) -> Any:
        return self._game.observation_space(agent)

    def action_space(self, agent: str) -> Any:
        return self._game.action_space(agent)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
        """Start an episode; return observations and infos by agent."""
        self._game.reset(seed=seed, options=options)
        self.agents = list(self.possible_agents)
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """Take a joint step; return observations, rewards, terminations, truncations and infos by agent."""
        game, agents = self._game, self.possible_agents
        game.current_actions = [actions[agent] for agent in agents]
        game._execute_world_step()
        game.steps += 1
        truncated = game.steps >= self.max_cycles
        terminated = not truncated and bool(game.scenario.is_terminal(game.world))
        if truncated or terminated:
            self.agents = []
        infos = {agent: game.infos[agent] for agent in agents}
        ends = dict.fromkeys(agents, terminated), dict.fromkeys(agents, truncated)
        return self._observe(), dict(game.rewards), *ends, infos

    def state(self) -> np.ndarray:
        """Return all observations joined, as the package defines it."""
        return np.concatenate([self._observations[agent] for agent in self.possible_agents])

    def render_frame(self) -> np.ndarray:
        """Draw the world, agents with numbers: in the package's own picture they look alike, and the view jumps."""
        world = self._game.world
        agents, landmarks = list(world.agents), list(world.landmarks)
        alike = len({tuple(np.round(agent.color, 3)) for agent in agents}) == 1
        particles = []
        for thing in (*landmarks, *agents):
            number = agents.index(thing) if thing in agents else None
            x, y = (float(v) for v in thing.state.p_pos)
            own = number is None or not alike  # its colour tells something of it
            colour = _colour(thing.color) if own else None
            says = ""
            if number is not None and not thing.silent and np.any(thing.state.c):
                says = chr(ord("A") + int(np.argmax(thing.state.c)))
            particles.append(Particle(x, y, float(thing.size), number, colour, says))
        return draw_particles(particles)

    def render(self) -> Any:
        return self._game.render()

    def close(self) -> None:
        self._env.close()

    @property
    def unwrapped(self) -> Any:
        return self._game

    @property
    def render_mode(self) -> str | None:
        return self._game.render_mode

    def _observe(self) -> dict[str, np.ndarray]:
        self._observations = {agent: self._game.observe(agent) for agent in self.possible_agents}
        return dict(self._observations)


def _colour(shares: Any) -> Colour:
    red, green, blue = (round(255 * min(1.0, max(0.0, float(share)))) for share in shares)
    return red, green, blue
