"""Environments, and what is none, that training refuses or has to take care of."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces

from support import fakes


class Continuous(fakes.VaryingLength):
    def action_space(self, agent: str) -> Any:
        return spaces.Box(-1.0, 1.0, (2,))


class MixedActions(fakes.VaryingLength):
    """Agents with 2, 3 and 4 actions, which only their spaces say."""

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(2 + self.possible_agents.index(agent))

    def _infos(self, agents: list[str]) -> dict[str, dict[str, Any]]:
        return {agent: {} for agent in agents}

    def _mask(self, i: int) -> Any:
        return [True] * self.n_actions


def with_size(size: int) -> Any:
    return fakes.VaryingLength(size)


def refuses() -> None:
    raise ValueError("the first line\nand the second")
