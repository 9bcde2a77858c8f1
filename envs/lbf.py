"""Create level-based foraging tasks (package ``lbforaging``): agents collect food that several must lift together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qmix_lightning.environment import check_arguments
from qmix_lightning.envs.gymnasium_tuple import TupleEnv
from qmix_lightning.envs.optional import require
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.rendering.offscreen import draw_offscreen

__all__ = ["Foraging", "make"]

_TASK = re.compile(
    r"(?:Foraging-)?(?:(?P<sight>\d+)s-)?(?P<rows>\d+)x(?P<columns>\d+)-(?P<players>\d+)p-(?P<food>\d+)f"
    r"(?P<coop>-coop)?(?P<individual>-ind)?(?P<penalty>-pen)?(?:-v3)?"
)


class Foraging(TupleEnv):
    """The package's environment with its time limit, legal actions and food collected made visible.

    * Its step limit comes out as *terminated*; with food left on the field it is a truncation.
    * Illegal actions are silently replaced by none; the legal ones are in a private attribute, used as the mask here.
    * ``food_collected``, at the end of an episode: the share of all food (by level) that was collected.
    """

    episode_metrics = ("food_collected",)
    action_names = ("none", "north", "south", "west", "east", "load")

    def __init__(self, env: Any, *, time_limit: int | None = None) -> None:
        super().__init__(env, time_limit=time_limit)
        from lbforaging.foraging.environment import Action

        self._actions = sorted(Action, key=lambda action: action.value)
        self.metadata["obs_entities"] = self._entities()

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
        # It places one player after the other where nobody stands, and those not placed yet still stand where the last
        # episode left them: a seed would start differently after another past.
        for player in self.game.players:
            player.position = None
        return super().reset(seed, options)

    def render_frame(self) -> np.ndarray:
        """Return the package's own picture; food and players carry their levels."""
        draw_offscreen()
        if not self.game._rendering_initialized:
            self.game._init_render()
        return self.game.viewer.render(self.game, return_rgb_array=True)

    def _entities(self) -> list[dict[str, Any]]:
        """Return the entity blocks of an observation: food, then the other players.

        The player itself stands between them, always the first of the players.
        """
        if self.game._grid_observation:
            return []
        food, others = self.game.max_num_food, len(self.game.players) - 1
        size = 3 if self.game._observe_agent_levels else 2
        blocks = [{"name": "food", "start": 0, "count": food, "size": 3, "absent": (-1, -1, 0)}] if food else []
        if others:
            absent = (-1, -1, 0)[:size]
            start = 3 * food + size
            blocks.append({"name": "players", "start": start, "count": others, "size": size, "absent": absent})
        return blocks

    def own_limit(self) -> int | None:
        return self.game._max_episode_steps

    def timed_out(self) -> bool:
        return bool(self.game.field.any())

    def masks(self) -> Sequence[Any]:
        order, legal = self._actions, self.game._valid_actions
        return list(np.array([[action in legal[player] for action in order] for player in self.game.players]))

    def metrics(self) -> dict[str, float]:
        spawned = float(self.game._food_spawned)
        return {"food_collected": 1.0 - float(self.game.field.sum()) / spawned if spawned else 1.0}


def make(task: str = "8x8-2p-3f", kwargs: Mapping[str, Any] | None = None) -> Foraging:
    """Create the foraging task of a name as the literature writes it.

    Args:
        task: ``[SIGHTs-]ROWSxCOLUMNS-PLAYERSp-FOODf[-coop][-ind][-pen]``, e.g. ``2s-8x8-2p-2f-coop``: agents see two
            fields far, and all must lift each piece together. Any size, registered with Gymnasium or not.
        kwargs: keyword arguments of ``ForagingEnv``, e.g. ``max_episode_steps`` or ``penalty``.
    """
    parsed = _TASK.fullmatch(task)
    if parsed is None:
        raise ConfigurationError(
            f"unknown LBF task '{task}'; write it as 8x8-2p-3f, 2s-8x8-2p-2f-coop or 15x15-4p-5f: "
            "[SIGHTs-]ROWSxCOLUMNS-PLAYERSp-FOODf[-coop][-ind][-pen]"
        )
    require("lbforaging", "lbf", "lbf")
    from lbforaging.foraging import ForagingEnv

    from qmix_lightning.envs.lbf_game import Game

    rows, columns = int(parsed["rows"]), int(parsed["columns"])
    # The values under which the package registers its tasks.
    settings: dict[str, Any] = {
        "players": int(parsed["players"]),
        "min_player_level": 1,
        "max_player_level": 2,
        "field_size": (rows, columns),
        "min_food_level": 1,
        "max_food_level": 1 if parsed["individual"] else None,
        "max_num_food": int(parsed["food"]),
        "sight": int(parsed["sight"]) if parsed["sight"] else max(rows, columns),
        "max_episode_steps": 50,
        "force_coop": parsed["coop"] is not None,
        "grid_observation": False,
        "penalty": 0.1 if parsed["penalty"] else 0.0,
    }
    settings.update(kwargs or {})
    check_arguments(ForagingEnv, settings, f"LBF task '{task}'")
    size = settings["field_size"]
    if not isinstance(size, Sequence) or len(size) != 2:
        raise ConfigurationError(f"env.kwargs.field_size must be two numbers, [rows, columns], not {size}")
    settings["field_size"] = tuple(size)  # a list in YAML
    if settings["players"] < 1:
        raise ConfigurationError(f"LBF task '{task}' has nobody to play it")
    if settings["max_num_food"] and min(size) < 3:
        raise ConfigurationError(f"LBF task '{task}' has no room for food, which never lies at the border")
    return Foraging(Game(**settings))
