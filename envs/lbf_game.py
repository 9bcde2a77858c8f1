"""Speed up level-based foraging's own game: compute its two costliest parts in another way, to the same result.

Imports the package: only the factory imports this module, when it is called.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from lbforaging.foraging import ForagingEnv
from lbforaging.foraging.environment import Action

from qmix_lightning.errors import ConfigurationError

__all__ = ["Game"]

_MOVES = ((Action.NORTH, -1, 0), (Action.SOUTH, 1, 0), (Action.WEST, 0, -1), (Action.EAST, 0, 1))


class Game(ForagingEnv):
    """The package's game with a faster search for legal actions, faster observations, and a space for those in grids.

    Three quarters of a step go to the first two in the original. The rules are the package's, and tests compare these
    two with its own: legal actions are looked up among the positions of food instead of in the field one by one, and
    observations are written as they are returned, without the copies in between and without checking each against its
    space.
    """

    def _get_observation_space(self) -> Any:
        """Return the space of an agent's observations; the package's own of grids is one that Gymnasium refuses."""
        if not self._grid_observation:
            return super()._get_observation_space()
        if self.sight < 1:
            raise ConfigurationError("LBF's grid observations need a sight of at least 1")
        most_food: Any = self.max_food_level
        food = sum(sorted(self.max_player_level)[:3]) if most_food is None else max(most_food)
        highest = [max(self.max_player_level) if self._observe_agent_levels else 1, food, 1]  # agents, food, free cells
        width = 1 + 2 * self.sight
        high = np.array(highest, np.float32)[:, None, None].repeat(width, 1).repeat(width, 2)
        return spaces.Box(np.zeros_like(high), high, dtype=np.float32)

    def _foods(self) -> list[tuple[int, int, int]]:
        """Return row, column and level of each piece that is left, in the order of the field."""
        rows, columns = self.field.nonzero()
        levels = self.field[rows, columns]
        return list(zip(rows.tolist(), columns.tolist(), levels.tolist()))

    def _gen_valid_moves(self) -> None:
        field: np.ndarray[Any, Any] = self.field
        height, width = field.shape
        taken = {(row, column) for row, column, _ in self._foods()}
        players: list[Any] = self.players
        self._valid_actions: Any = {}
        for player in players:
            row, column = map(int, player.position)
            legal, near_food = [Action.NONE], False
            for action, down, right in _MOVES:
                to_row, to_column = row + down, column + right
                if (to_row, to_column) in taken:
                    near_food = True
                elif 0 <= to_row < height and 0 <= to_column < width:
                    legal.append(action)
            if near_food:
                legal.append(Action.LOAD)
            self._valid_actions[player] = legal

    def _make_gym_obs(self) -> Any:
        if self._grid_observation:
            return super()._make_gym_obs()
        field: np.ndarray[Any, Any] = self.field
        height, width = field.shape
        players: list[Any] = self.players
        sight, foods, with_levels = self.sight, self._foods(), self._observe_agent_levels
        unseen = (-1, -1, 0) if with_levels else (-1, -1)
        values: list[int] = []
        for player in players:
            row, column = map(int, player.position)
            # Positions are counted from the corner of what is seen, which ends at the edge of the field.
            top, left = max(row - sight, 0), max(column - sight, 0)
            bottom, right = min(row + sight, height - 1), min(column + sight, width - 1)
            missing = self.max_num_food
            for y, x, level in foods:
                if top <= y <= bottom and left <= x <= right:
                    values += (y - top, x - left, level)
                    missing -= 1
            values += (-1, -1, 0) * missing
            missing = len(players)
            for other in (player, *(p for p in players if p is not player)):
                y, x = other.position[0] - top, other.position[1] - left
                if 0 <= y <= 2 * sight and 0 <= x <= 2 * sight:
                    values += (y, x, other.level) if with_levels else (y, x)
                    missing -= 1
            values += unseen * missing
        return tuple(np.array(values, np.float32).reshape(len(players), -1))
