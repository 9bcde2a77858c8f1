"""Create multi-robot warehouses (package ``rware``): robots bring the requested shelves to the goal and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from qmix_lightning.environment import check_arguments
from qmix_lightning.envs.gymnasium_tuple import TupleEnv
from qmix_lightning.envs.optional import require
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.rendering.offscreen import draw_offscreen
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["RoboticWarehouse", "make"]

_SIZES = {"tiny": (1, 3), "small": (2, 3), "medium": (2, 5), "large": (3, 5)}
_REQUESTS_PER_AGENT = {None: 1.0, "easy": 2.0, "hard": 0.5}
_TASK = re.compile(r"(?:rware-)?(?P<size>[a-z]+)-(?P<agents>\d+)ag(?:-(?P<difficulty>[a-z]+))?(?:-v2)?")


class RoboticWarehouse(TupleEnv):
    """The package's environment with its time limit as a truncation.

    Nothing but time ends an episode, yet it reports that as *terminated*.
    """

    action_names = ("none", "forward", "left", "right", "load")

    def own_limit(self) -> int | None:
        return self.game.max_steps

    def render_frame(self) -> Any:
        """Return the package's own picture: requested shelves are highlighted, robots that carry one are filled."""
        draw_offscreen()
        return self.game.render(mode="rgb_array")

    def timed_out(self) -> bool:
        return True


def make(task: str = "tiny-2ag", kwargs: Mapping[str, Any] | None = None) -> RoboticWarehouse:
    """Create the warehouse task of a name as the literature writes it.

    Args:
        task: ``SIZE-AGENTSag[-easy|-hard]`` with the size ``tiny``, ``small``, ``medium`` or ``large``.
        kwargs: keyword arguments of ``Warehouse``, e.g. ``sensor_range``, ``column_height``, ``msg_bits``, ``layout``.
            By name: ``reward_type`` (``individual``, ``global``, ``two_stage``), ``observation_type`` (``flattened``,
            ``dict``, ``image``, ``image_dict``), ``image_observation_layers`` (all but ``agent_direction`` and
            ``agent_load``, which the package misplaces).
    """
    parsed = _TASK.fullmatch(task)
    if parsed is None or parsed["size"] not in _SIZES or parsed["difficulty"] not in _REQUESTS_PER_AGENT:
        raise ConfigurationError(
            f"unknown RWARE task '{task}'; write it as tiny-2ag, small-4ag-easy or large-8ag-hard: "
            f"SIZE-AGENTSag[-easy|-hard] with the size {', '.join(_SIZES)}"
        )
    require("rware", "rware", "rware")
    from rware.warehouse import ImageLayer, ObservationType, RewardType, Warehouse

    rows, columns = _SIZES[parsed["size"]]
    agents = int(parsed["agents"])
    # The values under which the package registers its tasks.
    settings: dict[str, Any] = {
        "column_height": 8,
        "shelf_rows": rows,
        "shelf_columns": columns,
        "n_agents": agents,
        "msg_bits": 0,
        "sensor_range": 1,
        "request_queue_size": int(agents * _REQUESTS_PER_AGENT[parsed["difficulty"]]),
        "max_inactivity_steps": None,
        "max_steps": 500,
        "reward_type": RewardType.INDIVIDUAL,
    }
    settings.update(kwargs or {})
    check_arguments(Warehouse, settings, f"RWARE task '{task}'")
    if settings["request_queue_size"] < 1:
        raise ConfigurationError(f"RWARE task '{task}' requests no shelf at all: give it more agents")
    for name, kind in (("reward_type", RewardType), ("observation_type", ObservationType)):
        if name in settings:
            settings[name] = _member(kind, settings[name], name)
    if "image_observation_layers" in settings:
        layers = settings["image_observation_layers"]
        settings["image_observation_layers"] = _layers(ImageLayer, layers)
    warehouse = RoboticWarehouse(Warehouse(**settings))
    # It pays a delivery to each robot then; counted once, the team's return is what was delivered.
    warehouse.metadata["shared_reward"] = settings["reward_type"] is RewardType.GLOBAL
    return warehouse


def _layers(kind: type[Enum], names: Any) -> list[Enum]:
    """Return the layers of images by their names.

    The package (2.0.0) writes two of them at ``[x, y]`` where all others have ``[y, x]``.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ConfigurationError("env.kwargs.image_observation_layers must be a list, as in [agents,goals]")
    layers = [_member(kind, name, "image_observation_layers") for name in names]
    for layer in layers:
        if layer.name in ("AGENT_DIRECTION", "AGENT_LOAD"):
            raise ConfigurationError(
                f"env.kwargs.image_observation_layers: rware draws '{layer.name.lower()}' at x and y exchanged, so "
                "it lies elsewhere than the agents: leave it out"
            )
    return layers


def _member(kind: type[Enum], value: Any, setting: str) -> Enum:
    """Return a member of an enumeration by its name, as YAML has it."""
    if isinstance(value, kind):
        return value
    choices = {member.name.lower(): member for member in kind}
    if str(value).lower() not in choices:
        raise ConfigurationError(f"env.kwargs.{setting}: there is no '{value}'{did_you_mean(str(value), choices)}")
    return choices[str(value).lower()]
